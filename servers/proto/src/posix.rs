//! What control asks of a node's personality.

use crate::Answer;
use crate::job::Start;
use crate::process::Pid;
use clustix_ccache::name::Name;
use serde::{Deserialize, Serialize};

/// Where a spawned program's descriptors 0, 1 and 2 lead.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Stdio {
    /// These three pipes, which the program opens: stdin's read end, stdout's and stderr's write ends.
    Pipes([u64; 3]),
    /// A terminal, for all three.
    Tty(u32),
    /// /dev/null, for all three.
    Null,
}

/// A request to the personality.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)] // fields are what the request's doc says
pub enum Request {
    /// Starts a program on this node: `argv[0]` is looked up in PATH of `env` unless it has a slash.
    /// Replies its PID. Without `start` not idempotent; with it of several one comes true (ESTALE).
    Spawn {
        argv: Vec<Vec<u8>>,
        env: Vec<Vec<u8>>,
        cwd: Vec<u8>,
        uid: u32,
        gid: u32,
        groups: Vec<u32>,
        stdio: Stdio,
        start: Option<Start>,
    },
    /// Publishes what this node's personality keeps in volatile slabs, and holds every thread at a
    /// call boundary until [`Request::Thaw`]. Idempotent.
    Freeze,
    /// Lets the threads go on. Idempotent.
    Thaw,
    /// Puts volatile objects of a freeze in this node's slab, which only the personality writes. Those
    /// that stand there with the same contents are left alone; EEXIST: one has others. EINVAL: an
    /// object of another set, and nothing is done. Idempotent.
    Restore { objects: Vec<(Name, Vec<u8>)> },
}

/// The personality's reply.
pub type Response = Answer<Pid>;
