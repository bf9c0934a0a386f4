//! Isolation seen from outside, on a node that runs: what each protection domain and each program's
//! process holds in Linux. (What a domain is refused when it tries is tested beside the sandbox, in
//! microkernel/host; what a hostile program gets beside the stub, in personality-posix.)

use anyhow::{Context, Result, bail, ensure};
use clustix_tests::{Cluster, Program};
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

/// A process's descriptors: number → what it is.
fn descriptors(pid: u64) -> Result<BTreeMap<u32, String>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).context("descriptors")? {
        let entry = entry?;
        let number = entry.file_name().to_string_lossy().parse()?;
        if let Ok(target) = fs::read_link(entry.path()) {
            found.insert(number, target.display().to_string());
        }
    }
    Ok(found)
}

fn status(pid: u64, key: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|l| l.strip_prefix(key)).with_context(|| key.to_owned())?;
    Ok(line.trim_start_matches(':').trim().to_owned())
}

/// Writable mappings that are shared with other processes, by name.
fn shared_writable(pid: u64) -> Result<Vec<String>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut found: Vec<String> = maps
        .lines()
        .filter_map(|l| {
            let mut words = l.split_ascii_whitespace();
            let mode = words.nth(1)?;
            (mode.contains('w') && mode.ends_with('s'))
                .then(|| words.nth(3).unwrap_or("?").to_owned())
        })
        .collect();
    found.sort();
    found.dedup();
    Ok(found)
}

/// The node's domains by role.
fn domains(c: &Cluster) -> Result<BTreeMap<String, u64>> {
    let pds = c.json(["pds"])?;
    let mut found = BTreeMap::new();
    for p in pds.as_array().context("a list")? {
        let role = p["role"].as_str().context("a role")?.to_owned();
        found.insert(role, p["pid"].as_u64().context("a pid")?);
    }
    Ok(found)
}

#[test]
fn every_domain_holds_what_it_was_given_and_nothing_else() -> Result<()> {
    let c = Cluster::up(1)?;
    let domains = domains(&c)?;
    for role in
        ["ccache", "member", "init", "process", "vfs", "memory", "console", "posix", "control"]
    {
        ensure!(domains.contains_key(role), "{role} does not run");
    }
    for (role, pid) in &domains {
        ensure!(status(*pid, "Seccomp")? == "2", "{role} has no filter");
        ensure!(status(*pid, "NoNewPrivs")? == "1", "{role} may gain privileges");
        let held = descriptors(*pid)?;
        println!("{role:8} descriptors {held:?}");
        let files = held
            .iter()
            .filter(|(n, t)| **n != 2 && t.starts_with('/') && !t.starts_with("/memfd:"));
        ensure!(files.count() == 0, "{role} holds a file: {held:?}");
        if ["process", "vfs", "memory", "console", "init"].contains(&role.as_str()) {
            ensure!(held.keys().copied().collect::<Vec<_>>() == [2, 3], "{role} holds {held:?}");
        }
        let writable = shared_writable(*pid)?;
        let arena = writable.iter().any(|m| m.contains("arena"));
        ensure!(arena == (role == "ccache"), "{role} maps to write: {writable:?}");
        let text = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        for class in ["vfs", "process", "memory", "console", "system"] {
            let maps = text.contains(&format!("arena-{class}"));
            let servers = ["vfs", "process", "memory", "console"];
            if servers.contains(&role.as_str()) && role != class {
                let allowed = role == "process" && class == "system";
                ensure!(!maps || allowed, "{role} maps the arena of {class}");
            }
        }
    }
    c.cli(["down", "--discard"])?.ok()?;
    Ok(())
}

#[test]
fn a_programs_process_holds_its_own_memory_and_two_channels() -> Result<()> {
    let c = Cluster::up(1)?;
    let run = Program::start(c.sh_command(Some(0), "echo > /ready; exec sleep 100"), b"")?;
    let until = Instant::now() + Duration::from_secs(10);
    while c.sh(None, "test -e /ready")?.status != 0 {
        ensure!(Instant::now() < until, "the program does not run");
    }
    let mut stubs = 0;
    for (pid, exe) in clustix_tests::leftover::processes(c.state()) {
        if !exe.starts_with("/memfd:") {
            continue;
        }
        stubs += 1;
        let pid = u64::from(pid);
        ensure!(status(pid, "Seccomp")? == "2", "{pid} has no filter");
        let held = descriptors(pid)?;
        println!("stub {pid}: {held:?}");
        for (n, target) in &held {
            let own = target.starts_with("/memfd:") || target.starts_with("socket:");
            ensure!(own, "descriptor {n} of a stub is {target}");
        }
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        ensure!(!maps.contains("arena") && !maps.contains("slab"), "a stub maps {maps}");
    }
    ensure!(stubs > 0, "no stub was seen");
    run.signal(rustix::process::Signal::TERM)?;
    run.end()?;
    c.cli(["down", "--discard"])?.ok()?;
    Ok(())
}

