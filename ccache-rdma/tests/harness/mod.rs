//! A cluster of engines in one process, over the shm fabric on anonymous memory, driven by a seeded
//! scheduler: verbs take effect one by one (long ones in pieces), completions, messages, views and
//! leases arrive in any order that the fabric and the engine's contract allow.

#![allow(dead_code)] // Each test file uses its own part.

use clustix_ccache::arena::Arena;
use clustix_ccache::cache::CacheError;
use clustix_ccache::engine::{Action, ClientId, Config, Engine, Event, RequestId};
use clustix_ccache::fabric::shm::ShmFabric;
use clustix_ccache::fabric::{Fabric, FabricError, FabricEvent, Outcome, Token, Verb};
use clustix_ccache::layout::{self, control};
use clustix_ccache::lease::Timing;
use clustix_ccache::name::{SHARDS, Shard};
use clustix_ccache::request::{Reply, Request};
use clustix_ccache::view::{Member, View};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::Ordering;

/// A small generator (splitmix64): the whole schedule follows from its seed.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
    pub fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
}

struct Chain {
    token: Token,
    verbs: VecDeque<Verb>,
    outcomes: Vec<Outcome>,
    /// The rest of a verb that is acting piece by piece.
    rest: Option<Verb>,
    read: Vec<u8>,
    failed: Option<FabricError>,
}

pub struct Node {
    pub slot: u8,
    pub incarnation: u64,
    pub engine: Engine,
    fabric: ShmFabric,
    pub arena: Arena,
    pub alive: bool,
    /// Until when the whole node stands still, as one that was stopped.
    pub paused_until: u64,
    /// Until when each queue pair stands still.
    slow: BTreeMap<u8, u64>,
    /// Views up to this one have been delivered.
    pub views: usize,
    posted: BTreeMap<u8, VecDeque<Chain>>,
    inbox: BTreeMap<u8, VecDeque<Event>>,
    outbox: BTreeMap<u8, VecDeque<Vec<u8>>>,
    /// Connections asked for: peer to incarnation, and whether it has been made.
    wanted: BTreeMap<u8, (u64, bool)>,
    pub lease_until: u64,
}

pub struct Cluster {
    pub random: Random,
    pub now: u64,
    pub nodes: Vec<Node>,
    /// Decided views, in order.
    pub views: Vec<View>,
    /// Replies that nobody has taken yet.
    pub replies: HashMap<(u8, RequestId), Result<Reply, CacheError>>,
    pub changed: Vec<(u8, RequestId)>,
    next_request: u64,
    pub timing: Timing,
    pub rebuilt: usize,
    pub trace: bool,
}

/// How finely verbs are cut.
const PIECE: u32 = 512;

impl Node {
    fn arena_gate_open(&self, peer: &Arena) -> bool {
        peer.control(control::gate(self.slot)) == self.incarnation + 1
    }
}

impl Cluster {
    pub fn new(seed: u64, nodes: u8) -> Cluster {
        let timing = Timing { lease_ns: 1_000_000, renewal_ns: 200_000, drift_ns: 50_000 };
        let mut c = Cluster {
            random: Random(seed),
            now: 1_000_000,
            nodes: Vec::new(),
            views: Vec::new(),
            replies: HashMap::new(),
            changed: Vec::new(),
            next_request: 1,
            timing,
            rebuilt: 0,
            trace: std::env::var_os("TRACE").is_some(),
        };
        let members: Vec<Member> = (0..nodes).map(|slot| member(slot, 1)).collect();
        for m in &members {
            c.start(m, true);
        }
        c.views.push(View::first(&members));
        c
    }

