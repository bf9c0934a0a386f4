//! Starting node processes and waiting until they serve.

use crate::connection::{Connection, PATIENCE};
use crate::interrupt::Interrupts;
use crate::procfs::{self, Process, timespec};
use crate::state::{self, Folder, WITNESS, called};
use crate::wire::{self, Reply, Request};
use anyhow::{Context, Result, anyhow, bail};
use clustix_ccache::name::Name;
use clustix_ccache::set;
use rustix::event::{PollFd, PollFlags, poll};
use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// What a node writes to its standard output once its sockets are there.
pub const READY: &[u8] = b"ready\n";

/// Status of a node on one host that the others have evicted: EX_TEMPFAIL of sysexits.h.
pub const EVICTED: u8 = 75;

/// The others have evicted a node while it started: it stood still for longer than they wait.
#[derive(Debug, thiserror::Error)]
#[error(
    "it was evicted while it started: this machine did not run it for longer than a lease{log}"
)]
pub struct Evicted {
    log: String,
}

/// Node processes started by this command. Dropped without [`Nodes::keep`], they are killed and
/// their folders removed.
pub struct Nodes<'a> {
    folder: &'a Folder,
    started: Vec<Started>,
    kept: bool,
}

struct Started {
    slot: u8,
    child: Child,
    process: Process,
    ready: ChildStdout,
    connection: Option<Connection>,
    serving: bool,
}

/// The command was interrupted by this signal.
#[derive(Debug, thiserror::Error)]
#[error("interrupted by signal {0}; everything that was started is stopped again")]
pub struct Interrupted(pub i32);

