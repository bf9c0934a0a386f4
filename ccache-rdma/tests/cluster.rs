//! Random work on whole clusters under random schedules, with nodes killed, falsely evicted and
//! started again. Checked: no acknowledged write is lost, nothing is applied twice, no read or hit
//! goes back in time, transactions are atomic, survivors' replicas agree.
//!
//! `SEED=n` runs one seed of each test, `TRACE=1` prints every step of it, `SEEDS=n` runs n.

mod harness;

use clustix_ccache::arena::published::lookup;
use clustix_ccache::cache::{CacheError, Transaction, Version};
use clustix_ccache::engine::{ClientId, Event, RequestId};
use clustix_ccache::half::Header;
use clustix_ccache::layout::{self, RegionId, header};
use clustix_ccache::name::{Name, SHARDS, Shard};
use clustix_ccache::request::{Reply, Request};
use clustix_ccache::set::{DIRBLOCK, INODE, PAGE, RECORD};
use clustix_ccache::word::Word;
use harness::{Cluster, Random};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// Clients per node.
const CLIENTS: u64 = 3;
const START: i64 = 1000;

fn counters() -> Vec<Name> {
    vec![
        Name::new(RECORD, Shard(0), 1),
        Name::new(INODE, Shard(1), 2),
        Name::new(DIRBLOCK, Shard(2), 3),
        Name::new(PAGE, Shard(4), 4),
    ]
}

fn accounts() -> Vec<Name> {
    vec![
        Name::new(INODE, Shard(3), 10),
        Name::new(RECORD, Shard(1), 11),
        Name::new(DIRBLOCK, Shard(5), 12),
    ]
}

fn flags() -> Vec<Name> {
    vec![
        Name::new(INODE, Shard(1), 20),
        Name::new(RECORD, Shard(2), 21),
        Name::new(INODE, Shard(1), 22),
    ]
}

/// A payload that says a number and is long enough to be torn.
fn payload(number: i64, name: Name) -> Vec<u8> {
    let most = layout::set(name.set()).unwrap().set.capacity as usize;
    let len = (40 + (number as usize * 97) % 3000).min(most);
    let mut data = number.to_le_bytes().to_vec();
    data.resize(len, number as u8);
    data
}

fn number(name: Name, data: &[u8]) -> i64 {
    let n = i64::from_le_bytes(data[..8].try_into().unwrap());
    assert_eq!(data, payload(n, name), "torn payload of {name}");
    n
}

#[derive(Clone, Debug)]
enum Work {
    Increment(Name),
    Transfer(Name, Name, i64),
    Sum,
    Flip(Name),
    Grab(Name),
    Wait(Name),
}

#[derive(Clone, Debug)]
struct Client {
    node: u8,
    incarnation: u64,
    id: u64,
    work: Option<Work>,
    /// What has been read for it so far.
    read: Vec<(Name, Version, Vec<u8>)>,
    /// The request under way, the versions that a read must reach, whether it writes.
    asked: Option<(RequestId, u64, bool)>,
    queued_wait: Option<RequestId>,
}

#[derive(Default, Debug)]
struct Tally {
    acked: i64,
    unknown: i64,
}

struct Run {
    c: Cluster,
    clients: Vec<Client>,
    /// The highest version of each object that any completed operation has shown.
    floor: BTreeMap<Name, u64>,
    /// The payload number of each version seen.
    seen: BTreeMap<(Name, u64), i64>,
    increments: BTreeMap<Name, Tally>,
    created: BTreeMap<Name, Tally>,
    removed: BTreeMap<Name, Tally>,
    stopping: bool,
    done: u64,
    random: Random,
}