    pub fn start(&mut self, m: &Member, first: bool) {
        let arena = Arena::anonymous().unwrap();
        let config = Config {
            node: m.slot,
            incarnation: m.incarnation,
            first_incarnation: first,
            timing: self.timing,
            budget_bytes: 1 << 30,
            rebuild_rate: 100_000,
        };
        let node = Node {
            slot: m.slot,
            incarnation: m.incarnation,
            engine: Engine::new(config, arena.clone()),
            fabric: ShmFabric::new(m.slot, m.incarnation, arena.clone()),
            arena,
            alive: true,
            paused_until: 0,
            slow: BTreeMap::new(),
            views: self.views.len(),
            posted: BTreeMap::new(),
            inbox: BTreeMap::new(),
            outbox: BTreeMap::new(),
            wanted: BTreeMap::new(),
            lease_until: 0,
        };
        self.nodes.push(node);
    }

    pub fn at(&self, slot: u8) -> Option<usize> {
        self.nodes.iter().position(|n| n.slot == slot && n.alive)
    }

    pub fn view(&self) -> &View {
        self.views.last().unwrap()
    }

    /// A new request of a client at a node; `None` if the node is dead.
    pub fn ask(&mut self, slot: u8, client: u64, request: Request) -> Option<RequestId> {
        let at = self.at(slot)?;
        let id = RequestId(self.next_request);
        self.next_request += 1;
        self.feed(at, Event::Request { id, client: ClientId(client), request });
        Some(id)
    }

    pub fn feed(&mut self, at: usize, event: Event) {
        if self.trace && !matches!(event, Event::Tick | Event::Lease { .. }) {
            eprintln!("{:9} node {}: {event:?}", self.now, self.nodes[at].slot);
        }
        let mut actions = Vec::new();
        let now = self.now;
        self.nodes[at].engine.handle(now, event, &mut actions);
        for action in actions {
            if self.trace {
                eprintln!("{:9} node {}:   -> {action:?}", self.now, self.nodes[at].slot);
            }
            self.act(at, action);
        }
    }

    fn act(&mut self, at: usize, action: Action) {
        let slot = self.nodes[at].slot;
        let node = &mut self.nodes[at];
        match action {
            Action::Post { peer, token, chain } => {
                let chain = Chain {
                    token,
                    verbs: chain.into(),
                    outcomes: Vec::new(),
                    rest: None,
                    read: Vec::new(),
                    failed: None,
                };
                node.posted.entry(peer).or_default().push_back(chain);
            }
            Action::Send { peer, bytes } => node.outbox.entry(peer).or_default().push_back(bytes),
            Action::Reply { id, reply } => {
                assert!(self.replies.insert((slot, id), reply).is_none(), "two replies to {id:?}");
            }
            Action::Changed { id } => self.changed.push((slot, id)),
            Action::Revoke { peer } => {
                node.wanted.remove(&peer);
                node.outbox.remove(&peer);
                node.fabric.revoke(self.now, peer);
            }
            Action::Connect { peer, incarnation } => {
                node.fabric.admit(peer, incarnation);
                node.wanted.insert(peer, (incarnation, false));
            }
            Action::Rebuilt { slot: to, epoch, shards } => {
                self.rebuilt += shards.len();
                if epoch == self.view().epoch {
                    let shards: Vec<Shard> = shards.into_iter().map(Shard).collect();
                    if let Some(next) = self.view().rebuilt(to, &shards) {
                        self.views.push(next);
                    }
                }
            }
        }
    }

    /// Both ends must want each other's incarnation.
    fn connect_pairs(&mut self) {
        for a in 0..self.nodes.len() {
            let wants: Vec<(u8, u64)> = self.nodes[a]
                .wanted
                .iter()
                .filter(|(_, (_, made))| !made)
                .map(|(p, (i, _))| (*p, *i))
                .collect();
            for (peer, incarnation) in wants {
                let Some(b) = self.at(peer) else { continue };
                let me = (self.nodes[a].slot, self.nodes[a].incarnation);
                let mutual = self.nodes[a].alive
                    && self.nodes[b].incarnation == incarnation
                    && self.nodes[b].wanted.get(&me.0).is_some_and(|(i, _)| *i == me.1);
                if mutual && self.random.chance(3) {
                    let arena = self.nodes[b].arena.clone();
                    self.nodes[a].fabric.connect(peer, arena);
                    self.nodes[a].wanted.insert(peer, (incarnation, true));
                    self.feed(a, Event::Connected { peer, incarnation });
                }
            }
        }
    }

