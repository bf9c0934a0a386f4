//! The state folder: what the command line keeps about a cluster between two commands.
//!
//! `<base>/<cluster>/` (0700) holds `cluster.json`, `snapshot` (after `down`), and, while the
//! cluster is up, `node-K/{pid,log,control.sock,fabric.sock,member.sock}` and, where there is a witness,
//! `witness/{pid,log,member.sock}`.
//!
//! Who holds what: a command that starts or stops nodes holds flock(2) on the folder itself. A
//! node's kernel process holds flock on its `pid` file from its first instruction to its last
//! (inherited as descriptor 0, then moved away): whoever can lock that file knows that the node is gone,
//! even if the `up` that started it was killed half-way.

use crate::hosts::Hosts;
use crate::procfs::Process;
use anyhow::{Context, Result, anyhow, bail};
use clustix_member::address::folder;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// Longest path of a Unix socket, its final NUL excluded (unix(7)).
const SOCKET_PATH: usize = 107;
pub use clustix_member::WITNESS;

/// Most nodes of a cluster.
pub const MAX_NODES: u8 = 16;

/// Where in its life a cluster is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// `up` is under way, or was killed.
    Starting,
    /// It serves.
    Running,
    /// `down` is under way, or was killed; what is kept is not complete yet.
    Stopping,
    /// What `down` keeps is complete: only nodes are left to end.
    Ending,
    /// No node runs.
    Stopped,
}

/// `cluster.json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cluster {
    /// Version of this file.
    pub format: u32,
    /// The cluster's name.
    pub name: String,
    /// Nodes it was made with.
    pub nodes: u8,
    /// Memory budget of each node, bytes.
    pub memory: u64,
    /// Where in its life it is.
    pub phase: Phase,
    /// Starts of this cluster by `up`, ever.
    pub generation: u64,
    /// Next incarnation of any node: counts all starts of all nodes, so none is ever used twice.
    pub next_incarnation: u64,
    /// Incarnation of each node's latest start.
    pub incarnations: Vec<u64>,
    /// Incarnation of the witness's latest start, where there is to be one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witness: Option<u64>,
    /// In a cluster of several hosts: which, and which node is here, or that the witness is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<(Hosts, u8)>,
}

/// Version of `cluster.json`.
const FORMAT: u32 = 1;

impl Cluster {
    /// A cluster that was never up.
    pub fn new(name: &str) -> Cluster {
        Cluster {
            format: FORMAT,
            name: name.to_owned(),
            nodes: 0,
            memory: 0,
            phase: Phase::Stopped,
            generation: 0,
            next_incarnation: 1,
            incarnations: Vec::new(),
            witness: None,
            hosts: None,
        }
    }

    /// The numbers of its nodes.
    pub fn slots(&self) -> Vec<u8> {
        match &self.hosts {
            Some((hosts, _)) => hosts.node.iter().map(|n| n.slot).collect(),
            None => (0..self.nodes).collect(),
        }
    }

    /// Checks that there is a node `slot`, or a place for the witness, and that it is on this machine.
    ///
    /// # Errors
    /// It is not; says which there are, or where it is.
    pub fn check_here(&self, slot: u8) -> Result<()> {
        match &self.hosts {
            Some((hosts, here)) => {
                let address = hosts.address(slot)?;
                if slot != *here {
                    bail!("{} is on {address}: run the command there", called(slot));
                }
            }
            None if slot == WITNESS => {}
            None if slot >= self.nodes => bail!(
                "there is no node {slot}: cluster {:?} has nodes 0 to {}",
                self.name,
                self.nodes.saturating_sub(1)
            ),
            None => {}
        }
        Ok(())
    }

    /// Gives node `slot`, or the witness, a new incarnation.
    pub fn incarnate(&mut self, slot: u8) -> u64 {
        if self.hosts.is_some() {
            // A host may have lost its state folder: the clock counts for it.
            self.next_incarnation = self.next_incarnation.max(clock_incarnation());
        }
        let incarnation = self.next_incarnation;
        self.next_incarnation += 1;
        if slot == WITNESS {
            self.witness = Some(incarnation);
            return incarnation;
        }
        let slot = usize::from(slot);
        if self.incarnations.len() <= slot {
            self.incarnations.resize(slot + 1, 0);
        }
        self.incarnations[slot] = incarnation;
        incarnation
    }
}

