//! The servers of a node are killed, one after the other and all at once, under a program that asks all of
//! them: none of its operations fails, is lost or is done twice. A node that stands still while it starts is started
//! again. Programs outlive their personality.

use anyhow::{Context, Result, bail, ensure};
use clustix_tests::random::Random;
use clustix_tests::{Cluster, Program, domains, leftover};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

const NODE: u8 = 1;
const SERVERS: [&str; 4] = ["vfs", "process", "memory", "console"];
/// For the program to end.
const BOUND: Duration = Duration::from_secs(60);

#[test]
fn servers_are_killed_and_no_operation_fails() -> Result<()> {
    let mut random = Random::seeded("restart");
    let rounds = if std::env::var_os("CLUSTIX_TEST_ALL").is_some() { 100 } else { 6 };
    let cluster = Cluster::up(3)?;
    cluster.install_busybox()?;
    cluster.sh(None, "mkdir /w")?.ok()?;
    // Every step fails if it was lost, and if it was done twice; what `sed` prints is one line for each.
    let script = "n=0; while [ ! -e /stop ]; do \
        mkdir /w/a$n && mv /w/a$n /w/b$n && ln -s b$n /w/s$n && echo $n > /w/b$n/f && \
        ln /w/b$n/f /w/b$n/g && rm /w/b$n/f && [ \"$(cat /w/s$n/g | sed p | wc -l)\" = 2 ] && \
        rm /w/b$n/g /w/s$n && rmdir /w/b$n && [ \"$(ls /w)\" = '' ] || exit 1; \
        echo $n; n=$((n+1)); done";
    let program = Program::start(cluster.sh_command(Some(NODE), script), b"")?;
    // And one that asks the vfs without a pause, so that it dies in the middle of a request.
    let busy = "mkdir /v && cd /v && n=$(seq 400); \
        while [ ! -e /stop ]; do mkdir $n && rmdir $n || exit 1; echo; done";
    let busy = Program::start(cluster.sh_command(Some(NODE), busy), b"")?;
    let mut times = Vec::new();
    for round in 0..rounds {
        let mut kills: Vec<&[&str]> = SERVERS.chunks(1).collect();
        if round % 6 == 5 {
            kills.push(&SERVERS);
        }
        for roles in kills {
            times.push(domains::kill(&cluster, NODE, roles)?);
            // A pace, not a wait: a moment of no choice, and init gives a server up that dies more than ten
            // times in a minute.
            std::thread::sleep(Duration::from_millis(1200 + random.below(1200)));
        }
    }
    cluster.sh(None, ": > /stop")?.ok()?;
    let stopped = Instant::now();
    let went = program.end_within(BOUND)?;
    let turns = went.text().lines().count();
    ensure!(
        went.status == 0,
        "after {turns} turns: {}\n{}",
        went.errors(),
        cluster.cli(["logs", "--node", "1"])?.text()
    );
    let busy = busy.end_within(BOUND)?;
    let more = busy.text().lines().count();
    ensure!(busy.status == 0, "after {more} turns: {}", busy.errors());
    let in_order = went.text().lines().enumerate().all(|(n, line)| line == n.to_string());
    ensure!(in_order && turns > rounds, "{turns} turns: {}", went.text());
    times.sort_unstable();
    println!(
        "restart: {} servers killed under {turns} turns of 17 operations and 12 programs, and {more} of 800 operations, all done once",
        (rounds + rounds / 6) * SERVERS.len()
    );
    println!(
        "restart: ms from a kill until `pds` shows the next: median {}, worst {}; from the word to the programs' end {}",
        times[times.len() / 2].as_millis(),
        times[times.len() - 1].as_millis(),
        stopped.elapsed().as_millis()
    );
    cluster.cli(["down", "--discard"])?.ok()?;
    leftover::none(cluster.state())
}

/// The ccache of a node, by the arguments of the node's children.
fn ccache_of(node: &Path) -> Result<Pid> {
    let kernel = fs::read_to_string(node.join("pid"))?;
    let kernel = kernel.split_whitespace().next().context("a number")?;
    let mut children = String::new();
    for thread in fs::read_dir(format!("/proc/{kernel}/task"))? {
        children += &fs::read_to_string(thread?.path().join("children"))?;
    }
    children
        .split_whitespace()
        .find(|pid| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments.ends_with(b"pd\0ccache\0")
        })
        .and_then(|pid| Pid::from_raw(pid.parse().ok()?))
        .context("no ccache")
}

