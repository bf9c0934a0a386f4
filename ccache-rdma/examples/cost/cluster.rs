//! Nodes' engines with the shm fabric in one thread: no rings, no wake-ups, no other threads.

use clustix_ccache::arena::Arena;
use clustix_ccache::engine::{Action, ClientId, Config, Engine, Event, KNOWN, RequestId};
use clustix_ccache::fabric::shm::ShmFabric;
use clustix_ccache::fabric::{Fabric, FabricEvent, Verb};
use clustix_ccache::layout::control;
use clustix_ccache::lease::Timing;
use clustix_ccache::request::{Reply, Request};
use clustix_ccache::view::{Member, View};
use std::time::Instant;

/// One node.
pub struct Node {
    pub engine: Engine,
    fabric: ShmFabric,
    pub arena: Arena,
    replies: Vec<Reply>,
    actions: Vec<Action>,
    events: Vec<FabricEvent>,
    slot: u8,
    sent: Sent,
}

/// What one operation sent.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Times that it waited for chains or answers before its own.
    pub trips: u64,
    /// Verbs to other nodes.
    pub verbs: u64,
    /// Bytes that they carry, there or back.
    pub bytes: u64,
    /// Messages between nodes, answers too.
    pub messages: u64,
}

impl Sent {
    fn add(&mut self, chain: &[Verb]) {
        self.verbs += chain.len() as u64;
        self.bytes += chain
            .iter()
            .map(|verb| match verb {
                Verb::Read { len, .. } | Verb::Write { len, .. } => u64::from(*len),
                Verb::WriteWord { .. } => 8,
                // The operands there, the word back.
                Verb::CompareSwap { .. } => 24,
                Verb::FetchAdd { .. } => 16,
            })
            .sum::<u64>();
    }
}

/// A cluster of them.
pub struct Cluster {
    pub nodes: Vec<Node>,
    now: u64,
}

impl Node {
    fn feed(&mut self, now: u64, event: Event) {
        let mut actions = std::mem::take(&mut self.actions);
        self.engine.handle(now, event, &mut actions);
        // As the service does.
        for action in &actions {
            if let Action::Post { peer, chain, .. } = action {
                self.fabric.announce(*peer, chain);
            }
        }
        for action in actions.drain(..) {
            match action {
                Action::Post { peer, token, chain } => {
                    if peer != self.slot {
                        self.sent.add(&chain);
                    }
                    self.fabric.post(peer, token, &chain);
                }
                Action::Send { peer, bytes } => {
                    self.sent.messages += 1;
                    self.fabric.send(peer, &bytes).unwrap();
                }
                Action::Reply { reply, .. } => self.replies.push(reply.unwrap()),
                _ => {}
            }
        }
        self.actions = actions;
    }

    /// Handles what its fabric has for it; whether there was anything.
    fn turn(&mut self, now: u64) -> bool {
        let mut events = std::mem::take(&mut self.events);
        self.fabric.poll(now, &mut events);
        let moved = !events.is_empty();
        for event in events.drain(..) {
            let event = match event {
                FabricEvent::Completed { peer, token, result } => {
                    Event::Completed { peer, token, result }
                }
                FabricEvent::Message { from, bytes } => Event::Message { from, bytes },
                FabricEvent::Revoked { peer } => Event::Revoked { peer },
                FabricEvent::Stuck { .. } => continue,
            };
            self.feed(now, event);
        }
        self.events = events;
        moved
    }
}

impl Cluster {
    /// A cluster of `count` nodes, with its first view.
    pub fn new(count: u8) -> Cluster {
        let members: Vec<Member> =
            (0..count).map(|slot| Member { slot, incarnation: 1, path: String::new() }).collect();
        let node = |m: &Member| {
            let arena = Arena::anonymous().unwrap();
            let config = Config {
                node: m.slot,
                incarnation: 1,
                first_incarnation: true,
                timing: Timing::default(),
                budget_bytes: 1 << 32,
                rebuild_rate: 1000,
                known: KNOWN,
            };
            Node {
                engine: Engine::new(config, arena.clone()),
                fabric: ShmFabric::new(m.slot, 1, arena.clone()),
                arena,
                replies: Vec::new(),
                actions: Vec::new(),
                events: Vec::new(),
                slot: m.slot,
                sent: Sent::default(),
            }
        };
        let mut c = Cluster { nodes: members.iter().map(node).collect(), now: 1 };
        let arenas: Vec<Arena> = c.nodes.iter().map(|n| n.arena.clone()).collect();
        for (i, node) in c.nodes.iter_mut().enumerate() {
            for (j, arena) in arenas.iter().enumerate().filter(|(j, _)| *j != i) {
                node.fabric.admit(j as u8, 1);
                node.fabric.connect(j as u8, arena.clone());
            }
            node.arena.set_control(control::LEASE, u64::MAX);
            node.feed(1, Event::Lease { until: u64::MAX });
        }
        let view = View::first(&members);
        for node in &mut c.nodes {
            node.feed(1, Event::View(view.clone()));
            for peer in 0..count {
                node.feed(1, Event::Connected { peer, incarnation: 1 });
            }
        }
        c.settle();
        c
    }

    /// Runs all nodes until none has anything left to do.
    pub fn settle(&mut self) {
        while self.nodes.iter_mut().map(|n| n.turn(self.now)).filter(|moved| *moved).count() > 0 {}
    }

    /// Lets all nodes but `at` go on once.
    fn others(&mut self, at: usize) {
        for (_, node) in self.nodes.iter_mut().enumerate().filter(|(i, _)| *i != at) {
            node.turn(self.now);
        }
    }

    /// Asks node `at`: what all nodes sent for it.
    pub fn count(&mut self, at: usize, request: Request) -> Sent {
        for node in &mut self.nodes {
            node.sent = Sent::default();
        }
        self.ask(at, request);
        let sum = |of: fn(&Sent) -> u64| self.nodes.iter().map(|n| of(&n.sent)).sum();
        Sent {
            trips: self.nodes[at].sent.trips,
            verbs: sum(|s| s.verbs),
            bytes: sum(|s| s.bytes),
            messages: sum(|s| s.messages),
        }
    }

    /// Asks node `at`: how long its answer took, ns. One-sided verbs need no other node's help; where
    /// there are messages, the others run too.
    pub fn ask(&mut self, at: usize, request: Request) -> u64 {
        self.now += 1;
        let request = Event::Request { id: RequestId(self.now), client: ClientId(1), request };
        let start = Instant::now();
        self.nodes[at].feed(self.now, request);
        while self.nodes[at].replies.is_empty() {
            if self.nodes[at].turn(self.now) {
                self.nodes[at].sent.trips += 1;
            } else {
                self.others(at);
            }
        }
        let time = start.elapsed().as_nanos() as u64;
        self.nodes[at].replies.clear();
        self.settle();
        time
    }
}
