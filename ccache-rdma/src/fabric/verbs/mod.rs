//! The fabric of RDMA devices: reliable connections, one-sided for real.
//!
//! A node has one connection to each peer, made by rdma_cm ([`connection`]), and one with itself: the
//! atomics of a device are not atomic with the CPU's, so a node changes by loopback what others
//! change. The arena is registered in chunks, as they are asked for ([`memory`]). All verbs are called by the
//! one thread that owns the fabric, and none of them blocks; a second thread only rings ([`ringer`]).
//!
//! `unsafe` stands in `device`, `connection`, `queue_pair` and `memory`, each of which keeps what it
//! wraps alive as long as the device may use it. Whoever revokes a peer takes its access by one call,
//! then destroys the queue pair, which returns when nothing of it is under way any more.

#![allow(unsafe_code)]

#[cfg(feature = "conformance")]
pub mod bare;
mod buffers;
pub mod config;
mod connection;
mod device;
mod memory;
mod queue_pair;
mod ringer;
mod way;
mod wire;

use super::{Fabric, FabricError, FabricEvent, Token, Verb};
use crate::arena::Arena;
use crate::network::Broken;
use crate::view::MAX_NODES;
use clustix_pd::{exec, metrics};
use config::VerbsConfig;
use connection::{Connection, ConnectionId, Connections, Event};
use device::{Completion, Device};
use memory::Memory;
use ringer::Ringer;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};
use way::{State, Way, Which, WorkId};
use wire::{Chunk, Hello};

/// Requests under way on one connection.
const DEPTH: u32 = 256;
/// Entries of the completion queue: every connection's requests and buffers, should all complete.
const CQ_ENTRIES: i32 = (MAX_NODES as i32 + 1) * (DEPTH as i32 + buffers::RECEIVES as i32);
/// A handshake that takes longer is given up, ns. Emulated machines take a tenth of it.
const PATIENCE: u64 = 3_000_000_000;
/// Between two attempts to connect, ns.
const AGAIN: u64 = 20_000_000;
/// A turn of waiting for completions before one sleeps; longer would cost others more than the
/// wake-up that it saves.
const SPELL: Duration = Duration::from_micros(10);
/// After so many spells in vain, one waits only every so many turns.
const UNLUCKY: u8 = 8;
const SELDOM: u8 = 64;
/// Work completion status of requests that were ended with their queue pair: not news.
const FLUSHED: u32 = 5;

/// An attempt to connect that has no queue pair yet.
struct Dial {
    connection: Connection,
    incarnation: u64,
    until: u64,
}

/// A peer that asked to be let in before the view named it here.
struct Held {
    connection: Connection,
    hello: Hello,
    until: u64,
}

#[derive(Default)]
struct Peer {
    /// The incarnation that is let in.
    admitted: Option<u64>,
    /// The incarnation whose connection has broken: it does not come back.
    ended: Option<u64>,
    dial: Option<Dial>,
    held: Option<Held>,
    way: Option<Way>,
    /// When to dial again, ns.
    again: u64,
}

/// One node's end.
pub struct VerbsFabric {
    slot: u8,
    incarnation: u64,
    config: VerbsConfig,
    peers: [Peer; MAX_NODES],
    generation: u64,
    done: Vec<FabricEvent>,
    broken: Vec<Broken>,
    memory: Memory,
    ringer: Ringer,
    device: Rc<Device>,
    connections: Connections,
    port: u16,
    armed: bool,
    /// Whether something was posted since the last spell.
    fresh: bool,
    unlucky: u8,
    alone: bool,
    fenced: bool,
}

