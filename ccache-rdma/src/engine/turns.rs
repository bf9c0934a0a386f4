//! Turns with an object that several nodes write (rule 44). One node may be so much nearer to the word than
//! the others that it would have taken it again before they can look: who has been asked for an object lets
//! those that asked come first, for a bounded time.

use super::{Bug, Engine};
use crate::name::Name;
use crate::view::Slots;
use crate::word::Word;

/// How many times as long as its own last write a node waits for others to come first.
const BOUND: u64 = 16;

/// What a node remembers of its last write of an object.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Turns {
    /// Who has asked for it since this node last began to write it.
    asked: Slots,
    /// The version that it wrote last.
    version: u64,
    /// How long that took, from the chain that took the word, ns.
    lasted: u64,
}

/// Others that come first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct First {
    version: u64,
    writes: u64,
    until: u64,
}

impl Turns {
    /// Another node waits for the object.
    pub(crate) fn asked(&mut self, by: u8) {
        self.asked = self.asked.with(by);
    }

    /// This node has written the object.
    pub(crate) fn wrote(&mut self, version: u64, lasted: u64) {
        (self.version, self.lasted) = (version, lasted);
    }
}

impl First {
    /// Whether they have had their turns, by the word as it is now, or time enough.
    pub(crate) fn over(&self, now: u64, word: Word) -> bool {
        word.versions_since(self.version) >= self.writes || now >= self.until
    }
}

impl Engine {
    /// Who comes before this node's next write of the object.
    pub(crate) fn come_first(&mut self, name: Name) -> Option<First> {
        if self.bug(Bug::TakesAgain) {
            return None;
        }
        let turns = &mut self.objects.get_mut(&name)?.turns;
        let asked = std::mem::take(&mut turns.asked);
        let until = self.now + BOUND * turns.lasted;
        let first = First { version: turns.version, writes: asked.len() as u64, until };
        (!asked.is_empty()).then_some(first)
    }
}
