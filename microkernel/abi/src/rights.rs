//! `seL4_CapRights_t`: what a capability allows its holder.

use bitflags::bitflags;

bitflags! {
    /// Bits as in seL4: write 0, read 1, grant 2, grantReply 3 (the last since seL4 10).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Rights: u64 {
        /// Send on an endpoint, signal a notification, change an object.
        const WRITE = 1;
        /// Receive on an endpoint, wait for a notification, observe an object.
        const READ = 1 << 1;
        /// Pass capabilities in messages, and be answered; on a channel's endpoint also: have a
        /// channel.
        const GRANT = 1 << 2;
        /// Be answered (`seL4_Call`).
        const GRANT_REPLY = 1 << 3;
    }
}

impl Rights {
    /// `seL4_AllRights`.
    pub const ALL: Rights = Rights::all();
    /// Write and grant: what a client of a channel holds.
    pub const CLIENT: Rights = Rights::WRITE.union(Rights::GRANT);

    /// From a message word; bits beyond the four are ignored, as seL4 does.
    pub const fn from_word(word: u64) -> Self {
        Rights::from_bits_truncate(word)
    }
}
