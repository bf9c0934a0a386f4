//! What passes between a protection domain and the kernel process over descriptor 3: one postcard
//! message per packet of an AF_UNIX SOCK_SEQPACKET socket, descriptors beside it (SCM_RIGHTS).
//!
//! The kernel trusts nothing in a [`Packet`]; a domain trusts the kernel.

use serde::{Deserialize, Serialize};

/// Longest packet in bytes, both ways.
pub const MAX_PACKET: usize = 64 * 1024;

/// Most descriptors one packet may carry: Linux's SCM_MAX_FD.
pub const MAX_DESCRIPTORS: usize = 253;

/// Most message registers of an invocation.
pub const MAX_REGISTERS: usize = 64;

/// A packet from a domain: a request and the number its answer will carry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// Chosen by the domain; comes back with the answer.
    pub sequence: u32,
    /// What is asked.
    pub request: Request,
}

/// What a domain asks of the kernel. Every request names the capability by which it asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// A generic invocation, seL4-style.
    Invoke {
        /// Capability address in the caller's CSpace.
        cptr: u64,
        /// Invocation label.
        label: u64,
        /// Message registers, at most [`MAX_REGISTERS`].
        registers: Vec<u64>,
        /// Extra capabilities, by address.
        caps: Vec<u64>,
    },
    /// Signals a notification.
    Signal {
        /// The notification.
        cptr: u64,
    },
    /// Waits on a notification; answered when it is signalled.
    Wait {
        /// The notification.
        cptr: u64,
    },
    /// Starts the domain that a PD capability names, if it does not run.
    PdStart {
        /// The PD capability.
        cptr: u64,
    },
    /// Kills the domain that a PD capability names.
    PdKill {
        /// The PD capability.
        cptr: u64,
    },
    /// Lists all domains of the node.
    PdList {
        /// A capability for looking at the node.
        cptr: u64,
    },
    /// Reads all counters of the node.
    MetricsRead {
        /// A capability for looking at the node.
        cptr: u64,
    },
    /// Starts a stub process from the clean zygote.
    StubSpawn {
        /// The capability for stubs.
        cptr: u64,
    },
    /// Makes the window and socket of a stub that `parent` is about to fork.
    StubFork {
        /// The capability for stubs.
        cptr: u64,
        /// The forking stub.
        parent: u32,
    },
    /// Kills a stub with SIGKILL.
    StubKill {
        /// The capability for stubs.
        cptr: u64,
        /// Which.
        stub: u32,
    },
    /// Sends a stub the preemption signal.
    StubPreempt {
        /// The capability for stubs.
        cptr: u64,
        /// Which.
        stub: u32,
    },
    /// Lists the stubs that live, for a personality that was restarted.
    StubList {
        /// The capability for stubs.
        cptr: u64,
    },
    /// Gives the window of a living stub to a personality that was restarted.
    StubAdopt {
        /// The capability for stubs.
        cptr: u64,
        /// Which.
        stub: u32,
    },
    /// Makes a memory region of zeroes.
    RegionCreate {
        /// The capability for stubs.
        cptr: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Seals a region against writing and change of size.
    RegionSeal {
        /// The capability for stubs.
        cptr: u64,
        /// Which.
        region: u32,
    },
    /// Sends a region to a stub.
    RegionSend {
        /// The capability for stubs.
        cptr: u64,
        /// Which.
        region: u32,
        /// To whom.
        stub: u32,
    },
    /// Forgets a region: what others mapped stays.
    RegionDrop {
        /// The capability for stubs.
        cptr: u64,
        /// Which.
        region: u32,
    },
}

/// Why the kernel refused. The first ten are seL4's codes with seL4's meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// A message register held a value that is not allowed there.
    #[error("invalid argument")]
    InvalidArgument,
    /// No such capability, or one of another type (the caller's fault).
    #[error("invalid capability")]
    InvalidCapability,
    /// The object cannot do this, or the capability's rights do not allow it.
    #[error("illegal operation")]
    IllegalOperation,
    /// A number out of range.
    #[error("out of range")]
    RangeError,
    /// A number not aligned as needed.
    #[error("alignment error")]
    AlignmentError,
    /// A capability address that leads nowhere.
    #[error("failed lookup")]
    FailedLookup,
    /// The first of two operations must be undone before.
    #[error("delete first")]
    DeleteFirst,
    /// Something that cannot be taken away yet.
    #[error("revoke first")]
    RevokeFirst,
    /// The caller's budget or the node's memory is used up.
    #[error("not enough memory")]
    NotEnoughMemory,
    /// The object of the request died.
    #[error("the object is gone")]
    Gone,
    /// A bound of the kernel is reached: try later.
    #[error("busy")]
    Busy,
    /// The host refused (a Linux error number).
    #[error("the host refused: errno {0}")]
    Host(i32),
}

