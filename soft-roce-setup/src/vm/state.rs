//! The state folder: what was asked for, who may change it, and which processes belong to it.
//!
//! Whoever starts or stops machines holds flock(2) on the folder. A process belongs to the folder if one of its
//! arguments is a pid file in it: that is true from its first instruction to its last, so whatever a killed `up`
//! started is found, whether or not it got so far as to write anything. (A child inherits the lock until
//! it becomes another program, so none is missed by looking once the lock is held.)

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest path of a state folder: names of Unix sockets below it must fit into 108 bytes.
const LONGEST: usize = 72;

/// How long a killed process may take to be gone.
const END: Duration = Duration::from_secs(10);

/// What `up` was asked for and what was done to the network since.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Machines {
    /// How many.
    pub nodes: u8,
    /// Memory of each, MiB.
    pub memory: u32,
    /// QEMU's accelerator.
    pub accel: String,
    /// Whether there is a cluster in them.
    pub cluster: bool,
    /// Whether all of them came up; false is what a killed `up` leaves.
    pub up: bool,
    /// Nodes that are cut off, and the segment (VLAN of the switch) that each is in.
    pub cut: BTreeMap<u8, u16>,
}

/// A state folder, which need not exist.
#[derive(Clone, Debug)]
pub struct State {
    path: PathBuf,
}

/// Held by whoever changes something.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "closing it releases the lock")] File);

/// What a process is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The switch.
    Switch,
    /// A node's QEMU.
    Node(u8),
}

/// A process of the state folder's.
#[derive(Debug)]
pub struct Process {
    /// What it is for.
    pub role: Role,
    /// Its id.
    pub pid: u32,
    handle: OwnedFd,
}

impl Process {
    /// Sends it a signal; one that has ended is none.
    ///
    /// # Errors
    /// It is another user's.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match pidfd_send_signal(&self.handle, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(e) => Err(e).with_context(|| format!("cannot signal process {}", self.pid)),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It took more than ten seconds.
    pub fn wait(&self) -> Result<()> {
        let deadline = Instant::now() + END;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).context("no such time")?;
            match poll(&mut [PollFd::new(&self.handle, PollFlags::IN)], Some(&left)) {
                Err(Errno::INTR) => {}
                Err(e) => return Err(e).context("cannot wait for a process"),
                Ok(0) => bail!("process {} does not end", self.pid),
                Ok(_) => return Ok(()),
            }
        }
    }

    /// Whether it is stopped (SIGSTOP).
    pub fn stopped(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|s| s.starts_with('T'))
    }
}

