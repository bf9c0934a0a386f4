//! The protection domain `ccache`: the shell around [`Engine`].
//!
//! One thread serves the rings of the node's other domains, carries out the engine's actions on
//! the fabric, keeps the lease, watches the peers and speaks with membership. When nothing is to
//! be done it sleeps on all bells at once until the next timer.

mod membership;
mod timers;
mod volatile;

use crate::arena::Arena;
use crate::cache::{CacheError, Waited};
use crate::engine::{Action, ClientId, Config as EngineConfig, Engine, Event, KNOWN, RequestId};
use crate::fabric::{FabricError, FabricEvent, Token, Verb};
use crate::layout::RegionId;
use crate::lease::{Lease, Timing, Watch};
use crate::name::Map;
use crate::network::Network;
use crate::network::shm::ShmNetwork;
use crate::request::{MemberEvent, NodeStatus, OK, Reply, Request, Rights, error_label};
use crate::slab::Slab;
use crate::view::{MAX_NODES, View};
use clustix_pd::urgency::Urgency;
use clustix_pd::{Boot, Call, ChannelId, Region, Server, exec, metrics};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::Write;
use std::sync::atomic::Ordering;
use std::task::Poll;

/// What a node's objects are carried over.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum NetworkConfig {
    /// Memory shared with the other nodes of this machine, met at the descriptor `fabric`.
    Shm,
    /// RDMA.
    Verbs(Verbs),
}

/// An RDMA network, and this node's place in it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Verbs {
    /// Address and port at which peers connect.
    pub listen: String,
    /// Device; the one that the address belongs to if none is named.
    pub device: Option<String>,
    /// What the cluster's nodes know each other by.
    pub token: u64,
    /// Acknowledgement time-out: 4.096 µs × 2^n.
    pub ack_timeout: u8,
    /// How often a packet is sent again before the peer counts as gone.
    pub retries: u8,
}

/// What the launcher tells ccache: the domain's arguments, as `postcard`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Config {
    /// Lease times.
    pub timing: Timing,
    /// Memory that the node may use for objects, bytes.
    pub budget_bytes: u64,
    /// Whether this slot never had a node before in this cluster's life (rule 6).
    pub first_incarnation: bool,
    /// Slots copied per millisecond when lost copies are rebuilt.
    pub rebuild_rate: u32,
    /// The fabric.
    pub network: NetworkConfig,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            timing: Timing::default(),
            budget_bytes: 2 << 30,
            first_incarnation: true,
            rebuild_rate: 64,
            network: NetworkConfig::Shm,
        }
    }
}

/// Rights of each role's channel to ccache, for the system description.
pub mod rights {
    use super::Rights;
    use crate::set::Class;

    /// process.
    pub const PROCESS: Rights = Rights::full(Class::Process).and(Rights::full(Class::System));
    /// vfs.
    pub const VFS: Rights = Rights::full(Class::Vfs);
    /// memory.
    pub const MEMORY: Rights = Rights::full(Class::Memory);
    /// console.
    pub const CONSOLE: Rights = Rights::full(Class::Console);
    /// init.
    pub const INIT: Rights = Rights::full(Class::System);
    /// control.
    pub const CONTROL: Rights = Rights::CONTROL
        .and(Rights::full(Class::Vfs))
        .and(Rights::full(Class::Process))
        .and(Rights::read(Class::Memory))
        .and(Rights::full(Class::Console))
        .and(Rights::full(Class::System));
    /// posix.
    pub const POSIX: Rights = Rights::full(Class::Vfs)
        .and(Rights::full(Class::Process))
        .and(Rights::full(Class::Memory))
        .and(Rights::full(Class::Console))
        .and(Rights::read(Class::System));
    /// member.
    pub const MEMBER: Rights = Rights::MEMBER;
}

/// Exit status of a ccache whose node was evicted.
pub const EVICTED: i32 = 3;