impl Run {
    fn new(seed: u64, nodes: u8) -> Run {
        println!("seed {seed}, {nodes} nodes");
        let mut c = Cluster::new(seed, nodes);
        assert!(c.run_until_quiet(100_000), "{}", c.describe());
        let mut t = Transaction::new();
        for n in counters() {
            t = t.create(n, payload(0, n));
        }
        for n in accounts() {
            t = t.create(n, payload(START, n));
        }
        loop {
            let id = c.ask(0, 0, Request::Transact(t.clone())).unwrap();
            match c.run_for(0, id, 200_000) {
                Ok(Reply::Done) => break,
                // Its first lease has run out before the second came.
                other => assert_eq!(other, Err(CacheError::NoQuorum)),
            }
            c.step();
        }
        let mut run = Run {
            c,
            clients: Vec::new(),
            floor: BTreeMap::new(),
            seen: BTreeMap::new(),
            increments: BTreeMap::new(),
            created: BTreeMap::new(),
            removed: BTreeMap::new(),
            stopping: false,
            done: 0,
            random: Random(seed ^ 0xabcd),
        };
        for node in 0..nodes {
            run.add_clients(node, 1);
        }
        run
    }

    fn add_clients(&mut self, node: u8, incarnation: u64) {
        for i in 0..CLIENTS {
            self.clients.push(Client {
                node,
                incarnation,
                id: 100 + i,
                work: None,
                read: Vec::new(),
                asked: None,
                queued_wait: None,
            });
        }
    }

    /// A completed operation has shown this.
    fn observe(&mut self, name: Name, version: Version, data: &[u8], floor: u64, how: &str) {
        if !version.exists() {
            let stays = !flags().contains(&name);
            assert!(!stays, "{how}: {name} is gone");
            return;
        }
        assert!(version.0 >= floor, "{how}: {name} went back to {} from {floor}", version.0);
        let n = number(name, data);
        let old = self.seen.entry((name, version.0)).or_insert(n);
        assert_eq!(*old, n, "{how}: two payloads of version {} of {name}", version.0);
        let floor = self.floor.entry(name).or_default();
        *floor = (*floor).max(version.0);
    }

    fn known(&self, name: Name) -> u64 {
        self.floor.get(&name).copied().unwrap_or(0)
    }

    fn ask(&mut self, i: usize, request: Request, floor: u64, writes: bool) {
        let (node, id) = (self.clients[i].node, self.clients[i].id);
        let request = self.c.ask(node, id, request).unwrap();
        self.clients[i].asked = Some((request, floor, writes));
    }

    fn get(&mut self, i: usize, name: Name) {
        let floor = self.known(name);
        self.ask(i, Request::Get { name }, floor, false);
    }

    /// What a client does next, after what it has read.
    fn go_on(&mut self, i: usize) {
        let Some(work) = self.clients[i].work.clone() else { return };
        let read = self.clients[i].read.clone();
        let write = |t| Request::Transact(t);
        match work {
            Work::Increment(name) | Work::Grab(name) => match read.first() {
                None if matches!(work, Work::Grab(_)) => {
                    let floor = self.known(name);
                    self.ask(i, Request::Grab { name }, floor, false);
                }
                None => self.get(i, name),
                Some((_, v, d)) => {
                    let t = Transaction::new().put(name, *v, payload(number(name, d) + 1, name));
                    self.ask(i, write(t), 0, true);
                }
            },
            Work::Transfer(a, b, amount) => {
                match read.as_slice() {
                    [] => self.get(i, a),
                    [_] => self.get(i, b),
                    [(_, va, da), (_, vb, db), ..] => {
                        let t = Transaction::new()
                            .put(a, *va, payload(number(a, da) - amount, a))
                            .put(b, *vb, payload(number(b, db) + amount, b));
                        self.ask(i, write(t), 0, true);
                    }
                }
            }
            Work::Sum => match accounts().get(read.len()) {
                Some(n) => self.get(i, *n),
                None => {
                    let mut t = Transaction::new();
                    for (n, v, _) in &read {
                        t = t.read(*n, *v);
                    }
                    self.ask(i, write(t), 0, false);
                }
            },
            Work::Flip(name) => match read.first() {
                None => self.get(i, name),
                Some((_, v, _)) if v.exists() => {
                    self.ask(i, write(Transaction::new().remove(name, *v)), 0, true);
                }
                Some(_) => {
                    let n = self.random.below(1000) as i64;
                    let t = Transaction::new().create(name, payload(n, name));
                    self.ask(i, write(t), 0, true);
                }
            },
            Work::Wait(name) => match read.first() {
                None => self.get(i, name),
                Some((_, v, _)) => {
                    let on = vec![(name, *v)];
                    self.ask(i, Request::Wait { on, word: 0 }, 0, false);
                }
            },
        }
    }

