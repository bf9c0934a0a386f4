//! Channels: the fast path of a call, in memory that a client and a server share.
//!
//! One memfd per (client domain, server endpoint). Its layout, in bytes:
//!
//! | at | what |
//! | --- | --- |
//! | 0 | bell: bit *s* is set by the client when slot *s* holds a new request, all are taken by the server |
//! | 4 | non-zero while the server may sleep on the bell |
//! | 8 | bells rung since the channel was made (64 bits): its *wake-ups* |
//! | 16 | non-zero once the channel is revoked |
//! | 4096 | 32 slots of 64 bytes: state, "client sleeps", label, length, the client's processor |
//! | 8192 | 4096 wait words |
//! | 32768 | 32 windows, each `window` bytes: the request, then in its place the reply |
//!
//! A slot goes FREE → CLAIMED (client) → REQUEST (client) → TAKEN (server) → REPLY (server) → FREE
//! (client). A call that the client gives up on goes to ABANDONED, and back to FREE when the
//! server is done with it; TAKEN by a server that died becomes GONE ([`mark_gone`]). Each side
//! moves a slot only by compare-and-swap from the state it expects, so a hostile peer can spoil
//! its own calls and nothing else: the other side's bounds never come from shared memory unchecked.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::exec;
use crate::processor::{self, Following};
use crate::region::Mapping;

/// Slots of a channel: calls that can be under way at once.
pub const SLOTS: usize = 32;
/// Wait words of a channel.
pub const WAIT_WORDS: usize = 4096;
/// Length of a window in bytes, unless the system description says otherwise.
pub const WINDOW: usize = 256 * 1024;
/// Entries of a server's badge table, and so channels to one server.
pub const BADGES: usize = 256;
/// Length of a badge table in bytes.
pub const BADGE_TABLE_LEN: usize = BADGES * BADGE_LEN;

/// A call waits this long for a slot before it is answered [`CallError::Busy`].
const SLOT_WAIT_NS: u64 = 5_000_000_000;

const AT_BELL: usize = 0;
const AT_SERVER_SLEEPS: usize = 4;
const AT_WAKEUPS: usize = 8;
const AT_REVOKED: usize = 16;
const AT_SLOTS: usize = 4096;
const SLOT_LEN: usize = 64;
const AT_WAIT_WORDS: usize = 8192;
const AT_WINDOWS: usize = 32768;

const BADGE_LEN: usize = 16;

const FREE: u32 = 0;
const CLAIMED: u32 = 1;
const REQUEST: u32 = 2;
const TAKEN: u32 = 3;
const REPLY: u32 = 4;
const GONE: u32 = 5;
const ABANDONED: u32 = 6;

/// Length in bytes of a channel's memfd with windows of `window` bytes.
pub const fn channel_len(window: usize) -> usize {
    AT_WINDOWS + SLOTS * window
}

/// Why a call has no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The server died, or dropped the call: whether it had its effect is not known.
    #[error("the server died with the call under way")]
    Gone,
    /// No slot became free in time: nothing was done.
    #[error("the channel is busy")]
    Busy,
    /// The request or the reply is longer than the channel's window: for a request nothing was done.
    #[error("longer than the channel's window")]
    TooLarge,
    /// The channel is not usable: nothing was done.
    #[error("the channel was revoked")]
    Revoked,
    /// The bytes of a typed reply did not parse (the server's fault).
    #[error("the reply is malformed")]
    Malformed,
}

/// The words of a channel, bounds-checked once when it is mapped.
struct Channel {
    mapping: Mapping,
    window: usize,
}

struct Slot<'a> {
    state: &'a AtomicU32,
    client_sleeps: &'a AtomicU32,
    label: &'a AtomicU32,
    length: &'a AtomicU32,
    processor: &'a AtomicU32,
}

