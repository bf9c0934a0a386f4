//! The cluster-cache at its own interface over RDMA, one node per machine with soft-RoCE: uncontended operations
//! ask nothing of their targets' CPUs, and every put of a contended object is answered. Prints what operations cost.

use anyhow::{Context, Result, ensure};
use clustix_tests::Program;
use clustix_tests::machines::{Lines, Machines, UP};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// For each part of it, in emulated machines; the agent's bound for the whole, s.
const LONG: Duration = Duration::from_secs(150);
const BOUND: &str = "280";
/// Of an even share of the puts of contended objects, what every node gets at least, %.
const FEWEST: u64 = 66;

#[test]
fn what_operations_cost_over_rdma() -> Result<()> {
    let program = std::env::var_os("CLUSTIX_VERBS_EXAMPLE")
        .map(PathBuf::from)
        .context("no CLUSTIX_VERBS_EXAMPLE; cargo xtask test --only rxe-cost builds it")?;
    let m = Machines::new(false)?;
    Program::start(m.up("3"), b"")?.end_within(UP)?.ok()?;
    fs::copy(&program, m.state().join("share/verbs"))?;
    let at: Vec<String> = (1..=3).map(|k| format!("10.77.0.{k}:7000")).collect();
    let start = |k: usize| {
        let (node, slot) = (k.to_string(), (k - 1).to_string());
        let run = ["run", "--node", &node, "--timeout", BOUND, "--", "/share/verbs", "cost", &slot];
        let at: Vec<&str> = at.iter().map(String::as_str).collect();
        Lines::start(m.command(&[&run[..], &at].concat()))
    };
    let nodes = [start(1)?, start(2)?, start(3)?];
    for what in ["messages handled", "hand-overs", "messages of the fabric's own", "registrations"]
    {
        let line = nodes[0].wait_for(&format!("one-sided: {what}:"), LONG)?;
        ensure!(line.ends_with(": 0"), "{line}");
    }
    for _ in 0..2 {
        nodes[0].wait_for("all answered", LONG)?;
        let line = nodes[0].wait_for("the node with the fewest puts has", LONG)?;
        let part = line.split(' ').rev().find_map(|w| w.parse::<u64>().ok());
        ensure!(part.is_some_and(|p| p >= FEWEST), "they do not come by turns: {line}");
    }
    nodes[0].wait_for("done", LONG)?;
    for mut node in nodes {
        ensure!(node.child.wait()?.success(), "a node fails at its end");
    }
    m.ok(&["down"])?;
    ensure!(m.processes()?.is_empty(), "{:?}", m.processes()?);
    Ok(())
}
