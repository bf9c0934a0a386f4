//! What lies between the simulated nodes: queue pairs, the wire, gates, and time.
//!
//! Everything is an event at a time of the one global clock. A verb acts in the target's arena in
//! pieces, each at a time of its own, so that a long READ or WRITE is torn by whatever happens in
//! between; chains of one queue pair act one after the other, those of different ones in any order.
//! A completion travels back and may be lost on a cut link, after the verb has acted.

use crate::random::Random;
use crate::words::Words;
use clustix_ccache::arena::Arena;
use clustix_ccache::fabric::{Address, FabricError, FabricEvent, Outcome, Token, Verb};
use clustix_ccache::layout::control;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::atomic::Ordering;

/// Most messages taken from one mailbox at one poll.
const MESSAGES_PER_POLL: usize = 64;

/// How the wire behaves.
#[derive(Clone, Debug)]
pub struct Wire {
    /// How long a queue pair tries to reach a peer before its chains end in errors, ns.
    pub retry_ns: u64,
    /// Whether verbs still act in a dead node's memory until they are kept out (as where nodes
    /// are processes of one machine), or end in errors.
    pub dead_memory_acts: bool,
    /// A queue pair becomes slow for a while at one in so many of its packets; 0: never.
    pub slow_one_in: usize,
    /// For how long at most, ns.
    pub slow_ns: u64,
    /// A packet's typical time on the wire, ns.
    pub packet_ns: u64,
    /// Bytes of a packet: the most that lands at once; a multiple of 8.
    pub packet: usize,
}

impl Default for Wire {
    fn default() -> Wire {
        Wire {
            retry_ns: 150_000,
            dead_memory_acts: false,
            slow_one_in: 600,
            slow_ns: 250_000,
            packet_ns: 400,
            packet: 1024,
        }
    }
}

struct Chain {
    token: Token,
    verbs: VecDeque<Verb>,
    outcomes: Vec<Outcome>,
    /// The rest of a verb that is acting piece by piece, and what its READ gave so far.
    rest: Option<Verb>,
    read: Vec<u8>,
}

type Returned = (Token, Result<Vec<Outcome>, FabricError>);

/// One direction of a connection.
struct Queue {
    /// Events of an earlier connection carry another number and mean nothing.
    serial: u64,
    target: usize,
    chains: VecDeque<Chain>,
    returning: VecDeque<Returned>,
    last_return: u64,
    messages: VecDeque<Vec<u8>>,
    last_arrival: u64,
    slow_until: u64,
    /// An event to act is on the heap.
    acting: bool,
    /// Since when the peer has not been reached.
    stuck: Option<u64>,
    failed: bool,
}

/// One node's end.
struct Port {
    slot: u8,
    incarnation: u64,
    arena: Arena,
    alive: bool,
    /// Packets of a dead node that are still on the wire.
    afterwards: u32,
    gates: BTreeMap<u8, u64>,
    queues: BTreeMap<u8, Queue>,
    done: Vec<FabricEvent>,
    mailboxes: BTreeMap<u8, VecDeque<Vec<u8>>>,
    /// Bytes on their way to, or in, the mailbox of each peer here.
    mail: BTreeMap<u8, u64>,
    /// Peers that this end could not reach any more.
    broken: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum What {
    Act { port: usize, peer: u8, serial: u64 },
    Return { port: usize, peer: u8, serial: u64 },
    Arrive { port: usize, peer: u8, serial: u64 },
    GiveUp { port: usize, peer: u8, serial: u64, since: u64 },
    Close { port: usize, peer: u8, incarnation: u64 },
    Revoked { port: usize, peer: u8 },
}

/// The network of one simulated cluster.
pub struct Net {
    /// Chance.
    pub random: Random,
    /// Global time, ns.
    pub now: u64,
    /// How the wire behaves.
    pub wire: Wire,
    /// Watches the words of slots change.
    pub words: Words,
    /// Verbs that have acted.
    pub verbs: u64,
    /// Prints every verb as it acts.
    pub trace: bool,
    heap: BinaryHeap<Reverse<(u64, u64, What)>>,
    order: u64,
    serial: u64,
    ports: Vec<Port>,
    cuts: BTreeSet<(u8, u8)>,
    woken: Vec<usize>,
}

fn pair(a: u8, b: u8) -> (u8, u8) {
    (a.min(b), a.max(b))
}

impl Net {
    /// A network without nodes.
    pub fn new(seed: u64, wire: Wire) -> Net {
        Net {
            random: Random(seed),
            now: 0,
            wire,
            words: Words::default(),
            verbs: 0,
            trace: false,
            heap: BinaryHeap::new(),
            order: 0,
            serial: 0,
            ports: Vec::new(),
            cuts: BTreeSet::new(),
            woken: Vec::new(),
        }
    }

