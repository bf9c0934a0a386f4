//! Changing to a new view (rules 13–17): everyone freezes, revokes who is gone, drains, confirms;
//! the lease of the gone runs out; redo records are replayed; words are made anew where the primary
//! changed, and ownership that the gone held is resolved. Then all go on.
//!
//! Every member goes through the same steps and tells all others when it is through with each:
//!
//! 1. nothing of the gone lands here any more, nothing of mine is under way;
//! 2. the redo records in my memory stand on all replicas;
//! 3. the shards that I am primary of are in order.
//!
//! A next view in the middle of it starts it over; all of it may be done twice. What changed since
//! a node was last settled is in its first confirmation, so members that come from different views
//! (or from none) act on the union.

use super::message::{Message, ShardSet};
use super::op::{Caller, Kind, OpId};
use super::{Action, Bug, Engine, Event};
use crate::cache::CacheError;
use crate::layout::control;
use crate::name::Shard;
use crate::view::{Slots, View};

pub(crate) use super::resolve::Recovery;

/// What a member has confirmed last.
#[derive(Clone, Debug)]
pub(crate) struct Confirmed {
    epoch: u64,
    step: u8,
    affected: ShardSet,
    gone: Slots,
    settled: u64,
}

impl Default for Confirmed {
    fn default() -> Confirmed {
        let (affected, gone) = (ShardSet::none(), Slots::NONE);
        Confirmed { epoch: 0, step: 0, affected, gone, settled: 0 }
    }
}

/// A change of view under way.
pub(crate) struct Change {
    step: u8,
    /// This node is through with the step and has said so.
    said: bool,
    revoking: Slots,
    /// Shards whose primary changed, nodes that went, since this node was last settled.
    affected: ShardSet,
    gone: Slots,
    /// The gone, as far as this node has seen them go.
    went: Vec<(u8, u64)>,
    /// When the leases of the gone are over, ns.
    lease_over: Option<u64>,
    work: Option<OpId>,
    /// When it began, and when its parts were through.
    times: Times,
}

impl Change {
    /// Nobody's revoke is awaited.
    pub(crate) fn revoked(&self) -> bool {
        self.revoking.is_empty()
    }
}

/// When the parts of a change of view were through on this node, ns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Times {
    /// The view came.
    pub view: u64,
    /// All members have revoked the gone and drained.
    pub drained: u64,
    /// The leases of the gone were over.
    pub lease: u64,
    /// All members' redo records were replayed.
    pub replayed: u64,
    /// All shards were in order: operations go on.
    pub resolved: u64,
    /// Whether anybody was gone.
    pub gone: bool,
}

impl Engine {
    /// Nodes that are gone in this change of view, by everyone's account.
    pub(crate) fn gone(&self) -> Slots {
        self.change.as_ref().map_or(Slots::NONE, |c| c.gone)
    }

    /// A view has been committed by a majority.
    pub(crate) fn install(&mut self, view: View) {
        if view.epoch <= self.view.epoch || !view.well_formed() {
            return;
        }
        let me = self.config.node;
        let old = std::mem::replace(&mut self.view, view);
        let (mut affected, mut gone, mut went, mut revoking) = match self.change.take() {
            Some(c) => {
                if let Some(work) = c.work {
                    self.cancel(work);
                }
                (c.affected, c.gone, c.went, c.revoking)
            }
            None => (ShardSet::none(), Slots::NONE, Vec::new(), Slots::NONE),
        };
        self.frozen = true;
        self.arena.set_control(control::VIEW_EPOCH, self.view.epoch);
        if self.view.member(me).is_none_or(|m| m.incarnation != self.config.incarnation) {
            self.evicted();
            return;
        }
        if old.epoch != 0 {
            for (s, r) in self.view.shards.iter().enumerate() {
                let shard = Shard(s as u16);
                if old.primary(shard) != r.primary {
                    affected.insert(shard.0);
                }
            }
        }
        for m in &old.members {
            let stays = self.view.member(m.slot).is_some_and(|n| n.incarnation == m.incarnation);
            if !stays {
                gone = gone.with(m.slot);
                went.push((m.slot, m.incarnation));
                // What it asked must not be answered to its next incarnation.
                let of_it = |e: &Event| matches!(e, Event::Message { from, .. } if *from == m.slot);
                self.deferred.retain(|e| !of_it(e));
                self.connected[usize::from(m.slot)] = None;
                if self.bug(Bug::PartialRevoke) && self.view.members[0].slot == me {
                    continue;
                }
                revoking = revoking.with(m.slot);
                self.out.push(Action::Revoke { peer: m.slot });
            }
        }
        self.change = Some(Change {
            step: 1,
            said: false,
            revoking,
            affected,
            gone,
            went,
            lease_over: None,
            work: None,
            times: Times { view: self.now, ..Times::default() },
        });
        self.connect_members();
        self.advance_change();
    }

