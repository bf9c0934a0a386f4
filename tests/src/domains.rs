//! Protection domains of a node, killed one by one as a crash would.

use crate::Cluster;
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::time::{Duration, Instant};

/// For a domain to be there again.
const BOUND: Duration = Duration::from_secs(60);

/// The process and the restarts of a domain.
///
/// # Errors
/// `clustix pds` does not list it.
pub fn find(cluster: &Cluster, node: u8, role: &str) -> Result<(Option<Pid>, u64)> {
    let pds = cluster.json(["pds"])?;
    let all = pds.as_array().context("a list")?;
    let found = all
        .iter()
        .find(|pd| pd["role"] == role && pd["node"] == node)
        .with_context(|| format!("no {role} on node {node}"))?;
    let pid = found["pid"].as_i64().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    Ok((pid, found["restarts"].as_u64().context("restarts")?))
}

/// Kills them, and waits until all are there again: how long that took.
///
/// # Errors
/// One does not run, or does not come back.
pub fn kill(cluster: &Cluster, node: u8, roles: &[&str]) -> Result<Duration> {
    signal(cluster, node, roles, Signal::KILL)
}

/// Stops one for ever, and waits until another is there in its place: how long that took.
///
/// # Errors
/// As [`kill`].
pub fn hang(cluster: &Cluster, node: u8, role: &str) -> Result<Duration> {
    signal(cluster, node, &[role], Signal::STOP)
}

/// As [`find`]; again, where a node goes while it is asked.
fn asked(cluster: &Cluster, node: u8, role: &str) -> Result<(Option<Pid>, u64)> {
    let begin = Instant::now();
    loop {
        match find(cluster, node, role) {
            Err(_) if begin.elapsed() < Duration::from_secs(5) => {}
            found => return found,
        }
    }
}

fn signal(cluster: &Cluster, node: u8, roles: &[&str], signal: Signal) -> Result<Duration> {
    let mut before = Vec::new();
    for role in roles {
        let (pid, restarts) = asked(cluster, node, role)?;
        before.push((*role, pid.with_context(|| format!("{role} does not run"))?, restarts));
    }
    for (role, pid, _) in &before {
        kill_process(*pid, signal).with_context(|| format!("{role}, process {pid:?}"))?;
    }
    let begin = Instant::now();
    for (role, killed, restarts) in before {
        loop {
            // Where it is control that was killed, nobody answers for a moment.
            let now = find(cluster, node, role);
            if let Ok((pid, now)) = now
                && pid.is_some_and(|pid| pid != killed)
                && now > restarts
            {
                break;
            }
            // A node that is gone does not bring it back.
            let Ok(nodes) = cluster.json(["nodes"]) else { continue };
            let down = |n: &Value| n["node"] == node && n["state"] == "down";
            ensure!(!nodes.as_array().into_iter().flatten().any(down), "node {node} is down");
            ensure!(
                begin.elapsed() < BOUND,
                "{role}, {killed:?} after {restarts} restarts, does not come back: {now:?}"
            );
            // The command line tells of no restart.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(begin.elapsed())
}
