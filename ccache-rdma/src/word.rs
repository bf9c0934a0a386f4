//! The word of a slot: who shares the object, who owns it, whether it is being written, and the
//! low bits of its version.
//!
//! | bits | what |
//! | --- | --- |
//! | 0–31 | sharers: a 2-bit count for each of 16 node slots |
//! | 32–36 | holder: 0 none, else node slot + 1 |
//! | 37 | W: a write is in progress |
//! | 38–63 | version, low 26 bits; on top, so that overflow falls off |
//!
//! It is changed by fabric atomics alone, by the primary's own node too. A count never reaches 4
//! (the carry would be a neighbour's): see rule 2 and `ub`.

use crate::view::Slots;

/// A slot's word.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Word(pub u64);

const HOLDER_SHIFT: u32 = 32;
const VERSION_SHIFT: u32 = 38;
/// Bits of the version that the word holds.
pub const VERSION_BITS: u32 = 26;
const VERSION_MASK: u64 = (1 << VERSION_BITS) - 1;
const SHARERS: u64 = 0xffff_ffff;
const W: u64 = 1 << 37;

impl Word {
    /// A word at rest: nobody shares, nobody holds.
    pub const fn idle(version: u64) -> Word {
        Word((version & VERSION_MASK) << VERSION_SHIFT)
    }
    /// Low bits of the version.
    pub const fn version_low(self) -> u64 {
        self.0 >> VERSION_SHIFT
    }
    /// Whether a full version is the one that the word speaks of.
    pub const fn is_version(self, version: u64) -> bool {
        self.version_low() == version & VERSION_MASK
    }
    /// Whether a write is in progress.
    pub const fn writing(self) -> bool {
        self.0 & W != 0
    }
    /// The node that owns it.
    pub const fn holder(self) -> Option<u8> {
        match (self.0 >> HOLDER_SHIFT) & 31 {
            0 => None,
            n => Some((n - 1) as u8),
        }
    }
    /// Neither held nor written.
    pub const fn is_idle(self) -> bool {
        (self.0 >> HOLDER_SHIFT) & 63 == 0
    }
    /// What a held word becomes when its holder ends its write without keeping it, or gives it back,
    /// unless other nodes register meanwhile. Only a guess; `None` of a word that nobody holds.
    pub const fn next_idle(self) -> Option<Word> {
        match self.holder() {
            None => None,
            Some(h) if self.writing() => {
                Some(Word(Word::idle(self.version_low() + 1).0 + Word::share(h)))
            }
            Some(h) => Some(Word(self.0.wrapping_add(Word::give_back(h)))),
        }
    }
    /// A node's count of shared copies, 0 to 3.
    pub const fn count(self, node: u8) -> u8 {
        ((self.0 >> (2 * (node as u32 & 15))) & 3) as u8
    }
    /// All counts, in place: what an end subtracts.
    pub const fn counts(self) -> u64 {
        self.0 & SHARERS
    }
    /// Nodes whose count is not 0.
    pub fn sharers(self) -> Slots {
        (0..16).filter(|n| self.count(*n) != 0).collect()
    }
    /// The same, held by `node` and in writing (rule 7).
    #[must_use]
    pub const fn taken(self, node: u8) -> Word {
        Word(self.0 | W | (node as u64 + 1) << HOLDER_SHIFT)
    }
    /// The same, held by `node`, not in writing (rule 28).
    #[must_use]
    pub const fn grabbed(self, node: u8) -> Word {
        Word(self.0 | (node as u64 + 1) << HOLDER_SHIFT)
    }
    /// What to add for one more copy of `node`'s.
    pub const fn share(node: u8) -> u64 {
        1 << (2 * (node as u32 & 15))
    }
    /// What to add to begin a write of what one holds (rule 9).
    pub const BEGIN: u64 = W;
    /// What to add to give up ownership and writing with nothing changed, for `holder`.
    pub const fn drop_taken(holder: u8) -> u64 {
        (W + ((holder as u64 + 1) << HOLDER_SHIFT)).wrapping_neg()
    }
    /// What to add to give up a grab (rule 12), keeping one shared copy for `holder`.
    pub const fn give_back(holder: u8) -> u64 {
        Word::share(holder).wrapping_sub((holder as u64 + 1) << HOLDER_SHIFT)
    }
    /// What to add to give up a grab with nothing kept.
    pub const fn drop_grab(holder: u8) -> u64 {
        ((holder as u64 + 1) << HOLDER_SHIFT).wrapping_neg()
    }
    /// What to add to give up writing with nothing changed, and keep ownership.
    pub const DROP_BEGIN: u64 = W.wrapping_neg();
    /// What to add to end a write and keep ownership (rule 11): version + `by`, not writing, the
    /// `observed` counts gone. The holder's copy needs no count.
    pub const fn end_kept(observed: u64, by: u64) -> u64 {
        ((by & VERSION_MASK) << VERSION_SHIFT).wrapping_sub(W).wrapping_sub(observed & SHARERS)
    }
    /// What to add to end a write (rule 11): version + `by` (1, or more for a slot's new name), not
    /// writing, not held any more by `holder`, the `observed` counts gone, one shared copy for
    /// `holder` if it is `counted`.
    pub const fn end(holder: u8, observed: u64, by: u64, counted: bool) -> u64 {
        ((by & VERSION_MASK) << VERSION_SHIFT)
            .wrapping_sub(W)
            .wrapping_sub((holder as u64 + 1) << HOLDER_SHIFT)
            .wrapping_sub(observed & SHARERS)
            .wrapping_add(if counted { Word::share(holder) } else { 0 })
    }
}

