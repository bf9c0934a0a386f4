//! The process server's objects and requests. One PID space for the whole cluster; a PID's shard is
//! `PID % 1024`, and a node gives out PIDs whose shard has its primary here.

use crate::Errno;
use crate::job::Start;
use crate::once::{Operation, Repeat};
use crate::vfs::Credentials;
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
    /// Which of its personalities runs it: [`Life::start`].
    pub personality: u64,
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
    /// End (zombies only), `CLOCK_REALTIME` seconds; 0 while it lives.
    pub end: i64,
    /// Signal its parent gets when it ends (SIGCHLD).
    pub exit_signal: u8,
    /// Why it ended, for its parent and `clustix run` ("lost with node 2").
    pub verdict: Option<String>,
    /// Its own user and system time, µs; set when it ends.
    pub own_us: (u64, u64),
    /// User and system time of waited-for children, µs.
    pub children_us: (u64, u64),
    /// Its children are reaped as they end: SIGCHLD ignored, or SA_NOCLDWAIT (sigaction(2)).
    pub autoreap: bool,
    /// No SIGCHLD for stopped and continued children: SA_NOCLDSTOP.
    pub no_cldstop: bool,
    /// It has called execve(2) since its fork: setpgid(2) by its parent is refused (EACCES).
    pub execed: bool,
    /// A child of init's whose status somebody wants (`clustix run`): stays a zombie until
    /// [`Request::Wait`] with parent 1 takes it, or [`UNCLAIMED_S`] seconds have passed.
    pub claimed: bool,
    /// The job that it, or the one it descends from, is the program of ([`crate::job`]).
    pub job: Option<u64>,
    /// Who sent each pending signal; at most one per signal.
    pub infos: Vec<SignalInfo>,
    /// The latest calls that are not idempotent and their replies, oldest first: a retry after a
    /// server's death finds its reply here. At most [`REMEMBERED`].
    pub answered: Vec<(u64, Reply)>,
}

/// Seconds that the status of a program without a parent is kept for whoever asks.
pub const UNCLAIMED_S: i64 = 60;

/// Most replies kept in [`Process::answered`].
pub const REMEMBERED: usize = 8;

/// Most members of a process group.
pub const MAX_MEMBERS: usize = 2048;

/// What a handler with SA_SIGINFO is told (siginfo_t).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SignalInfo {
    /// Signal number.
    pub signal: u8,
    /// si_code: SI_USER 0, SI_KERNEL 0x80, CLD_EXITED 1, CLD_KILLED 2, CLD_DUMPED 3,
    /// CLD_STOPPED 5, CLD_CONTINUED 6.
    pub code: i32,
    /// si_pid.
    pub pid: Pid,
    /// si_uid.
    pub uid: u32,
    /// si_status (SIGCHLD).
    pub status: i32,
}

/// A process group (set [`set::GROUP`]), postcard; number = PGID.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Group {
    /// Session it belongs to.
    pub sid: Pid,
    /// Living and zombie members, at most [`MAX_MEMBERS`].
    pub members: Vec<Pid>,
}

/// What every node's process server must do to the processes whose shards have their primary there
/// (set [`set::BROADCAST`], number 0), postcard.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Broadcast {
    /// Orders ever given; the last of `orders` has this number.
    pub sequence: u64,
    /// The latest, oldest first, at most [`Broadcast::BOUND`].
    pub orders: Vec<Order>,
    /// Per node slot: the highest incarnation that is known to be dead. Checked again and again, so
    /// that a process whose record was being recovered at the first look is found at the next.
    pub dead: Vec<u64>,
    /// Per node slot: of this incarnation every personality that started before is dead. Checked as `dead` is.
    pub lost: Vec<Life>,
}

impl Broadcast {
    /// Most orders kept.
    pub const BOUND: usize = 16;

    /// Whether what this personality of that node ran or held is lost.
    pub fn is_lost(&self, node: u8, life: Life) -> bool {
        self.is_dead(node, life.incarnation)
            || self
                .lost
                .get(usize::from(node))
                .is_some_and(|lost| lost.incarnation == life.incarnation && life.start < lost.start)
    }

