//! What this node knows of its own count in each slot's word: `ub` (rules 2 and 6).

use super::Engine;
use crate::name::Name;

/// A slot: set, shard, number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct SlotKey(u64);

impl SlotKey {
    pub(crate) fn of(name: Name, slot: u32) -> SlotKey {
        SlotKey(u64::from(name.set()) << 48 | u64::from(name.shard().0) << 32 | u64::from(slot))
    }
    pub(crate) fn shard(self) -> u16 {
        (self.0 >> 32) as u16
    }
}

/// An upper bound of this node's count in a slot: of what stands in the word, with every add and end that
/// this node has posted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlotShare {
    ub: u8,
    /// Chains under way that will show the word: as long as there are any, the bound is not lowered, since
    /// a name that was here before may lead to a second operation on the slot.
    posted: u8,
    /// An end was posted while some were under way, which do not show it.
    moved: bool,
}

impl SlotShare {
    fn new(ub: u8) -> SlotShare {
        SlotShare { ub, posted: 0, moved: false }
    }

    fn posted(&mut self, adds: bool) {
        self.ub = self.ub.saturating_add(u8::from(adds));
        self.posted = self.posted.saturating_add(1);
    }

    /// The chain posted first of those under way has shown `own` as this node's count, what it added
    /// included.
    fn seen(&mut self, own: u8) {
        let moved = self.moved;
        self.unseen();
        if self.posted == 0 && !moved {
            self.ub = own;
        }
    }

    /// Nobody looks at what a chain showed.
    fn unseen(&mut self) {
        self.posted = self.posted.saturating_sub(1);
        self.moved &= self.posted > 0;
    }

    /// This node has taken the word, which showed `own`.
    fn observed(&mut self, own: u8) {
        if self.posted == 0 {
            self.ub = own;
        }
    }

    /// An end is posted that takes away `observed`: whether there is room for one more count, which is then
    /// added if it is `wanted`.
    fn ended(&mut self, observed: u8, wanted: bool) -> bool {
        self.ub = self.ub.saturating_sub(observed);
        let added = wanted && self.ub < FULL;
        self.ub += u8::from(added);
        self.moved = self.posted > 0;
        added
    }
}

/// The most that a count holds.
const FULL: u8 = 3;

impl Engine {
    fn unknown(&self) -> u8 {
        // An earlier incarnation may have left counts behind.
        if self.config.first_incarnation { 1 } else { FULL }
    }

    fn share(&mut self, key: SlotKey) -> &mut SlotShare {
        let unknown = self.unknown();
        if self.shares.len() > self.shares_crowded {
            // Rule 6; and only what an unknown one would count as.
            self.shares.retain(|_, s| s.posted > 0 || s.ub > 1.min(unknown));
            self.shares_crowded = self.config.known.max(2 * self.shares.len());
        }
        self.shares.entry(key).or_insert(SlotShare::new(unknown))
    }

    /// Whether one more may be added to this node's count of the slot.
    pub(crate) fn has_room(&self, key: SlotKey) -> bool {
        self.shares.get(&key).map_or(self.unknown(), |s| s.ub) < FULL
    }

    /// A chain is posted that shows the word, and adds to it first or not.
    pub(crate) fn share_posted(&mut self, key: SlotKey, adds: bool) {
        self.share(key).posted(adds);
    }

    /// Such a chain has shown `own` as this node's count, what it added included. In the order in which the
    /// chains completed, which is that in which they acted.
    pub(crate) fn share_seen(&mut self, key: SlotKey, own: u8) {
        self.share(key).seen(own);
    }

    /// Such a chain failed, or its outcome is looked at no more: the bound keeps what it may have added.
    pub(crate) fn share_unseen(&mut self, key: SlotKey) {
        self.share(key).unseen();
    }

    /// This node's chain has just taken the word, in which its count was `own`.
    pub(crate) fn share_observed(&mut self, key: SlotKey, own: u8) {
        self.share(key).observed(own);
    }