/// An incarnation that no earlier start of a host's node had, as far as the clock goes: milliseconds
/// since 1970.
pub fn clock_incarnation() -> u64 {
    let ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    ms.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(0))
}

/// A node, or the witness, in a message.
pub fn called(slot: u8) -> String {
    if slot == WITNESS { "the witness".to_owned() } else { format!("node {slot}") }
}

/// Where all clusters' state is.
///
/// # Errors
/// No variable says where.
pub fn base() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(p) = set("CLUSTIX_STATE") {
        return Ok(std::path::absolute(p)?);
    }
    if let Some(p) = set("XDG_STATE_HOME").filter(|p| p.is_absolute()) {
        return Ok(p.join("clustix"));
    }
    if let Some(p) = set("HOME") {
        return Ok(p.join(".local/state/clustix"));
    }
    bail!(
        "where to keep state? None of CLUSTIX_STATE, XDG_STATE_HOME and HOME is set; set CLUSTIX_STATE to a folder of yours"
    )
}

/// Checks a cluster's name.
///
/// # Errors
/// Says which names are allowed.
pub fn check_name(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 32 || !name.chars().all(good) || name.starts_with('-') {
        bail!("{name:?} cannot name a cluster: use 1 to 32 of A-Z a-z 0-9 - _, not - first");
    }
    Ok(())
}

/// One cluster's folder.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    name: String,
}

/// Holds a cluster's folder against other commands that start or stop nodes; released when dropped.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code)] File);

impl Folder {
    /// The folder of cluster `name`, which need not exist.
    ///
    /// # Errors
    /// A bad name; no place for state; a place whose path is too long for sockets.
    pub fn named(name: &str) -> Result<Folder> {
        check_name(name)?;
        Folder::at(base()?.join(name), name)
    }

    /// The folder of cluster `name` at `path`.
    ///
    /// # Errors
    /// As [`Folder::named`].
    pub fn at(path: PathBuf, name: &str) -> Result<Folder> {
        let longest = path.as_os_str().len() + "/node-15/control.sock".len();
        if longest > SOCKET_PATH {
            bail!(
                "state folder {}: its path is {} bytes too long for Unix sockets; set CLUSTIX_STATE to a shorter one",
                path.display(),
                longest - SOCKET_PATH
            );
        }
        Ok(Folder { path, name: name.to_owned() })
    }

