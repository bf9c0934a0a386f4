//! Who decides views in the simulator: an oracle that does what a consensus of the members would.
//! A view is decided only by a majority of the members of the view before it, all running and all
//! able to talk with each other; whoever is cut off neither decides nor hears of it. With a witness, which
//! votes where the members are even in number, only one of those who decide knows of it at once.

use crate::net::Net;
use crate::node::{Node, timing};
use crate::random::Random;
use clustix_ccache::name::Shard;
use clustix_ccache::succession::{Incarnation, Succession};
use clustix_ccache::view::{Member, Slots, View};

/// A copy that has been filled, as its primary reported it.
#[derive(Clone, Debug)]
pub struct Rebuilt {
    /// Who reports.
    pub by: u8,
    /// Whose copies.
    pub slot: u8,
    /// In which view.
    pub epoch: u64,
    /// Of which shards.
    pub shards: Vec<u16>,
}

/// The oracle.
#[derive(Default)]
pub struct Membership {
    /// Decided views, in order.
    pub views: Vec<View>,
    /// Who decided each; they hear of it from nobody.
    deciders: Vec<Slots>,
    /// New incarnations that want to be in.
    pub joining: Vec<Member>,
    rebuilt: Vec<Rebuilt>,
    /// Shards that are to have another primary, and which.
    rehoming: Option<(u8, Vec<Shard>)>,
    /// How many such views were decided.
    pub rehomed: u64,
    /// There is a witness.
    pub witness: bool,
    /// A known mistake: evictions are decided whatever came before.
    pub careless: bool,
    /// Who has ended is known.
    pub notices: bool,
    succession: Succession,
    /// Since when all members have revoked whom the last view leaves out.
    revoked: Option<u64>,
    /// Evictions that were not decided since they were not safe, counted at each turn.
    pub refused: u64,
}

impl Membership {
    /// The last view decided.
    pub fn view(&self) -> &View {
        self.views.last().expect("a first view")
    }

    /// Decides without asking.
    pub fn decide(&mut self, view: View, deciders: Slots) {
        self.succession.decided(&view);
        self.views.push(view);
        self.deciders.push(deciders);
    }

    /// Whether so many members of the last view can decide the next one.
    pub fn is_majority(&self, members: usize) -> bool {
        let all = self.view().members.len();
        let witness = usize::from(self.witness && all.is_multiple_of(2));
        members + witness > (all + witness) / 2
    }

    /// Whether a node may be evicted, whose process has ended or not.
    pub fn may_evict(&self, node: Incarnation, dead: bool, nodes: &[Node]) -> bool {
        let mut ended: Vec<Incarnation> = Vec::new();
        if self.notices {
            let gone = nodes.iter().filter(|n| !n.alive).map(|n| (n.slot, n.incarnation));
            ended.extend(gone.chain(dead.then_some(node)));
        }
        for j in &self.joining {
            ended.extend(self.succession.before((j.slot, j.incarnation)));
        }
        self.succession.may_evict(self.view(), node, &ended)
    }

    /// Notes a report for the next decision.
    pub fn report(&mut self, report: Rebuilt) {
        self.rebuilt.push(report);
    }

    /// Asks for another primary of shards. What is not decided when the next is asked for is forgotten.
    pub fn rehome(&mut self, to: u8, shards: Vec<Shard>) {
        self.rehoming = Some((to, shards));
    }

    /// Whether nothing waits to be decided.
    pub fn is_quiet(&self) -> bool {
        self.joining.is_empty() && self.rebuilt.is_empty()
    }

    /// A majority of the last view's members that can all talk with each other, and think that they
    /// can, `with` among them and without `without`.
    fn majority(
        &self,
        random: &mut Random,
        nodes: &[&Node],
        net: &Net,
        with: Option<u8>,
        without: Option<u8>,
    ) -> Option<Slots> {
        let mut left: Vec<u8> =
            nodes.iter().map(|n| n.slot).filter(|s| Some(*s) != without).collect();
        let mut group: Vec<u8> = Vec::new();
        if let Some(first) = with {
            let at = left.iter().position(|s| *s == first)?;
            group.push(left.swap_remove(at));
        }
        while !left.is_empty() {
            let next = left.swap_remove(random.below(left.len()));
            let speaks = |g: &u8| {
                let mutual = |a: u8, b: u8| {
                    nodes.iter().all(|n| n.slot != a || !n.suspected.contains_key(&b))
                };
                !net.is_cut(*g, next) && mutual(*g, next) && mutual(next, *g)
            };
            if group.iter().all(speaks) {
                group.push(next);
            }
        }
        self.is_majority(group.len()).then(|| group.into_iter().collect())
    }

