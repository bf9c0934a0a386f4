//! Protection domains of nodes, killed as a crash would, one or several at once.

use crate::Cluster;
use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::time::{Duration, Instant};

/// For a domain to be there again.
const BOUND: Duration = Duration::from_secs(60);

/// One that was killed or stopped.
struct Ended {
    node: u8,
    role: String,
    pid: Pid,
    restarts: u64,
}

/// The process and the restarts of a domain, by what `clustix pds` printed.
fn among(pds: &Value, node: u8, role: &str) -> Result<(Option<Pid>, u64)> {
    let found = pds
        .as_array()
        .context("a list")?
        .iter()
        .find(|pd| pd["role"] == role && pd["node"] == node)
        .with_context(|| format!("no {role} on node {node}"))?;
    let pid = found["pid"].as_i64().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    Ok((pid, found["restarts"].as_u64().context("restarts")?))
}

impl Ended {
    /// Whether there is another in its place.
    fn is_replaced(&self, pds: &Value) -> bool {
        among(pds, self.node, &self.role).is_ok_and(|(pid, restarts)| {
            pid.is_some_and(|pid| pid != self.pid) && restarts > self.restarts
        })
    }
}

/// The process and the restarts of a domain.
///
/// # Errors
/// `clustix pds` does not list it, for some seconds: where a node goes it may fail.
pub fn find(cluster: &Cluster, node: u8, role: &str) -> Result<(Option<Pid>, u64)> {
    let begin = Instant::now();
    loop {
        match cluster.json(["pds"]).and_then(|pds| among(&pds, node, role)) {
            Err(_) if begin.elapsed() < Duration::from_secs(5) => {}
            found => return found,
        }
    }
}

/// Kills some of a node's, and waits until all are there again: how long that took.
///
/// # Errors
/// One does not run, or does not come back.
pub fn kill(cluster: &Cluster, node: u8, roles: &[&str]) -> Result<Duration> {
    let all: Vec<(u8, &str)> = roles.iter().map(|role| (node, *role)).collect();
    let times = end(cluster, &all, Signal::KILL).into_iter().collect::<Result<Vec<_>>>()?;
    Ok(times.into_iter().max().unwrap_or_default())
}

/// Sends each of these a signal that ends it (SIGKILL) or makes it hang (SIGSTOP), all at once; from then until
/// another is there in its place.
///
/// # Errors
/// It does not run, or does not come back.
pub fn end(cluster: &Cluster, all: &[(u8, &str)], signal: Signal) -> Vec<Result<Duration>> {
    let found: Vec<Result<Ended>> = all
        .iter()
        .map(|(node, role)| {
            let (pid, restarts) = find(cluster, *node, role)?;
            let pid = pid.with_context(|| format!("{role} of node {node} does not run"))?;
            Ok(Ended { node: *node, role: (*role).to_owned(), pid, restarts })
        })
        .collect();
    let signalled: Vec<Result<Ended>> = found
        .into_iter()
        .map(|ended| {
            let ended = ended?;
            let Ended { role, pid, .. } = &ended;
            kill_process(*pid, signal).with_context(|| format!("{role}, process {pid:?}"))?;
            Ok(ended)
        })
        .collect();
    replaced(cluster, &signalled)
}

/// Waits until there is another in each one's place: how long that took.
fn replaced(cluster: &Cluster, signalled: &[Result<Ended>]) -> Vec<Result<Duration>> {
    let begin = Instant::now();
    let mut back: Vec<Option<Result<Duration>>> = signalled.iter().map(|_| None).collect();
    while back.iter().any(Option::is_none) {
        // Where it is control that was killed, nobody answers for a moment.
        let pds = cluster.json(["pds"]).unwrap_or(Value::Null);
        let nodes = cluster.json(["nodes"]).unwrap_or(Value::Null);
        for (ended, back) in signalled.iter().zip(&mut back).filter(|(_, back)| back.is_none()) {
            *back = match ended {
                Err(e) => Some(Err(anyhow!("{e:#}"))),
                Ok(ended) => look(ended, &pds, &nodes, begin.elapsed()),
            };
        }
        // The command line tells of no restart.
        std::thread::sleep(Duration::from_millis(5));
    }
    back.into_iter().flatten().collect()
}

fn look(ended: &Ended, pds: &Value, nodes: &Value, elapsed: Duration) -> Option<Result<Duration>> {
    if ended.is_replaced(pds) {
        return Some(Ok(elapsed));
    }
    let Ended { node, role, pid, restarts } = ended;
    // A node that is gone does not bring it back.
    let down = |n: &Value| n["node"] == *node && n["state"] == "down";
    if nodes.as_array().into_iter().flatten().any(down) {
        return Some(Err(anyhow!("node {node} is down")));
    }
    (elapsed > BOUND).then(|| {
        let now = among(pds, *node, role);
        Err(anyhow!(
            "{role} of node {node}, {pid:?} after {restarts} restarts, does not come back: {now:?}"
        ))
    })
}

/// Waits until another is there in place of the one with this process and so many restarts.
///
/// # Errors
/// It does not come back.
pub fn again(cluster: &Cluster, node: u8, role: &str, (pid, restarts): (Pid, u64)) -> Result<()> {
    let ended = Ended { node, role: role.to_owned(), pid, restarts };
    replaced(cluster, &[Ok(ended)]).into_iter().try_for_each(|back| back.map(drop))
}