    /// Lets one verb (or a piece of a long one) of a node's queue pair act.
    fn act_verb(&mut self, at: usize, peer: u8) {
        let node = &mut self.nodes[at];
        let Some(queue) = node.posted.get_mut(&peer) else { return };
        let Some(chain) = queue.front_mut() else { return };
        let next = chain.rest.take().or_else(|| chain.verbs.pop_front());
        if let (Some(verb), None) = (next, chain.failed) {
            let (now, rest) = cut(verb);
            let whole = rest.is_none();
            chain.rest = rest;
            node.fabric.post(peer, Token(Token::SHELL), &[now]);
            let mut events = Vec::new();
            node.fabric.poll(self.now, &mut events);
            for event in events {
                match event {
                    FabricEvent::Completed { token: Token(Token::SHELL), result, .. } => {
                        match result {
                            Ok(mut o) => match o.remove(0) {
                                Outcome::Bytes(b) => {
                                    chain.read.extend_from_slice(&b);
                                    if whole {
                                        let bytes = std::mem::take(&mut chain.read);
                                        chain.outcomes.push(Outcome::Bytes(bytes));
                                    }
                                }
                                other if whole => chain.outcomes.push(other),
                                _ => {}
                            },
                            Err(e) => chain.failed = Some(e),
                        }
                    }
                    other => push(&mut node.inbox, other),
                }
            }
        }
        if chain.failed.is_some() || (chain.verbs.is_empty() && chain.rest.is_none()) {
            let Some(done) = queue.pop_front() else { return };
            let result = done.failed.map_or(Ok(done.outcomes), Err);
            let event = Event::Completed { peer, token: done.token, result };
            node.inbox.entry(peer).or_default().push_back(event);
        }
    }

    fn send_one(&mut self, at: usize, peer: u8) {
        let node = &mut self.nodes[at];
        let Some(queue) = node.outbox.get_mut(&peer) else { return };
        if let Some(bytes) = queue.front() {
            match node.fabric.send(peer, bytes) {
                Err(FabricError::Busy) => {}
                // A message to a peer that is not there (any more) is lost.
                _ => {
                    queue.pop_front();
                }
            }
        }
    }

    /// One step of the schedule.
    pub fn step(&mut self) {
        self.now += self.random.below(400) as u64;
        let at = self.random.below(self.nodes.len());
        if !self.nodes[at].alive || self.now < self.nodes[at].paused_until {
            return;
        }
        if self.random.chance(400) {
            // A queue pair that is slow for a while, as one that retransmits.
            let peer = self.random.below(self.nodes.len()) as u8;
            let until = self.now + self.random.below(600_000) as u64;
            self.nodes[at].slow.insert(peer, until);
        }
        match self.random.below(10) {
            0..=3 => {
                let (now, slow) = (self.now, &self.nodes[at].slow);
                let mut peers: Vec<u8> = keys(&self.nodes[at].posted);
                peers.retain(|p| slow.get(p).is_none_or(|until| *until <= now));
                if !peers.is_empty() {
                    let peer = peers[self.random.below(peers.len())];
                    for _ in 0..=self.random.below(4) {
                        self.act_verb(at, peer);
                    }
                }
            }
            4..=6 => {
                let mut events = Vec::new();
                let now = self.now;
                self.nodes[at].fabric.poll(now, &mut events);
                for e in events {
                    push(&mut self.nodes[at].inbox, e);
                }
                let from: Vec<u8> = keys(&self.nodes[at].inbox);
                if !from.is_empty() {
                    let from = from[self.random.below(from.len())];
                    if let Some(e) =
                        self.nodes[at].inbox.get_mut(&from).and_then(VecDeque::pop_front)
                    {
                        self.feed(at, e);
                    }
                }
            }
            7 => {
                let peers: Vec<u8> = keys(&self.nodes[at].outbox);
                if !peers.is_empty() {
                    let peer = peers[self.random.below(peers.len())];
                    self.send_one(at, peer);
                }
            }
            8 => {
                if self.nodes[at].engine.deadline().is_some_and(|d| d <= self.now) {
                    self.feed(at, Event::Tick);
                }
                self.connect_pairs();
            }
            _ => {
                let next = self.nodes[at].views;
                if next < self.views.len() {
                    self.nodes[at].views += 1;
                    let view = self.views[next].clone();
                    self.feed(at, Event::View(view));
                }
                self.renew(at);
            }
        }
    }