    /// Notes that all members have revoked whom the last view leaves out, and that a lease has passed since.
    fn settle(&mut self, nodes: &[Node], now: u64) {
        let Some(epoch) = self.succession.unsettled() else { return };
        let has = |slot: u8, incarnation: u64| {
            let it = nodes.iter().find(|n| (n.slot, n.incarnation) == (slot, incarnation));
            it.is_some_and(|n| n.engine.view().epoch >= epoch && n.engine.has_revoked())
        };
        if !self.view().members.iter().all(|m| has(m.slot, m.incarnation)) {
            self.revoked = None;
        } else if now - *self.revoked.get_or_insert(now) > 2 * timing().over_by() {
            self.revoked = None;
            self.succession.settled(epoch);
        }
    }

    /// Decides what can be decided now, at most one view.
    pub fn turn(&mut self, random: &mut Random, nodes: &[Node], net: &Net) {
        let view = self.view().clone();
        self.settle(nodes, net.now);
        let member = |slot: u8, incarnation: u64| {
            view.member(slot).is_some_and(|m| m.incarnation == incarnation)
        };
        let voters: Vec<&Node> = nodes
            .iter()
            .filter(|n| n.alive && n.paused_until <= net.now && member(n.slot, n.incarnation))
            .collect();
        for n in &voters {
            for (slot, incarnation) in &n.suspected {
                if !member(*slot, *incarnation) || *slot == n.slot {
                    continue;
                }
                let next = view.without(*slot);
                let lives = |s: u8| s != *slot && nodes.iter().any(|n| n.slot == s && n.alive);
                let kept = next.shards.iter().all(|r| r.complete().iter().any(lives));
                if nodes.iter().any(|n| n.slot == *slot && n.alive) && !kept {
                    // The last copy of something: two losses at once are more than is promised.
                    continue;
                }
                if !self.careless && !self.may_evict((*slot, *incarnation), false, nodes) {
                    self.refused += 1;
                    continue;
                }
                if let Some(by) = self.majority(random, &voters, net, Some(n.slot), Some(*slot)) {
                    self.rebuilt.clear();
                    let by = if self.witness { Slots::one(n.slot) } else { by };
                    return self.decide(next, by);
                }
            }
        }
        if let Some(m) = self.joining.first().cloned()
            && let Some(by) = self.majority(random, &voters, net, None, Some(m.slot))
        {
            self.joining.remove(0);
            self.rebuilt.clear();
            return self.decide(view.with(&m), by);
        }
        if let Some((to, shards)) = self.rehoming.take()
            && let Some(next) = view.rehome(to, &shards)
            && let Some(by) = self.majority(random, &voters, net, Some(to), None)
        {
            self.rebuilt.clear();
            self.rehomed += 1;
            return self.decide(next, by);
        }
        self.rebuilt.retain(|r| r.epoch == view.epoch);
        let Some(first) = self.rebuilt.first() else { return };
        let Some(by) = self.majority(random, &voters, net, Some(first.by), None) else { return };
        let mut next = view.clone();
        for r in std::mem::take(&mut self.rebuilt) {
            let shards: Vec<Shard> = r.shards.into_iter().map(Shard).collect();
            next = next.rebuilt(r.slot, &shards).unwrap_or(next);
        }
        next.epoch = view.epoch + 1;
        self.decide(next, by);
    }

    /// Whether a node hears of its next view now: it decided it, or can talk with one that knows.
    pub fn hears(&self, node: &Node, nodes: &[Node], net: &Net) -> bool {
        let Some(by) = self.deciders.get(node.views) else { return false };
        let decided = by.contains(node.slot)
            && self.views[node.views]
                .member(node.slot)
                .is_some_and(|m| m.incarnation == node.incarnation);
        // The witness tells whoever is not cut off from anybody.
        decided
            || self.witness && nodes.iter().all(|n| !net.is_cut(n.slot, node.slot))
            || nodes.iter().any(|n| {
                let knows = n.views > node.views
                    || by.contains(n.slot)
                        && self.views[node.views]
                            .member(n.slot)
                            .is_some_and(|m| m.incarnation == n.incarnation);
                n.alive && n.slot != node.slot && knows && !net.is_cut(n.slot, node.slot)
            })
    }
}
