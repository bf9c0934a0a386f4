//! Nobody is suspected for being busy: all nodes work as hard as they can, and every one stays a member.
//! A node that stood still itself (its own timer was late: the machine did not run it) is another matter:
//! losing it is right. Such stalls are reported apart, and the node comes back. Each suspicion must have
//! such a stall of the suspected node's own, by that node's log.

use anyhow::{Context, Result, bail, ensure};
use clustix_tests::{Cluster, Program};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const NODES: u8 = 3;
/// A node is suspected after three leases of silence, or when its connection ends, ms.
const SILENCE: u64 = 750;
/// Of a silence so much may be no stall that the silent node tells of: a heartbeat is sent each 50 ms, looks
/// are 10 ms apart, and a timer late by less than a quarter of a lease is not told, ms.
const SLACK: u64 = 150;
/// A machine that stalls more often than this is none to test on.
const MAX_STALLS: u32 = 10;
/// Whoever was evicted has heard of it, and said so in its log, after this; also one that stands still yet.
const HEARD: Duration = Duration::from_secs(10);

/// A node's life: slot and incarnation.
type Life = (u8, u64);

/// A time in which the machine did not run a node, by that node's log, CLOCK_MONOTONIC, ms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stall {
    from: u64,
    to: u64,
}

impl Stall {
    /// "this node stood still: a timer was 812 ms late; it ran for 3 ms since the last one; at 5000 ms".
    /// One that was its own work is none.
    fn parse(line: &str) -> Option<Stall> {
        let (_, rest) = line.split_once("this node stood still: a timer was ")?;
        let (late, rest) = rest.split_once(" ms late; it ran for ")?;
        let (ran, rest) = rest.split_once(" ms since the last one; at ")?;
        let to: u64 = rest.split_once(" ms")?.0.parse().ok()?;
        let (late, ran) = (late.parse::<u64>().ok()?, ran.parse::<u64>().ok()?);
        (ran < late / 2).then_some(Stall { from: to.saturating_sub(late), to })
    }

    fn within(self, from: u64, to: u64) -> u64 {
        self.to.min(to).saturating_sub(self.from.max(from))
    }
}

/// That a node suspected another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Suspicion {
    of: Life,
    silent: u64,
    at: u64,
}

impl Suspicion {
    /// "node 1 (incarnation 3) is suspected to be dead, silent for 751 ms; at 5000 ms".
    fn parse(line: &str) -> Option<Suspicion> {
        let (_, rest) = line.split_once("ccache: node ")?;
        let (slot, rest) = rest.split_once(" (incarnation ")?;
        let (incarnation, rest) = rest.split_once(") is suspected to be dead, silent for ")?;
        let (silent, rest) = rest.split_once(" ms; at ")?;
        Some(Suspicion {
            of: (slot.parse().ok()?, incarnation.parse().ok()?),
            silent: silent.parse().ok()?,
            at: rest.split_once(" ms")?.0.parse().ok()?,
        })
    }

    /// Whether it was for silence, not for the end of the connection.
    fn of_silence(self) -> bool {
        self.silent >= SILENCE
    }
}

/// What the logs say of all lives, those whose folder is gone included.
#[derive(Default)]
struct Seen {
    stalls: BTreeMap<Life, Vec<Stall>>,
    /// By who suspected.
    suspicions: BTreeMap<Life, Vec<Suspicion>>,
    /// Who was evicted, by their own logs.
    evicted: BTreeSet<Life>,
    lines: BTreeMap<Life, Vec<String>>,
}

impl Seen {
    /// Takes in the log of node `k`, as it is now; whose life it tells, once there was a view.
    fn read(&mut self, cluster: &Cluster, k: u8) -> Result<Option<Life>> {
        let log = cluster.cli(["logs", "--node", &k.to_string()])?.text();
        // view 1: [(0, 1), (1, 1), (2, 1)], …
        let incarnation = log.lines().filter(|l| l.contains("ccache: view ")).find_map(|l| {
            let (_, rest) = l.split_once(&format!("({k}, "))?;
            rest.split_once(')')?.0.parse().ok()
        });
        let Some(incarnation) = incarnation else { return Ok(None) };
        let life = (k, incarnation);
        let is_telling = |l: &&str| Stall::parse(l).is_some() || Suspicion::parse(l).is_some();
        self.stalls.insert(life, log.lines().filter_map(Stall::parse).collect());
        self.suspicions.insert(life, log.lines().filter_map(Suspicion::parse).collect());
        self.lines.insert(life, log.lines().filter(is_telling).map(str::to_owned).collect());
        let evicted = format!("ccache: node {k} (incarnation {incarnation}) was evicted: view");
        if log.contains(&evicted) {
            self.evicted.insert(life);
        }
        Ok(Some(life))
    }