    /// An end is posted, which takes away `observed` of this node's count and adds one if that is `wanted` and
    /// there is room (the answer).
    pub(crate) fn share_ended(&mut self, key: SlotKey, observed: u8, wanted: bool) -> bool {
        self.share(key).ended(observed, wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[derive(Clone, Debug)]
    enum Step {
        /// Another chain of a read goes out, if that may.
        Post,
        /// The oldest verb under way acts.
        Act,
        /// The oldest outcome is looked at.
        See,
        /// All outcomes are thrown away, and all verbs have acted before (rule 17).
        StartOver,
        /// The word is taken; or its end is posted.
        Take,
        End {
            keep: bool,
        },
        /// Another node's end takes away what it observed of this node's count.
        OthersEnd,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Post),
            4 => Just(Step::Act),
            4 => Just(Step::See),
            1 => Just(Step::StartOver),
            1 => Just(Step::Take),
            1 => any::<bool>().prop_map(|keep| Step::End { keep }),
            1 => Just(Step::OthersEnd),
        ]
    }

    enum Verb {
        Show { adds: bool },
        End { observed: u8, adds: bool },
    }

    proptest! {
        /// Rules 2 and 6: the bound is never below what will stand in the word, whichever of the node's
        /// operations on the slot meet, and the word never counts a fourth.
        #[test]
        fn bound_covers_the_count(unknown in prop_oneof![Just(1u8), Just(3)], steps in prop::collection::vec(step(), 0..200)) {
            let mut share = SlotShare::new(unknown);
            // What an earlier incarnation left behind.
            let mut count = if unknown == 3 { 2u8 } else { 0 };
            let mut under_way: VecDeque<Verb> = VecDeque::new();
            let mut outcomes: VecDeque<u8> = VecDeque::new();
            let mut taken: Option<u8> = None;
            for s in steps {
                let mut act = |count: &mut u8, outcomes: &mut VecDeque<u8>| {
                    match under_way.pop_front() {
                        Some(Verb::Show { adds }) => {
                            *count += u8::from(adds);
                            outcomes.push_back(*count);
                        }
                        Some(Verb::End { observed, adds }) => {
                            *count = *count - observed + u8::from(adds);
                        }
                        None => return false,
                    }
                    true
                };
                match s {
                    Step::Post => {
                        let adds = share.ub < FULL;
                        share.posted(adds);
                        under_way.push_back(Verb::Show { adds });
                    }
                    Step::Act => drop(act(&mut count, &mut outcomes)),
                    Step::See => {
                        if let Some(own) = outcomes.pop_front() {
                            share.seen(own);
                        }
                    }
                    Step::StartOver => {
                        while act(&mut count, &mut outcomes) {}
                        for _ in outcomes.drain(..) {
                            share.unseen();
                        }
                    }
                    // Acts and is looked at after all before it.
                    Step::Take if taken.is_none() => {
                        while act(&mut count, &mut outcomes) {}
                        for own in outcomes.drain(..) {
                            share.seen(own);
                        }
                        share.observed(count);
                        taken = Some(count);
                    }
                    Step::End { keep } => {
                        if let Some(observed) = taken.take() {
                            let adds = share.ended(observed, !keep);
                            under_way.push_back(Verb::End { observed, adds });
                        }
                    }
                    // Theirs comes when the word is nobody's.
                    Step::OthersEnd if taken.is_none() && !under_way.iter().any(|v| matches!(v, Verb::End { .. })) => {
                        count = 0;
                    }
                    Step::Take | Step::OthersEnd => {}
                }
                let mut most = count;
                let mut will = count;
                for verb in &under_way {
                    match verb {
                        Verb::Show { adds } => will += u8::from(*adds),
                        Verb::End { observed, adds } => will = will.saturating_sub(*observed) + u8::from(*adds),
                    }
                    most = most.max(will);
                }
                prop_assert!(share.ub >= will, "{share:?}, {will}");
                prop_assert!(most <= FULL, "{share:?}, {most}");
            }
        }
    }
}
