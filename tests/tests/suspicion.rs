//! Nobody is suspected for being busy: all nodes work as hard as they can, and every one stays a member.

use anyhow::{Context, Result, ensure};
use clustix_tests::{Cluster, Program};
use std::time::{Duration, Instant};

const NODES: u8 = 3;

/// The sum of a metric over all nodes' ccaches; 0 where it was never counted.
fn metric(text: &str, name: &str) -> u64 {
    text.lines()
        .filter(|l| l.starts_with(name) && l.contains("pd=\"ccache\""))
        .filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[test]
fn a_busy_node_is_not_suspected() -> Result<()> {
    let all = std::env::var_os("CLUSTIX_TEST_ALL").is_some();
    let time = Duration::from_secs(if all { 3_600 } else { 180 });
    let cluster = Cluster::up(NODES)?;
    // On each node one that computes, one that writes, one that reads what the others write.
    let jobs: Vec<Program> = (0..NODES)
        .flat_map(|k| {
            [
                "while :; do seq 2000 | gzip -c | gunzip -c | sha256sum > /dev/null; done"
                    .to_owned(),
                format!("while :; do seq 3000 > /new{k} && mv /new{k} /of{k}; done"),
                format!("while :; do cat /of{} > /dev/null 2>&1; done", (k + 1) % NODES),
            ]
            .map(|script| Program::start(cluster.sh_command(Some(k), &script), b""))
        })
        .collect::<Result<_>>()?;
    let begin = Instant::now();
    while begin.elapsed() < time {
        // Asking is work too.
        let status = cluster.cli(["status"])?;
        ensure!(
            status.text().contains("3 of 3 nodes, view 1\n"),
            "after {} s: {}{}\n{}",
            begin.elapsed().as_secs(),
            status.text(),
            status.errors(),
            cluster.cli(["logs"])?.text()
        );
        std::thread::sleep(Duration::from_millis(500));
    }
    let text = cluster.cli(["metrics"])?.ok()?.text();
    let (suspicions, late) =
        (metric(&text, "clustix_suspicions_total"), metric(&text, "clustix_timer_late_total"));
    let writes = metric(&text, "clustix_engine_writes_total");
    println!(
        "suspicion: {NODES} nodes at full load for {} s: {suspicions} suspicions, {writes} writes; members' own timers were late {late} times",
        begin.elapsed().as_secs()
    );
    ensure!(suspicions == 0, "{}", cluster.cli(["logs"])?.text());
    ensure!(writes > 0, "nothing was written: no load");
    cluster.cli(["down", "--discard"])?.ok().context("down")?;
    drop(jobs);
    Ok(())
}
