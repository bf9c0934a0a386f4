//! What operations cost inside ccache: the engine and the fabric, without rings and wake-ups.

use crate::beside::{Beside, PARTS};
use crate::cluster::Cluster;
use crate::stay_on;
use clustix_ccache::cache::Transaction;
use clustix_ccache::name::{Name, Shard};
use clustix_ccache::request::Request;
use clustix_ccache::set::{INODE, PAGE};

/// What is asked for object `i`.
type Operation<'a> = &'a dyn Fn(usize) -> Request;

/// Operations of one engine of a cluster of `count` nodes.
pub fn run(count: u8, beside: &Beside) {
    // Where the reference is.
    stay_on(0);
    let mut cluster = Cluster::new(count);

    for (set, len, objects) in [(INODE, 256usize, 5000), (PAGE, 4096, 1000)] {
        // Half of them at home, half at a neighbour's.
        let name = |i: usize| Name::new(set, Shard(i as u16 % 12), i as u128);
        let write =
            |i: usize, n: u8| Request::Transact(Transaction::new().set(name(i), vec![n; len]));
        let several = |i: usize, n: usize| {
            let one = |t: Transaction, k| t.set(name((i + k) % objects), vec![3; len]);
            Request::Transact((0..n).fold(Transaction::new(), one))
        };
        let part = objects / PARTS;
        let mut all = |what: &str, at: usize, before: Operation, timed: Operation| {
            beside.measure(&format!("{what} {len}"), |k| {
                let mut part = |of: Operation| -> Vec<u64> {
                    (k * part..(k + 1) * part).map(|i| cluster.ask(at, of(i))).collect()
                };
                // What else ran has left the caches to others.
                part(before);
                part(timed)
            });
        };
        let last = usize::from(count) - 1;
        let read = |i: usize| Request::Get { name: name(i) };
        // The second write of an object takes its word; from then on it is kept.
        all("put", 0, &|i| write(i, 1), &|i| write(i, 2));
        all("put kept", 0, &|i| write(i, 3), &|i| write(i, 4));
        all("miss", last, &|_| Request::Get { name: name(0) }, &read);
        all("put shared", 0, &|_| Request::Get { name: name(0) }, &|i| write(i, 5));
        all("transaction of 2", 0, &|i| several(i, 2), &|i| several(i, 2));
        all("transaction of 3", 0, &|i| several(i, 3), &|i| several(i, 3));
    }
}
