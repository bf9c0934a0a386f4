//! One run: a cluster, clients at work on it, and what goes wrong meanwhile.

mod clients;
mod faults;

use crate::check::{Found, Ledger, replicas_agree, transactions_are_atomic};
use crate::cluster::{Cluster, Totals};
use crate::history::Act;
use crate::plan::Plan;
use crate::random::Random;
use crate::work::{START, Seen, Value, Work, accounts, counters, objects};
use clustix_ccache::cache::{CacheError, Transaction};
use clustix_ccache::engine::{Event, RequestId};
use clustix_ccache::layout;
use clustix_ccache::name::Name;
use clustix_ccache::request::{Reply, Request};

/// Events after which a cluster that has not come to rest never will.
const PATIENCE: usize = 600_000;

/// What a client has asked and not been told.
#[derive(Clone, Debug)]
struct Asked {
    id: RequestId,
    begin: u64,
    /// What a read must reach.
    floor: u64,
    /// What it writes: the object as it was read, and the act.
    writes: Vec<(Seen, Act)>,
}

#[derive(Clone, Debug)]
struct Client {
    node: u8,
    incarnation: u64,
    id: u64,
    /// When it begins its next work, ns.
    at: u64,
    work: Option<Work>,
    read: Vec<Seen>,
    asked: Option<Asked>,
    waits: bool,
}

/// A run under way.
pub struct Run {
    /// The cluster.
    pub c: Cluster,
    plan: Plan,
    random: Random,
    clients: Vec<Client>,
    ledger: Ledger,
    next_tag: u64,
    stopping: bool,
    /// Dead slots whose memory still holds what they left.
    left: Vec<u8>,
    violation: Option<(&'static str, String)>,
}

/// The outcome of a run that found nothing.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// What has been done.
    pub totals: Totals,
    /// Operations whose order has been explained.
    pub recorded: usize,
}

impl Run {
    /// A cluster with its objects, before any work.
    pub fn new(seed: u64, plan: Plan, trace: bool) -> Run {
        let mut c = Cluster::with_wire(seed, plan.nodes, plan.wire.clone());
        c.trace = trace;
        c.net.borrow_mut().trace = trace;
        c.notices = plan.notices;
        c.membership.notices = plan.notices;
        c.membership.witness = plan.witness;
        c.membership.careless = plan.careless;
        #[cfg(feature = "put-back-bugs")]
        c.put_back(plan.bug);
        for n in objects() {
            if let Some(set) = layout::set(n.set()) {
                c.net.borrow_mut().words.watch(set, n.shard(), 64);
            }
        }
        let mut run = Run {
            c,
            random: Random(seed ^ 0xabcd),
            clients: Vec::new(),
            ledger: Ledger::default(),
            next_tag: 0,
            stopping: false,
            left: Vec::new(),
            violation: None,
            plan,
        };
        for node in 0..run.plan.nodes {
            run.add_clients(node, 1);
        }
        run
    }

    fn found(&mut self, found: Found) {
        if let Err(v) = found {
            self.violation.get_or_insert(v);
        }
    }

    fn failed(&mut self) -> bool {
        let of_words = self.c.net.borrow_mut().words.violation.take();
        if let Some(v) = self.c.violation.take().or(of_words) {
            self.violation.get_or_insert(v);
        }
        self.violation.is_some()
    }

    fn value(&mut self, number: i64) -> Value {
        self.next_tag += 1;
        Value { number, tag: self.next_tag }
    }

    fn add_clients(&mut self, node: u8, incarnation: u64) {
        for i in 0..self.plan.clients {
            let at = self.c.now() + self.random.time(0, 10_000);
            self.clients.push(Client {
                node,
                incarnation,
                id: 100 + i,
                at,
                work: None,
                read: Vec::new(),
                asked: None,
                waits: false,
            });
        }
    }

    // -- Time -------------------------------------------------------------------------------------

