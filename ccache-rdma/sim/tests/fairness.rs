//! Whoever wants an object gets it, however near the others are to it: rule 44.

use clustix_ccache::cache::Transaction;
use clustix_ccache::engine::RequestId;
use clustix_ccache::name::{Name, SHARDS, Shard};
use clustix_ccache::request::{Reply, Request};
use clustix_ccache::set::INODE;
use clustix_sim::cluster::Cluster;
use clustix_sim::net::Wire;

const STEPS: usize = 400_000;
const NODES: u8 = 3;
/// Writes of each node in one life.
const WRITES: usize = 120;

/// What a wait may come to: two others, one of them ten times nearer to the word than who waits.
const BOUND: usize = 40;

/// All nodes write the same few objects, one write after the other each. The most that others wrote while one
/// waited; `None`: somebody waited for ever.
fn most_overtaken(c: &mut Cluster, objects: u64) -> Option<usize> {
    assert!(c.run_until_quiet(STEPS), "{}", c.describe());
    let shard = (0..SHARDS).map(Shard).find(|s| c.view().primary(*s) == Some(0)).unwrap();
    let mut done = 0;
    let mut most = 0;
    // By node: what it has asked, and how many writes had been answered by then.
    let mut asked: [Option<(RequestId, usize)>; NODES as usize] = Default::default();
    let mut left = [WRITES; NODES as usize];
    for _ in 0..STEPS {
        for node in 0..NODES {
            let at = usize::from(node);
            if let Some((id, since)) = asked[at] {
                let Some(answer) = c.replies.get(&(node, id)) else { continue };
                assert_eq!(answer.reply, Ok(Reply::Done), "node {node}: {}", c.describe());
                most = most.max(done - since);
                done += 1;
                asked[at] = None;
            }
            // The others go on for as long as anybody has something to do.
            left[at] = left[at].saturating_sub(1);
            let name = Name::new(INODE, shard, u128::from(done as u64 % objects));
            let t = Transaction::new().set(name, vec![node; 80]);
            asked[at] = c.ask(node, 1, Request::Transact(t)).map(|id| (id, done));
        }
        if left == [0; NODES as usize] {
            return Some(most);
        }
        c.step();
    }
    None
}

/// The primary's memory is near for the primary, as it is between machines.
fn cluster(seed: u64) -> Cluster {
    let wire = Wire { slow_one_in: 0, packet_ns: 4_000, loopback_ns: 400, ..Wire::default() };
    Cluster::with_wire(seed, NODES, wire)
}

#[test]
fn nobody_is_overtaken_for_long() {
    for objects in [1, 3] {
        let mut all = Vec::new();
        for seed in 0..100 {
            let most = most_overtaken(&mut cluster(seed), objects);
            assert!(most.is_some_and(|n| n <= BOUND), "seed {seed}, {objects} objects: {most:?}");
            all.extend(most);
        }
        all.sort_unstable();
        println!("{objects} objects: most overtaken, by seed: {all:?}");
    }
}

#[cfg(feature = "put-back-bugs")]
#[test]
fn who_takes_again_at_once_leaves_nothing_to_the_others() {
    let mut c = cluster(0);
    c.put_back(Some(clustix_ccache::engine::Bug::TakesAgain));
    let most = most_overtaken(&mut c, 1);
    assert!(most.is_none_or(|n| n > BOUND), "{most:?}");
}
