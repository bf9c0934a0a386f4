//! A cluster of one's own, driven through the command line as a user would.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Ends what an interrupted run left: the cluster with its state in the folder `state`, if any.
pub fn end_left(program: &Path, state: &Path) -> Result<()> {
    if !state.join("default/cluster.json").exists() {
        return Ok(());
    }
    let status = Command::new(program)
        .args(["down", "--discard"])
        .env("CLUSTIX_STATE", state)
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {program:?}"))?;
    if !status.success() {
        bail!("a cluster of an interrupted run in {} does not end", state.display());
    }
    Ok(())
}

/// A running cluster; taken down, and its state folder removed, when dropped.
pub struct Cluster {
    program: PathBuf,
    state: PathBuf,
    up: bool,
}

impl Cluster {
    /// Starts `nodes` nodes with state in a fresh folder `state`.
    pub fn up(program: &Path, state: &Path, nodes: u8, more: &[&str]) -> Result<Cluster> {
        std::fs::create_dir_all(state)?;
        let mut cluster =
            Cluster { program: program.to_owned(), state: state.to_owned(), up: false };
        let n = nodes.to_string();
        let mut args = vec!["up", "--nodes", &n, "--fresh"];
        args.extend(more);
        cluster.up = true;
        cluster.ok(&args)?;
        Ok(cluster)
    }

    /// A `clustix` command line, with this cluster's state folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(&self.program);
        c.args(args).env("CLUSTIX_STATE", &self.state).stdin(Stdio::null());
        c
    }

    /// Runs a command line to its end.
    pub fn output(&self, args: &[&str]) -> Result<Output> {
        self.command(args).output().with_context(|| format!("cannot run {:?}", self.program))
    }

    /// Runs a command line that must succeed; its standard output.
    pub fn ok(&self, args: &[&str]) -> Result<Vec<u8>> {
        let out = self.output(args)?;
        if !out.status.success() {
            bail!(
                "clustix {} failed ({}): {}",
                args.join(" "),
                out.status,
                String::from_utf8_lossy(&out.stderr).trim()
            );
        }
        Ok(out.stdout)
    }

    /// Runs a program on a node; it must exit 0.
    pub fn run(&self, node: u8, command: &[&str]) -> Result<Vec<u8>> {
        let node = node.to_string();
        let mut args = vec!["run", "--node", &node, "--"];
        args.extend(command);
        self.ok(&args)
    }

    /// Repeats a command line until it succeeds: how long that took. Each failure is looked at only
    /// for the bound.
    pub fn until_ok(&self, args: &[&str], bound: Duration) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let out = self.output(args)?;
            if out.status.success() {
                return Ok(start.elapsed());
            }
            if start.elapsed() > bound {
                bail!(
                    "clustix {} still fails after {bound:?}: {}",
                    args.join(" "),
                    String::from_utf8_lossy(&out.stderr).trim()
                );
            }
        }
    }

    /// Prints what may say why something in it failed: the end of its logs, and what it counted as
    /// failed.
    pub fn tell(&self) {
        let lines = |args: &[&str]| -> Vec<String> {
            let out = self.output(args).map(|o| o.stdout).unwrap_or_default();
            String::from_utf8_lossy(&out).lines().map(str::to_owned).collect()
        };
        let logs = lines(&["logs"]);
        let counted = lines(&["metrics"]).into_iter().filter(|l| {
            ["failed", "enosys", "panics"].iter().any(|w| l.contains(w)) && !l.starts_with('#')
        });
        for line in logs.iter().skip(logs.len().saturating_sub(60)).cloned().chain(counted) {
            eprintln!("  {line}");
        }
    }

    /// Takes the cluster down, discarding its files.
    pub fn down(mut self) -> Result<()> {
        self.up = false;
        self.ok(&["down", "--discard"]).map(|_| ())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.up
            && let Err(e) = self.ok(&["down", "--discard"])
        {
            eprintln!("while cleaning up: {e:#}");
        }
    }
}
