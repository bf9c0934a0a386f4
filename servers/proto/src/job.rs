//! Jobs: programs that somebody outside the cluster started, and who attends to them.
//!
//! A job is an object, so that neither the control domain through which it was started nor the node
//! of either need outlive it: whoever comes next finds its program, its pipes or terminal, and how
//! far its bytes were taken.

use crate::process::{Pid, Process, State, status};
use clustix_ccache::name::{Name, SHARDS};
use clustix_ccache::set;
use serde::{Deserialize, Serialize};

/// What a program's descriptors 0, 1 and 2 lead to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Io {
    /// Three pipes of its own: [`pipe`].
    Pipes,
    /// A terminal.
    Terminal(u32),
    /// /dev/null.
    Null,
}

/// What is started.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<Vec<u8>>,
    /// `NAME=VALUE`.
    pub env: Vec<Vec<u8>>,
    /// Working directory.
    pub cwd: Vec<u8>,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A job (set [`set::JOB`]), postcard.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Job {
    /// Its program's process, once `starts` is not 0.
    pub pid: Pid,
    /// How often it was started. A start names the count that it knows, so that of two at once one
    /// comes to nothing.
    pub starts: u32,
    /// Its descriptors.
    pub io: Io,
    /// The control domain that moves its bytes.
    pub attendant: Option<Attendant>,
    /// Of those who came to attend to it the latest's: who has another gives up.
    pub turn: u64,
    /// Nobody can attend to it any more, and nothing of it is started: what is left of it is being removed.
    pub ending: Option<Ending>,
    /// It goes on when nobody attends to it (`run --detach`).
    pub kept: bool,
    /// It is started again, so many times more, when it is lost with its node.
    pub restarts: u32,
    /// For that.
    pub command: Option<Command>,
}

/// How a job ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Ending {
    /// Its program has ended, or never was: whom it left behind goes on.
    Over,
    /// Its client has gone: its program is told so, by SIGHUP.
    HangUp,
}

/// One life of a node's control domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attendant {
    /// The node.
    pub node: u8,
    /// Its incarnation.
    pub incarnation: u64,
    /// When control started, `CLOCK_MONOTONIC`, ns: no two of a node's are alike.
    pub life: u64,
}

/// A start of a job's program: void unless the job has been started so often.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Start {
    /// The job.
    pub job: u64,
    /// [`Job::starts`] before it.
    pub starts: u32,
}

/// Numbers are below this; a job's shard is `number % 1024`.
pub const NUMBERS: u64 = 1 << 52;

/// The name of a job.
pub const fn name(number: u64) -> Name {
    Name::numbered(set::JOB, number)
}

/// The pipe of a job's descriptor `fd` (0, 1 or 2), in the job's shard, apart from the numbers of pipe(2)'s and
/// FIFOs'.
pub const fn pipe(number: u64, fd: u8) -> u64 {
    const { assert!(NUMBERS.is_multiple_of(SHARDS as u64)) };
    1 << 61 | (fd as u64) << 52 | (number % NUMBERS)
}

/// The control domain that serves on a node (set [`set::RECORD`]): an [`Attendant`].
pub const fn control(node: u8) -> Name {
    Name::numbered(set::RECORD, 64 + node as u64)
}

/// Whether a program has not ended by itself: it was lost with its node, or its personality.
pub fn is_lost(program: &Process) -> bool {
    program.state == State::Zombie(status::LOST) && program.verdict.is_some()
}

impl Job {
    /// Whether its program, as it is, will be started again.
    pub fn starts_again(&self, program: &Process) -> bool {
        self.restarts > 0 && self.command.is_some() && self.ending.is_none() && is_lost(program)
    }
}
