//! A witness: a process that holds nothing and votes where the nodes are even in number. One of two nodes goes
//! on without the other, again and again, with nothing lost that was acknowledged.

use anyhow::{Context, Result, ensure};
use clustix_tests::{Cluster, Program, leftover};
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

const BOUND: Duration = Duration::from_secs(30);

fn wait(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let begin = Instant::now();
    while !done()? {
        ensure!(begin.elapsed() < BOUND, "{what}: not within {} s", BOUND.as_secs());
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(begin.elapsed())
}

fn can_lose_one(cluster: &Cluster) -> Result<bool> {
    Ok(cluster.cli(["status"])?.status == 0)
}

/// The state of a node, or of the witness, as `nodes` has it.
fn state(cluster: &Cluster, node: &str) -> Result<String> {
    let nodes = cluster.json(["nodes"])?;
    let all = nodes.as_array().context("a list")?;
    let named = |n: &serde_json::Value| n["node"].to_string().trim_matches('"') == node;
    let found = all.iter().find(|n| named(n)).context("no such node")?;
    Ok(found["state"].as_str().context("a state")?.to_owned())
}

#[test]
fn one_of_two_nodes_goes_on_without_the_other() -> Result<()> {
    let cluster = Cluster::new()?;
    let up = cluster.cli(["up", "--nodes", "2", "--witness"])?.ok()?.text();
    ensure!(up.contains("2 nodes and a witness"), "{up}");
    cluster.install_busybox()?;
    ensure!(can_lose_one(&cluster)?, "{}", cluster.cli(["status"])?.text());
    let rounds = if std::env::var_os("CLUSTIX_TEST_ALL").is_some() { 40 } else { 8 };
    let (mut acknowledged, mut times) = (0_u64, Vec::new());
    for round in 0..rounds {
        // Whoever is killed writes; so it dies in the middle of it. Either of them leads at times.
        let victim = (round % 2) as u8;
        let mut child = cluster
            .sh_command(
                Some(victim),
                &format!("n={acknowledged}; while :; do echo $n > /f$n && echo $n || exit 1; n=$((n+1)); done"),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        for _ in 0..50 {
            let line = lines.next().context("the writer ended")??;
            acknowledged = line.parse::<u64>()? + 1;
        }
        let killed = Instant::now();
        cluster.cli(["kill-node", &victim.to_string()])?.ok()?;
        let read = cluster.sh(None, &format!("cat /f{}", acknowledged - 1))?.ok()?.text();
        times.push(killed.elapsed().as_millis());
        ensure!(read.trim() == (acknowledged - 1).to_string(), "{read:?}");
        for line in lines {
            acknowledged = line?.parse::<u64>()? + 1;
        }
        child.wait()?;
        // The one under way may be there or not; its number is not used again.
        acknowledged += 1;
        ensure!(!can_lose_one(&cluster)?, "one node says that it can be lost");
        cluster.cli(["start-node", &victim.to_string()])?.ok()?;
        wait("two copies again", || can_lose_one(&cluster))?;
    }
    let count = cluster
        .sh(None, &format!("n=0; m=0; while [ $n -lt {acknowledged} ]; do [ \"$(cat /f$n 2>/dev/null)\" = $n ] || m=$((m+1)); n=$((n+1)); done; echo $m"))?
        .ok()?
        .text();
    let missing: usize = count.trim().parse()?;
    times.sort_unstable();
    println!(
        "witness: {rounds} kills of one of two nodes: {acknowledged} files, {missing} of them under way at a kill and not there; ms to the next read: median {}, worst {}",
        times[times.len() / 2],
        times[times.len() - 1]
    );
    // At each kill one file may have been begun and not written.
    ensure!(missing <= rounds, "{missing} files are not there");

    // Without the witness none can be lost, and the status says so; with another it can.
    cluster.cli(["kill-node", "witness"])?.ok()?;
    wait("the witness to be missed", || Ok(state(&cluster, "witness")? == "down"))?;
    ensure!(!can_lose_one(&cluster)?);
    ensure!(cluster.cli(["status"])?.text().contains("the witness is not there"));
    cluster.sh(None, "echo still > /still")?.ok()?;
    let again = cluster.cli(["kill-node", "witness"])?;
    ensure!(
        again.status != 0 && again.errors().contains("start-node witness"),
        "{}",
        again.errors()
    );
    cluster.cli(["start-node", "witness"])?.ok()?;
    ensure!(can_lose_one(&cluster)? && state(&cluster, "witness")? == "up");
    let twice = cluster.cli(["start-node", "witness"])?;
    ensure!(twice.status != 0 && twice.errors().contains("runs already"), "{}", twice.errors());
    // A witness that stands still is missed as well, and comes back by itself.
    let pid = cluster.json(["nodes"])?[2]["pid"].as_i64().context("its pid")?;
    let process = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("its pid")?;
    rustix::process::kill_process(process, rustix::process::Signal::STOP)?;
    wait("the witness to be missed", || Ok(state(&cluster, "witness")? == "joining"))?;
    rustix::process::kill_process(process, rustix::process::Signal::CONT)?;
    wait("the witness to be back", || can_lose_one(&cluster))?;
    cluster.cli(["kill-node", "0"])?.ok()?;
    ensure!(cluster.sh(None, "cat /still")?.ok()?.text() == "still\n");

    // Whoever is left alone is stopped with everything, and its files are kept.
    cluster.cli(["down"])?.ok()?;
    leftover::none(cluster.state())?;
    let up = cluster.cli(["up", "--nodes", "1", "--witness"])?.ok()?.text();
    ensure!(up.contains("restored"), "{up}");
    ensure!(cluster.sh(None, "cat /still")?.ok()?.text() == "still\n");
    ensure!(!can_lose_one(&cluster)?);
    cluster.cli(["down", "--discard"])?.ok()?;
    leftover::none(cluster.state())
}

/// Three nodes and a witness lose two, one right after the other.
#[test]
fn of_three_nodes_two_are_lost() -> Result<()> {
    let cluster = Cluster::up(3)?;
    cluster.install_busybox()?;
    cluster.cli(["start-node", "witness"])?.ok()?;
    let writer = Program::start(
        cluster.sh_command(Some(1), "n=0; while :; do echo $n > /f || exit 1; n=$((n+1)); done"),
        b"",
    )?;
    // As soon as the first is out of the view, which is not settled yet.
    cluster.cli(["kill-node", "0"])?.ok()?;
    wait("a view without it", || Ok(cluster.cli(["status"])?.text().contains("2 of 3 nodes")))?;
    cluster.cli(["kill-node", "2"])?.ok()?;
    let took = wait("the last node to serve", || Ok(cluster.sh(Some(1), "cat /f")?.status == 0))?;
    println!("witness: two of three nodes killed: the third serves after {} ms", took.as_millis());
    ensure!(cluster.cli(["status"])?.text().contains("1 of 3 nodes"));
    for node in ["0", "2"] {
        cluster.cli(["start-node", node])?.ok()?;
    }
    wait("three copies again", || {
        Ok(can_lose_one(&cluster)? && cluster.cli(["status"])?.text().contains("3 of 3 nodes"))
    })?;
    drop(writer);
    cluster.cli(["down", "--discard"])?.ok()?;
    leftover::none(cluster.state())
}