impl Channel {
    fn new(mapping: Mapping, window: usize) -> std::io::Result<Channel> {
        if window == 0 || mapping.len() < channel_len(window) || !mapping.writable() {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        Ok(Channel { mapping, window })
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        // `new` checked the length, and every offset used here is aligned and below it.
        self.mapping.word32(at).expect("inside the channel")
    }

    fn bell(&self) -> &AtomicU32 {
        self.word(AT_BELL)
    }

    fn server_sleeps(&self) -> &AtomicU32 {
        self.word(AT_SERVER_SLEEPS)
    }

    fn wakeups(&self) -> &AtomicU64 {
        self.mapping.word64(AT_WAKEUPS).expect("inside the channel")
    }

    fn revoked(&self) -> bool {
        self.word(AT_REVOKED).load(Ordering::SeqCst) != 0
    }

    fn slot(&self, index: usize) -> Slot<'_> {
        let at = AT_SLOTS + index * SLOT_LEN;
        Slot {
            state: self.word(at),
            client_sleeps: self.word(at + 4),
            label: self.word(at + 8),
            length: self.word(at + 12),
            processor: self.word(at + 16),
        }
    }

    fn wait_word(&self, index: u32) -> Option<&AtomicU32> {
        ((index as usize) < WAIT_WORDS).then(|| self.word(AT_WAIT_WORDS + 4 * index as usize))
    }

    fn window_at(&self, index: usize) -> usize {
        AT_WINDOWS + index * self.window
    }
}

impl Slot<'_> {
    /// Moves the slot on; the client is woken only if it says it sleeps.
    fn finish(&self, from: u32, to: u32) -> bool {
        let moved =
            self.state.compare_exchange(from, to, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        if moved && self.client_sleeps.load(Ordering::SeqCst) != 0 {
            exec::wake_all(self.state);
        }
        moved
    }
}

// ---------------------------------------------------------------------------------------------
// The client's end.

struct ClientInner {
    channel: Channel,
    /// Counts the slots this process freed, so that a caller can wait for one.
    freed: AtomicU32,
    /// Callers that wait for a slot.
    waiting: AtomicU32,
    words: Mutex<WordPool>,
}

struct WordPool {
    used: Vec<u64>,
    next: usize,
}

/// The client's end of a channel. Clones share it; any number of threads and tasks may call.
#[derive(Clone)]
pub struct Client(Arc<ClientInner>);

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("wakeups", &self.wakeups()).finish_non_exhaustive()
    }
}

