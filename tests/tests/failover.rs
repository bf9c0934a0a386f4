//! A random node killed and started again, round after round, under two writers. The oracle is here on
//! the host: a file counts as acknowledged when the writer's line about it has come out.

use anyhow::{Context, Result, ensure};
use clustix_tests::random::Random;
use clustix_tests::writer::Writers;
use clustix_tests::{Cluster, Program, leftover};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const NODES: u8 = 3;
/// A lease and the bound on the clocks' drift.
const LEASE_OVER_MS: f64 = 255.0;

/// What the rounds gave, times in ms.
#[derive(Default)]
struct Rounds {
    /// From each kill to the first request served.
    served: Vec<u128>,
    /// From each start to all copies rebuilt.
    rebuilt: Vec<u128>,
    /// Kills that met a writer on the node, and that met none.
    under_way: u64,
    idle: u64,
    /// Live nodes that were suspected.
    evicted: u64,
    /// Of each takeover, by what survivors' ccaches said of it: its parts, ms.
    parts: BTreeMap<String, Vec<f64>>,
}

/// Takes the parts of the latest takeover from the survivors' logs.
fn parts(cluster: &Cluster, into: &mut BTreeMap<String, Vec<f64>>) -> Result<()> {
    let logs = cluster.cli(["logs"])?.ok()?.text();
    let view = |l: &str| l.rsplit_once("view ").and_then(|(_, v)| v.parse::<u64>().ok());
    let all = logs.lines().filter_map(|l| l.split_once(" serves; ms: "));
    let Some((_, said)) = all.max_by_key(|(l, _)| view(l)) else { return Ok(()) };
    for part in said.split(", ") {
        let (name, ms) = part.split_once(' ').context("a part")?;
        into.entry(name.to_owned()).or_default().push(ms.parse()?);
    }
    Ok(())
}

fn kill_rounds(
    cluster: &Cluster,
    writers: &Writers,
    random: &mut Random,
    rounds: usize,
) -> Result<Rounds> {
    let mut r = Rounds::default();
    let mut round = 0;
    // A victim that was evicted by mistake before it could be killed makes no round.
    for _ in 0..2 * rounds {
        if r.served.len() == rounds {
            break;
        }
        cluster.whole(&mut r.evicted).with_context(|| format!("round {round}"))?;
        // The kill must meet writers at work: wait for one more file of each.
        writers.more(Duration::from_secs(30)).with_context(|| format!("round {round}"))?;
        std::thread::sleep(Duration::from_millis(random.below(50)));
        let victim = random.below(NODES.into()) as u8;
        if writers.on(victim) > 0 {
            r.under_way += 1
        } else {
            r.idle += 1
        }
        let killed = Instant::now();
        let kill = cluster.cli(["kill-node", &victim.to_string()])?;
        if kill.errors().contains("is down") {
            // It was suspected, though it lived, since the round began.
            continue;
        }
        kill.ok()?;
        let script = format!("echo {round} > /served; cat /served");
        let out = Program::start(cluster.sh_command(None, &script), b"")?.end()?.ok()?;
        ensure!(out.text().trim() == round.to_string(), "{out:?}");
        r.served.push(killed.elapsed().as_millis());
        parts(cluster, &mut r.parts)?;
        let started = Instant::now();
        cluster.cli(["start-node", &victim.to_string()])?.ok()?;
        cluster.whole(&mut r.evicted).with_context(|| format!("round {round}"))?;
        r.rebuilt.push(started.elapsed().as_millis());
        round += 1;
    }
    Ok(r)
}

#[test]
fn no_acknowledged_file_is_lost() -> Result<()> {
    let mut random = Random::seeded("failover");
    let rounds = if std::env::var_os("CLUSTIX_TEST_ALL").is_some() { 200 } else { 20 };
    let cluster = Arc::new(Cluster::up(NODES)?);
    let writers = Writers::start(&cluster, NODES, &mut random)?;
    let rounds_went = kill_rounds(&cluster, &writers, &mut random, rounds);
    // Also after a failure: who writes on holds the cluster, which would not be taken down.
    let written = writers.stop()?;
    let Rounds { mut served, mut rebuilt, under_way, idle, evicted, parts } = rounds_went?;
    let checked = written.check(&cluster)?;
    ensure!(served.len() == rounds, "only {} rounds of {rounds}", served.len());
    ensure!(under_way > 0, "no kill met a writer on its node");
    served.sort_unstable();
    rebuilt.sort_unstable();
    println!(
        "failover: {rounds} rounds, {under_way} with a writer on the victim ({idle} with none), {} programs lost with their node",
        written.lost()
    );
    println!(
        "failover: {checked} acknowledged files, none lost; {evicted} live nodes were suspected and started again"
    );
    let medians: Vec<String> = ["silent", "view", "revoke", "lease", "records", "resolve"]
        .into_iter()
        .filter_map(|name| {
            let mut ms = parts.get(name)?.clone();
            ms.sort_by(f64::total_cmp);
            Some(format!("{name} {:.1} (worst {:.1})", ms.get(ms.len() / 2)?, ms.last()?))
        })
        .collect();
    println!("failover: parts of a takeover, medians in ms: {}", medians.join(", "));
    // Whoever is known to have ended renews no more: the wait counts from then, not from the view.
    let shorter = parts.get("lease").is_some_and(|ms| ms.iter().any(|ms| *ms < LEASE_OVER_MS));
    ensure!(
        shorter,
        "every takeover waited a whole lease from its view on: {:?}",
        parts.get("lease")
    );
    println!(
        "failover: kill to first served request: median {} ms, worst {} ms; start to all copies rebuilt: median {} ms, worst {} ms",
        served[served.len() / 2],
        served[served.len() - 1],
        rebuilt[rebuilt.len() / 2],
        rebuilt[rebuilt.len() - 1]
    );
    cluster.cli(["down"])?.ok()?;
    leftover::none(cluster.state())
}