    /// A new end for an arena; every gate is closed.
    pub fn join(&mut self, slot: u8, incarnation: u64, arena: Arena) -> usize {
        self.ports.push(Port {
            slot,
            incarnation,
            arena,
            alive: true,
            afterwards: 0,
            gates: BTreeMap::new(),
            queues: BTreeMap::new(),
            done: Vec::new(),
            mailboxes: BTreeMap::new(),
            mail: BTreeMap::new(),
            broken: Vec::new(),
        });
        let port = self.ports.len() - 1;
        self.open(port, slot, port);
        port
    }

    fn push(&mut self, at: u64, what: What) {
        self.order += 1;
        self.heap.push(Reverse((at.max(self.now), self.order, what)));
    }

    fn open(&mut self, port: usize, peer: u8, target: usize) {
        self.serial += 1;
        let queue = Queue {
            serial: self.serial,
            target,
            chains: VecDeque::new(),
            returning: VecDeque::new(),
            last_return: 0,
            messages: VecDeque::new(),
            last_arrival: 0,
            slow_until: 0,
            acting: false,
            stuck: None,
            failed: false,
        };
        self.ports[port].queues.insert(peer, queue);
    }

    /// Lets that incarnation of `peer` in, with an empty mailbox.
    pub fn admit(&mut self, port: usize, peer: u8, incarnation: u64) {
        let p = &mut self.ports[port];
        p.gates.insert(peer, incarnation);
        p.mailboxes.remove(&peer);
        p.mail.remove(&peer);
        self.woken.extend(0..self.ports.len());
    }

    /// Whether that incarnation of `peer` is there, can be reached and lets `port` in.
    pub fn lets_in(&self, port: usize, peer: u8, incarnation: u64) -> bool {
        let me = &self.ports[port];
        self.ports.iter().any(|p| {
            p.alive
                && (p.slot, p.incarnation) == (peer, incarnation)
                && !self.is_cut(me.slot, peer)
                && p.gates.get(&me.slot) == Some(&me.incarnation)
        })
    }

    /// Verbs to `peer` act in the arena of that incarnation from now on.
    pub fn connect(&mut self, port: usize, peer: u8, incarnation: u64) {
        let target = self.ports.iter().position(|p| (p.slot, p.incarnation) == (peer, incarnation));
        if let Some(target) = target {
            self.open(port, peer, target);
        }
    }

    /// Whether verbs to `peer` have somewhere to go.
    pub fn connected(&self, port: usize, peer: u8) -> bool {
        self.ports[port].queues.contains_key(&peer)
    }

    /// Peers that `port` could not reach any more since the last call.
    pub fn take_broken(&mut self, port: usize) -> Vec<u8> {
        std::mem::take(&mut self.ports[port].broken)
    }

    /// Ports at which something happened since the last call.
    pub fn take_woken(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.woken)
    }

    /// Cuts the link between two slots, or heals it.
    pub fn cut(&mut self, a: u8, b: u8, cut: bool) {
        if cut {
            self.cuts.insert(pair(a, b));
            return;
        }
        self.cuts.remove(&pair(a, b));
        for port in 0..self.ports.len() {
            let slot = self.ports[port].slot;
            for peer in [a, b] {
                if pair(slot, peer) == pair(a, b) && slot != peer {
                    self.resume(port, peer);
                }
            }
        }
        self.woken.extend(0..self.ports.len());
    }

    /// Whether a link is cut.
    pub fn is_cut(&self, a: u8, b: u8) -> bool {
        a != b && self.cuts.contains(&pair(a, b))
    }