    /// Whether that incarnation of the node is dead.
    pub fn is_dead(&self, node: u8, incarnation: u64) -> bool {
        self.dead.get(usize::from(node)).is_some_and(|dead| incarnation < *dead)
    }
}

/// An order of a [`Broadcast`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Order {
    /// kill(2) with pid -1.
    Kill {
        /// Node whose server has already done its part.
        from: u8,
        /// Sender; 0 is the operator.
        sender: Pid,
        /// Signal.
        signal: u8,
    },
}

impl Process {
    /// The slot that PID 1 is on: none, so it is never lost with a node.
    pub const NOWHERE: u8 = u8::MAX;

    /// PID 1: a record without a program. Its children are reaped as they end.
    pub fn init(start: i64) -> Process {
        Process {
            pid: 1,
            ppid: 0,
            pgid: 1,
            sid: 1,
            tty: None,
            node: Self::NOWHERE,
            incarnation: 0,
            personality: 0,
            uid: [0; 3],
            gid: [0; 3],
            groups: Vec::new(),
            state: State::Running,
            unreported: None,
            pending: 0,
            children: Vec::new(),
            command: b"init\0".to_vec(),
            start,
            end: 0,
            exit_signal: 0,
            verdict: None,
            own_us: (0, 0),
            children_us: (0, 0),
            autoreap: true,
            no_cldstop: true,
            execed: true,
            claimed: false,
            job: None,
            infos: Vec::new(),
            answered: Vec::new(),
        }
    }

    /// Its effective credentials.
    pub fn credentials(&self) -> Credentials {
        Credentials { uid: self.uid[1], gid: self.gid[1], groups: self.groups.clone() }
    }
}

/// What a node's personality must look at (set [`set::INBOX`]): PIDs with something new in their
/// [`Process`] object. A personality remembers the `sequence` it has seen.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Inbox {
    /// Counts the additions.
    pub sequence: u64,
    /// The latest, oldest first.
    pub pids: Vec<Pid>,
}

impl Inbox {
    /// Most PIDs it keeps.
    pub const BOUND: usize = 128;

    /// The PIDs added after `seen`; `None`: too many were, look at all processes of the node.
    pub fn since(&self, seen: u64) -> Option<&[Pid]> {
        let new = self.sequence.checked_sub(seen)?;
        let start = self.pids.len().checked_sub(usize::try_from(new).ok()?)?;
        self.pids.get(start..)
    }

    /// Adds one.
    pub fn push(&mut self, pid: Pid) {
        self.sequence += 1;
        if self.pids.len() >= Self::BOUND {
            let surplus = self.pids.len() + 1 - Self::BOUND;
            self.pids.drain(..surplus);
        }
        self.pids.push(pid);
    }
}

/// A life of a node's personality: the programs that it runs and the pipes' ends that it holds go with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Life {
    /// The node's incarnation.
    pub incarnation: u64,
    /// When the personality started, `CLOCK_MONOTONIC`, ns: later for each of an incarnation's.
    pub start: u64,
}

/// One personality's open ends of a pipe on one side, or a job's ([`Process::NOWHERE`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ends {
    /// Node slot.
    pub node: u8,
    /// Whose they are on that node.
    pub life: Life,
    /// How many.
    pub count: u32,
}

/// A pipe (set [`set::PIPE`]), postcard. Bytes `head..tail` are in chunks of 4 KiB
/// ([`set::PIPEBUF`]), chunk = position / 4096 % [`Pipe::CHUNKS`], at offset position % 4096. No
/// chunk holds bytes of two rounds: an empty pipe's positions are rounded up to a chunk.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Pipe {
    /// Position of the first unread byte.
    pub head: u64,
    /// Position after the last byte.
    pub tail: u64,
    /// Open read ends.
    pub readers: Vec<Ends>,
    /// Open write ends.
    pub writers: Vec<Ends>,
    /// A node or personality with a write end died before it closed it: readers get EIO, never end-of-file.
    pub lost_writer: bool,
    /// Opens ever, for FIFOs: an open waits until the other side's count grows.
    pub reader_opens: u64,
    /// As `reader_opens`, of writers.
    pub writer_opens: u64,
    /// Bytes ever written: the last unread one has this number, counted from 1.
    pub written: u64,
    /// A job's: it outlives its ends ([`crate::job`]).
    pub of_job: bool,
}

