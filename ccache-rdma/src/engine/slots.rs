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

/// An upper bound of this node's count in a slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlotShare {
    ub: u8,
    /// Adds posted and not completed: as long as there are any, the bound is not lowered, since a
    /// name that was here before may lead to a second operation on the slot.
    posted: u8,
    /// The bound was set while adds were under way, which saw less than there is now.
    raised: bool,
}

/// Slots remembered; beyond that those are forgotten that may be.
const MAX_KNOWN: usize = 1 << 20;

impl Engine {
    fn unknown(&self) -> u8 {
        // An earlier incarnation may have left counts behind.
        if self.config.first_incarnation { 1 } else { 3 }
    }

    fn share(&mut self, key: SlotKey) -> &mut SlotShare {
        if self.shares.len() >= MAX_KNOWN {
            // Rule 6; and only what an unknown one would count as.
            let unknown = self.unknown();
            self.shares.retain(|_, s| s.posted > 0 || s.ub > 1.min(unknown));
        }
        let ub = self.unknown();
        self.shares.entry(key).or_insert(SlotShare { ub, posted: 0, raised: false })
    }

    pub(crate) fn ub(&mut self, key: SlotKey) -> u8 {
        let unknown = self.unknown();
        self.shares.get(&key).map_or(unknown, |s| s.ub)
    }

    /// An add is posted.
    pub(crate) fn ub_posted(&mut self, key: SlotKey) {
        let s = self.share(key);
        s.ub = s.ub.saturating_add(1);
        s.posted += 1;
    }

    /// A chain that read the word (and added, or not) has shown `own` as this node's count.
    pub(crate) fn ub_seen(&mut self, key: SlotKey, own: u8, added: bool) {
        let s = self.share(key);
        s.posted = s.posted.saturating_sub(u8::from(added));
        if s.posted == 0 {
            s.ub = if std::mem::take(&mut s.raised) { s.ub.max(own) } else { own };
        }
    }

    /// An add's chain failed.
    pub(crate) fn ub_lost(&mut self, key: SlotKey) {
        let s = self.share(key);
        s.posted = s.posted.saturating_sub(1);
    }

    /// An end has been posted: what was observed is subtracted, one is added.
    pub(crate) fn ub_ended(&mut self, key: SlotKey) {
        let s = self.share(key);
        s.ub = 1 + s.posted;
        s.raised = s.posted > 0;
    }

    /// As [`Engine::ub_ended`], of an end that keeps the word: nothing is added.
    pub(crate) fn ub_kept(&mut self, key: SlotKey) {
        let s = self.share(key);
        s.ub = s.posted;
        s.raised = s.posted > 0;
    }

    /// A kept word is given back: whether there is room for one more count, which is then added.
    pub(crate) fn ub_given_back(&mut self, key: SlotKey) -> bool {
        let s = self.share(key);
        let room = s.ub < 3;
        if room {
            s.ub += 1;
            s.raised = s.posted > 0;
        }
        room
    }
}
