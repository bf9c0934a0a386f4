//! The control protocol: what passes over a node's Unix socket `node-K/control.sock`.
//!
//! A frame is a length (u32, little-endian, at most [`MAX_FRAME`]) and that many bytes of postcard.
//! The client sends one [`Request`]; the server answers with [`Reply`] frames, of which
//! [`Reply::Done`] or [`Reply::Failed`] is the last. A few requests are followed by a stream:
//!
//! | request | client then sends | server then sends |
//! | --- | --- | --- |
//! | `Run`, `Attach` | [`Input`] | `Started`, `Output`, `Accepted`, `Again`, `Exited` |
//! | `Import` | [`Upload`] | `Imported` |
//! | `Export` | – | `Entry`, `Data` |
//! | `Dump`, `Objects` | – | `Objects` |
//! | `Restore` | [`Restored`] | – |
//! | `Fsck` | [`Listed`] | `Problems` |
//!
//! Only a process of the owner's user may connect (SO_PEERCRED). Bytes from the other side are
//! hostile until parsed: a frame that is too long or malformed ends the connection.

use clustix_ccache::name::Name;
use clustix_proto::job::Command;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// Version of the protocol; both sides must have the same.
pub const VERSION: u32 = 4;
/// Longest frame, bytes.
pub const MAX_FRAME: usize = 1 << 20;
/// Most bytes of a program's input, output or a file in one frame.
pub const CHUNK: usize = 128 << 10;
/// Bytes of one stream that may be under way before the receiver has taken them.
pub const CREDIT: u32 = 256 << 10;

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection failed or ended within a frame.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// A length over [`MAX_FRAME`].
    #[error("a frame of {0} bytes is too long (the limit is 1 MiB)")]
    TooLong(u32),
    /// Not what the protocol says.
    #[error("a malformed frame")]
    Malformed,
}

/// Writes one frame.
///
/// # Errors
/// Those of writing; `InvalidInput` for a message longer than [`MAX_FRAME`].
pub fn send<T: Serialize>(to: &mut impl Write, message: &T) -> io::Result<()> {
    let mut frame = vec![0; 4];
    frame = postcard::to_extend(message, frame).map_err(io::Error::other)?;
    let length = frame.len() - 4;
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "message too long for a frame"));
    }
    frame[..4].copy_from_slice(&(length as u32).to_le_bytes());
    to.write_all(&frame)
}

