//! What operations cost inside ccache over shm, without rings and wake-ups: medians in ns.
//!
//! `cargo run --release -p clustix-ccache --example cost`

use clustix_ccache::arena::Arena;
use clustix_ccache::arena::published::lookup;
use clustix_ccache::cache::Transaction;
use clustix_ccache::engine::{Action, ClientId, Config, Engine, Event, RequestId};
use clustix_ccache::fabric::shm::ShmFabric;
use clustix_ccache::fabric::{Fabric, FabricEvent};
use clustix_ccache::layout::{self, RegionId, control};
use clustix_ccache::lease::Timing;
use clustix_ccache::name::{Name, Shard};
use clustix_ccache::request::{Reply, Request};
use clustix_ccache::set::{INODE, PAGE};
use clustix_ccache::view::{Member, View};
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault};
use std::sync::RwLock;
use std::time::Instant;

struct Node {
    engine: Engine,
    fabric: ShmFabric,
    arena: Arena,
    replies: Vec<Reply>,
}

fn pump(nodes: &mut [Node], now: u64) {
    loop {
        let mut moved = false;
        for node in nodes.iter_mut() {
            let mut events = Vec::new();
            node.fabric.poll(now, &mut events);
            for event in events {
                moved = true;
                feed(
                    node,
                    now,
                    match event {
                        FabricEvent::Completed { peer, token, result } => {
                            Event::Completed { peer, token, result }
                        }
                        FabricEvent::Message { from, bytes } => Event::Message { from, bytes },
                        FabricEvent::Revoked { peer } => Event::Revoked { peer },
                        FabricEvent::Stuck { .. } => continue,
                    },
                );
            }
        }
        if !moved {
            return;
        }
    }
}

fn feed(node: &mut Node, now: u64, event: Event) {
    let mut actions = Vec::new();
    node.engine.handle(now, event, &mut actions);
    for action in actions {
        match action {
            Action::Post { peer, token, chain } => node.fabric.post(peer, token, &chain),
            Action::Send { peer, bytes } => node.fabric.send(peer, &bytes).unwrap(),
            Action::Reply { reply, .. } => node.replies.push(reply.unwrap()),
            _ => {}
        }
    }
}

fn median(mut times: Vec<u64>) -> u64 {
    times.sort_unstable();
    times[times.len() / 2]
}

/// A cluster of `count` nodes in this process, with its first view.
fn cluster(count: u8) -> Vec<Node> {
    let members: Vec<Member> =
        (0..count).map(|slot| Member { slot, incarnation: 1, path: String::new() }).collect();
    let mut nodes: Vec<Node> = members
        .iter()
        .map(|m| {
            let arena = Arena::anonymous().unwrap();
            let config = Config {
                node: m.slot,
                incarnation: 1,
                first_incarnation: true,
                timing: Timing::default(),
                budget_bytes: 1 << 32,
                rebuild_rate: 1000,
            };
            Node {
                engine: Engine::new(config, arena.clone()),
                fabric: ShmFabric::new(m.slot, 1, arena.clone()),
                arena,
                replies: Vec::new(),
            }
        })
        .collect();
    let arenas: Vec<Arena> = nodes.iter().map(|n| n.arena.clone()).collect();
    let view = View::first(&members);
    for (i, node) in nodes.iter_mut().enumerate() {
        for (j, arena) in arenas.iter().enumerate() {
            if i != j {
                node.fabric.admit(j as u8, 1);
                node.fabric.connect(j as u8, arena.clone());
            }
        }
        node.arena.set_control(control::LEASE, u64::MAX);
        feed(node, 1, Event::Lease { until: u64::MAX });
    }
    for node in nodes.iter_mut() {
        feed(node, 1, Event::View(view.clone()));
        for j in 0..count {
            feed(node, 1, Event::Connected { peer: j, incarnation: 1 });
        }
    }
    pump(&mut nodes, 1);
    nodes
}

/// Asks node `at`, and runs all nodes until it has answered: how long that took, ns.
fn ask(nodes: &mut [Node], id: u64, at: usize, request: Request) -> u64 {
    let request = Event::Request { id: RequestId(id), client: ClientId(1), request };
    let start = Instant::now();
    feed(&mut nodes[at], id, request);
    while nodes[at].replies.is_empty() {
        pump(nodes, id);
    }
    let time = start.elapsed().as_nanos() as u64;
    nodes[at].replies.clear();
    pump(nodes, id);
    time
}

