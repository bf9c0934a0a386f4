//! Whole ccaches in one process: a thread each, real rings, real arenas, real links; the test is
//! their membership.

use clustix_ccache::arena::Arena;
use clustix_ccache::cache::{Cache, CacheError, Transaction, Version, Waited};
use clustix_ccache::client::CacheClient;
use clustix_ccache::layout::RegionId;
use clustix_ccache::lease::Timing;
use clustix_ccache::name::{Name, SHARDS, Shard};
use clustix_ccache::request::{Dumped, MemberEvent, Rights};
use clustix_ccache::service::{Config, Parts, Service};
use clustix_ccache::set::{self, Class};
use clustix_ccache::slab::{self, Slab};
use clustix_ccache::view::{Member, View};
use clustix_pd::region::Mapping;
use clustix_pd::{Client, Region, channel, exec};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// Leases long enough that a machine busy with other tests breaks none of them.
const TIMING: Timing =
    Timing { lease_ns: 1_000_000_000, renewal_ns: 100_000_000, drift_ns: 5_000_000 };

struct Node {
    slot: u8,
    incarnation: u64,
    client: CacheClient,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<String>>,
}

struct Cluster {
    dir: PathBuf,
    nodes: BTreeMap<u8, Node>,
    view: View,
    events: mpsc::Receiver<(u8, u64, MemberEvent)>,
    sender: mpsc::Sender<(u8, u64, MemberEvent)>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let slots: Vec<u8> = self.nodes.keys().copied().collect();
        for s in slots {
            self.kill(s);
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Cluster {
    fn new(name: &str, n: u8) -> Cluster {
        let dir = std::env::temp_dir().join(format!("clx-svc-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (sender, events) = mpsc::channel();
        let mut c = Cluster { dir, nodes: BTreeMap::new(), view: View::default(), events, sender };
        let members: Vec<Member> = (0..n).map(|s| c.start(s, 1)).collect();
        c.install(View::first(&members));
        c
    }

    fn start(&mut self, slot: u8, incarnation: u64) -> Member {
        let path = self.dir.join(format!("{slot}.sock"));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let arena = Arena::anonymous().unwrap();
        let slab = Slab::new(Region::anonymous(slab::BYTES).unwrap()).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (give, take) = mpsc::channel();
        let (a, s, flag) = (arena.clone(), slab.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let (ring, server) = channel::pair(channel::WINDOW).unwrap();
            // Membership has a ring of its own: its bells are not the client's.
            let region = Region::anonymous(channel::channel_len(channel::WINDOW)).unwrap();
            let fd = region.as_fd().unwrap();
            let end = || Mapping::new(fd.as_fd(), region.len(), true).unwrap();
            server.adopt_for_test(end(), channel::WINDOW).unwrap();
            give.send((ring, Client::new(end(), channel::WINDOW).unwrap())).unwrap();
            let config =
                Config { timing: TIMING, first_incarnation: incarnation == 1, ..Config::default() };
            let parts = Parts {
                slot,
                incarnation,
                owner: rustix::process::getuid().as_raw(),
                config,
                arena: a,
                slab: Some(s),
                listener: Some(listener.into()),
                server,
            };
            Service::new(parts, Rights(u64::MAX)).run(|| flag.load(Ordering::Relaxed))
        });
        let (ring, member) = take.recv().unwrap();
        let class = |c| Some(arena.region(RegionId::Class(c)).clone());
        let client = CacheClient::from_parts(
            ring,
            slot,
            Some(arena.region(RegionId::Control).clone()),
            Class::ALL.map(class),
            Some(slab),
        );
        let source = CacheClient::from_parts(member, slot, None, Class::ALL.map(|_| None), None);
        let events = self.sender.clone();
        std::thread::spawn(move || {
            while let Ok(e) = exec::block_on(source.next_event()) {
                if events.send((slot, incarnation, e)).is_err() {
                    return;
                }
            }
        });
        self.nodes.insert(slot, Node { slot, incarnation, client, stop, thread: Some(thread) });
        Member { slot, incarnation, path: path.to_str().unwrap().into() }
    }

    fn install(&mut self, view: View) {
        self.view = view;
        for n in self.nodes.values() {
            exec::block_on(n.client.install_view(self.view.clone())).unwrap();
        }
    }

    fn kill(&mut self, slot: u8) {
        let Some(mut n) = self.nodes.remove(&slot) else { return };
        n.stop.store(true, Ordering::Relaxed);
        n.thread.take().unwrap().join().unwrap();
    }

    fn client(&self, slot: u8) -> &CacheClient {
        &self.nodes[&slot].client
    }

    /// Handles events as membership would, until `done`.
    fn govern(&mut self, what: &str, done: impl Fn(&Cluster) -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !done(self) {
            assert!(Instant::now() < until, "no {what}: {:?}", self.view.survival());
            let Ok((from, by, event)) = self.events.recv_timeout(Duration::from_millis(20)) else {
                continue;
            };
            if self.nodes.get(&from).is_none_or(|n| n.incarnation != by) {
                continue;
            }
            match event {
                MemberEvent::Suspect { slot, incarnation } => {
                    let lives = self.nodes.get(&slot).is_some_and(|n| n.incarnation == incarnation);
                    assert!(!lives, "{from} suspects {slot}, which lives");
                    if self.view.member(slot).is_some_and(|m| m.incarnation == incarnation) {
                        self.install(self.view.without(slot));
                    }
                }
                MemberEvent::Rebuilt { slot, shards, .. } => {
                    let shards: Vec<Shard> = shards.into_iter().map(Shard).collect();
                    if let Some(next) = self.view.rebuilt(slot, &shards) {
                        self.install(next);
                    }
                }
                MemberEvent::Trust { .. } | MemberEvent::LeaseLost => {}
            }
        }
    }
}

fn get(c: &CacheClient, name: Name) -> (Version, Vec<u8>) {
    let mut out = Vec::new();
    let v = exec::block_on(c.get(name, &mut out)).unwrap();
    (v, out)
}

fn put(c: &CacheClient, name: Name, data: &[u8]) {
    exec::block_on(c.put(name, data.to_vec())).unwrap();
}

fn page(n: u64) -> Name {
    Name::part(set::PAGE, n, 0)
}

#[test]
fn one_node_serves_everything() {
    let c = Cluster::new("one", 1);
    let a = c.client(0);
    assert_eq!(a.local_shard(Class::Vfs, Some(Shard(77))), Shard(77));
    // Created, read (a miss, then hits), replaced, removed.
    assert_eq!(get(a, page(1)), (Version::ABSENT, vec![]));
    let t = Transaction::new().create(page(1), vec![7; 4096]);
    exec::block_on(a.transact(t.clone())).unwrap();
    assert_eq!(exec::block_on(a.transact(t)), Err(CacheError::Conflict));
    let (v, data) = get(a, page(1));
    assert_eq!(data, vec![7; 4096]);
    let before = a.wakeups();
    assert_eq!(get(a, page(1)), (v, data));
    assert_eq!(a.wakeups(), before, "a hit rings no bell");
    let both = Transaction::new()
        .put(page(1), v, vec![8; 100])
        .create(Name::numbered(set::INODE, 1), vec![1; 64]);
    exec::block_on(a.transact(both)).unwrap();
    let (w, data) = get(a, page(1));
    assert!(w > v && data == vec![8; 100]);
    assert_eq!(exec::block_on(a.list(set::INODE, None)).unwrap().len(), 1);
    let stale = Transaction::new().remove(page(1), v);
    assert_eq!(exec::block_on(a.transact(stale)), Err(CacheError::Conflict));
    exec::block_on(a.transact(Transaction::new().remove(page(1), w))).unwrap();
    assert_eq!(get(a, page(1)).0, Version::ABSENT);
    // Every size there is.
    for len in [1, 8, 4095, 65_536] {
        let n = Name::numbered(set::AREAS, len as u64);
        let data: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
        put(a, n, &data);
        assert_eq!(get(a, n).1, data);
        assert_eq!(get(a, n).1, data);
    }
    // Nonsense is refused.
    let mut out = Vec::new();
    let nowhere = Name::new(999, Shard(0), 1);
    assert_eq!(exec::block_on(a.get(nowhere, &mut out)), Err(CacheError::Invalid));
    let far = Name::new(set::INODE, Shard(SHARDS), 1);
    assert_eq!(exec::block_on(a.get(far, &mut out)), Err(CacheError::Invalid));
    assert_eq!(exec::block_on(a.put(page(2), vec![])), Err(CacheError::Invalid));
    assert_eq!(exec::block_on(a.put(page(2), vec![0; 4097])), Err(CacheError::Invalid));
    let s = exec::block_on(a.status()).unwrap();
    assert_eq!((s.node, s.epoch, s.lease), (0, 1, true));
    assert!(!s.survival.can_lose_a_node());
}

#[test]
fn volatile_objects_cost_no_bell_and_are_dumped() {
    let c = Cluster::new("slab", 1);
    let a = c.client(0);
    let before = a.wakeups();
    let n = Name::numbered(set::OFILE, 5);
    put(a, n, b"offset 0");
    let (v, data) = get(a, n);
    assert_eq!(data, b"offset 0");
    let t = Transaction::new().put(n, v, b"offset 9".to_vec());
    exec::block_on(a.transact(t.clone())).unwrap();
    assert_eq!(exec::block_on(a.transact(t)), Err(CacheError::Conflict));
    assert_eq!(exec::block_on(a.list(set::OFILE, None)).unwrap().len(), 1);
    assert_eq!(a.wakeups(), before);
    put(a, Name::numbered(set::INODE, 3), b"inode");
    put(a, Name::numbered(set::PROCESS, 3), b"process");
    let all = |everything| -> Vec<Dumped> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = exec::block_on(a.dump(everything, after)).unwrap();
            let Some(last) = page.last() else { return all };
            after = Some(last.name);
            all.extend(page);
        }
    };
    let kept: Vec<Name> = all(false).iter().map(|d| d.name).collect();
    assert_eq!(kept, [Name::numbered(set::INODE, 3)]);
    let everything = all(true);
    assert_eq!(everything.len(), 3, "{everything:?}");
    assert!(everything.iter().any(|d| d.name == n && d.data == b"offset 9"));
    // In another cluster the same objects stand again; what exists is left alone.
    let d = Cluster::new("slab2", 1);
    let b = d.client(0);
    put(b, Name::numbered(set::INODE, 3), b"other");
    exec::block_on(b.restore(everything)).unwrap();
    assert_eq!(get(b, n).1, b"offset 9");
    assert_eq!(get(b, Name::numbered(set::PROCESS, 3)).1, b"process");
    assert_eq!(get(b, Name::numbered(set::INODE, 3)).1, b"other");
}

#[test]
fn a_change_wakes_who_waits_for_it() {
    let c = Cluster::new("wait", 3);
    let n = Name::numbered(set::PIPE, 11);
    put(c.client(0), n, b"empty");
    let now = exec::now_ns();
    for waiter in 0..3 {
        let (v, _) = get(c.client(waiter), n);
        let (on, until) = ([(n, v)], Some(exec::now_ns() + 30_000_000));
        let timed = c.client(waiter).wait(&on, until);
        assert_eq!(exec::block_on(timed), Ok(Waited::TimedOut));
        let sleeper = c.client(waiter).clone();
        let thread = std::thread::spawn(move || {
            let began = exec::now_ns();
            let waited = exec::block_on(sleeper.wait(&[(n, v)], None)).unwrap();
            (waited, exec::now_ns() - began)
        });
        std::thread::sleep(Duration::from_millis(50));
        put(c.client((waiter + 1) % 3), n, format!("full {waiter}").as_bytes());
        let (waited, took) = thread.join().unwrap();
        assert_eq!(waited, Waited::Changed);
        println!("woken after {} ms, 50 of them before the put", took / 1_000_000);
        assert!(get(c.client(waiter), n).0 > v);
        // A version long gone ends the wait at once.
        assert_eq!(exec::block_on(c.client(waiter).wait(&[(n, v)], None)), Ok(Waited::Changed));
    }
    assert!(exec::now_ns() - now < 10_000_000_000);
}

#[test]
fn each_node_is_lost_and_comes_back_and_nothing_is_forgotten() {
    let mut c = Cluster::new("cycle", 3);
    let mut model: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for i in 0..300u64 {
        let data = format!("object {i}").into_bytes();
        put(c.client((i % 3) as u8), page(i), &data);
        model.insert(i, data);
    }
    for victim in 0..3u8 {
        for slot in 0..3 {
            for (i, data) in &model {
                assert_eq!(&get(c.client(slot), page(*i)).1, data, "object {i} on node {slot}");
            }
        }
        let killed = Instant::now();
        c.kill(victim);
        c.govern("view without it", |c| c.view.member(victim).is_none());
        let other = (victim + 1) % 3;
        // Those of the dead primary's shards wait for the takeover.
        for (i, data) in &model {
            assert_eq!(&get(c.client(other), page(*i)).1, data, "object {i} after the loss");
        }
        println!("node {victim}: all served again after {:?}", killed.elapsed());
        for i in (0..300).step_by(7) {
            let data = format!("object {i}, rewritten without {victim}").into_bytes();
            put(c.client(other), page(i), &data);
            model.insert(i, data);
        }
        let joined = Instant::now();
        let incarnation = 2 + u64::from(victim);
        let member = c.start(victim, incarnation);
        c.install(c.view.with(&member));
        // Writes go on while copies are made.
        for i in (0..300).step_by(5) {
            let data = format!("object {i}, while {victim} is rebuilt").into_bytes();
            put(c.client((i % 3) as u8), page(i), &data);
            model.insert(i, data);
        }
        c.govern("rebuilt copies", |c| c.view.survival().can_lose_a_node());
        println!("node {victim}: rebuilt after {:?}", joined.elapsed());
    }
    for slot in 0..3 {
        for (i, data) in &model {
            assert_eq!(&get(c.client(slot), page(*i)).1, data, "object {i} on node {slot}");
        }
    }
}

#[test]
fn an_evicted_node_ends_and_a_minority_serves_nothing() {
    let mut c = Cluster::new("evict", 3);
    put(c.client(0), page(1), b"before");
    // Node 2 lives, but a view without it is decided.
    let next = c.view.without(2);
    c.view = next.clone();
    for slot in [0, 1] {
        exec::block_on(c.client(slot).install_view(next.clone())).unwrap();
    }
    put(c.client(0), page(1), b"after");
    let evicted = c.client(2).clone();
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        // Until its lease is over it may have served what was true then; never after.
        if exec::block_on(evicted.status()).is_ok_and(|s| !s.lease) {
            break;
        }
        assert!(Instant::now() < until, "its lease does not end");
    }
    let why = {
        let n = c.nodes.get_mut(&2).unwrap();
        let _ = exec::block_on(n.client.install_view(next));
        n.thread.take().unwrap().join().unwrap()
    };
    assert!(why.contains("was evicted: view 2"), "{why}");
    let n = c.nodes.remove(&2).unwrap();
    assert_eq!(n.slot, 2);
    assert_eq!(get(c.client(1), page(1)).1, b"after");
}

#[test]
fn one_of_three_refuses_reads_and_writes() {
    let mut c = Cluster::new("minority", 3);
    put(c.client(0), page(1), b"before");
    assert_eq!(get(c.client(0), page(1)).1, b"before");
    c.kill(1);
    c.kill(2);
    let until = Instant::now() + Duration::from_secs(5);
    while exec::block_on(c.client(0).status()).unwrap().lease {
        assert!(Instant::now() < until, "the lease of a minority does not end");
    }
    // At the same time, since each is tried for seconds.
    let (reader, writer) = (c.client(0).clone(), c.client(0).clone());
    let write = std::thread::spawn(move || exec::block_on(writer.put(page(1), b"after".to_vec())));
    let mut out = Vec::new();
    assert_eq!(exec::block_on(reader.get(page(1), &mut out)), Err(CacheError::NoQuorum));
    assert_eq!(write.join().unwrap(), Err(CacheError::NoQuorum));
}
