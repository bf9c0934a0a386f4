//! `cargo xtask model`: tries every schedule of every workload, then shows that every known bug is
//! caught; or does so for one.

#![forbid(unsafe_code)]

use clap::Parser;
use clustix_model::check::{self, Outcome};
use clustix_model::cluster::Cluster;
use clustix_model::{bugs, workloads};
use std::process::ExitCode;

/// Tries every schedule of small workloads on a model of the cluster-cache's protocol.
#[derive(Parser)]
struct Cli {
    /// Only workloads (or bugs) whose names contain this
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// With this known bug put back, on the workload that is to catch it, or on those of --only
    #[arg(long, value_name = "NAME", value_parser = named)]
    bug: Option<&'static bugs::Known>,
    /// Threads
    #[arg(long)]
    threads: Option<usize>,
}

fn named(name: &str) -> Result<&'static bugs::Known, String> {
    let all = || bugs::ALL.iter().map(|k| k.name).collect::<Vec<_>>().join(" ");
    let found = bugs::ALL.iter().find(|k| k.name == name);
    found.ok_or_else(|| format!("no such bug; there are: {}", all()))
}

fn line(name: &str, o: &Outcome, verdict: &str) {
    let seconds = o.took.as_secs_f64();
    let (states, unique, depth) = (o.states, o.unique, o.depth);
    println!("{name:28} {states:10} {unique:10} {depth:5} {seconds:7.1}  {verdict}");
}

/// The steps that lead to where the property fails.
fn tell(o: &Outcome) {
    let Some((property, path)) = &o.failure else { return };
    println!("does not hold: {property}, after");
    let steps = path.clone().into_vec();
    let last = path.last_state();
    for (i, (_, step)) in steps.iter().enumerate() {
        let after = steps.get(i + 1).map_or(last, |(state, _)| state);
        if let Some(step) = step {
            println!("{:4}  {}", i + 1, step.told(after));
        }
    }
    println!("{last:#?}");
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let threads =
        cli.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let wanted = |name: &str| cli.only.as_deref().is_none_or(|only| name.contains(only));
    let mut good = true;
    println!("{:28} {:>10} {:>10} {:>5} {:>7}", "", "states", "unique", "depth", "s");
    for w in workloads::ALL {
        let chosen = match (cli.bug, &cli.only) {
            (Some(known), None) => w.name == known.workload,
            _ => wanted(w.name),
        };
        if !chosen {
            continue;
        }
        let cluster = Cluster { workload: *w, bug: cli.bug.map(|k| k.bug) };
        let outcome = check::run(cluster, threads);
        line(w.name, &outcome, if outcome.failure.is_none() { "holds" } else { "FAILS" });
        good &= outcome.failure.is_none();
        tell(&outcome);
    }
    if cli.bug.is_none() {
        println!("known bugs, put back:");
        for known in bugs::ALL.iter().filter(|k| wanted(k.name)) {
            let Some(cluster) = check::with(known) else {
                println!("{:28} has no workload {:?}", known.name, known.workload);
                good = false;
                continue;
            };
            let outcome = check::run(cluster, threads);
            let verdict = match &outcome.failure {
                Some((property, _)) => format!("caught by {}: {property}", known.workload),
                None => format!("NOT CAUGHT by {}", known.workload),
            };
            good &= outcome.failure.is_some();
            line(known.name, &outcome, &verdict);
        }
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
