//! `cargo xtask bench cache`: the cluster-cache beside what it is held against, measured in turn in
//! the same run. "missed" is a finding, not a failure: this never fails because of time.

use crate::bench::median;
use crate::rivals::{Etcd, Load, Redis, load};
use crate::setup;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Interleaved runs.
const RUNS: usize = 5;
/// Parts of each, as the example has them.
const PARTS: usize = 10;
/// Beyond this multiple of its fastest tenth a round was disturbed, and with it what it stands beside.
const DISTURBED: f64 = 1.15;
/// Clients at once beside Redis and etcd.
const CLIENTS: [usize; 2] = [1, 16];

/// Figures by name, one value per run.
type Figures = BTreeMap<String, Vec<f64>>;

/// A line of the table.
struct Row {
    what: &'static str,
    cost: &'static str,
    reference: &'static str,
    /// The ratio that is wanted; `None` where there is only something to compare with.
    bar: Option<f64>,
}

/// Measured by the example itself, between the parts of each figure.
const ROUND: &str = "round";

const fn row(
    what: &'static str,
    cost: &'static str,
    reference: &'static str,
    bar: Option<f64>,
) -> Row {
    Row { what, cost, reference, bar }
}

const ROWS: &[Row] = &[
    row("hit of 256 B, 1 thread", "1 hit", "1 map", Some(1.0)),
    row("  beside a map that hashes with xxh3", "1 hit", "1 map, xxh3", None),
    row("hit of 256 B, 2 threads", "2 hit", "2 map", Some(1.0)),
    row("  beside a map that hashes with xxh3", "2 hit", "2 map, xxh3", None),
    row("put of 256 B, 3 copies, ccache's interface", "put 256", ROUND, Some(0.5)),
    row("  its word kept", "put kept 256", ROUND, Some(0.5)),
    row("  shared by another node", "put shared 256", ROUND, None),
    row("transaction of 3, ccache's interface", "transaction of 3 256", ROUND, None),
    row("put from a server's domain", "server put at home", ROUND, Some(1.7)),
    row("  its word kept", "server put kept at home", ROUND, Some(1.7)),
    row("  primary on another node", "server put away", ROUND, Some(1.7)),
    row("  one processor for both", "same put at home", ROUND, None),
    row("  a domain that moves at will", "any put at home", ROUND, None),
    row("  two processors", "apart put at home", ROUND, None),
    row("transaction of 3 primaries, from a server", "server transaction of 3", ROUND, Some(3.0)),
    row("  its words kept", "server transaction of 3 kept", ROUND, Some(3.0)),
    row("  one processor for both", "same transaction of 3", ROUND, None),
];

fn add(figures: &mut Figures, name: String, value: f64) {
    figures.entry(name).or_default().push(value);
}

