//! What operations send, by the number of nodes: counted, not timed.

use crate::cluster::{Cluster, Sent};
use clustix_ccache::cache::Transaction;
use clustix_ccache::name::{Name, SHARDS, Shard};
use clustix_ccache::request::Request;
use clustix_ccache::set::INODE;

/// Bytes of an object.
const BYTES: usize = 256;
/// Numbers of nodes.
const NODES: [u8; 6] = [3, 4, 6, 8, 12, 16];

fn write(names: &[Name], byte: u8) -> Request {
    let one = |t: Transaction, n: &Name| t.set(*n, vec![byte; BYTES]);
    Request::Transact(names.iter().fold(Transaction::new(), one))
}

/// One line per operation and number of nodes.
pub fn run() {
    println!(
        "what an operation of one node sends, objects of {BYTES} B, 3 copies: round trips before"
    );
    println!("the answer; verbs and their bytes to other nodes (reads' answers and atomics' words");
    println!(
        "included, headers not), unwaited ones too; messages, which need the other's processor"
    );
    println!(
        "{:38} {:>5} {:>6} {:>6} {:>7} {:>8}",
        "", "nodes", "trips", "verbs", "bytes", "messages"
    );
    let mut rows: Vec<(String, u8, Sent)> = Vec::new();
    for nodes in NODES {
        let mut cluster = Cluster::new(nodes);
        let view = cluster.nodes[0].engine.view().clone();
        // Node 0 is none of their replicas where there are more than three nodes, else no primary.
        let away: Vec<Shard> = (0..SHARDS)
            .map(Shard)
            .filter(|s| view.primary(*s) != Some(0))
            .filter(|s| nodes == 3 || !view.replicas(*s).all().contains(0))
            .collect();
        let name = |i: usize| Name::new(INODE, away[i % away.len()], 1000 + i as u128);
        let get = |i: usize| Request::Get { name: name(i) };
        let last = usize::from(nodes) - 1;
        let mut row = |what: String, sent: Sent| rows.push((what, nodes, sent));

        cluster.ask(last, write(&[name(0)], 1));
        row("miss, first read of the object".into(), cluster.count(0, get(0)));
        row("hit".into(), cluster.count(0, get(0)));
        cluster.ask(last, write(&[name(0)], 2));
        row("miss, its place known".into(), cluster.count(0, get(0)));

        cluster.ask(0, write(&[name(1)], 1));
        row("put, not owned".into(), cluster.count(0, write(&[name(1)], 2)));
        row("put, kept".into(), cluster.count(0, write(&[name(1)], 3)));
        for sharers in [1, 2, usize::from(nodes) - 1] {
            for sharer in 1..=sharers {
                cluster.ask(sharer, get(1));
            }
            let what = if sharers > 2 { "all others".into() } else { sharers.to_string() };
            row(format!("put, kept, sharers: {what}"), cluster.count(0, write(&[name(1)], 4)));
            if sharers == usize::from(nodes) - 1 {
                break;
            }
        }
        for count in [2, 3, 8] {
            let names: Vec<Name> = (0..count).map(|i| name(10 + 10 * count + i)).collect();
            cluster.ask(0, write(&names, 1));
            let sent = cluster.count(0, write(&names, 2));
            row(format!("transaction over {count}, not owned"), sent);
        }
    }
    let mut whats: Vec<String> = Vec::new();
    for (what, _, _) in &rows {
        if !whats.contains(what) {
            whats.push(what.clone());
        }
    }
    for what in whats {
        let mut before = None;
        for (_, nodes, sent) in rows.iter().filter(|r| r.0 == what) {
            // What does not depend on the number of nodes is said once.
            if before != Some(*sent) {
                let Sent { trips, verbs, bytes, messages } = sent;
                println!("{what:38} {nodes:5} {trips:6} {verbs:6} {bytes:7} {messages:8}");
            }
            before = Some(*sent);
        }
    }
}
