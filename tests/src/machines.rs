//! Machines with soft-RoCE of a test's own, driven through `soft-roce-setup vm`.

use crate::program::{clustix, clustix_verbs, soft_roce_setup};
use crate::{Output, Program};
use anyhow::{Context, Result};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;
use tempfile::TempDir;

/// A state folder and the machines in it, ended when it is dropped.
#[derive(Debug)]
pub struct Machines {
    program: PathBuf,
    clustix: String,
    cluster: bool,
    place: TempDir,
}

impl Machines {
    /// None yet; `cluster`: with a cluster in them.
    ///
    /// # Errors
    /// No folder or no program can be made.
    pub fn new(cluster: bool) -> Result<Machines> {
        let place = tempfile::Builder::new().prefix("clv").tempdir_in("/tmp")?;
        let clustix = if cluster { clustix_verbs()? } else { clustix()? };
        let clustix = clustix.display().to_string();
        Ok(Machines { program: soft_roce_setup()?, clustix, cluster, place })
    }

    /// The state folder; `share` in it is /share in the machines.
    pub fn state(&self) -> PathBuf {
        self.place.path().join("vm")
    }

    /// The command `vm ARGS`.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("vm").args(args).env("CLUSTIX_VM_STATE", self.state());
        command
    }

    /// The command that starts them.
    pub fn up(&self, nodes: &str) -> Command {
        let mut up = self.command(&["up", "--nodes", nodes, "--program", &self.clustix]);
        if !self.cluster {
            up.arg("--bare");
        }
        up
    }

    /// Runs `vm ARGS` to its end.
    ///
    /// # Errors
    /// It cannot be run, or does not end.
    pub fn run(&self, args: &[&str]) -> Result<Output> {
        Program::start(self.command(args), b"")?.end()
    }

    /// As [`Machines::run`]; what it printed. Says how long it took.
    ///
    /// # Errors
    /// It fails.
    pub fn ok(&self, args: &[&str]) -> Result<String> {
        let out = self.run(args)?.ok().with_context(|| args.join(" "))?;
        println!("{:6.1} s  vm {}", out.took.as_secs_f32(), args.join(" "));
        Ok(out.text())
    }

    /// Command lines that name the state folder.
    ///
    /// # Errors
    /// Those of reading /proc.
    pub fn processes(&self) -> Result<Vec<String>> {
        let state = self.state().display().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&state) {
                found.push(line);
            }
        }
        Ok(found)
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        // Whatever failed before is the reason to be told.
        let _ = self.run(&["down"]);
    }
}

/// A command whose lines are looked at while it runs. Killed when dropped; the machine's agent then kills the program.
#[derive(Debug)]
pub struct Lines {
    /// The process.
    pub child: Child,
    lines: Receiver<String>,
}

impl Lines {
    /// Starts it.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn start(mut command: Command) -> Result<Lines> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let out = child.stdout.take().context("no standard output")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Lines { child, lines })
    }

    /// The next line, if one comes in time.
    ///
    /// # Errors
    /// The program has ended.
    pub fn next(&self, within: Duration) -> Result<Option<String>> {
        match self.lines.recv_timeout(within) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the program has ended"),
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
