//! What ccache's service does around its engine, as far as a measurement needs it: carries out actions,
//! renews the lease, sleeps on the fabric's bell. One view for all its life, no rings, no membership.

use crate::fail;
use crate::three::{BOUND, INCARNATION, TOKEN};
use clustix_ccache::arena::Arena;
use clustix_ccache::cache::{CacheError, Transaction};
use clustix_ccache::engine::{Action, ClientId, Config, Engine, Event, KNOWN, RequestId};
use clustix_ccache::fabric::{Address, Fabric, FabricError, FabricEvent, Token, Verb};
use clustix_ccache::layout::{RegionId, control};
use clustix_ccache::lease::{Lease, Timing};
use clustix_ccache::name::{Name, SHARDS};
use clustix_ccache::network::Network;
use clustix_ccache::network::verbs::{VerbsConfig, VerbsNetwork};
use clustix_ccache::request::{Reply, Request};
use clustix_ccache::view::{Member, Slots, View};
use clustix_pd::exec;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

/// Long leases: nobody is evicted here, and renewals are to disturb little.
const TIMING: Timing =
    Timing { lease_ns: 10_000_000_000, renewal_ns: 1_000_000_000, drift_ns: 200_000_000 };
/// Set in the tokens of verbs that are measured without the engine.
const RAW: u64 = Token::SHELL | 1 << 62;
/// The one shard of which node 0 has no copy (its primary is node 1), so that a miss there reads the
/// payload too.
pub const FAR: u16 = SHARDS - 3;
/// An operation that takes longer has been lost.
const LOST: Duration = Duration::from_secs(30);

/// Chains that are posted at once, each to its node.
pub type Round = Vec<(u8, Vec<Verb>)>;

/// One node: see the module.
pub struct Shell {
    /// Its slot.
    pub slot: u8,
    /// Its engine.
    pub engine: Engine,
    network: VerbsNetwork,
    arena: Arena,
    lease: Lease,
    actions: VecDeque<Action>,
    events: Vec<FabricEvent>,
    connected: Vec<u8>,
    sends: Vec<VecDeque<Vec<u8>>>,
    answers: HashMap<u64, (Result<Reply, CacheError>, Instant)>,
    next: u64,
    /// Chains of the engine's that have not completed.
    under_way: usize,
    raw_under_way: usize,
}

fn view(at: &[SocketAddr]) -> View {
    let members: Vec<Member> = (0u8..)
        .zip(at)
        .map(|(slot, at)| Member { slot, incarnation: INCARNATION, path: at.to_string() })
        .collect();
    let mut view = View::first(&members);
    view.shards[usize::from(FAR)].backups = Slots::one(2);
    view
}

impl Shell {
    /// Node `slot` of those at `at`, once all ways are open. It has no view yet.
    pub fn new(slot: u8, at: &[SocketAddr]) -> Shell {
        let arena = Arena::anonymous().unwrap_or_else(|e| fail("no memory", &e));
        let config = VerbsConfig::new(at[usize::from(slot)], TOKEN);
        let network = VerbsNetwork::new(config, slot, INCARNATION, arena.clone())
            .unwrap_or_else(|e| fail("no fabric", &e));
        let config = Config {
            node: slot,
            incarnation: INCARNATION,
            first_incarnation: true,
            timing: TIMING,
            budget_bytes: 1 << 32,
            rebuild_rate: 64,
            known: KNOWN,
        };
        let mut shell = Shell {
            slot,
            engine: Engine::new(config, arena.clone()),
            network,
            arena,
            lease: Lease::new(TIMING, slot),
            actions: VecDeque::new(),
            events: Vec::new(),
            connected: Vec::new(),
            sends: at.iter().map(|_| VecDeque::new()).collect(),
            answers: HashMap::new(),
            next: 0,
            under_way: 0,
            raw_under_way: 0,
        };
        shell.open(at);
        shell
    }

    fn open(&mut self, at: &[SocketAddr]) {
        let begun = Instant::now();
        let peers: Vec<u8> = (0..at.len() as u8).filter(|p| *p != self.slot).collect();
        peers.iter().for_each(|p| self.network.admit(*p, INCARNATION));
        while !peers.iter().all(|p| self.network.is_open(*p, INCARNATION)) {
            for p in &peers {
                let path = at[usize::from(*p)].to_string();
                self.network.open(exec::now_ns(), *p, INCARNATION, &path);
            }
            self.network.look(exec::now_ns(), &mut Vec::new());
            std::thread::sleep(Duration::from_millis(1));
            if begun.elapsed() > BOUND {
                fail("the others are not found", &"time is up");
            }
        }
    }

    /// The only view is in force; to be called when all have opened their ways.
    pub fn install(&mut self, at: &[SocketAddr]) {
        let view = view(at);
        self.lease.install(view.slots());
        self.renew();
        self.step(Event::View(view));
        let begun = Instant::now();
        while !(self.engine.settled() && self.lease.valid(exec::now_ns())) {
            self.turn_or_sleep(Duration::from_millis(5));
            if begun.elapsed() > BOUND {
                fail("the view does not settle", &"time is up");
            }
        }
    }

    fn step(&mut self, event: Event) {
        let mut out = Vec::new();
        self.engine.handle(exec::now_ns(), event, &mut out);
        self.actions.extend(out);
    }