thread_local! {
    /// Where this thread looks for a free slot first: threads that call often keep to their own.
    static HINT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Spreads the threads of a process over the slots.
static NEXT_HINT: AtomicU32 = AtomicU32::new(0);

fn hint() -> usize {
    HINT.with(|h| {
        h.get().unwrap_or_else(|| {
            let n = NEXT_HINT.fetch_add(1, Ordering::Relaxed) as usize % SLOTS;
            h.set(Some(n));
            n
        })
    })
}

impl Client {
    /// The client's end of the channel in `mapping`, with windows of `window` bytes.
    pub fn new(mapping: Mapping, window: usize) -> std::io::Result<Client> {
        Ok(Client(Arc::new(ClientInner {
            channel: Channel::new(mapping, window)?,
            freed: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            words: Mutex::new(WordPool { used: vec![0; WAIT_WORDS / 64], next: 0 }),
        })))
    }

    /// Longest request and longest reply, in bytes.
    pub fn window(&self) -> usize {
        self.0.channel.window
    }

    /// Request bells rung on this channel since it was made, by all its users.
    pub fn wakeups(&self) -> u64 {
        self.0.channel.wakeups().load(Ordering::Relaxed)
    }

    /// Calls the server: sends `request` under `label`, waits for the reply, puts its bytes in
    /// `reply` (replacing what was there) and returns its label.
    ///
    /// Waits at most five seconds for a free slot; for the reply it waits as long as the server
    /// lives. Dropping the future gives the call up; the server may carry it out all the same.
    pub async fn call(
        &self,
        label: u32,
        request: &[u8],
        reply: &mut Vec<u8>,
    ) -> Result<u32, CallError> {
        let inner = &*self.0;
        let channel = &inner.channel;
        reply.clear();
        if request.len() > channel.window {
            return Err(CallError::TooLarge);
        }
        if channel.revoked() {
            return Err(CallError::Revoked);
        }
        let index = inner.claim().await?;
        let slot = channel.slot(index);
        let mut held = Held { inner, index, done: false };
        if !channel.mapping.write(channel.window_at(index), request) {
            return Err(CallError::Revoked);
        }
        slot.label.store(label, Ordering::Relaxed);
        slot.length.store(request.len() as u32, Ordering::Relaxed);
        slot.processor.store(processor::current(), Ordering::Relaxed);
        slot.client_sleeps.store(0, Ordering::Relaxed);
        slot.state.store(REQUEST, Ordering::SeqCst);
        // Whoever revokes says so first and then ends the requests that stand, so one of the two
        // sees the other.
        if channel.revoked() {
            return Err(CallError::Revoked);
        }
        inner.ring(index);
        let state = std::future::poll_fn(|_| {
            let state = slot.state.load(Ordering::Acquire);
            if state != REQUEST && state != TAKEN {
                return Poll::Ready(state);
            }
            slot.client_sleeps.store(1, Ordering::SeqCst);
            let state = slot.state.load(Ordering::SeqCst);
            if state != REQUEST && state != TAKEN {
                return Poll::Ready(state);
            }
            // The server takes the slot without a bell, so the wait may begin at REQUEST and end at
            // TAKEN: then it begins again.
            exec::register(slot.state, state);
            Poll::Pending
        })
        .await;
        if state != REPLY {
            held.done = state == GONE;
            if held.done {
                inner.release(index);
            }
            return Err(CallError::Gone);
        }
        let label = slot.label.load(Ordering::Relaxed);
        let length = slot.length.load(Ordering::Relaxed) as usize;
        let copied = length <= channel.window
            && channel.mapping.append_to(channel.window_at(index), length, reply);
        held.done = true;
        inner.release(index);
        if copied { Ok(label) } else { Err(CallError::TooLarge) }
    }

    /// Takes one of the channel's wait words, which the server can [`Server::signal`]; it is given
    /// back on drop.
    pub fn wait_word(&self) -> Result<WaitWord, CallError> {
        let mut pool = self.0.words.lock().unwrap_or_else(PoisonError::into_inner);
        let groups = pool.used.len();
        for i in 0..groups {
            let g = (pool.next + i) % groups;
            let bit = (!pool.used[g]).trailing_zeros();
            if bit < 64 {
                pool.used[g] |= 1 << bit;
                pool.next = g;
                let index = (g * 64) as u32 + bit;
                drop(pool);
                if let Some(word) = self.0.channel.wait_word(index) {
                    word.store(0, Ordering::SeqCst);
                }
                return Ok(WaitWord { client: self.0.clone(), index });
            }
        }
        Err(CallError::Busy)
    }
}

impl ClientInner {
    fn try_claim(&self) -> Option<usize> {
        let first = hint();
        (0..SLOTS).map(|i| (first + i) % SLOTS).find(|&i| {
            let state = self.channel.slot(i).state;
            state.load(Ordering::Relaxed) == FREE
                && state
                    .compare_exchange(FREE, CLAIMED, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
        })
    }

    async fn claim(&self) -> Result<usize, CallError> {
        if let Some(index) = self.try_claim() {
            return Ok(index);
        }
        let until = exec::now_ns() + SLOT_WAIT_NS;
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _waiting = Waiting(&self.waiting);
        std::future::poll_fn(|_| {
            let freed = self.freed.load(Ordering::SeqCst);
            if let Some(index) = self.try_claim() {
                return Poll::Ready(Ok(index));
            }
            let now = exec::now_ns();
            if now >= until {
                return Poll::Ready(Err(CallError::Busy));
            }
            exec::register(&self.freed, freed);
            // An abandoned slot is freed by the server, which does not count here.
            exec::deadline(until.min(now + 10_000_000));
            Poll::Pending
        })
        .await
    }

    fn release(&self, index: usize) {
        self.channel.slot(index).state.store(FREE, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) != 0 {
            self.freed.fetch_add(1, Ordering::SeqCst);
            exec::wake_all(&self.freed);
        }
    }

    fn ring(&self, index: usize) {
        self.channel.wakeups().fetch_add(1, Ordering::Relaxed);
        self.channel.bell().fetch_or(1 << index, Ordering::SeqCst);
        if self.channel.server_sleeps().load(Ordering::SeqCst) != 0 {
            exec::wake_all(self.channel.bell());
        }
    }
}

struct Waiting<'a>(&'a AtomicU32);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A slot of a call that is under way: gives it up when the future is dropped.
struct Held<'a> {
    inner: &'a ClientInner,
    index: usize,
    done: bool,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let state = self.inner.channel.slot(self.index).state;
        loop {
            let now = state.load(Ordering::Acquire);
            if now == TAKEN {
                if state
                    .compare_exchange(TAKEN, ABANDONED, Ordering::SeqCst, Ordering::Relaxed)
                    .is_ok()
                {
                    return;
                }
            } else if now == REQUEST {
                if state
                    .compare_exchange(REQUEST, CLAIMED, Ordering::SeqCst, Ordering::Relaxed)
                    .is_ok()
                {
                    return self.inner.release(self.index);
                }
            } else {
                return self.inner.release(self.index);
            }
        }
    }
}

