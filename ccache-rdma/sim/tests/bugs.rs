//! Known bugs, put back one by one, are caught; the same seeds without them pass.

#![cfg(feature = "put-back-bugs")]

use clustix_ccache::engine::Bug;
use clustix_sim::bugs::plan;
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
