//! The traffic of one connection: chains and messages in the order in which they were posted, keys
//! of the peer's chunks, credits.
//!
//! What is posted waits in one queue and goes out piece by piece (a piece ends where a chunk does)
//! as keys, room in the ring and room in the queue pair allow. Work requests complete in order, so
//! one completion ends all before it; an entry of the queue ends with its last.

use super::buffers::{Buffers, RECEIVES, Staged};
use super::config::Patience;
use super::connection::{Connection, Terms};
use super::device::Device;
use super::memory::Memory;
use super::queue_pair::{QueuePair, Remote, Work};
use super::wire::{Chunk, MAX_KEYS, Message};
use crate::fabric::{Address, FabricError, FabricEvent, Outcome, Token, Verb};
use crate::layout::control;
use clustix_pd::{exec, metrics};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::rc::Rc;

/// Buffers of the peer's that the node's own messages leave to the fabric's.
const RESERVED: u64 = 8;
/// Taken messages that the peer is not told of at once.
const UNTOLD: u64 = RECEIVES / 4;
/// Entries that may wait. More than the engine ever has under way: a peer that falls so far behind
/// is as good as dead.
const MAX_ENTRIES: usize = 65_536;
/// Prepared requests that are posted without waiting for the next poll.
const PROMPT: usize = 8;

/// How far a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Asked for; the other side has not answered.
    Connecting,
    /// Accepted; the other side does not know yet.
    Accepted,
    /// Verbs go both ways.
    Open,
}

/// How a completion names what it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct WorkId {
    /// Whose connection.
    pub slot: u8,
    /// Which of its connections.
    pub generation: u64,
    /// A buffer, or a request's number (its low bits).
    pub what: Which,
}

/// Of a connection's work requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Which {
    /// The buffer with this index.
    Receive(u64),
    /// The request with this number.
    Request(u64),
}

impl WorkId {
    const NUMBER: u32 = 24;
    const MASK: u64 = (1 << Self::NUMBER) - 1;

    pub(super) fn encode(self) -> u64 {
        let (receive, number) = match self.what {
            Which::Receive(i) => (1, i),
            Which::Request(n) => (0, n),
        };
        (self.generation << 30)
            | (u64::from(self.slot) << 25)
            | (receive << Self::NUMBER)
            | (number & Self::MASK)
    }

    pub(super) fn decode(id: u64) -> WorkId {
        let number = id & Self::MASK;
        let receive = (id >> Self::NUMBER) & 1 == 1;
        WorkId {
            slot: ((id >> 25) & 31) as u8,
            generation: id >> 30,
            what: if receive { Which::Receive(number) } else { Which::Request(number) },
        }
    }
}

enum What {
    Chain(Token, Vec<Verb>),
    Message(Vec<u8>),
}

struct Entry {
    what: What,
    outcomes: Vec<Outcome>,
    /// Requests posted and not complete.
    under_way: u32,
    posted: bool,
    refused: Option<FabricError>,
}

/// What a completed request leaves.
enum Take {
    Nothing,
    Word { verb: usize },
    Bytes { verb: usize, at: usize },
}

struct Posted {
    /// The entry it belongs to; `None`: the fabric's own.
    entry: Option<u64>,
    take: Take,
    staged: Staged,
}

/// See the module. Fields are dropped in this order: first nothing is under way any more, then the
/// memory may go.
pub(super) struct Way {
    qp: QueuePair,
    buffers: Buffers,
    /// `None`: loopback.
    pub(super) connection: Option<Connection>,
    pub(super) incarnation: u64,
    pub(super) state: State,
    /// When a handshake is given up, `CLOCK_MONOTONIC` ns.
    pub(super) until: u64,
    slot: u8,
    pub(super) generation: u64,
    /// Whether atomics must not be overtaken either.
    fenced: bool,
    /// Whether the device sees to that, once told.
    fences: bool,
    depth: usize,
    /// When the peer last answered, or was first asked since, `CLOCK_MONOTONIC` ns.
    heard: u64,
    /// How long it may be silent before nothing new is asked, ns.
    silence: u64,