    /// A renewal completes if a majority of the members that the node knows still lets it in.
    fn renew(&mut self, at: usize) {
        let n = &self.nodes[at];
        let view = n.engine.view();
        if view.member(n.slot).is_none() {
            return;
        }
        let lets_in = |m: &&Member| {
            m.slot == n.slot
                || self.at(m.slot).is_some_and(|p| {
                    self.nodes[p].incarnation == m.incarnation
                        && n.arena_gate_open(&self.nodes[p].arena)
                })
        };
        if view.members.iter().filter(lets_in).count() >= view.majority() {
            self.set_lease(at);
        }
    }

    fn set_lease(&mut self, at: usize) {
        let until = self.now + self.timing.lease_ns;
        self.nodes[at].lease_until = until;
        self.nodes[at].arena.set_control(control::LEASE, until);
        self.feed(at, Event::Lease { until });
    }

    /// Whether a node has begun to write halves or records and is not through with it.
    pub fn in_the_middle_of_a_write(&self, slot: u8) -> bool {
        let Some(at) = self.at(slot) else { return false };
        let queues = &self.nodes[at].posted;
        let write = |v: &Verb| matches!(v, Verb::Write { .. });
        queues.values().flatten().any(|c| c.rest.iter().chain(&c.verbs).any(write))
    }

    /// Ends a node: nothing of it acts any more, what it posted included.
    pub fn kill(&mut self, slot: u8) {
        let at = self.at(slot).unwrap();
        self.nodes[at].alive = false;
        for n in &mut self.nodes {
            n.fabric.dead(slot);
        }
        if self.trace {
            eprintln!("{:9} KILL {slot}", self.now);
        }
    }

    /// Decides the view without a node.
    pub fn evict(&mut self, slot: u8) {
        let next = self.view().without(slot);
        self.views.push(next);
    }

    /// Starts the next incarnation of a slot and decides the view with it.
    pub fn rejoin(&mut self, slot: u8) {
        let last = self.nodes.iter().filter(|n| n.slot == slot).map(|n| n.incarnation).max();
        let m = member(slot, last.unwrap_or(0) + 1);
        self.start(&m, false);
        let next = self.view().with(&m);
        self.views.push(next);
    }

    /// Whether every survivor has ended its own use of a slot's arena.
    pub fn all_closed(&self, slot: u8) -> bool {
        self.nodes.iter().filter(|n| n.alive).all(|n| !n.fabric.connected(slot))
    }

    /// A dead node's memory may hold anything once all have left it: now it does.
    pub fn overwrite_dead(&mut self, slot: u8) {
        let dead: Vec<Arena> = self
            .nodes
            .iter()
            .filter(|n| n.slot == slot && !n.alive)
            .map(|n| n.arena.clone())
            .collect();
        for arena in dead {
            for set in layout::sets() {
                for shard in (0..SHARDS).map(Shard) {
                    let mark = arena.word(set.region(), set.mark(shard)).load(Ordering::Relaxed);
                    for s in 0..mark.min(64) as u32 {
                        let at = set.header(shard, s) as usize;
                        let _ = arena.region(set.region()).write(at, &[0xa5; 128]);
                        let at = set.payload(shard, s, 0) as usize;
                        let _ = arena.region(set.region()).write(at, &[0x5a; 256]);
                    }
                }
            }
        }
    }