/// One futex word of a channel that the server can signal: 0 while armed. Given back on drop.
pub struct WaitWord {
    client: Arc<ClientInner>,
    index: u32,
}

impl WaitWord {
    /// The number by which the server knows it.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The word: 0 while armed, 1 when signalled.
    pub fn word(&self) -> &AtomicU32 {
        // `wait_word` handed out an index below WAIT_WORDS.
        self.client.channel.wait_word(self.index).expect("inside the channel")
    }

    /// Arms it again.
    pub fn arm(&self) {
        self.word().store(0, Ordering::SeqCst);
    }

    /// Ends when it was signalled.
    pub async fn signalled(&self) {
        exec::changed(self.word(), 0).await;
    }
}

impl Drop for WaitWord {
    fn drop(&mut self) {
        let mut pool = self.client.words.lock().unwrap_or_else(PoisonError::into_inner);
        let (g, bit) = (self.index as usize / 64, self.index % 64);
        if let Some(group) = pool.used.get_mut(g) {
            *group &= !(1 << bit);
        }
    }
}

// ---------------------------------------------------------------------------------------------
// The server's end.

/// A channel to a server: index into the badge table in the low 16 bits, generation above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(pub u64);

impl ChannelId {
    /// The entry of the badge table.
    pub fn index(self) -> usize {
        (self.0 & 0xffff) as usize
    }
}

/// Writes entry `index` of a badge table: `channel` 0 marks it dead. The kernel alone calls this,
/// on its writable mapping.
pub fn write_badge(table: &Mapping, index: usize, channel: u64, badge: u64) -> bool {
    let (Some(id), Some(word)) =
        (table.word64(index * BADGE_LEN), table.word64(index * BADGE_LEN + 8))
    else {
        return false;
    };
    id.store(0, Ordering::SeqCst);
    word.store(badge, Ordering::SeqCst);
    id.store(channel, Ordering::SeqCst);
    true
}

fn read_badge(table: &Mapping, channel: ChannelId) -> Option<u64> {
    let id = table.word64(channel.index() * BADGE_LEN)?;
    let badge = table.word64(channel.index() * BADGE_LEN + 8)?.load(Ordering::SeqCst);
    (id.load(Ordering::SeqCst) == channel.0).then_some(badge)
}

/// Answers [`CallError::Gone`] to every call that the dead server had taken, and frees the slots
/// of calls that nobody waits for. Called by the kernel once the server's process is reaped.
pub fn mark_gone(channel: &Mapping) {
    for i in 0..SLOTS {
        let at = AT_SLOTS + i * SLOT_LEN;
        let (Some(state), Some(_)) = (channel.word32(at), channel.word32(at + 4)) else { return };
        if state.compare_exchange(TAKEN, GONE, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
            exec::wake_all(state);
        }
        let _ = state.compare_exchange(ABANDONED, FREE, Ordering::SeqCst, Ordering::Relaxed);
    }
}