/// Every server, one after the other, gets `signal`; it is started again and all goes on. How it ended, as
/// `clustix pds` shows it, is `end`.
fn each_server(signal: rustix::process::Signal, end: &str) -> Result<()> {
    let c = Cluster::up(1)?;
    c.sh(None, "echo kept > /a")?.ok()?;
    for role in ["process", "vfs", "memory", "console", "control", "init", "member"] {
        let before = domains(&c)?;
        let pid = *before.get(role).with_context(|| role.to_owned())?;
        let raw = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("a pid")?;
        rustix::process::kill_process(raw, signal)?;
        let begin = Instant::now();
        loop {
            let again = domains(&c);
            if let Ok(now) = &again
                && now.get(role).is_some_and(|p| *p != pid && *p != 0)
            {
                break;
            }
            if begin.elapsed() > Duration::from_secs(15) {
                bail!("{role} is not started again: {again:?}");
            }
        }
        let out = loop {
            let out = c.sh(None, "cat /a; echo more >> /b; cat /b | wc -l")?;
            if out.status == 0 || begin.elapsed() > Duration::from_secs(15) {
                break out;
            }
        };
        ensure!(out.text().starts_with("kept\n"), "after the end of {role}: {out:?}");
        println!("{role}: {end}; served again after {} ms", begin.elapsed().as_millis());
        let pds = c.json(["pds"])?;
        let pd = pds.as_array().context("a list")?.iter().find(|p| p["role"] == role);
        let ends = pd.context("the role")?["ends"].as_array().context("its ends")?.clone();
        ensure!(ends.len() == 1 && ends[0]["how"] == end, "{role}: {ends:?}");
        ensure!(ends[0]["ms_ago"].as_u64().is_some_and(|ms| ms < 20_000), "{role}: {ends:?}");
    }
    c.cli(["down", "--discard"])?.ok()?;
    Ok(())
}

#[test]
fn the_death_of_a_server_costs_a_pause() -> Result<()> {
    each_server(rustix::process::Signal::KILL, "signal 9")
}

/// Beyond the health check's deadline, a server that stands still is a dead one.
#[test]
fn a_server_that_hangs_is_a_dead_one() -> Result<()> {
    each_server(rustix::process::Signal::STOP, "hung")
}

/// A node ends with its ccache, and a program with its node: whoever waits for it is told so, though the
/// node's control goes before the node has.
#[test]
fn a_program_is_lost_with_its_nodes_ccache() -> Result<()> {
    let c = Cluster::up(3)?;
    for round in 0..5 {
        let ready = format!("/ready{round}");
        let script = format!("echo > {ready}; exec sleep 1000");
        let run = Program::start(c.sh_command(Some(2), &script), b"")?;
        let until = Instant::now() + Duration::from_secs(10);
        while c.sh(Some(0), &format!("test -e {ready}"))?.status != 0 {
            ensure!(Instant::now() < until, "the program does not run");
        }
        let pds = c.json(["pds"])?;
        let ccache = pds
            .as_array()
            .context("a list")?
            .iter()
            .find(|p| p["role"] == "ccache" && p["node"] == 2);
        let pid = ccache.and_then(|p| p["pid"].as_u64()).context("node 2's ccache")?;
        let raw = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("a pid")?;
        rustix::process::kill_process(raw, rustix::process::Signal::KILL)?;
        let ended = run.end_within(Duration::from_secs(20))?;
        ensure!(ended.status == 137 && ended.errors().contains("lost with node 2"), "{ended:?}");
        let until = Instant::now() + Duration::from_secs(30);
        while c.cli(["start-node", "2"])?.ok().is_err() {
            ensure!(Instant::now() < until, "node 2 does not come back");
        }
        while !c.cli(["status"])?.text().contains("3 of 3 nodes") {
            ensure!(Instant::now() < until, "node 2 does not join");
        }
    }
    c.cli(["down", "--discard"])?.ok()?;
    Ok(())
}
