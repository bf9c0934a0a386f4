//! The README's tour, step by step, and what is left after it: also when the command line was
//! interrupted or killed at each step.

use anyhow::{Context, Result, ensure};
use clustix_tests::random::Random;
use clustix_tests::{Cluster, Program, Terminal, leftover};
use rustix::process::{Pid, Signal};
use std::time::{Duration, Instant};

fn first_word(out: &clustix_tests::Output) -> String {
    out.text().trim().to_owned()
}

#[test]
fn the_tour() -> Result<()> {
    let shared = leftover::shared_places();
    let c = Cluster::new()?;
    c.cli(["up", "--nodes", "3"])?.ok()?;
    c.install_busybox()?;
    ensure!(first_word(&c.sh(None, "echo hi > /a; cat /a")?.ok()?) == "hi");
    ensure!(first_word(&c.cli(["run", "--node", "2", "--", "cat", "/a"])?.ok()?) == "hi");

    let mut t = Terminal::start(c.command(["run", "-it", "--", "sh"]))?;
    t.type_in("echo x$((40+2))y\n")?;
    t.expect("x42y")?;
    t.type_in("test -t 0 && echo on a term''inal\n")?;
    t.expect("on a terminal")?;
    t.type_in("sh -c 'echo run''ning; exec sleep 100'\n")?;
    t.expect("running")?;
    t.type_in("\x03")?;
    t.type_in("echo status=$?\n")?;
    t.expect("status=130")?;
    t.type_in("exit 7\n")?;
    ensure!(t.end()? == 7);

    c.settled(Duration::from_secs(30))?;
    c.cli(["kill-node", "0"])?.ok()?;
    ensure!(first_word(&c.cli(["run", "--", "cat", "/a"])?.ok()?) == "hi");
    c.cli(["start-node", "0"])?.ok()?;
    let nodes = c.json(["nodes"])?;
    ensure!(nodes.as_array().is_some_and(|n| n.iter().all(|n| n["state"] == "up")), "{nodes}");

    let objects = c.json(["objects"])?;
    let objects = objects.as_array().cloned().unwrap_or_default();
    ensure!(objects.iter().any(|o| o["set"] == "inode"), "{} objects", objects.len());
    for o in &objects {
        ensure!(o["replicas"].as_array().is_some_and(|r| !r.is_empty()), "{o}");
    }
    let pid = first_word(&c.cli(["run", "--detach", "--", "sleep", "1000"])?.ok()?);
    let ps = c.json(["ps"])?;
    let shown = ps.as_array().is_some_and(|p| {
        p.iter().any(|p| {
            p["pid"].as_u64().is_some_and(|n| n.to_string() == pid) && p["command"] == "sleep 1000"
        })
    });
    ensure!(shown, "{pid} in {ps}");
    let down = c.cli(["down"])?.ok()?;
    ensure!(down.text().contains(&format!("ended: {pid} sleep 1000")), "{}", down.text());
    leftover::none(c.state())?;
    leftover::only_what_down_keeps(c.state())?;

    c.cli(["up", "--nodes", "3"])?.ok()?;
    ensure!(first_word(&c.cli(["run", "--", "cat", "/a"])?.ok()?) == "hi");
    c.cli(["down"])?.ok()?;
    leftover::none(c.state())?;
    leftover::only_what_down_keeps(c.state())?;
    ensure!(leftover::shared_places() == shared, "something is left in /dev/shm");
    Ok(())
}

#[test]
fn pipes_status_and_signals_are_a_local_commands() -> Result<()> {
    let c = Cluster::up(1)?;
    let input: Vec<u8> = (0..300_000u32).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    let out = c.sh_with(None, "cat", &input)?.ok()?;
    ensure!(out.out == input, "{} of {} bytes came back", out.out.len(), input.len());
    let out = c.sh(None, "echo out; echo err >&2; exit 3")?;
    ensure!(
        (out.status, out.text().as_str(), out.errors().as_str()) == (3, "out\n", "err\n"),
        "{out:?}"
    );
    ensure!(c.sh(None, "kill -SEGV $$")?.status == 128 + 11);

    // Ctrl-C.
    let run = Program::start(
        c.sh_command(
            None,
            "trap 'echo caught; exit 5' INT; echo > /ready; while :; do sleep 1; done",
        ),
        b"",
    )?;
    wait_for(&c, "test -e /ready")?;
    run.signal(Signal::INT)?;
    let out = run.end()?;
    ensure!((out.status, out.text().as_str()) == (5, "caught\n"), "{out:?}");

    // A killed `run`: the program gets SIGHUP.
    let run = Program::start(c.sh_command(None, "exec > /dev/null 2>&1; trap 'echo > /hup; exit' HUP; echo > /ready2; while :; do sleep 1; done"), b"")?;
    wait_for(&c, "test -e /ready2")?;
    run.signal(Signal::KILL)?;
    run.end()?;
    wait_for(&c, "test -e /hup")?;

    // A reader that has gone.
    let out = c.sh(None, "yes | head -n 2; echo ${PIPESTATUS:-}")?.ok()?;
    ensure!(out.text().starts_with("y\ny\n"), "{out:?}");
    c.cli(["down", "--discard"])?.ok()?;
    Ok(())
}

/// Asks until the shell command succeeds, at most 10 s.
fn wait_for(c: &Cluster, test: &str) -> Result<()> {
    let until = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        if c.sh(None, test)?.status == 0 {
            return Ok(());
        }
        ensure!(std::time::Instant::now() < until, "never: {test}");
    }
}

