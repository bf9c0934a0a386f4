//! A cluster of simulated nodes: one clock, one network, one thing happening at a time.

use crate::clock::Clock;
use crate::membership::{Membership, Rebuilt};
use crate::net::{Net, Wire};
use crate::node::{News, Node, member, timing};
use crate::random::Random;
use clustix_ccache::arena::Arena;
use clustix_ccache::cache::CacheError;
use clustix_ccache::engine::{Action, ClientId, Config, Event, RequestId};
use clustix_ccache::layout;
use clustix_ccache::name::{SHARDS, Shard};
use clustix_ccache::request::{Reply, Request};
use clustix_ccache::view::{Member, Slots, View};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;

/// An answer, and where it stands in the order of all questions and answers.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// The engine's answer.
    pub reply: Result<Reply, CacheError>,
    /// Its place in the order.
    pub order: u64,
}

/// What has been done, for the report.
#[derive(Clone, Copy, Default, Debug)]
pub struct Totals {
    /// Requests answered with success.
    pub operations: u64,
    /// Nodes killed.
    pub crashes: u64,
    /// Views decided.
    pub views: u64,
    /// Links cut.
    pub partitions: u64,
    /// Nodes that stood still.
    pub pauses: u64,
    /// Nodes suspected without reason.
    pub suspicions: u64,
    /// Verbs that acted.
    pub verbs: u64,
    /// Reads of domains that hit.
    pub hits: u64,
    /// Views in which shards had other primaries than before, though nobody was lost.
    pub rehomes: u64,
}

impl Totals {
    /// Adds another run's.
    pub fn add(&mut self, other: &Totals) {
        self.operations += other.operations;
        self.crashes += other.crashes;
        self.views += other.views;
        self.partitions += other.partitions;
        self.pauses += other.pauses;
        self.suspicions += other.suspicions;
        self.verbs += other.verbs;
        self.hits += other.hits;
        self.rehomes += other.rehomes;
    }
}

/// A cluster.
pub struct Cluster {
    /// Chance.
    pub random: Random,
    /// The network.
    pub net: Rc<RefCell<Net>>,
    /// All incarnations, the dead too.
    pub nodes: Vec<Node>,
    /// Who decides views.
    pub membership: Membership,
    /// Answers that nobody has taken yet.
    pub replies: HashMap<(u8, RequestId), Answer>,
    /// Queued waits that are over.
    pub changed: Vec<(u8, RequestId)>,
    /// Copies filled.
    pub rebuilt: usize,
    /// Prints every step.
    pub trace: bool,
    /// What has been done.
    pub totals: Totals,
    /// The first answer that no rule allows: the checker's name and what was seen.
    pub violation: Option<(&'static str, String)>,
    /// A survivor hears at once that a node's process ended, as where the host tells.
    pub notices: bool,
    /// A bug that is put back into every engine.
    #[cfg(feature = "put-back-bugs")]
    pub bug: Option<clustix_ccache::engine::Bug>,
    /// Requests whose answer says something of this moment, and so needs a lease.
    needs_lease: HashMap<RequestId, ()>,
    order: u64,
    next_request: u64,
    membership_at: u64,
}

impl Cluster {
    /// So many nodes in a first view, which they have yet to hear of.
    pub fn new(seed: u64, nodes: u8) -> Cluster {
        Cluster::with_wire(seed, nodes, Wire::default())
    }

    /// The same, on a given wire.
    pub fn with_wire(seed: u64, nodes: u8, wire: Wire) -> Cluster {
        let mut c = Cluster {
            random: Random(seed),
            net: Rc::new(RefCell::new(Net::new(seed ^ 0x6e65_7477, wire))),
            nodes: Vec::new(),
            membership: Membership::default(),
            replies: HashMap::new(),
            changed: Vec::new(),
            rebuilt: 0,
            trace: false,
            totals: Totals::default(),
            violation: None,
            notices: true,
            #[cfg(feature = "put-back-bugs")]
            bug: None,
            needs_lease: HashMap::new(),
            order: 0,
            next_request: 1,
            membership_at: 0,
        };
        let members: Vec<Member> = (0..nodes).map(|slot| member(slot, 1)).collect();
        for m in &members {
            c.start(m, true);
        }
        c.membership.decide(View::first(&members), members.iter().map(|m| m.slot).collect());
        c
    }

