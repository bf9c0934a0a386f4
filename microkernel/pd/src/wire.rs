//! What passes between a protection domain and the kernel process over descriptor 3: one postcard
//! message per packet of an AF_UNIX SOCK_SEQPACKET socket, descriptors beside it (SCM_RIGHTS).
//!
//! The kernel trusts nothing in a [`Packet`]; a domain trusts the kernel.

use serde::{Deserialize, Serialize};

/// Longest packet in bytes, both ways.
pub const MAX_PACKET: usize = 64 * 1024;

/// Most descriptors one packet may carry: Linux's SCM_MAX_FD.
pub const MAX_DESCRIPTORS: usize = 253;

/// A packet from a domain: one system call of the hosted kernel (see `clustix_abi`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// Chosen by the domain; comes back with the answer.
    pub sequence: u32,
    /// Number of the system call ([`clustix_abi::Syscall`]).
    pub syscall: i64,
    /// The capability invoked or received from.
    pub cptr: u64,
    /// NBSendRecv and NBSendWait: the capability sent through.
    pub send: u64,
    /// The reply object, where one is used.
    pub reply: u64,
    /// The message's description ([`clustix_abi::MessageInfo`]); its lengths are those of `words`
    /// and `caps`.
    pub info: u64,
    /// The message.
    pub words: Vec<u64>,
    /// The capabilities sent with it.
    pub caps: Vec<u64>,
    /// Empty slot for a received capability, or 0.
    pub receive: u64,
}

/// What a system call ended with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivered {
    /// Badge of the capability the message came through, or a notification's signals.
    pub badge: u64,
    /// The message's description.
    pub info: u64,
    /// The message.
    pub words: Vec<u64>,
    /// For each capability that came: its badge if it was unwrapped, else its slot.
    pub caps: Vec<u64>,
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
    /// When (CLOCK_MONOTONIC, ns) and how it ended, the latest last; at most [`MOST_ENDS`].
    pub ends: Vec<(u64, Exit)>,
}

/// Ends of a domain that are kept.
pub const MOST_ENDS: usize = 8;

/// How a process ended.
///
/// [`Exit::from_wait_status`] makes one from what waitpid(2) gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// A signal killed it (SIGSYS: it broke its sandbox).
    Signal(i32),
    /// The kernel killed it since its loop did not turn any more.
    Hung,
}

impl Exit {
    /// From a wait status as of waitpid(2).
    pub fn from_wait_status(status: i32) -> Exit {
        match status & 0x7f {
            0 => Exit::Code(status >> 8 & 0xff),
            signal => Exit::Signal(signal),
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(c) => write!(f, "exit {c}"),
            Exit::Signal(s) => write!(f, "signal {s}"),
            Exit::Hung => write!(f, "hung"),
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
    /// Answers the system call of that number. May carry descriptors: a stub's window; a region
    /// for writing, and the same opened read-only.
    Answer {
        /// The call's number.
        sequence: u32,
        /// What it ended with, or the number of a [`clustix_abi::Error`].
        result: Result<Delivered, u64>,
        /// What does not fit message words.
        extra: Extra,
    },
    /// A client got a channel to this server: carries its memfd.
    Channel(ChannelInfo),
    /// A client's channel ended (it died or was revoked).
    ChannelGone {
        /// The channel.
        channel: u64,
    },
    /// This domain got a channel to a server after its start: carries the channel's memfd.
    Client {
        /// Its server's role, `#` and its badge.
        name: String,
        /// Bytes of one window.
        window: u32,
    },
    /// A channel by which this domain calls was revoked.
    ClientGone {
        /// The name by which the domain knows it.
        name: String,
    },
}

/// What goes with an answer beside its message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Extra {
    /// Nothing.
    #[default]
    Nothing,
    /// The message tells a domain's death: the process that it was.
    Process {
        /// Its process id.
        pid: u32,
    },
    /// The domains of the node.
    Pds(Vec<PdInfo>),
    /// One part of the counters: domain, name, value.
    Metrics {
        /// The counters.
        entries: Vec<(String, String, u64)>,
        /// Whether another packet follows under the same number.
        more: bool,
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
    /// The window of a stub that has outlived the domain's last life.
    Stub {
        /// The kernel's number for it.
        id: u32,
        /// Address of its capability.
        slot: u64,
        /// Its Linux process id; 0: not known yet.
        pid: u32,
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
    /// Roles by the kernel's PD numbers, if it supervises.
    pub roles: Vec<String>,
    /// What the descriptors are, in order.
    pub descriptors: Vec<Descriptor>,
    /// Whether a forbidden system call is named on descriptor 2 before the domain dies.
    pub trace_sandbox: bool,
}
