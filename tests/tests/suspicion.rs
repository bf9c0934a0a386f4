//! Nobody is suspected for being busy: all nodes work as hard as they can, and every one stays a member.
//! A node that stood still itself (its own timer was late: the machine did not run it) is another matter:
//! losing it is right. Such stalls are reported apart, and the node comes back. Each suspicion must have
//! such a stall of the suspected node's own, by that node's log.

use anyhow::{Context, Result, ensure};
use clustix_tests::{Cluster, Program};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const NODES: u8 = 3;
/// A node is suspected after three leases of silence, or when its connection ends, ms.
const SILENCE: u64 = 750;
/// The stall of the suspected node that explains the silence: a heartbeat is sent each 50 ms.
const LATE: u64 = 700;
/// A machine on which nodes are lost to stalls more often is none to test on: ten, and one more for each
/// minute after the first ten.
fn most_stalls(time: Duration) -> u64 {
    10.max(time.as_secs() / 60)
}
/// Whoever was evicted has heard of it, and said so in its log, after this.
const HEARD: Duration = Duration::from_secs(10);

/// A node's life: slot and incarnation.
type Life = (u8, u64);

/// What the logs say of all lives, those whose folder is gone included.
#[derive(Default)]
struct Seen {
    /// How often the machine did not run that node for longer than [`LATE`].
    stalls: BTreeMap<Life, u64>,
    /// How often a node (the first) suspected another for its silence.
    suspicions: BTreeMap<(Life, Life), u64>,
    /// Those of which a node suspected another since its connection ended.
    ends: BTreeSet<Life>,
    /// Those who were evicted, by their own logs.
    evicted: BTreeSet<Life>,
    lines: BTreeMap<Life, Vec<String>>,
}

impl Seen {
    /// Takes in the log of node `k`, as it is now. Whether that node was evicted for a stall of its own.
    fn read(&mut self, cluster: &Cluster, k: u8) -> Result<bool> {
        let log = cluster.cli(["logs", "--node", &k.to_string()])?.text();
        // view 1: [(0, 1), (1, 1), (2, 1)], …
        let incarnation = log.lines().filter(|l| l.contains("ccache: view ")).find_map(|l| {
            let (_, rest) = l.split_once(&format!("({k}, "))?;
            rest.split_once(')')?.0.parse().ok()
        });
        let Some(incarnation) = incarnation else { return Ok(false) };
        let (life, mut stalls) = ((k, incarnation), 0);
        let (mut suspicions, mut lines) = (BTreeMap::new(), Vec::new());
        for line in log.lines() {
            if stall(line) {
                stalls += 1;
                lines.push(line.to_owned());
            } else if let Some((of, silent)) = suspicion(line) {
                if silent >= SILENCE {
                    *suspicions.entry((life, of)).or_insert(0) += 1;
                } else {
                    self.ends.insert(of);
                }
                lines.push(line.to_owned());
            }
        }
        self.stalls.insert(life, stalls);
        self.lines.insert(life, lines);
        self.suspicions.extend(suspicions);
        let evicted = log.lines().any(|l| l.contains("was evicted"));
        if evicted {
            self.evicted.insert(life);
        }
        Ok(stalls > 0 && evicted)
    }

    /// Suspicions for which the suspected node has no stall, and ended connections of nodes that were not
    /// evicted.
    fn unfounded(&self) -> u64 {
        let of = |(key, count): (&(Life, Life), &u64)| {
            count.saturating_sub(self.stalls.get(&key.1).copied().unwrap_or(0))
        };
        self.suspicions.iter().map(of).sum::<u64>()
            + self.ends.difference(&self.evicted).count() as u64
    }
}

/// Whether the line tells of a stall beyond [`LATE`] that was not the node's own work:
/// "this node stood still: a timer was 812 ms late; it ran for 3 ms since the last one".
fn stall(line: &str) -> bool {
    let numbers = || {
        let (_, rest) = line.split_once("this node stood still: a timer was ")?;
        let (late, rest) = rest.split_once(" ms late; it ran for ")?;
        Some((late.parse::<u64>().ok()?, rest.split_once(" ms")?.0.parse::<u64>().ok()?))
    };
    numbers().is_some_and(|(late, ran)| late >= LATE && ran < late / 2)
}

/// Of whom the line tells that it is suspected, and its silence in ms:
/// "node 1 (incarnation 3) is suspected to be dead, silent for 751 ms".
fn suspicion(line: &str) -> Option<(Life, u64)> {
    let (_, rest) = line.split_once("ccache: node ")?;
    let (slot, rest) = rest.split_once(" (incarnation ")?;
    let (incarnation, rest) = rest.split_once(") is suspected to be dead, silent for ")?;
    let silent = rest.split_once(" ms")?.0.parse().ok()?;
    Some(((slot.parse().ok()?, incarnation.parse().ok()?), silent))
}

