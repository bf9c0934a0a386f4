//! Which nodes may be evicted before the changes of view that came before are complete everywhere.
//!
//! A node keeps its lease as long as a majority of the members *of the view that it has* takes its
//! renewals (rule 40). Who is left out of a view and has not heard of it still renews in the memory
//! of others that were left out. With one eviction after the other, each settled before the next, those
//! are never a majority; with several in a row they can be: of five nodes three, or of three nodes two
//! where a witness votes. They would then serve what they have cached while the others write. So what
//! has been decided since a view was last settled is remembered, and an eviction after which those
//! left out could be a lease majority is refused, until the view is settled. Whoever is known to have ended
//! does not count: no renewal is sent after the sender knew of the end ([`crate::service`]), and leases
//! that were renewed before are waited for.

use crate::view::View;
use serde::{Deserialize, Serialize};

/// A slot and an incarnation.
pub type Incarnation = (u8, u64);

/// Different memberships that are remembered before a view is settled: with as many nobody joins any
/// more, so that their number is bounded (each eviction takes one away).
const MAX: usize = 64;

/// The memberships since the last view that is known to be settled: all of its members have revoked whom it
/// leaves out, and the leases of those are over.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Succession {
    /// Epoch of the first view with these members, and they; ascending.
    memberships: Vec<(u64, Vec<Incarnation>)>,
    /// Of those, who is known to have ended.
    ended: Vec<Incarnation>,
}

impl Succession {
    /// That view was decided.
    pub fn decided(&mut self, view: &View) {
        let members = members(view);
        if self.memberships.last().is_none_or(|(_, last)| *last != members) {
            self.memberships.push((view.epoch, members));
        }
    }

    /// The first view with the latest members, if it is not known to be settled.
    pub fn unsettled(&self) -> Option<u64> {
        self.memberships.last().filter(|_| self.memberships.len() > 1).map(|(epoch, _)| *epoch)
    }

    /// The view of that epoch is settled, so those left out before have no lease, and never will.
    pub fn settled(&mut self, epoch: u64) {
        while self.memberships.get(1).is_some_and(|(next, _)| *next <= epoch) {
            self.memberships.remove(0);
        }
        let mut ended = std::mem::take(&mut self.ended);
        ended.retain(|e| self.knows(e));
        self.ended = ended;
    }

    /// Those have ended.
    pub fn ended(&mut self, incarnations: &[Incarnation]) {
        for e in incarnations {
            if self.knows(e) && !self.ended.contains(e) {
                self.ended.push(*e);
            }
        }
    }

    /// Whether a node may be left out of the view after `view`, where these incarnations are known to have
    /// ended: whether nobody left out since the last settled view could go on with a lease, and, unless it has
    /// ended, whether others have complete copies of all that it has.
    pub fn may_evict(&self, view: &View, node: Incarnation, ended: &[Incarnation]) -> bool {
        let known = |e: &Incarnation| {
            let replaced = |m: &Incarnation| m.0 == e.0 && m.1 > e.1;
            ended.contains(e)
                || self.ended.contains(e)
                || self.memberships.iter().any(|(_, m)| m.iter().any(replaced))
        };
        let last_copy =
            || view.shards.iter().any(|r| r.primary == Some(node.0) && r.backups.is_empty());
        if !known(&node) && last_copy() {
            return false;
        }
        let mut next = members(view);
        next.retain(|m| *m != node);
        self.memberships.iter().all(|(_, before)| {
            let out = before.iter().filter(|m| !next.contains(m) && !known(m));
            out.count() <= before.len() / 2
        })
    }

    /// Whether it is or was a member since.
    pub fn knows(&self, incarnation: &Incarnation) -> bool {
        self.memberships.iter().any(|(_, m)| m.contains(incarnation))
    }

    /// The incarnations before that one that are or were members since.
    pub fn before(&self, (slot, incarnation): Incarnation) -> impl Iterator<Item = Incarnation> {
        let all = self.memberships.iter().flat_map(|(_, m)| m.iter().copied());
        all.filter(move |(s, i)| *s == slot && *i < incarnation)
    }

    /// Whether a node may join.
    pub fn may_join(&self) -> bool {
        self.memberships.len() < MAX
    }
}