    entries: VecDeque<Entry>,
    /// Number of the first entry.
    first: u64,
    /// What goes out next: entry, verb, bytes of it that are out.
    next: (u64, usize, u32),
    posted: VecDeque<Posted>,
    /// Number of the first request in `posted`.
    first_posted: u64,
    /// The last READ (or atomic) that a WRITE or atomic must not overtake.
    unfenced: Option<u64>,

    keys: HashMap<Chunk, u32>,
    to_ask: VecDeque<Chunk>,
    asked: HashSet<Chunk>,
    control: VecDeque<Message>,

    peer_credit: u32,
    sent: u64,
    /// Messages in `entries` that are not sent.
    queued: u64,
    /// Of `sent`, taken by the peer.
    taken: u64,
    received: u64,
    told: u64,
}

fn at_of(verb: &Verb) -> (Address, u32) {
    match verb {
        Verb::Read { at, len } | Verb::Write { at, len, .. } => (*at, *len),
        Verb::WriteWord { at, .. } | Verb::CompareSwap { at, .. } | Verb::FetchAdd { at, .. } => {
            (*at, 8)
        }
    }
}

/// Whether every part of it is where the layout has memory.
fn check(verb: &Verb) -> Result<(), FabricError> {
    let (at, len) = at_of(verb);
    let end = at.offset.checked_add(u64::from(len)).ok_or(FabricError::Range)?;
    if let Verb::Write { data, from, .. } = verb {
        let end = from.checked_add(len).ok_or(FabricError::Range)?;
        data.get(*from as usize..end as usize).ok_or(FabricError::Range)?;
    }
    let inside = end <= at.region.len();
    if inside && at.offset.is_multiple_of(8) && len.is_multiple_of(8) {
        Ok(())
    } else {
        Err(FabricError::Range)
    }
}

fn chunks(verb: &Verb) -> impl Iterator<Item = Chunk> {
    let (at, len) = at_of(verb);
    let size = Chunk::size(at.region);
    let first = at.offset / size;
    let end = (at.offset + u64::from(len)).div_ceil(size);
    (first..end).map(move |i| Chunk::of(at.region, i * size))
}

impl Way {
    /// A connection to `slot` that has a queue pair, but nothing at the other end yet.
    ///
    /// # Errors
    /// The device has no room for it.
    pub(super) fn new(
        device: &Rc<Device>,
        slot: u8,
        generation: u64,
        fenced: bool,
        patience: Patience,
        connection: Option<Connection>,
    ) -> io::Result<Way> {
        let loopback = connection.is_none();
        let receives = if loopback { 0 } else { RECEIVES };
        let qp = QueuePair::new(device, receives as u32)?;
        let buffers = Buffers::new(device, loopback)?;
        Ok(Way {
            qp,
            buffers,
            connection,
            incarnation: 0,
            state: State::Connecting,
            until: 0,
            slot,
            generation,
            fenced,
            fences: device.fences,
            depth: device.depth as usize,
            heard: 0,
            silence: patience.silence(),
            entries: VecDeque::new(),
            first: 0,
            next: (0, 0, 0),
            posted: VecDeque::new(),
            first_posted: 0,
            unfenced: None,
            keys: HashMap::new(),
            to_ask: VecDeque::new(),
            asked: HashSet::new(),
            control: VecDeque::new(),
            peer_credit: 0,
            sent: 0,
            queued: 0,
            taken: 0,
            received: 0,
            told: 0,
        })
    }

    /// For the hello.
    pub(super) fn credit_key(&self) -> u32 {
        self.buffers.credit_key()
    }

    /// For rdma_cm.
    pub(super) fn number(&self) -> u32 {
        self.qp.number()
    }

