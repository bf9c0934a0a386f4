//! Named workloads: who does what, and what may happen to them.

use crate::state::NODES;
use clustix_ccache::view::Slots;

/// What a program does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Task {
    /// Read.
    Get(u8),
    /// Write.
    Put(u8),
    /// Write, and keep the word.
    Keep(u8),
    /// Remove.
    Remove(u8),
    /// Write both in a transaction.
    Both,
    /// The same, and keep the words.
    KeepBoth,
    /// In a transaction: read object 0, write object 1.
    Copy,
}

/// A workload.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Its name on the command line.
    pub name: &'static str,
    /// What each node's program does.
    pub tasks: [&'static [Task]; NODES],
    /// What that of a node that has come back does.
    pub back: &'static [Task],
    /// Who has copies.
    pub replicas: Slots,
    /// Each object's primary.
    pub primary: [u8; 2],
    /// (node, object): registered and cached at first.
    pub cached: &'static [(u8, u8)],
    /// How many deaths and false evictions.
    pub faults: u8,
    /// Who may die.
    pub mortals: Slots,
    /// Who may be evicted although it lives.
    pub suspects: Slots,
    /// How many come back.
    pub returns: u8,
    /// How often a counter moves for another object's sake.
    pub collisions: u8,
}

const NONE: Workload = Workload {
    name: "",
    tasks: [&[], &[], &[]],
    back: &[],
    replicas: Slots(0b111),
    primary: [0, 0],
    cached: &[],
    faults: 0,
    mortals: Slots(0),
    suspects: Slots(0),
    returns: 0,
    collisions: 0,
};

use Task::{Both, Get, Keep, Put};

/// All of them.
pub const ALL: &[Workload] = &[
    Workload {
        name: "put-get",
        tasks: [&[Put(0)], &[Put(0)], &[Get(0), Get(0)]],
        cached: &[(2, 0)],
        ..NONE
    },
    Workload {
        name: "remote-halves",
        tasks: [&[Put(0)], &[Get(0)], &[Get(0), Put(0)]],
        replicas: Slots(0b011),
        ..NONE
    },
    Workload {
        name: "kept",
        tasks: [&[Get(0)], &[Keep(0), Keep(0)], &[Put(0)]],
        ..NONE
    },
    Workload {
        name: "put-crash",
        tasks: [&[], &[Put(0)], &[Get(0), Put(0)]],
        cached: &[(0, 0)],
        faults: 1,
        mortals: Slots(0b111),
        ..NONE
    },
    Workload {
        name: "transactions",
        tasks: [&[], &[Both], &[Both]],
        primary: [0, 1],
        ..NONE
    },
];
