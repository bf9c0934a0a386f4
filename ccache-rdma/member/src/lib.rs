#![forbid(unsafe_code)]
//! Membership: views of the cluster, decided by a majority (openraft over Unix
//! sockets on one machine, over TCP between machines), and given
//! to the node's own ccache only once they are committed.
//!
//! A raft id is slot + 16 × incarnation, so that a node which lost its memory never votes under a
//! name whose promises it has forgotten. Log and vote stand in a memory region that the kernel
//! hands to each new `member` of one incarnation.

use std::io::Cursor;

pub mod address;
pub mod command;
pub mod decide;
pub mod network;
pub mod node;
pub mod service;
pub mod store;

pub use node::{Config, Start, run};
pub use service::main;

/// Length of the memory region `raft`, bytes; zeroed at the start of an incarnation.
pub const RAFT_BYTES: usize = store::BYTES;

openraft::declare_raft_types!(
    /// The types of this raft.
    pub TypeConfig:
        D = command::Command,
        R = command::Applied,
);

/// Raft id of an incarnation of a slot.
pub const fn raft_id(slot: u8, incarnation: u64) -> u64 {
    slot as u64 + 16 * incarnation
}

/// Slot and incarnation of a raft id.
pub const fn node_of(id: u64) -> (u8, u64) {
    ((id % 16) as u8, id / 16)
}
