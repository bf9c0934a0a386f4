//! The cluster in the machines: node K in machine K, from one file in the shared folder.

use super::run::{Bounds, Ending, capture};
use super::state::{Machines, State};
use anyhow::{Context, Result, bail};
use std::fmt::Write;
use std::fs;
use std::time::{Duration, Instant};

/// The file's name, in the shared folder.
const HOSTS: &str = "hosts.toml";
/// Lease, ms. Emulated machines that share two processors are late by hundreds of milliseconds.
const LEASE: u32 = 2_000;

/// Writes the file that says which machines the cluster is of.
///
/// # Errors
/// The shared folder cannot be written.
pub fn describe(state: &State, machines: &Machines) -> Result<()> {
    let mut text = format!(
        "# Made by `vm up`. In each machine: clustix up --hosts /share/{HOSTS} --node K\n\
         token = \"machines\"\nmemory = \"{}M\"\nlease = {LEASE}\n\n[fabric]\nkind = \"verbs\"\n",
        machines.memory / 2
    );
    for k in 1..=machines.nodes {
        let _ = write!(text, "\n[[node]]\nslot = {k}\naddress = \"10.77.0.{k}\"\n");
    }
    let path = state.share().join(HOSTS);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Starts the cluster's node in machine `k`; returns once it serves.
///
/// # Errors
/// What `clustix up` said; the machine ended; the time is up.
pub fn start(state: &State, k: u8, deadline: Instant) -> Result<()> {
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let bounds = Bounds { start: left, end: Some(left) };
    let hosts = format!("/share/{HOSTS}");
    let node = k.to_string();
    let words = ["clustix", "up", "--hosts", &hosts, "--node", &node];
    let answer = capture(state, k, &words, bounds)?;
    match answer.ending {
        Ending::Exited(0) => {
            println!("{}", answer.out.trim_end());
            Ok(())
        }
        Ending::Exited(_) => bail!("no cluster in machine {k}: {}", answer.err.trim_end()),
        Ending::Refused(_, why) => bail!("no cluster in machine {k}: {why}"),
        Ending::Lost => bail!("machine {k} ended while its node started"),
        Ending::OutOfTime => bail!("node {k} of the cluster does not serve in time (--timeout)"),
    }
}

/// Starts the nodes in all machines at once: they wait for each other.
///
/// # Errors
/// As [`start`], the first.
pub fn start_all(state: &State, nodes: u8, deadline: Instant) -> Result<()> {
    std::thread::scope(|scope| {
        let started: Vec<_> =
            (1..=nodes).map(|k| scope.spawn(move || start(state, k, deadline))).collect();
        started
            .into_iter()
            .map(|s| s.join().unwrap_or_else(|_| bail!("a thread of this command ended")))
            .fold(Ok(()), Result::and)
    })
}