    /// Whether the suspected node stood still in that time.
    fn is_founded(&self, s: &Suspicion) -> bool {
        let stalls = self.stalls.get(&s.of).into_iter().flatten();
        let still: u64 = stalls.map(|i| i.within(s.at.saturating_sub(s.silent), s.at)).sum();
        still + SLACK >= s.silent
    }

    /// Suspicions of silence in which the suspected node did not stand still, evictions without one in which
    /// it did, and ends of connections of nodes that were not evicted.
    fn unfounded(&self) -> usize {
        let (silences, ends): (Vec<_>, Vec<_>) =
            self.suspicions.values().flatten().partition(|s| s.of_silence());
        let (founded, wrong): (Vec<_>, Vec<_>) =
            silences.into_iter().partition(|s| self.is_founded(s));
        let rightly = founded.iter().map(|s| s.of).collect::<BTreeSet<_>>();
        let ended = ends.iter().map(|s| s.of).collect::<BTreeSet<_>>();
        wrong.len()
            + self.evicted.difference(&rightly).count()
            + ended.difference(&self.evicted).count()
    }

    /// Reads all logs until all that they tell is founded, at most for [`HEARD`]; the lives that they tell.
    fn settle(&mut self, cluster: &Cluster) -> Result<Vec<Life>> {
        let until = Instant::now() + HEARD;
        loop {
            let mut lives = Vec::new();
            for k in 0..NODES {
                lives.extend(self.read(cluster, k)?);
            }
            if self.unfounded() == 0 || Instant::now() >= until {
                return Ok(lives);
            }
            // A log has no event to wait for.
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The sum of a metric over the ccaches of `nodes`; 0 where it was never counted.
fn metric(text: &str, name: &str, nodes: std::ops::Range<u8>) -> u64 {
    nodes
        .flat_map(|k| {
            let of = format!("node=\"{k}\"");
            text.lines().filter(move |l| {
                l.starts_with(name) && l.contains("pd=\"ccache\"") && l.contains(&of)
            })
        })
        .filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// The writes of the nodes that run now, or `before` if those are more: a restarted node counts anew, and
/// one that ends just now does not answer.
fn cluster_writes(cluster: &Cluster, before: u64) -> Result<u64> {
    let text = cluster.cli(["metrics"])?.text();
    Ok(before.max(metric(&text, "clustix_engine_writes_total", 0..NODES)))
}

/// The counters of all nodes, once all answer.
fn counters(cluster: &Cluster) -> Result<String> {
    let until = Instant::now() + HEARD;
    loop {
        let out = cluster.cli(["metrics"])?;
        if out.status == 0 && (0..NODES).all(|k| out.text().contains(&format!("node=\"{k}\""))) {
            return Ok(out.text());
        }
        ensure!(Instant::now() < until, "no counters: {}{}", out.errors(), out.text());
    }
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

#[test]
fn what_the_logs_tell() {
    let told = |late: u64, ran: u64, at: u64| {
        Stall::parse(&format!(
            "node 0: ccache: this node stood still: a timer was {late} ms late; it ran for {ran} ms since the last one; at {at} ms"
        ))
    };
    assert_eq!(told(812, 3, 5000), Some(Stall { from: 4188, to: 5000 }));
    assert_eq!(told(812, 700, 5000), None, "that is its own work");
    let line = "node 2: ccache: node 1 (incarnation 3) is suspected to be dead, silent for 751 ms; at 5000 ms";
    let suspected = Suspicion::parse(line).unwrap();
    assert_eq!(suspected, Suspicion { of: (1, 3), silent: 751, at: 5000 });

    let stall = |from, to| Stall { from, to };
    let with = |stalls: &[Stall], suspicions: &[Suspicion], evicted: &[Life]| Seen {
        stalls: BTreeMap::from([((1, 3), stalls.to_vec())]),
        suspicions: BTreeMap::from([((0, 1), suspicions.to_vec())]),
        evicted: evicted.iter().copied().collect(),
        lines: BTreeMap::new(),
    };
    // It may stand still yet when it is suspected, and more than once before.
    assert_eq!(with(&[stall(4300, 5600)], &[suspected], &[(1, 3)]).unfounded(), 0);
    assert_eq!(with(&[stall(4260, 4600), stall(4650, 5000)], &[suspected], &[]).unfounded(), 0);
    // Another time's stall does not count, nor another life's, nor a short one.
    assert_eq!(with(&[stall(1000, 4000)], &[suspected], &[]).unfounded(), 1);
    assert_eq!(with(&[stall(4600, 5000)], &[suspected], &[]).unfounded(), 1);
    assert_eq!(
        with(&[stall(4300, 5600)], &[Suspicion { of: (1, 2), ..suspected }], &[]).unfounded(),
        1
    );
    // An end is right for who was evicted, and that only for a stall.
    let end = Suspicion { silent: 40, at: 5700, ..suspected };
    assert_eq!(with(&[stall(4300, 5600)], &[suspected, end], &[(1, 3)]).unfounded(), 0);
    assert_eq!(with(&[stall(4300, 5600)], &[suspected, end], &[]).unfounded(), 1);
    assert_eq!(with(&[stall(4300, 5600)], &[end], &[(1, 3)]).unfounded(), 1);
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
            let until = Instant::now() + HEARD;
            let gone = loop {
                let lives = seen.settle(&cluster)?;
                let gone: Vec<_> = lives.into_iter().filter(|l| seen.evicted.contains(l)).collect();
                if !gone.is_empty() || seen.unfounded() > 0 || Instant::now() >= until {
                    break gone;
                }
            };
            ensure!(
                !gone.is_empty() && seen.unfounded() == 0 && lost < MAX_STALLS,
                "after {} s, {lost} lost before: {}\n{}",
                begin.elapsed().as_secs(),
                cluster.cli(["status"])?.text(),
                cluster.cli(["logs"])?.text()
            );
            for (k, _) in gone {
                println!(
                    "suspicion: after {} s node {k} was lost to a stall",
                    begin.elapsed().as_secs()
                );
                lost += 1;
                // Its counters end with it.
                writes = cluster_writes(&cluster, writes)?;
                // It may be about to end.
                let until = Instant::now() + Duration::from_secs(30);
                while let Err(e) = cluster.cli(["start-node", &k.to_string()])?.ok() {
                    if Instant::now() >= until {
                        bail!("node {k} does not come back: {e}");
                    }
                }
                work[usize::from(k)] = jobs(&cluster, k)?;
            }
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    let text = counters(&cluster)?;
    // After the counters, so that what they count has been logged.
    let lives = seen.settle(&cluster)?;
    ensure!(lives.len() == usize::from(NODES), "logs of {lives:?} only");
    let late = metric(&text, "clustix_timer_late_total", 0..NODES);
    let writes = writes.max(metric(&text, "clustix_engine_writes_total", 0..NODES));
    let unfounded = seen.unfounded();
    let suspicions: Vec<_> = seen.suspicions.values().flatten().collect();
    println!(
        "suspicion: {NODES} nodes at full load for {} s: {unfounded} suspicions of a node that ran, {writes} writes or more; apart: {lost} nodes were lost to stalls, {} suspicions of silence came in a stall of the suspected node's, {} of a connection's end; timers of the last lives were late {late} times",
        begin.elapsed().as_secs(),
        suspicions.iter().filter(|s| s.of_silence() && seen.is_founded(s)).count(),
        suspicions.iter().filter(|s| !s.of_silence()).count(),
    );
    seen.lines.values().flatten().filter(|l| l.contains("suspected")).for_each(|l| {
        println!("suspicion:   {l}");
    });
    ensure!(unfounded == 0, "{}", cluster.cli(["logs"])?.text());
    for (k, incarnation) in lives {
        let counted = metric(&text, "clustix_suspicions_total", k..k + 1);
        let logged = seen.suspicions[&(k, incarnation)].len() as u64;
        ensure!(counted <= logged, "node {k} counted {counted} suspicions and logged {logged}");
    }
    ensure!(writes > 0, "nothing was written: no load");
    cluster.cli(["down", "--discard"])?.ok().context("down")?;
    drop(work);
    Ok(())
}