    fn step(&mut self) {
        let next = self.c.next_at();
        let ready = |c: &Client| c.work.is_none() && c.at <= next;
        if !self.stopping
            && let Some(i) = self.clients.iter().position(ready)
        {
            let (node, incarnation, at) =
                (self.clients[i].node, self.clients[i].incarnation, self.clients[i].at);
            {
                let mut net = self.c.net.borrow_mut();
                net.now = net.now.max(at);
            }
            let live = self.c.at(node).is_some_and(|at| {
                self.c.nodes[at].incarnation == incarnation
                    && self.c.nodes[at].paused_until <= self.c.now()
            });
            if live {
                self.clients[i].work = Some(self.plan.mix.choose(&mut self.random));
                self.go_on(i);
            } else {
                self.clients[i].at = self.c.now() + 20_000;
            }
        } else {
            self.c.step();
            if self.random.chance(24) {
                let (at, all) = (self.random.below(self.c.nodes.len()), objects());
                let name = all[self.random.below(all.len())];
                self.hit(at, name);
            }
        }
        self.poll_clients();
        self.lose_clients();
        if self.plan.rehomes > 0 && !self.stopping && self.random.chance(self.plan.rehomes) {
            self.rehome();
        }
        if self.random.chance(32) {
            self.overwrite();
        }
    }

    fn run_until(&mut self, until: u64) {
        while self.c.now() < until && !self.failed() {
            self.step();
        }
    }

    fn run(&mut self, ns: u64) {
        self.run_until(self.c.now() + ns);
    }

    /// The clients of nodes that are no more: what they were not told is unknown.
    fn lose_clients(&mut self) {
        let dead = |c: &Cluster, client: &Client| {
            !c.nodes
                .iter()
                .any(|n| n.alive && (n.slot, n.incarnation) == (client.node, client.incarnation))
        };
        if !self.clients.iter().any(|client| dead(&self.c, client)) {
            return;
        }
        for client in std::mem::take(&mut self.clients) {
            if !dead(&self.c, &client) {
                self.clients.push(client);
                continue;
            }
            if !self.left.contains(&client.node) {
                self.left.push(client.node);
            }
            for (seen, act) in client.asked.iter().flat_map(|a| &a.writes) {
                let begin = client.asked.as_ref().map_or(0, |a| a.begin);
                self.record(seen.name, *act, begin, None);
            }
        }
    }

    /// Rule 34: once every survivor has left a dead node's memory it may hold anything.
    fn overwrite(&mut self) {
        let c = &self.c;
        let gone = |s: &u8| c.at(*s).is_none() && c.view().member(*s).is_none();
        let Some(slot) = self.left.iter().copied().find(|s| gone(s) && c.all_closed(*s)) else {
            return;
        };
        self.left.retain(|s| *s != slot);
        self.c.overwrite_dead(slot);
    }

    /// Asks that another complete copy become the primary of some of the objects' shards, be the cluster
    /// whole or not.
    fn rehome(&mut self) {
        let all = objects();
        let first = all[self.random.below(all.len())].shard();
        let backups: Vec<u8> = self.c.view().replicas(first).backups.iter().collect();
        if backups.is_empty() {
            return;
        }
        let to = backups[self.random.below(backups.len())];
        let mut shards = vec![first];
        for n in all {
            if self.random.chance(2) && !shards.contains(&n.shard()) {
                shards.push(n.shard());
            }
        }
        self.c.membership.rehome(to, shards);
    }

    // -- The whole --------------------------------------------------------------------------------

    /// Objects that are there from the start.
    fn furnish(&mut self) {
        let mut t = Transaction::new();
        let mut all = Vec::new();
        for n in counters().into_iter().chain(accounts()) {
            let value = self.value(if accounts().contains(&n) { START } else { 0 });
            t = t.create(n, value.payload(n, self.plan.payload));
            all.push((n, value.tag));
        }
        // Nothing goes wrong yet.
        let slow = std::mem::take(&mut self.c.net.borrow_mut().wire.slow_one_in);
        if !self.c.run_until_quiet(PATIENCE) {
            return self.found(Err(("it_comes_to_rest", self.c.describe())));
        }
        let begin = self.c.next_order();
        let answer = self.c.ask(0, 0, Request::Transact(t));
        let reply = answer.and_then(|id| self.c.run_for(0, id, PATIENCE));
        self.c.net.borrow_mut().wire.slow_one_in = slow;
        if reply != Some(Ok(Reply::Done)) {
            let what = format!("{reply:?} to the first write");
            return self.found(Err(("it_comes_to_rest", what)));
        }
        let end = self.c.next_order();
        for (name, tag) in all {
            self.record(name, Act::Swap(0, tag), begin, Some(end));
        }
    }