impl State {
    /// The folder `path`, made absolute.
    ///
    /// # Errors
    /// The path is too long.
    pub fn new(path: &Path) -> Result<State> {
        let path = std::path::absolute(path)?;
        // What processes were started with is compared byte by byte.
        let path = fs::canonicalize(&path).unwrap_or(path);
        ensure!(
            path.as_os_str().len() <= LONGEST,
            "{}: a state folder's path may have {LONGEST} bytes, for the sake of its sockets; set CLUSTIX_VM_STATE",
            path.display()
        );
        Ok(State { path })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that all machines share, `/share` there.
    pub fn share(&self) -> PathBuf {
        self.path.join("share")
    }

    /// The switch's folder.
    pub fn switch(&self) -> PathBuf {
        self.path.join("switch")
    }

    /// A node's folder: console, QEMU's log, sockets.
    pub fn node(&self, k: u8) -> PathBuf {
        self.path.join(format!("node{k}"))
    }

    /// Makes the folder if need be, and takes its lock.
    ///
    /// # Errors
    /// Another command has it.
    pub fn lock(&self) -> Result<Lock> {
        loop {
            fs::create_dir_all(&self.path)
                .with_context(|| format!("cannot make {}", self.path.display()))?;
            let Ok(file) = File::open(&self.path) else { continue };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    bail!("another command is changing the machines of {}", self.path.display())
                }
                Err(e) => return Err(e).context(format!("cannot lock {}", self.path.display())),
            }
            // A `down` that ended just now has removed the folder that was locked here.
            let here = fs::metadata(&self.path).map(|m| m.ino()).ok();
            if here == file.metadata().map(|m| m.ino()).ok() {
                return Ok(Lock(file));
            }
        }
    }

    /// What was asked for; `None` if there are no machines.
    ///
    /// # Errors
    /// The record cannot be read.
    pub fn machines(&self) -> Result<Option<Machines>> {
        let path = self.path.join("vms.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .with_context(|| format!("{} is damaged; vm down removes it", path.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// What was asked for, once all came up.
    ///
    /// # Errors
    /// There are no machines, or their `up` did not end well.
    pub fn running(&self) -> Result<Machines> {
        match self.machines()? {
            Some(m) if m.up => Ok(m),
            Some(_) => bail!(
                "the machines are not up yet, or their start was interrupted (vm up starts anew)"
            ),
            None => bail!("there are no machines in {}; start some: vm up", self.path.display()),
        }
    }

    /// Like [`running`](Self::running), for node `k`.
    ///
    /// # Errors
    /// Also if there is no such node.
    pub fn running_node(&self, k: u8) -> Result<Machines> {
        let m = self.running()?;
        ensure!((1..=m.nodes).contains(&k), "there is no node {k}; there are 1 to {}", m.nodes);
        Ok(m)
    }

    /// Writes the record, whole or not at all.
    ///
    /// # Errors
    /// The disk is full, or the folder gone.
    pub fn record(&self, machines: &Machines) -> Result<()> {
        let (part, path) = (self.path.join("vms.json.part"), self.path.join("vms.json"));
        fs::write(&part, serde_json::to_vec_pretty(machines)?)
            .and_then(|()| fs::rename(&part, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The switch's or a node's pid file: what its processes are known by.
    pub fn pid_file(&self, role: Role) -> PathBuf {
        match role {
            Role::Switch => self.switch().join("pid"),
            Role::Node(k) => self.node(k).join("pid"),
        }
    }

    fn role(&self, pid: u32) -> Option<Role> {
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let mut words = command.split(|b| *b == 0);
        let program = String::from_utf8_lossy(words.next()?).into_owned();
        let roles: Vec<Role> = if program.ends_with("vde_switch") {
            vec![Role::Switch]
        } else if program.contains("qemu-system-") {
            (1..=super::MOST_NODES).map(Role::Node).collect()
        } else {
            return None;
        };
        let words: Vec<&[u8]> = words.collect();
        roles
            .into_iter()
            .find(|r| words.contains(&self.pid_file(*r).as_os_str().as_encoded_bytes()))
    }

    /// The folder's processes that live.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn processes(&self) -> Result<Vec<Process>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").context("cannot read /proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
                continue;
            };
            if self.role(pid).is_none() {
                continue;
            }
            let Some(id) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
            let Ok(handle) = pidfd_open(id, PidfdFlags::empty()) else { continue };
            // Once more: the handle is of whoever has this id now.
            if let Some(role) = self.role(pid) {
                found.push(Process { role, pid, handle });
            }
        }
        Ok(found)
    }

    /// Node `k`'s QEMU, if it lives.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn qemu(&self, k: u8) -> Result<Option<Process>> {
        Ok(self.processes()?.into_iter().find(|p| p.role == Role::Node(k)))
    }

    /// Kills the processes that `which` picks, and whatever they started meanwhile, and waits for their ends.
    ///
    /// # Errors
    /// One does not end.
    pub fn kill(&self, which: impl Fn(Role) -> bool) -> Result<usize> {
        let mut killed = 0;
        loop {
            let mut found = self.processes()?;
            found.retain(|p| which(p.role));
            if found.is_empty() {
                return Ok(killed);
            }
            for p in &found {
                p.signal(Signal::KILL)?;
            }
            for p in &found {
                p.wait()?;
                killed += 1;
            }
        }
    }

    /// Kills all processes and removes what is in the folder; answers how many processes there were.
    ///
    /// # Errors
    /// A process does not end, or a file cannot be removed.
    pub fn empty(&self, _held: &Lock) -> Result<usize> {
        let killed = self.kill(|_| true)?;
        for entry in fs::read_dir(&self.path)?.flatten() {
            let path = entry.path();
            let done = match entry.file_type() {
                Ok(t) if t.is_dir() => fs::remove_dir_all(&path),
                _ => fs::remove_file(&path),
            };
            done.with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(killed)
    }

    /// Empties the folder and removes it.
    ///
    /// # Errors
    /// As [`empty`](Self::empty).
    pub fn clear(&self, held: &Lock) -> Result<usize> {
        let killed = self.empty(held)?;
        fs::remove_dir(&self.path)
            .with_context(|| format!("cannot remove {}", self.path.display()))?;
        Ok(killed)
    }
}
