//! A random node killed and started again, round after round, under two writers. The oracle is here on
//! the host: a file counts as acknowledged when the writer's line about it has come out.

use anyhow::{Context, Result, bail, ensure};
use clustix_tests::random::Random;
use clustix_tests::{Cluster, Program, leftover};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

const NODES: u8 = 3;
/// A lease and the bound on the clocks' drift.
const LEASE_OVER_MS: f64 = 255.0;

/// A writer: makes files one after the other, says each one's number once it is written.
struct Writer {
    name: &'static str,
    cluster: Arc<Cluster>,
    /// Acknowledged: number → node that acknowledged it.
    done: Mutex<BTreeMap<u64, u8>>,
    /// Rung at each.
    more: Condvar,
    /// Next number nobody has used.
    next: AtomicU64,
    node: AtomicU64,
    stop: AtomicBool,
    lost: AtomicU64,
}

/// Contents of file `n`: what a reader must find.
fn contents(name: &str, n: u64) -> String {
    format!("{name} wrote {n}; {}", "x".repeat((n % 977) as usize))
}

impl Writer {
    /// Writes on some live node until it is told to stop; goes on elsewhere when that node dies.
    fn run(&self, mut random: Random) -> Result<()> {
        while !self.stop.load(Ordering::Acquire) {
            let node = random.below(NODES.into()) as u8;
            let from = self.next.load(Ordering::Acquire);
            // Written under another name first: a file whose line was not seen may be half there,
            // one whose line was seen is whole.
            let script = format!(
                "n={from}; pad=$(cat /pad); while :; do \
                 k=$((n % 977)); printf '%s wrote %s; %.*s' {name} $n $k \"$pad\" > /{name}/.new && \
                 mv /{name}/.new /{name}/$n && echo $n || exit 1; n=$((n+1)); done",
                name = self.name
            );
            let mut command = self.cluster.sh_command(Some(node), &script);
            let mut child = command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            let out = child.stdout.take().context("a pipe")?;
            self.node.store(node.into(), Ordering::Release);
            for line in BufReader::new(out).lines() {
                let Ok(n) = line?.parse::<u64>() else { bail!("{}: not a number", self.name) };
                self.done.lock().unwrap().insert(n, node);
                self.more.notify_all();
                self.next.store(n + 1, Ordering::Release);
                if self.stop.load(Ordering::Acquire) {
                    break;
                }
            }
            self.node.store(u64::MAX, Ordering::Release);
            if self.stop.load(Ordering::Acquire) {
                let _ = child.kill();
            }
            let out = child.wait_with_output()?;
            if out.status.code() == Some(137) {
                self.lost.fetch_add(1, Ordering::AcqRel);
            }
            // The file under way when the node died may or may not be there: its number is not used
            // again, so that it cannot be mistaken for the next writer's.
            self.next.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }

    fn count(&self) -> usize {
        self.done.lock().unwrap().len()
    }
}

/// Waits until all nodes are up and any can be lost. A node that was suspected though it lived (this
/// machine may be busy with other things) has left the cluster: it is started again and counted.
fn whole(cluster: &Cluster, evicted: &mut u64) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(90);
    loop {
        let nodes = cluster.json(["nodes"])?;
        let mut started = false;
        for node in nodes.as_array().into_iter().flatten().filter(|n| n["state"] == "down") {
            *evicted += 1;
            cluster.cli(["start-node", &node["node"].to_string()])?.ok()?;
            started = true;
        }
        let status = cluster.cli(["status"])?;
        if !started && status.status == 0 {
            return Ok(());
        }
        if Instant::now() > until {
            let logs = cluster.cli(["logs"])?.text();
            let last: Vec<&str> = logs.lines().rev().take(60).collect();
            bail!(
                "the cluster does not become whole: {nodes}; {}{}; logs, latest first:\n{}",
                status.text(),
                status.errors(),
                last.join("\n")
            );
        }
    }
}

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
    writers: &[Arc<Writer>],
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
        whole(cluster, &mut r.evicted).with_context(|| format!("round {round}"))?;
        // The kill must meet writers at work: wait for one more file of each.
        for w in writers {
            let seen = w.count();
            let until = Instant::now() + Duration::from_secs(30);
            let mut done = w.done.lock().unwrap();
            while done.len() == seen {
                let left = until.saturating_duration_since(Instant::now());
                ensure!(!left.is_zero(), "round {round}: {} does not go on", w.name);
                done = w.more.wait_timeout(done, left).unwrap().0;
            }
        }
        std::thread::sleep(Duration::from_millis(random.below(50)));
        let victim = random.below(NODES.into()) as u8;
        let there =
            writers.iter().filter(|w| w.node.load(Ordering::Acquire) == u64::from(victim)).count();
        if there > 0 {
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
        whole(cluster, &mut r.evicted).with_context(|| format!("round {round}"))?;
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
    cluster
        .sh(
            None,
            "mkdir /w1 /w2; i=0; while [ $i -lt 1000 ]; do printf x; i=$((i+1)); done > /pad",
        )?
        .ok()?;
    let writers: Vec<Arc<Writer>> = ["w1", "w2"]
        .into_iter()
        .map(|name| {
            Arc::new(Writer {
                name,
                cluster: cluster.clone(),
                done: Mutex::default(),
                more: Condvar::new(),
                next: AtomicU64::new(1),
                node: AtomicU64::new(u64::MAX),
                stop: AtomicBool::new(false),
                lost: AtomicU64::new(0),
            })
        })
        .collect();
    let threads: Vec<_> = writers
        .iter()
        .map(|w| {
            let (w, seed) = (w.clone(), Random::clone(&random));
            let mut seed = seed;
            for _ in 0..w.name.len() + usize::from(w.name == "w2") {
                seed.number();
            }
            std::thread::spawn(move || w.run(seed))
        })
        .collect();
    let rounds_went = kill_rounds(&cluster, &writers, &mut random, rounds);
    // Also after a failure: who writes on holds the cluster, which would not be taken down.
    for w in &writers {
        w.stop.store(true, Ordering::Release);
    }
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??;
    }
    let Rounds { mut served, mut rebuilt, under_way, idle, evicted, parts } = rounds_went?;
    // Every acknowledged file, from a node of its own, against the oracle.
    let back = tempfile::tempdir()?;
    let mut checked = 0;
    for w in &writers {
        let to = back.path().join(w.name);
        let dir = format!("/{}", w.name);
        cluster.cli(["export", &dir, to.to_str().context("path")?])?.ok()?;
        for (n, node) in w.done.lock().unwrap().iter() {
            let found = std::fs::read(to.join(n.to_string()))
                .with_context(|| format!("{dir}/{n}, acknowledged on node {node}, is lost"))?;
            ensure!(
                found == contents(w.name, *n).into_bytes(),
                "{dir}/{n}, acknowledged on node {node}, is damaged: {:?}",
                String::from_utf8_lossy(&found)
            );
            checked += 1;
        }
    }
    ensure!(served.len() == rounds, "only {} rounds of {rounds}", served.len());
    ensure!(under_way > 0, "no kill met a writer on its node");
    served.sort_unstable();
    rebuilt.sort_unstable();
    println!(
        "failover: {rounds} rounds, {under_way} with a writer on the victim ({idle} with none), {} programs lost with their node",
        writers.iter().map(|w| w.lost.load(Ordering::Acquire)).sum::<u64>()
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
