//! The fabric: what one node may do to another's memory, and how it hears of it.
//!
//! The trait has the meaning of RDMA verbs on reliable connections. Chains to one peer take effect
//! in the order in which they were posted; chains to different peers in any. A completion of a
//! chain says that all of it took effect in the target's memory; an error says that any prefix
//! may have. Once [`Fabric::revoke`] has been reported done, nothing of that peer's lands here.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod shm;
#[cfg(feature = "verbs")]
pub mod verbs;

use crate::layout::RegionId;
use std::sync::Arc;

/// Where in a node's arena.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    /// Region.
    pub region: RegionId,
    /// Byte offset; a multiple of 8 for every verb.
    pub offset: u64,
}

/// One verb. Lengths are multiples of 8.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verb {
    /// Reads `len` bytes. More than 8 may be torn.
    Read {
        /// From where.
        at: Address,
        /// Bytes.
        len: u32,
    },
    /// Writes `len` bytes of `data`, from its byte `from` on. More than 8 may be seen torn.
    Write {
        /// To where.
        at: Address,
        /// The buffer, shared by the writes to all replicas.
        data: Arc<Vec<u8>>,
        /// First byte of the buffer.
        from: u32,
        /// Bytes.
        len: u32,
    },
    /// Writes one word.
    WriteWord {
        /// To where.
        at: Address,
        /// The word.
        word: u64,
    },
    /// Compares a word and swaps it when equal; the outcome is the word before.
    CompareSwap {
        /// Which word.
        at: Address,
        /// What it must be.
        expect: u64,
        /// What it becomes.
        new: u64,
    },
    /// Adds to a word, wrapping; the outcome is the word before.
    FetchAdd {
        /// Which word.
        at: Address,
        /// What is added.
        add: u64,
    },
}

/// What one verb of a completed chain gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// A write.
    Done,
    /// An atomic: the word before.
    Word(u64),
    /// A read.
    Bytes(Vec<u8>),
}

/// Why a chain or message did not complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FabricError {
    /// No connection to that node (any more), or it has closed its gate to this one.
    #[error("the peer is not connected or has revoked this node")]
    Unreachable,
    /// The peer's mailbox is full.
    #[error("the peer's mailbox is full")]
    Busy,
    /// An address outside of the arena, misaligned, or a message too long.
    #[error("address or length out of range")]
    Range,
}

/// Names a chain; chosen by the poster. Those with the highest bit set are the shell's own (its
/// heartbeats), all others the engine's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Token(pub u64);

impl Token {
    /// Set in the shell's tokens.
    pub const SHELL: u64 = 1 << 63;
}

/// What the fabric reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FabricEvent {
    /// A chain ended: one outcome per verb, or an error.
    Completed {
        /// To which node it went.
        peer: u8,
        /// Its name.
        token: Token,
        /// The outcomes.
        result: Result<Vec<Outcome>, FabricError>,
    },
    /// A message came.
    Message {
        /// The sender: authentic, its mailbox is its own.
        from: u8,
        /// The message.
        bytes: Vec<u8>,
    },
    /// A revoke is done: nothing of that peer's lands here any more, and nothing of this node's
    /// acts in that peer's memory.
    Revoked {
        /// The peer.
        peer: u8,
    },
    /// A revoke waits for the peer's operation here, for longer than it may: its ccache must be
    /// killed (the kernel does that); the revoke is done once it is dead.
    Stuck {
        /// The peer.
        peer: u8,
    },
}

/// One node's end of the fabric.
pub trait Fabric {
    /// A chain will be posted to `peer` soon, after others: a fabric whose poster acts in memory itself can
    /// ask for it meanwhile. Changes nothing.
    fn announce(&self, peer: u8, chain: &[Verb]) {
        let _ = (peer, chain);
    }

    /// Posts a chain. It ends in exactly one [`FabricEvent::Completed`], at a later
    /// [`Fabric::poll`]. `peer` may be this node itself (loopback).
    fn post(&mut self, peer: u8, token: Token, chain: &[Verb]);
    /// Sends a small message and rings the peer's bell. Order to one peer is kept; delivery is
    /// certain unless the peer is revoked or dies.
    fn send(&mut self, peer: u8, bytes: &[u8]) -> Result<(), FabricError>;
    /// Takes what happened since the last call. `now` in ns, for the bound on revokes.
    fn poll(&mut self, now: u64, out: &mut Vec<FabricEvent>);
    /// Starts to take from `peer` every access to this node's memory, and ends this node's use of
    /// that peer's (rules 33 and 34). Ends in [`FabricEvent::Revoked`].
    fn revoke(&mut self, now: u64, peer: u8);
}