/// Runs the example once; its figures, with `prefix` before their names.
fn cost(program: &Path, arguments: &[&str], prefix: &str, figures: &mut Figures) -> Result<()> {
    let out = Command::new(program).args(arguments).output()?;
    if !out.status.success() {
        bail!("cost {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
    for line in String::from_utf8(out.stdout)?.lines() {
        let (name, value) = line.split_once('\t').context("not a figure")?;
        add(figures, format!("{prefix}{name}"), value.parse()?);
    }
    Ok(())
}

fn of(figures: &Figures, name: &str) -> Result<f64> {
    let values = figures.get(name).with_context(|| format!("no figure {name:?}"))?;
    Ok(median(&mut values.clone()))
}

/// A figure and its rounds, medians over the parts whose rounds took `bound` ns at most; and how many those are.
fn undisturbed(figures: &Figures, name: &str, bound: f64) -> Result<(f64, f64, String)> {
    let values = |name: &str| figures.get(name).with_context(|| format!("no figure {name:?}"));
    let (costs, rounds) = (values(name)?, values(&format!("{name} {ROUND}"))?);
    let all = costs.len();
    let (mut costs, mut rounds): (Vec<f64>, Vec<f64>) =
        costs.iter().zip(rounds).filter(|(_, round)| **round <= bound).unzip();
    if costs.is_empty() {
        bail!("{name}: the machine was never undisturbed; measure again when it has less to do");
    }
    let parts = format!(" ({} of {all})", costs.len());
    Ok((median(&mut costs), median(&mut rounds), parts))
}

/// Measures and prints.
pub fn run() -> Result<()> {
    setup::packages()?;
    setup::rival_packages()?;
    setup::cargo(&["build", "--release", "--package", "clustix-ccache", "--example", "cost"])?;
    let program: PathBuf = setup::target().join("release/examples/cost");
    let work = setup::target().join("bench");
    std::fs::create_dir_all(&work)?;
    let posix = work.join("posix");
    setup::compile_c(&setup::workspace().join("xtask/bench/posix.c"), &posix)?;

    println!("medians of {RUNS} interleaved runs; a round is a futex ping-pong on one processor,");
    println!(
        "measured before and after each of the {PARTS} parts of a run; parts beside which it took"
    );
    println!(
        "over {DISTURBED} times its fastest tenth are left out: others had the core then (parts left)"
    );
    let round = posix.to_str().context("the path of target/")?;
    let mut figures = Figures::new();
    for _ in 0..RUNS {
        cost(&program, &["operations", "3", round], "", &mut figures)?;
        for placement in ["server", "any", "same", "apart"] {
            cost(&program, &["domain", placement, round], &format!("{placement} "), &mut figures)?;
        }
        for threads in ["1", "2"] {
            cost(&program, &["hits", threads], &format!("{threads} "), &mut figures)?;
        }
    }
    let mut rounds: Vec<f64> =
        figures.iter().filter(|(n, _)| n.ends_with(ROUND)).flat_map(|(_, v)| v).copied().collect();
    rounds.sort_unstable_by(f64::total_cmp);
    let bound = DISTURBED * rounds.get(rounds.len() / 10).context("no round was measured")?;
    println!("{:44} {:>9} {:>11} {:>6} {:>5}", "over shm", "cost", "reference", "ratio", "bar");
    for row in ROWS {
        let (cost, reference, parts) = if row.reference == ROUND {
            undisturbed(&figures, row.cost, bound)?
        } else {
            (of(&figures, row.cost)?, of(&figures, row.reference)?, String::new())
        };
        let ratio = cost / reference;
        print!("{:44} {cost:6.0} ns {reference:8.0} ns {ratio:6.2}", row.what);
        match row.bar {
            Some(bar) if ratio < bar => println!(" {bar:5.1} met{parts}"),
            Some(bar) => println!(" {bar:5.1} missed{parts}"),
            None => println!("{:6}{parts}", ""),
        }
    }
    beside_rivals(&program)?;
    by_nodes(&program)
}

/// Redis and etcd do not run at the same time as each other or as a cluster of ours.
fn beside_rivals(program: &Path) -> Result<()> {
    println!();
    println!("three copies of 256 B on three nodes of this machine, clients at once");
    println!("  Clustix: nodes are threads of one process, and so are its clients, on their rings");
    println!("  Redis: a primary, two replicas; SET, then WAIT 2; nothing on disk");
    println!(
        "  etcd: three members; by HTTP/JSON to the leader, which is one step more than gRPC;"
    );
    println!("  its log in memory; reads linearizable");
    let mut all: BTreeMap<(usize, usize, &str), Vec<Load>> = BTreeMap::new();
    for _ in 0..RUNS {
        for clients in CLIENTS {
            let mut figures = Figures::new();
            cost(program, &["clients", &clients.to_string()], "", &mut figures)?;
            let ours = |what: &str| -> Result<Load> {
                let per_second = of(&figures, &format!("{what} per second"))?;
                Ok(Load { ns: of(&figures, what)?, per_second })
            };
            let redis = {
                let redis = Redis::start()?;
                load(clients, |n| redis.connect(n))?
            };
            let etcd = {
                let etcd = Etcd::start()?;
                load(clients, |n| etcd.connect(n))?
            };
            for (phase, what) in ["put", "get"].into_iter().enumerate() {
                all.entry((phase, clients, "Clustix")).or_default().push(ours(what)?);
                all.entry((phase, clients, "Redis")).or_default().push(redis[phase]);
                all.entry((phase, clients, "etcd")).or_default().push(etcd[phase]);
            }
        }
    }
    println!("{:24} {:>10} {:>12} {:>12}", "", "system", "latency", "per second");
    for ((phase, clients, system), loads) in all {
        let what = ["put", "read"][phase];
        let ns = median(&mut loads.iter().map(|l| l.ns).collect::<Vec<_>>());
        let per_second = median(&mut loads.iter().map(|l| l.per_second).collect::<Vec<_>>());
        let label = format!("{what}, {clients} client(s)");
        println!("{label:24} {system:>10} {:9.1} µs {per_second:12.0}", ns / 1000.0);
    }
    Ok(())
}

/// What operations send, which does not depend on time.
fn by_nodes(program: &Path) -> Result<()> {
    println!();
    let status = Command::new(program).arg("nodes").status()?;
    if !status.success() {
        bail!("cost nodes: {status}");
    }
    println!();
    crate::sim::run(&["--group".to_owned(), "--seeds".to_owned(), "20".to_owned()])
}
