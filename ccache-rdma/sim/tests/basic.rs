//! The protocol's engine on one and three nodes, one request after the other.

use clustix_ccache::cache::{CacheError, Expect, Transaction, Version, Waited, Write};
use clustix_ccache::engine::{ClientId, Event};
use clustix_ccache::name::{Name, Shard};
use clustix_ccache::request::{Reply, Request};
use clustix_ccache::set::{DIRBLOCK, INODE, PAGE, RECORD};
use clustix_sim::cluster::Cluster;

const STEPS: usize = 200_000;

fn get(c: &mut Cluster, slot: u8, name: Name) -> (Version, Vec<u8>) {
    let id = c.ask(slot, 1, Request::Get { name }).unwrap();
    match c.run_for(slot, id, STEPS) {
        Some(Ok(Reply::Object(v, d))) => (v, d),
        other => panic!("{other:?}"),
    }
}

fn transact(c: &mut Cluster, slot: u8, t: Transaction) -> Result<(), CacheError> {
    let id = c.ask(slot, 1, Request::Transact(t)).unwrap();
    c.run_for(slot, id, STEPS).expect("an answer").map(|r| assert_eq!(r, Reply::Done))
}

fn names() -> Vec<Name> {
    [INODE, DIRBLOCK, PAGE, RECORD]
        .iter()
        .flat_map(|set| (0..3).map(|s| Name::new(*set, Shard(s * 5 + 1), u128::from(s) + 40)))
        .collect()
}

fn life(nodes: u8, seed: u64) {
    println!("seed {seed}");
    let mut c = Cluster::new(seed, nodes);
    assert!(c.run_until_quiet(STEPS), "{}", c.describe());
    for (i, name) in names().into_iter().enumerate() {
        let (a, b) = (i as u8 % nodes, (i as u8 + 1) % nodes);
        assert_eq!(get(&mut c, a, name).0, Version::ABSENT);
        transact(&mut c, a, Transaction::new().create(name, vec![1; 200])).unwrap();
        let again = transact(&mut c, b, Transaction::new().create(name, vec![9; 200]));
        assert_eq!(again, Err(CacheError::Conflict));
        let (v1, d) = get(&mut c, b, name);
        assert_eq!(d, vec![1; 200]);
        assert!(v1.exists());
        transact(&mut c, b, Transaction::new().put(name, v1, vec![2; 100])).unwrap();
        let (v2, d) = get(&mut c, a, name);
        assert_eq!((v2.0, d), (v1.0 + 1, vec![2; 100]));
        let stale = transact(&mut c, a, Transaction::new().put(name, v1, vec![3; 100]));
        assert_eq!(stale, Err(CacheError::Conflict));
        transact(&mut c, a, Transaction::new().remove(name, v2)).unwrap();
        assert_eq!(get(&mut c, b, name).0, Version::ABSENT);
        assert_eq!(get(&mut c, a, name).0, Version::ABSENT);
        transact(&mut c, b, Transaction::new().set(name, vec![4; 256])).unwrap();
        let (v3, d) = get(&mut c, a, name);
        assert_eq!(d, vec![4; 256]);
        assert!(v3 > v2);
        assert_eq!(get(&mut c, b, name), (v3, d));
    }
    // Several as one.
    let all = names();
    let mut t = Transaction::new();
    for n in &all {
        t.writes.push(Write { name: *n, expect: Expect::Any, data: Some(vec![7; 64]) });
    }
    transact(&mut c, 0, t).unwrap();
    for n in &all {
        assert_eq!(get(&mut c, nodes - 1, *n).1, vec![7; 64]);
    }
    let v = get(&mut c, 0, all[0]).0;
    let t = Transaction::new().read(all[0], Version(v.0 - 1)).set(all[1], vec![8; 8]);
    assert_eq!(transact(&mut c, 0, t), Err(CacheError::Conflict));
    let t = Transaction::new().read(all[0], v).set(all[1], vec![8; 8]);
    transact(&mut c, nodes - 1, t).unwrap();
    assert_eq!(get(&mut c, 0, all[1]).1, vec![8; 8]);
    assert!(c.run_until_quiet(STEPS), "{}", c.describe());
    // A second read is a hit: nothing is posted for it.
    let before = c.nodes[0].engine.stats();
    get(&mut c, 0, all[1]);
    assert_eq!(c.nodes[0].engine.stats().verbs_posted, before.verbs_posted);
}

#[test]
fn one_node() {
    life(1, 1);
}

#[test]
fn three_nodes() {
    for seed in 0..6 {
        life(3, seed);
    }
}

#[test]
fn waiting_ends_with_a_change() {
    for seed in 0..8 {
        println!("seed {seed}");
        let mut c = Cluster::new(seed, 3);
        assert!(c.run_until_quiet(STEPS));
        let name = Name::new(RECORD, Shard(4), 1);
        let wait = |v| Request::Wait { on: vec![(name, v)], word: 0 };
        let id = c.ask(2, 5, wait(Version::ABSENT)).unwrap();
        assert_eq!(c.run_for(2, id, STEPS), Some(Ok(Reply::Waited(None))));
        transact(&mut c, 0, Transaction::new().create(name, vec![1; 10])).unwrap();
        for _ in 0..STEPS {
            if !c.changed.is_empty() {
                break;
            }
            c.step();
        }
        assert_eq!(c.changed, [(2, id)]);
        let id = c.ask(1, 5, wait(Version::ABSENT)).unwrap();
        assert_eq!(c.run_for(1, id, STEPS), Some(Ok(Reply::Waited(Some(Waited::Changed)))));
    }
}

