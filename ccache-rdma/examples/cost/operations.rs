//! What operations cost inside ccache: the engine and the fabric, without rings and wake-ups.

use crate::cluster::Cluster;
use crate::{figure, median};
use clustix_ccache::cache::Transaction;
use clustix_ccache::name::{Name, Shard};
use clustix_ccache::request::Request;
use clustix_ccache::set::{INODE, PAGE};

/// Objects of each figure.
const COUNT: usize = 2000;

/// Operations of one engine of a cluster of `count` nodes.
pub fn run(count: u8) {
    let mut cluster = Cluster::new(count);
    for (set, len) in [(INODE, 256usize), (PAGE, 4096)] {
        // Half of them at home, half at a neighbour's.
        let name = |i: usize| Name::new(set, Shard(i as u16 % 12), i as u128);
        let write =
            |i: usize, n: u8| Request::Transact(Transaction::new().set(name(i), vec![n; len]));
        let several = |i: usize, n: usize| {
            let one = |t: Transaction, k| t.set(name((i + k) % COUNT), vec![3; len]);
            Request::Transact((0..n).fold(Transaction::new(), one))
        };
        let mut all = |what: &str, at: usize, of: &dyn Fn(usize) -> Request| {
            let times = (0..COUNT).map(|i| cluster.ask(at, of(i))).collect();
            figure(&format!("{what} {len}"), median(times) as f64);
        };
        all("create", 0, &|i| write(i, 1));
        // The second write of an object takes its word; from then on it is kept.
        all("put", 0, &|i| write(i, 2));
        all("put kept", 0, &|i| write(i, 3));
        all("miss", usize::from(count) - 1, &|i| Request::Get { name: name(i) });
        all("put shared", 0, &|i| write(i, 4));
        all("transaction of 2", 0, &|i| several(i, 2));
        all("transaction of 3", 0, &|i| several(i, 3));
    }
}
