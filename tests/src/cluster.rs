//! A cluster of a test's own, in a state folder of its own.

use crate::program::{Output, Program, clustix};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A state folder and the clusters in it. Dropped, it is brought down without a snapshot.
#[derive(Debug)]
pub struct Cluster {
    state: TempDir,
    program: PathBuf,
}

impl Cluster {
    /// A state folder without a cluster.
    ///
    /// # Errors
    /// No folder or no program can be made.
    pub fn new() -> Result<Cluster> {
        Cluster::of(clustix()?)
    }

    /// As [`Cluster::new`], of another build of the program.
    ///
    /// # Errors
    /// No folder can be made.
    pub fn of(program: PathBuf) -> Result<Cluster> {
        // Short: Unix sockets' paths are.
        let state = tempfile::Builder::new().prefix("clx").tempdir_in("/tmp")?;
        Ok(Cluster { state, program })
    }

    /// A cluster of `nodes` nodes that serves, with busybox and its names in /bin.
    ///
    /// # Errors
    /// It does not come up; there is no busybox on this machine.
    pub fn up(nodes: u8) -> Result<Cluster> {
        let cluster = Cluster::new()?;
        cluster.cli(["up", "--nodes", &nodes.to_string()])?.ok().context("clustix up")?;
        cluster.install_busybox()?;
        Ok(cluster)
    }

    /// Where its state is.
    pub fn state(&self) -> &Path {
        self.state.path()
    }

    /// The command `clustix ARGS`.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).env("CLUSTIX_STATE", self.state.path());
        command
    }

    /// Runs `clustix ARGS` to its end.
    ///
    /// # Errors
    /// It cannot be run, or does not end.
    pub fn cli<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Output> {
        Program::start(self.command(args), b"")?.end()
    }

    /// Runs a shell script in the cluster, on `node` or any.
    ///
    /// # Errors
    /// As [`Cluster::cli`].
    pub fn sh(&self, node: Option<u8>, script: &str) -> Result<Output> {
        self.sh_with(node, script, b"")
    }

    /// As [`Cluster::sh`], with a standard input.
    ///
    /// # Errors
    /// As [`Cluster::cli`].
    pub fn sh_with(&self, node: Option<u8>, script: &str, input: &[u8]) -> Result<Output> {
        Program::start(self.sh_command(node, script), input)?.end()
    }

    /// The command that runs a shell script in the cluster.
    pub fn sh_command(&self, node: Option<u8>, script: &str) -> Command {
        let mut args = vec!["run".to_owned()];
        if let Some(node) = node {
            args.extend(["--node".to_owned(), node.to_string()]);
        }
        args.extend(["--", "sh", "-c", script].map(str::to_owned));
        self.command(args)
    }

    /// What `clustix ARGS --json` prints.
    ///
    /// # Errors
    /// It fails, or prints no JSON.
    pub fn json<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Value> {
        let mut command = self.command(args);
        command.arg("--json");
        let out = Program::start(command, b"")?.end()?;
        serde_json::from_slice(&out.out)
            .with_context(|| format!("no JSON: {}{}", out.text(), out.errors()))
    }

    /// Brings busybox in, with a symbolic link for each of its names.
    ///
    /// # Errors
    /// There is no static busybox on this machine; the import fails.
    pub fn install_busybox(&self) -> Result<()> {
        let tree = busybox_tree()?;
        self.cli([OsStr::new("import"), tree.path().join("bin").as_os_str(), OsStr::new("/bin")])?
            .ok()
            .context("clustix import")?;
        Ok(())
    }

    /// Waits until any node can be lost: asks again and again, at most `bound`.
    ///
    /// # Errors
    /// The time is up.
    pub fn settled(&self, bound: Duration) -> Result<Duration> {
        let begin = Instant::now();
        loop {
            let out = self.cli(["status"])?;
            match out.status {
                0 => return Ok(begin.elapsed()),
                3 if begin.elapsed() < bound => {}
                _ => bail!(
                    "no node can be lost after {} s: {}{}",
                    bound.as_secs(),
                    out.text(),
                    out.errors()
                ),
            }
        }
    }

    /// Waits until all nodes are up and any can be lost. A node that was suspected though it lived (this
    /// machine may be busy with other things) has left the cluster: it is started again and counted.
    ///
    /// # Errors
    /// They are not after 90 s.
    pub fn whole(&self, evicted: &mut u64) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(90);
        loop {
            // One may go while it is asked.
            let nodes = match self.json(["nodes"]) {
                Err(_) if Instant::now() < until => continue,
                nodes => nodes?,
            };
            let mut started = false;
            for node in nodes.as_array().into_iter().flatten().filter(|n| n["state"] == "down") {
                *evicted += 1;
                self.cli(["start-node", &node["node"].to_string()])?.ok()?;
                started = true;
            }
            let status = self.cli(["status"])?;
            if !started && status.status == 0 {
                return Ok(());
            }
            if Instant::now() > until {
                let logs = self.cli(["logs"])?.text();
                let last: Vec<&str> = logs.lines().rev().take(60).collect();
                bail!(
                    "the cluster does not become whole: {nodes}; {}{}; logs, latest first:\n{}",
                    status.text(),
                    status.errors(),
                    last.join("\n")
                );
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let Ok(names) = fs::read_dir(self.state.path()) else { return };
        for name in names.flatten() {
            let mut command = self.command(["down", "--discard", "--name"]);
            command.arg(name.file_name());
            let down = Program::start(command, b"").and_then(Program::end);
            if std::thread::panicking()
                && let Ok(out) = down
                && out.status != 0
            {
                eprintln!("clustix down: {}{}", out.text(), out.errors());
            }
        }
    }
}

/// The machine's busybox, which must be static.
///
/// # Errors
/// There is none.
pub fn busybox() -> Result<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .map(PathBuf::from)
        .find(|p| p.exists())
        .context("there is no /bin/busybox; install busybox-static (`cargo xtask test` does)")
}

/// A folder with `bin/busybox` and a symbolic link in `bin` for each of its names.
///
/// # Errors
/// There is no busybox; the folder cannot be made.
pub fn busybox_tree() -> Result<TempDir> {
    let program = busybox()?;
    let tree = tempfile::tempdir()?;
    let bin = tree.path().join("bin");
    fs::create_dir(&bin)?;
    fs::copy(&program, bin.join("busybox"))?;
    let list = Command::new(&program).arg("--list").output().context("busybox --list")?;
    for name in String::from_utf8_lossy(&list.stdout).split_ascii_whitespace() {
        if name != "busybox" {
            symlink("busybox", bin.join(name))?;
        }
    }
    Ok(tree)
}