impl VerbsFabric {
    /// Opens the device and listens. Everything that needs files is opened here, before a sandbox.
    ///
    /// # Errors
    /// No RDMA device has the address, its name is another, the port is taken, or the device
    /// refuses what is needed.
    pub fn new(
        config: VerbsConfig,
        slot: u8,
        incarnation: u64,
        arena: Arena,
    ) -> io::Result<VerbsFabric> {
        if usize::from(slot) >= MAX_NODES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let config = VerbsConfig { patience: config.patience.bounded(), ..config };
        let connections = Connections::new()?;
        let listener = connections.listen(config.listen).map_err(|e| {
            io::Error::new(e.kind(), format!("cannot listen on {} with RDMA: {e}", config.listen))
        })?;
        let port = listener.port();
        Connections::rehearse(SocketAddr::new(config.listen.ip(), port))?;
        let device = Rc::new(Device::open(listener, config.device.as_deref())?);
        let ringer = Ringer::start(device.events(), connections.events())?;
        let mut memory = Memory::new(&device, &arena);
        for chunk in Chunk::common() {
            memory.key(chunk).ok_or_else(|| {
                io::Error::other("memory cannot be registered (is RLIMIT_MEMLOCK high enough?)")
            })?;
        }
        let alone = std::thread::available_parallelism().is_ok_and(|n| n.get() == 1);
        let fenced = config.fence.unwrap_or(!device.atomics_in_order);
        let mut fabric = VerbsFabric {
            slot,
            incarnation,
            config,
            peers: Default::default(),
            generation: 0,
            done: Vec::new(),
            broken: Vec::new(),
            memory,
            ringer,
            device,
            connections,
            port,
            armed: false,
            fresh: false,
            unlucky: 0,
            alone,
            fenced,
        };
        fabric.loop_back()?;
        Ok(fabric)
    }