    fn tally(&mut self, work: &Work, read: &[(Name, Version, Vec<u8>)]) -> Option<&mut Tally> {
        Some(match work {
            Work::Increment(n) | Work::Grab(n) => self.increments.entry(*n).or_default(),
            Work::Flip(n) if read.first().is_some_and(|r| r.1.exists()) => {
                self.removed.entry(*n).or_default()
            }
            Work::Flip(n) => self.created.entry(*n).or_default(),
            _ => return None,
        })
    }

    fn finish(&mut self, i: usize) {
        self.clients[i].work = None;
        self.clients[i].read.clear();
        self.done += 1;
    }

    fn answered(&mut self, i: usize, reply: Result<Reply, CacheError>, floor: u64, writes: bool) {
        let Some(work) = self.clients[i].work.clone() else { return };
        let read = self.clients[i].read.clone();
        match reply {
            Ok(Reply::Object(v, d)) => {
                let name = match work {
                    Work::Increment(n) | Work::Flip(n) | Work::Grab(n) | Work::Wait(n) => n,
                    Work::Transfer(a, b, _) => [a, b][read.len()],
                    Work::Sum => accounts()[read.len()],
                };
                self.observe(name, v, &d, floor, "get");
                self.clients[i].read.push((name, v, d));
                self.go_on(i);
                return;
            }
            Ok(Reply::Done) => {
                if writes {
                    for (name, v, _) in &read {
                        let floor = self.floor.entry(*name).or_default();
                        // What was replaced is past; a removed one's next version is higher too.
                        *floor = (*floor).max(v.0 + 1);
                    }
                    if let Some(t) = self.tally(&work, &read) {
                        t.acked += 1;
                    }
                } else if matches!(work, Work::Sum) {
                    let sum: i64 = read.iter().map(|(n, _, d)| number(*n, d)).sum();
                    assert_eq!(sum, START * accounts().len() as i64, "a transfer seen in part");
                }
            }
            Ok(Reply::Waited(None)) => {
                self.clients[i].queued_wait = self.clients[i].asked.map(|a| a.0);
                return;
            }
            Err(CacheError::Unknown) => {
                if let (true, Some(t)) = (writes, self.tally(&work, &read)) {
                    t.unknown += 1;
                }
            }
            Ok(_) | Err(CacheError::Conflict | CacheError::NoQuorum | CacheError::Busy) => {}
            Err(e) => panic!("{work:?}: {e}"),
        }
        self.finish(i);
    }

    fn poll_clients(&mut self) {
        for (node, id) in std::mem::take(&mut self.c.changed) {
            let waiter =
                self.clients.iter().position(|c| c.node == node && c.queued_wait == Some(id));
            if let Some(i) = waiter {
                self.clients[i].queued_wait = None;
                self.clients[i].asked = None;
                self.finish(i);
            }
        }
        for i in 0..self.clients.len() {
            let Some((id, floor, writes)) = self.clients[i].asked else { continue };
            let node = self.clients[i].node;
            if let Some(reply) = self.c.replies.remove(&(node, id)) {
                if reply != Ok(Reply::Waited(None)) {
                    self.clients[i].asked = None;
                }
                self.answered(i, reply, floor, writes);
            }
        }
    }

