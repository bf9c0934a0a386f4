//! The slow path: requests to the kernel process over descriptor 3.
//!
//! Every request is a system call of the hosted kernel in seL4's shape (`clustix_abi`): a capability,
//! a label, words. The typed functions below are that and nothing more. Any thread may ask; a
//! listener thread receives what the kernel sends. Requests block their thread, and cost a round
//! trip through the kernel process: nothing on a hot path goes here.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use clustix_abi::{Error, Fault, Hosted, Invocation, MessageInfo, Rights, Syscall, slot};

use rustix::event::{PollFd, PollFlags};

use crate::channel::{Arrival, ChannelId, Client, Inbox, channel_len};
use crate::region::{Mapping, Region};
use crate::wire::{self, Delivered, Extra, Notice, Packet};
pub use crate::wire::{Exit, PdInfo};

/// Length of a stub's window in bytes.
pub const STUB_WINDOW: usize = 128 * 1024;

/// Byte offset in a stub's window of the 64-bit count of request bells it rang.
pub const STUB_WAKEUPS_AT: usize = 0x10;

/// Descriptor of a stub's kernel socket.
pub const STUB_SOCKET_FD: i32 = 3;
/// Descriptor of a stub's window when it starts.
pub const STUB_WINDOW_FD: i32 = 4;
/// Tag (the first of a packet's four bytes, little-endian) of the message that brings a forking
/// stub its child's window and kernel socket, in this order.
pub const STUB_TAG_FORK: u32 = 1;
/// Tag of the message that brings a stub a memory region.
pub const STUB_TAG_REGION: u32 = 2;
/// The preemption signal.
pub const STUB_PREEMPT_SIGNAL: i32 = 63;

/// Name, among the capabilities a domain starts with, of the one for making stubs.
pub const CAP_STUBS: &str = "stubs";
/// Of the one for making regions.
pub const CAP_REGIONS: &str = "regions";
/// Of the one for looking at the node.
pub const CAP_NODE: &str = "node";
/// Of the endpoint on which a supervisor is told of deaths.
pub const CAP_PD_EVENTS: &str = "pd-events";
/// Of the endpoint on which the owner of stubs is told of deaths.
pub const CAP_STUB_EVENTS: &str = "stub-events";
/// Prefix of the names of PD capabilities: `pd:vfs`.
pub const CAP_PD: &str = "pd:";

/// Depth at which a slot's index in the root CNode is a capability address.
const FLAT: u64 = 64;

/// Why a slow-path request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The kernel refused.
    #[error("the kernel refused: {}", .0.name())]
    Refused(Error),
    /// This domain was given no such capability.
    #[error("this domain holds no capability for that")]
    NoCapability,
    /// The kernel cannot be reached: the node is going down.
    #[error("the kernel cannot be reached")]
    Closed,
    /// The answer was not what the request asks for (a fault of the kernel).
    #[error("the kernel's answer is malformed")]
    Malformed,
    /// Memory that the kernel handed out could not be mapped here.
    #[error("no room to map the memory")]
    NoMemory,
}

impl KernelError {
    /// For [`Kernel::pd_start`]: that domain runs already.
    pub fn runs_already(&self) -> bool {
        matches!(self, KernelError::Refused(Error::IllegalOperation))
    }
}

impl From<Error> for KernelError {
    fn from(e: Error) -> Self {
        KernelError::Refused(e)
    }
}

/// A domain ended, as its supervisor is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PdEvent {
    /// Its role.
    pub role: String,
    /// Its process id.
    pub pid: u32,
    /// How it ended.
    pub status: Exit,
}

/// A stub ended, as the personality is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StubEvent {
    /// It died.
    Died {
        /// Which.
        id: u32,
        /// How.
        status: Exit,
    },
}

/// The shared page range of a stub; its layout is the personality's, but for the count at
/// [`STUB_WAKEUPS_AT`].
#[derive(Clone)]
pub struct StubWindow(Arc<Mapping>);

impl StubWindow {
    /// A window of zeroes of this process's own, for tests.
    pub fn anonymous() -> std::io::Result<StubWindow> {
        Ok(StubWindow(Arc::new(Mapping::anonymous(STUB_WINDOW)?)))
    }

