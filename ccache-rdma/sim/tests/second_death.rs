//! A second node dies at the worst moment: while what the first one left is put in order.

use clustix_ccache::cache::Transaction;
use clustix_ccache::engine::RequestId;
use clustix_ccache::name::{Name, SHARDS, Shard};
use clustix_ccache::request::{Reply, Request};
use clustix_ccache::set::{DIRBLOCK, INODE, RECORD};
use clustix_sim::cluster::Cluster;

const STEPS: usize = 400_000;

/// Ends a node and has all others take it for dead.
fn lose(c: &mut Cluster, slot: u8) {
    c.kill(slot);
    c.evict(slot);
}

fn settle(c: &mut Cluster) {
    assert!(c.run_until_quiet(STEPS), "{}", c.describe());
}

/// Runs until one of the nodes is in the middle of a write, then a little more: that node.
fn until_writing(c: &mut Cluster, nodes: &[u8], more: usize) -> u8 {
    for _ in 0..STEPS {
        let writes = |n: &&u8| {
            let port = c.at(**n).map(|at| c.nodes[at].port());
            port.is_some_and(|port| c.net.borrow().writing(port))
        };
        if let Some(n) = nodes.iter().find(writes) {
            for _ in 0..c.random.below(more) {
                c.step();
            }
            return *n;
        }
        c.step();
    }
    panic!("none of {nodes:?} writes: {}", c.describe());
}

/// A primary dies while it moves the marks of its shards, the next one too: what the last one has
/// been told is there, it finds (rule 38).
#[test]
fn a_mark_that_stood_on_some_replicas_only() {
    for seed in 0..100 {
        println!("seed {seed}");
        let mut c = Cluster::new(seed, 3);
        settle(&mut c);
        let shards: Vec<Shard> =
            (0..SHARDS).map(Shard).filter(|s| c.view().primary(*s) == Some(2)).take(8).collect();
        let create = |c: &mut Cluster, node, id| -> Vec<(Name, RequestId)> {
            let one = |shard: &Shard| {
                let name = Name::new(RECORD, *shard, id);
                let t = Transaction::new().create(name, vec![id as u8; 40]);
                (name, c.ask(node, 1, Request::Transact(t)).unwrap())
            };
            shards.iter().map(one).collect()
        };
        let mut asked = create(&mut c, 0, 1);
        for _ in 0..c.random.below(300) {
            c.step();
        }
        lose(&mut c, 2);
        settle(&mut c);
        asked.extend(create(&mut c, 0, 2));
        settle(&mut c);
        let done = |(_, id): &&(Name, RequestId)| {
            c.replies.get(&(0, *id)).is_some_and(|a| a.reply == Ok(Reply::Done))
        };
        let acked: Vec<Name> = asked.iter().filter(done).map(|(name, _)| *name).collect();
        assert!(acked.len() >= shards.len(), "{acked:?}");
        lose(&mut c, 1);
        settle(&mut c);
        for name in acked {
            let id = c.ask(0, 1, Request::Get { name }).unwrap();
            let found = c.run_for(0, id, STEPS);
            assert!(
                matches!(found, Some(Ok(Reply::Object(v, _))) if v.exists()),
                "{name}: {found:?}"
            );
        }
    }
}

/// A writer dies with its record on some survivors only, and a survivor dies while it applies that
/// record: the last one has all of the transaction or nothing (rule 22).
#[test]
fn a_record_that_one_survivor_had_alone() {
    for seed in 0..200 {
        println!("seed {seed}");
        let mut c = Cluster::new(seed, 3);
        settle(&mut c);
        let names = [Name::new(INODE, Shard(3), 10), Name::new(DIRBLOCK, Shard(5), 12)];
        let both = |n: u8| names.iter().fold(Transaction::new(), |t, x| t.set(*x, vec![n; 80]));
        let id = c.ask(0, 1, Request::Transact(both(1))).unwrap();
        assert_eq!(c.run_for(0, id, STEPS), Some(Ok(Reply::Done)));
        settle(&mut c);
        c.ask(0, 1, Request::Transact(both(2))).unwrap();
        until_writing(&mut c, &[0], 40);
        lose(&mut c, 0);
        // Whoever writes first, if there is anything left to be written.
        let mut second = 1;
        for _ in 0..20_000 {
            let writing = |n: &u8| {
                let port = c.at(*n).map(|at| c.nodes[at].port());
                port.is_some_and(|port| c.net.borrow().writing(port))
            };
            if let Some(n) = [1, 2].into_iter().find(writing) {
                second = n;
                break;
            }
            c.step();
        }
        for _ in 0..c.random.below(40) {
            c.step();
        }
        lose(&mut c, second);
        settle(&mut c);
        let last = 3 - second;
        let mut read = |name| {
            let id = c.ask(last, 1, Request::Get { name }).unwrap();
            match c.run_for(last, id, STEPS) {
                Some(Ok(Reply::Object(_, data))) => data[0],
                other => panic!("{name}: {other:?}"),
            }
        };
        assert_eq!(read(names[0]), read(names[1]), "half of a transaction");
    }
}
