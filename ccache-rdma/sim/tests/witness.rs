//! Two or three nodes and a witness: lives in which one of two goes on without the other, and evictions follow
//! each other so quickly that nobody has heard of the first.

use clustix_sim::plan::{Fault, Plan};
use clustix_sim::seeds::many;

#[test]
fn lives_with_a_witness() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let sum = many(0..200, threads, Plan::witnessed);
    println!("{} seeds: {:?}", sum.seeds, sum.totals);
    assert!(sum.failure.is_none(), "{:?}", sum.failure);
    assert!(sum.totals.crashes > 50 && sum.totals.views > 300);
}

/// If evictions are decided without regard to what came before, those left out renew each other's leases and
/// answer with what they have, while the others write.
#[test]
fn careless_evictions_are_caught() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let plan = |seed| Plan {
        nodes: 3,
        careless: true,
        faults: vec![Fault::Split, Fault::Split],
        ..Plan::witnessed(seed)
    };
    let failure = many(0..400, threads, plan).failure.expect("nobody noticed");
    println!("at seed {}: {}", failure.seed, failure.what.lines().next().unwrap_or(""));
    let careful = |seed| Plan { careless: false, ..plan(seed) };
    let sum = many(0..failure.seed + 20, threads, careful);
    assert!(sum.failure.is_none(), "{:?}", sum.failure);
}