/// Most requests taken before the fabric is looked at again.
const BATCH: usize = 32;
/// Actions after which the clock is read again.
const FEW: usize = 32;
/// Most rounds of actions and what comes of them before rings and timers are looked at again: a
/// rebuild on a fabric that completes at once would never end.
const ROUNDS: usize = 64;
/// Most queued waits.
const MAX_WAITERS: usize = 32_768;

/// A call that the engine has not answered yet.
struct Pending {
    call: Call,
    what: What,
}

/// What the shell adds to the engine's answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Plain,
    Wait(u32),
    Status,
    /// Of everything: after the engine's last page come the volatile objects.
    Dump,
}

struct Waiter {
    channel: ChannelId,
    word: u32,
    since: u64,
}

/// How far the way to a peer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Closed,
    /// Its arena or its permission is awaited.
    Opening(u64),
    Open,
}

struct Outbox {
    way: Way,
    posts: VecDeque<(Token, Vec<Verb>)>,
    sends: VecDeque<Vec<u8>>,
}

/// What a ccache runs on.
pub struct Parts {
    /// Slot.
    pub slot: u8,
    /// Start of the kernel process.
    pub incarnation: u64,
    /// Configuration.
    pub config: Config,
    /// The node's arena.
    pub arena: Arena,
    /// The node's slab of volatile objects, if there is one.
    pub slab: Option<Slab>,
    /// The ways to its peers.
    pub network: Box<dyn Network>,
    /// The rings.
    pub server: Server,
}

/// The shell. See the module.
pub struct Service {
    parts: Parts,
    /// In tests, where badges are 0: what every channel may.
    everyone: Rights,
    engine: Engine,
    lease: Lease,
    watch: Watch,
    view: View,
    actions: VecDeque<Action>,
    scratch: Vec<Action>,
    /// Chains to peers that cannot be reached: their errors.
    refused: Vec<(u8, Token)>,
    outboxes: Vec<Outbox>,
    pending: Map<u64, Pending>,
    waits: HashMap<u64, Waiter>,
    wait_of: HashMap<(ChannelId, u32), u64>,
    next_id: u64,
    channels: Vec<ChannelId>,
    /// For membership: what it has not taken, its parked call, and who it is.
    events: VecDeque<MemberEvent>,
    parked: Option<Call>,
    member: Option<ChannelId>,
    suspected: BTreeMap<u8, u64>,
    /// Which peers' processes have ended: the latest of each slot.
    ended_peers: BTreeMap<u8, u64>,
    /// Of the latest suspicion: how long the node had been silent, and when that was, ns.
    noticed: (u64, u64),
    /// The latest view whose gone are all revoked.
    revoked: u64,
    /// Changes of view that were told of.
    changes: u64,
    rebuilt: Vec<(u8, u64, Vec<u16>)>,
    had_lease: bool,
    /// Whether its thread runs before others.
    urgency: Urgency,
    /// Room for what the fabric has, between turns.
    news: Vec<FabricEvent>,
    /// The time when it was read last, in each turn of the fabric and of the timers.
    now: u64,
    look_at: u64,
    /// This thread's processor time at the last look, ns.
    ran: u64,
    sweep_at: u64,
    ended: Option<String>,
}

fn fail(why: &dyn std::fmt::Display) -> ! {
    eprintln!("ccache: {why}");
    std::process::exit(1)
}

