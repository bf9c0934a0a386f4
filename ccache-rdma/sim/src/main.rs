//! `cargo xtask sim`: runs seeds until one fails, and says what they came to.

#![forbid(unsafe_code)]

use clap::Parser;
use clustix_sim::group;
use clustix_sim::plan::{Fault, Plan};
use clustix_sim::seeds::{many, one};
use std::process::ExitCode;
use std::time::Instant;

/// Runs the cluster-cache's protocol under seeded schedules.
#[derive(Parser)]
struct Cli {
    /// How many seeds
    #[arg(long, default_value_t = 500)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 0)]
    first_seed: u64,
    /// Only this seed
    #[arg(long)]
    seed: Option<u64>,
    /// Print every step
    #[arg(long, requires = "seed")]
    trace: bool,
    /// So many nodes at first, whatever the seed says
    #[arg(long)]
    nodes: Option<u8>,
    /// These faults, whatever the seed says: crash, crash-twice, suspicion, isolation, link, pause,
    /// return, split
    #[arg(long, value_delimiter = ',', value_parser = fault)]
    faults: Option<Vec<Fault>>,
    /// With this known bug put back into the engine, under the plan that is to catch it
    #[cfg(feature = "put-back-bugs")]
    #[arg(long, value_parser = clustix_sim::bugs::named)]
    bug: Option<clustix_ccache::engine::Bug>,
    /// Threads
    #[arg(long)]
    threads: Option<usize>,
    /// Few nodes and a witness
    #[arg(long)]
    witness: bool,
    /// The variant for 128 nodes, whose words count groups; then what its operations send
    #[arg(long, conflicts_with_all = ["trace", "nodes", "faults", "witness"])]
    group: bool,
}

/// Operations of a life of the group variant.
const GROUP_OPERATIONS: u64 = 1_000;

fn groups(seeds: std::ops::Range<u64>) -> ExitCode {
    let (mut sum, lives) = (group::Report::default(), seeds.end - seeds.start);
    for seed in seeds {
        match group::live(seed, GROUP_OPERATIONS, None) {
            Ok(r) => {
                sum.operations += r.operations;
                sum.hits += r.hits;
                sum.lost_swaps += r.lost_swaps;
            }
            Err(e) => {
                println!("seed {seed} FAILED: {e}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!(
        "{} nodes in groups of {}: {lives} seeds, {} operations, {} hits, {} registrations that another was quicker than",
        group::NODES,
        group::GROUP,
        sum.operations,
        sum.hits,
        sum.lost_swaps
    );
    println!("{:38} {:>5} {:>6} {:>7}", "", "trips", "verbs", "bytes");
    for (what, sent) in group::costs() {
        println!("{what:38} {:5} {:6} {:7}", sent.trips, sent.verbs, sent.bytes);
    }
    ExitCode::SUCCESS
}

fn fault(name: &str) -> Result<Fault, String> {
    Fault::named(name).ok_or_else(|| "no such fault".into())
}

impl Cli {
    fn plan(&self, seed: u64) -> Plan {
        let of = if self.witness { Plan::witnessed } else { Plan::of };
        #[cfg(not(feature = "put-back-bugs"))]
        let mut plan = of(seed);
        #[cfg(feature = "put-back-bugs")]
        let mut plan = match self.bug {
            Some(bug) => clustix_sim::bugs::plan(bug, seed),
            None => of(seed),
        };
        plan.nodes = self.nodes.unwrap_or(plan.nodes);
        if let Some(faults) = &self.faults {
            plan.faults.clone_from(faults);
        }
        plan
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.group {
        let first = cli.seed.unwrap_or(cli.first_seed);
        return groups(first..first.saturating_add(if cli.seed.is_some() { 1 } else { cli.seeds }));
    }
    let plan = |seed| cli.plan(seed);
    if let Some(seed) = cli.seed {
        println!("seed {seed}: {:?}", plan(seed));
        return match one(seed, plan, cli.trace) {
            Ok(report) => {
                println!("seed {seed} passed: {:?}", report.totals);
                ExitCode::SUCCESS
            }
            Err(f) => {
                println!("seed {seed} FAILED: {}", f.what);
                ExitCode::FAILURE
            }
        };
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let seeds = cli.first_seed..cli.first_seed.saturating_add(cli.seeds);
    let begin = Instant::now();
    let sum = many(seeds, cli.threads.unwrap_or(threads), plan);
    let took = begin.elapsed().as_secs_f64();
    let t = sum.totals;
    println!(
        "{} seeds in {took:.1} s, {:.0} seeds/s: {} operations, {} hits, {} verbs, {} crashes, \
         {} views, {} of them rehomes, {} links cut, {} pauses, {} false suspicions",
        sum.seeds,
        sum.seeds as f64 / took.max(0.001),
        t.operations,
        t.hits,
        t.verbs,
        t.crashes,
        t.views,
        t.rehomes,
        t.partitions,
        t.pauses,
        t.suspicions,
    );
    match sum.failure {
        None => ExitCode::SUCCESS,
        Some(f) => {
            println!("seed {} FAILED: {}", f.seed, f.what);
            println!("again, step by step: cargo xtask sim --seed {} --trace", f.seed);
            ExitCode::FAILURE
        }
    }
}
