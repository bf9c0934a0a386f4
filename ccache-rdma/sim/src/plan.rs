//! What is to happen to a cluster in one run: chosen from the seed, before it begins.

use crate::net::Wire;
use crate::random::Random;
use crate::work::Mix;

/// Something that goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A node dies, in the middle of a write if it can be had.
    Crash,
    /// Two nodes die, the second while the cluster recovers from the first.
    CrashTwice,
    /// A node is taken for dead while it lives.
    Suspicion,
    /// A node is cut off from all others, for shorter or longer than anyone waits for it.
    Isolation,
    /// One link is cut.
    Link,
    /// A node stands still, for shorter or longer than its lease.
    Pause,
    /// A node that is gone comes back.
    Return,
    /// A node has another evicted, and is cut off from all others before they hear of it.
    Split,
}

impl Fault {
    /// All, with their names on the command line.
    pub const ALL: [(&str, Fault); 8] = [
        ("crash", Fault::Crash),
        ("crash-twice", Fault::CrashTwice),
        ("suspicion", Fault::Suspicion),
        ("isolation", Fault::Isolation),
        ("link", Fault::Link),
        ("pause", Fault::Pause),
        ("return", Fault::Return),
        ("split", Fault::Split),
    ];

    /// By its name.
    pub fn named(name: &str) -> Option<Fault> {
        Fault::ALL.iter().find(|(n, _)| *n == name).map(|(_, f)| *f)
    }
}

/// A run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Nodes at first.
    pub nodes: u8,
    /// Clients on each.
    pub clients: u64,
    /// What they do.
    pub mix: Mix,
    /// Length of all payloads, if they are to be alike.
    pub payload: Option<usize>,
    /// How the wire behaves.
    pub wire: Wire,
    /// Whether a process's death is noticed at once.
    pub notices: bool,
    /// A bug that is put back.
    #[cfg(feature = "put-back-bugs")]
    pub bug: Option<clustix_ccache::engine::Bug>,
    /// What goes wrong, one after the other.
    pub faults: Vec<Fault>,
    /// Shards get other primaries, one time in so many steps; 0: never.
    pub rehomes: usize,
    /// There is a witness.
    pub witness: bool,
    /// Evictions are decided whatever came before: a known mistake.
    pub careless: bool,
    /// How long work goes on before, between and after, ns.
    pub stretch: u64,
}

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64) -> Plan {
        let mut r = Random(seed ^ 0x706c_616e);
        let nodes = 3 + r.below(3) as u8;
        let kinds = [
            Fault::Crash,
            Fault::Crash,
            Fault::CrashTwice,
            Fault::Suspicion,
            Fault::Isolation,
            Fault::Link,
            Fault::Pause,
            Fault::Return,
        ];
        let faults = (0..r.below(4)).map(|_| kinds[r.below(kinds.len())]).collect();
        let wire = Wire {
            retry_ns: [60_000, 150_000, 500_000][r.below(3)],
            dead_memory_acts: r.chance(2),
            slow_one_in: [0, 200, 600, 2_000][r.below(4)],
            slow_ns: [20_000, 250_000, 700_000][r.below(3)],
            packet_ns: [150, 400, 1_000][r.below(3)],
            packet: [256, 1024, 1024][r.below(3)],
        };
        Plan {
            nodes,
            clients: 2 + r.below(3) as u64,
            mix: Mix { counters: 1 + r.below(4), ..Mix::default() },
            payload: [None, None, Some(200), Some(1_500)][r.below(4)],
            wire,
            notices: r.chance(2),
            #[cfg(feature = "put-back-bugs")]
            bug: None,
            faults,
            // From a source of its own: what else a seed means stays as it was.
            rehomes: [0, 0, 3_000, 700][Random(seed ^ 0x686f_6d65).below(4)],
            witness: false,
            careless: false,
            stretch: 150_000 + r.number() % 400_000,
        }
    }

    /// The plan of a seed for a few nodes and a witness.
    pub fn witnessed(seed: u64) -> Plan {
        let plan = Plan::of(seed);
        let mut r = Random(seed ^ 0x7769_746e);
        let kinds = [
            Fault::Crash,
            Fault::CrashTwice,
            Fault::Suspicion,
            Fault::Split,
            Fault::Split,
            Fault::Isolation,
            Fault::Link,
            Fault::Pause,
            Fault::Return,
            Fault::Return,
        ];
        let faults = (0..1 + r.below(5)).map(|_| kinds[r.below(kinds.len())]).collect();
        // Of more nodes not all have all: where links are lost the oracle's choice, which is not rule 48's, can
        // leave the last copies of something to two that do not reach each other.
        Plan { nodes: 2 + r.below(2) as u8, witness: true, faults, ..plan }
    }
}