    /// Makes it ready to receive messages.
    ///
    /// # Errors
    /// rdma_cm or the device refuses.
    pub(super) fn prepare(&mut self) -> io::Result<()> {
        let Some(connection) = &self.connection else { return Ok(()) };
        self.qp.prepare(connection)?;
        (0..RECEIVES).try_for_each(|i| self.post_receive(i))
    }

    /// Connects the queue pair with that which the other side named; it may be written to with
    /// `credit`.
    ///
    /// # Errors
    /// rdma_cm or the device refuses.
    pub(super) fn join(&mut self, credit: u32, patience: Patience) -> io::Result<()> {
        self.peer_credit = credit;
        match &self.connection {
            Some(connection) => self.qp.join(connection, patience),
            None => self.qp.join_local(&self.qp, patience),
        }
    }

    /// What both sides agree on.
    pub(super) fn terms(device: &Device, patience: Patience) -> Terms {
        Terms {
            rd_atomic: device.rd_atomic,
            retry_count: patience.retry_count,
            rnr_retry: patience.rnr_retry,
        }
    }

    /// Both sides know: tells the keys that the peer needs first.
    pub(super) fn opened(&mut self, memory: &mut Memory) {
        self.state = State::Open;
        let keys: Vec<(Chunk, Option<u32>)> =
            Chunk::common().map(|c| (c, memory.key(c))).filter(|(_, k)| k.is_some()).collect();
        self.control.extend(keys.chunks(MAX_KEYS).map(|k| Message::Keys(k.to_vec())));
    }

    fn post_receive(&self, index: u64) -> io::Result<()> {
        self.qp.receive(self.id(Which::Receive(index)).encode(), self.buffers.receive(index))
    }

    fn id(&self, what: Which) -> WorkId {
        WorkId { slot: self.slot, generation: self.generation, what }
    }

    /// Takes the peer's access, and ends what is under way. The connection is of no use any more.
    /// Whether the device took the access at once; if not, destroying the queue pair does.
    pub(super) fn stop(&mut self) -> bool {
        let shut = self.qp.shut().is_ok();
        if let Some(connection) = &self.connection {
            // The other side need not find out by waiting.
            connection.disconnect();
        }
        // What cannot be stopped is destroyed next.
        let _ = self.qp.stop();
        shut
    }

    /// Ends everything that has not ended.
    pub(super) fn fail(&mut self, done: &mut Vec<FabricEvent>) {
        for entry in self.entries.drain(..) {
            if let What::Chain(token, _) = entry.what {
                let result = Err(entry.refused.unwrap_or(FabricError::Unreachable));
                done.push(FabricEvent::Completed { peer: self.slot, token, result });
            }
        }
    }

    /// Whether requests are under way.
    pub(super) fn under_way(&self) -> bool {
        !self.posted.is_empty()
    }

    /// Whether something waits for keys or room.
    pub(super) fn waiting(&self) -> bool {
        self.next.0 < self.first + self.entries.len() as u64
    }

    // -- From above ---------------------------------------------------------------------------

    /// Takes a chain. Whether it should be pushed at once.
    ///
    /// # Errors
    /// Too much waits; the connection is as good as broken.
    pub(super) fn post(&mut self, token: Token, chain: &[Verb]) -> Result<bool, ()> {
        if self.entries.len() >= MAX_ENTRIES {
            return Err(());
        }
        let refused = chain.iter().find_map(|v| check(v).err());
        let mut entry = Entry {
            what: What::Chain(token, Vec::new()),
            outcomes: Vec::new(),
            under_way: 0,
            posted: false,
            refused,
        };
        if refused.is_none() {
            entry.outcomes = chain
                .iter()
                .map(|verb| match verb {
                    Verb::Read { len, .. } => Outcome::Bytes(vec![0; *len as usize]),
                    Verb::CompareSwap { .. } | Verb::FetchAdd { .. } => Outcome::Word(0),
                    Verb::Write { .. } | Verb::WriteWord { .. } => Outcome::Done,
                })
                .collect();
            if self.connection.is_some() {
                chain.iter().flat_map(chunks).for_each(|c| self.want(c));
            }
            entry.what = What::Chain(token, chain.to_vec());
        }
        self.entries.push_back(entry);
        let waiting = self.first + self.entries.len() as u64 - self.next.0;
        // A lease depends on the shell's own.
        let urgent = token.0 & Token::SHELL != 0;
        Ok(urgent || self.posted.is_empty() || waiting as usize >= PROMPT)
    }

