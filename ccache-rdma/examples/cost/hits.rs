//! Local hits of 256 B by key, checks of validity and lease included, beside a sharded map of the
//! process's own: the same random keys in turn.

use crate::cluster::Cluster;
use crate::{figure, median};
use clustix_ccache::arena::published::lookup;
use clustix_ccache::cache::Transaction;
use clustix_ccache::layout::{self, RegionId};
use clustix_ccache::name::{Name, NameHasher, Shard};
use clustix_ccache::request::Request;
use clustix_ccache::set::INODE;
use clustix_pd::exec;
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault};
use std::hint::black_box;
use std::sync::{Barrier, RwLock};
use std::time::Instant;
use xxhash_rust::xxh3::Xxh3;

/// Objects, each looked up once per run and thread.
const OBJECTS: usize = 100_000;
/// Shards of the map.
const SHARDS: usize = 16;

/// A map of this process's own, behind a lock per shard.
struct Sharded<S>(Vec<RwLock<HashMap<Name, Vec<u8>, S>>>);

impl<S: BuildHasher + Default> Sharded<S> {
    fn new() -> Self {
        Sharded((0..SHARDS).map(|_| RwLock::default()).collect())
    }
    fn shard(&self, name: Name) -> &RwLock<HashMap<Name, Vec<u8>, S>> {
        &self.0[(S::default().hash_one(name) >> 8) as usize % SHARDS]
    }
    fn insert(&self, name: Name, data: Vec<u8>) {
        self.shard(name).write().unwrap().insert(name, data);
    }
    fn read_all(&self, keys: &[Name]) -> usize {
        let mut out: Vec<u8> = Vec::with_capacity(256);
        for key in keys {
            let shard = self.shard(*key).read().unwrap();
            out.clear();
            out.extend_from_slice(&shard[key]);
            black_box(&out);
        }
        0
    }
}

/// Interleaved runs of the two.
const RUNS: usize = 9;

/// Medians of both with that many threads at once.
pub fn run(threads: usize) {
    let mut cluster = Cluster::new(3);
    // Their primary, backup or neither is node 0, as they come.
    let name = |i: usize| Name::new(INODE, Shard((i % 1024) as u16), i as u128);
    let payload = vec![7u8; 256];
    let same = Sharded::<BuildHasherDefault<NameHasher>>::new();
    let xxh3 = Sharded::<BuildHasherDefault<Xxh3>>::new();
    for i in 0..OBJECTS {
        let t = Transaction::new().set(name(i), payload.clone());
        cluster.ask(0, Request::Transact(t));
        same.insert(name(i), payload.clone());
        xxh3.insert(name(i), payload.clone());
    }
    for i in 0..OBJECTS {
        cluster.ask(0, Request::Get { name: name(i) });
    }
    let arena = &cluster.nodes[0].arena;
    let class = arena.region(layout::set(INODE).unwrap().region()).clone();
    let own = arena.region(RegionId::Control).clone();
    // Every key once, shuffled; each thread begins elsewhere.
    let mut keys: Vec<Name> = (0..OBJECTS).map(name).collect();
    let mut random = 88_172_645_463_325_252u64;
    for i in (1..OBJECTS).rev() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        keys.swap(i, random as usize % (i + 1));
    }
    let per_key = |work: &(dyn Fn(&[Name]) -> usize + Sync)| {
        let barrier = Barrier::new(threads);
        let one = |thread: usize| {
            let mut keys = keys.clone();
            keys.rotate_left(thread * OBJECTS / threads);
            barrier.wait();
            let start = Instant::now();
            let missed = work(&keys);
            (start.elapsed().as_nanos() as f64 / OBJECTS as f64, missed)
        };
        let all: Vec<(f64, usize)> = std::thread::scope(|s| {
            let threads: Vec<_> = (0..threads)
                .map(|t| {
                    s.spawn({
                        let one = &one;
                        move || one(t)
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let mean = all.iter().map(|(time, _)| time).sum::<f64>() / threads as f64;
        (mean, all[0].1)
    };
    let ours = |keys: &[Name]| {
        let mut out = Vec::with_capacity(256);
        let hit = |key: &&Name| lookup(**key, &class, &own, exec::now_ns, &mut out).is_none();
        keys.iter().filter(hit).count()
    };
    let theirs = |keys: &[Name]| same.read_all(keys);
    let with_xxh3 = |keys: &[Name]| xxh3.read_all(keys);
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    let mut missed = 0;
    // Once more, and not counted: then no page is touched for the first time.
    for run in 0..=RUNS {
        let (hit, none) = per_key(&ours);
        missed = none;
        let all = [hit, per_key(&theirs).0, per_key(&with_xxh3).0];
        for (times, time) in times.iter_mut().zip(all).filter(|_| run > 0) {
            times.push((time * 10.0) as u64);
        }
    }
    for (name, times) in ["hit", "map", "map, xxh3"].into_iter().zip(times) {
        figure(name, median(times) as f64 / 10.0);
    }
    figure("not cached", missed as f64);
}