/// Ends the channel for good: every call under way is answered [`CallError::Gone`], every further
/// one [`CallError::Revoked`].
pub fn mark_revoked(channel: &Mapping) {
    if let Some(word) = channel.word32(AT_REVOKED) {
        word.store(1, Ordering::SeqCst);
    }
    mark_gone(channel);
    for i in 0..SLOTS {
        let Some(state) = channel.word32(AT_SLOTS + i * SLOT_LEN) else { return };
        if state.compare_exchange(REQUEST, GONE, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
            exec::wake_all(state);
        }
    }
}

/// Request bells rung on a channel since it was made. The client writes the count, so it is as
/// honest as the client.
pub fn wakeups(channel: &Mapping) -> u64 {
    channel.word64(AT_WAKEUPS).map_or(0, |w| w.load(Ordering::Relaxed))
}

/// What the listener thread hands to the server's thread.
#[derive(Default)]
pub(crate) struct Inbox {
    /// Counts what came in.
    pub(crate) bell: AtomicU32,
    queue: Mutex<Vec<Arrival>>,
}

pub(crate) enum Arrival {
    Channel { id: ChannelId, client: String, mapping: Mapping, window: usize },
    Gone(ChannelId),
}

impl Inbox {
    pub(crate) fn push(&self, arrival: Arrival) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push(arrival);
        self.bell.fetch_add(1, Ordering::SeqCst);
        exec::wake_all(&self.bell);
    }
}

struct Served {
    id: ChannelId,
    client: String,
    channel: Channel,
    /// Slots whose bell was taken and that were not looked at yet.
    rung: Cell<u32>,
}

/// The receiving end of all endpoints of a domain. For the one thread that serves.
pub struct Server {
    channels: RefCell<Vec<Rc<Served>>>,
    /// Channel to look at first.
    turn: Cell<usize>,
    badges: Option<Mapping>,
    inbox: Arc<Inbox>,
    seen: Cell<u32>,
    /// The serving thread's [`exec::sleeps`] at the last request.
    sleeps: Cell<u64>,
    following: RefCell<Option<Following>>,
}

impl Server {
    pub(crate) fn new(badges: Option<Mapping>, inbox: Arc<Inbox>) -> Server {
        Server {
            channels: RefCell::default(),
            turn: Cell::new(0),
            badges,
            inbox,
            seen: Cell::new(0),
            sleeps: Cell::new(0),
            following: RefCell::default(),
        }
    }

    pub(crate) fn attach(
        &self,
        id: ChannelId,
        client: String,
        mapping: Mapping,
        window: usize,
    ) -> std::io::Result<()> {
        let channel = Channel::new(mapping, window)?;
        // A predecessor may have taken bells and not the requests: look at every slot once.
        channel.bell().fetch_or(u32::MAX, Ordering::SeqCst);
        self.channels.borrow_mut().push(Rc::new(Served {
            id,
            client,
            channel,
            rung: Cell::new(0),
        }));
        Ok(())
    }

    /// Serves one more channel, of badge 0: for tests with a client that is not this crate's.
    #[doc(hidden)]
    pub fn adopt_for_test(&self, mapping: Mapping, window: usize) -> std::io::Result<()> {
        self.attach(ChannelId(2 << 16 | 1), "test".into(), mapping, window)
    }

    /// From now on the calling thread, which is the one that serves, runs where its callers do.
    pub fn follow_callers(&self) {
        // First that of before lets go of its processor, if there was one.
        self.following.take();
        self.following.replace(Following::new());
    }

    /// Lets go of a processor from which nobody calls any more: to be called from time to time by a
    /// server that follows its callers.
    pub fn look_for_callers(&self) {
        if let Some(following) = &mut *self.following.borrow_mut() {
            following.look();
        }
    }

