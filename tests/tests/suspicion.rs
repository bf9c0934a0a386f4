//! Nobody is suspected for being busy: all nodes work as hard as they can, and every one stays a member.
//! A node that stood still itself (its own timer was late: the machine did not run it) is another matter:
//! losing it is right. Such stalls are reported apart, and the node comes back.

use anyhow::{Context, Result, ensure};
use clustix_tests::{Cluster, Program};
use std::time::{Duration, Instant};

const NODES: u8 = 3;
/// A node is suspected after three leases of silence, ms.
const LATE: u64 = 700;
/// A machine that stalls more often than this is none to test on.
const MAX_STALLS: u32 = 10;
/// Whoever was evicted has heard of it, and said so in its log, after this.
const HEARD: Duration = Duration::from_secs(10);

/// The sum of a metric over all nodes' ccaches; 0 where it was never counted.
fn metric(text: &str, name: &str) -> u64 {
    text.lines()
        .filter(|l| l.starts_with(name) && l.contains("pd=\"ccache\""))
        .filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
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

/// Which nodes of those that are not members any more stood still for longer than `LATE`, by their own logs.
fn stalled(cluster: &Cluster) -> Result<Vec<u8>> {
    let mut found = Vec::new();
    for k in 0..NODES {
        let log = cluster.cli(["logs", "--node", &k.to_string()])?.text();
        let late = log.lines().filter_map(|l| {
            let (_, ms) = l.split_once("this node stood still: a timer was ")?;
            ms.split_once(" ms")?.0.parse::<u64>().ok()
        });
        let evicted = log.lines().any(|l| l.contains("was evicted"));
        if evicted && late.max().is_some_and(|ms| ms >= LATE) {
            found.push(k);
        }
    }
    Ok(found)
}

#[test]
fn a_busy_node_is_not_suspected() -> Result<()> {
    let all = std::env::var_os("CLUSTIX_TEST_ALL").is_some();
    let time = Duration::from_secs(if all { 3_600 } else { 180 });
    let cluster = Cluster::up(NODES)?;
    let mut work: Vec<Vec<Program>> =
        (0..NODES).map(|k| jobs(&cluster, k)).collect::<Result<_>>()?;
    let (mut stalls, mut excused) = (0, 0);
    let begin = Instant::now();
    while begin.elapsed() < time {
        // Asking is work too.
        if !whole(&cluster)? {
            let until = Instant::now() + HEARD;
            let mut stood_still = stalled(&cluster)?;
            while stood_still.is_empty() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(100));
                stood_still = stalled(&cluster)?;
            }
            ensure!(
                !stood_still.is_empty() && stalls < MAX_STALLS,
                "after {} s: {}\n{}",
                begin.elapsed().as_secs(),
                cluster.cli(["status"])?.text(),
                cluster.cli(["logs"])?.text()
            );
            for k in stood_still {
                let log = cluster.cli(["logs", "--node", &k.to_string()])?.text();
                let why = log.lines().rfind(|l| l.contains("stood still"));
                println!("suspicion: after {} s: {}", begin.elapsed().as_secs(), why.unwrap_or(""));
                stalls += 1;
                // It may be about to end.
                let until = Instant::now() + Duration::from_secs(30);
                while cluster.cli(["start-node", &k.to_string()])?.ok().is_err() {
                    ensure!(Instant::now() < until, "node {k} does not come back");
                }
                work[usize::from(k)] = jobs(&cluster, k)?;
            }
            excused = metric(&cluster.cli(["metrics"])?.ok()?.text(), "clustix_suspicions_total");
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    let text = cluster.cli(["metrics"])?.ok()?.text();
    let (suspicions, late) =
        (metric(&text, "clustix_suspicions_total"), metric(&text, "clustix_timer_late_total"));
    let writes = metric(&text, "clustix_engine_writes_total");
    let suspicions = suspicions.saturating_sub(excused);
    println!(
        "suspicion: {NODES} nodes at full load for {} s: {suspicions} suspicions, {writes} writes; apart: members' own timers were late {late} times, {stalls} nodes were lost to that",
        begin.elapsed().as_secs()
    );
    ensure!(suspicions == 0, "{}", cluster.cli(["logs"])?.text());
    ensure!(writes > 0, "nothing was written: no load");
    cluster.cli(["down", "--discard"])?.ok().context("down")?;
    drop(work);
    Ok(())
}