/// Its others evict it, for its ccache is stopped as soon as it is a member; `start-node` starts it again.
#[test]
fn a_node_that_is_evicted_while_it_starts_is_started_again() -> Result<()> {
    let cluster = Cluster::up(3)?;
    let node = cluster.state().join("default/node-2");
    for _ in 0..20 {
        cluster.cli(["kill-node", "2"])?.ok()?;
        fs::remove_file(node.join("log"))?;
        let start = Program::start(cluster.command(["start-node", "2"]), b"")?;
        let begin = Instant::now();
        // A log has no event to wait for.
        let stopped = loop {
            ensure!(begin.elapsed() < BOUND, "node 2 becomes no member");
            let log = fs::read_to_string(node.join("log")).unwrap_or_default();
            if log.contains("ccache: view ") {
                let stopped = ccache_of(&node)?;
                // It may have been evicted and be gone since.
                if kill_process(stopped, Signal::STOP).is_ok() {
                    break stopped;
                }
            }
            std::thread::sleep(Duration::from_micros(200));
        };
        // It is out once the others' view has no node 2.
        loop {
            ensure!(begin.elapsed() < BOUND, "nobody suspects a node that stands still");
            let nodes = cluster.json(["nodes"])?;
            let of = nodes.as_array().into_iter().flatten().find(|n| n["node"] == 2);
            if of.is_none_or(|n| n["state"] != "up") {
                break;
            }
        }
        let _ = kill_process(stopped, Signal::CONT);
        let out = start.end_within(BOUND)?;
        match (out.status, out.errors().contains("starting it again")) {
            (0, true) => {
                cluster.settled(BOUND)?;
                cluster.cli(["down", "--discard"])?.ok()?;
                return leftover::none(cluster.state());
            }
            // It served before it was stopped.
            (0, false) => cluster.whole(&mut 0)?,
            _ => bail!("{}{}", out.text(), out.errors()),
        }
    }
    bail!("in 20 rounds it served sooner than it could be stopped")
}

/// The personality is killed under programs that sleep, that compute, that wait for children, for a pipe, and for
/// their standard input: all go on, and have what they had.
#[test]
fn programs_outlive_their_personality() -> Result<()> {
    const ROUNDS: usize = 4;
    let cluster = Cluster::up(2)?;
    let begin = Instant::now();
    let on_node = |script: &str| {
        Program::start(cluster.sh_command(Some(NODE), &format!("cd /tmp; {script}")), b"")
    };
    cluster.sh(None, "mkdir -p /tmp")?.ok()?;
    let programs = [
        (on_node("sleep 15; echo woken in $(pwd)")?, 0, "woken in /tmp\n"),
        (on_node("sleep 15 & sleep 16 & wait; echo waited; exit 3")?, 3, "waited\n"),
        (on_node("(sleep 15; echo through) | (read line; echo $line; cat)")?, 0, "through\n"),
        (on_node("i=0; while [ $i -lt 3000000 ]; do i=$((i+1)); done; echo $i")?, 0, "3000000\n"),
    ];
    let mut cat = cluster.command(["run", "-i", "--node", "1", "--", "cat"]);
    let mut cat = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut typed = cat.stdin.take().context("a pipe")?;
    let mut shown = BufReader::new(cat.stdout.take().context("a pipe")?).lines();
    let mut echo = |text: &str| -> Result<()> {
        writeln!(typed, "{text}")?;
        let line = shown.next().context("cat has ended")??;
        ensure!(line == text, "{text:?} came back as {line:?}");
        Ok(())
    };
    // They rest once all children are there and sleep.
    let sleeping = || -> Result<usize> {
        let ps = cluster.json(["ps"])?;
        let is = |p: &&serde_json::Value| {
            p["command"].as_str().is_some_and(|command| command.starts_with("sleep"))
        };
        Ok(ps.as_array().into_iter().flatten().filter(is).count())
    };
    while sleeping()? < 4 {
        ensure!(begin.elapsed() < BOUND, "the programs do not begin");
    }
    for round in 0..ROUNDS {
        echo(&format!("before {round}"))?;
        domains::kill(&cluster, NODE, &["posix"])?;
        echo(&format!("after {round}"))?;
    }
    for (program, status, wanted) in programs {
        let out = program.end_within(BOUND)?;
        ensure!(out.status == status && out.text() == wanted, "{wanted:?}: {out:?}");
    }
    drop(typed);
    ensure!(cat.wait()?.success());
    println!("restart: programs went on over {ROUNDS} deaths of their personality");
    let fsck = cluster.cli(["fsck"])?;
    ensure!(fsck.status == 0, "{}", fsck.text());
    cluster.cli(["down", "--discard"])?.ok()?;
    leftover::none(cluster.state())
}