    /// What stood still on a cut link goes on.
    fn resume(&mut self, port: usize, peer: u8) {
        let Some(q) = self.ports[port].queues.get_mut(&peer) else { return };
        q.stuck = None;
        let (serial, now) = (q.serial, self.now);
        let (returns, messages) = (q.returning.len(), q.messages.len());
        if !q.chains.is_empty() {
            q.acting = true;
            self.push(now, What::Act { port, peer, serial });
        }
        for _ in 0..returns {
            self.push(now, What::Return { port, peer, serial });
        }
        for _ in 0..messages {
            self.push(now, What::Arrive { port, peer, serial });
        }
    }

    /// A node is no more. A few packets of its may still be on the wire.
    pub fn kill(&mut self, port: usize) {
        let afterwards = if self.random.chance(2) { 0 } else { self.random.below(8) as u32 };
        let p = &mut self.ports[port];
        p.alive = false;
        p.afterwards = afterwards;
        p.done.clear();
        for q in p.queues.values_mut() {
            q.messages.clear();
        }
    }

    /// Whether a port's node lives.
    pub fn alive(&self, port: usize) -> bool {
        self.ports[port].alive
    }

    /// Whether WRITEs that `port` has posted have not all acted.
    pub fn writing(&self, port: usize) -> bool {
        let write = |v: &Verb| matches!(v, Verb::Write { .. });
        let queues = self.ports[port].queues.values();
        queues.flat_map(|q| &q.chains).any(|c| c.rest.iter().chain(&c.verbs).any(write))
    }

    /// Whether chains of the engine's are under way, or events for it wait to be taken.
    pub fn busy(&self, port: usize) -> bool {
        let p = &self.ports[port];
        let engine = |t: Token| t.0 & Token::SHELL == 0;
        p.mailboxes.values().any(|m| !m.is_empty())
            || p.queues.values().any(|q| {
                !q.messages.is_empty()
                    || q.chains.iter().any(|c| engine(c.token))
                    || q.returning.iter().any(|(t, _)| engine(*t))
            })
            || p.done.iter().any(|e| match e {
                FabricEvent::Completed { token, .. } => engine(*token),
                _ => true,
            })
    }