fn members(view: &View) -> Vec<Incarnation> {
    view.members.iter().map(|m| (m.slot, m.incarnation)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::{SHARDS, Shard};
    use crate::view::Member;

    fn member(slot: u8, incarnation: u64) -> Member {
        Member { slot, incarnation, path: String::new() }
    }

    fn first(nodes: u8) -> (View, Succession) {
        let view = View::first(&(0..nodes).map(|s| member(s, 1)).collect::<Vec<_>>());
        let mut s = Succession::default();
        s.decided(&view);
        (view, s)
    }

    /// Evicts if that is allowed, and fills all copies; nothing is settled by that.
    fn evict(
        view: &mut View,
        s: &mut Succession,
        node: Incarnation,
        ended: &[Incarnation],
    ) -> bool {
        let may = s.may_evict(view, node, ended);
        if may {
            s.ended(ended);
            *view = view.without(node.0);
            s.decided(view);
            let all: Vec<Shard> = (0..SHARDS).map(Shard).collect();
            for slot in view.slots().iter() {
                *view = view.rebuilt(slot, &all).unwrap_or(view.clone());
            }
        }
        may
    }

    #[test]
    fn those_left_out_are_no_majority_of_an_unsettled_view() {
        for (nodes, most) in [(2, 1), (3, 1), (4, 2), (5, 2), (7, 3)] {
            let (mut view, mut s) = first(nodes);
            let gone = (1..nodes).filter(|k| evict(&mut view, &mut s, (*k, 1), &[])).count();
            assert_eq!(gone, most, "of {nodes}");
            // Settled, it begins anew.
            let since = s.unsettled().unwrap();
            s.settled(since - 1);
            assert_eq!(s.unsettled(), Some(since));
            s.settled(since);
            assert_eq!(s.unsettled(), None);
            if let Some(next) = view.members.get(1).map(|m| m.slot) {
                assert!(evict(&mut view, &mut s, (next, 1), &[]), "of {nodes}");
            }
        }
    }

    #[test]
    fn whoever_has_ended_renews_nothing() {
        let (mut view, mut s) = first(3);
        assert!(evict(&mut view, &mut s, (2, 1), &[]));
        assert!(!evict(&mut view, &mut s, (1, 1), &[]));
        assert!(!evict(&mut view, &mut s, (1, 1), &[(1, 2), (2, 7)]), "other incarnations");
        let (before, all) = (view.clone(), s.clone());
        assert!(evict(&mut view, &mut s, (1, 1), &[(2, 1)]));
        (view, s) = (before, all);
        assert!(evict(&mut view, &mut s, (1, 1), &[(1, 1)]));
        s.settled(view.epoch);
        assert_eq!((s.memberships.len(), s.ended.len()), (1, 0));
        // Where a later incarnation has come, the one before is no more.
        let (mut view, mut s) = first(3);
        assert!(evict(&mut view, &mut s, (2, 1), &[]));
        view = view.with(&member(2, 2));
        s.decided(&view);
        assert!(evict(&mut view, &mut s, (1, 1), &[]));
    }

    #[test]
    fn the_last_complete_copy_is_not_given_up_on_suspicion() {
        let (mut view, mut s) = first(1);
        view = view.with(&member(1, 2));
        s.decided(&view);
        s.settled(view.epoch);
        assert!(!s.may_evict(&view, (0, 1), &[]));
        assert!(s.may_evict(&view, (0, 1), &[(0, 1)]));
        assert!(s.may_evict(&view, (1, 2), &[]));
        let all: Vec<Shard> = (0..SHARDS).map(Shard).collect();
        view = view.rebuilt(1, &all).unwrap();
        s.decided(&view);
        assert!(s.may_evict(&view, (0, 1), &[]));
    }

    #[test]
    fn a_view_that_nobody_settles_lets_nobody_join_for_ever() {
        let (mut view, mut s) = first(3);
        let mut incarnation = 2;
        while s.may_join() {
            let before = view.member(2).map_or(0, |m| m.incarnation);
            assert!(evict(&mut view, &mut s, (2, before), &[(2, before)]));
            view = view.with(&member(2, incarnation));
            s.decided(&view);
            incarnation += 1;
        }
        assert!(s.memberships.len() <= MAX + 1);
        s.settled(view.epoch);
        assert!(s.may_join());
    }
}