/// The command line, killed at a random moment of each step, and what the next command makes of it.
#[test]
fn interrupted_and_killed_at_each_step() -> Result<()> {
    let mut random = Random::seeded("interrupted");
    let rounds = if std::env::var_os("CLUSTIX_TEST_ALL").is_some() { 10 } else { 2 };
    let c = Cluster::new()?;
    let mut hit = 0;
    for round in 0..rounds {
        for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
            // `up`: cleans up after itself; killed outright, the next command does.
            let up = Program::start(c.command(["up", "--nodes", "3"]), b"")?;
            std::thread::sleep(Duration::from_millis(random.below(400)));
            let signalled = up.signal(signal).is_ok();
            let out = up.end()?;
            hit += usize::from(signalled && out.status != 0);
            if signal != Signal::KILL && out.status != 0 {
                leftover::none(c.state())?;
            }
            if round % 2 == 0 && out.status != 0 {
                c.cli(["down"])?.ok()?;
                leftover::none(c.state())?;
                leftover::only_what_down_keeps(c.state())?;
            }
            if out.status != 0 {
                c.cli(["up", "--nodes", "3"])?.ok()?;
            }
            c.install_busybox()?;
            c.sh(None, &format!("echo round-{round} > /a"))?.ok()?;
            for step in [
                &["run", "--", "sh", "-c", "while :; do echo x; sleep 1; done"][..],
                &["ps"],
                &["objects"],
                &["kill-node", "1"],
                &["start-node", "1"],
            ] {
                let running = Program::start(c.command(step), b"")?;
                std::thread::sleep(Duration::from_millis(random.below(100)));
                let _ = running.signal(signal);
                running.end()?;
            }
            // Whatever became of node 1: it is wanted again.
            let nodes = c.json(["nodes"])?;
            if nodes[1]["state"] == "down" {
                c.cli(["start-node", "1"])?.ok()?;
            }
            // `down`: the next one finishes it, and nothing is lost on the way.
            let down = Program::start(c.command(["down"]), b"")?;
            std::thread::sleep(Duration::from_millis(random.below(150)));
            let _ = down.signal(signal);
            hit += usize::from(down.end()?.status != 0);
            c.cli(["down"])?.ok()?;
            leftover::none(c.state())?;
            leftover::only_what_down_keeps(c.state())?;
            c.cli(["up", "--nodes", "3"])?.ok()?;
            let a = c.cli(["run", "--", "cat", "/a"])?.ok()?;
            ensure!(first_word(&a) == format!("round-{round}"), "{a:?}");
            c.cli(["down"])?.ok()?;
        }
    }
    println!("interrupted: {hit} commands were cut short, {} rounds", rounds * 3);
    leftover::none(c.state())
}

/// `down` killed between the ends of two nodes: those that are left are no majority, and need be none.
#[test]
fn a_down_that_ended_most_nodes_is_finished() -> Result<()> {
    let c = Cluster::up(3)?;
    c.sh(None, "echo kept > /a")?.ok()?;
    c.cli(["down"])?.ok()?;
    c.cli(["up", "--nodes", "3"])?.ok()?;
    let nodes = c.json(["nodes"])?;
    let path = c.state().join("default/cluster.json");
    let mut state: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    state["phase"] = "ending".into();
    std::fs::write(&path, serde_json::to_vec(&state)?)?;
    let refused = c.cli(["run", "--", "cat", "/a"])?;
    ensure!(refused.status != 0 && refused.errors().contains("stopping"), "{refused:?}");
    for node in nodes.as_array().into_iter().flatten().take(2) {
        let pid = node["pid"].as_i64().and_then(|p| Pid::from_raw(p as i32)).context("a pid")?;
        rustix::process::kill_process(pid, Signal::KILL)?;
    }
    let down = c.cli(["down"])?.ok()?;
    ensure!(!down.text().contains(" 0 objects"), "{down:?}");
    leftover::none(c.state())?;
    leftover::only_what_down_keeps(c.state())?;
    c.cli(["up", "--nodes", "3"])?.ok()?;
    ensure!(first_word(&c.cli(["run", "--", "cat", "/a"])?.ok()?) == "kept");
    c.cli(["down"])?.ok()?;
    leftover::none(c.state())
}

/// An init that was started again takes over what the one before had started.
#[test]
fn a_restarted_init_looks_after_what_runs() -> Result<()> {
    let c = Cluster::up(1)?;
    let domain = |role: &str| -> Result<(i64, i64)> {
        let all = c.json(["pds"])?;
        let found = all.as_array().into_iter().flatten().find(|p| p["role"] == role);
        let p = found.with_context(|| format!("no {role}: {all}"))?;
        Ok((p["pid"].as_i64().unwrap_or(0), p["restarts"].as_i64().unwrap_or(0)))
    };
    for (round, role) in ["init", "vfs", "init", "process", "posix"].into_iter().enumerate() {
        let (pid, restarts) = domain(role)?;
        let raw = Pid::from_raw(pid as i32).context("a pid")?;
        rustix::process::kill_process(raw, Signal::KILL)?;
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let (now, again) = domain(role)?;
            if now != 0 && now != pid && again > restarts {
                break;
            }
            ensure!(Instant::now() < until, "round {round}: {role} is not started again");
        }
        let out = c.cli(["run", "--", "sh", "-c", "echo well > /x; cat /x"])?.ok()?;
        ensure!(first_word(&out) == "well", "round {round}: after {role} {out:?}");
    }
    let logs = c.cli(["logs"])?.text();
    ensure!(!logs.contains("could not be started"), "{logs}");
    c.cli(["down"])?.ok()?;
    leftover::none(c.state())
}