    /// When something happens next.
    pub fn next_at(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((at, ..))| *at)
    }

    // -- What the fabric's trait asks for ---------------------------------------------------------

    pub(crate) fn post(&mut self, port: usize, peer: u8, token: Token, chain: &[Verb]) {
        let delay = self.random.delay(self.wire.packet_ns);
        let at = self.now + delay;
        let p = &mut self.ports[port];
        match p.queues.get_mut(&peer) {
            Some(q) if !q.failed => {
                q.chains.push_back(Chain {
                    token,
                    verbs: chain.iter().cloned().collect(),
                    outcomes: Vec::new(),
                    rest: None,
                    read: Vec::new(),
                });
                if !q.acting && q.stuck.is_none() {
                    q.acting = true;
                    let serial = q.serial;
                    self.push(at, What::Act { port, peer, serial });
                }
            }
            _ => {
                let result = Err(FabricError::Unreachable);
                p.done.push(FabricEvent::Completed { peer, token, result });
                self.woken.push(port);
            }
        }
    }

    pub(crate) fn send(&mut self, port: usize, peer: u8, bytes: &[u8]) -> Result<(), FabricError> {
        if bytes.len() > control::MAX_MESSAGE {
            return Err(FabricError::Range);
        }
        let delay = self.random.delay(self.wire.packet_ns);
        let me = self.ports[port].slot;
        let target = match self.ports[port].queues.get(&peer) {
            Some(q) if !q.failed && peer != me => q.target,
            _ => return Err(FabricError::Unreachable),
        };
        let mail = self.ports[target].mail.entry(me).or_default();
        let len = 8 + bytes.len() as u64;
        if *mail + len > control::MAILBOX_RING {
            return Err(FabricError::Busy);
        }
        *mail += len;
        let at = self.now + delay;
        let Some(q) = self.ports[port].queues.get_mut(&peer) else {
            return Err(FabricError::Unreachable);
        };
        q.messages.push_back(bytes.to_vec());
        q.last_arrival = q.last_arrival.max(at);
        let (at, serial) = (q.last_arrival, q.serial);
        self.push(at, What::Arrive { port, peer, serial });
        Ok(())
    }

    pub(crate) fn poll(&mut self, port: usize, out: &mut Vec<FabricEvent>) {
        let p = &mut self.ports[port];
        out.append(&mut p.done);
        let mut more = false;
        for (from, mailbox) in &mut p.mailboxes {
            for _ in 0..MESSAGES_PER_POLL {
                let Some(bytes) = mailbox.pop_front() else { break };
                let mail = p.mail.entry(*from).or_default();
                *mail = mail.saturating_sub(8 + bytes.len() as u64);
                out.push(FabricEvent::Message { from: *from, bytes });
            }
            more |= !mailbox.is_empty();
        }
        if more {
            self.woken.push(port);
        }
    }

    pub(crate) fn revoke(&mut self, port: usize, peer: u8) {
        if peer == self.ports[port].slot {
            return;
        }
        // This node's own use of that peer's memory ends at once; its gate closes a little later,
        // and that it has closed is told later still.
        self.fail(port, peer);
        let p = &mut self.ports[port];
        p.broken.retain(|b| *b != peer);
        p.queues.remove(&peer);
        p.mailboxes.remove(&peer);
        let close = self.now + self.random.delay(1_000);
        let told = close + self.random.delay(1_000);
        if let Some(incarnation) = self.ports[port].gates.get(&peer).copied() {
            self.push(close, What::Close { port, peer, incarnation });
        }
        self.push(told, What::Revoked { port, peer });
    }

    // -- Events -----------------------------------------------------------------------------------

    /// Lets the next thing happen; whether there was any.
    pub fn run_one(&mut self) -> bool {
        let Some(Reverse((at, _, what))) = self.heap.pop() else { return false };
        self.now = self.now.max(at);
        match what {
            What::Act { port, peer, serial } => self.act(port, peer, serial),
            What::Return { port, peer, serial } => self.give_back(port, peer, serial),
            What::Arrive { port, peer, serial } => self.arrive(port, peer, serial),
            What::GiveUp { port, peer, serial, since } => {
                let q = self.ports[port].queues.get(&peer);
                if q.is_some_and(|q| q.serial == serial && q.stuck == Some(since)) {
                    self.fail(port, peer);
                }
            }
            What::Close { port, peer, incarnation } => {
                let p = &mut self.ports[port];
                if p.gates.get(&peer) == Some(&incarnation) {
                    p.gates.remove(&peer);
                    p.mailboxes.remove(&peer);
                }
            }
            What::Revoked { port, peer } => {
                if self.ports[port].alive {
                    self.ports[port].done.push(FabricEvent::Revoked { peer });
                    self.woken.push(port);
                }
            }
        }
        true
    }

    fn queue(&mut self, port: usize, peer: u8, serial: u64) -> Option<&mut Queue> {
        self.ports[port].queues.get_mut(&peer).filter(|q| q.serial == serial && !q.failed)
    }

    /// Everything posted to `peer` and not told ends in errors; the queue pair is of no more use.
    fn fail(&mut self, port: usize, peer: u8) {
        let p = &mut self.ports[port];
        let Some(q) = p.queues.get_mut(&peer) else { return };
        if q.failed {
            return;
        }
        q.failed = true;
        let tokens = q.returning.drain(..).map(|(t, _)| t);
        let tokens: Vec<Token> = tokens.chain(q.chains.drain(..).map(|c| c.token)).collect();
        q.messages.clear();
        for token in tokens {
            let result = Err(FabricError::Unreachable);
            p.done.push(FabricEvent::Completed { peer, token, result });
        }
        p.broken.push(peer);
        self.woken.push(port);
    }

    fn stuck(&mut self, port: usize, peer: u8, serial: u64) {
        let (now, retry) = (self.now, self.wire.retry_ns);
        let Some(q) = self.queue(port, peer, serial) else { return };
        if q.stuck.is_none() {
            q.stuck = Some(now);
            self.push(now + retry, What::GiveUp { port, peer, serial, since: now });
        }
    }

    fn act(&mut self, port: usize, peer: u8, serial: u64) {
        let now = self.now;
        let (slow_one_in, slow_ns) = (self.wire.slow_one_in, self.wire.slow_ns);
        let slow = slow_one_in > 0 && self.random.chance(slow_one_in);
        let slow = if slow { now + self.random.time(0, slow_ns) } else { 0 };
        let Some(q) = self.queue(port, peer, serial) else { return };
        q.acting = false;
        if q.chains.is_empty() {
            return;
        }
        q.slow_until = q.slow_until.max(slow);
        let (target, slow_until) = (q.target, q.slow_until);
        if now < slow_until {
            q.acting = true;
            self.push(slow_until, What::Act { port, peer, serial });
            return;
        }
        let p = &mut self.ports[port];
        if !p.alive {
            if p.afterwards == 0 {
                return;
            }
            p.afterwards -= 1;
        }
        let (slot, incarnation) = (p.slot, p.incarnation);
        let there = self.ports[target].alive || self.wire.dead_memory_acts;
        if target != port && (self.is_cut(slot, peer) || !there) {
            self.stuck(port, peer, serial);
            return;
        }
        if target != port && self.ports[target].gates.get(&slot) != Some(&incarnation) {
            // The peer has revoked this node.
            self.fail(port, peer);
            return;
        }
        let (arena, target_alive) = {
            let t = &self.ports[target];
            (t.arena.clone(), t.alive)
        };
        let most = self.wire.packet;
        let packet = (self.random.below(2 * most)).clamp(8, most) & !7;
        let gap = self.random.delay(self.wire.packet_ns / 2);
        let back = self.random.delay(self.wire.packet_ns);
        let Some(q) = self.ports[port].queues.get_mut(&peer) else { return };
        let Some(chain) = q.chains.front_mut() else { return };
        let next = chain.rest.take().or_else(|| chain.verbs.pop_front());
        let mut error = None;
        if let Some(verb) = next {
            let first = chain.read.is_empty();
            match act(&arena, &verb, packet, first) {
                Ok((outcome, rest)) => {
                    let whole = rest.is_none();
                    chain.rest = rest;
                    match outcome {
                        Outcome::Bytes(b) => {
                            chain.read.extend_from_slice(&b);
                            if whole {
                                let bytes = std::mem::take(&mut chain.read);
                                chain.outcomes.push(Outcome::Bytes(bytes));
                            }
                        }
                        o if whole => chain.outcomes.push(o),
                        _ => {}
                    }
                    self.verbs += u64::from(whole);
                    // The words of the dead count no more.
                    let counts = target_alive;
                    if let Some(Outcome::Word(before)) = chain.outcomes.last()
                        && whole
                        && counts
                        && matches!(verb, Verb::CompareSwap { .. } | Verb::FetchAdd { .. })
                    {
                        self.words.changed(target, slot, &verb, *before);
                    } else if let (Verb::WriteWord { .. }, true) = (&verb, counts) {
                        self.words.changed(target, slot, &verb, 0);
                    }
                }
                Err(e) => error = Some(e),
            }
            if self.trace && !matches!(verb, Verb::WriteWord { at, .. } if is_heartbeat(&at)) {
                println!("{now:9} wire {slot}->{peer}: {}", show(&verb, chain.outcomes.last()));
            }
        }
        if (error.is_some() || (chain.verbs.is_empty() && chain.rest.is_none()))
            && let Some(done) = q.chains.pop_front()
        {
            let result = error.map_or(Ok(done.outcomes), Err);
            q.returning.push_back((done.token, result));
            q.last_return = q.last_return.max(now + back);
            let at = q.last_return;
            self.push(at, What::Return { port, peer, serial });
        }
        let Some(q) = self.queue(port, peer, serial) else { return };
        if !q.chains.is_empty() {
            q.acting = true;
            self.push(now + gap, What::Act { port, peer, serial });
        }
    }

    fn give_back(&mut self, port: usize, peer: u8, serial: u64) {
        let slot = self.ports[port].slot;
        if self.is_cut(slot, peer) {
            // The acknowledgement is lost; the queue pair asks again until it gives up.
            self.stuck(port, peer, serial);
            return;
        }
        let alive = self.ports[port].alive;
        let Some(q) = self.queue(port, peer, serial) else { return };
        if let (Some((token, result)), true) = (q.returning.pop_front(), alive) {
            self.ports[port].done.push(FabricEvent::Completed { peer, token, result });
            self.woken.push(port);
        }
    }

    fn arrive(&mut self, port: usize, peer: u8, serial: u64) {
        let (slot, incarnation) = (self.ports[port].slot, self.ports[port].incarnation);
        if self.is_cut(slot, peer) {
            self.stuck(port, peer, serial);
            return;
        }
        let Some(q) = self.queue(port, peer, serial) else { return };
        let target = q.target;
        let Some(bytes) = q.messages.pop_front() else { return };
        let t = &mut self.ports[target];
        if t.alive && t.gates.get(&slot) == Some(&incarnation) {
            t.mailboxes.entry(slot).or_default().push_back(bytes);
            self.woken.push(target);
        }
    }
}

