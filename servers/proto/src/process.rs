//! The process server's objects and requests. One PID space for the whole cluster; a PID's shard is
//! `PID % 1024`, and a node gives out PIDs whose shard has its primary here.

use crate::vfs::Credentials;
use crate::Errno;
use clustix_ccache::name::Name;
use clustix_ccache::set;
use serde::{Deserialize, Serialize};

/// Process number; 1 is init, the cluster's reaper.
pub type Pid = u32;

/// Most children a process may have at once.
pub const MAX_CHILDREN: usize = 1024;

/// What a process is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum State {
    /// Running or blocked in a call.
    Running,
    /// Stopped by this signal.
    Stopped(u8),
    /// Ended, waiting for its parent; a wait status as wait(2) returns it.
    Zombie(i32),
}

/// A process (set [`set::PROCESS`]), postcard. Only what others must see; what only its own node
/// needs is in [`set::PSTATE`] and [`set::FDTABLE`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Process {
    /// Number.
    pub pid: Pid,
    /// Parent.
    pub ppid: Pid,
    /// Process group.
    pub pgid: Pid,
    /// Session.
    pub sid: Pid,
    /// Controlling terminal's number.
    pub tty: Option<u32>,
    /// Node slot it runs on.
    pub node: u8,
    /// That node's incarnation.
    pub incarnation: u64,
    /// Real, effective and saved user.
    pub uid: [u32; 3],
    /// Real, effective and saved group.
    pub gid: [u32; 3],
    /// Supplementary groups, at most 32.
    pub groups: Vec<u32>,
    /// What it is doing.
    pub state: State,
    /// A stop or continue its parent has not waited for yet (wait status).
    pub unreported: Option<i32>,
    /// Pending signals: bit n - 1 is signal n.
    pub pending: u64,
    /// Living and zombie children.
    pub children: Vec<Pid>,
    /// Command line, as ps shows it, at most 1 KiB.
    pub command: Vec<u8>,
    /// Start, `CLOCK_REALTIME` seconds.
    pub start: i64,
    /// Signal its parent gets when it ends (SIGCHLD).
    pub exit_signal: u8,
    /// Why it ended, for its parent and `clustix run` ("lost with node 2").
    pub verdict: Option<String>,
    /// User and system time of waited-for children, µs.
    pub children_us: (u64, u64),
}

impl Process {
    /// Its effective credentials.
    pub fn credentials(&self) -> Credentials {
        Credentials { uid: self.uid[1], gid: self.gid[1], groups: self.groups.clone() }
    }
}

/// What a node's personality must look at (set [`set::INBOX`]): PIDs with something new in their
/// [`Process`] object. Bounded: past [`Inbox::BOUND`] PIDs `overflow` says "look at all".
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Inbox {
    /// Counts the additions.
    pub sequence: u64,
    /// The latest, oldest first.
    pub pids: Vec<Pid>,
    /// More were added than fit since `taken`.
    pub overflow: bool,
}

impl Inbox {
    /// Most PIDs it keeps.
    pub const BOUND: usize = 1024;
}

/// A pipe (set [`set::PIPE`]), postcard. Bytes `head..tail` are in chunks of 4 KiB
/// ([`set::PIPEBUF`]), chunk = position / 4096 % [`Pipe::CHUNKS`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Pipe {
    /// Bytes ever read.
    pub head: u64,
    /// Bytes ever written.
    pub tail: u64,
    /// Open read ends, per node slot: an end dies with its node.
    pub readers: Vec<(u8, u32)>,
    /// Open write ends, per node slot.
    pub writers: Vec<(u8, u32)>,
    /// A node with a write end died before it closed it: readers get EIO, never end-of-file.
    pub lost_writer: bool,
    /// Opens ever, for FIFOs: an open waits until the other side's count grows.
    pub reader_opens: u64,
    /// As `reader_opens`, of writers.
    pub writer_opens: u64,
}

impl Pipe {
    /// Chunks of a pipe: 64 KiB in all, as Linux's default.
    pub const CHUNKS: u64 = 16;
    /// Bytes a pipe holds.
    pub const CAPACITY: u64 = Self::CHUNKS * 4096;
    /// Writes up to this many bytes are atomic (PIPE_BUF).
    pub const ATOMIC: usize = 4096;
}