    fn start_work(&mut self) {
        let i = self.random.below(self.clients.len());
        let client = &self.clients[i];
        let live = self
            .c
            .at(client.node)
            .is_some_and(|at| self.c.nodes[at].incarnation == client.incarnation);
        if client.work.is_some() || self.stopping || !live {
            return;
        }
        let r = &mut self.random;
        let counter = counters()[r.below(4)];
        let work = match r.below(14) {
            0..=3 => Work::Increment(counter),
            4..=7 => {
                let a = r.below(3);
                Work::Transfer(accounts()[a], accounts()[(a + 1) % 3], r.below(50) as i64 - 25)
            }
            8 | 9 => Work::Sum,
            10 | 11 => Work::Flip(flags()[r.below(3)]),
            12 => Work::Grab(counter),
            // One client per node at most: nobody else wakes the last that works.
            _ if client.id == 100 => Work::Wait(counters()[0]),
            _ => Work::Sum,
        };
        self.clients[i].work = Some(work);
        self.go_on(i);
    }

    /// What a domain of a node would hit at this moment.
    fn hit(&mut self) {
        let at = self.random.below(self.c.nodes.len());
        let all: Vec<Name> = counters().into_iter().chain(accounts()).chain(flags()).collect();
        let name = all[self.random.below(all.len())];
        let node = &self.c.nodes[at];
        if !node.alive {
            return;
        }
        let set = layout::set(name.set()).unwrap();
        let mut out = Vec::new();
        let (class, own) = (node.arena.region(set.region()), node.arena.region(RegionId::Control));
        let now = self.c.now;
        if let Some(v) = lookup(name, class, own, || now, &mut out) {
            let floor = self.known(name);
            self.observe(name, v, &out, floor, "hit");
        }
    }

