//! What ccache's shell needs beside verbs: ways to peers, made and ended.
//!
//! A *way* to a peer is open once verbs act in that incarnation's memory and it has let this node
//! in. It is made when a view says so, and ended by a revoke or with the peer.

pub mod shm;
#[cfg(feature = "verbs")]
pub mod verbs;

use crate::fabric::Fabric;
use std::sync::atomic::AtomicU32;

/// That incarnation of a node can be reached no more: its ccache is dead, or as good as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Broken {
    /// Slot.
    pub slot: u8,
    /// Start of its kernel process.
    pub incarnation: u64,
    /// Whether its ccache's process has ended, for certain.
    pub ended: bool,
}

/// A fabric and the ways to its peers.
pub trait Network: Fabric {
    /// Lets that incarnation of `peer`, which the view names, act in this node's memory; any
    /// earlier one was revoked before.
    fn admit(&mut self, peer: u8, incarnation: u64);

    /// Makes the way to that incarnation, which is admitted, at the address `path` that its member
    /// entry gives. Called again at each look until it is open.
    fn open(&mut self, now: u64, peer: u8, incarnation: u64, path: &str);

    /// Whether the way to that incarnation is open.
    fn is_open(&mut self, peer: u8, incarnation: u64) -> bool;

    /// Takes what happened to the ways since the last call, and goes on with those that are being
    /// made.
    fn look(&mut self, now: u64, broken: &mut Vec<Broken>);

    /// Whether a way is being made, so that [`Network::look`] is wanted soon.
    fn is_opening(&self) -> bool;

    /// The shell has seen that `peer`'s ccache ended: from now on nothing of this node's acts in
    /// its memory, and a revoke need not wait for it.
    fn dead(&mut self, peer: u8);

    /// Kills the ccache of a peer that does not leave this node's memory
    /// ([`crate::fabric::FabricEvent::Stuck`]), where that can be done.
    fn kill(&mut self, peer: u8);

    /// The futex word that is rung when [`Fabric::poll`] has something to take.
    fn bell(&self) -> Option<&AtomicU32>;
}