    /// Takes a message, if there is room for it at the peer, and here if it can go at once.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), FabricError> {
        if bytes.len() > control::MAX_MESSAGE {
            return Err(FabricError::Range);
        }
        self.look_at_credit();
        if self.sent + self.queued + RESERVED >= self.taken + RECEIVES
            || self.entries.len() >= MAX_ENTRIES
        {
            return Err(FabricError::Busy);
        }
        let at_once = !self.waiting() && self.control.is_empty() && !self.is_silent();
        self.entries.push_back(Entry {
            what: What::Message(Message::Plain(bytes.to_vec()).encode()),
            outcomes: Vec::new(),
            under_way: 0,
            posted: false,
            refused: None,
        });
        self.queued += 1;
        if at_once && !self.push_entry() {
            // Nothing of it went out.
            self.entries.pop_back();
            self.queued -= 1;
            return Err(FabricError::Busy);
        }
        Ok(())
    }

    fn look_at_credit(&mut self) {
        let taken = self.buffers.credit();
        // It only grows, and nobody takes what was not sent.
        if taken > self.taken && taken <= self.sent {
            self.taken = taken;
        }
    }

    fn want(&mut self, chunk: Chunk) {
        if !self.keys.contains_key(&chunk)
            && !self.asked.contains(&chunk)
            && !self.to_ask.contains(&chunk)
        {
            self.to_ask.push_back(chunk);
        }
    }

    // -- To the device ------------------------------------------------------------------------

    /// Posts what can go out.
    ///
    /// # Errors
    /// The device refuses.
    pub(super) fn push(&mut self, memory: &mut Memory) -> io::Result<()> {
        if self.state != State::Open || self.is_silent() {
            return Ok(());
        }
        if self.connection.is_none() {
            // One's own keys are known once the chunks are registered.
            while let Some(chunk) = self.missing() {
                let key = memory.key(chunk).ok_or(io::ErrorKind::OutOfMemory)?;
                self.keys.insert(chunk, key);
                while self.push_entry() {}
            }
        }
        if self.received - self.told >= UNTOLD
            && self.has_room()
            && let Some(staged) = self.buffers.stage(8)
        {
            self.told = self.received;
            self.buffers.write(staged, &self.told.to_le_bytes());
            let work = Work::Write(Remote { offset: 0, key: self.peer_credit });
            self.add(None, work, staged, Take::Nothing, false);
        }
        self.look_at_credit();
        if self.asked.is_empty() && !self.to_ask.is_empty() {
            let n = self.to_ask.len().min(MAX_KEYS);
            let chunks: Vec<Chunk> = self.to_ask.drain(..n).collect();
            self.asked.extend(&chunks);
            self.control.push_back(Message::AskKeys(chunks));
        }
        while let Some(message) = self.control.front() {
            let (len, bytes) = (message.len() as u32, message.encode());
            if self.sent >= self.taken + RECEIVES || !self.has_room() {
                break;
            }
            let Some(staged) = self.buffers.stage(len) else { break };
            self.control.pop_front();
            self.buffers.write(staged, &bytes);
            self.sent += 1;
            metrics::add("clustix_verbs_own_messages_total", 1);
            self.add(None, Work::Send, staged, Take::Nothing, false);
        }
        while self.push_entry() {}
        self.ring()
    }

    /// Posts what was prepared.
    ///
    /// # Errors
    /// The device refuses.
    pub(super) fn ring(&mut self) -> io::Result<()> {
        if self.qp.prepared() > 0 { self.qp.post() } else { Ok(()) }
    }

    fn has_room(&self) -> bool {
        self.posted.len() < self.depth
    }

    /// The chunk without whose key nothing goes on.
    fn missing(&self) -> Option<Chunk> {
        let (entry, verb, out) = self.next;
        let entry = self.entries.get((entry - self.first) as usize)?;
        let What::Chain(_, verbs) = &entry.what else { return None };
        let (at, len) = at_of(verbs.get(verb)?);
        let chunk = Chunk::of(at.region, at.offset + u64::from(out));
        (out < len && !self.keys.contains_key(&chunk)).then_some(chunk)
    }

    /// Prepares the next piece of the next entry. `false`: there is none, or it cannot go yet.
    fn push_entry(&mut self) -> bool {
        let (number, verb, out) = self.next;
        let Some(entry) = self.entries.get_mut((number - self.first) as usize) else {
            return false;
        };
        if self.posted.len() >= self.depth {
            return false;
        }
        let verbs = match &entry.what {
            What::Message(bytes) => {
                if self.sent >= self.taken + RECEIVES {
                    return false;
                }
                let Some(staged) = self.buffers.stage(bytes.len() as u32) else { return false };
                self.buffers.write(staged, bytes);
                entry.what = What::Message(Vec::new());
                entry.posted = true;
                entry.under_way = 1;
                self.sent += 1;
                self.queued -= 1;
                self.next = (number + 1, 0, 0);
                self.add(Some(number), Work::Send, staged, Take::Nothing, false);
                return true;
            }
            What::Chain(_, verbs) => verbs,
        };
        let Some(v) = verbs.get(verb) else {
            // It has no more, or never had any.
            entry.posted = true;
            self.next = (number + 1, 0, 0);
            if entry.under_way > 0 {
                self.qp.signal();
            }
            return true;
        };
        let (at, len) = at_of(v);
        if out == len {
            self.next = (number, verb + 1, 0);
            return true;
        }
        let overtakes = !matches!(v, Verb::Read { .. })
            && self.unfenced.is_some_and(|number| number >= self.first_posted);
        if overtakes && !self.fences {
            return false;
        }
        let offset = at.offset + u64::from(out);
        let size = Chunk::size(at.region);
        let piece = u64::from(len - out).min(size - offset % size) as u32;
        let Some(key) = self.keys.get(&Chunk::of(at.region, offset)) else { return false };
        let to = Remote { offset, key: *key };
        let Some(staged) = self.buffers.stage(piece) else { return false };
        let (work, take) = match v {
            Verb::Read { .. } => (Work::Read(to), Take::Bytes { verb, at: out as usize }),
            Verb::Write { data, from, .. } => {
                let from = (from + out) as usize;
                self.buffers.write(staged, &data[from..from + piece as usize]);
                (Work::Write(to), Take::Nothing)
            }
            Verb::WriteWord { word, .. } => {
                self.buffers.write(staged, &word.to_le_bytes());
                (Work::Write(to), Take::Nothing)
            }
            Verb::CompareSwap { expect, new, .. } => {
                (Work::CompareSwap(to, *expect, *new), Take::Word { verb })
            }
            Verb::FetchAdd { add, .. } => (Work::FetchAdd(to, *add), Take::Word { verb }),
        };
        entry.under_way += 1;
        let last = out + piece == len && verb + 1 == verbs.len();
        self.next = (number, verb, out + piece);
        self.add(Some(number), work, staged, take, overtakes);
        if last {
            self.qp.signal();
        }
        true
    }

    /// Whether the peer leaves requests unanswered for so long that the device shall decide about it.
    fn is_silent(&self) -> bool {
        !self.posted.is_empty() && exec::now_ns().saturating_sub(self.heard) > self.silence
    }

    fn add(&mut self, entry: Option<u64>, work: Work, staged: Staged, take: Take, fenced: bool) {
        if self.posted.is_empty() {
            self.heard = exec::now_ns();
        }
        let number = self.first_posted + self.posted.len() as u64;
        let id = self.id(Which::Request(number)).encode();
        self.qp.add(id, work, self.buffers.local(staged), fenced);
        self.posted.push_back(Posted { entry, take, staged });
        if fenced {
            // It goes when those before it are complete.
            self.unfenced = None;
        }
        match work {
            Work::CompareSwap(..) | Work::FetchAdd(..) if !self.fenced => {}
            Work::Read(_) | Work::CompareSwap(..) | Work::FetchAdd(..) => {
                self.unfenced = Some(number);
            }
            Work::Write(_) | Work::Send => {}
        }
    }

    // -- From the device ----------------------------------------------------------------------

    /// A request is complete, and all before it.
    pub(super) fn complete(&mut self, number: u64, done: &mut Vec<FabricEvent>) {
        let count = (number.wrapping_sub(self.first_posted) & WorkId::MASK) + 1;
        if count > self.posted.len() as u64 {
            return;
        }
        self.heard = exec::now_ns();
        for p in self.posted.drain(..count as usize) {
            self.first_posted += 1;
            let entry =
                p.entry.and_then(|number| self.entries.get_mut((number - self.first) as usize));
            if let Some(entry) = entry {
                entry.under_way -= 1;
                match p.take {
                    Take::Nothing => {}
                    Take::Word { verb } => {
                        if let Some(Outcome::Word(w)) = entry.outcomes.get_mut(verb) {
                            *w = self.buffers.read_word(p.staged);
                        }
                    }
                    Take::Bytes { verb, at } => {
                        if let Some(Outcome::Bytes(bytes)) = entry.outcomes.get_mut(verb)
                            && let Some(into) = bytes.get_mut(at..at + p.staged.len as usize)
                        {
                            self.buffers.read(p.staged, into);
                        }
                    }
                }
            }
            self.buffers.release(p.staged);
        }
        self.end(done);
    }

    /// Reports the entries that have ended, in their order.
    pub(super) fn end(&mut self, done: &mut Vec<FabricEvent>) {
        while let Some(entry) = self.entries.front() {
            if !entry.posted || entry.under_way > 0 {
                return;
            }
            let Some(entry) = self.entries.pop_front() else { return };
            self.first += 1;
            if let What::Chain(token, _) = entry.what {
                let result = entry.refused.map_or(Ok(entry.outcomes), Err);
                done.push(FabricEvent::Completed { peer: self.slot, token, result });
            }
        }
    }

    /// A message has come into a buffer, which is posted again. What it says that concerns the node.
    ///
    /// # Errors
    /// It is not one that a peer sends.
    pub(super) fn receive(
        &mut self,
        index: u64,
        len: usize,
        memory: &mut Memory,
    ) -> io::Result<Option<Vec<u8>>> {
        if index >= RECEIVES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let bytes = self.buffers.received(index, len);
        self.post_receive(index)?;
        self.received += 1;
        match Message::decode(bytes).ok_or(io::ErrorKind::InvalidData)? {
            Message::Plain(bytes) => return Ok(Some(bytes)),
            Message::AskKeys(chunks) => {
                // One question at a time is all that a peer asks.
                if self.control.len() > RESERVED as usize {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                let keys = chunks.into_iter().map(|c| (c, memory.key(c))).collect();
                self.control.push_back(Message::Keys(keys));
            }
            Message::Keys(keys) => {
                for (chunk, key) in keys {
                    let asked = self.asked.remove(&chunk);
                    if !asked && !Chunk::common().any(|c| c == chunk) {
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                    self.keys.insert(chunk, key.ok_or(io::ErrorKind::OutOfMemory)?);
                }
            }
        }
        Ok(None)
    }
}