/// What runs in the domain. Needs the regions `arena-control` and `arena-<class>`, writable and with
/// their descriptors kept, and `slab`; the descriptor `fabric`; [`Config`] as arguments.
pub fn main(mut boot: Boot) -> ! {
    let Ok(config) = postcard::from_bytes::<Config>(&boot.args) else {
        fail(&"malformed configuration")
    };
    let regions: Result<Vec<Region>, _> =
        RegionId::all().map(|id| boot.region(&id.name())).collect();
    let arena = match regions.map(|r| r.try_into().ok().and_then(Arena::new)) {
        Ok(Some(a)) => a,
        Ok(None) => fail(&"the arena's regions are too short"),
        Err(e) => fail(&e),
    };
    let listener = match boot.descriptor("fabric") {
        Ok(fd) => fd,
        Err(e) => fail(&e),
    };
    let slab = boot.region("slab").ok().and_then(|r| Slab::new(r).ok());
    let (slot, incarnation) = (boot.node, boot.incarnation);
    // What the network opens and asks for, the sandbox does not let it later.
    let (network, variant): (Box<dyn Network>, _) = match &config.network {
        NetworkConfig::Shm => {
            let owner = rustix::process::getuid().as_raw();
            let own = arena.clone();
            (Box::new(ShmNetwork::new(slot, incarnation, owner, Some(listener), own)), None)
        }
        NetworkConfig::Verbs(verbs) => match over_verbs(verbs, slot, incarnation, &arena) {
            Ok(network) => (network, Some("verbs")),
            Err(e) => fail(&e),
        },
    };
    if let Err(e) = boot.enter_sandbox(variant) {
        fail(&e);
    }
    let server = boot.server;
    let parts = Parts { slot, incarnation, config, arena, slab, network, server };
    let mut service = Service::new(parts, Rights::default());
    let why = service.run(|| false);
    // Before the arenas are given up, which on a busy machine takes seconds per gigabyte; without its log too.
    let _ = writeln!(std::io::stderr(), "ccache: {why}");
    std::process::exit(EVICTED)
}

#[cfg(feature = "verbs")]
fn over_verbs(
    verbs: &Verbs,
    slot: u8,
    incarnation: u64,
    arena: &Arena,
) -> Result<Box<dyn Network>, String> {
    use crate::network::verbs::{Patience, VerbsConfig, VerbsNetwork};
    let failed = |e: &dyn std::fmt::Display| format!("RDMA at {}: {e}", verbs.listen);
    let listen = verbs.listen.parse().map_err(|e| failed(&e))?;
    let mut config = VerbsConfig::new(listen, verbs.token);
    config.device.clone_from(&verbs.device);
    config.patience =
        Patience { ack_timeout: verbs.ack_timeout, retry_count: verbs.retries, ..config.patience };
    match VerbsNetwork::new(config, slot, incarnation, arena.clone()) {
        Ok(network) => Ok(Box::new(network)),
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Err(failed(
            &"no RDMA device has this address; `soft-roce-setup check` says what the host has and lacks",
        )),
        Err(e) => Err(failed(&e)),
    }
}

#[cfg(not(feature = "verbs"))]
fn over_verbs(_: &Verbs, _: u8, _: u64, _: &Arena) -> Result<Box<dyn Network>, String> {
    Err("this build of clustix has no verbs fabric; build it with `--features verbs`".into())
}

impl Service {
    /// A ccache that has not run yet. `everyone` is added to the rights of every badge: nothing,
    /// but in tests.
    pub fn new(parts: Parts, everyone: Rights) -> Service {
        let Parts { slot, incarnation, .. } = parts;
        let timing = parts.config.timing;
        let engine = Engine::new(
            EngineConfig {
                node: slot,
                incarnation,
                first_incarnation: parts.config.first_incarnation,
                timing,
                budget_bytes: parts.config.budget_bytes,
                rebuild_rate: parts.config.rebuild_rate,
                known: KNOWN,
            },
            parts.arena.clone(),
        );
        let outbox = || Outbox { way: Way::Closed, posts: VecDeque::new(), sends: VecDeque::new() };
        Service {
            engine,
            lease: Lease::new(timing, slot),
            watch: Watch::new(timing),
            view: View::default(),
            actions: VecDeque::new(),
            scratch: Vec::new(),
            refused: Vec::new(),
            outboxes: (0..MAX_NODES).map(|_| outbox()).collect(),
            pending: Map::default(),
            waits: HashMap::new(),
            wait_of: HashMap::new(),
            next_id: 1,
            channels: Vec::new(),
            events: VecDeque::new(),
            parked: None,
            member: None,
            suspected: BTreeMap::new(),
            ended_peers: BTreeMap::new(),
            noticed: (0, 0),
            revoked: 0,
            changes: 0,
            rebuilt: Vec::new(),
            had_lease: false,
            urgency: Urgency::new(),
            news: Vec::new(),
            now: exec::now_ns(),
            look_at: 0,
            ran: 0,
            sweep_at: 0,
            ended: None,
            everyone,
            parts,
        }
    }