    /// Asks for connections to members that there are none to, unless an earlier incarnation's
    /// revoke must be waited for.
    fn connect_members(&mut self) {
        let Some(change) = &self.change else { return };
        for m in &self.view.members {
            let to = &mut self.connected[usize::from(m.slot)];
            let new = m.slot != self.config.node && to.is_none_or(|(i, _)| i != m.incarnation);
            if new && !change.revoking.contains(m.slot) {
                *to = Some((m.incarnation, false));
                self.out.push(Action::Connect { peer: m.slot, incarnation: m.incarnation });
            }
        }
    }

    /// This node is not a member any more: nothing that it does counts.
    fn evicted(&mut self) {
        for id in self.ops.ids() {
            let Some(op) = self.ops.get_mut(id) else { continue };
            let posted = matches!(&op.kind, Kind::Write(w) if w.posted());
            let error = if posted { CacheError::Unknown } else { CacheError::NoQuorum };
            if let Caller::Request(request, _) = std::mem::replace(&mut op.caller, Caller::Own) {
                self.out.push(Action::Reply { id: request, reply: Err(error) });
            }
            self.cancel(id);
        }
    }

    pub(crate) fn revoked(&mut self, peer: u8) {
        if let Some(change) = &mut self.change {
            change.revoking = change.revoking.without(peer);
        }
        self.connect_members();
        self.advance_change();
    }

    pub(crate) fn peer_ended(&mut self, peer: u8, incarnation: u64) {
        if let Some(ended) = self.ended.get_mut(usize::from(peer))
            && ended.is_none_or(|(i, _)| i < incarnation)
        {
            *ended = Some((incarnation, self.now));
        }
    }

    pub(crate) fn peer_connected(&mut self, peer: u8, incarnation: u64) {
        if let Some(to @ Some(_)) = self.connected.get_mut(usize::from(peer))
            && *to == Some((incarnation, false))
        {
            *to = Some((incarnation, true));
        }
        self.advance_change();
    }

    pub(crate) fn confirmed(
        &mut self,
        from: u8,
        epoch: u64,
        step: u8,
        affected: ShardSet,
        gone: u16,
        settled: u64,
    ) {
        let Some(c) = self.confirms.get_mut(usize::from(from)) else { return };
        if epoch > c.epoch {
            *c = Confirmed { epoch, ..Confirmed::default() };
        }
        if epoch == c.epoch && step > c.step {
            c.step = step;
            if step == 1 {
                c.affected = affected;
                c.gone = Slots(gone);
                c.settled = settled;
            }
        }
        self.advance_change();
    }

    /// Nothing of this node's is under way any more.
    pub(crate) fn drained(&mut self) {
        if self.frozen {
            self.advance_change();
        }
    }

    /// The recovery's work of a step is done.
    pub(crate) fn work_done(&mut self, id: OpId) {
        if let Some(c) = &mut self.change
            && c.work == Some(id)
        {
            c.work = None;
            self.say();
            self.advance_change();
        }
    }

    /// Tells all members that this one is through with the step.
    fn say(&mut self) {
        let Some(c) = &mut self.change else { return };
        c.said = true;
        let message = Message::Confirm {
            epoch: self.view.epoch,
            step: c.step,
            affected: c.affected.clone(),
            gone: c.gone.0,
            settled: self.settled_in,
        };
        for peer in self.view.slots().without(self.config.node).iter() {
            self.send(peer, &message);
        }
    }

    fn all_said(&self, step: u8) -> bool {
        self.view.slots().without(self.config.node).iter().all(|peer| {
            let c = &self.confirms[usize::from(peer)];
            c.epoch == self.view.epoch && c.step >= step
        })
    }

    /// Goes as far as it can.
    pub(crate) fn advance_change(&mut self) {
        loop {
            let Some(c) = &self.change else { return };
            let step = c.step;
            match step {
                1 if !c.said => {
                    let connected = self.view.members.iter().all(|m| {
                        m.slot == self.config.node
                            || self.connected[usize::from(m.slot)] == Some((m.incarnation, true))
                    });
                    let under_way = self.outstanding > 0 && !self.bug(Bug::NoDrain);
                    if !c.revoked() || !connected || under_way {
                        return;
                    }
                    self.say();
                }
                1 => {
                    if !self.all_said(1) {
                        return;
                    }
                    self.drop_affected();
                }
                2 if !c.said && c.work.is_none() => {
                    if c.lease_over.is_some_and(|at| self.now < at) {
                        return;
                    }
                    if let Some(c) = &mut self.change {
                        c.times.lease = self.now;
                    }
                    self.begin(Recovery::replay());
                }
                3 if !c.said && c.work.is_none() => self.begin(Recovery::resolve()),
                2 if c.said && self.all_said(2) => {
                    if let Some(c) = &mut self.change {
                        c.times.replayed = self.now;
                    }
                    self.next_step(3);
                }
                3 if c.said && self.all_said(3) => {
                    self.settle();
                    return;
                }
                _ => return,
            }
        }
    }