/// The sum of a metric over all nodes' ccaches; 0 where it was never counted.
fn metric(text: &str, name: &str) -> u64 {
    text.lines()
        .filter(|l| l.starts_with(name) && l.contains("pd=\"ccache\""))
        .filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// The writes of the nodes that run now, or `before` if those are more: a restarted node counts anew, and
/// one that ends just now does not answer.
fn cluster_writes(cluster: &Cluster, before: u64) -> Result<u64> {
    let text = cluster.cli(["metrics"])?.text();
    Ok(before.max(metric(&text, "clustix_engine_writes_total")))
}

/// What each node does: one that computes, one that writes, one that reads what the others write.
fn jobs(cluster: &Cluster, k: u8) -> Result<Vec<Program>> {
    [
        "while :; do seq 2000 | gzip -c | gunzip -c | sha256sum > /dev/null; done".to_owned(),
        format!("while :; do seq 3000 > /new{k} && mv /new{k} /of{k}; done"),
        format!("while :; do cat /of{} > /dev/null 2>&1; done", (k + 1) % NODES),
    ]
    .into_iter()
    .map(|script| Program::start(cluster.sh_command(Some(k), &script), b""))
    .collect()
}

/// Whether every node is a member; who was evicted does not come back by itself.
fn whole(cluster: &Cluster) -> Result<bool> {
    Ok(cluster.cli(["status"])?.text().contains("3 of 3 nodes"))
}

/// Which nodes were evicted for a stall of their own, waiting for them to say so.
fn stalled(cluster: &Cluster, seen: &mut Seen) -> Result<Vec<u8>> {
    let until = Instant::now() + HEARD;
    loop {
        let mut found = Vec::new();
        for k in 0..NODES {
            if seen.read(cluster, k)? {
                found.push(k);
            }
        }
        // One that stands still yet has not said so.
        if !found.is_empty() && seen.unfounded() == 0 || Instant::now() >= until {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn lines_of_a_log() {
    let line = "12.3 INFO ccache: this node stood still: a timer was 812 ms late; it ran for";
    assert!(stall(&format!("{line} 3 ms since the last one")));
    assert!(!stall(&format!("{line} 700 ms since the last one")), "that is its own work");
    assert!(!stall(
        "this node stood still: a timer was 80 ms late; it ran for 0 ms since the last"
    ));
    let line = "ccache: node 1 (incarnation 3) is suspected to be dead, silent for 751 ms";
    assert_eq!(suspicion(line), Some(((1, 3), 751)));
    let mut seen = Seen::default();
    seen.suspicions.insert(((0, 1), (1, 3)), 2);
    seen.stalls.insert((1, 3), 1);
    seen.stalls.insert((1, 2), 5);
    assert_eq!(seen.unfounded(), 1);
    seen.ends.insert((2, 1));
    assert_eq!(seen.unfounded(), 2);
    seen.evicted.insert((2, 1));
    assert_eq!(seen.unfounded(), 1);
}

#[test]
fn a_busy_node_is_not_suspected() -> Result<()> {
    let all = std::env::var_os("CLUSTIX_TEST_ALL").is_some();
    let time = Duration::from_secs(if all { 3_600 } else { 180 });
    let cluster = Cluster::up(NODES)?;
    let mut work: Vec<Vec<Program>> =
        (0..NODES).map(|k| jobs(&cluster, k)).collect::<Result<_>>()?;
    let (mut lost, mut seen, mut writes) = (0, Seen::default(), 0);
    let begin = Instant::now();
    while begin.elapsed() < time {
        // Asking is work too.
        if !whole(&cluster)? {
            let stood_still = stalled(&cluster, &mut seen)?;
            let founded = !stood_still.is_empty() && seen.unfounded() == 0;
            ensure!(
                founded && lost < most_stalls(time),
                "after {} s, {lost} lost before: {}\n{}",
                begin.elapsed().as_secs(),
                cluster.cli(["status"])?.text(),
                cluster.cli(["logs"])?.text()
            );
            for k in stood_still {
                println!(
                    "suspicion: after {} s node {k} was lost to a stall",
                    begin.elapsed().as_secs()
                );
                lost += 1;
                // Its counters end with it.
                writes = cluster_writes(&cluster, writes)?;
                // It may be about to end.
                let until = Instant::now() + Duration::from_secs(30);
                while cluster.cli(["start-node", &k.to_string()])?.ok().is_err() {
                    ensure!(Instant::now() < until, "node {k} does not come back");
                }
                work[usize::from(k)] = jobs(&cluster, k)?;
            }
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    for k in 0..NODES {
        seen.read(&cluster, k)?;
    }
    let text = cluster.cli(["metrics"])?.text();
    let late = metric(&text, "clustix_timer_late_total");
    let counted = metric(&text, "clustix_suspicions_total");
    let writes = cluster_writes(&cluster, writes)?;
    let unfounded = seen.unfounded();
    println!(
        "suspicion: {NODES} nodes at full load for {} s: {unfounded} suspicions of a node that ran, {} writes or more; apart: {lost} nodes were lost to stalls of 0.7 s and more, {} suspicions had such a stall; timers of the last lives were late {late} times",
        begin.elapsed().as_secs(),
        writes,
        seen.suspicions.values().sum::<u64>(),
    );
    seen.lines.values().flatten().for_each(|l| println!("suspicion:   {l}"));
    ensure!(unfounded == 0, "{}", cluster.cli(["logs"])?.text());
    let logged = seen.lines.values().flatten().filter(|l| suspicion(l).is_some()).count() as u64;
    ensure!(counted <= logged, "{counted} suspicions were counted, {logged} logged");
    ensure!(writes > 0, "nothing was written: no load");
    cluster.cli(["down", "--discard"])?.ok().context("down")?;
    drop(work);
    Ok(())
}
