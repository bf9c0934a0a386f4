//! Known bugs, and for each the plan under which it does not hide for long.

use crate::net::Wire;
use crate::plan::{Fault, Plan};
use crate::work::Mix;
use clustix_ccache::engine::Bug;

/// A bug by its name on the command line.
pub fn named(name: &str) -> Result<Bug, String> {
    let all = || Bug::ALL.iter().map(|(n, _)| *n).collect::<Vec<_>>().join(" ");
    let bug = Bug::ALL.iter().find(|(n, _)| *n == name);
    bug.map(|(_, b)| *b).ok_or_else(|| format!("no such bug; there are: {}", all()))
}

/// The plan of a seed with that bug. Its workload and faults lean towards where the bug hurts; the
/// rest is the seed's.
pub fn plan(bug: Bug, seed: u64) -> Plan {
    let plan = Plan { bug: Some(bug), ..Plan::of(seed) };
    let slow = Wire { slow_one_in: 100, slow_ns: 400_000, ..plan.wire.clone() };
    // Weights of increment, grab, transfer, sum, flip, wait, set, look.
    let mix = |weights, counters| Mix { weights, counters };
    let transfers = mix([0, 0, 8, 2, 0, 0, 0, 0], 1);
    let alike = Some(200);
    match bug {
        Bug::UnboundedCounts => {
            let mix = mix([0, 0, 0, 0, 0, 0, 2, 8], 1);
            Plan { mix, faults: vec![], nodes: 3, clients: 4, ..plan }
        }
        Bug::ReadWhileWriting | Bug::CounterAfterPosting | Bug::EarlyAcknowledgement => {
            let mix = mix([4, 0, 2, 1, 0, 0, 4, 4], 1);
            Plan { mix, faults: vec![], wire: slow, ..plan }
        }
        Bug::StealKept => {
            // Two objects, written again and again: each is kept soon, and wanted by all.
            let mix = mix([1, 0, 0, 0, 0, 0, 8, 4], 1);
            Plan { mix, faults: vec![], wire: slow, ..plan }
        }
        Bug::LeaseOnHitsOnly => {
            let faults = vec![Fault::Isolation, Fault::Pause, Fault::Isolation];
            Plan { faults, ..plan }
        }
        Bug::EndedBefore => {
            let faults = vec![Fault::Crash, Fault::Return, Fault::Suspicion, Fault::Suspicion];
            Plan { faults, nodes: 5, notices: true, ..plan }
        }
        // Turns wrong nobody: the test has a workload of its own for them.
        Bug::NoLeaseWait | Bug::NoTurns => {
            Plan { faults: vec![Fault::Suspicion, Fault::Suspicion], nodes: 5, ..plan }
        }
        Bug::PartialRevoke => {
            let faults = vec![Fault::Suspicion, Fault::Suspicion];
            Plan { faults, nodes: 3, wire: slow, ..plan }
        }
        Bug::NoDrain => {
            let faults = vec![Fault::Crash, Fault::Suspicion];
            Plan { faults, nodes: 5, clients: 4, wire: slow, ..plan }
        }
        Bug::CountsCleared | Bug::CachesKept | Bug::ReplayWithoutVersions => {
            Plan { faults: vec![Fault::Crash, Fault::Crash], nodes: 5, clients: 4, ..plan }
        }
        Bug::EndsBeforeApplies => {
            let faults = vec![Fault::Crash, Fault::Crash];
            Plan { mix: transfers, faults, nodes: 5, clients: 4, wire: slow, ..plan }
        }
        Bug::RecordUnchecked => {
            let faults = vec![Fault::Crash, Fault::Crash];
            // Small packets and small records: the end of a packet is often that of an object.
            let wire = Wire { packet: 48, slow_one_in: 0, ..plan.wire.clone() };
            let payload = Some(32);
            Plan { mix: transfers, faults, nodes: 5, clients: 2, payload, wire, ..plan }
        }
        Bug::ReplayFromOneRecord => {
            let faults = vec![Fault::CrashTwice];
            Plan { mix: transfers, faults, nodes: 5, payload: alike, ..plan }
        }
        Bug::CopierIgnoresSwap => {
            Plan { faults: vec![Fault::Crash, Fault::Return], nodes: 3, clients: 4, ..plan }
        }
        Bug::LeftoverHalf => {
            let faults = vec![Fault::Suspicion, Fault::Return, Fault::Crash];
            let mix = mix([1, 0, 0, 0, 6, 0, 4, 4], 2);
            Plan { mix, faults, clients: 4, stretch: 100_000, ..plan }
        }
    }
}