impl Pipe {
    /// Chunks of a pipe: 64 KiB in all, as Linux's default.
    pub const CHUNKS: u64 = 16;
    /// Bytes in a chunk.
    pub const CHUNK: u64 = 4096;
    /// Bytes a pipe holds.
    pub const CAPACITY: u64 = Self::CHUNKS * Self::CHUNK;
    /// Writes up to this many bytes are atomic (PIPE_BUF).
    pub const ATOMIC: usize = 4096;
    /// Bytes that can be read.
    pub const fn len(&self) -> u64 {
        self.tail.saturating_sub(self.head)
    }
    /// Bytes ever read: the number of the first unread one, counted from 0.
    pub const fn read(&self) -> u64 {
        self.written.saturating_sub(self.len())
    }
    /// Whether there is nothing to read.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Pipe number of the FIFO with this inode number: in the inode's shard, apart from the numbers of
/// pipe(2)'s.
pub const fn fifo(ino: u64) -> u64 {
    ino | 1 << 62
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
    /// Process group.
    pub const fn group(pgid: Pid) -> Name {
        Name::numbered(set::GROUP, pgid as u64)
    }
    /// Orders to all process servers.
    pub const fn broadcast() -> Name {
        Name::numbered(set::BROADCAST, 0)
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

/// wait4(2) option bits that [`Request::Wait`] looks at, Linux's numbers.
pub mod wait {
    /// Do not sleep; the server never does.
    pub const WNOHANG: u32 = 1;
    /// Stopped children too.
    pub const WUNTRACED: u32 = 2;
    /// Ended children (waitid(2); [`super::Request::Wait`] always looks at them).
    pub const WEXITED: u32 = 4;
    /// Continued children too.
    pub const WCONTINUED: u32 = 8;
}

/// Wait statuses (wait(2)), built and read as Linux's macros do.
pub mod status {
    /// Ended by exit(2) with this code.
    pub const fn exited(code: u8) -> i32 {
        (code as i32) << 8
    }
    /// Ended by this signal.
    pub const fn killed(signal: u8) -> i32 {
        signal as i32 & 0x7f
    }
    /// Stopped by this signal.
    pub const fn stopped(signal: u8) -> i32 {
        (signal as i32) << 8 | 0x7f
    }
    /// Continued.
    pub const CONTINUED: i32 = 0xffff;
    /// Lost with its node: exit code 137, as a shell reports SIGKILL.
    pub const LOST: i32 = exited(137);
}

/// A request to the process server. A server changes only what runs on its own node, but for
/// signals, reaping and losses. `request`: a number that no other call of this process has had
/// (any retry of the call repeats it), or 0 if the caller does not retry.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)] // fields are what the request's doc says
pub enum Request {
    /// A process without a living parent in the cluster (`clustix run`): child of init, leader of
    /// its own session and group, `claimed`; `start`: of a job, which learns the PID with it. Runs on the
    /// serving node, under the `personality` that started then ([`Life::start`]). Replies its PID. ESTALE: the job
    /// is gone, or was started meanwhile.
    Spawn {
        uid: u32,
        gid: u32,
        groups: Vec<u32>,
        command: Vec<u8>,
        tty: Option<u32>,
        start: Option<Start>,
        personality: u64,
    },
    /// fork(2): a child of `parent` on the serving node. Replies its PID.
    Fork { parent: Pid, exit_signal: u8, request: u64 },
    /// execve(2) took place: new command line, and credentials from set-id bits (effective and
    /// saved).
    Exec { pid: Pid, command: Vec<u8>, euid: u32, egid: u32 },
    /// The process ended with this wait status: zombie, children to init, `exit_signal` to the
    /// parent; reaped at once if the parent said so ([`Request::ChildPolicy`]).
    Exit { pid: Pid, status: i32, verdict: Option<String>, own_us: (u64, u64) },
    /// A stop signal took its default effect (`Some`; the signal is taken off; void if SIGCONT or
    /// SIGKILL came meanwhile: look at the state afterwards), or the process goes on. SIGCONT and
    /// SIGKILL by kill(2) set the state to running themselves.
    Stop { pid: Pid, signal: Option<u8> },
    /// waitpid(2) without sleeping: [`Reply::Waited`]; `options` as [`wait`]'s; `keep` as WNOWAIT.
    /// Reaps. ECHILD: no such child. To sleep, read the version of the parent's object *before* this
    /// call and wait for it to change: every child's change changes it. Parent 1 with
    /// [`Which::Pid`]: the status of a claimed process.
    Wait { parent: Pid, which: Which, options: u32, keep: bool, request: u64 },
    /// kill(2), from `sender` (0: the operator, who may signal all). [`Target::All`] returns before
    /// other nodes have acted. Where a group is signalled a repeat may run a
    /// handler twice.
    Kill { sender: Pid, target: Target, signal: u8 },
    /// A signal that the kernel itself sends to a process of this node (SIGSEGV, SIGPIPE, SIGALRM).
    Raise { pid: Pid, info: SignalInfo },
    /// Takes these pending signals off (the personality delivers them).
    Take { pid: Pid, signals: u64 },
    /// What becomes of its children: see [`Process::autoreap`], [`Process::no_cldstop`].
    ChildPolicy { pid: Pid, autoreap: bool, no_cldstop: bool },
    /// setpgid(2); `pid` and `pgid` 0 as there.
    SetGroup { caller: Pid, pid: Pid, pgid: Pid },
    /// setsid(2). Replies the session.
    SetSession { pid: Pid },
    /// Sets the controlling terminal (TIOCSCTTY) or drops it.
    SetTty { pid: Pid, tty: Option<u32> },
    /// setuid family: the three user and group ids and the groups, already checked by the rules of
    /// setresuid(2) against the caller's.
    SetIds { pid: Pid, uid: [u32; 3], gid: [u32; 3], groups: Vec<u32> },
    /// Whether a read (`write` false) or a write with TOSTOP of the controlling terminal by a
    /// background process must end with EIO instead of SIGTTIN or SIGTTOU: its group is orphaned.
    /// Replies [`Reply::Pid`] 1 or 0.
    Orphaned { pid: Pid },
    /// All incarnations of the node up to this one are dead: their processes become zombies with
    /// status 137 and the verdict "lost with node K", their pipe ends close. Acts on what has its
    /// primary here before it replies; every other server follows.
    NodeLost { node: u8, incarnation: u64 },
    /// A process of the serving node goes on under the personality that started then ([`Life::start`]). ESRCH: it has
    /// ended.
    Claim { pid: Pid, personality: u64 },
    /// The serving node's personalities that started before this time are dead, and their programs with them. As
    /// [`Request::NodeLost`].
    PersonalityLost { life: Life },
}

impl Operation for Request {
    fn repeat(&self) -> Repeat {
        match self {
            Request::Spawn { .. }
            | Request::Exec { .. }
            | Request::Stop { .. }
            | Request::Raise { .. }
            | Request::Take { .. }
            | Request::ChildPolicy { .. }
            | Request::SetGroup { .. }
            | Request::SetSession { .. }
            | Request::SetTty { .. }
            | Request::SetIds { .. }
            | Request::Kill { target: Target::Process(_), .. } => Repeat::ByNumber,
            // A process ends once.
            Request::Exit { .. }
            // Told by numbers of their own; without one (of control) the status is known already.
            | Request::Fork { .. }
            | Request::Wait { .. }
            // Several transactions: but for a handler that may run twice.
            | Request::Kill { target: Target::Group(_) | Target::All, .. }
            | Request::Orphaned { .. }
            // The number is the same.
            | Request::Claim { .. }
            // Incarnations die once.
            | Request::NodeLost { .. }
            | Request::PersonalityLost { .. } => Repeat::Harmless,
        }
    }
}

/// A child that has something to say.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Waited {
    /// The child.
    pub pid: Pid,
    /// Its wait status.
    pub status: i32,
    /// Why it ended, if not by itself.
    pub verdict: Option<String>,
    /// Its real user.
    pub uid: u32,
    /// Its user and system time with its waited-for children's, µs.
    pub used_us: (u64, u64),
}

/// The process server's reply.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done,
    /// A PID, or a session or group number.
    Pid(Pid),
    /// `None`: there are such children, none has anything to say.
    Waited(Option<Waited>),
}

/// As every server's.
pub type Response = Result<Reply, Errno>;
