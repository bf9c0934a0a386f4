//! How long a server's clients wait for it: a program in the cluster that calls it again and again
//! (`programs/gap.c`).

use crate::machines::Lines;
use crate::{Cluster, program};
use anyhow::{Context, Result};
use std::io::Write;
use std::process::{ChildStdin, Stdio};
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(60);
const PROGRAM: &str = "/gap";

/// Servers whose clients can be programs.
pub const SERVERS: [&str; 3] = ["vfs", "process", "memory"];

/// Brings the program in.
///
/// # Errors
/// There is no gcc; the cluster refuses.
pub fn import(cluster: &Cluster) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let program = program::compiled(folder.path(), "gap")?;
    cluster.cli(["import", program.to_str().context("path")?, PROGRAM])?.ok().map(drop)
}

/// A client of a node's server.
pub struct Gap {
    input: ChildStdin,
    lines: Lines,
}

impl Gap {
    /// Starts it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(cluster: &Cluster, node: u8, server: &str) -> Result<Gap> {
        let (file, node) = (format!("/gap.{node}.{server}"), node.to_string());
        let mut child = cluster
            .command(["run", "--node", &node, "--", PROGRAM, server, &file])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        let input = child.stdin.take().context("a pipe")?;
        Ok(Gap { input, lines: Lines::of(child)? })
    }

    /// The longest call since this was asked before, once one more has been served.
    ///
    /// # Errors
    /// The program has ended, or was not served in time.
    pub fn longest(&mut self) -> Result<Duration> {
        self.input.write_all(b"?")?;
        let line = self.lines.next(BOUND)?.context("it is not served")?;
        let ns = line.split_once(' ').and_then(|(ns, _)| ns.parse().ok());
        Ok(Duration::from_nanos(ns.with_context(|| format!("not a time: {line:?}"))?))
    }
}

impl Drop for Gap {
    fn drop(&mut self) {
        // The program ends with its client.
        let _ = self.lines.child.kill();
        let _ = self.lines.child.wait();
    }
}