    /// Serves until this node is evicted (the answer says so) or `stop` says true.
    pub fn run(&mut self, stop: impl Fn() -> bool) -> String {
        self.parts.server.follow_callers();
        if !self.parts.config.first_incarnation {
            // It joins others, at work perhaps.
            timers::tell_of(self.urgency.begin());
        }
        loop {
            metrics::beat();
            let bell = self.parts.network.bell().map_or(0, |b| b.load(Ordering::SeqCst));
            let mut worked = self.serve_rings();
            worked |= self.turn_fabric();
            self.timers();
            if !self.actions.is_empty() {
                worked |= self.turn_fabric();
            }
            if let Some(why) = self.ended.take() {
                return why;
            }
            if stop() {
                return "stopped".into();
            }
            // Whoever got an answer may have run, and asked again, already: a look is cheaper than a
            // sleep that ends at once.
            if !worked {
                self.sleep(bell);
            }
        }
    }

    fn next_timer(&self) -> u64 {
        let at = self.look_at.min(self.lease.next()).min(self.sweep_at);
        self.engine.deadline().map_or(at, |d| d.min(at))
    }

    /// Sleeps until a ring, the mailbox bell (which was `bell` before the last look) or a timer.
    fn sleep(&self, bell: u32) {
        let until = self.next_timer();
        let mut looked = false;
        exec::block_on(std::future::poll_fn(|_| {
            if std::mem::replace(&mut looked, true) {
                return Poll::Ready(());
            }
            self.parts.server.register();
            if let Some(word) = self.parts.network.bell() {
                exec::register(word, bell);
            }
            exec::deadline(until);
            Poll::Pending
        }));
    }

    // -- The engine ---------------------------------------------------------------------------

    fn step(&mut self, event: Event) {
        self.step_at(exec::now_ns(), event);
    }

    /// As [`Service::step`], at a time read after the event was there: the lease is judged by it.
    fn step_at(&mut self, now: u64, event: Event) {
        self.engine.handle(now, event, &mut self.scratch);
        self.actions.extend(self.scratch.drain(..));
    }

    /// Carries out actions and hands what comes of them to the engine, until nothing is left or
    /// the rings should be looked at again. Whether there was anything.
    fn turn_fabric(&mut self) -> bool {
        let mut worked = false;
        let mut news = std::mem::take(&mut self.news);
        for _ in 0..ROUNDS {
            for action in self.actions.iter().take(FEW) {
                if let Action::Post { peer, chain, .. } = action {
                    self.parts.network.announce(*peer, chain);
                }
            }
            for done in 0.. {
                let Some(action) = self.actions.pop_front() else { break };
                worked = true;
                // A rebuild or a takeover may keep this node busy for longer than a lease, and must not
                // look like its death.
                if done % FEW == FEW - 1 {
                    self.renew_in_time(exec::now_ns());
                }
                self.carry_out(action);
            }
            self.flush();
            for (peer, token) in std::mem::take(&mut self.refused) {
                let result = Err(FabricError::Unreachable);
                self.step(Event::Completed { peer, token, result });
            }
            self.parts.network.poll(self.now, &mut news);
            if news.is_empty() && self.actions.is_empty() {
                self.news = news;
                return worked;
            }
            self.now = exec::now_ns();
            self.renew_in_time(self.now);
            for event in news.drain(..) {
                worked = true;
                self.fabric_event(event);
            }
        }
        self.news = news;
        true
    }