    /// Where peers connect.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.config.listen.ip(), self.port)
    }

    /// Name of the device, such as `rxe0`.
    pub fn device(&self) -> String {
        self.device.name()
    }

    /// The word that is rung when [`Fabric::poll`] has something to take.
    pub fn bell(&self) -> &AtomicU32 {
        self.ringer.bell()
    }

    fn loop_back(&mut self) -> io::Result<()> {
        self.generation += 1;
        let patience = self.config.patience;
        let mut way =
            Way::new(&self.device, self.slot, self.generation, self.fenced, patience, None)?;
        way.join(0, patience)?;
        way.state = State::Open;
        self.peers[usize::from(self.slot)].way = Some(way);
        Ok(())
    }

    fn peer(&mut self, slot: u8) -> Option<&mut Peer> {
        if slot == self.slot { None } else { self.peers.get_mut(usize::from(slot)) }
    }

    // -- Ways ---------------------------------------------------------------------------------

    /// Lets that incarnation of `slot` in; any other is shut out.
    pub fn admit(&mut self, slot: u8, incarnation: u64) {
        let Some(peer) = self.peer(slot) else { return };
        peer.admitted = Some(incarnation);
        peer.again = 0;
        if peer.way.as_ref().is_some_and(|w| w.incarnation != incarnation) {
            self.close(slot);
        }
        let Some(peer) = self.peer(slot) else { return };
        if peer.dial.as_ref().is_some_and(|d| d.incarnation != incarnation) {
            peer.dial = None;
        }
        if let Some(held) = peer.held.take() {
            self.requested(held.connection, held.hello);
        }
    }

    /// Connects to that incarnation at `path` (`address:port`), if it is admitted, this node is the
    /// one of the two that dials (the lower slot), and it is not being done.
    pub fn dial(&mut self, slot: u8, incarnation: u64, path: &str) {
        let now = exec::now_ns();
        if slot <= self.slot {
            return;
        }
        let (connections, from) = (self.connections.clone(), self.config.listen);
        let Some(peer) = self.peer(slot) else { return };
        if peer.admitted != Some(incarnation)
            || peer.ended == Some(incarnation)
            || peer.way.is_some()
            || peer.dial.is_some()
            || now < peer.again
        {
            return;
        }
        peer.again = now + AGAIN;
        let Ok(to) = path.parse() else {
            eprintln!("verbs: {path:?} of node {slot} is not an address and a port");
            peer.again = now + PATIENCE;
            return;
        };
        match connections.dial(from, to) {
            Ok(connection) => {
                peer.dial = Some(Dial { connection, incarnation, until: now + PATIENCE });
            }
            Err(e) => eprintln!("verbs: node {slot} cannot be dialled at {to}: {e}"),
        }
    }

    /// Whether verbs go both ways between this node and that incarnation.
    pub fn is_open(&self, slot: u8, incarnation: u64) -> bool {
        self.peers.get(usize::from(slot)).and_then(|p| p.way.as_ref()).is_some_and(|w| {
            w.state == State::Open && w.incarnation == incarnation && slot != self.slot
        })
    }

    /// Whether connections are being made.
    pub fn is_opening(&self) -> bool {
        self.peers.iter().any(|p| {
            p.dial.is_some()
                || p.held.is_some()
                || p.way.as_ref().is_some_and(|w| w.state != State::Open)
        })
    }

    /// Goes on with connections, and says which have broken since the last call.
    pub fn look(&mut self, broken: &mut Vec<Broken>) {
        self.connection_events();
        let now = exec::now_ns();
        for slot in 0..MAX_NODES as u8 {
            let Some(peer) = self.peer(slot) else { continue };
            peer.dial.take_if(|d| now >= d.until);
            if let Some(held) = peer.held.take_if(|h| now >= h.until) {
                held.connection.reject();
            }
            if peer.way.as_ref().is_some_and(|w| w.state != State::Open && now >= w.until) {
                self.close(slot);
            }
        }
        broken.append(&mut self.broken);
    }

    /// That peer is dead: nothing of this node's acts in its memory any more.
    pub fn dead(&mut self, slot: u8) {
        // What is complete is to be told as such.
        self.drain();
        let Some(peer) = self.peer(slot) else { return };
        peer.admitted = None;
        peer.dial = None;
        self.close(slot);
    }

    /// Ends a connection and all that was posted to it. When this returns, nothing of the peer's
    /// lands here: destroying the queue pair waits for what was under way.
    fn close(&mut self, slot: u8) {
        let Some(mut way) = self.peers.get_mut(usize::from(slot)).and_then(|p| p.way.take()) else {
            return;
        };
        if !way.stop() {
            metrics::add("clustix_verbs_unshut_total", 1);
        }
        way.fail(&mut self.done);
    }

    /// A connection does not work any more.
    fn give_up(&mut self, slot: u8, why: &dyn std::fmt::Display) {
        let Some(way) = self.peers.get(usize::from(slot)).and_then(|p| p.way.as_ref()) else {
            return;
        };
        let (incarnation, open) = (way.incarnation, way.state == State::Open);
        if slot == self.slot {
            eprintln!("verbs: loopback has failed: {why}");
            self.close(slot);
            if let Err(e) = self.loop_back() {
                eprintln!("verbs: and cannot be made again: {e}");
            }
            return;
        }
        if open {
            eprintln!("verbs: the connection to node {slot} is broken: {why}");
            metrics::add("clustix_verbs_broken_total", 1);
            self.broken.push(Broken { slot, incarnation, ended: false });
            if let Some(peer) = self.peer(slot) {
                peer.ended = Some(incarnation);
            }
        }
        self.close(slot);
    }

    // -- Handshakes ---------------------------------------------------------------------------

    fn connection_events(&mut self) {
        // Cleared before, so that what comes during it rings again.
        self.ringer.take_connections();
        while let Some((id, event)) = self.connections.next() {
            match event {
                Event::Request(connection, said) => match Hello::decode(&said) {
                    Some(hello) if self.is_for_us(&hello) && hello.slot < self.slot => {
                        self.requested(connection, hello);
                    }
                    _ => {
                        metrics::add("clustix_verbs_rejected_total", 1);
                        connection.reject();
                    }
                },
                Event::Address => {
                    if let Some(dial) = self.dial_of(id)
                        && let Err(e) = dial.connection.find_route()
                    {
                        self.gone(id, &e);
                    }
                }
                Event::Route => self.routed(id),
                Event::Response(said) => self.answered(id, &said),
                Event::Established => {
                    if let Some(slot) = self.way_of(id) {
                        self.opened(slot);
                    }
                }
                Event::Ended(why, status) => self.gone(id, &format_args!("{why} ({status})")),
                Event::Other => {}
            }
        }
    }

    fn is_for_us(&self, hello: &Hello) -> bool {
        hello.token == self.config.token
            && hello.meant == self.incarnation
            && hello.slot != self.slot
    }

    fn dial_of(&mut self, id: ConnectionId) -> Option<&mut Dial> {
        self.peers.iter_mut().filter_map(|p| p.dial.as_mut()).find(|d| d.connection.id() == id)
    }

    fn way_of(&self, id: ConnectionId) -> Option<u8> {
        let found = self.peers.iter().position(|p| {
            p.way.as_ref().and_then(|w| w.connection.as_ref()).is_some_and(|c| c.id() == id)
        });
        found.map(|slot| slot as u8)
    }

    /// A connection, or an attempt at one, has come to nothing.
    fn gone(&mut self, id: ConnectionId, why: &dyn std::fmt::Display) {
        if let Some(slot) = self.way_of(id) {
            return self.give_up(slot, why);
        }
        for peer in &mut self.peers {
            peer.dial.take_if(|d| d.connection.id() == id);
            peer.held.take_if(|h| h.connection.id() == id);
        }
    }

    fn hello(&self, to: u64, way: &Way) -> Hello {
        Hello {
            token: self.config.token,
            slot: self.slot,
            incarnation: self.incarnation,
            meant: to,
            credit: way.credit_key(),
        }
    }

    fn way_to(&mut self, slot: u8, incarnation: u64, over: Connection) -> io::Result<Way> {
        self.generation += 1;
        let patience = self.config.patience;
        let mut way =
            Way::new(&self.device, slot, self.generation, self.fenced, patience, Some(over))?;
        way.incarnation = incarnation;
        way.until = exec::now_ns() + PATIENCE;
        way.prepare()?;
        Ok(way)
    }

    /// The other side's turn is over: ours has a path, and makes a queue pair.
    fn routed(&mut self, id: ConnectionId) {
        let found = self
            .peers
            .iter()
            .position(|p| p.dial.as_ref().is_some_and(|d| d.connection.id() == id));
        let Some(slot) = found else { return };
        let Some(dial) = self.peers[slot].dial.take() else { return };
        let incarnation = dial.incarnation;
        let connected = || -> io::Result<Way> {
            let way = self.way_to(slot as u8, incarnation, dial.connection)?;
            let hello = self.hello(incarnation, &way).encode();
            let terms = Way::terms(&self.device, self.config.patience);
            if let Some(c) = &way.connection {
                c.connect(terms, way.number(), &hello)?;
            }
            Ok(way)
        };
        match connected() {
            Ok(way) => self.peers[slot].way = Some(way),
            Err(e) => eprintln!("verbs: node {slot} cannot be connected to: {e}"),
        }
    }

    /// Whom this node dialled has accepted.
    fn answered(&mut self, id: ConnectionId, said: &[u8]) {
        let Some(slot) = self.way_of(id) else { return };
        let Some(hello) = Hello::decode(said) else {
            return self.give_up(slot, &"it answers with something else");
        };
        let right = self.is_for_us(&hello) && hello.slot == slot;
        let patience = self.config.patience;
        let Some(peer) = self.peer(slot) else { return };
        let admitted = peer.admitted;
        let Some(way) = peer.way.as_mut() else { return };
        let joined = if !right
            || way.incarnation != hello.incarnation
            || admitted != Some(hello.incarnation)
        {
            Err(io::Error::other("another answers than was asked"))
        } else if way.state != State::Connecting {
            Err(io::Error::other("it answers twice"))
        } else {
            way.join(hello.credit, patience).and_then(|()| match &way.connection {
                Some(c) => c.establish(),
                None => Ok(()),
            })
        };
        match joined {
            Ok(()) => self.opened(slot),
            Err(e) => self.give_up(slot, &e),
        }
    }

    /// A peer asks to be let in; its hello is in order.
    fn requested(&mut self, connection: Connection, hello: Hello) {
        let Hello { slot, incarnation, credit, .. } = hello;
        let until = exec::now_ns() + PATIENCE;
        let Some(peer) = self.peer(slot) else { return connection.reject() };
        if peer.admitted != Some(incarnation) {
            // The view that names it may not have come yet.
            let held = Held { connection, hello, until };
            if let Some(before) = peer.held.replace(held) {
                before.connection.reject();
            }
            return;
        }
        let open = peer.way.as_ref().is_some_and(|w| w.state == State::Open);
        if open || peer.ended == Some(incarnation) {
            metrics::add("clustix_verbs_rejected_total", 1);
            return connection.reject();
        }
        // One that was accepted and never established: its other end has begun anew.
        self.close(slot);
        let patience = self.config.patience;
        let terms = Way::terms(&self.device, patience);
        let accepted = || -> io::Result<Way> {
            let mut way = self.way_to(slot, incarnation, connection)?;
            way.join(credit, patience)?;
            let hello = self.hello(incarnation, &way).encode();
            if let Some(c) = &way.connection {
                c.accept(terms, way.number(), &hello)?;
            }
            way.state = State::Accepted;
            Ok(way)
        };
        match accepted() {
            Ok(way) => self.peers[usize::from(slot)].way = Some(way),
            Err(e) => eprintln!("verbs: node {slot} cannot be let in: {e}"),
        }
    }

    fn opened(&mut self, slot: u8) {
        let VerbsFabric { peers, memory, .. } = self;
        let way = peers.get_mut(usize::from(slot)).and_then(|p| p.way.as_mut());
        let Some(way) = way.filter(|w| w.state != State::Open) else { return };
        way.opened(memory);
        if let Err(e) = way.push(memory) {
            self.give_up(slot, &e);
        }
    }

    // -- Completions --------------------------------------------------------------------------

    /// Takes what is complete; whether anything was.
    fn drain(&mut self) -> bool {
        let mut any = false;
        let mut found = [Completion { id: 0, ok: false, status: 0, len: 0 }; 32];
        // Bounded by what can be under way at all.
        for _ in 0..CQ_ENTRIES as usize / found.len() + 1 {
            let n = self.device.poll(&mut found);
            if n == 0 {
                break;
            }
            any = true;
            for c in &found[..n] {
                self.completed(*c);
            }
        }
        any
    }

    fn completed(&mut self, c: Completion) {
        let id = WorkId::decode(c.id);
        let VerbsFabric { peers, memory, done, .. } = self;
        let way = peers.get_mut(usize::from(id.slot)).and_then(|p| p.way.as_mut());
        // Of a queue pair that is gone.
        let Some(way) = way.filter(|w| w.generation == id.generation) else { return };
        if !c.ok {
            let status = c.status;
            return match status {
                FLUSHED => self.give_up(id.slot, &"its queue pair has failed"),
                _ => self.give_up(id.slot, &format_args!("work completion status {status}")),
            };
        }
        match id.what {
            Which::Request(number) => way.complete(number, done),
            Which::Receive(index) => {
                match way.receive(index, c.len as usize, memory) {
                    Ok(None) => {}
                    Ok(Some(bytes)) => done.push(FabricEvent::Message { from: id.slot, bytes }),
                    Err(e) => return self.give_up(id.slot, &e),
                }
                // Who sends knows that this end has accepted; what says so may have been lost.
                self.opened(id.slot);
            }
        }
    }

    /// Posts what waits and can go out.
    fn push(&mut self) {
        for slot in 0..MAX_NODES as u8 {
            self.push_to(slot);
        }
    }

    fn push_to(&mut self, slot: u8) {
        let VerbsFabric { peers, memory, done, .. } = self;
        let Some(way) = peers[usize::from(slot)].way.as_mut() else { return };
        let pushed = way.push(memory);
        way.end(done);
        if let Err(e) = pushed {
            self.give_up(slot, &e);
        }
    }

    /// A spell of waiting, where another CPU may be at work for it. Whether it paid.
    fn wait(&mut self) -> bool {
        if self.alone || !std::mem::take(&mut self.fresh) {
            return false;
        }
        if self.unlucky > UNLUCKY {
            self.unlucky -= 1;
            return false;
        }
        if !self.peers.iter().any(|p| p.way.as_ref().is_some_and(Way::under_way)) {
            return false;
        }
        let begun = Instant::now();
        while begun.elapsed() < SPELL {
            std::thread::yield_now();
            if self.drain() {
                self.unlucky = 0;
                return true;
            }
        }
        self.unlucky += 1;
        if self.unlucky > UNLUCKY {
            self.unlucky = UNLUCKY + SELDOM;
        }
        false
    }
}

