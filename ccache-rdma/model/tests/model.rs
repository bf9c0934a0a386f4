//! The shorter workloads hold, and known bugs are caught. `cargo xtask model` runs all workloads.

use clustix_model::bugs;
use clustix_model::check::{run, with};
use clustix_model::cluster::Cluster;
use clustix_model::workloads;

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[test]
fn workloads_hold() {
    for w in workloads::ALL.iter().filter(|w| !w.long) {
        let outcome = run(Cluster { workload: *w, bug: None }, threads());
        println!("{:28} {:9} states in {:?}", w.name, outcome.unique, outcome.took);
        assert!(outcome.failure.is_none(), "{}: see cargo xtask model --only {0}", w.name);
    }
}

#[test]
fn known_bugs_are_caught() {
    for known in bugs::ALL {
        let cluster = with(known).expect(known.name);
        // Without optimization these take minutes.
        if cluster.workload.long && cfg!(debug_assertions) {
            continue;
        }
        let outcome = run(cluster, threads());
        println!("{:28} {:9} states in {:?}", known.name, outcome.unique, outcome.took);
        assert!(outcome.failure.is_some(), "{} is not caught by {}", known.name, known.workload);
    }
}