    fn next_step(&mut self, step: u8) {
        if let Some(c) = &mut self.change {
            c.step = step;
            c.said = false;
        }
    }

    fn begin(&mut self, recovery: Recovery) {
        let work = self.spawn(Caller::Own, Kind::Recovery(recovery));
        match (&mut self.change, work) {
            (Some(c), Some(id)) => c.work = Some(id),
            // The table is full of frozen operations: one of them makes room.
            _ => {
                if let Some(id) = self.ops.ids().pop() {
                    self.cancel(id);
                }
            }
        }
    }

    /// All members are drained: what any of them knows to have changed, all take as changed.
    fn drop_affected(&mut self) {
        let (no_wait, keep) = (self.bug(Bug::NoLeaseWait), self.bug(Bug::CachesKept));
        let any = self.bug(Bug::EndedBefore);
        let Some(c) = &mut self.change else { return };
        for peer in self.view.slots().without(self.config.node).iter() {
            c.affected.union(&self.confirms[usize::from(peer)].affected);
        }
        // What was held by nodes gone before anyone last settled is resolved. A slot may have a new
        // incarnation since, which must not pass for the gone one: whoever settled last knows.
        let mut last = self.settled_in;
        for peer in self.view.slots().without(self.config.node).iter() {
            let said = &self.confirms[usize::from(peer)];
            if said.settled > last {
                (last, c.gone) = (said.settled, said.gone);
            } else if said.settled == last {
                c.gone = c.gone.union(said.gone);
            }
        }
        // Nobody completes a renewal for the gone any more, and the last may have just been sent; or, where
        // all of them are known to have ended, it had been by then.
        let seen: Slots = c.went.iter().map(|(slot, _)| *slot).collect();
        let known = |(slot, incarnation): &(u8, u64)| {
            let ended = self.ended.get(usize::from(*slot)).copied().flatten();
            ended.filter(|(i, _)| any || i == incarnation).map(|(_, at)| at)
        };
        let ended: Option<Vec<u64>> = c.went.iter().map(known).collect();
        let ended = ended.filter(|_| last == self.settled_in && c.gone == seen);
        let last_renewal = ended.and_then(|at| at.into_iter().max()).unwrap_or(self.now);
        let over = last_renewal + self.config.timing.over_by();
        c.times.drained = self.now;
        c.times.gone = !c.gone.is_empty();
        c.lease_over = (!c.gone.is_empty() && !no_wait).then_some(over);
        for shard in c.affected.iter().filter(|_| !keep) {
            self.arena.set_control(control::shard_epoch(Shard(shard)), self.view.epoch);
        }
        let affected = &c.affected;
        self.shares.retain(|key, _| !affected.contains(key.shard()));
        for (name, o) in &mut self.objects {
            if affected.contains(name.shard().0) {
                o.slot = None;
                o.guess = None;
                o.grab = None;
                o.kept = None;
            }
        }
        let affected: Vec<u16> = c.affected.iter().collect();
        for shard in affected {
            self.forget_primary(Shard(shard));
        }
        #[cfg(feature = "put-back-bugs")]
        if self.bug(Bug::CountsCleared) {
            self.clear_counts_of_the_gone();
        }
        self.next_step(2);
    }

    /// Everyone is through: go on.
    fn settle(&mut self) {
        let Some(change) = self.change.take() else { return };
        self.affected = change.affected;
        self.settled_in = self.view.epoch;
        self.frozen = false;
        self.stats.changes += 1;
        self.stats.last_change = Times { resolved: self.now, ..change.times };
        let members = self.view.slots();
        for nodes in self.watched.values_mut() {
            *nodes = nodes.intersection(members);
        }
        self.resume_all();
        self.resume_marks();
        let mut queued: Vec<_> =
            self.objects.iter().filter(|(_, o)| !o.queue.is_empty()).map(|(n, _)| *n).collect();
        queued.sort();
        for name in queued {
            self.pump(name);
        }
        for event in std::mem::take(&mut self.deferred) {
            self.dispatch(event);
        }
        for (name, slot) in std::mem::take(&mut self.free_later) {
            self.free_hint(name, slot);
        }
        self.start_rebuild();
    }

    pub(crate) fn change_deadline(&self) -> Option<u64> {
        let c = self.change.as_ref()?;
        if c.step == 2 && !c.said && c.work.is_none() { c.lease_over } else { None }
    }

    pub(crate) fn change_timer(&mut self) {
        if self.change_deadline().is_some_and(|at| self.now >= at) {
            self.advance_change();
        }
    }

    pub(crate) fn any_affected(&self) -> bool {
        self.change.as_ref().is_some_and(|c| !c.affected.is_empty())
    }

    /// Whether the shard's words are made anew in the change under way.
    pub(crate) fn is_affected(&self, shard: Shard) -> bool {
        self.change.as_ref().is_some_and(|c| c.affected.contains(shard.0))
    }
}
