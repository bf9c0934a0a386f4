//! `cargo xtask test`: what CI runs.

use crate::setup;
use anyhow::{Context, Result, bail};
use std::process::Command;
use std::time::Instant;

/// Whole-system suites: integration tests of the crate in `tests/`, on the release build.
const SYSTEM: &[&str] = &[
    "tour",
    "posix",
    "wakeups",
    "isolation",
    "bad_input",
    "freeze",
    "failover",
    "restart",
    "faults",
    "attend",
    "deaths",
    "chaos",
    "linear",
    "suspicion",
    "witness",
    VM,
    VERBS,
    RXE,
    RXE_COST,
];

/// Machines with soft-RoCE: packages, a program and an image of their own.
const VM: &str = "vm";

/// The fabric of RDMA devices, in such machines. Needs the packages that verbs are built with besides.
const VERBS: &str = "verbs";

/// A cluster over that fabric.
const RXE: &str = "rxe";

/// The cluster-cache alone over it: messages of one-sided operations, contention, costs.
const RXE_COST: &str = "rxe-cost";

/// Runs everything, or the whole-system suites whose name contains `only`. Every suite runs, also
/// after one failed; exits non-zero if any did.
pub fn run(all: bool, only: Option<&str>) -> Result<()> {
    setup::packages()?;
    let mut suites: Vec<(String, Vec<String>)> = Vec::new();
    let mut add = |name: &str, args: &[&str]| {
        suites.push((name.to_owned(), args.iter().map(|a| (*a).to_owned()).collect()));
    };
    if only.is_none() {
        add("format", &["fmt", "--all", "--check"]);
        add(
            "lints",
            &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
        );
        add(
            "crates",
            &["test", "--workspace", "--exclude", "clustix-tests", "--locked", "--no-fail-fast"],
        );
    }
    let wanted = |name: &str| match only {
        Some(part) => name.contains(part),
        None => true,
    };
    for name in SYSTEM.iter().filter(|n| wanted(n)) {
        add(
            name,
            &[
                "test",
                "--release",
                "--locked",
                "-p",
                "clustix-tests",
                "--test",
                name,
                "--",
                "--nocapture",
                "--test-threads=1",
            ],
        );
    }
    if only.is_none_or(|o| "sim".contains(o)) {
        let seeds = if all { "5000" } else { "500" };
        let run = ["run", "--release", "--locked", "-p", "clustix-sim", "--"];
        add("sim", &[&run[..], &["--seeds", seeds]].concat());
        let bugs = ["test", "--release", "--locked", "-p", "clustix-sim", "--test", "bugs"];
        let bugs = [&bugs[..], &["--features", "put-back-bugs", "--", "--nocapture"]].concat();
        add("sim-bugs", &bugs);
    }
    if only.is_none_or(|o| "model".contains(o)) {
        add("model", &["run", "--release", "--locked", "-p", "clustix-model"]);
    }
    if suites.is_empty() {
        bail!("no suite has {only:?} in its name; there are: {} sim model", SYSTEM.join(" "));
    }
    let program = setup::build()?;
    let asked = |suite: &str| suites.iter().any(|(name, _)| name == suite);
    let example =
        if asked(VERBS) || asked(RXE_COST) { Some(setup::build_verbs_example()?) } else { None };
    let verbs = if asked(RXE) { Some(setup::build_verbs()?) } else { None };
    let machines = match [VM, VERBS, RXE, RXE_COST].into_iter().any(asked) {
        true => {
            setup::vm_packages()?;
            Some(setup::build_soft_roce()?)
        }
        false => None,
    };
    let mut report = Vec::new();
    for (name, args) in suites {
        println!("== {name}: cargo {}", args.join(" "));
        let start = Instant::now();
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(&args).current_dir(setup::workspace()).env("CLUSTIX_PROGRAM", &program);
        if let Some(example) = &example {
            cargo.env("CLUSTIX_VERBS_EXAMPLE", example);
        }
        if let Some(verbs) = &verbs {
            cargo.env("CLUSTIX_VERBS_PROGRAM", verbs);
        }
        if let Some(machines) = &machines {
            cargo.env("CLUSTIX_VM_PROGRAM", machines).env("CLUSTIX_VM_CACHE", setup::vm_cache());
        }
        // What failed says so itself; a stack behind each error hides it.
        cargo.env("RUST_BACKTRACE", "0");
        if all {
            cargo.env("CLUSTIX_TEST_ALL", "1");
        }
        let passed = cargo.status().context("cannot run cargo")?.success();
        report.push((name, start.elapsed().as_secs_f64() / 60.0, passed));
    }
    println!("== minutes per suite");
    for (name, minutes, passed) in &report {
        println!("{name:12} {minutes:6.1}  {}", if *passed { "passed" } else { "FAILED" });
    }
    let failed = report.iter().filter(|r| !r.2).count();
    println!("suites: {} passed, {failed} failed", report.len() - failed);
    if failed > 0 {
        bail!("{failed} of {} suites failed", report.len());
    }
    Ok(())
}