    /// Maps the window in `fd`.
    pub fn map(fd: &OwnedFd) -> std::io::Result<StubWindow> {
        Ok(StubWindow(Arc::new(Mapping::new(fd.as_fd(), STUB_WINDOW, true)?)))
    }

    /// Length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a window is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The whole window as 64-bit words.
    pub fn words(&self) -> &[AtomicU64] {
        self.0.words()
    }

    /// The 32-bit word at byte offset `at`.
    ///
    /// # Panics
    /// When `at` is not a multiple of 4 inside the window: offsets are the caller's constants, never
    /// something read from the window.
    pub fn word(&self, at: usize) -> &AtomicU32 {
        self.0.word32(at).expect("a constant offset inside the window")
    }

    /// The 64-bit word at byte offset `at`.
    ///
    /// # Panics
    /// When `at` is not a multiple of 8 inside the window: offsets are the caller's constants, never
    /// something read from the window.
    pub fn word64(&self, at: usize) -> &AtomicU64 {
        self.0.word64(at).expect("a constant offset inside the window")
    }

    /// Copies out from byte offset `at`; `false` (and nothing copied) when the range is not inside.
    #[must_use]
    pub fn read(&self, at: usize, into: &mut [u8]) -> bool {
        self.0.read(at, into)
    }

    /// Copies in at byte offset `at`; `false` (and nothing copied) when the range is not inside.
    #[must_use]
    pub fn write(&self, at: usize, from: &[u8]) -> bool {
        self.0.write(at, from)
    }
}

/// A stub process: one POSIX address space.
#[derive(Clone)]
pub struct Stub {
    /// The kernel's number for it.
    pub id: u32,
    /// Its Linux process id; 0 while it is being forked.
    pub pid: u32,
    /// What it shares with the personality.
    pub window: StubWindow,
}

struct Reply {
    result: Result<Delivered, u64>,
    extra: Extra,
    descriptors: Vec<OwnedFd>,
}

#[derive(Default)]
struct Mail {
    /// Requests that wait, with the answers that came.
    answers: HashMap<u32, VecDeque<Reply>>,
    /// The socket ended.
    closed: bool,
}

struct Inner {
    socket: OwnedFd,
    sequence: AtomicU32,
    mail: Mutex<Mail>,
    arrived: Condvar,
    caps: HashMap<String, u64>,
    roles: Vec<String>,
    /// Capabilities of stubs, by number; none yet for a stub whose death was told before its
    /// birth.
    stubs: Mutex<HashMap<u32, Option<u64>>>,
    inbox: Arc<Inbox>,
    /// What this domain calls by.
    channels: Mutex<HashMap<String, Client>>,
    /// Held while descriptors come in.
    passing: Mutex<()>,
}

/// This domain's way to the kernel. Clones share it.
#[derive(Clone)]
pub struct Kernel(Arc<Inner>);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kernel {
    /// Takes over the kernel socket; the boot message was read from it already.
    pub(crate) fn new(
        socket: OwnedFd,
        caps: Vec<(String, u64)>,
        roles: Vec<String>,
        channels: HashMap<String, Client>,
        stubs: HashMap<u32, Option<u64>>,
        inbox: Arc<Inbox>,
    ) -> Kernel {
        Kernel(Arc::new(Inner {
            socket,
            sequence: AtomicU32::new(0),
            mail: Mutex::default(),
            arrived: Condvar::new(),
            caps: caps.into_iter().collect(),
            roles,
            stubs: Mutex::new(stubs),
            inbox,
            channels: Mutex::new(channels),
            passing: Mutex::default(),
        }))
    }

