//! The variant for 128 nodes: many lives, and its known mistakes.

use clustix_sim::group::{Mistake, costs, live};

/// A mistake that hides for longer is not caught.
const LIVES: u64 = 300;
const OPERATIONS: u64 = 600;

#[test]
fn every_life_can_be_explained() {
    let (mut hits, mut lost) = (0, 0);
    for seed in 0..LIVES {
        match live(seed, OPERATIONS, None) {
            Ok(report) => (hits, lost) = (hits + report.hits, lost + report.lost_swaps),
            Err(e) => panic!("seed {seed}: {e}"),
        }
    }
    println!(
        "{LIVES} lives of {OPERATIONS} operations: {hits} hits, {lost} registrations lost to others"
    );
    assert!(hits > 0 && lost > 0, "{hits} {lost}");
}

#[test]
fn mistakes_are_caught() {
    for mistake in [Mistake::Overflow, Mistake::RegisterWhileWriting, Mistake::OneOfTheGroup] {
        let found =
            (0..LIVES).find_map(|seed| Some((seed, live(seed, OPERATIONS, Some(mistake)).err()?)));
        let (seed, what) = found.unwrap_or_else(|| panic!("{mistake:?} is not caught"));
        println!("{mistake:?} at seed {seed}: {}", what.chars().take(100).collect::<String>());
    }
}

#[test]
fn what_operations_send() {
    for (what, sent) in costs() {
        println!("{what:34} {:5} {:6} {:7}", sent.trips, sent.verbs, sent.bytes);
    }
    let sent = |what: &str| costs().into_iter().find(|(w, _)| w == what).map(|(_, s)| s).unwrap();
    assert_eq!(sent("hit").verbs, 0);
    assert_eq!((sent("put, kept").trips, sent("put, kept, all others share it").trips), (1, 2));
}
