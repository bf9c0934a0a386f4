//! Anything dies, again and again, under writers and readers of all kinds: nothing that was acknowledged is lost,
//! doubled or out of order, and the file tree is whole at the end.

use anyhow::{Context, Result, anyhow, ensure};
use clustix_tests::gap::{self, Gap};
use clustix_tests::load::Load;
use clustix_tests::random::Random;
use clustix_tests::{Cluster, Program, domains, leftover};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::io::Read;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

const NODES: u8 = 3;
const BOUND: Duration = Duration::from_secs(60);
const ROLES: [&str; 8] =
    ["vfs", "process", "memory", "console", "control", "posix", "member", "init"];

fn rounds(all: usize) -> usize {
    if std::env::var_os("CLUSTIX_TEST_ALL").is_some() { all } else { all / 10 }
}

/// Sorted ms as median, 99th of a hundred, worst.
fn shown(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |part: usize| times.get((times.len() * part / 100).min(times.len().saturating_sub(1)));
    let ms = |t: Option<&Duration>| t.map_or(0, |t| t.as_millis());
    format!("p50 {}, p99 {}, worst {} ms", ms(at(50)), ms(at(99)), ms(times.last()))
}

fn is_down(cluster: &Cluster, node: u8) -> Result<bool> {
    // One may go while it is asked.
    let nodes = cluster.json(["nodes"]).or_else(|_| cluster.json(["nodes"]))?;
    Ok(nodes.as_array().into_iter().flatten().any(|n| n["node"] == node && n["state"] == "down"))
}

/// Ends the load, and says what it did; of two failures the load's says more.
fn finish(cluster: &Cluster, load: Load, killed: Result<()>) -> Result<String> {
    let done = match (load.stop(), killed) {
        (Ok(done), Ok(())) => done,
        (Ok(_), Err(e)) | (Err(e), Ok(())) => return Err(e),
        (Err(e), Err(then)) => return Err(e.context(format!("{then:#}"))),
    };
    done.check(cluster)?;
    Ok(format!(
        "{} steps acknowledged, none lost, doubled or out of order; {} programs lost with their node",
        done.steps(),
        done.lives_lost()
    ))
}

#[test]
fn nodes_die_under_load() -> Result<()> {
    let mut random = Random::seeded("deaths-nodes");
    let rounds = rounds(200);
    let cluster = Arc::new(Cluster::up(NODES)?);
    let load = Load::start(&cluster, NODES, &mut random)?;
    let (mut evicted, mut there, mut elsewhere) = (0, 0, 0);
    let mut times = Vec::new();
    let mut killing = || -> Result<()> {
        load.more(BOUND)?;
        for round in 0..rounds {
            let said = || format!("round {round}");
            // A moment of no choice.
            std::thread::sleep(Duration::from_millis(random.below(300)));
            let victim = random.below(NODES.into()) as u8;
            // A node may have been suspected, though it lived: beside it the cluster loses no second one.
            cluster.whole(&mut evicted).with_context(said)?;
            let mark = load.mark(victim);
            let kill = cluster.cli(["kill-node", &victim.to_string()])?;
            if kill.errors().contains("is down") {
                continue;
            }
            kill.ok()?;
            times.push(load.served(&mark, BOUND).with_context(said)?);
            there += mark.there;
            elsewhere += mark.elsewhere;
            cluster.cli(["start-node", &victim.to_string()])?.ok().with_context(said)?;
        }
        cluster.whole(&mut evicted)
    };
    let killed = killing();
    let ended = finish(&cluster, load, killed)?;
    println!(
        "deaths: {} of {rounds} rounds, {there} steps under way on the killed nodes, {elsewhere} elsewhere",
        times.len()
    );
    println!("deaths: {}; {evicted} live nodes were suspected and started again", ended);
    println!(
        "deaths: from a node's kill until every worker has been served: {}",
        shown(&mut times)
    );
    ensure!(times.len() * 10 >= rounds * 9, "only {} rounds of {rounds}", times.len());
    cluster.cli(["down"])?.ok()?;
    leftover::none(cluster.state())
}