    /// Whether every live member has settled in the last view and has nothing under way.
    pub fn quiet(&self) -> bool {
        let view = self.view();
        self.nodes.iter().filter(|n| n.alive && view.member(n.slot).is_some()).all(|n| {
            n.views == self.views.len()
                && n.engine.settled()
                && n.engine.under_way() == 0
                && n.posted.values().all(VecDeque::is_empty)
                && n.inbox.values().all(VecDeque::is_empty)
        })
    }

    /// Runs until quiet, at most so many steps.
    pub fn run_until_quiet(&mut self, steps: usize) -> bool {
        for _ in 0..steps {
            if self.quiet() {
                return true;
            }
            self.step();
        }
        false
    }

    /// Runs until a request is answered.
    pub fn run_for(&mut self, slot: u8, id: RequestId, steps: usize) -> Result<Reply, CacheError> {
        for _ in 0..steps {
            if let Some(r) = self.replies.remove(&(slot, id)) {
                return r;
            }
            self.step();
        }
        panic!("no reply to {id:?} of node {slot} within {steps} steps");
    }

    pub fn describe(&self) -> String {
        let mut out =
            format!("now {} views {} epoch {}\n", self.now, self.views.len(), self.view().epoch);
        for n in &self.nodes {
            out += &format!(
                "node {} inc {} alive {} views {} settled {} ops {} lease {} posted {:?} inbox {:?} deadline {:?} wanted {:?}\n",
                n.slot,
                n.incarnation,
                n.alive,
                n.views,
                n.engine.settled(),
                n.engine.under_way(),
                n.lease_until > self.now,
                n.posted.values().map(VecDeque::len).collect::<Vec<_>>(),
                n.inbox.values().map(VecDeque::len).collect::<Vec<_>>(),
                n.engine.deadline(),
                n.wanted,
            );
        }
        out
    }
}

pub fn member(slot: u8, incarnation: u64) -> Member {
    Member { slot, incarnation, path: format!("/node-{slot}") }
}

fn keys<T>(map: &BTreeMap<u8, VecDeque<T>>) -> Vec<u8> {
    map.iter().filter(|(_, q)| !q.is_empty()).map(|(k, _)| *k).collect()
}

fn push(inbox: &mut BTreeMap<u8, VecDeque<Event>>, event: FabricEvent) {
    let (from, event) = match event {
        FabricEvent::Completed { peer, token, result } => {
            (peer, Event::Completed { peer, token, result })
        }
        FabricEvent::Message { from, bytes } => (from, Event::Message { from, bytes }),
        FabricEvent::Revoked { peer } => (peer, Event::Revoked { peer }),
        FabricEvent::Stuck { .. } => return,
    };
    inbox.entry(from).or_default().push_back(event);
}

/// The first piece of a verb and the rest of it.
fn cut(verb: Verb) -> (Verb, Option<Verb>) {
    match verb {
        Verb::Read { at, len } if len > PIECE => {
            let mut next = at;
            next.offset += u64::from(PIECE);
            (Verb::Read { at, len: PIECE }, Some(Verb::Read { at: next, len: len - PIECE }))
        }
        Verb::Write { at, data, from, len } if len > PIECE => {
            let mut next = at;
            next.offset += u64::from(PIECE);
            let rest =
                Verb::Write { at: next, data: data.clone(), from: from + PIECE, len: len - PIECE };
            (Verb::Write { at, data, from, len: PIECE }, Some(rest))
        }
        // A head or record head may be cut off in the middle too.
        Verb::Write { at, data, from, len: 48 } => {
            let mut next = at;
            next.offset += 16;
            let rest = Verb::Write { at: next, data: data.clone(), from: from + 16, len: 32 };
            (Verb::Write { at, data, from, len: 16 }, Some(rest))
        }
        other => (other, None),
    }
}
