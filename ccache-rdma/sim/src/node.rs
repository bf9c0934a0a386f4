//! A simulated node: the product's engine, lease and watch, and around them what ccache's service
//! does with rings and sockets left out.

use crate::clock::Clock;
use crate::fabric::SimFabric;
use crate::net::Net;
use crate::random::Random;
use clustix_ccache::arena::Arena;
use clustix_ccache::engine::{Action, Config, Engine, Event};
use clustix_ccache::fabric::{Address, Fabric, FabricError, FabricEvent, Token, Verb};
use clustix_ccache::layout::{RegionId, control};
use clustix_ccache::lease::{Lease, Opinion, Timing, Watch};
use clustix_ccache::view::{Member, View};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// How often peers' heartbeats are looked at, ns.
const LOOK: u64 = 15_000;

/// How far the way to a peer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// Its permission is awaited.
    Opening(u64),
    Open,
}

struct Outbox {
    way: Way,
    posts: VecDeque<(Token, Vec<Verb>)>,
    sends: VecDeque<Vec<u8>>,
}

/// What a node says to the world around it.
#[derive(Debug)]
pub enum News {
    /// The engine asks for something that the cluster carries out.
    Action(Action),
    /// This node is in no view any more and ends.
    Evicted,
}

/// One incarnation of a slot.
pub struct Node {
    /// Slot.
    pub slot: u8,
    /// Incarnation.
    pub incarnation: u64,
    /// The protocol.
    pub engine: Engine,
    /// Its memory.
    pub arena: Arena,
    /// Its clock.
    pub clock: Clock,
    /// Its lease.
    pub lease: Lease,
    /// Whether it runs.
    pub alive: bool,
    /// Until when it stands still, global ns.
    pub paused_until: u64,
    /// When it looks at the world next, global ns.
    pub turn_at: u64,
    /// Views up to this one have been delivered.
    pub views: usize,
    /// Whom it takes for dead, by incarnation.
    pub suspected: BTreeMap<u8, u64>,
    fabric: SimFabric,
    watch: Watch,
    view: View,
    outboxes: BTreeMap<u8, Outbox>,
    inbox: BTreeMap<u8, VecDeque<Event>>,
    look_at: u64,
}

impl Node {
    /// A node that is in no view yet, with an empty arena.
    pub fn new(net: &Rc<RefCell<Net>>, clock: Clock, config: Config, views: usize) -> Node {
        let arena = Arena::anonymous().expect("address space for an arena");
        let Config { node, incarnation, timing, .. } = config;
        Node {
            slot: node,
            incarnation,
            engine: Engine::new(config, arena.clone()),
            fabric: SimFabric::new(net, node, incarnation, arena.clone()),
            arena,
            clock,
            lease: Lease::new(timing, node),
            alive: true,
            paused_until: 0,
            turn_at: net.borrow().now,
            views,
            suspected: BTreeMap::new(),
            watch: Watch::new(timing),
            view: View::default(),
            outboxes: BTreeMap::new(),
            inbox: BTreeMap::new(),
            look_at: 0,
        }
    }

    /// Number of its end of the network.
    pub fn port(&self) -> usize {
        self.fabric.port()
    }

    /// Whether nothing is under way here but heartbeats.
    pub fn is_quiet(&self, net: &Net) -> bool {
        self.engine.settled()
            && self.engine.under_way() == 0
            && self.inbox.values().all(VecDeque::is_empty)
            && self.outboxes.values().all(|o| o.posts.is_empty() && o.sends.is_empty())
            && !net.busy(self.port())
    }

    /// Hands an event to the engine and carries out what it asks for.
    pub fn feed(&mut self, now: u64, event: Event, news: &mut Vec<News>) {
        let mut actions = Vec::new();
        self.engine.handle(self.clock.local(now), event, &mut actions);
        for action in actions {
            self.carry_out(now, action, news);
        }
    }

