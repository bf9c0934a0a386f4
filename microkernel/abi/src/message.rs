//! `seL4_MessageInfo_t`: the word that describes a message.

/// Most message words seL4's interface allows in one message (`seL4_MsgMaxLength`).
pub const MSG_MAX_LENGTH: usize = 120;
/// Bits of the length field (`seL4_MsgLengthBits`).
pub const MSG_LENGTH_BITS: u32 = 7;
/// Bits of the count of capabilities (`seL4_MsgExtraCapBits`).
pub const MSG_EXTRA_CAP_BITS: u32 = 2;
/// Most capabilities in one message (`seL4_MsgMaxExtraCaps`).
pub const MSG_MAX_EXTRA_CAPS: usize = (1 << MSG_EXTRA_CAP_BITS) - 1;
/// Bits of the mask of capabilities that arrived as badges (`capsUnwrapped`).
pub const MSG_CAPS_UNWRAPPED_BITS: u32 = 3;
/// Bits of the label: all that remain.
pub const MSG_LABEL_BITS: u32 = 64 - MSG_CAPS_UNWRAPPED_BITS - MSG_EXTRA_CAP_BITS - MSG_LENGTH_BITS;

const EXTRA_CAPS_SHIFT: u32 = MSG_LENGTH_BITS;
const UNWRAPPED_SHIFT: u32 = EXTRA_CAPS_SHIFT + MSG_EXTRA_CAP_BITS;
const LABEL_SHIFT: u32 = UNWRAPPED_SHIFT + MSG_CAPS_UNWRAPPED_BITS;

const fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

/// From the high bits down: label (52 bits), capsUnwrapped (3), extraCaps (2), length (7).
///
/// Any word is a `MessageInfo`; a length above [`MSG_MAX_LENGTH`] is representable, and whoever
/// takes one from outside checks it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(transparent)]
pub struct MessageInfo(u64);

impl MessageInfo {
    /// `seL4_MessageInfo_new`; fields are cut to their width.
    pub const fn new(label: u64, caps_unwrapped: u64, extra_caps: usize, length: usize) -> Self {
        MessageInfo(
            (label & mask(MSG_LABEL_BITS)) << LABEL_SHIFT
                | (caps_unwrapped & mask(MSG_CAPS_UNWRAPPED_BITS)) << UNWRAPPED_SHIFT
                | (extra_caps as u64 & mask(MSG_EXTRA_CAP_BITS)) << EXTRA_CAPS_SHIFT
                | (length as u64 & mask(MSG_LENGTH_BITS)),
        )
    }

    /// The word as it travels.
    pub const fn from_word(word: u64) -> Self {
        MessageInfo(word)
    }

    /// The word as it travels.
    pub const fn word(self) -> u64 {
        self.0
    }

    /// What is asked, or in an answer how it went: 0 or an error's number.
    pub const fn label(self) -> u64 {
        self.0 >> LABEL_SHIFT
    }

    /// Bit *i* is set when capability *i* of the message arrived as its badge alone, because it
    /// names the very endpoint that the message came through.
    pub const fn caps_unwrapped(self) -> u64 {
        self.0 >> UNWRAPPED_SHIFT & mask(MSG_CAPS_UNWRAPPED_BITS)
    }

    /// Number of capabilities in the message.
    pub const fn extra_caps(self) -> usize {
        (self.0 >> EXTRA_CAPS_SHIFT & mask(MSG_EXTRA_CAP_BITS)) as usize
    }

    /// Number of words in the message.
    pub const fn length(self) -> usize {
        (self.0 & mask(MSG_LENGTH_BITS)) as usize
    }
}