    fn step(&mut self) {
        if self.random.chance(20) {
            self.start_work();
        }
        if self.random.chance(10) {
            self.hit();
        }
        self.c.step();
        self.poll_clients();
    }

    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step();
        }
    }

    /// The clients of a node that is no more.
    fn lose_clients(&mut self, node: u8) {
        for i in 0..self.clients.len() {
            if self.clients[i].node != node {
                continue;
            }
            if let (Some((id, _, writes)), Some(work)) =
                (self.clients[i].asked, self.clients[i].work.clone())
            {
                let answered = self.c.replies.contains_key(&(node, id));
                let read = self.clients[i].read.clone();
                if let (true, false, Some(t)) = (writes, answered, self.tally(&work, &read)) {
                    t.unknown += 1;
                }
            }
        }
        self.poll_clients();
        self.clients.retain(|c| c.node != node);
    }

    /// Kills a node, if it can be when a write of its is half done: so many verbs after it began.
    fn kill(&mut self, node: u8) {
        let mut after = 1 + self.random.below(12);
        for _ in 0..6_000 {
            if self.c.in_the_middle_of_a_write(node) {
                after -= 1;
            }
            if after == 0 {
                break;
            }
            self.step();
        }
        self.poll_clients();
        self.lose_clients(node);
        self.c.kill(node);
    }

    /// Lets all work end, then checks the whole.
    fn check(&mut self) {
        self.stopping = true;
        for _ in 0..3_000_000 {
            self.step();
            let waits: Vec<_> =
                self.clients.iter().filter_map(|c| Some((c.node, c.queued_wait?))).collect();
            let busy = self.clients.iter().any(|c| c.work.is_some() && c.queued_wait.is_none());
            if !busy {
                for (node, id) in waits {
                    if let Some(at) = self.c.at(node) {
                        self.c.feed(at, Event::Cancel { id });
                    }
                    for c in &mut self.clients {
                        if c.queued_wait == Some(id) && c.node == node {
                            c.queued_wait = None;
                            c.asked = None;
                            c.work = None;
                        }
                    }
                }
                if self.c.quiet() {
                    break;
                }
            }
        }
        let stuck: Vec<_> = self.clients.iter().filter(|c| c.work.is_some()).collect();
        assert!(self.c.quiet() && stuck.is_empty(), "not quiet\n{}{stuck:#?}", self.c.describe());
        let members: Vec<u8> = self.c.view().members.iter().map(|m| m.slot).collect();
        for node in &members {
            let mut read = |name| {
                let id = self.c.ask(*node, 1, Request::Get { name }).unwrap();
                match self.c.run_for(*node, id, 200_000) {
                    Ok(Reply::Object(v, d)) => (v, d),
                    other => panic!("{name}: {other:?}"),
                }
            };
            for name in counters() {
                let (v, d) = read(name);
                let n = number(name, &d);
                let t = self.increments.entry(name).or_default();
                let range = t.acked..=t.acked + t.unknown;
                assert!(range.contains(&n), "{name}: {n} of {t:?} at version {v:?}");
            }
            let sum: i64 = accounts().into_iter().map(|a| number(a, &read(a).1)).sum();
            assert_eq!(sum, START * accounts().len() as i64);
            for name in flags() {
                let exists = i64::from(read(name).0.exists());
                let (c, r) =
                    (self.created.entry(name).or_default(), self.removed.entry(name).or_default());
                let least = c.acked - r.acked - r.unknown;
                let most = c.acked + c.unknown - r.acked;
                assert!((least..=most).contains(&exists), "{name}: {exists}, {c:?}, {r:?}");
            }
        }
        assert!(self.c.run_until_quiet(100_000));
        self.check_replicas();
    }

    /// One checker per invariant: at rest, every slot's word is idle or kept by a live node, and every complete replica
    /// has the version that the primary's word says, whole and alike.
    fn check_replicas(&self) {
        let mut slots = 0;
        for set in layout::sets() {
            for shard in (0..SHARDS).map(Shard) {
                let r = self.c.view().replicas(shard);
                let Some(primary) = r.primary.and_then(|p| self.c.at(p)) else { continue };
                let arena = &self.c.nodes[primary].arena;
                let mark = arena.word(set.region(), set.mark(shard)).load(Ordering::SeqCst);
                for node in r.complete().iter() {
                    let arena = &self.c.nodes[self.c.at(node).unwrap()].arena;
                    let there = arena.word(set.region(), set.mark(shard)).load(Ordering::SeqCst);
                    let what = (set.set.name, shard, node);
                    assert!(there >= mark, "{what:?}: takes over {there} slots of {mark}");
                }
                for slot in 0..mark as u32 {
                    let at = set.header(shard, slot);
                    let word = Word(arena.word(set.region(), at).load(Ordering::SeqCst));
                    let kept = word.holder().is_none_or(|h| self.c.at(h).is_some());
                    assert!(!word.writing() && kept, "{} {shard:?} {slot}: {word:?}", set.set.name);
                    if word.version_low() == 0 {
                        continue;
                    }
                    slots += 1;
                    let mut all = Vec::new();
                    for node in r.complete().iter() {
                        let arena = &self.c.nodes[self.c.at(node).unwrap()].arena;
                        let mut bytes = [0; header::LEN as usize];
                        assert!(arena.region(set.region()).read(at as usize, &mut bytes));
                        let head = Header::decode(&bytes).highest().expect("a whole half");
                        assert!(word.is_version(head.version), "{word:?} {head:?} on {node}");
                        let mut data = vec![0; head.len as usize];
                        let place = set.payload(shard, slot, head.version) as usize;
                        assert!(arena.region(set.region()).read(place, &mut data));
                        assert!(head.matches(&data), "{head:?} on {node}");
                        all.push(head);
                    }
                    assert!(all.windows(2).all(|w| w[0] == w[1]), "{all:?}");
                }
            }
        }
        assert!(slots >= 7, "{slots}");
        let acked: i64 = self.increments.values().map(|t| t.acked).sum();
        let unknown: i64 = self.increments.values().map(|t| t.unknown).sum();
        println!("  {} pieces of work, {acked} increments, {unknown} unknown", self.done);
    }
}