/// Domains of several nodes, each to be ended at the same moment.
type Group = Vec<(u8, &'static str)>;

/// Each role as often as there are rounds, in groups of one per node, in which no role is twice; which roles are
/// on which nodes changes.
fn groups(rounds: usize) -> Vec<Group> {
    let all: Vec<&'static str> = (0..rounds).flat_map(|_| ROLES).collect();
    let node = |of: usize, i: usize| ((of + i) % usize::from(NODES)) as u8;
    let group = |(of, roles): (usize, &[&'static str])| {
        roles.iter().enumerate().map(|(i, role)| (node(of, i), *role)).collect()
    };
    all.chunks(NODES.into()).enumerate().map(group).collect()
}

#[test]
fn groups_hold_every_role_once() {
    let all = groups(5);
    for role in ROLES {
        assert_eq!(all.iter().flatten().filter(|(_, r)| *r == role).count(), 5);
    }
    for group in all {
        for (n, (node, role)) in group.iter().enumerate() {
            assert!(group[..n].iter().all(|(other, r)| other != node && r != role), "{group:?}");
        }
    }
}

/// What came of ending domains.
#[derive(Default)]
struct Ended {
    /// From the signal until another was there.
    back: Vec<Duration>,
    /// From the signal until every worker had been served.
    served: Vec<Duration>,
    evicted: u64,
}

impl Ended {
    /// Ends a group's domains, and waits for others in their places and for the load's workers. A node that was
    /// suspected, though it lived, brings nothing back.
    fn group(
        &mut self,
        cluster: &Cluster,
        load: &Load,
        group: &[(u8, &str)],
        signal: Signal,
    ) -> Result<()> {
        cluster.whole(&mut self.evicted)?;
        let mark = load.mark(0);
        for ((node, role), back) in group.iter().zip(domains::end(cluster, group, signal)) {
            match back {
                Ok(took) => self.back.push(took),
                Err(e) if is_down(cluster, *node)? => {
                    println!("deaths: {role} of node {node}: the node is down: {e:#}");
                }
                Err(e) => return Err(e),
            }
        }
        self.served.push(load.served(&mark, BOUND)?);
        Ok(())
    }
}

#[test]
fn domains_die_under_load() -> Result<()> {
    let mut random = Random::seeded("deaths-domains");
    let rounds = rounds(100);
    let cluster = Arc::new(Cluster::up(NODES)?);
    let load = Load::start(&cluster, NODES, &mut random)?;
    let (mut killed, mut hung) = (Ended::default(), Ended::default());
    let (mut gaps, mut starts) = (BTreeMap::<&str, Vec<Duration>>::new(), Vec::new());
    gap::import(&cluster)?;
    let mut killing = || -> Result<()> {
        load.more(BOUND)?;
        // By themselves: what their clients wait for is to be theirs alone.
        for role in gap::SERVERS {
            for node in 0..NODES {
                let said = || format!("{role} of node {node}");
                let mut client = Gap::start(&cluster, node, role).with_context(said)?;
                client.longest().with_context(said)?;
                killed.group(&cluster, &load, &[(node, role)], Signal::KILL).with_context(said)?;
                match client.longest() {
                    Ok(longest) => {
                        gaps.entry(role).or_default().push(longest);
                        let begin = Instant::now();
                        cluster.command(["--version"]).output()?;
                        starts.push(begin.elapsed());
                    }
                    // One that was lost with its node tells nothing.
                    Err(_) if is_down(&cluster, node)? => {}
                    Err(e) => return Err(e.context(said())),
                }
            }
        }
        for group in groups(rounds) {
            std::thread::sleep(Duration::from_millis(random.below(100)));
            let said = || format!("killed: {group:?}");
            killed.group(&cluster, &load, &group, Signal::KILL).with_context(said)?;
        }
        for group in groups(rounds / 5) {
            let said = || format!("made to hang: {group:?}");
            hung.group(&cluster, &load, &group, Signal::STOP).with_context(said)?;
        }
        Ok(())
    };
    let ended = killing();
    let ended = finish(&cluster, load, ended)?;
    println!(
        "deaths: {} domains killed, {} hung: {ended}; {} live nodes were suspected and started again",
        killed.back.len(),
        hung.back.len(),
        killed.evicted + hung.evicted
    );
    for (what, Ended { back, served, .. }) in [("kill", &mut killed), ("hanging", &mut hung)] {
        println!("deaths: from domains' {what} until `pds` shows the next: {}", shown(back));
        println!("deaths: until every worker has been served: {}", shown(served));
    }
    println!(
        "deaths: fork, exec and main of the same program, beside these: {}",
        shown(&mut starts)
    );
    ensure!(gaps.len() == gap::SERVERS.len(), "some servers' clients were all lost: {gaps:?}");
    for (role, gaps) in &mut gaps {
        println!("deaths: the longest call to a {role} that was killed: {}", shown(gaps));
    }
    let all = rounds * ROLES.len();
    ensure!(killed.back.len() * 10 >= all * 8, "only {} kills of {all}", killed.back.len());
    cluster.cli(["down"])?.ok()?;
    leftover::none(cluster.state())
}

/// By two FIFOs over three nodes: what comes out when the middle's node dies is a beginning of what went in, and
/// neither end takes that for the whole.
#[test]
fn both_ends_of_a_pipeline_hear_of_its_middles_death() -> Result<()> {
    let cluster = Cluster::up(NODES)?;
    cluster.sh(None, "mkfifo /in /out")?.ok()?;
    let middle = Program::start(cluster.sh_command(Some(1), "cat < /in > /out"), b"")?;
    let script = "set -o pipefail; seq 1 100000000 | cat > /in; echo ended with $?";
    let writer = Program::start(cluster.sh_command(Some(0), script), b"")?;
    let script = "set -o pipefail; cat < /out | cat; echo ended with $? >&2";
    let mut reader = cluster
        .sh_command(Some(2), script)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut out = reader.stdout.take().context("a pipe")?;
    let (all_told, told) = std::sync::mpsc::channel();
    let copied = std::thread::spawn(move || -> std::io::Result<Vec<u8>> {
        let mut got = vec![0; 1 << 20];
        out.read_exact(&mut got)?;
        let _ = all_told.send(());
        out.read_to_end(&mut got)?;
        let _ = all_told.send(());
        Ok(got)
    });
    told.recv_timeout(BOUND).context("nothing comes through the pipeline")?;
    cluster.cli(["kill-node", "1"])?.ok()?;
    told.recv_timeout(BOUND).context("the reader hears of no end")?;
    let got = copied.join().map_err(|_| anyhow!("a panic"))??;
    let mut said = String::new();
    reader.stderr.take().context("a pipe")?.read_to_string(&mut said)?;
    let (middle, writer) = (middle.end()?, writer.end()?);
    ensure!(reader.wait()?.success(), "{said}");
    let status = |text: &str| {
        let status = text.trim().rsplit_once("ended with ")?.1.parse::<i32>().ok()?;
        (status != 0).then_some(status)
    };
    let (read, written) = (status(&said), status(&writer.text()));
    ensure!(read.is_some(), "the reader took it for the end: {said}");
    ensure!(written.is_some(), "the writer noticed nothing: {}{}", writer.text(), writer.errors());
    ensure!(middle.status == 137, "{}", middle.errors());
    ensure!(middle.errors().contains("lost with node 1"), "{}", middle.errors());
    let mut put = (1u64..).flat_map(|n| format!("{n}\n").into_bytes());
    ensure!(got.iter().all(|byte| put.next() == Some(*byte)), "other bytes came out than went in");
    println!(
        "deaths: a pipeline's middle died after {} bytes had come out; statuses {read:?} and {written:?}",
        got.len()
    );
    cluster.cli(["down"])?.ok()?;
    leftover::none(cluster.state())
}
