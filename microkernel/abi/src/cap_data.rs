//! The last argument of Mint and Mutate: a badge for endpoints and notifications, a guard for CNodes.

use crate::error::Error;

/// Most bits of a guard (`seL4_CNode_CapData`: guard 58, guardSize 6).
pub const GUARD_BITS_MAX: u32 = 58;

/// A CNode capability's guard: the `size` low bits of `bits` are compared with the first bits of
/// a CPtr before the CNode's radix indexes its slots.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct GuardData {
    /// Value of the guard.
    pub bits: u64,
    /// Number of bits compared, 0 to 63. More than 58 can be declared at boot but not minted,
    /// as in seL4.
    pub size: u8,
}

impl GuardData {
    /// The word that carries it.
    pub const fn word(self) -> u64 {
        self.bits << 6 | (self.size as u64 & 63)
    }

    /// Decodes the word; [`Error::RangeError`] if the guard has bits beyond its size.
    pub const fn from_word(word: u64) -> Result<Self, Error> {
        let (bits, size) = (word >> 6, (word & 63) as u8);
        if bits != 0 && (size == 0 || bits >> (size - 1) > 1) {
            return Err(Error::RangeError);
        }
        Ok(GuardData { bits, size })
    }
}
