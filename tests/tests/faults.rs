//! Every operation of the servers is made to meet its server's death before, inside and after its transaction: it
//! is done once, and whoever asked for it notices nothing. (`microkernel/pd/src/fault.rs`; what a program asks for.
//! What only control asks for, and what takes no transaction, is in the servers' own tests.)

use anyhow::{Context, Result, bail, ensure};
use clustix_pd::fault;
use clustix_tests::terminal::Terminal;
use clustix_tests::{Cluster, Program, domains, leftover, program};
use rustix::process::Pid;
use std::collections::{BTreeMap, VecDeque};
use std::process::Command;
use std::time::{Duration, Instant};

const NODES: u8 = 3;
const BOUND: Duration = Duration::from_secs(60);
/// For what is done after a program has ended.
const LATER: Duration = Duration::from_secs(5);
const PROGRAM: &str = "/operation";
const STAGES: [&str; 3] = ["before", "inside", "after"];
/// init gives up a domain that dies more often within [`MINUTE`].
const DEATHS: usize = 10;
const MINUTE: Duration = Duration::from_secs(61);

/// An operation, and the case of `programs/operation.c` that makes its server do it.
const PLAIN: [(&str, &str); 27] = [
    ("vfs.Create", "create"),
    ("memory.Map", "map"),
    ("process.Spawn", "create"),
    ("vfs.Mkdir", "mkdir"),
    ("memory.Unmap", "map"),
    ("process.Fork", "child"),
    ("vfs.Mknod", "mkfifo"),
    ("memory.Protect", "map"),
    ("process.Exec", "child"),
    ("vfs.Symlink", "symlink"),
    ("memory.Remap", "map"),
    ("process.Exit", "child"),
    ("vfs.Link", "link"),
    ("memory.Break", "map"),
    ("process.Wait", "child"),
    ("vfs.Unlink", "unlink"),
    ("memory.Replace", "child"),
    ("process.Stop", "stop"),
    ("vfs.Rename", "rename"),
    ("memory.Fork", "child"),
    ("process.Kill", "kill"),
    ("vfs.SetAttr", "chmod"),
    ("memory.Remove", "child"),
    ("process.Raise", "pipe"),
    ("process.Take", "kill"),
    ("vfs.Closed", "unlink"),
    ("process.ChildPolicy", "policy"),
];

const PLAIN_TOO: [(&str, &str); 3] = [
    ("process.SetGroup", "setpgid"),
    ("process.SetSession", "setsid"),
    ("process.SetIds", "setuid"),
];

/// The same of a program on a terminal.
const TERMINAL: [(&str, &str); 14] = [
    ("console.New", "typed"),
    ("process.SetTty", "notty"),
    ("console.Attach", "typed"),
    ("console.Input", "typed"),
    ("console.Output", "typed"),
    ("console.Read", "typed"),
    ("console.Taken", "typed"),
    ("console.SetTermios", "settings"),
    ("console.Flush", "settings"),
    ("console.Flow", "settings"),
    ("console.SetWinsize", "settings"),
    ("console.SetForeground", "foreground"),
    ("console.SetSession", "notty"),
    ("console.Release", "notty"),
];

/// Which domains died when.
#[derive(Default)]
struct Deaths(BTreeMap<(u8, String), VecDeque<Instant>>);

impl Deaths {
    /// The node whose `role` may die soonest; waits until it may.
    fn next(&mut self, role: &str) -> u8 {
        let may = |times: &VecDeque<Instant>| {
            times.get(times.len().wrapping_sub(DEATHS)).map(|t| *t + MINUTE)
        };
        let of = |node: u8| self.0.get(&(node, role.to_owned()));
        let node = (0..NODES)
            .min_by_key(|node| of(*node).map_or((None, 0), |times| (may(times), times.len())))
            .unwrap_or(0);
        if let Some(time) = of(node).and_then(may) {
            std::thread::sleep(time.saturating_duration_since(Instant::now()));
        }
        self.0.entry((node, role.to_owned())).or_default().push_back(Instant::now());
        node
    }
}

