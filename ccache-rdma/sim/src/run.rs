//! One run: a cluster, clients at work on it, and what goes wrong meanwhile.

use crate::check::{Found, Ledger, replicas_agree, transactions_are_atomic};
use crate::cluster::{Answer, Cluster, Totals};
use crate::history::{Act, Record};
use crate::plan::{Fault, Plan};
use crate::random::Random;
use crate::work::{START, Seen, Value, Work, accounts, counters, flags, objects, twins};
use clustix_ccache::arena::published::lookup;
use clustix_ccache::cache::{CacheError, Transaction, Version};
use clustix_ccache::engine::{Event, RequestId};
use clustix_ccache::layout::{self, RegionId};
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

    // -- Clients ----------------------------------------------------------------------------------

    fn ask(&mut self, i: usize, request: Request, floor: u64, writes: Vec<(Seen, Act)>) {
        let (node, client) = (self.clients[i].node, self.clients[i].id);
        let begin = self.c.next_order();
        if let Some(id) = self.c.ask(node, client, request) {
            self.clients[i].asked = Some(Asked { id, begin, floor, writes });
        }
    }

    fn get(&mut self, i: usize, name: Name) {
        let floor = self.ledger.floor(name);
        self.ask(i, Request::Get { name }, floor, Vec::new());
    }

    /// Asks for a write of `number` over what was read.
    fn put(&mut self, i: usize, changes: &[(Seen, Option<i64>)]) {
        let mut t = Transaction::new();
        let mut writes = Vec::new();
        for (seen, number) in changes {
            let Seen { name, version, value } = *seen;
            let act = match number {
                Some(number) => {
                    let new = self.value(*number);
                    let data = new.payload(name, self.plan.payload);
                    t = if version.exists() {
                        t.put(name, version, data)
                    } else {
                        t.create(name, data)
                    };
                    Act::Swap(value.tag, new.tag)
                }
                None => {
                    t = t.remove(name, version);
                    Act::Swap(value.tag, 0)
                }
            };
            writes.push((*seen, act));
        }
        self.ask(i, Request::Transact(t), 0, writes);
    }

    /// What a client does next, after what it has read.
    fn go_on(&mut self, i: usize) {
        let Some(work) = self.clients[i].work else { return };
        let read = self.clients[i].read.clone();
        match (work, read.as_slice()) {
            (Work::Grab(name), []) => {
                let floor = self.ledger.floor(name);
                self.ask(i, Request::Grab { name }, floor, Vec::new());
            }
            (
                Work::Increment(name) | Work::Flip(name) | Work::Wait(name) | Work::Look(name),
                [],
            ) => {
                self.get(i, name);
            }
            (Work::Increment(_) | Work::Grab(_), [seen, ..]) => {
                self.put(i, &[(*seen, Some(seen.value.number + 1))]);
            }
            (Work::Transfer(a, ..), []) => self.get(i, a),
            (Work::Transfer(_, b, _), [_]) => self.get(i, b),
            (Work::Transfer(_, _, amount), [a, b, ..]) => {
                let (from, to) = (a.value.number - amount, b.value.number + amount);
                self.put(i, &[(*a, Some(from)), (*b, Some(to))]);
            }
            (Work::Sum, read) => match accounts().get(read.len()) {
                Some(n) => self.get(i, *n),
                None => {
                    let t = read.iter().fold(Transaction::new(), |t, s| t.read(s.name, s.version));
                    self.ask(i, Request::Transact(t), 0, Vec::new());
                }
            },
            (Work::Flip(_), [seen, ..]) => {
                let exists = seen.version.exists();
                let number = (!exists).then(|| self.random.below(1000) as i64);
                self.put(i, &[(*seen, number)]);
            }
            (Work::Wait(name), [seen, ..]) => {
                let on = vec![(name, seen.version)];
                self.ask(i, Request::Wait { on, word: 0 }, 0, Vec::new());
            }
            (Work::Set(name), _) => {
                let new = self.value(0);
                let data = new.payload(name, self.plan.payload);
                let t = Transaction::new().set(name, data);
                let version = Version::ABSENT;
                let seen = Seen { name, version, value: Value::default() };
                self.ask(i, Request::Transact(t), 0, vec![(seen, Act::Set(new.tag))]);
            }
            (Work::Look(_), [..]) => self.finish(i),
        }
    }

    fn finish(&mut self, i: usize) {
        let think = if self.random.chance(4) { 20_000 } else { 1_500 };
        let at = self.c.now() + self.random.time(0, think);
        let client = &mut self.clients[i];
        client.work = None;
        client.read.clear();
        client.waits = false;
        client.at = at;
    }

    fn record(&mut self, name: Name, act: Act, begin: u64, end: Option<u64>) {
        self.ledger.record(name, Record { act, begin, end });
    }

    fn answered(&mut self, i: usize, asked: Asked, answer: Answer) {
        let Some(work) = self.clients[i].work else { return };
        let end = Some(answer.order);
        match answer.reply {
            Ok(Reply::Object(version, data)) => {
                let name = match work {
                    Work::Transfer(a, b, _) => [a, b][self.clients[i].read.len().min(1)],
                    Work::Sum => accounts()[self.clients[i].read.len().min(2)],
                    Work::Increment(n)
                    | Work::Flip(n)
                    | Work::Grab(n)
                    | Work::Wait(n)
                    | Work::Look(n)
                    | Work::Set(n) => n,
                };
                match self.ledger.observe("get", name, version, &data, asked.floor) {
                    Ok(value) => {
                        self.record(name, Act::Read(value.tag), asked.begin, end);
                        let stays = !flags().contains(&name) && !twins().contains(&name);
                        if stays && !version.exists() {
                            return self.finish(i);
                        }
                        self.clients[i].read.push(Seen { name, version, value });
                        self.go_on(i);
                    }
                    Err(v) => self.found(Err(v)),
                }
                return;
            }
            Ok(Reply::Done) => {
                for (seen, act) in &asked.writes {
                    self.record(seen.name, *act, asked.begin, end);
                    if let Act::Swap(_, tag) = act {
                        let found = self.ledger.acknowledged(seen, *tag);
                        self.found(found);
                    }
                }
                if let Work::Sum = work {
                    let read = self.clients[i].read.clone();
                    self.found(transactions_are_atomic(&read));
                }
                // Whoever was told may tell all others: what do they see now?
                for (seen, _) in &asked.writes {
                    for at in 0..self.c.nodes.len() {
                        self.hit(at, seen.name);
                    }
                }
            }
            Ok(Reply::Waited(None)) => {
                self.clients[i].waits = true;
                self.clients[i].asked = Some(asked);
                return;
            }
            Err(CacheError::Unknown) => {
                for (seen, act) in &asked.writes {
                    self.record(seen.name, *act, asked.begin, None);
                }
            }
            Ok(_) | Err(CacheError::Conflict | CacheError::NoQuorum | CacheError::Busy) => {
                if let Work::Grab(name) = work {
                    // It may be held still.
                    let (node, client) = (self.clients[i].node, self.clients[i].id);
                    self.c.ask(node, client, Request::Release { name });
                }
            }
            Err(e) => self.found(Err(("answers_make_sense", format!("{work:?}: {e}")))),
        }
        self.finish(i);
    }

    fn poll_clients(&mut self) {
        if self.c.replies.is_empty() && self.c.changed.is_empty() {
            return;
        }
        for (node, id) in std::mem::take(&mut self.c.changed) {
            let mine = |c: &Client| {
                c.node == node && c.waits && c.asked.as_ref().is_some_and(|a| a.id == id)
            };
            if let Some(i) = self.clients.iter().position(mine) {
                self.clients[i].asked = None;
                self.finish(i);
            }
        }
        // An answer may lead to a question that is answered at once.
        let mut more = true;
        while std::mem::take(&mut more) && !self.c.replies.is_empty() {
            for i in 0..self.clients.len() {
                let Some(asked) = &self.clients[i].asked else { continue };
                let key = (self.clients[i].node, asked.id);
                if let Some(answer) = self.c.replies.remove(&key)
                    && let Some(asked) = self.clients[i].asked.take()
                {
                    more = true;
                    self.answered(i, asked, answer);
                }
            }
        }
        // What is left is for nobody.
        self.c.replies.clear();
    }

    /// What a domain of a node would hit at this moment, be its ccache stopped or cut off.
    fn hit(&mut self, at: usize, name: Name) {
        let node = &self.c.nodes[at];
        let Some(set) = layout::set(name.set()).filter(|_| node.alive) else { return };
        let mut out = Vec::new();
        let (class, own) = (node.arena.region(set.region()), node.arena.region(RegionId::Control));
        let local = node.clock.local(self.c.now());
        let Some(version) = lookup(name, class, own, || local, &mut out) else { return };
        let how = format!("hit on node {}", node.slot);
        self.c.totals.hits += 1;
        let begin = self.c.next_order();
        match self.ledger.observe(&how, name, version, &out, self.ledger.floor(name)) {
            Ok(value) => self.record(name, Act::Read(value.tag), begin, Some(begin)),
            Err(v) => self.found(Err(v)),
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

    // -- What goes wrong --------------------------------------------------------------------------

    /// Whether the cluster could go on without a node: a majority of the last view that can talk
    /// is left, and a complete copy of everything.
    fn can_lose(&self, slot: u8) -> bool {
        let view = self.c.view();
        let net = self.c.net.borrow();
        let left: Vec<_> = self
            .c
            .nodes
            .iter()
            .filter(|n| {
                n.alive
                    && n.slot != slot
                    && n.paused_until <= net.now
                    && view.member(n.slot).is_some_and(|m| m.incarnation == n.incarnation)
            })
            .collect();
        let among = |s: u8| left.iter().any(|n| n.slot == s);
        let at_peace = left.iter().all(|n| {
            left.iter().all(|m| !net.is_cut(n.slot, m.slot))
                && !n.suspected.keys().any(|s| among(*s))
        });
        let copies =
            view.shards.iter().all(|r| r.primary.is_none() || r.complete().iter().any(among));
        let evicted = self.c.at(slot).is_none_or(|at| {
            let node = (slot, self.c.nodes[at].incarnation);
            self.c.membership.may_evict(node, true, &self.c.nodes)
        });
        at_peace && self.c.membership.is_majority(left.len()) && copies && evicted
    }

    fn victim(&mut self) -> Option<u8> {
        let live: Vec<u8> = self.c.nodes.iter().filter(|n| n.alive).map(|n| n.slot).collect();
        let slot = live[self.random.below(live.len())];
        (live.len() > 1 && self.can_lose(slot)).then_some(slot)
    }

    /// Kills a node when a write of its is half done, if it can be had.
    fn crash(&mut self, slot: u8) {
        let mut after = 1 + self.random.below(12);
        for _ in 0..3_000 {
            if self.c.at(slot).is_none() || self.failed() {
                return;
            }
            let at = self.c.at(slot).map(|at| self.c.nodes[at].port());
            if at.is_some_and(|port| self.c.net.borrow().writing(port)) {
                after -= 1;
            }
            if after == 0 {
                break;
            }
            self.step();
        }
        if self.can_lose(slot) {
            self.poll_clients();
            self.c.kill(slot);
            self.lose_clients();
        }
    }

    fn strike(&mut self, fault: Fault) {
        if fault == Fault::Return {
            let gone = |s: &u8| self.c.at(*s).is_none() && self.c.all_closed(*s);
            if let Some(slot) = (0..self.plan.nodes).find(gone) {
                let incarnation = self.c.rejoin(slot);
                self.add_clients(slot, incarnation);
            }
            return;
        }
        let Some(victim) = self.victim() else { return };
        let lease = crate::node::timing().lease_ns;
        let now = self.c.now();
        match fault {
            Fault::Crash => self.crash(victim),
            Fault::CrashTwice => {
                self.crash(victim);
                let meanwhile = self.random.time(0, 2 * lease);
                self.run(meanwhile);
                if let Some(next) = self.victim() {
                    self.crash(next);
                }
            }
            Fault::Suspicion => {
                let others: Vec<u8> = self.c.view().slots().without(victim).iter().collect();
                if !others.is_empty() {
                    let by = others[self.random.below(others.len())];
                    self.c.suspect(by, victim);
                }
                if self.random.chance(3) {
                    let until = now + self.random.time(lease / 2, 6 * lease);
                    self.c.pause(victim, until);
                }
            }
            Fault::Isolation | Fault::Link => {
                let mut others: Vec<u8> = (0..self.plan.nodes).filter(|s| *s != victim).collect();
                if fault == Fault::Link {
                    let one = others[self.random.below(others.len())];
                    others = vec![one];
                }
                for other in &others {
                    self.c.cut(victim, *other, true);
                }
                let most = if self.random.chance(2) { lease / 3 } else { 8 * lease };
                let length = self.random.time(5_000, most);
                self.run(length);
                for other in &others {
                    self.c.cut(victim, *other, false);
                }
            }
            Fault::Pause => {
                let until = now + self.random.time(lease / 2, 8 * lease);
                self.c.pause(victim, until);
                self.run_until(until);
            }
            Fault::Split => {
                let others: Vec<u8> = self.c.view().slots().without(victim).iter().collect();
                if others.is_empty() {
                    return;
                }
                let by = others[self.random.below(others.len())];
                self.c.suspect(by, victim);
                let meanwhile = self.random.time(5_000, 100_000);
                self.run(meanwhile);
                let rest: Vec<u8> = (0..self.plan.nodes).filter(|s| *s != by).collect();
                for other in &rest {
                    self.c.cut(by, *other, true);
                }
                let length = self.random.time(lease, 10 * lease);
                self.run(length);
                for other in &rest {
                    self.c.cut(by, *other, false);
                }
            }
            Fault::Return => {}
        }
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