    fn start(&mut self, m: &Member, first: bool) {
        let config = Config {
            node: m.slot,
            incarnation: m.incarnation,
            first_incarnation: first,
            timing: timing(),
            budget_bytes: 1 << 30,
            rebuild_rate: 100_000,
            // So few that something is forgotten all the time.
            known: 4,
        };
        let clock = Clock::any(&mut self.random, &timing());
        let views = self.membership.views.len();
        self.nodes.push(Node::new(&self.net, clock, config, views));
    }

    /// Puts a bug back into every engine there is and that comes.
    #[cfg(feature = "put-back-bugs")]
    pub fn put_back(&mut self, bug: Option<clustix_ccache::engine::Bug>) {
        self.bug = bug;
        for n in &mut self.nodes {
            n.engine.put_back(bug);
        }
    }

    /// Global time, ns.
    pub fn now(&self) -> u64 {
        self.net.borrow().now
    }

    /// The next place in the order of all questions and answers.
    pub fn next_order(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    /// The live incarnation of a slot.
    pub fn at(&self, slot: u8) -> Option<usize> {
        self.nodes.iter().position(|n| n.slot == slot && n.alive)
    }

    /// The last view decided.
    pub fn view(&self) -> &View {
        self.membership.view()
    }

    /// Says something in the trace.
    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:9} {}", self.now(), what());
        }
    }

    /// A new request of a client at a node; `None` if the node is dead.
    pub fn ask(&mut self, slot: u8, client: u64, request: Request) -> Option<RequestId> {
        let at = self.at(slot)?;
        let id = RequestId(self.next_request);
        self.next_request += 1;
        let of_now = match &request {
            Request::Get { .. } | Request::Grab { .. } => true,
            // One of several objects is answered when its halves stand, after its commit.
            Request::Transact(t) => t.writes.len() <= 1,
            _ => false,
        };
        if of_now {
            self.needs_lease.insert(id, ());
        }
        self.feed(at, Event::Request { id, client: ClientId(client), request });
        Some(id)
    }

    /// Hands an event to a node's engine.
    pub fn feed(&mut self, at: usize, event: Event) {
        let slot = self.nodes[at].slot;
        self.say(|| format!("node {slot}: {event:?}"));
        let (now, mut news) = (self.now(), Vec::new());
        self.nodes[at].feed(now, event, &mut news);
        self.hear(at, news);
    }

    fn hear(&mut self, at: usize, news: Vec<News>) {
        let slot = self.nodes[at].slot;
        for n in news {
            if self.trace {
                self.say(|| format!("node {slot}:   {n:?}"));
            }
            match n {
                News::Action(Action::Reply { id, reply }) => self.answered(at, id, reply),
                News::Action(Action::Changed { id }) => self.changed.push((slot, id)),
                News::Action(Action::Rebuilt { slot: to, epoch, shards }) => {
                    self.rebuilt += shards.len();
                    self.membership.report(Rebuilt { by: slot, slot: to, epoch, shards });
                }
                News::Action(_) => {}
                News::Evicted => self.end(at),
            }
        }
    }

    fn answered(&mut self, at: usize, id: RequestId, reply: Result<Reply, CacheError>) {
        let order = self.next_order();
        let n = &self.nodes[at];
        if self.needs_lease.remove(&id).is_some() {
            let valid = n.lease.valid(n.clock.local(self.now()));
            if let Err(what) = no_answer_without_a_lease(valid, &reply) {
                let what = format!("node {} answered {id:?} {what}", n.slot);
                self.violation.get_or_insert(("no_answer_without_a_lease", what));
            }
        }
        self.totals.operations += u64::from(reply.is_ok());
        let key = (self.nodes[at].slot, id);
        let twice = self.replies.insert(key, Answer { reply, order });
        assert!(twice.is_none(), "two replies to {id:?}");
    }

    /// When something happens next.
    pub fn next_at(&self) -> u64 {
        let turn = self.nodes.iter().filter(|n| n.alive);
        let turn = turn.map(|n| n.turn_at.max(n.paused_until)).min().unwrap_or(u64::MAX);
        self.net.borrow().next_at().unwrap_or(u64::MAX).min(turn).min(self.membership_at)
    }

    /// Lets the next thing happen.
    pub fn step(&mut self) {
        let next = self.next_at();
        let of_net = self.net.borrow().next_at().is_some_and(|at| at <= next);
        if of_net {
            self.net.borrow_mut().run_one();
        } else {
            let mut net = self.net.borrow_mut();
            net.now = net.now.max(next);
            drop(net);
            if self.membership_at <= next {
                self.membership_turn();
            } else {
                self.node_turn(next);
            }
        }
        let now = self.now();
        for port in self.net.borrow_mut().take_woken() {
            if let Some(n) = self.nodes.get_mut(port) {
                let at = now + self.random.time(20, 400);
                n.turn_at = n.turn_at.min(at);
            }
        }
    }

    fn node_turn(&mut self, next: u64) {
        let due = |n: &Node| n.alive && n.turn_at.max(n.paused_until) <= next;
        let Some(at) = self.nodes.iter().position(due) else { return };
        let now = self.now();
        let mut news = Vec::new();
        let (trace, slot) = (self.trace, self.nodes[at].slot);
        let say = |event: &Event| {
            if trace {
                println!("{now:9} node {slot}: {event:?}");
            }
        };
        self.nodes[at].turn(now, &mut self.random, &self.net, &say, &mut news);
        self.hear(at, news);
    }

    fn membership_turn(&mut self) {
        self.membership_at = self.now() + self.random.time(5_000, 40_000);
        let views = self.membership.views.len();
        self.membership.turn(&mut self.random, &self.nodes, &self.net.borrow());
        if self.membership.views.len() > views {
            self.totals.views += 1;
            let v = self.view();
            let members: Vec<_> = v.members.iter().map(|m| (m.slot, m.incarnation)).collect();
            self.say(|| format!("VIEW {}: {members:?}", v.epoch));
        }
        for at in 0..self.nodes.len() {
            let n = &self.nodes[at];
            let runs = n.alive && n.paused_until <= self.now();
            let late = self.membership.witness && !self.random.chance(4);
            if !runs || late || !self.membership.hears(n, &self.nodes, &self.net.borrow()) {
                continue;
            }
            let view = self.membership.views[n.views].clone();
            let mine = view.member(n.slot).is_some_and(|m| m.incarnation == n.incarnation);
            if !mine && n.engine.view().epoch == 0 {
                // Not in it yet.
                self.nodes[at].views += 1;
                continue;
            }
            if self.random.chance(3) {
                continue;
            }
            let slot = n.slot;
            self.say(|| format!("node {slot}: hears of view {}", view.epoch));
            let (now, mut news) = (self.now(), Vec::new());
            self.nodes[at].install(now, &view, &mut news);
            self.nodes[at].turn_at = now;
            self.hear(at, news);
        }
    }

    /// Ends a node: nothing of it acts any more, but for packets on the wire.
    pub fn kill(&mut self, slot: u8) {
        if let Some(at) = self.at(slot) {
            self.say(|| format!("KILL {slot}"));
            self.totals.crashes += 1;
            self.end(at);
        }
    }

    fn end(&mut self, at: usize) {
        let (slot, incarnation) = (self.nodes[at].slot, self.nodes[at].incarnation);
        self.nodes[at].alive = false;
        self.net.borrow_mut().kill(self.nodes[at].port());
        if self.notices {
            for to in 0..self.nodes.len() {
                let n = &mut self.nodes[to];
                if n.alive && !self.net.borrow().is_cut(n.slot, slot) {
                    let (now, mut news) = (self.net.borrow().now, Vec::new());
                    n.link_broke(now, slot, incarnation, &mut news);
                    self.hear(to, news);
                }
            }
        }
    }

    /// One node takes another for dead, without reason.
    pub fn suspect(&mut self, by: u8, whom: u8) {
        let incarnation = self.at(whom).map(|at| self.nodes[at].incarnation);
        if let (Some(at), Some(incarnation)) = (self.at(by), incarnation) {
            self.say(|| format!("SUSPECT {whom} by {by}"));
            self.totals.suspicions += 1;
            self.nodes[at].suspected.insert(whom, incarnation);
        }
    }

    /// Everyone who lives takes a node for dead.
    pub fn evict(&mut self, slot: u8) {
        let next = self.view().without(slot);
        let by: Slots = self.nodes.iter().filter(|n| n.alive).map(|n| n.slot).collect();
        self.membership.decide(next, by.without(slot));
    }

    /// Lets a node stand still until a global time.
    pub fn pause(&mut self, slot: u8, until: u64) {
        if let Some(at) = self.at(slot) {
            self.say(|| format!("PAUSE {slot} until {until}"));
            self.totals.pauses += 1;
            self.nodes[at].paused_until = until;
        }
    }

    /// Cuts or heals a link.
    pub fn cut(&mut self, a: u8, b: u8, cut: bool) {
        self.say(|| format!("{} {a}-{b}", if cut { "CUT" } else { "HEAL" }));
        self.totals.partitions += u64::from(cut);
        self.net.borrow_mut().cut(a, b, cut);
    }

    /// Starts the next incarnation of a slot whose last one is dead; it asks to be let in.
    pub fn rejoin(&mut self, slot: u8) -> u64 {
        let last = self.nodes.iter().filter(|n| n.slot == slot).map(|n| n.incarnation).max();
        let m = member(slot, last.unwrap_or(0) + 1);
        self.say(|| format!("REJOIN {slot} as incarnation {}", m.incarnation));
        self.start(&m, false);
        #[cfg(feature = "put-back-bugs")]
        self.put_back(self.bug);
        self.membership.joining.push(m.clone());
        m.incarnation
    }

    /// Whether every survivor has ended its own use of a dead slot's arena.
    pub fn all_closed(&self, slot: u8) -> bool {
        let net = self.net.borrow();
        self.nodes.iter().filter(|n| n.alive).all(|n| !net.connected(n.port(), slot))
    }

    /// A dead node's memory may hold anything once all have left it: now it does.
    pub fn overwrite_dead(&mut self, slot: u8) {
        self.say(|| format!("OVERWRITE {slot}"));
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

    /// Whether every member lives, has settled in the last view and has nothing under way.
    pub fn quiet(&self) -> bool {
        let view = self.view();
        let net = self.net.borrow();
        self.membership.is_quiet()
            && view.members.iter().all(|m| {
                self.at(m.slot).is_some_and(|at| {
                    let n = &self.nodes[at];
                    n.incarnation == m.incarnation
                        && n.views == self.membership.views.len()
                        && n.lease.valid(n.clock.local(net.now))
                        && n.is_quiet(&net)
                })
            })
            && self.nodes.iter().all(|n| !n.alive || view.member(n.slot).is_some())
    }

    /// Runs until quiet, at most so many steps.
    pub fn run_until_quiet(&mut self, steps: usize) -> bool {
        for i in 0..steps {
            if i % 16 == 0 && self.quiet() {
                return true;
            }
            self.step();
        }
        false
    }

    /// Runs until a request is answered; `None` if it is not within so many steps.
    pub fn run_for(
        &mut self,
        slot: u8,
        id: RequestId,
        steps: usize,
    ) -> Option<Result<Reply, CacheError>> {
        for _ in 0..steps {
            if let Some(a) = self.replies.remove(&(slot, id)) {
                return Some(a.reply);
            }
            self.step();
        }
        None
    }

    /// The state of every node, for a failure's report.
    pub fn describe(&self) -> String {
        let mut out = format!("now {} epoch {}\n", self.now(), self.view().epoch);
        for n in &self.nodes {
            out += &format!(
                "node {} incarnation {} alive {} views {}/{} settled {} under way {} lease {} \
                 suspects {:?} deadline in {:?}\n",
                n.slot,
                n.incarnation,
                n.alive,
                n.views,
                self.membership.views.len(),
                n.engine.settled(),
                n.engine.under_way(),
                n.lease.valid(n.clock.local(self.now())),
                n.suspected,
                n.engine.deadline().map(|d| d as i64 - n.clock.local(self.now()) as i64),
            );
        }
        out
    }
}

/// Rules 4 and 10: what a node answers from what it sees, or commits, it answers under a lease.
fn no_answer_without_a_lease(valid: bool, reply: &Result<Reply, CacheError>) -> Result<(), String> {
    match reply {
        Ok(Reply::Object(..) | Reply::Done) if !valid => Err(format!("without a lease: {reply:?}")),
        _ => Ok(()),
    }
}
