//! The table of wake-ups per call, kept on counters: a program makes a call so many times, then half as
//! many more, and what the counters differ by is the price of the call.
//!
//! What a node does in the background rings bells too (leases, membership), so only bells rung on
//! behalf of a program count: by programs, by the personality, and by the servers it calls.

use anyhow::{Context, Result, ensure};
use clustix_tests::{Cluster, program::workspace};
use std::collections::BTreeMap;
use std::process::Command;

/// Batches that the program makes, each of the count it is given.
const BATCHES: u64 = 7;
const COUNT: u64 = 200;

/// Mode of the program, whether it has a file, and the most wake-ups of one call.
const TABLE: &[(&str, bool, f64)] = &[
    ("getpid", false, 0.0),
    ("getppid", false, 1.0),
    ("read", true, 1.0),
    ("write", true, 2.0),
    ("stat", false, 1.0),
    ("open", true, 3.0),
];

type Counters = BTreeMap<(String, String), u64>;

/// Bells rung so far on node 0, by who rang and whom for.
fn counters(c: &Cluster) -> Result<Counters> {
    let metrics = c.json(["metrics", "--node", "0"])?;
    let mut found = Counters::new();
    for m in metrics.as_array().context("a list")? {
        let name = m["name"].as_str().context("a name")?;
        let Some(labels) = name.strip_prefix("clustix_wakeups_total{") else { continue };
        let label = |key: &str| -> Option<String> {
            let rest = labels.split(&format!("{key}=\"")).nth(1)?;
            Some(rest.split('"').next()?.to_owned())
        };
        let pair = (label("from").context("from")?, label("to").context("to")?);
        *found.entry(pair).or_default() += m["value"].as_u64().context("a value")?;
    }
    Ok(found)
}

/// Bells rung on behalf of programs while one makes `count` calls in each batch.
fn cost(c: &Cluster, mode: &str, file: bool, count: u64) -> Result<Counters> {
    let before = counters(c)?;
    let count = count.to_string();
    let mut args = vec!["run", "--node", "0", "--", "/posix", mode, &count];
    if file {
        args.push("/measured");
    }
    c.cli(args)?.ok()?;
    let mut after = counters(c)?;
    for (pair, n) in &mut after {
        *n -= before.get(pair).copied().unwrap_or(0);
    }
    let behalf = ["app", "posix", "process", "vfs", "memory", "console"];
    after.retain(|(from, _), _| behalf.contains(&from.as_str()));
    Ok(after)
}

#[test]
fn each_call_rings_as_few_bells_as_the_table_says() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("posix");
    let built = Command::new("cc")
        .args(["-O2", "-static", "-o"])
        .arg(&program)
        .arg(workspace().join("xtask/bench/posix.c"))
        .status()
        .context("cc")?;
    ensure!(built.success(), "xtask/bench/posix.c does not build");
    let c = Cluster::up(1)?;
    c.cli(["import", program.to_str().context("path")?, "/posix"])?.ok()?;
    let mut wrong = Vec::new();
    for (mode, file, most) in TABLE {
        // What is known after a first run is known.
        cost(&c, mode, *file, 1)?;
        let few = cost(&c, mode, *file, COUNT)?;
        let many = cost(&c, mode, *file, 2 * COUNT)?;
        let mut each = Vec::new();
        let mut sum = 0.0;
        for (pair, n) in &many {
            let less = few.get(pair).copied().unwrap_or(0);
            let price = (*n as f64 - less as f64) / (BATCHES * COUNT) as f64;
            // A start or an end of a program more or less is no price of the call.
            if price.abs() > 0.02 {
                each.push(format!("{} → {} {price:.2}", pair.0, pair.1));
                sum += price;
            }
            ensure!(
                pair.1 != "kernel" || price.abs() <= 0.02,
                "{mode}: the kernel process is asked"
            );
        }
        println!("{mode:8} {sum:.2} of {most} ({})", each.join(", "));
        if sum > most + 0.05 {
            wrong.push(format!(
                "{mode}: {sum:.2} wake-ups a call instead of {most} ({})",
                each.join(", ")
            ));
        }
    }
    c.cli(["down", "--discard"])?.ok()?;
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}