/// Reads one frame; `None` at an orderly end.
///
/// # Errors
/// [`FrameError`].
pub fn receive<T: DeserializeOwned>(from: &mut impl Read) -> Result<Option<T>, FrameError> {
    let mut length = [0; 4];
    let mut have = 0;
    while have < 4 {
        match from.read(&mut length[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let length = u32::from_le_bytes(length);
    if length as usize > MAX_FRAME {
        return Err(FrameError::TooLong(length));
    }
    // Grows with what really arrives: a length alone allocates nothing.
    let mut body = Vec::new();
    let got = from.take(length.into()).read_to_end(&mut body)?;
    if got < length as usize {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    match postcard::take_from_bytes(&body) {
        Ok((message, [])) => Ok(Some(message)),
        _ => Err(FrameError::Malformed),
    }
}

/// First frame of every connection.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u32,
    /// What is asked.
    pub request: Request,
}

/// What a client asks of a node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Answered once this node serves and knows `nodes` live nodes, or fails after `millis`.
    AwaitServing {
        /// Live nodes wanted.
        nodes: u8,
        /// And this incarnation of a witness.
        witness: Option<u64>,
        /// Bound.
        millis: u32,
    },
    /// [`Reply::Status`].
    Status,
    /// [`Reply::Programs`]: those whose primary is this node.
    Ps,
    /// A signal to a process (or, negative, a group).
    Kill {
        /// Number.
        signal: u8,
        /// PID, or minus a group.
        target: i64,
    },
    /// [`Reply::Objects`] frames without data, of one set or all: those whose primary is this node.
    Objects {
        /// Set number.
        set: Option<u16>,
    },
    /// [`Reply::Pds`], of this node.
    Pds,
    /// [`Reply::Metrics`], of this node.
    Metrics,
    /// Starts a program on this node, unless the job is there; attends to it, unless it is kept.
    Run(Run),
    /// Attends to a job that is there.
    Attach(Attach),
    /// Brings a tree in: [`Upload`] frames follow.
    Import {
        /// Absolute path of the copy.
        path: Vec<u8>,
    },
    /// Sends a tree out.
    Export {
        /// Absolute path.
        path: Vec<u8>,
    },
    /// Ends the programs whose primary is this node: TERM, then KILL. [`Reply::Programs`] lists them.
    EndPrograms {
        /// Between the two signals.
        grace_ms: u32,
    },
    /// This node's personality holds its threads at call boundaries and control takes no new work, until `Thaw`.
    Freeze,
    /// Ends a freeze.
    Thaw,
    /// [`Reply::Objects`] frames with data, of the sets that outlive programs: those whose primary is this node.
    Dump,
    /// Puts objects in: [`Restored`] frames follow.
    Restore,
    /// Checks the file system: [`Listed`] frames follow.
    Fsck,
    /// Makes a node the primary of shards, and answers once it is.
    Rehome {
        /// The node's slot.
        to: u8,
        /// The first shard.
        first: u16,
        /// The last.
        last: u16,
    },
}

/// A program to start.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Run {
    /// The job's number, below [`clustix_proto::job::NUMBERS`], which the client makes up: asked again, also
    /// of another node, it is the same job.
    pub job: u64,
    /// Of the client's tries which this is, from 1 on: a later one's node attends in place of an earlier one's.
    pub turn: u64,
    /// What is started.
    pub command: Command,
    /// What its descriptors 0, 1 and 2 are.
    pub stdio: Stdio,
    /// It goes on when nobody attends to it, and nobody does at first.
    pub kept: bool,
    /// How often it is started again when it is lost with its node.
    pub restarts: u32,
}

/// Whose program is attended to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Whom {
    /// This job's.
    Job(u64),
    /// The job that this process belongs to.
    Process(u32),
}

/// Attends to a job.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attach {
    /// Which.
    pub whom: Whom,
    /// Whether the client has a terminal to show the program's: without it such a job is refused.
    pub tty: bool,
    /// What a client knows that attended before.
    pub known: Option<Known>,
}

/// How far a client that attends to a job has got.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Known {
    /// The turn that it wants: higher than any it asked for. Another's is higher if that came meanwhile.
    pub turn: u64,
    /// Bytes of input that were accepted.
    pub accepted: u64,
    /// Bytes received of the two outputs.
    pub received: [u64; 2],
}

/// A job that is attended to, or was started to be kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Started {
    /// The job.
    pub job: u64,
    /// Who attends: [`Known::turn`].
    pub turn: u64,
    /// Its program's PID.
    pub pid: u32,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Bytes of input accepted in all; `None`: no more are.
    pub input: Option<u64>,
}

/// What a program's descriptors are.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Stdio {
    /// Pipes to the client.
    Pipes,
    /// A terminal of this size (rows, columns, x and y pixels), shown by the client.
    Terminal([u16; 4]),
    /// /dev/null.
    Null,
}

/// Which of a program's outputs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Stream {
    /// Descriptor 1, or the terminal.
    Out,
    /// Descriptor 2.
    Err,
}

/// From the client of a running program.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Input {
    /// The next bytes for its standard input, at most [`CREDIT`] that are not accepted yet; empty: end of file.
    Stdin(Vec<u8>),
    /// A signal for its process group.
    Signal(u8),
    /// The terminal's new size.
    Winsize([u16; 4]),
    /// All bytes of output below this position were taken.
    Taken(Stream, u64),
    /// Nobody reads this output any more: the program gets SIGPIPE, or EPIPE, when it writes there.
    Closed(Stream),
    /// The client goes; the job is kept from now on: [`Reply::Done`] says that it is.
    Detach,
}

