//! Machines with soft-RoCE, driven through `soft-roce-setup vm`.

use crate::program::{clustix, clustix_verbs, soft_roce_setup};
use crate::{Output, Program};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Emulated machines share two cores with whatever else runs; the first `up` also makes the image.
pub const UP: Duration = Duration::from_secs(600);
/// A connection that is well shows several lines in that time, also on a loaded machine.
const SILENCE: Duration = Duration::from_secs(5);
/// A connection that was held up goes on within this: rxe's retries are seconds apart at most.
pub const ALIVE: Duration = Duration::from_secs(60);

/// Machines in a state folder of their own. They end with this.
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
    /// The programs cannot be built.
    pub fn new(cluster: bool) -> Result<Machines> {
        let place = tempfile::Builder::new().prefix("clv").tempdir_in("/tmp")?;
        let clustix = if cluster { clustix_verbs()? } else { clustix()? };
        let clustix = clustix.display().to_string();
        Ok(Machines { program: soft_roce_setup()?, clustix, cluster, place })
    }

    /// Their state folder.
    pub fn state(&self) -> PathBuf {
        self.place.path().join("vm")
    }

    /// `vm` with these arguments.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("vm").args(args).env("CLUSTIX_VM_STATE", self.state());
        command
    }

    /// `vm up`.
    pub fn up(&self, nodes: &str) -> Command {
        let mut up = self.command(&["up", "--nodes", nodes, "--program", &self.clustix]);
        if !self.cluster {
            up.arg("--bare");
        }
        up
    }

    /// Runs `vm` to its end.
    ///
    /// # Errors
    /// It does not end.
    pub fn run(&self, args: &[&str]) -> Result<Output> {
        Program::start(self.command(args), b"")?.end()
    }

    /// What `vm` prints, which must succeed.
    ///
    /// # Errors
    /// It does not.
    pub fn ok(&self, args: &[&str]) -> Result<String> {
        let out = self.run(args)?.ok().with_context(|| args.join(" "))?;
        println!("{:6.1} s  vm {}", out.took.as_secs_f32(), args.join(" "));
        Ok(out.text())
    }

    /// Command lines that name the state folder.
    ///
    /// # Errors
    /// /proc cannot be read.
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
pub struct Lines {
    /// The command.
    pub child: Child,
    lines: Receiver<String>,
}

impl Lines {
    /// Starts it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(mut command: Command) -> Result<Lines> {
        Lines::of(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?)
    }

    /// Of a child whose standard output is a pipe.
    ///
    /// # Errors
    /// It is not, or somebody has taken it.
    pub fn of(mut child: Child) -> Result<Lines> {
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

    /// Waits for a line that contains `part`, and answers it.
    ///
    /// # Errors
    /// The program ends, or the time is up, first; says what it printed meanwhile.
    pub fn wait_for(&self, part: &str, within: Duration) -> Result<String> {
        let until = Instant::now() + within;
        let mut seen = Vec::new();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self
                .next(left)
                .with_context(|| format!("no {part:?} in {seen:?}"))?
                .with_context(|| format!("no {part:?} in time, but {seen:?}"))?;
            println!("         {line}");
            if line.contains(part) {
                return Ok(line);
            }
            seen.push(line);
        }
    }

    /// Waits for a silence: what was under way comes, then nothing.
    ///
    /// # Errors
    /// There is none.
    pub fn silent(&self) -> Result<()> {
        let until = Instant::now() + ALIVE;
        while self.next(SILENCE)?.is_some() {
            ensure!(Instant::now() < until, "it does not fall silent");
        }
        Ok(())
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
