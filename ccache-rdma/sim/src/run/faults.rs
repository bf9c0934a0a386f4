//! What goes wrong in a life.

use super::Run;
use crate::plan::Fault;

impl Run {
    /// Whether the cluster could go on without a node: a majority of the last view that can talk
    /// is left, and a complete copy of everything.
    pub(super) fn can_lose(&self, slot: u8) -> bool {
        let view = self.c.view();
        let net = self.c.net.borrow();
        let left: Vec<_> = self
            .c
            .nodes
            .iter()
            .filter(|n| {
                n.alive
                    && n.slot != slot
                    && n.paused_until <= net.now
                    && view.member(n.slot).is_some_and(|m| m.incarnation == n.incarnation)
            })
            .collect();
        let among = |s: u8| left.iter().any(|n| n.slot == s);
        let at_peace = left.iter().all(|n| {
            left.iter().all(|m| !net.is_cut(n.slot, m.slot))
                && !n.suspected.keys().any(|s| among(*s))
        });
        let copies =
            view.shards.iter().all(|r| r.primary.is_none() || r.complete().iter().any(among));
        let evicted = self.c.at(slot).is_none_or(|at| {
            let node = (slot, self.c.nodes[at].incarnation);
            self.c.membership.may_evict(node, true, &self.c.nodes)
        });
        at_peace && self.c.membership.is_majority(left.len()) && copies && evicted
    }

    pub(super) fn victim(&mut self) -> Option<u8> {
        let live: Vec<u8> = self.c.nodes.iter().filter(|n| n.alive).map(|n| n.slot).collect();
        let slot = live[self.random.below(live.len())];
        (live.len() > 1 && self.can_lose(slot)).then_some(slot)
    }

    /// Kills a node when a write of its is half done, if it can be had.
    pub(super) fn crash(&mut self, slot: u8) {
        let mut after = 1 + self.random.below(12);
        for _ in 0..3_000 {
            if self.c.at(slot).is_none() || self.failed() {
                return;
            }
            let at = self.c.at(slot).map(|at| self.c.nodes[at].port());
            if at.is_some_and(|port| self.c.net.borrow().writing(port)) {
                after -= 1;
            }
            if after == 0 {
                break;
            }
            self.step();
        }
        if self.can_lose(slot) {
            self.poll_clients();
            self.c.kill(slot);
            self.lose_clients();
        }
    }

    pub(super) fn strike(&mut self, fault: Fault) {
        if fault == Fault::Return {
            let gone = |s: &u8| self.c.at(*s).is_none() && self.c.all_closed(*s);
            if let Some(slot) = (0..self.plan.nodes).find(gone) {
                let incarnation = self.c.rejoin(slot);
                self.add_clients(slot, incarnation);
            }
            return;
        }
        let Some(victim) = self.victim() else { return };
        let lease = crate::node::timing().lease_ns;
        let now = self.c.now();
        match fault {
            Fault::Crash => self.crash(victim),
            Fault::CrashTwice => {
                self.crash(victim);
                let meanwhile = self.random.time(0, 2 * lease);
                self.run(meanwhile);
                if let Some(next) = self.victim() {
                    self.crash(next);
                }
            }
            Fault::Suspicion => {
                let others: Vec<u8> = self.c.view().slots().without(victim).iter().collect();
                if !others.is_empty() {
                    let by = others[self.random.below(others.len())];
                    self.c.suspect(by, victim);
                }
                if self.random.chance(3) {
                    let until = now + self.random.time(lease / 2, 6 * lease);
                    self.c.pause(victim, until);
                }
            }
            Fault::Isolation | Fault::Link => {
                let mut others: Vec<u8> = (0..self.plan.nodes).filter(|s| *s != victim).collect();
                if fault == Fault::Link {
                    let one = others[self.random.below(others.len())];
                    others = vec![one];
                }
                for other in &others {
                    self.c.cut(victim, *other, true);
                }
                let most = if self.random.chance(2) { lease / 3 } else { 8 * lease };
                let length = self.random.time(5_000, most);
                self.run(length);
                for other in &others {
                    self.c.cut(victim, *other, false);
                }
            }
            Fault::Pause => {
                let until = now + self.random.time(lease / 2, 8 * lease);
                self.c.pause(victim, until);
                self.run_until(until);
            }
            Fault::Split => {
                let others: Vec<u8> = self.c.view().slots().without(victim).iter().collect();
                if others.is_empty() {
                    return;
                }
                let by = others[self.random.below(others.len())];
                self.c.suspect(by, victim);
                let meanwhile = self.random.time(5_000, 100_000);
                self.run(meanwhile);
                let rest: Vec<u8> = (0..self.plan.nodes).filter(|s| *s != by).collect();
                for other in &rest {
                    self.c.cut(by, *other, true);
                }
                let length = self.random.time(lease, 10 * lease);
                self.run(length);
                for other in &rest {
                    self.c.cut(by, *other, false);
                }
            }
            Fault::Return => {}
        }
    }
}
