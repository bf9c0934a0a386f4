//! What operations cost from a server's protection domain: its client, its ring, a ccache that
//! sleeps in a thread of its own and serves with one-sided verbs, three nodes in this process.

use crate::beside::{Beside, PARTS};
use crate::{figure, median, stay_on};
use clustix_ccache::cache::{Cache, Transaction};
use clustix_ccache::client::CacheClient;
use clustix_ccache::name::{Name, SHARDS, Shard};
use clustix_ccache::set::{Class, INODE};
use clustix_pd::exec;
use clustix_testbed::Cluster;
use std::sync::Barrier;
use std::time::Instant;

/// Objects of a part of a measurement, each written some times.
const PART: usize = 100;
const OBJECTS: usize = PART * PARTS;
/// Bytes of each.
const BYTES: usize = 256;
/// Turns of one client with [`clients`].
const TURNS: usize = 4000;

/// How long each of a part's operations takes.
fn timed(part: usize, mut work: impl FnMut(usize)) -> Vec<u64> {
    let one = |i| {
        let start = Instant::now();
        work(i);
        start.elapsed().as_nanos() as u64
    };
    (part * PART..(part + 1) * PART).map(one).collect()
}

/// A shard whose primary is that node.
fn shard_of(cluster: &Cluster, node: u8) -> Shard {
    (0..SHARDS).map(Shard).find(|s| cluster.view.primary(*s) == Some(node)).unwrap()
}

fn put(client: &CacheClient, name: Name, byte: u8) {
    exec::block_on(client.put(name, vec![byte; BYTES])).unwrap();
}

/// One client alone. `placement`: "server", where the domain stays on its caller's processor, as servers
/// and the personality's threads do, and ccache follows it; "any", where the domain may run anywhere;
/// "same", both on one processor; "apart", on two.
pub fn run(placement: &str, beside: &Beside) {
    if matches!(placement, "same" | "apart") {
        stay_on(0);
    }
    let cluster = Cluster::new(3);
    match placement {
        "server" => stay_on(0),
        "apart" => stay_on(1),
        _ => {}
    }
    let client = cluster.client(0);
    let home = client.local_shard(Class::Vfs, None);
    let away = shard_of(&cluster, 1);
    let name = |shard: Shard, i: usize| Name::new(INODE, shard, i as u128);
    // Before it is timed a part does the same once more, or what comes before it: what else ran has left the
    // caches to others.
    let all = |k: usize, work: &mut dyn FnMut(usize)| (k * PART..(k + 1) * PART).for_each(work);
    for (what, shard) in [("at home", home), ("away", away)] {
        let write = |byte: u8| move |i: usize| put(client, name(shard, i), byte);
        beside.measure(&format!("put {what}"), |k| {
            all(k, &mut write(1));
            timed(k, write(2))
        });
        beside.measure(&format!("put kept {what}"), |k| {
            all(k, &mut write(3));
            timed(k, write(4))
        });
    }
    let three = [0, 1, 2].map(|node| shard_of(&cluster, node));
    let transact = |byte: u8| {
        move |i: usize| {
            let one = |t: Transaction, s: &Shard| t.set(name(*s, OBJECTS + i), vec![byte; BYTES]);
            exec::block_on(client.transact(three.iter().fold(Transaction::new(), one))).unwrap();
        }
    };
    beside.measure("transaction of 3", |k| {
        all(k, &mut transact(1));
        timed(k, transact(2))
    });
    beside.measure("transaction of 3 kept", |k| {
        all(k, &mut transact(3));
        timed(k, transact(4))
    });
    let mut out = Vec::new();
    let mut get = |i: usize| {
        exec::block_on(client.get(name(home, i), &mut out)).unwrap();
    };
    beside.measure("get", |k| {
        all(k, &mut get);
        timed(k, &mut get)
    });
}

/// `count` clients at once, spread over the nodes, each with objects of its own: latency of one
/// operation, and operations of all per second.
pub fn clients(count: usize) {
    let cluster = Cluster::new(3);
    let of_nodes = [0, 1, 2].map(|node| cluster.client(node).clone());
    let barrier = Barrier::new(count);
    let one = |number: usize| {
        let client = &of_nodes[number % 3];
        let shard = client.local_shard(Class::Vfs, None);
        let name = |i: usize| Name::new(INODE, shard, ((number << 32) | (i % 64)) as u128);
        let mut out = Vec::new();
        for i in 0..64 {
            put(client, name(i), 1);
        }
        let mut all = Vec::new();
        for write in [true, false] {
            barrier.wait();
            let start = Instant::now();
            let mut times = Vec::with_capacity(TURNS);
            for i in 0..TURNS {
                let start = Instant::now();
                if write {
                    put(client, name(i), i as u8);
                } else {
                    exec::block_on(client.get(name(i), &mut out)).unwrap();
                }
                times.push(start.elapsed().as_nanos() as u64);
            }
            all.push((median(times) as f64, start.elapsed().as_secs_f64()));
        }
        all
    };
    let all: Vec<Vec<(f64, f64)>> = std::thread::scope(|s| {
        let threads: Vec<_> = (0..count)
            .map(|n| {
                s.spawn({
                    let one = &one;
                    move || one(n)
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    for (i, what) in ["put", "get"].iter().enumerate() {
        let latency = all.iter().map(|c| c[i].0).sum::<f64>() / count as f64;
        let slowest = all.iter().map(|c| c[i].1).fold(0.0, f64::max);
        figure(what, latency);
        figure(&format!("{what} per second"), (count * TURNS) as f64 / slowest);
    }
}
