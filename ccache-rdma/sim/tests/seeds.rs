//! Many seeds of the simulator; each is a cluster's life. `cargo xtask sim` runs more.

use clustix_sim::plan::{Fault, Plan};
use clustix_sim::seeds::{many, one};

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn pass(seeds: u64, plan: impl Fn(u64) -> Plan + Sync) -> clustix_sim::cluster::Totals {
    let sum = many(0..seeds, threads(), plan);
    if let Some(f) = sum.failure {
        panic!("seed {}: {}", f.seed, f.what);
    }
    println!("{} seeds: {:?}", sum.seeds, sum.totals);
    assert_eq!(sum.seeds, seeds);
    sum.totals
}

#[test]
fn five_hundred_lives() {
    let t = pass(500, Plan::of);
    // Seeds that do nothing would find nothing.
    assert!(t.operations > 100_000 && t.hits > 50_000, "{t:?}");
    assert!(t.rehomes > 500, "{t:?}");
    assert!(t.crashes > 100 && t.partitions > 100 && t.pauses > 50 && t.suspicions > 20, "{t:?}");
}

#[test]
fn a_second_node_dies_during_the_recovery_of_the_first() {
    let plan = |seed| Plan { nodes: 5, faults: vec![Fault::CrashTwice], ..Plan::of(seed) };
    let t = pass(60, plan);
    assert!(t.crashes > 90, "{t:?}");
}

#[test]
fn a_node_that_died_comes_back_and_is_filled() {
    let faults = vec![Fault::Crash, Fault::Return];
    let plan = move |seed| Plan { nodes: 3, faults: faults.clone(), ..Plan::of(seed) };
    let t = pass(60, plan);
    // One view without it, one with it, and one at least in which its copies count.
    assert!(t.crashes > 50 && t.views > 150, "{t:?}");
}

#[test]
fn primaries_move_while_nodes_die_and_come_back() {
    let faults = vec![Fault::Crash, Fault::Return, Fault::Suspicion];
    let plan = move |seed| Plan { rehomes: 400, faults: faults.clone(), ..Plan::of(seed) };
    let t = pass(60, plan);
    assert!(t.crashes > 50 && t.rehomes > 500, "{t:?}");
}

#[test]
fn a_seed_is_the_same_again() {
    for seed in 0..12 {
        let totals = || one(seed, Plan::of, false).unwrap().totals;
        assert_eq!(format!("{:?}", totals()), format!("{:?}", totals()), "seed {seed}");
    }
}