fn is_heartbeat(at: &Address) -> bool {
    at.region == clustix_ccache::layout::RegionId::Control
        && (control::HEARTBEATS..control::GATES).contains(&at.offset)
}

fn show(verb: &Verb, outcome: Option<&Outcome>) -> String {
    let word = match outcome {
        Some(Outcome::Word(w)) => format!(" was {w:#x}"),
        _ => String::new(),
    };
    match verb {
        Verb::Read { at, len } => format!("READ {:?}+{:#x} {len}", at.region, at.offset),
        Verb::Write { at, from, len, .. } => {
            format!("WRITE {:?}+{:#x} {len} from {from}", at.region, at.offset)
        }
        other => format!("{other:?}{word}"),
    }
}

fn check(arena: &Arena, at: Address, len: usize) -> Result<(), FabricError> {
    let end = at.offset.checked_add(len as u64).ok_or(FabricError::Range)?;
    let inside = end <= arena.region(at.region).len() as u64;
    if inside && at.offset.is_multiple_of(8) && len.is_multiple_of(8) {
        Ok(())
    } else {
        Err(FabricError::Range)
    }
}

fn later(at: Address, by: usize) -> Address {
    Address { region: at.region, offset: at.offset + by as u64 }
}

/// One packet of a verb: what it gave, and the rest of the verb.
fn act(
    arena: &Arena,
    verb: &Verb,
    packet: usize,
    first: bool,
) -> Result<(Outcome, Option<Verb>), FabricError> {
    let word = |at: &Address| check(arena, *at, 8).map(|()| arena.word(at.region, at.offset));
    match verb {
        Verb::Read { at, len } => {
            let len = *len as usize;
            if first {
                check(arena, *at, len)?;
            }
            let now = packet.min(len);
            let mut bytes = vec![0; now];
            if !arena.region(at.region).read(at.offset as usize, &mut bytes) {
                return Err(FabricError::Range);
            }
            let rest = Verb::Read { at: later(*at, now), len: (len - now) as u32 };
            Ok((Outcome::Bytes(bytes), (len > now).then_some(rest)))
        }
        Verb::Write { at, data, from, len } => {
            let (from, len) = (*from as usize, *len as usize);
            check(arena, *at, len)?;
            let end = from.checked_add(len).ok_or(FabricError::Range)?;
            let bytes = data.get(from..end).ok_or(FabricError::Range)?;
            let now = packet.min(len);
            if !arena.region(at.region).write(at.offset as usize, &bytes[..now]) {
                return Err(FabricError::Range);
            }
            let (from, left) = ((from + now) as u32, (len - now) as u32);
            let rest = Verb::Write { at: later(*at, now), data: data.clone(), from, len: left };
            Ok((Outcome::Done, (len > now).then_some(rest)))
        }
        Verb::WriteWord { at, word: value } => {
            word(at)?.store(*value, Ordering::SeqCst);
            Ok((Outcome::Done, None))
        }
        Verb::CompareSwap { at, expect, new } => {
            let swapped =
                word(at)?.compare_exchange(*expect, *new, Ordering::SeqCst, Ordering::SeqCst);
            Ok((Outcome::Word(swapped.unwrap_or_else(|w| w)), None))
        }
        Verb::FetchAdd { at, add } => {
            Ok((Outcome::Word(word(at)?.fetch_add(*add, Ordering::SeqCst)), None))
        }
    }
}