    /// The cluster's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it (0700) unless it is there.
    ///
    /// # Errors
    /// Those of mkdir(2); a folder that is another user's or open to others.
    pub fn create(&self) -> Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .with_context(|| format!("could not make state folder {}", self.path.display()))?;
        let meta = fs::symlink_metadata(&self.path)?;
        let me = rustix::process::geteuid().as_raw();
        if !meta.is_dir() || meta.uid() != me || meta.mode() & 0o077 != 0 {
            bail!(
                "state folder {} must be a directory of yours that others cannot enter; `chmod 700` it, or set CLUSTIX_STATE to another",
                self.path.display()
            );
        }
        Ok(())
    }

    /// Takes the lock.
    ///
    /// # Errors
    /// Another command holds it; there is no such folder.
    pub fn lock(&self) -> Result<Lock> {
        let dir = match File::open(&self.path) {
            Ok(dir) => dir,
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(self.never_up()),
            Err(e) => return Err(e).context(format!("state folder {}", self.path.display())),
        };
        match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock(dir)),
            Err(rustix::io::Errno::WOULDBLOCK) => bail!(
                "cluster {:?}: another `clustix` is starting or stopping nodes of it right now; wait for it and try again",
                self.name
            ),
            Err(e) => Err(e).context(format!("could not lock {}", self.path.display())),
        }
    }

    fn never_up(&self) -> anyhow::Error {
        anyhow!(
            "cluster {:?} is not up; start it with `clustix up --nodes 3`{}",
            self.name,
            self.flag()
        )
    }

    /// ` --name C`, for messages, unless it is the default cluster.
    pub fn flag(&self) -> String {
        if self.name == "default" { String::new() } else { format!(" --name {}", self.name) }
    }

    /// Reads `cluster.json`; `None` if there is none.
    ///
    /// # Errors
    /// A file that cannot be read or was made by another version.
    pub fn cluster(&self) -> Result<Option<Cluster>> {
        let path = self.path.join("cluster.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).context(format!("could not read {}", path.display())),
        };
        let cluster: Cluster = serde_json::from_str(&text).with_context(|| {
            format!("{} is damaged; remove it if no node of it runs", path.display())
        })?;
        if cluster.format != FORMAT || cluster.nodes > MAX_NODES {
            bail!("{} was written by another version of clustix", path.display());
        }
        Ok(Some(cluster))
    }

    /// The cluster, which must be up.
    ///
    /// # Errors
    /// It is not.
    pub fn running(&self) -> Result<Cluster> {
        match self.cluster()? {
            Some(c) if c.phase == Phase::Running => Ok(c),
            Some(c) if c.phase == Phase::Starting => {
                bail!(
                    "cluster {:?} is still starting, or its `up` was killed: `clustix down{}` cleans up",
                    c.name,
                    self.flag()
                )
            }
            Some(c) if matches!(c.phase, Phase::Stopping | Phase::Ending) => {
                bail!(
                    "cluster {:?} is stopping, or its `down` was killed: `clustix down{}` finishes it",
                    c.name,
                    self.flag()
                )
            }
            _ => Err(self.never_up()),
        }
    }

    /// Writes `cluster.json` as a whole or not at all.
    ///
    /// # Errors
    /// Those of writing.
    pub fn save(&self, cluster: &Cluster) -> Result<()> {
        let path = self.path.join("cluster.json");
        let new = self.path.join("cluster.json.new");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(serde_json::to_string_pretty(cluster)?.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path).with_context(|| format!("could not write {}", path.display()))
    }

    /// The snapshot's path.
    pub fn snapshot(&self) -> PathBuf {
        self.path.join("snapshot")
    }

    /// A node's folder, or the witness's.
    pub fn node(&self, slot: u8) -> PathBuf {
        self.path.join(folder(slot))
    }

    /// A node's control socket.
    pub fn control(&self, slot: u8) -> PathBuf {
        self.node(slot).join("control.sock")
    }

    /// A node's kernel process, or the witness's only one, if it runs.
    ///
    /// # Errors
    /// Something holds the node's `pid` file but does not say which process it is.
    pub fn process(&self, slot: u8) -> Result<Option<Process>> {
        let path = self.node(slot).join("pid");
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).context(format!("could not read {}", path.display())),
        };
        // A node that was just started has locked the file but may not have written it yet.
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            match flock(&file, FlockOperation::NonBlockingLockShared) {
                Ok(()) => return Ok(None),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e).context(format!("could not lock {}", path.display())),
            }
            let mut text = String::new();
            std::io::Seek::rewind(&mut file)?;
            file.read_to_string(&mut text)?;
            let mut words = text.split_ascii_whitespace().map(str::parse::<u64>);
            if let (Some(Ok(pid)), Some(Ok(start)), true) =
                (words.next(), words.next(), text.ends_with('\n'))
                && let Some(process) = u32::try_from(pid).ok().and_then(|p| Process::open(p, start))
            {
                return Ok(Some(process));
            }
            if Instant::now() > until {
                bail!("{} is held by a process that it does not name", path.display());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The slots of nodes whose kernel process runs.
    ///
    /// # Errors
    /// As [`Folder::process`].
    pub fn live(&self) -> Result<Vec<(u8, Process)>> {
        let mut live = Vec::new();
        for slot in 0..MAX_NODES {
            if let Some(p) = self.process(slot)? {
                live.push((slot, p));
            }
        }
        Ok(live)
    }

    /// The same, and the witness.
    ///
    /// # Errors
    /// As [`Folder::process`].
    pub fn all_live(&self) -> Result<Vec<(u8, Process)>> {
        let witness = self.process(WITNESS)?.map(|p| (WITNESS, p));
        Ok(self.live()?.into_iter().chain(witness).collect())
    }

    /// Removes a node's folder, whose processes have ended.
    ///
    /// # Errors
    /// Those of removing.
    pub fn remove_node(&self, slot: u8) -> Result<()> {
        match fs::remove_dir_all(self.node(slot)) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(e).context(format!("could not remove {}", self.node(slot).display()))
            }
            _ => Ok(()),
        }
    }

    /// Removes every node's folder and half-written files.
    ///
    /// # Errors
    /// Those of removing.
    pub fn clean(&self) -> Result<()> {
        for slot in (0..MAX_NODES).chain([WITNESS]) {
            self.remove_node(slot)?;
        }
        for name in ["snapshot.new", "cluster.json.new"] {
            match fs::remove_file(self.path.join(name)) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e.into()),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Opens and locks a new `pid` file for a node that is about to be started; the node gets it as its
/// descriptor 0.
///
/// # Errors
/// Those of opening; the node runs already.
pub fn pid_file(folder: &Path) -> Result<File> {
    let path = folder.join("pid");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("could not make {}", path.display()))?;
    // A command that looks whether the node runs holds the lock for a moment; a node, for ever.
    let until = Instant::now() + Duration::from_millis(200);
    while let Err(e) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if Instant::now() > until {
            return Err(e).context(format!("{} is held: this node runs already", path.display()));
        }
        std::thread::yield_now();
    }
    file.set_len(0)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs;

    fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        let f = Folder::at(dir.path().join("c"), "c").unwrap();
        f.create().unwrap();
        (dir, f)
    }

    #[test]
    fn a_folder_is_locked_once() {
        let (_dir, f) = folder();
        let lock = f.lock().unwrap();
        assert!(f.lock().unwrap_err().to_string().contains("another"));
        drop(lock);
        f.lock().unwrap();
        assert_eq!(fs::metadata(f.path()).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_node_is_found_by_its_locked_pid_file_only() {
        let (_dir, f) = folder();
        fs::create_dir(f.node(3)).unwrap();
        assert!(f.process(3).unwrap().is_none());
        let me = procfs::stat(std::process::id()).unwrap();
        let mut held = pid_file(&f.node(3)).unwrap();
        writeln!(held, "{} {}", me.pid, me.start).unwrap();
        let live = f.live().unwrap();
        assert_eq!(live.iter().map(|(s, p)| (*s, p.pid)).collect::<Vec<_>>(), [(3, me.pid)]);
        assert!(pid_file(&f.node(3)).is_err(), "a node is started once");
        drop(held);
        assert!(f.process(3).unwrap().is_none(), "a file nobody holds names no node");
        f.clean().unwrap();
        assert!(!f.node(3).exists());
    }

    #[test]
    fn what_is_saved_is_read_and_damage_is_named() {
        let (_dir, f) = folder();
        assert_eq!(f.cluster().unwrap(), None);
        let mut c = Cluster::new("c");
        assert_eq!((c.incarnate(2), c.incarnate(0)), (1, 2));
        assert_eq!(c.incarnations, [2, 0, 1]);
        f.save(&c).unwrap();
        assert_eq!(f.cluster().unwrap(), Some(c));
        fs::write(f.path().join("cluster.json"), "{").unwrap();
        assert!(f.cluster().unwrap_err().to_string().contains("cluster.json is damaged"));
    }

    #[test]
    fn names_and_long_paths_are_refused() {
        for bad in ["", "a/b", "..", "-x", "a b", &"x".repeat(33)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        check_name("test_1").unwrap();
        let long = PathBuf::from(format!("/{}", "x".repeat(100)));
        assert!(Folder::at(long, "c").unwrap_err().to_string().contains("too long"));
    }
}
