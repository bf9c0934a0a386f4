//! Nodes that all write one object again and again: how often each write is overtaken.

use crate::cluster::Cluster;
use crate::net::Wire;
use clustix_ccache::cache::{CacheError, Transaction};
use clustix_ccache::engine::RequestId;
use clustix_ccache::name::{Name, Shard};
use clustix_ccache::request::{Reply, Request};
use clustix_ccache::set::RECORD;

/// Writes of the same other node that one write sees acknowledged between its question and its answer, at
/// most. One is the rule's; the others come before the one who waits has been heard of, by a writer that
/// keeps the word.
pub const OVERTAKEN: u64 = 8;
/// Writes of all others together that a read sees acknowledged meanwhile, at most.
pub const READ_OVERTAKEN: u64 = 24;
/// Writes of a run that ends by itself.
const WRITES: u64 = 300;
const STEPS: usize = 4_000_000;

/// What a run came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Contention {
    /// The most writes of one other node that a write was overtaken by.
    pub overtaken: u64,
    /// The longest write, ns of the simulated clock.
    pub worst: u64,
    /// The most that a read was overtaken by, of all nodes' writes.
    pub read_overtaken: u64,
    /// Writes acknowledged.
    pub writes: u64,
}

struct Under {
    id: RequestId,
    at: u64,
    before: Vec<u64>,
}

/// So many nodes write one object; with `reader`, the last one reads it instead. `kill`: a node that ends in
/// the middle of it.
pub fn contend(c: &mut Cluster, nodes: u8, reader: bool, kill: Option<u8>) -> Contention {
    let name = Name::new(RECORD, Shard(0), 77);
    let count = usize::from(nodes);
    let mut under: Vec<Option<Under>> = (0..count).map(|_| None).collect();
    let mut done = vec![0; count];
    let mut found = Contention::default();
    for step in 0.. {
        assert!(step < STEPS, "the writes do not end: {done:?}\n{}", c.describe());
        found.writes = done.iter().sum();
        if found.writes >= WRITES {
            return found;
        }
        if let Some(node) = kill.filter(|n| found.writes >= WRITES / 2 && c.at(*n).is_some()) {
            c.kill(node);
        }
        for node in 0..nodes {
            let at = usize::from(node);
            if c.at(node).is_none() {
                continue;
            }
            let reads = reader && node == nodes - 1;
            let now = c.now();
            let Some(u) = &under[at] else {
                let data = vec![node; 200];
                let request = match reads {
                    true => Request::Get { name },
                    false => Request::Transact(Transaction::new().set(name, data)),
                };
                under[at] =
                    c.ask(node, 1, request).map(|id| Under { id, at: now, before: done.clone() });
                continue;
            };
            let Some(answer) = c.replies.remove(&(node, u.id)) else { continue };
            let since = done.iter().zip(&u.before).map(|(d, b)| d - b);
            match answer.reply {
                Ok(Reply::Object(..)) => {
                    found.read_overtaken = found.read_overtaken.max(since.sum())
                }
                Ok(Reply::Done) => {
                    let by = since.enumerate().filter(|(n, _)| *n != at).map(|(_, by)| by).max();
                    found.overtaken = found.overtaken.max(by.unwrap_or(0));
                    found.worst = found.worst.max(now - u.at);
                    done[at] += 1;
                }
                Err(CacheError::Busy | CacheError::NoQuorum | CacheError::Unknown)
                    if kill.is_some() => {}
                other => panic!("node {node}: {other:?}"),
            }
            under[at] = None;
        }
        c.step();
    }
    found
}

/// A wire without slow queue pairs; what a packet takes depends on the seed.
pub fn wire(seed: u64) -> Wire {
    let packet_ns = [150, 400, 4_000][seed as usize % 3];
    Wire { packet_ns, slow_one_in: 0, ..Wire::default() }
}