    fn renew(&mut self) {
        let Some((word, peers)) = self.lease.send(exec::now_ns()) else { return };
        let at = Address { region: RegionId::Control, offset: control::heartbeat(self.slot) };
        for peer in peers.iter() {
            let verb = Verb::WriteWord { at, word };
            self.network.post(peer, Token(Token::SHELL | word), &[verb]);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Post { peer, token, chain } => {
                self.under_way += 1;
                self.network.post(peer, token, &chain);
            }
            Action::Send { peer, bytes } => self.sends[usize::from(peer)].push_back(bytes),
            Action::Reply { id, reply } => {
                self.answers.insert(id.0, (reply, Instant::now()));
            }
            Action::Connect { peer, .. } => self.connected.push(peer),
            Action::Changed { .. }
            | Action::Revoke { .. }
            | Action::Publish { .. }
            | Action::Rebuilt { .. } => {
                fail("the engine asks for something unexpected", &format_args!("{action:?}"))
            }
        }
    }

    fn happened(&mut self, event: FabricEvent) {
        match event {
            FabricEvent::Completed { result: Err(e), peer, .. } => {
                fail("a chain fails", &format_args!("to node {peer}: {e}"))
            }
            FabricEvent::Completed { token, .. } if token.0 & RAW == RAW => self.raw_under_way -= 1,
            FabricEvent::Completed { peer, token, .. } if token.0 & Token::SHELL != 0 => {
                if let Some(until) = self.lease.completed(peer, token.0 & !Token::SHELL) {
                    self.arena.set_control(control::LEASE, until);
                    self.step(Event::Lease { until });
                }
            }
            FabricEvent::Completed { peer, token, result } => {
                self.under_way -= 1;
                self.step(Event::Completed { peer, token, result });
            }
            FabricEvent::Message { from, bytes } => self.step(Event::Message { from, bytes }),
            FabricEvent::Revoked { .. } | FabricEvent::Stuck { .. } => {}
        }
    }

    /// Does what there is to do; whether there was anything.
    fn turn(&mut self) -> bool {
        let mut worked = false;
        let now = exec::now_ns();
        if now >= self.lease.next() {
            self.renew();
        }
        if self.engine.deadline().is_some_and(|at| now >= at) {
            self.step(Event::Tick);
        }
        loop {
            while let Some(action) = self.actions.pop_front() {
                worked = true;
                self.carry_out(action);
            }
            for peer in std::mem::take(&mut self.connected) {
                self.step(Event::Connected { peer, incarnation: INCARNATION });
            }
            for (peer, sends) in self.sends.iter_mut().enumerate() {
                while let Some(bytes) = sends.front() {
                    match self.network.send(peer as u8, bytes) {
                        Ok(()) => drop(sends.pop_front()),
                        Err(FabricError::Busy) => break,
                        Err(e) => fail("a message cannot be sent", &e),
                    }
                }
            }
            let mut events = std::mem::take(&mut self.events);
            self.network.poll(exec::now_ns(), &mut events);
            if events.is_empty() && self.actions.is_empty() {
                self.events = events;
                return worked;
            }
            worked = true;
            events.drain(..).for_each(|e| self.happened(e));
            self.events = events;
        }
    }

    /// As [`Shell::turn`]; with nothing to do, sleeps until the bell, a timer, or for so long.
    pub fn turn_or_sleep(&mut self, most: Duration) {
        let bell = self.network.bell().map_or(0, |b| b.load(Ordering::SeqCst));
        if self.turn() {
            return;
        }
        let timer = self.engine.deadline().unwrap_or(u64::MAX).min(self.lease.next());
        let until = timer.min(exec::now_ns() + most.as_nanos() as u64);
        let mut looked = false;
        exec::block_on(std::future::poll_fn(|_| {
            if std::mem::replace(&mut looked, true) {
                return Poll::Ready(());
            }
            if let Some(word) = self.network.bell() {
                exec::register(word, bell);
            }
            exec::deadline(until);
            Poll::Pending
        }));
    }

    /// Hands a request to the engine.
    pub fn ask(&mut self, request: Request) -> u64 {
        self.next += 1;
        let id = RequestId(self.next);
        self.step(Event::Request { id, client: ClientId(1), request });
        self.next
    }

    /// The answer, and when it came.
    pub fn answer(&mut self, id: u64) -> Option<(Result<Reply, CacheError>, Instant)> {
        self.answers.remove(&id)
    }

    fn until(&mut self, done: impl Fn(&Shell) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            self.turn_or_sleep(Duration::from_secs(1));
            if begun.elapsed() > LOST {
                fail("an operation does not end", &"time is up");
            }
        }
    }

    /// Waits until nothing of this node's is on its way, ends of writes included.
    pub fn quiet(&mut self) {
        self.until(|s| s.under_way == 0 && s.actions.is_empty());
    }

    /// A request, to its answer.
    pub fn one(&mut self, request: Request) -> (Result<Reply, CacheError>, Duration) {
        let begun = Instant::now();
        let id = self.ask(request);
        self.until(|s| s.answers.contains_key(&id));
        let Some((reply, at)) = self.answer(id) else { fail("no answer", &id) };
        (reply, at - begun)
    }

    /// Verbs without the engine, over the same queue pairs: each round when the one before is complete.
    pub fn raw(&mut self, rounds: &[Round]) -> Duration {
        let begun = Instant::now();
        for round in rounds {
            for (peer, chain) in round {
                self.raw_under_way += 1;
                self.network.post(*peer, Token(RAW), chain);
            }
            self.until(|s| s.raw_under_way == 0);
        }
        begun.elapsed()
    }
}

/// A put of one object, whatever it was.
pub fn put(name: Name, data: Vec<u8>) -> Request {
    Request::Transact(Transaction::new().set(name, data))
}