/// Object names of the process server.
pub mod name {
    use super::*;
    /// Process.
    pub const fn process(pid: Pid) -> Name {
        Name::numbered(set::PROCESS, pid as u64)
    }
    /// A node's inbox.
    pub const fn inbox(node: u8) -> Name {
        Name::numbered(set::INBOX, node as u64)
    }
    /// Pipe; its number carries its shard.
    pub const fn pipe(number: u64) -> Name {
        Name::numbered(set::PIPE, number)
    }
    /// A chunk of a pipe's contents.
    pub const fn pipebuf(number: u64, chunk: u32) -> Name {
        Name::part(set::PIPEBUF, number, chunk)
    }
    /// The blocked call of a thread, as data.
    pub const fn thread(tid: u32) -> Name {
        Name::numbered(set::THREAD, tid as u64)
    }
    /// Open file description (volatile).
    pub const fn ofile(number: u64) -> Name {
        Name::numbered(set::OFILE, number)
    }
    /// Descriptor table (volatile).
    pub const fn fdtable(pid: Pid) -> Name {
        Name::numbered(set::FDTABLE, pid as u64)
    }
    /// Signal actions, masks, working directory (volatile).
    pub const fn pstate(pid: Pid) -> Name {
        Name::numbered(set::PSTATE, pid as u64)
    }
}

/// Whom a signal goes to, as kill(2)'s pid.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Target {
    /// One process.
    Process(Pid),
    /// A process group.
    Group(Pid),
    /// All that the sender may signal, but init and itself.
    All,
}

/// Which children a wait asks for, as waitpid(2)'s pid.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Which {
    /// This one.
    Pid(Pid),
    /// Any of this group.
    Group(Pid),
    /// Any.
    Any,
}

/// A request to the process server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// A process without a living parent in the cluster (`clustix run`): child of init, leader of
    /// its own session and group. Runs on the serving node. Replies its PID. Not idempotent.
    Spawn { uid: u32, gid: u32, groups: Vec<u32>, command: Vec<u8>, tty: Option<u32>, incarnation: u64 },
    /// fork(2): a child of `parent` on the serving node. Replies its PID. Not idempotent.
    Fork { parent: Pid, exit_signal: u8 },
    /// execve(2) took place: new command line, and credentials from set-id bits. Idempotent.
    Exec { pid: Pid, command: Vec<u8>, euid: u32, egid: u32 },
    /// The process ended with this wait status: zombie, children to init, SIGCHLD to the parent
    /// (reaped at once if the parent ignores SIGCHLD: `parent` decides by `autoreap`). Idempotent.
    Exit { pid: Pid, status: i32, verdict: Option<String> },
    /// Stopped or continued: state, the parent's wait status and SIGCHLD. Idempotent.
    Stop { pid: Pid, signal: Option<u8> },
    /// waitpid(2) without sleeping: [`Reply::Waited`]; `options` as Linux's WNOHANG, WUNTRACED,
    /// WCONTINUED; `keep` as WNOWAIT. Reaps. Not idempotent.
    Wait { parent: Pid, which: Which, options: u32, keep: bool },
    /// kill(2), from `sender` (0: the operator, who may signal all). Not idempotent.
    Kill { sender: Pid, target: Target, signal: u8 },
    /// Takes these pending signals off (the personality delivers them). Idempotent.
    Take { pid: Pid, signals: u64 },
    /// setpgid(2). Idempotent.
    SetGroup { caller: Pid, pid: Pid, pgid: Pid },
    /// setsid(2). Not idempotent.
    SetSession { pid: Pid },
    /// Sets the controlling terminal (TIOCSCTTY) or drops it. Idempotent.
    SetTty { pid: Pid, tty: Option<u32> },
    /// setuid family: the three user and group ids and the groups, already checked by the rules of
    /// setresuid(2) against the caller's. Idempotent.
    SetIds { pid: Pid, uid: [u32; 3], gid: [u32; 3], groups: Vec<u32> },
    /// What ends with a node: its processes become zombies with status 137 and the verdict "lost
    /// with node K", children are reparented, pipe ends closed. Idempotent.
    NodeLost { node: u8, incarnation: u64 },
}

/// The process server's reply.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done,
    /// A PID, or a session or group number.
    Pid(Pid),
    /// A child's PID and wait status; `None`: there are such children, none has anything to say.
    Waited(Option<(Pid, i32, Option<String>)>),
}

/// As every server's.
pub type Response = Result<Reply, Errno>;

