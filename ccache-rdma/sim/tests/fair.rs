//! Nodes that write one object again and again come by turns (rule 44).

use clustix_sim::cluster::Cluster;
use clustix_sim::contention::{Contention, OVERTAKEN, READ_OVERTAKEN, contend, wire};

const STEPS: usize = 200_000;

fn cluster(seed: u64, nodes: u8) -> Cluster {
    let mut c = Cluster::with_wire(seed, nodes, wire(seed));
    assert!(c.run_until_quiet(STEPS), "{}", c.describe());
    c
}

/// With seeds, so many nodes, one that only reads, one that dies.
fn worst(seeds: u64, reader: bool, kill: Option<u8>) -> Contention {
    let mut worst = Contention::default();
    for seed in 0..seeds {
        let nodes = 3 + (seed / 3 % 3) as u8;
        let mut c = cluster(seed, nodes);
        let found = contend(&mut c, nodes, reader, kill);
        worst.overtaken = worst.overtaken.max(found.overtaken);
        worst.read_overtaken = worst.read_overtaken.max(found.read_overtaken);
        worst.worst = worst.worst.max(found.worst);
        worst.writes += found.writes;
        // A change of view forgets who has asked, so that who writes may go on for a while.
        let turns = found.overtaken <= OVERTAKEN || kill.is_some();
        assert!(turns, "seed {seed}, {nodes} nodes: {found:?}");
    }
    println!("{worst:?}");
    worst
}

#[test]
fn no_writer_is_overtaken_for_long() {
    worst(300, false, None);
}

#[test]
fn beside_a_reader_neither() {
    let worst = worst(90, true, None);
    assert!(worst.read_overtaken <= READ_OVERTAKEN, "{worst:?}");
}

/// A node that dies while it waits, or while others let it come first: the longest write is one that waits for
/// the dead node's lease, and a little.
#[test]
fn a_waiter_that_dies_holds_nobody_up_for_long() {
    let worst = worst(90, false, Some(1));
    let bound = 4 * clustix_sim::node::timing().lease_ns;
    assert!(worst.worst < bound, "{worst:?}: {bound} ns");
}
