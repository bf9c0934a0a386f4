//! Machines with soft-RoCE, as a person uses them: they come up, all pairs reach each other over RDMA, one is lost and
//! comes back, one is paused, one is cut off, and nothing is left after `down`.

use anyhow::{Context, Result, ensure};
use clustix_tests::Program;
use clustix_tests::machines::{ALIVE, Lines, Machines, UP};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

/// Ends an `up` with SIGKILL once its first machine runs; what it left must be cleared by the next.
fn killed_up(m: &Machines) -> Result<()> {
    let mut up = m.up("2").stdout(Stdio::null()).spawn()?;
    let until = Instant::now() + UP;
    while !m.processes()?.iter().any(|p| p.contains("qemu-system")) {
        ensure!(up.try_wait()?.is_none(), "vm up has ended before it was to be killed");
        ensure!(Instant::now() < until, "vm up starts nothing");
        std::thread::yield_now();
    }
    up.kill()?;
    up.wait()?;
    ensure!(m.run(&["status"])?.status != 0, "machines that never came up are shown as well");
    Ok(())
}

fn runs_programs(m: &Machines) -> Result<()> {
    let cat = m.command(&["run", "--node", "2", "--", "sh", "-c", "cat; echo bad >&2; exit 7"]);
    let out = Program::start(cat, b"good")?.end()?;
    ensure!(out.status == 7 && out.text() == "good" && out.errors() == "bad\n", "{out:?}");
    ensure!(m.run(&["run", "--", "no-such-program"])?.status == 127);
    ensure!(m.run(&["run", "--", "sh", "-c", "kill -9 $$"])?.status == 137);
    ensure!(m.run(&["run", "--timeout", "3", "--", "sleep", "1000"])?.status == 124);
    ensure!(m.run(&["run", "--node", "9", "--", "true"])?.errors().contains("no node 9"));
    ensure!(m.ok(&["run", "--", "clustix", "--version"])?.starts_with("clustix "));
    let share = m.state().join("share");
    fs::write(share.join("in"), "from the host")?;
    m.ok(&["run", "--node", "3", "--", "cp", "/share/in", "/share/out"])?;
    ensure!(fs::read_to_string(share.join("out"))? == "from the host");
    Ok(())
}

/// The agent is the program that sets hosts up: it takes the device away and makes it again.
fn sets_a_host_up(m: &Machines) -> Result<()> {
    let host = |args: &[&str]| {
        m.run(&[&["run", "--node", "3", "--", "agent", "host", "--netdev"], args].concat())
    };
    ensure!(host(&["eth7"])?.errors().contains("eth7"));
    ensure!(host(&["eth0"])?.ok()?.text().contains("there already"));
    host(&["eth0", "--undo"])?.ok()?;
    ensure!(host(&["eth0", "--undo"])?.status == 1);
    let made = host(&["eth0"])?.ok()?.text();
    ensure!(made.contains("rxe_eth0 is active") && made.contains("10.77.0.3"), "{made}");
    // And as it was: `vm ping` knows the device by its name.
    host(&["eth0", "--undo"])?.ok()?;
    m.ok(&[
        "run", "--node", "3", "--", "rdma", "link", "add", "rxe0", "type", "rxe", "netdev", "eth0",
    ])?;
    m.ok(&["ping", "1", "3"])?;
    Ok(())
}

fn loses_a_node(m: &Machines) -> Result<()> {
    let held =
        Lines::start(m.command(&["run", "--node", "2", "--", "sh", "-c", "echo on; sleep 1000"]))?;
    let first = held.next(ALIVE).context("the program on node 2")?;
    ensure!(first.as_deref() == Some("on"), "{first:?}");
    m.ok(&["kill", "2"])?;
    let mut held = held;
    let ended = held.child.wait()?;
    ensure!(ended.code() == Some(137), "a program lost with its node: {ended}");
    let status = m.run(&["status"])?;
    ensure!(status.status == 3, "{status:?}");
    let refused = m.run(&["run", "--node", "2", "--", "true"])?;
    ensure!(refused.errors().contains("node 2 has ended"), "{refused:?}");
    let ping = m.run(&["ping", "1", "2"])?;
    ensure!(ping.status != 0, "{ping:?}");
    m.ok(&["start", "2"])?;
    m.ok(&["ping", "1", "2"])?;
    Ok(())
}

/// An RDMA connection between nodes 1 and 3 stands still while node 3 does, and goes on with it.
fn pauses_a_node(m: &Machines) -> Result<()> {
    let server = ["run", "--node", "3", "--", "rping", "-s", "-a", "10.77.0.3"];
    let client =
        ["run", "--node", "1", "--", "rping", "-c", "-v", "-a", "10.77.0.3", "-C", "1000000"];
    let _serving = Lines::start(m.command(&server))?;
    let until = Instant::now() + ALIVE;
    // One that comes before the server listens is refused, and goes again.
    let pinging = loop {
        let pinging = Lines::start(m.command(&client))?;
        if let Ok(Some(_)) = pinging.next(ALIVE) {
            break pinging;
        }
        ensure!(Instant::now() < until, "rping does not connect");
    };
    m.ok(&["pause", "3"])?;
    pinging.silent()?;
    ensure!(m.run(&["run", "--node", "3", "--", "true"])?.errors().contains("node 3 is paused"));
    m.ok(&["resume", "3"])?;
    ensure!(pinging.next(ALIVE)?.is_some(), "nothing came after resume");
    Ok(())
}

fn cuts_a_node(m: &Machines) -> Result<()> {
    m.ok(&["cut", "1"])?;
    let cut = m.run(&["ping", "--timeout", "8"])?;
    ensure!(cut.status == 1, "{cut:?}");
    for (pair, reached) in [("1 - node 2", false), ("1 - node 3", false), ("2 - node 3", true)] {
        let text = cut.text();
        let line = text.lines().find(|l| l.contains(pair)).context("a pair is missing")?;
        ensure!(line.contains("verified") == reached, "{line}");
    }
    ensure!(m.run(&["status"])?.text().contains("cut"));
    m.ok(&["heal"])?;
    m.ok(&["ping"])?;
    ensure!(m.run(&["status"])?.status == 0);
    Ok(())
}

#[test]
fn machines_with_rdma() -> Result<()> {
    let m = Machines::new(false)?;
    ensure!(m.run(&["status"])?.errors().contains("vm up"));
    killed_up(&m)?;
    let up = Program::start(m.up("3"), b"")?.end_within(UP)?.ok()?;
    println!("{:6.1} s  vm up --nodes 3\n{}", up.took.as_secs_f32(), up.text());
    ensure!(up.text().contains("clearing"), "what the killed one left was not seen");
    ensure!(m.run(&["up"])?.status != 0, "a second up");
    let pairs = m.ok(&["ping"])?;
    print!("{pairs}");
    ensure!(pairs.lines().filter(|l| l.contains("verified")).count() == 3, "{pairs}");
    runs_programs(&m)?;
    sets_a_host_up(&m)?;
    loses_a_node(&m)?;
    pauses_a_node(&m)?;
    cuts_a_node(&m)?;
    m.ok(&["down"])?;
    ensure!(!Path::exists(&m.state()), "the state folder is left");
    ensure!(m.processes()?.is_empty(), "{:?}", m.processes()?);
    Ok(())
}