/// One domain, as `clustix pds` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PdInfo {
    /// Its role in the system description.
    pub role: String,
    /// Linux process id; 0 when it does not run.
    pub pid: u32,
    /// How often it was started again.
    pub restarts: u32,
    /// When it was started last (CLOCK_MONOTONIC, ns); 0 when never.
    pub started_ns: u64,
    /// How it ended last time, if it ever ended.
    pub last_exit: Option<Exit>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// A signal killed it (SIGSYS: it broke its sandbox).
    Signal(i32),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(c) => write!(f, "exit {c}"),
            Exit::Signal(s) => write!(f, "signal {s}"),
        }
    }
}

/// What the kernel tells a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// First packet: carries the memfd with the postcard of a [`BootInfo`], of `len` bytes;
    /// `descriptors` more follow in packets of [`Notice::Descriptors`].
    Boot {
        /// Bytes of the boot information.
        len: u32,
        /// How many descriptors follow.
        descriptors: u32,
    },
    /// Carries descriptors of the boot message, in the order of [`BootInfo::descriptors`].
    Descriptors,
    /// Answers the request of that number. May carry descriptors.
    Answer {
        /// The request's number.
        sequence: u32,
        /// The answer.
        answer: Result<Answer, Refusal>,
    },
    /// A client got a channel to this server: carries its memfd.
    Channel(ChannelInfo),
    /// A client's channel ended (it died or was revoked).
    ChannelGone {
        /// The channel.
        channel: u64,
    },
    /// To the supervisor: a domain ended.
    PdDied {
        /// Its role.
        role: String,
        /// Its process id.
        pid: u32,
        /// How.
        exit: Exit,
    },
    /// To the personality: a stub ended.
    StubDied {
        /// Which.
        stub: u32,
        /// How.
        exit: Exit,
    },
}

/// What the kernel answers to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Done.
    Done,
    /// The reply of an invocation, or a notification's word in the first register.
    Registers(Vec<u64>),
    /// The domains.
    Pds(Vec<PdInfo>),
    /// One part of the counters: domain, name, value. `more` parts follow under the same number.
    Metrics {
        /// The counters.
        entries: Vec<(String, String, u64)>,
        /// Whether another packet follows.
        more: bool,
    },
    /// A stub; the packet carries its window's memfd.
    Stub {
        /// Its number.
        id: u32,
        /// Its Linux process id, 0 while it is being forked.
        pid: u32,
    },
    /// The numbers of the stubs that live.
    Stubs(Vec<u32>),
    /// A region; the packet carries its memfd twice: for writing, and opened read-only.
    Region {
        /// Its number.
        id: u32,
    },
}

/// A channel, as its server is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelInfo {
    /// The channel: index into the badge table (low 16 bits) and generation.
    pub channel: u64,
    /// Role of the client.
    pub client: String,
    /// Bytes of one window.
    pub window: u32,
}

/// What the n-th descriptor of the boot message is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Descriptor {
    /// The client end of a channel, under the name by which this domain knows it.
    Client {
        /// Name.
        name: String,
        /// Bytes of one window.
        window: u32,
        /// Capability for the endpoint.
        cptr: u64,
    },
    /// The server end of a channel.
    Server(ChannelInfo),
    /// A memory region.
    Region {
        /// Name.
        name: String,
        /// Length in bytes.
        len: u64,
        /// Whether it may be written.
        writable: bool,
        /// Whether the domain keeps the descriptor.
        keep: bool,
    },
    /// A descriptor of the host, granted in the system description.
    Host {
        /// Name.
        name: String,
    },
    /// The metrics page.
    Metrics,
    /// The badge table of the domain's endpoints (read-only).
    Badges,
}

/// What a domain is told at its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootInfo {
    /// Its role.
    pub role: String,
    /// The node's slot.
    pub node: u8,
    /// The node's incarnation.
    pub incarnation: u64,
    /// The cluster's name.
    pub cluster: String,
    /// Opaque configuration from the launcher.
    pub args: Vec<u8>,
    /// Capabilities it starts with, by name.
    pub caps: Vec<(String, u64)>,
    /// What the descriptors are, in order.
    pub descriptors: Vec<Descriptor>,
    /// Whether a forbidden system call is named on descriptor 2 before the domain dies.
    pub trace_sandbox: bool,
}
