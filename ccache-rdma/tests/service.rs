//! Whole ccaches over real rings, arenas, slabs and links; the test is their membership.

use clustix_ccache::cache::{Cache, CacheError, Transaction, Version, Waited};
use clustix_ccache::client::CacheClient;
use clustix_ccache::name::{Name, SHARDS, Shard};
use clustix_ccache::request::Dumped;
use clustix_ccache::set::{self, Class};
use clustix_pd::exec;
use clustix_testbed::{Cluster, dump};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

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
    let c = Cluster::new(1);
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
    let c = Cluster::new(1);
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
    let all = |everything| -> Vec<Dumped> { dump(a, everything).concat() };
    let kept: Vec<Name> = all(false).iter().map(|d| d.name).collect();
    assert_eq!(kept, [Name::numbered(set::INODE, 3)]);
    let everything = all(true);
    assert_eq!(everything.len(), 3, "{everything:?}");
    assert!(everything.iter().any(|d| d.name == n && d.data == b"offset 9"));
    // In another cluster the same objects stand again; what exists is left alone.
    let d = Cluster::new(1);
    let b = d.client(0);
    put(b, Name::numbered(set::INODE, 3), b"other");
    // The slab is not ccache's to write: what it is asked to restore with a volatile object is
    // refused as a whole.
    assert_eq!(exec::block_on(b.restore(everything.clone())), Err(CacheError::Denied));
    assert_eq!(get(b, Name::numbered(set::PROCESS, 3)).0, Version::ABSENT);
    let (volatile, others) = everything.into_iter().partition(|d: &Dumped| d.name == n);
    exec::block_on(b.restore(others)).unwrap();
    assert_eq!(get(b, Name::numbered(set::PROCESS, 3)).1, b"process");
    assert_eq!(get(b, Name::numbered(set::INODE, 3)).1, b"other");
    assert_eq!(get(b, n).0, Version::ABSENT);
    put(b, n, &volatile[0].data);
    assert!(dump(b, true).concat().iter().any(|d| d.name == n && d.data == b"offset 9"));
}

#[test]
fn another_node_reads_what_a_volatile_object_is_now() {
    let mut c = Cluster::new(3);
    let n = Name::numbered(set::FDTABLE, 7);
    let ask = |c: &Cluster, from: u8, of: u8| {
        let mut out = Vec::new();
        exec::block_on(c.client(from).get_of(of, n, &mut out)).map(|v| (v, out))
    };
    for from in 0..3 {
        assert_eq!(ask(&c, from, 1), Ok((Version::ABSENT, Vec::new())));
    }
    let mut last = Version::ABSENT;
    for round in 1..=20u8 {
        // As long as they can be.
        let data = vec![round; 8_192 - usize::from(round % 3)];
        put(c.client(1), n, &data);
        for from in 0..3 {
            let (version, seen) = ask(&c, from, 1).unwrap();
            assert!(version > last || from > 0, "{version:?} after {last:?}");
            assert!(seen == data, "node {from}, round {round}");
            last = version;
        }
    }
    // Whoever writes meanwhile: no version is torn, none goes back.
    let writer = c.client(1).clone();
    let thread = std::thread::spawn(move || {
        for round in 0..2_000u32 {
            put(&writer, n, &vec![round as u8; 4_000]);
        }
    });
    while !thread.is_finished() {
        let (version, seen) = ask(&c, 2, 1).unwrap();
        assert!(version >= last && seen.windows(2).all(|w| w[0] == w[1]));
        last = version;
    }
    thread.join().unwrap();
    let (version, _) = get(c.client(1), n);
    exec::block_on(c.client(1).transact(Transaction::new().remove(n, version))).unwrap();
    assert_eq!(ask(&c, 0, 1).unwrap().0, Version::ABSENT);
    // Another's of the same name is another object; a node that there is not has none; other sets have none.
    put(c.client(2), n, b"of node 2");
    assert_eq!(ask(&c, 0, 2).unwrap().1, b"of node 2");
    assert_eq!(ask(&c, 0, 9), Ok((Version::ABSENT, Vec::new())));
    let mut out = Vec::new();
    let inode = c.client(0).get_of(1, Name::numbered(set::INODE, 3), &mut out);
    assert_eq!(exec::block_on(inode), Err(CacheError::Invalid));
    assert_eq!(exec::block_on(c.client(0).get_of(16, n, &mut out)), Err(CacheError::Invalid));
    // It is lost with its node, also for whoever was asking.
    let asker = c.client(0).clone();
    let asking = std::thread::spawn(move || {
        let mut out = Vec::new();
        loop {
            let version = exec::block_on(asker.get_of(2, n, &mut out)).unwrap();
            if !version.exists() {
                return;
            }
        }
    });
    c.kill(2);
    c.govern("a view without node 2", |c| c.view.member(2).is_none());
    asking.join().unwrap();
}

#[test]
fn a_change_wakes_who_waits_for_it() {
    let c = Cluster::new(3);
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
    let mut c = Cluster::new(3);
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
    let mut c = Cluster::new(3);
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
    let _ = exec::block_on(evicted.install_view(next));
    let why = c.ended(2);
    assert!(why.contains("was evicted: view 2"), "{why}");
    assert_eq!(get(c.client(1), page(1)).1, b"after");
}

#[test]
fn one_of_three_refuses_reads_and_writes() {
    let mut c = Cluster::new(3);
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