    /// A timer of the serving thread was `late` ns late for want of a processor, not for its own work: on a
    /// full machine nobody is followed.
    pub fn ran_late(&self, late: u64) {
        if let Some(following) = &mut *self.following.borrow_mut() {
            following.ran_late(late);
        }
    }

    fn take_arrivals(&self) {
        let bell = self.inbox.bell.load(Ordering::SeqCst);
        if bell == self.seen.get() {
            return;
        }
        self.seen.set(bell);
        let queue =
            std::mem::take(&mut *self.inbox.queue.lock().unwrap_or_else(PoisonError::into_inner));
        for arrival in queue {
            match arrival {
                Arrival::Channel { id, client, mapping, window } => {
                    let _ = self.attach(id, client, mapping, window);
                }
                Arrival::Gone(id) => self.channels.borrow_mut().retain(|c| c.id != id),
            }
        }
    }

    /// The next request, if there is one: the channels take turns. The request's bytes are copied
    /// out once; the badge comes from the table that only the kernel can write.
    pub fn try_receive(&self) -> Option<Call> {
        self.take_arrivals();
        let channels = self.channels.borrow();
        let n = channels.len();
        for i in 0..n {
            let turn = (self.turn.get() + i) % n;
            let served = &channels[turn];
            let bell = served.channel.bell();
            if served.channel.server_sleeps().load(Ordering::Relaxed) != 0 {
                served.channel.server_sleeps().store(0, Ordering::Relaxed);
            }
            if bell.load(Ordering::Relaxed) != 0 {
                served.rung.set(served.rung.get() | bell.swap(0, Ordering::SeqCst));
            }
            while served.rung.get() != 0 {
                let index = served.rung.get().trailing_zeros() as usize;
                served.rung.set(served.rung.get() & (served.rung.get() - 1));
                if let Some(call) = self.take(served, index) {
                    self.turn.set(turn + 1);
                    return Some(call);
                }
            }
        }
        None
    }

    fn take(&self, served: &Rc<Served>, index: usize) -> Option<Call> {
        let slot = served.channel.slot(index);
        if slot.state.load(Ordering::Relaxed) != REQUEST {
            return None;
        }
        // Without a badge (revoked, or its client died) the request is not served.
        let badge = match &self.badges {
            Some(table) => read_badge(table, served.id)?,
            None => 0,
        };
        slot.state.compare_exchange(REQUEST, TAKEN, Ordering::Acquire, Ordering::Relaxed).ok()?;
        let label = slot.label.load(Ordering::Relaxed);
        let length = slot.length.load(Ordering::Relaxed) as usize;
        let sleeps = exec::sleeps();
        let slept = self.sleeps.replace(sleeps) != sleeps;
        if let Some(following) = &mut *self.following.borrow_mut() {
            following.asked(slot.processor.load(Ordering::Relaxed), slept);
        }
        let mut request = Vec::new();
        if length > served.channel.window
            || !served.channel.mapping.append_to(
                served.channel.window_at(index),
                length,
                &mut request,
            )
        {
            slot.finish(TAKEN, GONE);
            return None;
        }
        Some(Call {
            badge,
            channel: served.id,
            label,
            request,
            served: served.clone(),
            index,
            answered: false,
        })
    }

    /// The next request; waits for it.
    pub async fn receive(&self) -> Call {
        std::future::poll_fn(|_| match self.try_receive() {
            Some(call) => Poll::Ready(call),
            None => {
                self.register();
                Poll::Pending
            }
        })
        .await
    }

    /// Registers every bell, and the one for new channels, with [`exec`] — for a loop of one's own
    /// that found nothing in [`Server::try_receive`].
    pub fn register(&self) {
        exec::register(&self.inbox.bell, self.seen.get());
        for served in self.channels.borrow().iter() {
            served.channel.server_sleeps().store(1, Ordering::SeqCst);
            exec::register(served.channel.bell(), 0);
        }
    }