    /// Lets all work end, then checks the whole.
    fn settle(&mut self) {
        self.stopping = true;
        self.c.net.borrow_mut().wire.slow_one_in = 0;
        let slots: Vec<u8> = (0..self.plan.nodes).collect();
        for a in &slots {
            for b in slots.iter().filter(|b| *b > a) {
                if self.c.net.borrow().is_cut(*a, *b) {
                    self.c.cut(*a, *b, false);
                }
            }
        }
        for step in 0..PATIENCE {
            if self.failed() {
                return;
            }
            self.step();
            let busy = self.clients.iter().any(|c| c.work.is_some() && !c.waits);
            if busy || step % 16 != 0 {
                continue;
            }
            for i in 0..self.clients.len() {
                let client = &mut self.clients[i];
                client.work = None;
                if let (true, Some(asked)) = (client.waits, client.asked.take()) {
                    client.waits = false;
                    if let Some(at) = self.c.at(self.clients[i].node) {
                        self.c.feed(at, Event::Cancel { id: asked.id });
                    }
                }
            }
            if self.c.quiet() {
                return self.last_words();
            }
        }
        let busy: Vec<_> = self.clients.iter().filter(|c| c.work.is_some()).collect();
        let what = format!("{}{busy:?}", self.c.describe());
        self.found(Err(("it_comes_to_rest", what)));
    }

    /// A read; again if the lease happened to be over because of a slow queue pair.
    fn read_at_last(&mut self, node: u8, name: Name) -> Option<Result<Reply, CacheError>> {
        let mut reply = None;
        for _ in 0..20 {
            let id = self.c.ask(node, 1, Request::Get { name })?;
            reply = self.c.run_for(node, id, PATIENCE);
            if reply != Some(Err(CacheError::NoQuorum)) {
                return reply;
            }
            let until = self.c.now() + 100_000;
            while self.c.now() < until {
                self.c.step();
            }
        }
        reply
    }

    /// Everyone reads everything, and all of it must fit what was said before.
    fn last_words(&mut self) {
        let members: Vec<u8> = self.c.view().slots().iter().collect();
        for node in members {
            let mut sum = Vec::new();
            for name in objects() {
                let floor = self.ledger.floor(name);
                let begin = self.c.next_order();
                let reply = self.read_at_last(node, name);
                let end = self.c.next_order();
                let Some(Ok(Reply::Object(version, data))) = reply else {
                    let what = format!("{name} at node {node}: {reply:?}");
                    return self.found(Err(("it_comes_to_rest", what)));
                };
                match self.ledger.observe("last get", name, version, &data, floor) {
                    Ok(value) => {
                        self.record(name, Act::Read(value.tag), begin, Some(end));
                        if accounts().contains(&name) {
                            sum.push(Seen { name, version, value });
                        }
                    }
                    Err(v) => return self.found(Err(v)),
                }
            }
            self.found(transactions_are_atomic(&sum));
        }
        if !self.c.run_until_quiet(PATIENCE) {
            return self.found(Err(("it_comes_to_rest", self.c.describe())));
        }
        let found = replicas_agree(&self.c);
        self.found(found);
        let found = self.ledger.answers_are_linearizable();
        self.found(found);
    }

    /// Runs the plan. The error names the checker and says what it saw.
    pub fn finish_plan(mut self) -> Result<Report, String> {
        self.furnish();
        self.run(self.plan.stretch);
        for fault in self.plan.faults.clone() {
            if self.failed() {
                break;
            }
            self.strike(fault);
            let stretch = self.plan.stretch;
            let length = self.random.time(stretch / 4, 2 * stretch);
            self.run(length);
        }
        if !self.failed() {
            self.settle();
        }
        self.failed();
        self.c.totals.rehomes = self.c.membership.rehomed;
        self.c.totals.verbs = self.c.net.borrow().verbs;
        match self.violation {
            Some((name, what)) => Err(format!("{name}: {what}")),
            None => Ok(Report { totals: self.c.totals, recorded: self.ledger.len() }),
        }
    }
}

/// Runs a seed's plan.
pub fn run(seed: u64, plan: Plan, trace: bool) -> Result<Report, String> {
    Run::new(seed, plan, trace).finish_plan()
}
