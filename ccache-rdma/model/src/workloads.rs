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
    CopyFirst,
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
    /// How often an object's primary changes without a death.
    pub rehomes: u8,
    /// The first so many objects are written at all.
    pub objects: u8,
    /// A half is destroyed before it is written.
    pub torn: bool,
    /// It is left out of `cargo test`.
    pub long: bool,
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
    rehomes: 0,
    objects: 1,
    torn: false,
    long: false,
    collisions: 0,
};

use Task::{Both, CopyFirst, Get, Keep, KeepBoth, Put, Remove};

const ANY: Slots = Slots(0b111);

/// All of them.
pub const ALL: &[Workload] = &[
    Workload {
        name: "puts-and-gets",
        tasks: [&[Put(0), Get(0)], &[Put(0)], &[Get(0), Get(0), Put(0)]],
        cached: &[(1, 0), (2, 0)],
        ..NONE
    },
    // Node 2 has no copy: it reads the primary's halves.
    Workload {
        name: "remote-halves",
        tasks: [&[Put(0)], &[Get(0), Put(0)], &[Get(0), Get(0), Put(0)]],
        replicas: Slots(0b011),
        ..NONE
    },
    Workload {
        name: "kept",
        tasks: [&[Get(0), Put(0)], &[Keep(0), Keep(0)], &[Get(0), Keep(0)]],
        ..NONE
    },
    Workload {
        name: "many-reads",
        tasks: [&[Put(0)], &[Get(0), Get(0), Get(0), Get(0)], &[]],
        collisions: 3,
        ..NONE
    },
    Workload {
        name: "remove",
        tasks: [&[Remove(0), Get(0)], &[Put(0)], &[Get(0), Remove(0)]],
        cached: &[(1, 0), (2, 0)],
        ..NONE
    },
    Workload {
        name: "put-death",
        long: true,
        tasks: [&[Get(0)], &[Put(0)], &[Get(0), Put(0)]],
        cached: &[(0, 0)],
        faults: 1,
        mortals: ANY,
        ..NONE
    },
    Workload {
        name: "put-suspicion",
        long: true,
        tasks: [&[Get(0)], &[Put(0)], &[Get(0), Put(0)]],
        cached: &[(0, 0)],
        faults: 1,
        suspects: ANY,
        ..NONE
    },
    Workload {
        name: "primary-puts-death",
        long: true,
        tasks: [&[Put(0), Put(0)], &[Get(0)], &[Put(0)]],
        cached: &[(2, 0)],
        faults: 1,
        mortals: ANY,
        suspects: ANY,
        ..NONE
    },
    Workload {
        name: "kept-death",
        tasks: [&[], &[Keep(0), Keep(0)], &[Get(0), Put(0)]],
        faults: 1,
        mortals: ANY,
        suspects: ANY,
        ..NONE
    },
    Workload {
        name: "remove-death",
        long: true,
        tasks: [&[], &[Remove(0), Put(0)], &[Get(0), Put(0)]],
        faults: 1,
        mortals: ANY,
        suspects: ANY,
        ..NONE
    },
    Workload {
        name: "two-deaths",
        tasks: [&[], &[Put(0)], &[Get(0), Get(0)]],
        cached: &[(0, 0)],
        faults: 2,
        mortals: ANY,
        ..NONE
    },
    Workload {
        name: "transactions",
        objects: 2,
        tasks: [&[Get(0), Get(1)], &[Both], &[Both]],
        primary: [0, 1],
        cached: &[(0, 1)],
        ..NONE
    },
    Workload {
        name: "transaction-and-puts",
        objects: 2,
        tasks: [&[Put(1), Get(0)], &[Both], &[Get(1), Get(0)]],
        primary: [0, 1],
        ..NONE
    },
    Workload {
        name: "copy",
        objects: 2,
        tasks: [&[Put(0)], &[CopyFirst], &[Get(0), Get(1)]],
        primary: [0, 1],
        cached: &[(1, 0)],
        ..NONE
    },
    Workload {
        name: "kept-transactions",
        objects: 2,
        tasks: [&[Put(0)], &[KeepBoth, Keep(1), Both], &[Get(1)]],
        primary: [0, 1],
        ..NONE
    },
    Workload {
        name: "transaction-death",
        objects: 2,
        tasks: [&[], &[Both], &[Get(0), Get(1)]],
        primary: [0, 1],
        faults: 1,
        mortals: ANY,
        ..NONE
    },
    Workload {
        name: "transaction-suspicion",
        objects: 2,
        tasks: [&[], &[Both], &[Get(0), Get(1)]],
        primary: [0, 1],
        faults: 1,
        suspects: ANY,
        ..NONE
    },
    Workload {
        name: "two-transactions-death",
        objects: 2,
        tasks: [&[], &[Both], &[Both]],
        primary: [0, 2],
        faults: 1,
        mortals: ANY,
        suspects: ANY,
        ..NONE
    },
    Workload {
        name: "transaction-put-death",
        objects: 2,
        tasks: [&[], &[Both], &[Put(1)]],
        primary: [0, 1],
        faults: 1,
        mortals: ANY,
        suspects: ANY,
        ..NONE
    },
    Workload {
        name: "kept-transaction-death",
        objects: 2,
        tasks: [&[], &[KeepBoth, Both], &[Get(0)]],
        primary: [0, 1],
        faults: 1,
        mortals: ANY,
        ..NONE
    },
    Workload {
        name: "copy-death",
        objects: 2,
        tasks: [&[Put(0)], &[CopyFirst], &[Get(1)]],
        primary: [2, 0],
        cached: &[(1, 0)],
        faults: 1,
        mortals: ANY,
        ..NONE
    },
    Workload {
        name: "transaction-two-deaths",
        objects: 2,
        tasks: [&[], &[Both], &[]],
        primary: [0, 1],
        faults: 2,
        mortals: ANY,
        ..NONE
    },
    // What the transaction wrote is overwritten twice before its writer dies.
    Workload {
        name: "old-record",
        tasks: [&[], &[Both], &[Put(1), Put(1)]],
        objects: 2,
        primary: [0, 1],
        faults: 1,
        mortals: Slots(0b010),
        ..NONE
    },
    // The slot's first node leaves counts behind in the word, which stays.
    Workload {
        name: "return-counts",
        long: true,
        tasks: [&[Get(0), Get(0), Get(0)], &[], &[]],
        back: &[Get(0)],
        primary: [1, 1],
        faults: 1,
        mortals: Slots(0b001),
        returns: 1,
        collisions: 2,
        ..NONE
    },
    Workload {
        name: "torn-death",
        long: true,
        tasks: [&[Get(0)], &[Put(0)], &[Put(0)]],
        torn: true,
        faults: 1,
        mortals: ANY,
        ..NONE
    },
    Workload {
        name: "torn-transaction-death",
        tasks: [&[], &[Both], &[]],
        primary: [0, 1],
        objects: 2,
        torn: true,
        faults: 1,
        mortals: ANY,
        ..NONE
    },
    Workload { name: "rehome", tasks: [&[], &[Keep(0), Put(0)], &[Get(0)]], rehomes: 1, ..NONE },
    Workload {
        name: "transaction-rehome",
        tasks: [&[], &[Both], &[Put(1)]],
        primary: [0, 1],
        objects: 2,
        rehomes: 1,
        ..NONE
    },
    Workload {
        name: "transaction-rehome-death",
        long: true,
        tasks: [&[], &[Both], &[]],
        primary: [0, 1],
        objects: 2,
        rehomes: 1,
        faults: 1,
        mortals: ANY,
        suspects: ANY,
        ..NONE
    },
    Workload {
        name: "kept-two-deaths",
        long: true,
        tasks: [&[], &[Keep(0), Keep(0)], &[Put(0)]],
        faults: 2,
        mortals: ANY,
        ..NONE
    },
    Workload {
        name: "transaction-put-two-deaths",
        long: true,
        tasks: [&[], &[Both], &[Put(1)]],
        primary: [0, 1],
        objects: 2,
        faults: 2,
        mortals: ANY,
        ..NONE
    },
    Workload {
        name: "kept-transaction-put-death",
        tasks: [&[], &[KeepBoth, Both], &[Put(1)]],
        primary: [0, 1],
        objects: 2,
        faults: 1,
        mortals: ANY,
        suspects: ANY,
        ..NONE
    },
    Workload {
        name: "kept-transaction-two-deaths",
        tasks: [&[], &[KeepBoth, Keep(0)], &[]],
        primary: [0, 2],
        objects: 2,
        faults: 2,
        mortals: ANY,
        ..NONE
    },
    Workload {
        name: "transaction-gets-two-deaths",
        long: true,
        tasks: [&[], &[Both], &[Get(0), Get(1)]],
        primary: [0, 1],
        objects: 2,
        faults: 2,
        mortals: ANY,
        suspects: Slots(0b001),
        ..NONE
    },
    Workload {
        name: "puts-two-suspicions",
        long: true,
        tasks: [&[], &[Put(0)], &[Put(0)]],
        faults: 2,
        mortals: ANY,
        suspects: ANY,
        ..NONE
    },
    Workload {
        name: "copy-rehome-death",
        long: true,
        tasks: [&[Put(0)], &[CopyFirst], &[]],
        primary: [2, 0],
        objects: 2,
        cached: &[(1, 0)],
        rehomes: 1,
        faults: 1,
        mortals: ANY,
        ..NONE
    },
    Workload {
        name: "kept-return",
        long: true,
        tasks: [&[], &[Keep(0), Keep(0)], &[]],
        back: &[Put(0)],
        faults: 1,
        mortals: Slots(0b001),
        returns: 1,
        ..NONE
    },
    Workload {
        name: "transaction-return",
        tasks: [&[], &[Both], &[]],
        back: &[],
        primary: [0, 1],
        objects: 2,
        faults: 1,
        mortals: Slots(0b001),
        returns: 1,
        ..NONE
    },
    Workload {
        name: "return",
        long: true,
        tasks: [&[], &[Put(0)], &[]],
        back: &[Get(0)],
        faults: 1,
        mortals: Slots(0b001),
        returns: 1,
        ..NONE
    },
    Workload {
        name: "return-death",
        long: true,
        tasks: [&[], &[], &[Put(0)]],
        back: &[],
        faults: 2,
        mortals: Slots(0b101),
        returns: 1,
        ..NONE
    },
];
