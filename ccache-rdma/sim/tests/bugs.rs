//! Known bugs, put back one by one, are caught; the same seeds without them pass.

#![cfg(feature = "put-back-bugs")]

use clustix_ccache::engine::Bug;
use clustix_sim::bugs::plan;
use clustix_sim::cluster::Cluster;
use clustix_sim::contention::{OVERTAKEN, READ_OVERTAKEN, contend, wire};
use clustix_sim::plan::Plan;
use clustix_sim::seeds::many;

/// A bug that hides for longer is not caught.
const SEEDS: u64 = 4_000;

#[test]
fn every_put_back_bug_is_caught() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut missed = Vec::new();
    for (name, bug) in Bug::ALL {
        let Some(f) = many(0..SEEDS, threads, |seed| plan(bug, seed)).failure else {
            println!("{name:24} not caught in {SEEDS} seeds");
            missed.push(name);
            continue;
        };
        let what: String = f.what.chars().take(160).collect();
        println!("{name:24} at seed {:3}: {}", f.seed, what.lines().next().unwrap_or(""));
        let without = |seed| Plan { bug: None, ..plan(bug, seed) };
        let sum = many(0..f.seed + 20, threads, without);
        assert!(sum.failure.is_none(), "without {name}: {:?}", sum.failure);
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

/// Nothing that is told is wrong without turns, but writers and readers starve (rules 44 and 45).
#[test]
fn without_turns_some_starve() {
    let (mut overtaken, mut read_overtaken) = (0, 0);
    for seed in 0..30 {
        for reader in [false, true] {
            let mut c = Cluster::with_wire(seed, 3, wire(seed));
            c.put_back(Some(Bug::NoTurns));
            assert!(c.run_until_quiet(200_000), "{}", c.describe());
            let found = contend(&mut c, 3, reader, None);
            overtaken = overtaken.max(found.overtaken);
            read_overtaken = read_overtaken.max(found.read_overtaken);
        }
    }
    println!(
        "no-turns: a write overtaken {overtaken} times by one node, a read {read_overtaken} times"
    );
    assert!(overtaken > OVERTAKEN && read_overtaken > READ_OVERTAKEN);
}