/// From the client of an import: entries in pre-order, each regular file followed by its data.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Upload {
    /// A file or directory.
    Entry(Entry),
    /// The next bytes of the regular file last named.
    Data(Vec<u8>),
    /// That was all.
    End,
}

/// A file of a tree.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Path below the tree's root; empty for the root itself.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last access: seconds since 1970, nanoseconds.
    pub atime: (i64, u32),
    /// Last change of data.
    pub mtime: (i64, u32),
}

/// What a file of a tree is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file of so many bytes.
    File(u64),
    /// A symbolic link to this.
    Symlink(Vec<u8>),
    /// Another name of a regular file sent before, by its path below the root.
    Link(Vec<u8>),
    /// A device, socket or FIFO, which is not copied.
    Other,
}

/// From the client of a restore.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Restored {
    /// Objects and their payloads, at most [`CHUNK`] bytes in all or one object.
    Objects(Vec<(Name, Vec<u8>)>),
    /// Objects that a new cluster made by itself and the snapshot does not have.
    Remove(Vec<Name>),
    /// That was all.
    End,
}

/// From the client of a check.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Listed {
    /// Objects of the file system, all of which all nodes together list.
    Names(Vec<Name>),
    /// That was all.
    End,
}

/// What a node answers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The end of a request that succeeded.
    Done,
    /// The end of a request that failed.
    Failed(Failure),
    /// See [`Request::Status`].
    Status(Status),
    /// See [`Request::Ps`].
    Programs(Vec<Program>),
    /// See [`Request::Objects`] and [`Request::Dump`].
    Objects(Vec<Object>),
    /// See [`Request::Pds`].
    Pds(Vec<Pd>),
    /// See [`Request::Metrics`].
    Metrics(Vec<Metric>),
    /// The program runs.
    Started(Started),
    /// The program wrote.
    Output {
        /// Where.
        stream: Stream,
        /// Bytes that it wrote there before.
        at: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// All bytes of standard input below this position were accepted.
    Accepted(u64),
    /// The program was lost and is started again.
    Again {
        /// The PID that it has now.
        pid: u32,
        /// Why it was lost.
        why: String,
    },
    /// The program ended, after all its output.
    Exited {
        /// As wait(2) gives it.
        status: i32,
        /// Why, where it did not end by itself ("lost with node 2").
        verdict: Option<String>,
    },
    /// An import's progress: regular files and their bytes put so far.
    Imported {
        /// Files.
        files: u64,
        /// Bytes.
        bytes: u64,
    },
    /// A file of an exported tree, in pre-order.
    Entry(Entry),
    /// The next bytes of the regular file last named.
    Data(Vec<u8>),
    /// What is wrong with the file system, a line each.
    Problems(Vec<String>),
}

/// Why a request failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What was attempted, on what, and why it failed.
    pub message: String,
    /// Whether asking another node, or asking again, may succeed.
    pub elsewhere: bool,
    /// What the command should exit with: 127 for a program that is not there and 126 for one that
    /// cannot be run, as shells have it; else 1.
    pub exit: u8,
}

/// How the cluster stands, as one node sees it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Cluster's name.
    pub cluster: String,
    /// The node that answers.
    pub node: u8,
    /// Number of the view in force.
    pub epoch: u64,
    /// Whether this node is part of the majority and serves.
    pub serving: bool,
    /// Live nodes.
    pub nodes: Vec<NodeStatus>,
    /// Shards there are.
    pub shards: u16,
    /// Shards with fewer copies than the live nodes allow: being rebuilt.
    pub rebuilding: u16,
    /// Shards of which no complete copy is left.
    pub lost: u16,
    /// Every shard has at least two complete copies.
    pub copies: bool,
    /// The nodes left after the loss of any one would be a majority.
    pub votes: bool,
    /// Whether any one node can be lost now without losing anything.
    pub can_lose_a_node: bool,
    /// The incarnation of the witness that is there.
    pub witness: Option<u64>,
}