    fn fabric_event(&mut self, event: FabricEvent) {
        match event {
            FabricEvent::Completed { peer, token, result } => {
                if token.0 & Token::SHELL != 0 {
                    if result.is_ok()
                        && let Some(until) = self.lease.completed(peer, token.0 & !Token::SHELL)
                    {
                        self.renewed(until);
                    }
                } else {
                    self.step_at(self.now, Event::Completed { peer, token, result });
                }
            }
            FabricEvent::Message { from, bytes } => {
                metrics::add("clustix_fabric_messages_total", 1);
                self.step(Event::Message { from, bytes });
            }
            FabricEvent::Revoked { peer } => self.step(Event::Revoked { peer }),
            FabricEvent::Stuck { peer } => {
                eprintln!(
                    "ccache: node {peer} was evicted and does not leave: its ccache is killed"
                );
                self.parts.network.kill(peer);
                self.look_at = 0;
            }
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Post { peer, token, chain } => {
                if peer == self.parts.slot {
                    return self.parts.network.post(peer, token, &chain);
                }
                match self.outboxes.get_mut(usize::from(peer)) {
                    Some(o) if o.way == Way::Open => self.parts.network.post(peer, token, &chain),
                    Some(o) if o.way != Way::Closed => o.posts.push_back((token, chain)),
                    _ => self.refused.push((peer, token)),
                }
            }
            Action::Send { peer, bytes } => {
                if let Some(o) = self.outboxes.get_mut(usize::from(peer)) {
                    // To a peer without a way nothing can be said; its view will end.
                    if o.way != Way::Closed {
                        o.sends.push_back(bytes);
                    }
                }
            }
            Action::Reply { id, reply } => self.reply(id, reply),
            Action::Changed { id } => {
                if let Some(w) = self.waits.remove(&id.0) {
                    self.wait_of.remove(&(w.channel, w.word));
                    self.parts.server.signal(w.channel, w.word);
                }
            }
            Action::Revoke { peer } => {
                self.parts.network.revoke(exec::now_ns(), peer);
                self.close(peer);
            }
            Action::Connect { peer, incarnation } => {
                if let Some(o) = self.outboxes.get_mut(usize::from(peer)) {
                    o.way = Way::Opening(incarnation);
                    self.parts.network.admit(peer, incarnation);
                    self.look_at = 0;
                }
            }
            Action::Publish { peer, ticket, name } => {
                let published = volatile::get(self.parts.slab.as_ref(), name);
                self.step(Event::Published { peer, ticket, published });
            }
            Action::Rebuilt { slot, epoch, shards } => {
                self.rebuilt.push((slot, epoch, shards.clone()));
                self.tell(MemberEvent::Rebuilt { slot, epoch, shards });
            }
        }
    }

    /// From now on nothing of this node's acts in that peer's memory.
    fn close(&mut self, peer: u8) {
        if let Some(o) = self.outboxes.get_mut(usize::from(peer)) {
            o.way = Way::Closed;
            o.sends.clear();
            self.refused.extend(o.posts.drain(..).map(|(token, _)| (peer, token)));
        }
    }

    /// Sends what can be sent.
    fn flush(&mut self) {
        let mut connected = Vec::new();
        for (peer, o) in self.outboxes.iter_mut().enumerate() {
            let peer = peer as u8;
            if let Way::Opening(incarnation) = o.way
                && self.parts.network.is_open(peer, incarnation)
            {
                o.way = Way::Open;
                connected.push((peer, incarnation));
                for (token, chain) in o.posts.drain(..) {
                    self.parts.network.post(peer, token, &chain);
                }
            }
            while o.way == Way::Open
                && let Some(bytes) = o.sends.front()
            {
                match self.parts.network.send(peer, bytes) {
                    Err(FabricError::Busy) => break,
                    // Unreachable: it has revoked this node or is gone, and will be evicted or
                    // has evicted this node.
                    Ok(()) | Err(_) => drop(o.sends.pop_front()),
                }
            }
        }
        for (peer, incarnation) in connected {
            self.step(Event::Connected { peer, incarnation });
        }
    }

    fn waiting_for_room(&self) -> bool {
        self.outboxes
            .iter()
            .any(|o| matches!(o.way, Way::Opening(_)) || o.way == Way::Open && !o.sends.is_empty())
    }

    // -- Rings --------------------------------------------------------------------------------

