//! `cargo xtask bench cache --vm`: the cluster-cache over RDMA verbs, one node in each of three machines with
//! soft-RoCE, beside the verbs that each operation needs there.

use crate::setup;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The agent's bound for the program in a machine, s.
const BOUND: &str = "280";

/// Machines in a folder of their own, which end with this.
struct Machines {
    program: PathBuf,
    state: PathBuf,
}

impl Machines {
    fn vm(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("vm").args(args);
        command.env("CLUSTIX_VM_STATE", &self.state).env("CLUSTIX_VM_CACHE", setup::vm_cache());
        command
    }

    fn up(&self, clustix: &Path) -> Result<()> {
        let clustix = clustix.to_str().context("path")?;
        let up = ["up", "--nodes", "3", "--bare", "--program", clustix];
        ensure!(self.vm(&up).status()?.success(), "the machines do not start");
        Ok(())
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        // Whatever failed before is the reason to be told.
        let _ = self.vm(&["down"]).stdout(Stdio::null()).status();
        let _ = std::fs::remove_dir_all(&self.state);
    }
}

/// Measures and prints.
pub fn run() -> Result<()> {
    setup::packages()?;
    setup::vm_packages()?;
    let (clustix, example) = (setup::build()?, setup::build_verbs_example()?);
    // Sockets stand in it: a short path.
    let state = std::env::temp_dir().join(format!("clb{}", std::process::id()));
    let machines = Machines { program: setup::build_soft_roce()?, state };
    machines.up(&clustix)?;
    std::fs::copy(&example, machines.state.join("share/verbs"))?;
    let mut nodes = Vec::new();
    for k in 1..=3 {
        let (node, slot) = (k.to_string(), (k - 1).to_string());
        let run = ["run", "--node", &node, "--timeout", BOUND, "--", "/share/verbs", "cost", &slot];
        let mut command = machines.vm(&run);
        command.args((1..=3).map(|k| format!("10.77.0.{k}:7000")));
        if k > 1 {
            command.stdout(Stdio::null());
        }
        nodes.push(command.stdin(Stdio::null()).spawn()?);
    }
    let mut well = true;
    for node in &mut nodes {
        well &= node.wait()?.success();
    }
    ensure!(well, "a node failed");
    Ok(())
}