fn seeds(default: u64) -> std::ops::Range<u64> {
    let env = |k| std::env::var(k).ok().and_then(|s| s.parse::<u64>().ok());
    match env("SEED") {
        Some(s) => s..s + 1,
        None => 0..env("SEEDS").unwrap_or(default),
    }
}

#[test]
fn work_without_loss() {
    for seed in seeds(100) {
        let mut run = Run::new(seed, 1 + (seed % 4) as u8);
        run.run(40_000);
        run.check();
        println!("{} done", run.done);
        assert!(run.done > 25, "{}", run.done);
    }
}

#[test]
fn a_node_is_killed_and_comes_back() {
    for seed in seeds(150) {
        let nodes = 2 + (seed % 3) as u8;
        let mut run = Run::new(seed, nodes);
        let steps = 5_000 + run.random.below(20_000);
        run.run(steps);
        let victim = run.random.below(usize::from(nodes)) as u8;
        run.kill(victim);
        let steps = run.random.below(2_000);
        run.run(steps);
        run.c.evict(victim);
        // Until every survivor has closed the gates between itself and the dead: from then on its
        // memory may hold anything.
        let mut overwritten = false;
        for _ in 0..30_000 {
            run.step();
            if !overwritten && run.c.all_closed(victim) {
                run.c.overwrite_dead(victim);
                overwritten = true;
            }
        }
        assert!(overwritten, "{}", run.c.describe());
        run.c.rejoin(victim);
        let incarnation = run.c.nodes.last().unwrap().incarnation;
        run.run(15_000);
        run.add_clients(victim, incarnation);
        run.run(25_000);
        run.check();
        let copies = run.c.view().shards.iter().all(|r| r.rebuilding.is_empty());
        assert!(copies && run.c.rebuilt > 0, "not rebuilt");
    }
}

#[test]
fn a_node_is_evicted_while_it_lives() {
    for seed in seeds(16) {
        let mut run = Run::new(seed, 3);
        let steps = 5_000 + run.random.below(10_000);
        run.run(steps);
        let victim = run.random.below(3) as u8;
        for _ in 0..3_000 {
            if run.c.in_the_middle_of_a_write(victim) {
                break;
            }
            run.step();
        }
        run.c.evict(victim);
        if seed % 2 == 1 {
            // Stopped, with what it has posted still on its way; it finds out late.
            let at = run.c.at(victim).unwrap();
            run.c.nodes[at].paused_until = run.c.now + run.random.below(4_000_000) as u64;
        }
        // It goes on as long as it can.
        run.run(30_000);
        run.kill(victim);
        run.run(10_000);
        run.check();
    }
}

#[test]
fn another_dies_during_the_recovery() {
    for seed in seeds(100) {
        let mut run = Run::new(seed, 3);
        let steps = 5_000 + run.random.below(10_000);
        run.run(steps);
        let first = run.random.below(3) as u8;
        run.kill(first);
        run.c.evict(first);
        let steps = run.random.below(12_000);
        run.run(steps);
        let second = (first + 1 + run.random.below(2) as u8) % 3;
        run.kill(second);
        run.c.evict(second);
        run.run(15_000);
        run.check();
    }
}