impl std::fmt::Debug for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "v{} ", self.version_low())?;
        if let Some(h) = self.holder() {
            write!(f, "h{h} ")?;
        }
        if self.writing() {
            write!(f, "W ")?;
        }
        write!(f, "{:?}", self.sharers())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_keeps_what_came_after_the_observation() {
        for holder in 0..16u8 {
            let before = Word::idle(7).0 + 2 * Word::share(3) + Word::share(holder);
            let taken = Word(before).taken(holder);
            assert_eq!(taken.holder(), Some(holder));
            assert!(taken.writing() && !taken.is_idle());
            // Two registrations arrive while the write is in progress.
            let late = taken.0 + Word::share(5) + Word::share(holder);
            let after = Word(late.wrapping_add(Word::end(holder, taken.counts(), 1, true)));
            assert!(after.is_idle() && after.is_version(8));
            let mut expect = Word::idle(8).0 + Word::share(5) + 2 * Word::share(holder);
            if holder == 5 {
                expect = Word::idle(8).0 + 3 * Word::share(5);
            }
            assert_eq!(after.0, expect, "{after:?}");
            assert_eq!(Word::idle(7).taken(holder).next_idle(), {
                let taken = Word::idle(7).taken(holder);
                Some(Word(taken.0.wrapping_add(Word::end(holder, taken.counts(), 1, true))))
            });
            let dropped = Word(taken.0.wrapping_add(Word::drop_taken(holder)));
            assert_eq!(dropped.0, before);
            let grabbed = Word(before).grabbed(holder);
            assert!(!grabbed.writing() && grabbed.holder() == Some(holder));
            assert_eq!(Word(grabbed.0 + Word::BEGIN), taken);
            let back = Word(grabbed.0.wrapping_add(Word::give_back(holder)));
            assert_eq!(back.0, before + Word::share(holder));
            assert_eq!(grabbed.next_idle(), Some(back));
            assert_eq!(back.next_idle(), None);
            let kept = Word(late.wrapping_add(Word::end_kept(taken.counts(), 1)));
            assert_eq!(kept.holder(), Some(holder));
            assert!(!kept.writing() && kept.is_version(8));
            assert_eq!(kept.counts(), Word::share(5) + Word::share(holder));
            assert_eq!(Word(taken.0.wrapping_add(Word::DROP_BEGIN)), grabbed);
        }
    }

    #[test]
    fn version_overflow_falls_off() {
        let last = Word::idle(u64::MAX).taken(15);
        let after = Word(last.0.wrapping_add(Word::end(15, 0, 1, true)));
        assert!(after.is_version(0) && after.is_idle());
        assert!(after.is_version(1 << VERSION_BITS));
        assert_eq!(after.counts(), Word::share(15));
    }
}
