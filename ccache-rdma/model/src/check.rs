//! Runs a workload through stateright, and says what came of it.

use crate::bugs::Known;
use crate::cluster::{Cluster, Step};
use crate::state::State;
use crate::workloads;
use stateright::{Checker, HasDiscoveries, Model, Path};
use std::time::{Duration, Instant};

/// What a run came to.
pub struct Outcome {
    /// States generated, with repeats.
    pub states: usize,
    /// Different ones.
    pub unique: usize,
    /// Steps of the longest way that was needed.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
    /// The property that does not hold, and how.
    pub failure: Option<(&'static str, Path<State, Step>)>,
}

/// A bug on the workload that is to catch it.
pub fn with(known: &Known) -> Option<Cluster> {
    let workload = *workloads::ALL.iter().find(|w| w.name == known.workload)?;
    Some(Cluster { workload, bug: Some(known.bug) })
}

/// Tries every schedule, or stops at the first that breaks a property.
pub fn run(cluster: Cluster, threads: usize) -> Outcome {
    let start = Instant::now();
    let checker = cluster
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let properties = checker.model().properties();
    let discoveries = checker.discoveries();
    let failed = properties
        .iter()
        .find(|p| p.expectation.discovery_is_failure() && discoveries.contains_key(p.name));
    let mut failure = failed.map(|p| (p.name, discoveries[p.name].clone()));
    if failure.is_none() && !discoveries.contains_key("all is done") {
        let nothing =
            Path::from_actions(checker.model(), checker.model().init_states().remove(0), []);
        failure = nothing.map(|path| ("all is done", path));
    }
    Outcome {
        states: checker.state_count(),
        unique: checker.unique_state_count(),
        depth: checker.max_depth(),
        took: start.elapsed(),
        failure,
    }
}
