//! A node's own count in a slot's word, when two names lead its operations to one slot.

use clustix_ccache::cache::Transaction;
use clustix_ccache::layout;
use clustix_ccache::name::{Name, SHARDS, Shard};
use clustix_ccache::request::{Reply, Request};
use clustix_ccache::set::INODE;
use clustix_sim::cluster::Cluster;

const STEPS: usize = 400_000;

fn settle(c: &mut Cluster) {
    assert!(c.run_until_quiet(STEPS), "{}", c.describe());
}

fn must(c: &mut Cluster, node: u8, request: Request) -> Reply {
    let id = c.ask(node, 1, request).unwrap();
    let reply = c.run_for(node, id, STEPS);
    settle(c);
    reply.unwrap().unwrap()
}

/// Two reads, one of a name that was in the slot before, have been answered when a change of view freezes
/// their node, which looks at them in another order: it must not take the lower count for the last (rule 6).
#[test]
fn reads_of_two_names_of_one_slot_when_a_view_changes() {
    let set = layout::set(INODE).unwrap();
    for seed in 0..400 {
        println!("seed {seed}");
        let mut c = Cluster::new(seed, 5);
        settle(&mut c);
        // Of node 1, and neither the reader nor who dies a copy.
        let of = |s: &Shard| {
            let r = c.view().replicas(*s);
            r.primary == Some(1) && !r.all().contains(4) && !r.all().contains(0)
        };
        let shard = (0..SHARDS).map(Shard).find(of).unwrap();
        c.net.borrow_mut().words.watch(set, shard, 64);
        let names = [1u64, 2].map(|id| Name::new(INODE, shard, id.into()));
        let create = |n: Name| Request::Transact(Transaction::new().create(n, vec![7; 80]));
        must(&mut c, 1, create(names[0]));
        // Node 0 remembers where the first is.
        let Reply::Object(version, _) = must(&mut c, 0, Request::Get { name: names[0] }) else {
            panic!("not an object");
        };
        must(&mut c, 1, Request::Transact(Transaction::new().remove(names[0], version)));
        must(&mut c, 1, create(names[1]));
        let get = |c: &mut Cluster, name| c.ask(0, 1, Request::Get { name });
        let first = usize::from(seed % 2 == 0);
        get(&mut c, names[first]);
        for _ in 0..c.random.below(20) {
            c.step();
        }
        get(&mut c, names[1 - first]);
        for _ in 0..c.random.below(60) {
            c.step();
        }
        c.kill(4);
        c.evict(4);
        for _ in 0..600 {
            c.step();
            if c.random.below(8) == 0 {
                let name = names[c.random.below(2)];
                get(&mut c, name);
            }
            let found = c.violation.clone().or_else(|| c.net.borrow().words.violation.clone());
            assert!(found.is_none(), "{found:?}");
        }
        settle(&mut c);
        let found = c.violation.clone().or_else(|| c.net.borrow().words.violation.clone());
        assert!(found.is_none(), "{found:?}");
    }
}