    fn carry_out(&mut self, now: u64, action: Action, news: &mut Vec<News>) {
        match action {
            Action::Post { peer, token, chain } if peer == self.slot => {
                self.fabric.post(peer, token, &chain);
            }
            Action::Post { peer, token, chain } => match self.outboxes.get_mut(&peer) {
                Some(o) if o.way == Way::Open => self.fabric.post(peer, token, &chain),
                Some(o) => o.posts.push_back((token, chain)),
                None => self.refuse(peer, token),
            },
            Action::Send { peer, bytes } => {
                // To a peer without a way nothing can be said; its view will end.
                if let Some(o) = self.outboxes.get_mut(&peer) {
                    o.sends.push_back(bytes);
                }
            }
            Action::Revoke { peer } => {
                self.fabric.revoke(now, peer);
                self.close(peer);
            }
            Action::Connect { peer, incarnation } => {
                let (way, posts, sends) =
                    (Way::Opening(incarnation), VecDeque::new(), VecDeque::new());
                self.outboxes.insert(peer, Outbox { way, posts, sends });
                self.fabric.admit(peer, incarnation);
            }
            other => news.push(News::Action(other)),
        }
    }

    fn refuse(&mut self, peer: u8, token: Token) {
        let result = Err(FabricError::Unreachable);
        let event = Event::Completed { peer, token, result };
        self.inbox.entry(peer).or_default().push_back(event);
    }

    /// A view has been decided and this node hears of it.
    pub fn install(&mut self, now: u64, view: &View, news: &mut Vec<News>) {
        self.views += 1;
        let within = view.member(self.slot).is_some_and(|m| m.incarnation == self.incarnation);
        if !within {
            news.push(News::Evicted);
            return;
        }
        let local = self.clock.local(now);
        let members = view.members.iter().map(|m| (m.slot, m.incarnation));
        self.view = view.clone();
        self.lease.install(view.slots());
        self.watch.install(local, self.slot, members);
        let stays = |s: &u8, i: &u64| view.member(*s).is_some_and(|m| m.incarnation == *i);
        self.suspected.retain(|s, i| stays(s, i));
        self.feed(now, Event::View(view.clone()), news);
        self.renew(now, news);
        self.look_at = 0;
    }

    fn renew(&mut self, now: u64, news: &mut Vec<News>) {
        let before = self.lease.end();
        let Some((number, peers)) = self.lease.send(self.clock.local(now)) else { return };
        let at = Address { region: RegionId::Control, offset: control::heartbeat(self.slot) };
        for peer in peers.iter() {
            if self.outboxes.get(&peer).is_some_and(|o| o.way == Way::Open) {
                let verb = Verb::WriteWord { at, word: number };
                self.fabric.post(peer, Token(Token::SHELL | number), &[verb]);
            }
        }
        if self.lease.end() > before {
            self.renewed(now, news);
        }
    }

    fn renewed(&mut self, now: u64, news: &mut Vec<News>) {
        let until = self.lease.end();
        self.arena.set_control(control::LEASE, until);
        self.feed(now, Event::Lease { until }, news);
    }

    /// Nothing more of this node's goes to that peer.
    fn close(&mut self, peer: u8) {
        if let Some(o) = self.outboxes.remove(&peer) {
            for (token, _) in o.posts {
                self.refuse(peer, token);
            }
        }
    }

    /// The shell has noticed that a peer's process ended: from now on no renewal counts in its memory.
    pub fn link_broke(&mut self, now: u64, slot: u8, incarnation: u64, news: &mut Vec<News>) {
        let next = |o: &Outbox| matches!(o.way, Way::Opening(i) if i != incarnation);
        if !self.outboxes.get(&slot).is_some_and(next) {
            self.close(slot);
        }
        self.feed(now, Event::Ended { peer: slot, incarnation }, news);
        let opinion = self.watch.broken(slot, incarnation);
        self.opinion(opinion);
    }

    fn opinion(&mut self, opinion: Option<Opinion>) {
        match opinion {
            Some(Opinion::Suspect(slot, incarnation)) => {
                self.suspected.insert(slot, incarnation);
            }
            Some(Opinion::Trust(slot, _)) => drop(self.suspected.remove(&slot)),
            None => {}
        }
    }

    fn look(&mut self, local: u64) {
        let due = if self.look_at == 0 { local } else { self.look_at };
        self.look_at = local + LOOK;
        for slot in self.watch.slots().iter() {
            let beat = self.arena.control(control::heartbeat(slot));
            let news = self.watch.observe(local, slot, beat);
            self.opinion(news);
        }
        for news in self.watch.tick(local, due) {
            self.opinion(Some(news));
        }
    }