impl Fabric for VerbsFabric {
    fn post(&mut self, peer: u8, token: Token, chain: &[Verb]) {
        let way = self.peers.get_mut(usize::from(peer)).and_then(|p| p.way.as_mut());
        let Some(way) = way.filter(|w| w.state == State::Open) else {
            let result = Err(FabricError::Unreachable);
            self.done.push(FabricEvent::Completed { peer, token, result });
            return;
        };
        self.fresh = true;
        match way.post(token, chain) {
            Ok(true) => {
                if way.waiting() && way.under_way() {
                    self.drain();
                }
                self.push_to(peer);
            }
            Ok(false) => {}
            Err(()) => {
                let result = Err(FabricError::Unreachable);
                self.done.push(FabricEvent::Completed { peer, token, result });
                self.give_up(peer, &"too much waits for it");
            }
        }
    }

    fn send(&mut self, peer: u8, bytes: &[u8]) -> Result<(), FabricError> {
        let mut drained = false;
        loop {
            let way = self.peers.get_mut(usize::from(peer)).and_then(|p| p.way.as_mut());
            let open = way.filter(|w| w.state == State::Open && w.connection.is_some());
            let way = open.ok_or(FabricError::Unreachable)?;
            match way.send(bytes) {
                Err(FabricError::Busy) if !drained => {
                    // What is complete may have left room.
                    self.drain();
                    drained = true;
                }
                Err(e) => return Err(e),
                Ok(()) => {
                    if let Err(e) = way.ring() {
                        self.give_up(peer, &e);
                    }
                    return Ok(());
                }
            }
        }
    }

    fn poll(&mut self, _now: u64, out: &mut Vec<FabricEvent>) {
        if self.ringer.take_connections() {
            self.connection_events();
        }
        if self.ringer.take_completions() {
            self.device.take_event();
            self.armed = false;
        }
        self.drain();
        self.push();
        if self.done.is_empty() && self.wait() {
            self.push();
        }
        if self.done.is_empty() && !self.armed {
            // Armed first, then looked at again: what came in between would ring nobody.
            self.armed = self.device.arm();
            if self.drain() {
                self.push();
            }
        }
        out.append(&mut self.done);
    }

    fn revoke(&mut self, _now: u64, peer: u8) {
        if peer == self.slot || usize::from(peer) >= MAX_NODES {
            return;
        }
        self.dead(peer);
        // What it had said before is from an earlier view.
        self.done.retain(|e| !matches!(e, FabricEvent::Message { from, .. } if *from == peer));
        self.done.push(FabricEvent::Revoked { peer });
    }
}
