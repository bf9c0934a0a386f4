//! `cargo xtask bench`: every figure beside its reference, measured in turn in the same run.

use crate::cluster::Cluster;
use crate::setup;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;

/// Interleaved runs of each pair.
const RUNS: usize = 5;

/// A figure: what it is called, the program's mode, calls per batch, and its references.
struct Row {
    name: &'static str,
    mode: &'static str,
    count: u32,
    file: bool,
    /// (name, mode) of what runs natively beside it.
    references: &'static [(&'static str, &'static str)],
}

const ROWS: &[Row] = &[
    Row {
        name: "trapped getppid",
        mode: "getppid",
        count: 2000,
        file: false,
        references: &[
            ("PTRACE_SYSEMU", "sysemu"),
            ("same-core futex round", "pingpong"),
            ("native", "getppid"),
        ],
    },
    Row {
        name: "getpid",
        mode: "getpid",
        count: 2000,
        file: false,
        references: &[("same-core futex round", "pingpong"), ("native", "getpid")],
    },
    Row {
        name: "read 4 KiB, cached",
        mode: "read",
        count: 1000,
        file: true,
        references: &[("native", "read"), ("same-core futex round", "pingpong")],
    },
    Row {
        name: "write 4 KiB, 3 copies",
        mode: "write",
        count: 500,
        file: true,
        references: &[("native", "write"), ("same-core futex round", "pingpong")],
    },
    Row {
        name: "stat, cached",
        mode: "stat",
        count: 1000,
        file: false,
        references: &[("native", "stat"), ("same-core futex round", "pingpong")],
    },
    Row {
        name: "open and close",
        mode: "open",
        count: 500,
        file: true,
        references: &[("native", "open"), ("same-core futex round", "pingpong")],
    },
    Row {
        name: "fork and wait",
        mode: "fork",
        count: 30,
        file: false,
        references: &[("native", "fork")],
    },
];

/// The middle of values.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn number(bytes: &[u8]) -> Result<f64> {
    let text = String::from_utf8_lossy(bytes);
    text.trim().parse().with_context(|| format!("not a figure: {text:?}"))
}

/// Runs a mode of the program natively: ns per call.
fn native(program: &Path, mode: &str, count: u32, file: Option<&Path>) -> Result<f64> {
    let mut command = Command::new(program);
    command.args([mode, &count.to_string()]).args(file);
    let out = command.output()?;
    if !out.status.success() {
        bail!("{mode} failed natively: {}", String::from_utf8_lossy(&out.stderr));
    }
    number(&out.stdout)
}

/// Measures and prints.
pub fn run() -> Result<()> {
    setup::packages()?;
    let program = setup::build()?;
    let work = setup::target().join("bench");
    if work.exists() {
        crate::cluster::end_left(&program, &work.join("s"))?;
        std::fs::remove_dir_all(&work)?;
    }
    std::fs::create_dir_all(&work)?;
    let posix = work.join("posix");
    setup::compile_c(&setup::workspace().join("xtask/bench/posix.c"), &posix)?;
    let file = work.join("file");

    println!("medians of {RUNS} interleaved runs, each the median of 7 batches; nothing is pinned");
    println!(
        "but what the product pins itself and the two processes of each reference on one core"
    );
    let cluster = Cluster::up(&program, &work.join("s"), 3, &[])?;
    cluster.ok(&["import", posix.to_str().context("path")?, "/posix"])?;
    for row in ROWS {
        let count = row.count.to_string();
        let mut inside = vec!["/posix", row.mode, &count];
        if row.file {
            inside.push("/bench-file");
        }
        let mut ours = Vec::new();
        let mut references = vec![Vec::new(); row.references.len()];
        for _ in 0..RUNS {
            ours.push(number(&cluster.run(0, &inside)?)?);
            for ((_, mode), times) in row.references.iter().zip(&mut references) {
                let file = (row.file && *mode == row.mode).then_some(file.as_path());
                times.push(native(&posix, mode, row.count, file)?);
            }
        }
        let ns = median(&mut ours);
        println!("{:24} {:9.2} µs", row.name, ns / 1000.0);
        for ((name, _), times) in row.references.iter().zip(&mut references) {
            let reference = median(times);
            println!("    {name:24} {:9.2} µs   ratio {:8.2}", reference / 1000.0, ns / reference);
        }
    }
    cluster.down()
}