/// Operations of one engine, for 1 and 3 nodes.
fn operations(count: u8) {
    let mut nodes = cluster(count);
    println!("{count} node(s)");
    let mut id = 0;
    let mut ask = |nodes: &mut Vec<Node>, at: usize, request: Request| {
        id += 1;
        ask(nodes, id, at, request)
    };
    for (set, len) in [(INODE, 256usize), (PAGE, 4096)] {
        // Half of them at home, half at a neighbour's.
        let name = |i: usize| Name::new(set, Shard(i as u16 % 12), i as u128);
        let write =
            |i: usize, n: u8| Request::Transact(Transaction::new().set(name(i), vec![n; len]));
        let create = median((0..2000).map(|i| ask(&mut nodes, 0, write(i, 1))).collect());
        let put = median((0..2000).map(|i| ask(&mut nodes, 0, write(i, 2))).collect());
        let last = usize::from(count) - 1;
        let get = Request::Get { name: name(0) };
        let _ = ask(&mut nodes, last, get);
        let miss = median(
            (1..2000).map(|i| ask(&mut nodes, last, Request::Get { name: name(i) })).collect(),
        );
        let pair = |i: usize| {
            let t = Transaction::new().set(name(i), vec![3; len]);
            Request::Transact(t.set(name(i + 1), vec![3; len]))
        };
        let two = median((0..1998).map(|i| ask(&mut nodes, 0, pair(i))).collect());
        for i in 0..2000 {
            ask(&mut nodes, 0, Request::Get { name: name(i) });
        }
        let class = nodes[0].arena.region(layout::set(set).unwrap().region()).clone();
        let own = nodes[0].arena.region(RegionId::Control).clone();
        let mut out = Vec::new();
        let hit = median(
            (0..2000)
                .map(|i| {
                    let start = Instant::now();
                    let v = lookup(name(i), &class, &own, id_clock, &mut out);
                    let time = start.elapsed().as_nanos() as u64;
                    assert!(v.is_some());
                    time
                })
                .collect(),
        );
        println!(
            "  {len} B: hit {hit}, miss {miss}, put {put}, create {create}, transaction of two {two}"
        );
    }
}

/// Objects of the comparison with a map.
const OBJECTS: usize = 100_000;
/// Interleaved runs of it.
const RUNS: usize = 7;
/// Shards of the reference map.
const MAP_SHARDS: usize = 16;

type Xxh3 = BuildHasherDefault<xxhash_rust::xxh3::Xxh3>;

/// Local hits of 256 B by key, checks of validity and lease included, beside a sharded map of the
/// process's own with the same hash: the same random keys in turn.
fn hits_beside_a_map() {
    let mut nodes = cluster(3);
    // Objects whose primary, backup or neither is node 0, as they come.
    let name = |i: usize| Name::new(INODE, Shard((i % 1024) as u16), i as u128);
    let payload = vec![7u8; 256];
    let shard_of = |n: Name| Xxh3::default().hash_one(n) as usize % MAP_SHARDS;
    let map: Vec<RwLock<HashMap<Name, Vec<u8>, Xxh3>>> =
        (0..MAP_SHARDS).map(|_| RwLock::default()).collect();
    for i in 0..OBJECTS {
        let t = Transaction::new().set(name(i), payload.clone());
        ask(&mut nodes, 2 * i as u64 + 1, 0, Request::Transact(t));
        ask(&mut nodes, 2 * i as u64 + 2, 0, Request::Get { name: name(i) });
        map[shard_of(name(i))].write().unwrap().insert(name(i), payload.clone());
    }
    let class = nodes[0].arena.region(layout::set(INODE).unwrap().region()).clone();
    let own = nodes[0].arena.region(RegionId::Control).clone();
    // A full-period generator: every key once, in no order.
    let keys: Vec<Name> = (0..OBJECTS).map(|i| name(i * 61_957 % OBJECTS)).collect();
    let mut out = Vec::with_capacity(256);
    let (mut ours, mut theirs, mut missed) = (Vec::new(), Vec::new(), 0);
    for _ in 0..RUNS {
        let start = Instant::now();
        missed = 0;
        for key in &keys {
            missed += usize::from(lookup(*key, &class, &own, id_clock, &mut out).is_none());
        }
        ours.push(start.elapsed().as_nanos() as u64 * 10 / OBJECTS as u64);
        let start = Instant::now();
        for key in &keys {
            let shard = map[shard_of(*key)].read().unwrap();
            out.clear();
            out.extend_from_slice(&shard[key]);
            std::hint::black_box(&out);
        }
        theirs.push(start.elapsed().as_nanos() as u64 * 10 / OBJECTS as u64);
    }
    let (ours, theirs) = (median(ours) as f64 / 10.0, median(theirs) as f64 / 10.0);
    println!(
        "local hit of 256 B by key, {OBJECTS} random keys, medians of {RUNS} interleaved runs"
    );
    println!("  cluster-cache {ours:.1} ns ({missed} of {OBJECTS} keys not cached here)");
    println!("  {MAP_SHARDS}-shard RwLock<HashMap>, xxh3 too {theirs:.1} ns");
    println!("  ratio {:.2}", ours / theirs);
}

fn main() {
    operations(1);
    operations(3);
    hits_beside_a_map();
}

fn id_clock() -> u64 {
    clustix_pd::exec::now_ns()
}
