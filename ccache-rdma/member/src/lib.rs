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
mod governor;
pub mod network;
pub mod node;
pub mod service;
pub mod store;

pub use node::{Config, Start, run};
pub use service::{main, witness};

/// Length of the memory region `raft`, bytes; zeroed at the start of an incarnation.
pub const RAFT_BYTES: usize = store::BYTES;

openraft::declare_raft_types!(
    /// The types of this raft.
    pub TypeConfig:
        D = command::Command,
        R = command::Applied,
);

/// The slot, of none of the nodes, in which the witness is: a member that votes and holds nothing.
pub const WITNESS: u8 = 16;

/// The highest incarnation that there can be; one from elsewhere is checked against it.
pub const MAX_INCARNATION: u64 = (1 << 59) - 1;

/// Set in the raft ids of witnesses.
const WITNESSES: u64 = 1 << 63;

/// Raft id of an incarnation of a slot.
pub const fn raft_id(slot: u8, incarnation: u64) -> u64 {
    let incarnation = incarnation & MAX_INCARNATION;
    if slot == WITNESS { WITNESSES | incarnation } else { slot as u64 + 16 * incarnation }
}

/// Slot and incarnation of a raft id.
pub const fn node_of(id: u64) -> (u8, u64) {
    if id & WITNESSES != 0 { (WITNESS, id & !WITNESSES) } else { ((id % 16) as u8, id / 16) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_witness_is_taken_for_no_node() {
        for (slot, incarnation) in [(0, 1), (15, 1_800_000_000_000), (WITNESS, 1), (WITNESS, 33)] {
            assert_eq!(node_of(raft_id(slot, incarnation)), (slot, incarnation));
        }
        assert_ne!(raft_id(WITNESS, 1), raft_id(0, 2));
    }
}
