//! The slow path: requests to the kernel process over descriptor 3.
//!
//! Any thread may ask; a listener thread receives what the kernel sends, answers and notices alike.
//! Requests block their thread, and cost a round trip through the kernel process: nothing on a hot
//! path goes here.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::channel::{Arrival, ChannelId, Inbox};
use crate::region::{Mapping, Region};
use crate::wire::{self, Answer, Notice, Packet, Refusal, Request};
pub use crate::wire::{Exit, PdInfo};

/// Length of a stub's window in bytes.
pub const STUB_WINDOW: usize = 128 * 1024;

/// Byte offset in a stub's window of the 64-bit count of request bells it rang.
pub const STUB_WAKEUPS_AT: usize = 0x10;

/// Name of the capability for stubs among those a domain starts with.
pub const CAP_STUBS: &str = "stubs";
/// Name of the capability for looking at the node.
pub const CAP_NODE: &str = "node";
/// Prefix of the names of PD capabilities: `pd:vfs`.
pub const CAP_PD: &str = "pd:";

/// Why a slow-path request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The kernel refused.
    #[error("the kernel refused: {0}")]
    Refused(#[from] Refusal),
    /// This domain was given no such capability.
    #[error("this domain holds no capability for that")]
    NoCapability,
    /// The kernel cannot be reached: the node is going down.
    #[error("the kernel cannot be reached")]
    Closed,
    /// The answer was not what the request asks for (a fault of the kernel).
    #[error("the kernel's answer is malformed")]
    Malformed,
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

#[derive(Default)]
struct Mail {
    /// Requests that wait, with the answers that came.
    answers: HashMap<u32, VecDeque<(Result<Answer, Refusal>, Vec<OwnedFd>)>>,
    pd_events: VecDeque<PdEvent>,
    stub_events: VecDeque<StubEvent>,
    closed: bool,
}

struct Inner {
    socket: OwnedFd,
    sequence: AtomicU32,
    mail: Mutex<Mail>,
    arrived: Condvar,
    caps: Mutex<HashMap<String, u64>>,
    inbox: Arc<Inbox>,
}

/// This domain's way to the kernel. Clones share it.
#[derive(Clone)]
pub struct Kernel(Arc<Inner>);

impl Kernel {
    /// Takes over the kernel socket; the boot message was read from it already.
    pub(crate) fn new(socket: OwnedFd, caps: Vec<(String, u64)>, inbox: Arc<Inbox>) -> Kernel {
        Kernel(Arc::new(Inner {
            socket,
            sequence: AtomicU32::new(0),
            mail: Mutex::default(),
            arrived: Condvar::new(),
            caps: Mutex::new(caps.into_iter().collect()),
            inbox,
        }))
    }

    /// Receives what the kernel sends until the socket ends; the body of the listener thread.
    pub(crate) fn listen(&self) {
        let mut bytes = Vec::with_capacity(wire::MAX_PACKET);
        while let Ok(Some(received)) =
            crate::socket::receive(self.0.socket.as_fd(), &mut bytes, false)
        {
            if let Ok(notice) = postcard::from_bytes::<Notice>(&bytes) {
                self.deliver(notice, received.descriptors);
            }
        }
        self.mail().closed = true;
        self.0.arrived.notify_all();
    }

    fn mail(&self) -> MutexGuard<'_, Mail> {
        self.0.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deliver(&self, notice: Notice, mut descriptors: Vec<OwnedFd>) {
        match notice {
            Notice::Answer { sequence, answer } => {
                if let Some(queue) = self.mail().answers.get_mut(&sequence) {
                    queue.push_back((answer, descriptors));
                }
            }
            Notice::Channel(info) => {
                if let Some(fd) = descriptors.pop() {
                    self.0.inbox.push(Arrival::Channel {
                        id: ChannelId(info.channel),
                        client: info.client,
                        fd,
                        window: info.window as usize,
                    });
                }
                return;
            }
            Notice::ChannelGone { channel } => {
                self.0.inbox.push(Arrival::Gone(ChannelId(channel)));
                return;
            }
            Notice::PdDied { role, pid, exit } => {
                self.mail().pd_events.push_back(PdEvent { role, pid, status: exit });
            }
            Notice::StubDied { stub, exit } => {
                self.mail().stub_events.push_back(StubEvent::Died { id: stub, status: exit });
            }
            Notice::Boot { .. } | Notice::Descriptors => return,
        }
        self.0.arrived.notify_all();
    }

    fn send(&self, request: Request) -> Result<u32, KernelError> {
        let sequence = self.0.sequence.fetch_add(1, Ordering::Relaxed);
        let bytes = postcard::to_stdvec(&Packet { sequence, request })
            .map_err(|_| KernelError::Malformed)?;
        if bytes.len() > wire::MAX_PACKET {
            return Err(Refusal::InvalidArgument.into());
        }
        self.mail().answers.insert(sequence, VecDeque::new());
        if crate::socket::send(self.0.socket.as_fd(), &bytes, &[], false).is_err() {
            self.mail().answers.remove(&sequence);
            return Err(KernelError::Closed);
        }
        Ok(sequence)
    }

    /// Waits for the next packet that answers `sequence`; `last` says whether it is the last.
    fn answer(
        &self,
        sequence: u32,
        last: impl Fn(&Result<Answer, Refusal>) -> bool,
    ) -> Result<(Answer, Vec<OwnedFd>), KernelError> {
        let mut mail = self.mail();
        loop {
            let Some(queue) = mail.answers.get_mut(&sequence) else {
                return Err(KernelError::Malformed);
            };
            if let Some((answer, fds)) = queue.pop_front() {
                if last(&answer) {
                    mail.answers.remove(&sequence);
                }
                return Ok((answer?, fds));
            }
            if mail.closed {
                mail.answers.remove(&sequence);
                return Err(KernelError::Closed);
            }
            mail = self.0.arrived.wait(mail).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn ask(&self, request: Request) -> Result<(Answer, Vec<OwnedFd>), KernelError> {
        let sequence = self.send(request)?;
        self.answer(sequence, |_| true)
    }

    fn done(&self, request: Request) -> Result<(), KernelError> {
        match self.ask(request)?.0 {
            Answer::Done => Ok(()),
            _ => Err(KernelError::Malformed),
        }
    }

    /// Address of a capability that this domain started with: an endpoint by its channel's name,
    /// [`CAP_STUBS`], [`CAP_NODE`], or `pd:` and a role.
    pub fn capability(&self, name: &str) -> Option<u64> {
        self.0.caps.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied()
    }

    fn need(&self, name: &str) -> Result<u64, KernelError> {
        self.capability(name).ok_or(KernelError::NoCapability)
    }

    // -- Capabilities ------------------------------------------------------------------------

    /// Invokes the object that the capability at `cptr` names, seL4-style: returns the reply's
    /// message registers.
    pub fn invoke(
        &self,
        cptr: u64,
        label: u64,
        registers: &[u64],
        caps: &[u64],
    ) -> Result<Vec<u64>, KernelError> {
        let request =
            Request::Invoke { cptr, label, registers: registers.to_vec(), caps: caps.to_vec() };
        match self.ask(request)?.0 {
            Answer::Registers(r) => Ok(r),
            Answer::Done => Ok(Vec::new()),
            _ => Err(KernelError::Malformed),
        }
    }

    /// Signals a notification.
    pub fn signal(&self, cptr: u64) -> Result<(), KernelError> {
        self.done(Request::Signal { cptr })
    }

    /// Waits until a notification is signalled; returns its word (the OR of the badges).
    pub fn wait(&self, cptr: u64) -> Result<u64, KernelError> {
        match self.ask(Request::Wait { cptr })?.0 {
            Answer::Registers(r) => r.first().copied().ok_or(KernelError::Malformed),
            _ => Err(KernelError::Malformed),
        }
    }

    // -- Domains (init, control) -------------------------------------------------------------

    /// Starts the domain `role` if it does not run (init).
    pub fn pd_start(&self, role: &str) -> Result<(), KernelError> {
        let cptr = self.need(&format!("{CAP_PD}{role}"))?;
        self.done(Request::PdStart { cptr })
    }

    /// Kills the domain `role` (init).
    pub fn pd_kill(&self, role: &str) -> Result<(), KernelError> {
        let cptr = self.need(&format!("{CAP_PD}{role}"))?;
        self.done(Request::PdKill { cptr })
    }

    /// The next end of a domain; blocks until there is one (init).
    pub fn pd_events(&self) -> Result<PdEvent, KernelError> {
        self.next_event(|mail| mail.pd_events.pop_front())
    }

    /// All domains of the node (control, init).
    pub fn pd_list(&self) -> Result<Vec<PdInfo>, KernelError> {
        let cptr = self.need(CAP_NODE)?;
        match self.ask(Request::PdList { cptr })?.0 {
            Answer::Pds(p) => Ok(p),
            _ => Err(KernelError::Malformed),
        }
    }

    /// All counters of the node: domain, name (with its labels), value (control).
    pub fn metrics_read(&self) -> Result<Vec<(String, String, u64)>, KernelError> {
        let cptr = self.need(CAP_NODE)?;
        let sequence = self.send(Request::MetricsRead { cptr })?;
        let mut all = Vec::new();
        loop {
            let last =
                |a: &Result<Answer, Refusal>| !matches!(a, Ok(Answer::Metrics { more: true, .. }));
            match self.answer(sequence, last)?.0 {
                Answer::Metrics { entries, more } => {
                    all.extend(entries);
                    if !more {
                        return Ok(all);
                    }
                }
                _ => return Err(KernelError::Malformed),
            }
        }
    }

    fn next_event<T>(&self, pop: impl Fn(&mut Mail) -> Option<T>) -> Result<T, KernelError> {
        let mut mail = self.mail();
        loop {
            if let Some(event) = pop(&mut mail) {
                return Ok(event);
            }
            if mail.closed {
                return Err(KernelError::Closed);
            }
            mail = self.0.arrived.wait(mail).unwrap_or_else(PoisonError::into_inner);
        }
    }

    // -- Stubs and their regions (posix) -----------------------------------------------------

    fn stub(&self, request: Request) -> Result<Stub, KernelError> {
        match self.ask(request)? {
            (Answer::Stub { id, pid }, mut fds) => {
                let fd = fds.pop().ok_or(KernelError::Malformed)?;
                let window = StubWindow::map(&fd).map_err(|_| Refusal::NotEnoughMemory)?;
                Ok(Stub { id, pid, window })
            }
            _ => Err(KernelError::Malformed),
        }
    }

    /// Starts a stub from the clean zygote.
    pub fn stub_spawn(&self) -> Result<Stub, KernelError> {
        self.stub(Request::StubSpawn { cptr: self.need(CAP_STUBS)? })
    }

    /// Makes the window and kernel socket of a child of `parent`, which received them on its own
    /// descriptor 3 when this returns. The child's `pid` is 0: it becomes known to the kernel when
    /// the child says hello.
    pub fn stub_fork(&self, parent: u32) -> Result<Stub, KernelError> {
        self.stub(Request::StubFork { cptr: self.need(CAP_STUBS)?, parent })
    }

    /// Kills a stub (SIGKILL); its end is told by [`Kernel::stub_events`].
    pub fn stub_kill(&self, stub: u32) -> Result<(), KernelError> {
        self.done(Request::StubKill { cptr: self.need(CAP_STUBS)?, stub })
    }

    /// Sends a stub the preemption signal (63).
    pub fn stub_preempt(&self, stub: u32) -> Result<(), KernelError> {
        self.done(Request::StubPreempt { cptr: self.need(CAP_STUBS)?, stub })
    }

    /// The next event of a stub; blocks until there is one.
    pub fn stub_events(&self) -> Result<StubEvent, KernelError> {
        self.next_event(|mail| mail.stub_events.pop_front())
    }

    /// The stubs that live: what a restarted personality finds.
    pub fn stub_list(&self) -> Result<Vec<u32>, KernelError> {
        match self.ask(Request::StubList { cptr: self.need(CAP_STUBS)? })?.0 {
            Answer::Stubs(s) => Ok(s),
            _ => Err(KernelError::Malformed),
        }
    }

    /// Maps the window of a stub that lives.
    pub fn stub_adopt(&self, stub: u32) -> Result<Stub, KernelError> {
        self.stub(Request::StubAdopt { cptr: self.need(CAP_STUBS)?, stub })
    }

    /// Makes a memory region of `len` bytes of zeroes, writable here.
    pub fn region_create(&self, len: usize) -> Result<Region, KernelError> {
        let cptr = self.need(CAP_STUBS)?;
        match self.ask(Request::RegionCreate { cptr, len: len as u64 })? {
            (Answer::Region { id }, fds) => {
                let [fd, read_only] =
                    <[OwnedFd; 2]>::try_from(fds).map_err(|_| KernelError::Malformed)?;
                Region::granted(fd, read_only, len, id, self.clone())
                    .map_err(|_| Refusal::NotEnoughMemory.into())
            }
            _ => Err(KernelError::Malformed),
        }
    }

    /// Seals a region that this domain had made: from now on nobody can write it or change its
    /// size. This domain's mapping becomes read-only first, in place.
    pub fn region_seal(&self, region: &Region) -> Result<(), KernelError> {
        let cptr = self.need(CAP_STUBS)?;
        let id = region.id().ok_or(Refusal::InvalidArgument)?;
        region.make_read_only().map_err(|e| Refusal::Host(e.raw_os_error().unwrap_or(0)))?;
        self.done(Request::RegionSeal { cptr, region: id })
    }

    /// Sends a region that this domain had made to a stub: a message of tag 2 with the descriptor on
    /// the stub's descriptor 3.
    pub fn region_send(&self, region: &Region, stub: u32) -> Result<(), KernelError> {
        let cptr = self.need(CAP_STUBS)?;
        let region = region.id().ok_or(Refusal::InvalidArgument)?;
        self.done(Request::RegionSend { cptr, region, stub })
    }

    /// Gives a region back to the kernel, without waiting for its answer.
    pub(crate) fn region_drop(&self, region: u32) {
        let Ok(cptr) = self.need(CAP_STUBS) else { return };
        if let Ok(sequence) = self.send(Request::RegionDrop { cptr, region }) {
            // The answer finds nobody and is dropped.
            self.mail().answers.remove(&sequence);
        }
    }
}
