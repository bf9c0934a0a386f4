//! A program and whoever attends to it outlive the node's part of the connection between them: no byte is lost or
//! doubled, and a program that is lost with its node is started again where that was asked for.

use anyhow::{Context, Result, ensure};
use clustix_tests::random::Random;
use clustix_tests::{Cluster, Program, Terminal, domains, leftover};
use std::time::{Duration, Instant};

const NODE: u8 = 1;
const BOUND: Duration = Duration::from_secs(60);

/// A pace, not a wait: a moment of no choice, and init gives a domain up that dies more than ten times in a minute.
fn some_time(random: &mut Random) {
    std::thread::sleep(Duration::from_millis(300 + random.below(900)));
}

/// Waits until a script prints what is wanted.
fn until(cluster: &Cluster, script: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
    let begin = Instant::now();
    loop {
        let text = cluster.sh(Some(0), script)?.text();
        if wanted(&text) {
            return Ok(text);
        }
        ensure!(begin.elapsed() < BOUND, "{script}: {text:?}");
    }
}

#[test]
fn pipes_go_on_over_the_death_of_control() -> Result<()> {
    let mut random = Random::seeded("attend-pipes");
    let cluster = Cluster::up(2)?;
    let lines: String = (0..10_000).map(|n| format!("{n}\n")).collect();
    let script = "while read l; do echo $l; done; echo end >&2; exit 4";
    let program = Program::start(cluster.sh_command(Some(NODE), script), lines.as_bytes())?;
    let reader = std::thread::spawn(move || program.end_within(BOUND));
    let mut kills = 0;
    while !reader.is_finished() && kills < 8 {
        some_time(&mut random);
        domains::kill(&cluster, NODE, &["control"])?;
        kills += 1;
    }
    let went = reader.join().expect("the reader does not panic")?;
    ensure!(went.status == 4 && went.errors() == "end\n", "{}: {}", went.status, went.errors());
    ensure!(went.text() == lines, "{} bytes of {}", went.out.len(), lines.len());
    ensure!(kills > 1, "it ended too soon to be hurt");
    println!("attend: {} bytes there and back over {kills} deaths of control", lines.len());
    cluster.cli(["down", "--discard"])?.ok()?;
    leftover::none(cluster.state())
}

#[test]
fn a_start_is_a_start_though_control_dies_meanwhile() -> Result<()> {
    let mut random = Random::seeded("attend-start");
    let cluster = Cluster::up(2)?;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut starts = 0;
    std::thread::scope(|s| -> Result<()> {
        let killer = s.spawn(|| -> Result<usize> {
            let mut kills = 0;
            while kills < 8 && !stop.load(std::sync::atomic::Ordering::Acquire) {
                some_time(&mut random);
                domains::kill(&cluster, NODE, &["control"])?;
                kills += 1;
            }
            stop.store(true, std::sync::atomic::Ordering::Release);
            Ok(kills)
        });
        let mut all = || -> Result<()> {
            while !stop.load(std::sync::atomic::Ordering::Acquire) {
                let went = cluster.sh(Some(NODE), &format!("echo {starts} >> /starts"))?;
                // No connection could be made: nothing was asked.
                if went.status == 1 && went.errors().contains("could not reach node") {
                    continue;
                }
                went.ok().with_context(|| format!("start {starts}"))?;
                starts += 1;
            }
            Ok(())
        };
        let started = all();
        stop.store(true, std::sync::atomic::Ordering::Release);
        let kills = killer.join().expect("the killer does not panic")?;
        started?;
        println!("attend: {starts} programs started over {kills} deaths of control");
        Ok(())
    })?;
    let done = cluster.sh(Some(0), "cat /starts")?.ok()?.text();
    let wanted: String = (0..starts).map(|n| format!("{n}\n")).collect();
    ensure!(done == wanted, "of {starts} starts: {done:?}");
    cluster.cli(["down", "--discard"])?.ok()?;
    leftover::none(cluster.state())
}

#[test]
fn a_terminal_goes_on_over_the_death_of_control() -> Result<()> {
    let cluster = Cluster::up(2)?;
    let run = ["run", "-it", "--node", "1", "--env", "PS1=# ", "--", "sh"];
    let mut terminal = Terminal::start(cluster.command(run))?;
    terminal.expect("# ")?;
    for n in 0..3 {
        terminal.type_in(&format!("echo $((40 + {n}))\r"))?;
        terminal.expect(&format!("\r\n4{n}\r\n# "))?;
        domains::kill(&cluster, NODE, &["control"])?;
    }
    terminal.type_in("exit 6\r")?;
    ensure!(terminal.end()? == 6);
    cluster.cli(["down", "--discard"])?.ok()?;
    leftover::none(cluster.state())
}

#[test]
fn what_a_program_has_written_is_shown_though_its_node_is_lost() -> Result<()> {
    let cluster = Cluster::up(3)?;
    // Nobody reads it before the end: it stands still once all that is in between is full.
    let script =
        "i=0; p=$(printf %0999d 0); while echo $p $i; do i=$((i+1)); echo $i > /done; done";
    let program = Program::start(cluster.sh_command(Some(NODE), script), b"")?;
    let done = |text: &str| text.trim().parse::<usize>().unwrap_or(0);
    until(&cluster, "cat /done 2>/dev/null", |text| done(text) >= 60)?;
    cluster.cli(["kill-node", "1"])?.ok()?;
    let went = program.end_within(BOUND)?;
    ensure!(went.status == 137 && went.errors() == "clustix: lost with node 1\n", "{went:?}");
    let text = went.text();
    for (n, line) in text.lines().enumerate() {
        ensure!(line.split(' ').nth(1) == Some(&n.to_string()), "line {n}: {line:?}");
    }
    let (shown, done) = (text.lines().count(), done(&cluster.sh(Some(0), "cat /done")?.text()));
    ensure!(shown >= done, "{shown} lines are shown of {done} that were written");
    println!("attend: {shown} lines shown, {done} known to be written when the node was lost");
    cluster.cli(["down", "--discard"])?.ok()?;
    leftover::none(cluster.state())
}

