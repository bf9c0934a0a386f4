//! The sharer counts in a slot's word: the product's two bits a node, or one bit, which is a known
//! bug (rule 2).

use clustix_ccache::view::Slots;
use clustix_ccache::word::Word;

/// How a word counts its sharers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counts {
    /// As the product does.
    TwoBits,
    /// A bit for each node, set by FETCH-ADD: the second add carries into the neighbour's.
    OneBit,
}

impl Counts {
    /// What to add for one more copy of `node`'s.
    pub fn share(self, node: u8) -> u64 {
        match self {
            Counts::TwoBits => Word::share(node),
            Counts::OneBit => 1 << node,
        }
    }
    /// A node's count.
    pub fn of(self, word: Word, node: u8) -> u8 {
        match self {
            Counts::TwoBits => word.count(node),
            Counts::OneBit => (word.counts() >> node) as u8 & 1,
        }
    }
    /// Nodes whose count is not 0.
    pub fn sharers(self, word: Word) -> Slots {
        (0..16).filter(|n| self.of(word, *n) != 0).collect()
    }
    /// [`Word::end`] in this layout.
    pub fn end(self, holder: u8, observed: u64, by: u64) -> u64 {
        Word::end(holder, observed, by, true)
            .wrapping_sub(Word::share(holder))
            .wrapping_add(self.share(holder))
    }
    /// [`Word::give_back`] in this layout.
    pub fn give_back(self, holder: u8) -> u64 {
        Word::give_back(holder).wrapping_sub(Word::share(holder)).wrapping_add(self.share(holder))
    }
}