impl<'a> Nodes<'a> {
    /// None yet.
    pub fn new(folder: &'a Folder) -> Nodes<'a> {
        Nodes { folder, started: Vec::new(), kept: false }
    }

    /// Starts the kernel process of node `slot`, or the witness.
    ///
    /// # Errors
    /// Its folder or process cannot be made.
    pub fn start(&mut self, slot: u8, incarnation: u64) -> Result<()> {
        let folder = self.folder.node(slot);
        self.folder.remove_node(slot)?;
        std::fs::create_dir(&folder)
            .with_context(|| format!("could not make {}", folder.display()))?;
        let pid = state::pid_file(&folder)?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(folder.join("log"))
            .with_context(|| format!("could not make the log of {}", called(slot)))?;
        let program = std::env::current_exe().context("could not find the clustix program")?;
        let mut child = Command::new(&program)
            .arg("node")
            .arg("--name")
            .arg(self.folder.name())
            .arg("--state")
            .arg(self.folder.path())
            .args(["--slot", &slot.to_string(), "--incarnation", &incarnation.to_string()])
            .env_clear()
            .current_dir("/")
            .stdin(pid)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("could not start {}", program.display()))?;
        // It is this command's child: its number cannot be reused before it is waited for.
        let process = procfs::stat(child.id()).and_then(|s| Process::open(s.pid, s.start));
        let ready = child.stdout.take();
        match (process, ready) {
            (Some(process), Some(ready)) => {
                let connection = None;
                self.started.push(Started {
                    slot,
                    child,
                    process,
                    ready,
                    connection,
                    serving: false,
                });
                Ok(())
            }
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                bail!("could not watch the process of {}: is /proc mounted?", called(slot))
            }
        }
    }

    /// Waits until every node started serves and sees `nodes` live nodes and that incarnation of a witness;
    /// of a witness, until it is there.
    ///
    /// # Errors
    /// A node ended or refused; a signal; the time is up.
    pub fn serve(
        &mut self,
        nodes: u8,
        witness: Option<u64>,
        bound: Duration,
        interrupts: &Interrupts,
    ) -> Result<()> {
        let until = Instant::now() + bound;
        while self.started.iter().any(|s| !s.serving) {
            if let Some(signal) = interrupts.caught() {
                return Err(anyhow!(Interrupted(signal)));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let late: Vec<String> =
                    self.started.iter().filter(|s| !s.serving).map(|s| called(s.slot)).collect();
                let logs: Vec<String> = self.started.iter().map(|s| self.tail(s.slot)).collect();
                bail!(
                    "after {} s these do not serve: {}{}",
                    bound.as_secs(),
                    late.join(", "),
                    logs.concat()
                );
            }
            self.poll(left, interrupts)?;
            for i in 0..self.started.len() {
                self.step(i, nodes, witness, left)?;
            }
        }
        Ok(())
    }

    /// Sleeps until a signal, a node's end, or something from a node that is not serving yet.
    fn poll(&self, left: Duration, interrupts: &Interrupts) -> Result<()> {
        let mut fds = vec![PollFd::from_borrowed_fd(interrupts.fd(), PollFlags::IN)];
        for s in &self.started {
            fds.push(PollFd::new(s.process.fd(), PollFlags::IN));
            match &s.connection {
                Some(_) if s.serving => {}
                Some(c) => fds.push(PollFd::new(&c.stream, PollFlags::IN)),
                None => fds.push(PollFd::new(&s.ready, PollFlags::IN)),
            }
        }
        match poll(&mut fds, Some(&timespec(left))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn step(&mut self, i: usize, nodes: u8, witness: Option<u64>, left: Duration) -> Result<()> {
        let s = &mut self.started[i];
        if let Some(status) = s.child.try_wait()? {
            let slot = s.slot;
            if status.code() == Some(EVICTED.into()) {
                return Err(anyhow!(Evicted { log: self.tail(slot) }));
            }
            bail!("{} ended while it started ({status}){}", called(slot), self.tail(slot));
        }
        if s.serving {
            return Ok(());
        }
        if let Some(c) = &mut s.connection {
            if readable(&c.stream)? {
                match c.next(None) {
                    Ok(None) => s.serving = true,
                    Ok(Some(_)) => bail!("node {} gave an unexpected answer", s.slot),
                    // Its control PD was restarted before it answered: ask again.
                    Err(e) if e.downcast_ref::<wire::Failure>().is_none() => s.connection = None,
                    Err(e) => {
                        return Err(e.context(format!(
                            "node {} does not serve{}",
                            s.slot,
                            tail(self.folder, s.slot)
                        )));
                    }
                }
            }
            if s.connection.is_some() {
                return Ok(());
            }
        } else {
            if !readable(&s.ready)? {
                return Ok(());
            }
            let mut text = [0; READY.len()];
            if s.ready.read_exact(&mut text).is_err() || text != READY {
                // It closed its end: it is about to end, which its pidfd tells with a status.
                s.process.wait(Duration::from_secs(5));
                let status =
                    s.child.try_wait()?.map_or("closed its output".to_owned(), |s| s.to_string());
                let slot = s.slot;
                bail!("{} could not start ({status}){}", called(slot), self.tail(slot));
            }
            if s.slot == WITNESS {
                s.serving = true;
                return Ok(());
            }
        }
        let millis = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        let request = Request::AwaitServing { nodes, witness, millis };
        match Connection::open(self.folder, s.slot, request) {
            Ok(connection) => s.connection = Some(connection),
            // Refused by a node that is about to end: its status and log say more.
            Err(_) if s.process.wait(Duration::from_secs(1)) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn tail(&self, slot: u8) -> String {
        tail(self.folder, slot)
    }

    /// Leaves the nodes running.
    pub fn keep(mut self) {
        self.kept = true;
    }

    /// A connection to the first node started.
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub fn ask(&self, request: Request) -> Result<Connection> {
        let first = self.started.first().context("no node was started")?;
        Connection::open(self.folder, first.slot, request)
    }
}

impl Drop for Nodes<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for s in &mut self.started {
            if let Err(e) = procfs::kill_tree(&s.process) {
                eprintln!("clustix: {}: {e}", called(s.slot));
                continue;
            }
            let _ = s.child.wait();
            if let Err(e) = self.folder.remove_node(s.slot) {
                eprintln!("clustix: {e:#}");
            }
        }
    }
}

fn readable(fd: &impl rustix::fd::AsFd) -> Result<bool> {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    match poll(&mut fds, Some(&timespec(Duration::ZERO))) {
        Ok(n) => Ok(n > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// The last lines of a node's log, for a message.
pub fn tail(folder: &Folder, slot: u8) -> String {
    let text = std::fs::read(folder.node(slot).join("log")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(8)..];
    if last.is_empty() {
        return "; it logged nothing".to_owned();
    }
    let line = format!("\n  {}: ", called(slot));
    format!("; its log ends:{line}{}", last.join(&line))
}

/// Puts a snapshot's objects into the cluster, a chunk at a time.
///
/// # Errors
/// The snapshot is refused; the cluster has no room; a signal.
pub fn restore(nodes: &Nodes<'_>, path: &std::path::Path, interrupts: &Interrupts) -> Result<u64> {
    let Some(mut reader) = crate::snapshot::Reader::open(path)? else { return Ok(0) };
    let mut connection = nodes.ask(Request::Restore)?;
    let (mut chunk, mut bytes, mut count) = (Vec::new(), 0, 0);
    let mut kept = HashSet::new();
    loop {
        if let Some(signal) = interrupts.caught() {
            return Err(anyhow!(Interrupted(signal)));
        }
        let object = reader.next_object()?;
        let size = object.as_ref().map_or(0, |o| o.data.len() + 32);
        if !chunk.is_empty() && (object.is_none() || bytes + size > wire::CHUNK) {
            send(&mut connection, &wire::Restored::Objects(std::mem::take(&mut chunk)))?;
            bytes = 0;
        }
        let Some(object) = object else { break };
        bytes += size;
        count += 1;
        kept.insert(object.name);
        chunk.push((object.name, object.data));
    }
    // What the new cluster made by itself before (its own /dev, say) would be left without a name.
    for started in nodes.started.iter().filter(|s| s.slot != WITNESS) {
        let mut list =
            Connection::open(nodes.folder, started.slot, Request::Objects { set: None })?;
        while let Some(reply) = list.next(Some(PATIENCE))? {
            let Reply::Objects(page) = reply else {
                bail!("node {} gave an unexpected answer", started.slot)
            };
            let outlives =
                |o: &wire::Object| set::descriptor(o.name.set()).is_some_and(|d| d.snapshot);
            let names: Vec<Name> = page
                .into_iter()
                .filter(|o| outlives(o) && !kept.contains(&o.name))
                .map(|o| o.name)
                .collect();
            if !names.is_empty() {
                send(&mut connection, &wire::Restored::Remove(names))?;
            }
        }
    }
    send(&mut connection, &wire::Restored::End)?;
    match connection.next(Some(Duration::from_secs(120)))? {
        None => Ok(count),
        Some(Reply::Failed(f)) => Err(anyhow!(f)),
        Some(_) => bail!("node {} gave an unexpected answer", connection.node),
    }
}

/// Sends; where that fails, the other side's reason if it gave one.
///
/// # Errors
/// The reason, or that the node went away.
pub fn send<T: serde::Serialize>(connection: &mut Connection, message: &T) -> Result<()> {
    let Err(e) = connection.send(message) else { return Ok(()) };
    match connection.next(Some(Duration::from_secs(1))) {
        Err(reason) => Err(reason),
        Ok(_) => Err(e),
    }
}