#[test]
fn a_grab_holds_others_off() {
    for seed in 0..8 {
        println!("seed {seed}");
        let mut c = Cluster::new(seed, 3);
        assert!(c.run_until_quiet(STEPS));
        let name = Name::new(INODE, Shard(7), 1);
        transact(&mut c, 1, Transaction::new().create(name, vec![1; 10])).unwrap();
        let id = c.ask(0, 11, Request::Grab { name }).unwrap();
        let Some(Ok(Reply::Object(v, _))) = c.run_for(0, id, STEPS) else { panic!() };
        let other = Request::Transact(Transaction::new().set(name, vec![2; 10]));
        let here = c.ask(0, 12, other.clone()).unwrap();
        let there = c.ask(2, 12, other).unwrap();
        for _ in 0..3000 {
            c.step();
        }
        assert!(!c.replies.contains_key(&(0, here)) && !c.replies.contains_key(&(2, there)));
        assert_eq!(get(&mut c, 1, name).0, v);
        let mine = Request::Transact(Transaction::new().put(name, v, vec![3; 10]));
        let mine = c.ask(0, 11, mine).unwrap();
        assert_eq!(c.run_for(0, mine, STEPS), Some(Ok(Reply::Done)));
        assert_eq!(c.run_for(0, here, STEPS), Some(Ok(Reply::Done)));
        assert_eq!(c.run_for(2, there, STEPS), Some(Ok(Reply::Done)));
        assert_eq!(get(&mut c, 1, name).0.0, v.0 + 3);
        assert!(c.run_until_quiet(STEPS * 10), "{}", c.describe());
    }
}

#[test]
fn a_crowded_shard_is_found_through() {
    // More names than the first levels of the directory hold, and slots used again.
    let mut c = Cluster::new(3, 3);
    assert!(c.run_until_quiet(STEPS));
    let name = |i: usize| Name::new(INODE, Shard(0), i as u128 * 7);
    let all: Vec<usize> = (0..6000).collect();
    for batch in all.chunks(24) {
        let mut t = Transaction::new();
        for i in batch {
            t = t.create(name(*i), i.to_le_bytes().to_vec());
        }
        transact(&mut c, 1, t).unwrap();
    }
    for i in all.iter().step_by(7) {
        assert_eq!(get(&mut c, 2, name(*i)).1, i.to_le_bytes());
        assert_eq!(get(&mut c, 2, name(*i + 100_000)).0, Version::ABSENT);
    }
    for i in all.iter().step_by(14) {
        transact(&mut c, 2, Transaction::new().put(name(*i), Version(0), vec![1])).unwrap_err();
        let v = get(&mut c, 1, name(*i)).0;
        transact(&mut c, 1, Transaction::new().remove(name(*i), v)).unwrap();
    }
    for i in all.iter().step_by(7) {
        let exists = i % 14 != 0;
        assert_eq!(get(&mut c, 2, name(*i)).0.exists(), exists, "{i}");
        if !exists {
            transact(&mut c, 2, Transaction::new().set(name(*i), vec![2; 9])).unwrap();
            assert_eq!(get(&mut c, 0, name(*i)).1, vec![2; 9]);
        }
    }
    assert!(c.run_until_quiet(STEPS * 10), "{}", c.describe());
    let id = c.ask(0, 1, Request::List { set: INODE, after: None }).unwrap();
    let Some(Ok(Reply::Names(names))) = c.run_for(0, id, STEPS) else { panic!() };
    assert_eq!(names.len(), 256);
    // The directory is made anew by another primary.
    c.kill(0);
    c.evict(0);
    assert!(c.run_until_quiet(STEPS * 50), "{}", c.describe());
    for i in all.iter().step_by(5) {
        let data = if i % 14 == 0 { vec![2; 9] } else { i.to_le_bytes().to_vec() };
        assert_eq!(get(&mut c, 2, name(*i)).1, data);
        assert_eq!(get(&mut c, 1, name(*i)).1, data);
    }
}

#[test]
fn clients_that_die_let_go() {
    let mut c = Cluster::new(5, 3);
    assert!(c.run_until_quiet(STEPS));
    let name = Name::new(INODE, Shard(1), 1);
    transact(&mut c, 0, Transaction::new().set(name, vec![1])).unwrap();
    let id = c.ask(0, 7, Request::Grab { name }).unwrap();
    assert!(c.run_for(0, id, STEPS).is_some_and(|r| r.is_ok()));
    let at = c.at(0).unwrap();
    c.feed(at, Event::ClientGone { client: ClientId(7) });
    transact(&mut c, 1, Transaction::new().set(name, vec![2])).unwrap();
    assert_eq!(get(&mut c, 2, name).1, vec![2]);
}