/// A primary dies while it moves the marks of its shards, the next one too: what the last one has
/// been told is there, it finds (rule 38).
#[test]
fn a_mark_that_stood_on_some_replicas_only() {
    for seed in seeds(150) {
        println!("seed {seed}");
        let mut c = Cluster::new(seed, 3);
        assert!(c.run_until_quiet(100_000));
        let shards: Vec<Shard> =
            (0..SHARDS).map(Shard).filter(|s| c.view().primary(*s) == Some(2)).take(8).collect();
        let create = |c: &mut Cluster, node, id| -> Vec<(Name, RequestId)> {
            let one = |shard: &Shard| {
                let name = Name::new(RECORD, *shard, id);
                let t = Transaction::new().create(name, vec![id as u8; 40]);
                (name, c.ask(node, 1, Request::Transact(t)).unwrap())
            };
            shards.iter().map(one).collect()
        };
        let mut asked = create(&mut c, 0, 1);
        for _ in 0..c.random.below(400) {
            c.step();
        }
        c.kill(2);
        c.evict(2);
        assert!(c.run_until_quiet(200_000), "{}", c.describe());
        asked.extend(create(&mut c, 0, 2));
        assert!(c.run_until_quiet(200_000), "{}", c.describe());
        let acked = |(name, id): &(Name, RequestId)| {
            (c.replies.get(&(0, *id)) == Some(&Ok(Reply::Done))).then_some(*name)
        };
        let acked: Vec<Name> = asked.iter().filter_map(acked).collect();
        assert!(acked.len() >= shards.len(), "{acked:?}");
        c.kill(1);
        c.evict(1);
        assert!(c.run_until_quiet(200_000), "{}", c.describe());
        for name in acked {
            let id = c.ask(0, 1, Request::Get { name }).unwrap();
            let found = c.run_for(0, id, 200_000);
            assert!(matches!(found, Ok(Reply::Object(v, _)) if v.exists()), "{name}: {found:?}");
        }
    }
}

/// A writer dies with its record on some survivors only, and a survivor dies while it applies that
/// record: the last one has all of the transaction or nothing (rule 22).
#[test]
fn a_record_that_one_survivor_had_alone() {
    for seed in seeds(300) {
        println!("seed {seed}");
        let mut c = Cluster::new(seed, 3);
        assert!(c.run_until_quiet(100_000));
        let names = [Name::new(INODE, Shard(3), 10), Name::new(DIRBLOCK, Shard(5), 12)];
        let both = |n: u8| names.iter().fold(Transaction::new(), |t, x| t.set(*x, vec![n; 80]));
        let id = c.ask(0, 1, Request::Transact(both(1))).unwrap();
        assert_eq!(c.run_for(0, id, 200_000), Ok(Reply::Done));
        assert!(c.run_until_quiet(100_000));
        c.ask(0, 1, Request::Transact(both(2))).unwrap();
        let until_written = |c: &mut Cluster, nodes: &[u8], steps: usize| -> u8 {
            for _ in 0..20_000 {
                if let Some(n) = nodes.iter().find(|n| c.in_the_middle_of_a_write(**n)) {
                    for _ in 0..c.random.below(steps) {
                        c.step();
                    }
                    return *n;
                }
                c.step();
            }
            nodes[0]
        };
        until_written(&mut c, &[0], 60);
        c.kill(0);
        c.evict(0);
        let second = until_written(&mut c, &[1, 2], 60);
        c.kill(second);
        c.evict(second);
        assert!(c.run_until_quiet(200_000), "{}", c.describe());
        let last = 3 - second;
        let mut read = |name| {
            let id = c.ask(last, 1, Request::Get { name }).unwrap();
            match c.run_for(last, id, 200_000) {
                Ok(Reply::Object(_, data)) => data[0],
                other => panic!("{name}: {other:?}"),
            }
        };
        assert_eq!(read(names[0]), read(names[1]), "half of a transaction");
    }
}

#[test]
fn clients_that_die_let_go() {
    let mut c = Cluster::new(5, 3);
    assert!(c.run_until_quiet(100_000));
    let name = Name::new(INODE, Shard(1), 1);
    let set = Request::Transact(Transaction::new().set(name, vec![1]));
    let id = c.ask(0, 1, set.clone()).unwrap();
    assert_eq!(c.run_for(0, id, 100_000), Ok(Reply::Done));
    let id = c.ask(0, 7, Request::Grab { name }).unwrap();
    assert!(c.run_for(0, id, 100_000).is_ok());
    let at = c.at(0).unwrap();
    c.feed(at, Event::ClientGone { client: ClientId(7) });
    let id = c.ask(1, 1, set).unwrap();
    assert_eq!(c.run_for(1, id, 100_000), Ok(Reply::Done));
}
