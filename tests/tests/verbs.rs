//! The fabric of RDMA devices, in machines with soft-RoCE: three ends in one machine pass the suite that every
//! fabric passes; ends in three machines act on each other, and notice the loss of one, and of the network.
//! Prints what verbs take.

use anyhow::{Context, Result, ensure};
use clustix_tests::Program;
use clustix_tests::machines::{ALIVE, Lines, Machines, UP};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// For the suite and the measurements, in an emulated machine; also the agent's bound, s.
const LONG: Duration = Duration::from_secs(240);
/// Within this a node that nobody reaches counts as broken: a few times what queue pairs are set to.
const NOTICED: Duration = Duration::from_secs(20);

/// The program `verbs` of clustix-ccache's examples.
fn verbs() -> Result<PathBuf> {
    std::env::var_os("CLUSTIX_VERBS_EXAMPLE")
        .map(PathBuf::from)
        .context("no CLUSTIX_VERBS_EXAMPLE; cargo xtask test --only verbs builds it")
}

#[test]
fn the_fabric_of_rdma_devices() -> Result<()> {
    let m = Machines::new(false)?;
    let program = verbs()?;
    Program::start(m.up("3"), b"")?.end_within(UP)?.ok()?;
    fs::copy(&program, m.state().join("share/verbs"))?;
    for what in ["test", "measure"] {
        let args = ["run", "--timeout", "230", "--", "/share/verbs", what, "10.77.0.1"];
        let out = Program::start(m.command(&args), b"")?.end_within(LONG)?.ok().context(what)?;
        println!("{:6.1} s  verbs {what}\n{}", out.took.as_secs_f32(), out.text());
    }
    let at = |k: u8| format!("10.77.0.{k}:7000");
    let start = |k: u8| {
        let (node, slot) = (k.to_string(), (k - 1).to_string());
        let (a, b, c) = (at(1), at(2), at(3));
        let run = ["run", "--node", &node, "--", "/share/verbs", "node", &slot, &a, &b, &c];
        Lines::start(m.command(&run))
    };
    let ends = [start(1)?, start(2)?, start(3)?];
    for end in &ends {
        end.wait_for("beats", ALIVE)?;
    }
    m.ok(&["kill", "3"])?;
    for end in &ends[..2] {
        end.wait_for("node 2 is broken", NOTICED)?;
    }
    m.ok(&["cut", "2"])?;
    ends[0].wait_for("node 1 is broken", NOTICED)?;
    ends[1].wait_for("node 0 is broken", NOTICED)?;
    drop(ends);
    m.ok(&["down"])?;
    ensure!(m.processes()?.is_empty(), "{:?}", m.processes()?);
    Ok(())
}