#[test]
fn a_lost_program_is_started_again_where_that_was_asked_for() -> Result<()> {
    let cluster = Cluster::up(3)?;
    let script =
        "read l; echo $l; echo x >> /lives; [ $(wc -l < /lives) = 3 ] && exit 5; sleep 1000";
    let run = |flag: &str, node: &str| {
        cluster.command(["run", flag, "--node", node, "--", "sh", "-c", script])
    };
    let lives = |n: usize| until(&cluster, "wc -l < /lives", |text| text.trim() == n.to_string());
    let program = Program::start(run("--restart", "1"), b"one\ntwo\nthree\n")?;
    for life in 1..3 {
        lives(life)?;
        let ps = cluster.json(["ps"])?;
        let there = ps.as_array().into_iter().flatten().find(|p| p["state"] != "Z");
        let node = there.and_then(|p| p["node"].as_u64()).context("the program is not listed")?;
        cluster.cli(["kill-node", &node.to_string()])?.ok()?;
        cluster.cli(["start-node", &node.to_string()])?.ok()?;
        cluster.settled(BOUND)?;
    }
    let went = program.end_within(BOUND)?;
    ensure!(went.status == 5 && went.text() == "one\ntwo\nthree\n", "{went:?}");
    ensure!(went.errors().matches("started again as").count() == 2, "{}", went.errors());

    cluster.sh(None, "rm /lives")?.ok()?;
    let program = Program::start(run("--restart=0", "1"), b"one\n")?;
    lives(1)?;
    cluster.cli(["kill-node", "1"])?.ok()?;
    ensure!(program.end_within(BOUND)?.status == 137);
    cluster.cli(["down", "--discard"])?.ok()?;
    leftover::none(cluster.state())
}

#[test]
fn a_detached_terminal_is_attached_to_again_and_again() -> Result<()> {
    let cluster = Cluster::up(2)?;
    let run = ["run", "-t", "--detach", "--env", "PS1=# ", "--", "sh"];
    let pid = cluster.cli(run)?.ok()?.text().trim().to_owned();
    let attach = || Terminal::start(cluster.command(["attach", &pid]));
    let mut first = attach()?;
    first.expect("# ")?;
    first.type_in("x=7\r")?;
    first.expect("# ")?;
    first.type_in("\x1d")?;
    ensure!(first.end()? == 0);

    // One that is killed leaves the program as it was, too.
    let second = attach()?;
    let killed = rustix::process::Pid::from_raw(i32::try_from(second.pid())?).context("a PID")?;
    rustix::process::kill_process(killed, rustix::process::Signal::KILL)?;
    ensure!(second.end()? == 137);

    // Who comes later takes over.
    let mut third = attach()?;
    third.expect("attached")?;
    let mut fourth = attach()?;
    fourth.expect("attached")?;
    third.expect("another client attends")?;
    ensure!(third.end()? == 1);
    fourth.type_in("echo $((x * 6))\r")?;
    fourth.expect("\r\n42\r\n")?;
    domains::kill(&cluster, 0, &["control"])?;
    fourth.type_in("exit 9\r")?;
    ensure!(fourth.end()? == 9);

    let out = cluster.cli(["attach", "99999"])?;
    ensure!(out.status == 1 && out.errors().contains("no process 99999"), "{out:?}");
    let plain = cluster.cli(["run", "--detach", "--", "sleep", "100"])?.ok()?.text();
    let out = cluster.cli(["attach", plain.trim()])?;
    ensure!(out.status == 1 && out.errors().contains("neither a terminal nor pipes"), "{out:?}");
    cluster.cli(["down", "--discard"])?.ok()?;
    leftover::none(cluster.state())
}

#[test]
fn programs_are_spread_and_a_node_that_came_back_gets_some_again() -> Result<()> {
    let cluster = Cluster::up(3)?;
    let run = || -> Result<u64> {
        let pid = cluster.cli(["run", "--detach", "--", "sleep", "1000"])?.ok()?.text();
        let ps = cluster.json(["ps"])?;
        let found = ps
            .as_array()
            .and_then(|all| all.iter().find(|p| p["pid"].as_u64() == pid.trim().parse().ok()));
        found.and_then(|p| p["node"].as_u64()).context("the program is not listed")
    };
    let first: Vec<u64> = (0..6).map(|_| run()).collect::<Result<_>>()?;
    ensure!(first == [0, 1, 2, 0, 1, 2], "{first:?}");
    cluster.cli(["kill-node", "1"])?.ok()?;
    cluster.cli(["start-node", "1"])?.ok()?;
    cluster.settled(BOUND)?;
    // Until the others have taken note of what was lost.
    let begin = Instant::now();
    let runs_there = |p: &serde_json::Value| p["node"] == 1 && p["state"] != "Z";
    while cluster.json(["ps"])?.as_array().into_iter().flatten().any(runs_there) {
        ensure!(begin.elapsed() < BOUND, "what was lost is listed still");
    }
    let then = [run()?, run()?];
    ensure!(then == [1, 1], "{then:?}");
    cluster.cli(["down", "--discard"])?.ok()?;
    leftover::none(cluster.state())
}