/// One node of [`Status`].
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Slot.
    pub node: u8,
    /// Incarnation.
    pub incarnation: u64,
    /// Shards that it is primary of.
    pub primaries: u32,
}

/// A process of the cluster.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Program {
    /// PID.
    pub pid: u32,
    /// Parent.
    pub ppid: u32,
    /// Process group.
    pub pgid: u32,
    /// Node it runs on.
    pub node: u8,
    /// Real user.
    pub uid: u32,
    /// `R` running or waiting in a call, `T` stopped, `Z` ended.
    pub state: char,
    /// Terminal's number.
    pub tty: Option<u32>,
    /// Start, seconds since 1970.
    pub start: i64,
    /// Command line.
    pub command: String,
}

/// An object of the cluster-cache.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Object {
    /// Name.
    pub name: Name,
    /// Payload bytes.
    pub size: u32,
    /// Version.
    pub version: u64,
    /// Node that owns it exclusively.
    pub holder: Option<u8>,
    /// Nodes with a valid copy.
    pub sharers: Vec<u8>,
    /// Nodes with a replica, primary first.
    pub replicas: Vec<u8>,
    /// Payload, where it was asked for.
    pub data: Option<Vec<u8>>,
}

/// A protection domain of a node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Pd {
    /// Role in the system description.
    pub role: String,
    /// Node.
    pub node: u8,
    /// Linux process.
    pub pid: u32,
    /// Times it was started again.
    pub restarts: u32,
    /// How it ended and how many milliseconds ago, the latest last.
    pub ends: Vec<(String, u64)>,
}

/// A counter of a protection domain.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Metric {
    /// Name, with labels as Prometheus writes them.
    pub name: String,
    /// The protection domain that counts.
    pub pd: String,
    /// Value.
    pub value: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_round_trip_and_end_in_order() {
        let mut wire = Vec::new();
        let hello = Hello { version: VERSION, request: Request::Import { path: b"/a".to_vec() } };
        send(&mut wire, &hello).unwrap();
        send(&mut wire, &Upload::Data(vec![7; CHUNK])).unwrap();
        let mut from = wire.as_slice();
        assert_eq!(receive::<Hello>(&mut from).unwrap(), Some(hello));
        assert_eq!(receive::<Upload>(&mut from).unwrap(), Some(Upload::Data(vec![7; CHUNK])));
        assert!(receive::<Upload>(&mut from).unwrap().is_none());
        let first = 4 + u32::from_le_bytes(wire[..4].try_into().unwrap()) as usize;
        for cut in 1..first {
            assert!(receive::<Hello>(&mut &wire[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn a_long_frame_is_refused_before_it_is_read() {
        let wire = u32::MAX.to_le_bytes();
        assert!(matches!(receive::<Hello>(&mut &wire[..]), Err(FrameError::TooLong(u32::MAX))));
        assert!(send(&mut Vec::new(), &Upload::Data(vec![0; MAX_FRAME])).is_err());
    }

    #[test]
    fn bytes_after_the_message_are_malformed() {
        let mut wire = Vec::new();
        send(&mut wire, &Upload::End).unwrap();
        wire[0] += 1;
        wire.push(0);
        assert!(matches!(receive::<Upload>(&mut wire.as_slice()), Err(FrameError::Malformed)));
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut wire = (noise.len() as u32).to_le_bytes().to_vec();
            wire.extend(&noise);
            let _ = receive::<Hello>(&mut wire.as_slice());
            let _ = receive::<Input>(&mut wire.as_slice());
            let _ = receive::<Upload>(&mut wire.as_slice());
            let _ = receive::<Restored>(&mut wire.as_slice());
            let _ = receive::<Reply>(&mut noise.as_slice());
        }
    }
}