    /// Receives what the kernel sends until the socket ends; the body of the listener thread.
    pub(crate) fn listen(&self) {
        let mut bytes = Vec::with_capacity(wire::MAX_PACKET);
        loop {
            let mut ready = [PollFd::new(&self.0.socket, PollFlags::IN)];
            match rustix::event::poll(&mut ready, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
            let _passing = self.hold_descriptors();
            match crate::socket::receive(self.0.socket.as_fd(), &mut bytes, true) {
                Ok(Some(received)) => {
                    if let Ok(notice) = postcard::from_bytes::<Notice>(&bytes) {
                        self.deliver(notice, received.descriptors);
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Ok(None) | Err(_) => break,
            }
        }
        locked(&self.0.mail).closed = true;
        self.0.arrived.notify_all();
    }

    /// While it is held, no descriptor comes in: the sandbox closes what it does not know.
    pub(crate) fn hold_descriptors(&self) -> MutexGuard<'_, ()> {
        locked(&self.0.passing)
    }

    fn deliver(&self, notice: Notice, mut descriptors: Vec<OwnedFd>) {
        match notice {
            Notice::Answer { sequence, result, extra } => {
                if let Some(queue) = locked(&self.0.mail).answers.get_mut(&sequence) {
                    queue.push_back(Reply { result, extra, descriptors });
                }
                self.0.arrived.notify_all();
            }
            Notice::Channel(info) => {
                let window = info.window as usize;
                // A channel that cannot be mapped is not served: its client's calls wait for the
                // kernel to revoke it.
                if let Some(fd) = descriptors.pop()
                    && let Ok(mapping) = Mapping::new(fd.as_fd(), channel_len(window), true)
                {
                    self.0.inbox.push(Arrival::Channel {
                        id: ChannelId(info.channel),
                        client: info.client,
                        mapping,
                        window,
                    });
                }
            }
            Notice::ChannelGone { channel } => self.0.inbox.push(Arrival::Gone(ChannelId(channel))),
            Notice::Client { name, window } => {
                let window = window as usize;
                let mapped = descriptors.pop().and_then(|fd| {
                    let mapping = Mapping::new(fd.as_fd(), channel_len(window), true).ok()?;
                    Client::new(mapping, window).ok()
                });
                if let Some(client) = mapped {
                    locked(&self.0.channels).insert(name, client);
                }
            }
            // Who holds the client sees that it is revoked.
            Notice::ClientGone { name } => drop(locked(&self.0.channels).remove(&name)),
            Notice::Boot { .. } | Notice::Descriptors => {}
        }
    }

    fn send_packet(&self, mut packet: Packet) -> Result<u32, KernelError> {
        packet.sequence = self.0.sequence.fetch_add(1, Ordering::Relaxed);
        let bytes = postcard::to_stdvec(&packet).map_err(|_| KernelError::Malformed)?;
        if bytes.len() > wire::MAX_PACKET {
            return Err(Error::InvalidArgument.into());
        }
        locked(&self.0.mail).answers.insert(packet.sequence, VecDeque::new());
        if crate::socket::send(self.0.socket.as_fd(), &bytes, &[], false).is_err() {
            locked(&self.0.mail).answers.remove(&packet.sequence);
            return Err(KernelError::Closed);
        }
        Ok(packet.sequence)
    }

    /// Waits for the next packet that answers `sequence`.
    fn next_reply(&self, sequence: u32) -> Result<Reply, KernelError> {
        let mut mail = locked(&self.0.mail);
        loop {
            let Some(queue) = mail.answers.get_mut(&sequence) else {
                return Err(KernelError::Malformed);
            };
            if let Some(reply) = queue.pop_front() {
                if !matches!(reply.extra, Extra::Metrics { more: true, .. }) {
                    mail.answers.remove(&sequence);
                }
                return Ok(reply);
            }
            if mail.closed {
                mail.answers.remove(&sequence);
                return Err(KernelError::Closed);
            }
            mail = self.0.arrived.wait(mail).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn ask(&self, packet: Packet) -> Result<(Delivered, Extra, Vec<OwnedFd>), KernelError> {
        let sequence = self.send_packet(packet)?;
        let reply = self.next_reply(sequence)?;
        match reply.result {
            Ok(delivered) => Ok((delivered, reply.extra, reply.descriptors)),
            Err(number) => {
                Err(Error::from_number(number).map_or(KernelError::Malformed, KernelError::Refused))
            }
        }
    }

    /// Address of a capability that this domain started with: an endpoint by its server's role,
    /// one of the `CAP_…` names, or `pd:` and a role.
    pub fn capability(&self, name: &str) -> Option<u64> {
        self.0.caps.get(name).copied()
    }

    /// The client's end of the channel called `name`.
    pub(crate) fn channel(&self, name: &str) -> Option<Client> {
        locked(&self.0.channels).get(name).cloned()
    }

    fn need(&self, name: &str) -> Result<u64, KernelError> {
        self.capability(name).ok_or(KernelError::NoCapability)
    }

    // -- System calls ------------------------------------------------------------------------

    /// `seL4_Call` on any capability: invokes a kernel object, or sends to an endpoint and waits for
    /// the answer.
    pub fn call(
        &self,
        cptr: u64,
        label: u64,
        words: &[u64],
        caps: &[u64],
    ) -> Result<Delivered, KernelError> {
        Ok(self.ask(packet(Syscall::Call, cptr, label, words, caps))?.0)
    }

    /// `seL4_Call`, for its answer's words alone.
    pub fn invoke(
        &self,
        cptr: u64,
        label: u64,
        words: &[u64],
        caps: &[u64],
    ) -> Result<Vec<u64>, KernelError> {
        Ok(self.call(cptr, label, words, caps)?.words)
    }

    /// `seL4_Send`: waits until somebody receives.
    pub fn send(&self, cptr: u64, label: u64, words: &[u64]) -> Result<(), KernelError> {
        self.ask(packet(Syscall::Send, cptr, label, words, &[])).map(drop)
    }

    /// `seL4_Recv`: waits for a message; a call is held in the reply object at `reply`, and a
    /// capability that comes with it is put into the empty slot `receive` (0: none).
    pub fn recv(&self, cptr: u64, reply: u64, receive: u64) -> Result<Delivered, KernelError> {
        let mut p = packet(Syscall::Recv, cptr, 0, &[], &[]);
        p.reply = reply;
        p.receive = receive;
        Ok(self.ask(p)?.0)
    }

    /// `seL4_Reply` through the reply object at `reply`.
    pub fn reply(&self, reply: u64, label: u64, words: &[u64]) -> Result<(), KernelError> {
        let mut p = packet(Syscall::Reply, reply, label, words, &[]);
        p.reply = reply;
        self.ask(p).map(drop)
    }

    /// `seL4_Signal` on a notification.
    pub fn signal(&self, cptr: u64) -> Result<(), KernelError> {
        self.ask(packet(Syscall::NBSend, cptr, 0, &[], &[])).map(drop)
    }

    /// `seL4_Wait` on a notification: returns its word (the OR of the badges).
    pub fn wait(&self, cptr: u64) -> Result<u64, KernelError> {
        Ok(self.ask(packet(Syscall::Wait, cptr, 0, &[], &[]))?.0.badge)
    }

    // -- Capabilities ------------------------------------------------------------------------

    /// `seL4_CNode_Copy` within this domain's own CSpace.
    pub fn copy(&self, to: u64, from: u64, rights: Rights) -> Result<(), KernelError> {
        let words = [to, FLAT, from, FLAT, rights.bits()];
        self.cnode(Invocation::CNodeCopy, &words, &[slot::CNODE])
    }

    /// `seL4_CNode_Mint` within this domain's own CSpace: a copy with fewer rights and a badge.
    pub fn mint(&self, to: u64, from: u64, rights: Rights, badge: u64) -> Result<(), KernelError> {
        let words = [to, FLAT, from, FLAT, rights.bits(), badge];
        self.cnode(Invocation::CNodeMint, &words, &[slot::CNODE])
    }

    /// `seL4_CNode_Move` within this domain's own CSpace.
    pub fn r#move(&self, to: u64, from: u64) -> Result<(), KernelError> {
        self.cnode(Invocation::CNodeMove, &[to, FLAT, from, FLAT], &[slot::CNODE])
    }

    /// `seL4_CNode_Delete`.
    pub fn delete(&self, cptr: u64) -> Result<(), KernelError> {
        self.cnode(Invocation::CNodeDelete, &[cptr, FLAT], &[])
    }

    /// `seL4_CNode_Revoke`: removes everything derived from the capability, in every domain.
    pub fn revoke(&self, cptr: u64) -> Result<(), KernelError> {
        self.cnode(Invocation::CNodeRevoke, &[cptr, FLAT], &[])
    }

    fn cnode(&self, what: Invocation, words: &[u64], caps: &[u64]) -> Result<(), KernelError> {
        self.call(slot::CNODE, what.number(), words, caps).map(drop)
    }

    // -- Domains (init, control) -------------------------------------------------------------

    /// Starts the domain `role` if it does not run (init).
    pub fn pd_start(&self, role: &str) -> Result<(), KernelError> {
        let cptr = self.need(&format!("{CAP_PD}{role}"))?;
        self.call(cptr, Hosted::PdStart.number(), &[], &[]).map(drop)
    }

    /// Kills the domain `role` (init).
    pub fn pd_kill(&self, role: &str) -> Result<(), KernelError> {
        let cptr = self.need(&format!("{CAP_PD}{role}"))?;
        self.call(cptr, Hosted::PdKill.number(), &[], &[]).map(drop)
    }

    /// The next end of a domain; blocks until there is one (init).
    pub fn pd_events(&self) -> Result<PdEvent, KernelError> {
        let cptr = self.need(CAP_PD_EVENTS)?;
        loop {
            let (message, extra, _) = self.ask(packet(Syscall::Recv, cptr, 0, &[], &[]))?;
            let label = MessageInfo::from_word(message.info).label();
            let &[number, status, ..] = message.words.as_slice() else { continue };
            if label != Fault::PdDeath.number() {
                continue;
            }
            let role = usize::try_from(number).ok().and_then(|n| self.0.roles.get(n));
            let role = role.ok_or(KernelError::Malformed)?.clone();
            let pid = if let Extra::Process { pid } = extra { pid } else { 0 };
            return Ok(PdEvent { role, pid, status: Exit::from_wait_status(status as i32) });
        }
    }

    /// All domains of the node (control, init).
    pub fn pd_list(&self) -> Result<Vec<PdInfo>, KernelError> {
        let cptr = self.need(CAP_NODE)?;
        match self.ask(packet(Syscall::Call, cptr, Hosted::MetricsPds.number(), &[], &[]))?.1 {
            Extra::Pds(p) => Ok(p),
            _ => Err(KernelError::Malformed),
        }
    }

    /// All counters of the node: domain, name (with its labels), value (control).
    pub fn metrics_read(&self) -> Result<Vec<(String, String, u64)>, KernelError> {
        let cptr = self.need(CAP_NODE)?;
        let label = Hosted::MetricsRead.number();
        let sequence = self.send_packet(packet(Syscall::Call, cptr, label, &[], &[]))?;
        let mut all = Vec::new();
        loop {
            let reply = self.next_reply(sequence)?;
            reply.result.map_err(|n| {
                Error::from_number(n).map_or(KernelError::Malformed, KernelError::Refused)
            })?;
            let Extra::Metrics { entries, more } = reply.extra else {
                return Err(KernelError::Malformed);
            };
            all.extend(entries);
            if !more {
                return Ok(all);
            }
        }
    }

    // -- Stubs and their regions (posix) -----------------------------------------------------

    fn stub(&self, cptr: u64, label: Hosted) -> Result<Stub, KernelError> {
        let call = packet(Syscall::Call, cptr, label.number(), &[], &[]);
        let (message, _, mut fds) = self.ask(call)?;
        let &[id, cap, pid, ..] = message.words.as_slice() else {
            return Err(KernelError::Malformed);
        };
        let fd = fds.pop().ok_or(KernelError::Malformed)?;
        let id = id as u32;
        let died = {
            let mut stubs = locked(&self.0.stubs);
            match stubs.remove(&id) {
                Some(_) => true,
                None => stubs.insert(id, Some(cap)).is_some(),
            }
        };
        if died {
            let _ = self.delete(cap);
        }
        match StubWindow::map(&fd) {
            Ok(window) => Ok(Stub { id, pid: pid as u32, window }),
            Err(_) => {
                let _ = self.stub_kill(id);
                Err(KernelError::NoMemory)
            }
        }
    }

    fn stub_cap(&self, id: u32) -> Result<u64, KernelError> {
        let cap = locked(&self.0.stubs).get(&id).copied().flatten();
        cap.ok_or(KernelError::Refused(Error::Gone))
    }

    /// Starts a stub from the clean zygote.
    pub fn stub_spawn(&self) -> Result<Stub, KernelError> {
        self.stub(self.need(CAP_STUBS)?, Hosted::StubSpawn)
    }

    /// Makes the window and kernel socket of a child of `parent`, which finds them on its own
    /// descriptor 3 (a message of tag 1) when this returns. The child's `pid` is 0: it becomes
    /// known to the kernel when the child says hello.
    pub fn stub_fork(&self, parent: u32) -> Result<Stub, KernelError> {
        self.stub(self.stub_cap(parent)?, Hosted::StubFork)
    }

    /// Kills a stub (SIGKILL); its end is told by [`Kernel::stub_events`].
    pub fn stub_kill(&self, stub: u32) -> Result<(), KernelError> {
        self.call(self.stub_cap(stub)?, Hosted::StubKill.number(), &[], &[]).map(drop)
    }

    /// Sends a stub the preemption signal (63).
    pub fn stub_preempt(&self, stub: u32) -> Result<(), KernelError> {
        self.call(self.stub_cap(stub)?, Hosted::StubPreempt.number(), &[], &[]).map(drop)
    }

    /// The next event of a stub; blocks until there is one. The stub's number means nothing
    /// afterwards.
    pub fn stub_events(&self) -> Result<StubEvent, KernelError> {
        let cptr = self.need(CAP_STUB_EVENTS)?;
        loop {
            let message = self.recv(cptr, 0, 0)?;
            let label = MessageInfo::from_word(message.info).label();
            let &[number, status, ..] = message.words.as_slice() else { continue };
            if label != Fault::StubDeath.number() {
                continue;
            }
            let id = number as u32;
            let cap = {
                let mut stubs = locked(&self.0.stubs);
                let cap = stubs.remove(&id);
                if cap.is_none() {
                    stubs.insert(id, None);
                }
                cap.flatten()
            };
            if let Some(cap) = cap {
                // The object goes with its last capability.
                let _ = self.delete(cap);
            }
            return Ok(StubEvent::Died { id, status: Exit::from_wait_status(status as i32) });
        }
    }

    /// Makes a memory region of `len` bytes of zeroes, writable here.
    pub fn region_create(&self, len: usize) -> Result<Region, KernelError> {
        let label = Hosted::RegionCreate.number();
        let call = packet(Syscall::Call, self.need(CAP_REGIONS)?, label, &[len as u64], &[]);
        let (message, _, fds) = self.ask(call)?;
        let &[id, cap, ..] = message.words.as_slice() else {
            return Err(KernelError::Malformed);
        };
        let [fd, read_only] = <[OwnedFd; 2]>::try_from(fds).map_err(|_| KernelError::Malformed)?;
        Region::granted(fd, read_only, len, id as u32, cap, self.clone()).map_err(|_| {
            let _ = self.delete(cap);
            KernelError::NoMemory
        })
    }

    /// Seals a region that this domain had made: from now on nobody can write it or change its
    /// size. This domain's mapping becomes read-only first, in place.
    pub fn region_seal(&self, region: &Region) -> Result<(), KernelError> {
        let cap = region.cptr().ok_or(Error::InvalidArgument)?;
        region.make_read_only().map_err(|_| KernelError::NoMemory)?;
        self.call(cap, Hosted::RegionSeal.number(), &[], &[]).map(drop)
    }

    /// Sends a sealed region that this domain had made to a stub: a message of tag 2 with the
    /// descriptor on the stub's descriptor 3.
    pub fn region_send(&self, region: &Region, stub: u32) -> Result<(), KernelError> {
        let cap = region.cptr().ok_or(Error::InvalidArgument)?;
        let stub = self.stub_cap(stub)?;
        self.call(cap, Hosted::RegionSend.number(), &[], &[stub]).map(drop)
    }
}

fn packet(syscall: Syscall, cptr: u64, label: u64, words: &[u64], caps: &[u64]) -> Packet {
    Packet {
        sequence: 0,
        syscall: syscall.number(),
        cptr,
        send: 0,
        reply: 0,
        info: MessageInfo::new(label, 0, caps.len(), words.len()).word(),
        words: words.to_vec(),
        caps: caps.to_vec(),
        receive: 0,
    }
}