    /// Takes requests; whether there were any.
    fn serve_rings(&mut self) -> bool {
        for i in 0..BATCH {
            let Some(call) = self.parts.server.try_receive() else { return i > 0 };
            let rights = Rights(call.badge).and(self.everyone);
            let request = Request::decode(call.label, &call.request)
                .and_then(|r| r.check(rights).map(|()| r));
            match request {
                Ok(request) => self.request(call, request),
                Err(e) => respond(call, Err(e)),
            }
        }
        true
    }

    fn request(&mut self, call: Call, request: Request) {
        let what = match &request {
            Request::NextEvent => return self.next_event(call),
            Request::InstallView(_) => {
                if let Request::InstallView(view) = request {
                    self.install(view);
                }
                return respond(call, Ok(Reply::Done));
            }
            Request::Rehome { to, shards } => {
                let reply = self.rehome(*to, shards);
                return respond(call, reply);
            }
            Request::Wait { word, .. } => {
                if let Some(old) = self.wait_of.get(&(call.channel, *word)).copied() {
                    self.forget_wait(old);
                }
                if self.waits.len() >= MAX_WAITERS {
                    return respond(call, Err(CacheError::Busy));
                }
                What::Wait(*word)
            }
            Request::Status => What::Status,
            Request::Dump { everything: true, .. } => What::Dump,
            _ => What::Plain,
        };
        // As for another node's: what an evicted one holds is lost.
        if matches!(request, Request::GetOf { .. }) && !self.lease.valid(exec::now_ns()) {
            return respond(call, Err(CacheError::NoQuorum));
        }
        match volatile::answer(self.parts.slab.as_ref(), self.parts.slot, &request) {
            Some(reply) => respond(call, reply),
            None => {
                let (id, client) = (RequestId(self.next_id), ClientId(call.channel.0));
                self.next_id += 1;
                self.pending.insert(id.0, Pending { call, what });
                self.step(Event::Request { id, client, request });
            }
        }
    }

    fn forget_wait(&mut self, id: u64) {
        if let Some(w) = self.waits.remove(&id) {
            self.wait_of.remove(&(w.channel, w.word));
            self.step(Event::Cancel { id: RequestId(id) });
        }
    }

    fn reply(&mut self, id: RequestId, reply: Result<Reply, CacheError>) {
        let Some(Pending { call, what }) = self.pending.remove(&id.0) else { return };
        let reply = match (what, reply) {
            (What::Wait(word), Ok(Reply::Waited(None))) => {
                let now = exec::now_ns();
                self.waits.insert(id.0, Waiter { channel: call.channel, word, since: now });
                self.wait_of.insert((call.channel, word), id.0);
                Ok(Reply::Waited(None))
            }
            (What::Wait(_), Ok(_)) => Ok(Reply::Waited(Some(Waited::Changed))),
            (What::Status, Ok(Reply::Status(s))) => Ok(Reply::Status(Box::new(self.status(*s)))),
            (What::Dump, Ok(Reply::Dumped(d))) if d.is_empty() => {
                volatile::dump(self.parts.slab.as_ref(), None).map(Reply::Dumped)
            }
            (_, r) => r,
        };
        respond(call, reply);
    }

    /// What the engine says of this node, and what only the shell knows.
    fn status(&self, s: NodeStatus) -> NodeStatus {
        NodeStatus {
            node: self.parts.slot,
            incarnation: self.parts.incarnation,
            epoch: self.view.epoch,
            members: self.view.members.iter().map(|m| (m.slot, m.incarnation)).collect(),
            primaries: self.view.primaries(),
            witness: self.view.witness,
            lease: self.lease.valid(exec::now_ns()),
            survival: self.view.survival(),
            budget_bytes: self.parts.config.budget_bytes,
            ..s
        }
    }
}

fn respond(call: Call, reply: Result<Reply, CacheError>) {
    match reply {
        Ok(r) => {
            let mut bytes = Vec::new();
            r.encode(&mut bytes);
            call.reply(OK, &bytes);
        }
        Err(e) => call.reply(error_label(e), &[]),
    }
}