    /// Opens ways whose other end lets this node in, and sends what can be sent.
    fn flush(&mut self, now: u64, net: &Rc<RefCell<Net>>, news: &mut Vec<News>) {
        let mut connected = Vec::new();
        for (peer, o) in &mut self.outboxes {
            if let Way::Opening(incarnation) = o.way
                && net.borrow().lets_in(self.fabric.port(), *peer, incarnation)
            {
                self.fabric.connect(*peer, incarnation);
                o.way = Way::Open;
                connected.push((*peer, incarnation));
                for (token, chain) in o.posts.drain(..) {
                    self.fabric.post(*peer, token, &chain);
                }
            }
            while o.way == Way::Open
                && let Some(bytes) = o.sends.front()
            {
                match self.fabric.send(*peer, bytes) {
                    Err(FabricError::Busy) => break,
                    Ok(()) | Err(_) => drop(o.sends.pop_front()),
                }
            }
        }
        for (peer, incarnation) in connected {
            self.feed(now, Event::Connected { peer, incarnation }, news);
        }
    }

    /// One turn of the shell's loop: timers, what the fabric has, one event for the engine.
    pub fn turn(
        &mut self,
        now: u64,
        random: &mut Random,
        net: &Rc<RefCell<Net>>,
        trace: &dyn Fn(&Event),
        news: &mut Vec<News>,
    ) {
        let local = self.clock.local(now);
        if local >= self.lease.next() {
            self.renew(now, news);
        }
        if local >= self.look_at {
            self.look(local);
        }
        if self.engine.deadline().is_some_and(|at| local >= at) {
            self.feed(now, Event::Tick, news);
        }
        let mut events = Vec::new();
        self.fabric.poll(local, &mut events);
        for event in events {
            self.took(now, event, news);
        }
        for peer in net.borrow_mut().take_broken(self.fabric.port()) {
            if let Some(m) = self.view.member(peer) {
                let opinion = self.watch.broken(peer, m.incarnation);
                self.opinion(opinion);
            }
        }
        self.flush(now, net, news);
        let from: Vec<u8> =
            self.inbox.iter().filter(|(_, q)| !q.is_empty()).map(|(p, _)| *p).collect();
        if !from.is_empty() {
            let from = from[random.below(from.len())];
            if let Some(event) = self.inbox.get_mut(&from).and_then(VecDeque::pop_front) {
                trace(&event);
                self.feed(now, event, news);
            }
        }
        self.flush(now, net, news);
        self.turn_at = if self.inbox.values().any(|q| !q.is_empty()) {
            now + random.time(30, 400)
        } else {
            let timer = self.lease.next().min(self.look_at);
            let timer = self.engine.deadline().map_or(timer, |d| d.min(timer));
            self.clock.global(timer).max(now + 20)
        };
    }

    fn took(&mut self, now: u64, event: FabricEvent, news: &mut Vec<News>) {
        let (from, event) = match event {
            FabricEvent::Completed { peer, token, result } if token.0 & Token::SHELL != 0 => {
                if result.is_ok() && self.lease.completed(peer, token.0 & !Token::SHELL).is_some() {
                    self.renewed(now, news);
                }
                return;
            }
            FabricEvent::Completed { peer, token, result } => {
                (peer, Event::Completed { peer, token, result })
            }
            FabricEvent::Message { from, bytes } => (from, Event::Message { from, bytes }),
            FabricEvent::Revoked { peer } => (peer, Event::Revoked { peer }),
            FabricEvent::Stuck { .. } => return,
        };
        self.inbox.entry(from).or_default().push_back(event);
    }

    /// What goes into a view for this node.
    pub fn member(&self) -> Member {
        member(self.slot, self.incarnation)
    }
}

/// A member of a simulated cluster.
pub fn member(slot: u8, incarnation: u64) -> Member {
    Member { slot, incarnation, path: format!("/node-{slot}") }
}

/// The times of a simulated cluster: everything is a thousand times faster than on a real one.
pub fn timing() -> Timing {
    Timing { lease_ns: 300_000, renewal_ns: 60_000, drift_ns: 12_000 }
}