/// Tells a domain to end at the point of that name.
fn arm(domain: Pid, point: &str) -> Result<()> {
    let value = fault::hash(point).to_string();
    let status = Command::new("kill")
        .args(["-s", "USR2", "-q", &value, &domain.as_raw_nonzero().to_string()])
        .status()
        .context("kill, of procps, could not be run")?;
    ensure!(status.success(), "kill: {status}");
    Ok(())
}

/// Whether the domain has died. What follows a program's end may come a little later.
fn met(cluster: &Cluster, node: u8, role: &str, pid: Pid) -> Result<bool> {
    let begin = Instant::now();
    while domains::find(cluster, node, role)?.0 == Some(pid) {
        if begin.elapsed() > LATER {
            return Ok(false);
        }
        // The command line tells of no death.
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(true)
}

fn plain(cluster: &Cluster, node: u8, case: &str, prefix: &str) -> Result<()> {
    let run = ["run", "--node", &node.to_string(), "--", PROGRAM, case, prefix];
    let out = Program::start(cluster.command(run), b"")?.end_within(BOUND)?;
    ensure!(out.status == 0 && out.text() == "ok\n", "{out:?}");
    Ok(())
}

fn on_terminal(cluster: &Cluster, node: u8, case: &str, prefix: &str) -> Result<()> {
    let run = ["run", "-it", "--node", &node.to_string(), "--", PROGRAM, case, prefix];
    let mut terminal = Terminal::start(cluster.command(run))?;
    if case == "typed" {
        terminal.expect("ready\r\n")?;
        terminal.type_in("typed\r")?;
        terminal.expect("typed\r\n")?;
        for n in 0..10 {
            terminal.expect(&format!("line {n}\r\n"))?;
        }
    }
    if case == "settings" {
        terminal.expect("ready\r\n")?;
        // What nobody reads, but takes away.
        terminal.type_in("typed\r")?;
    }
    terminal.expect("ok\r\n")?;
    let status = terminal.end()?;
    ensure!(status == 0, "status {status}");
    Ok(())
}

#[test]
fn every_operation_is_done_once_over_its_servers_death() -> Result<()> {
    let cluster = Cluster::of(program::clustix_faults()?)?;
    cluster.cli(["up", "--nodes", &NODES.to_string()])?.ok()?;
    cluster.install_busybox()?;
    let folder = tempfile::tempdir()?;
    let program = program::compiled(folder.path(), "operation")?;
    cluster.cli(["import", program.to_str().context("path")?, PROGRAM])?.ok()?;
    cluster.sh(None, "mkdir /o")?.ok()?;
    let mut deaths = Deaths::default();
    let mut missed = Vec::new();
    let mut points = 0;
    type Run = fn(&Cluster, u8, &str, &str) -> Result<()>;
    let all = PLAIN.iter().chain(&PLAIN_TOO).map(|of| (of, plain as Run));
    let all: Vec<_> = all.chain(TERMINAL.iter().map(|of| (of, on_terminal as Run))).collect();
    for stage in STAGES {
        for ((operation, case), run) in &all {
            let point = format!("{operation}.{stage}");
            let role = operation.split('.').next().context("a role")?;
            let node = deaths.next(role);
            let (pid, restarts) = domains::find(&cluster, node, role)?;
            let pid = pid.with_context(|| format!("{role} of node {node} does not run"))?;
            arm(pid, &point)?;
            let prefix = format!("/o/{point}");
            run(&cluster, node, case, &prefix).with_context(|| point.clone())?;
            if met(&cluster, node, role, pid)? {
                domains::again(&cluster, node, role, (pid, restarts))?;
                points += 1;
            } else {
                // It is not to die in another's case.
                arm(pid, "")?;
                missed.push(point);
            }
        }
    }
    println!("faults: {points} points, each met once; operations done once");
    ensure!(missed.is_empty(), "never met: {missed:?}");
    let out = cluster.cli(["fsck"])?;
    if out.status != 0 {
        bail!("the tree is not whole: {}{}", out.text(), out.errors());
    }
    cluster.cli(["down", "--discard"])?.ok()?;
    leftover::none(cluster.state())
}