    /// Sets the wait word `wait_index` of the client at the other end of `channel`, and wakes it.
    /// Nothing happens if that client is gone.
    pub fn signal(&self, channel: ChannelId, wait_index: u32) {
        let channels = self.channels.borrow();
        let Some(served) = channels.iter().find(|c| c.id == channel) else { return };
        if let Some(word) = served.channel.wait_word(wait_index) {
            word.store(1, Ordering::SeqCst);
            exec::wake_all(word);
        }
    }

    /// Role of the client at the other end of `channel`, while it lives.
    pub fn client_role(&self, channel: ChannelId) -> Option<String> {
        self.channels.borrow().iter().find(|c| c.id == channel).map(|c| c.client.clone())
    }

    /// The channels that live.
    pub fn channels(&self) -> Vec<ChannelId> {
        self.channels.borrow().iter().map(|c| c.id).collect()
    }
}

/// A request that was received and must be replied to; dropped without a reply, its client sees
/// [`CallError::Gone`].
pub struct Call {
    /// The badge of the capability by which it was sent.
    pub badge: u64,
    /// The channel it came on.
    pub channel: ChannelId,
    /// Its label.
    pub label: u32,
    /// Its bytes.
    pub request: Vec<u8>,
    served: Rc<Served>,
    index: usize,
    answered: bool,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call")
            .field("badge", &self.badge)
            .field("channel", &self.channel)
            .field("label", &self.label)
            .field("bytes", &self.request.len())
            .finish_non_exhaustive()
    }
}

impl Call {
    /// Longest reply in bytes.
    pub fn window(&self) -> usize {
        self.served.channel.window
    }

    /// Replies. Bytes beyond the window's length are not sent: the client sees
    /// [`CallError::TooLarge`].
    pub fn reply(mut self, label: u32, bytes: &[u8]) {
        self.answered = true;
        let channel = &self.served.channel;
        let slot = channel.slot(self.index);
        let fits = bytes.len() <= channel.window
            && channel.mapping.write(channel.window_at(self.index), bytes);
        slot.label.store(label, Ordering::Relaxed);
        slot.length.store(if fits { bytes.len() as u32 } else { u32::MAX }, Ordering::Relaxed);
        self.finish(REPLY);
    }

    fn finish(&self, to: u32) {
        let slot = self.served.channel.slot(self.index);
        if !slot.finish(TAKEN, to) {
            // Nobody waits any more.
            slot.finish(ABANDONED, FREE);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.answered {
            self.finish(GONE);
        }
    }
}

/// One task's loop: receives, handles, replies. Run several of them for calls that wait.
pub async fn serve<H>(server: &Server, handler: H)
where
    H: AsyncFn(&Call) -> (u32, Vec<u8>),
{
    loop {
        let call = server.receive().await;
        let (label, bytes) = handler(&call).await;
        call.reply(label, &bytes);
    }
}

/// A typed call: label 0, postcard both ways.
pub async fn rpc<Q, R>(client: &Client, request: &Q) -> Result<R, CallError>
where
    Q: Serialize + ?Sized,
    R: DeserializeOwned,
{
    let request = postcard::to_stdvec(request).map_err(|_| CallError::TooLarge)?;
    let mut reply = Vec::new();
    client.call(0, &request, &mut reply).await?;
    postcard::from_bytes(&reply).map_err(|_| CallError::Malformed)
}

/// Both ends of a channel in one process, badge 0: for tests of servers and clients.
pub fn pair(window: usize) -> std::io::Result<(Client, Server)> {
    let fd = rustix::fs::memfd_create("channel", rustix::fs::MemfdFlags::CLOEXEC)?;
    let len = channel_len(window);
    rustix::fs::ftruncate(&fd, len as u64)?;
    let client = Client::new(Mapping::new(fd.as_fd(), len, true)?, window)?;
    let server = Server::new(None, Arc::default());
    server.attach(
        ChannelId(1 << 16),
        "test".into(),
        Mapping::new(fd.as_fd(), len, true)?,
        window,
    )?;
    Ok((client, server))
}

/// The type of a server's tasks, as [`exec::run`] takes them.
pub type Task<'a> = std::pin::Pin<Box<dyn Future<Output = ()> + 'a>>;
