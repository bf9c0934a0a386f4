//! Anything dies, again and again, under writers and readers of all kinds: nothing that was acknowledged is lost,
//! doubled or out of order, and the file tree is whole at the end.

use anyhow::{Context, Result, ensure};
use clustix_tests::gap::{self, Gap};
use clustix_tests::load::Load;
use clustix_tests::random::Random;
use clustix_tests::{Cluster, domains, leftover};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const NODES: u8 = 3;
const BOUND: Duration = Duration::from_secs(60);

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
        for round in 0..rounds {
            let said = || format!("round {round}");
            cluster.whole(&mut evicted).with_context(said)?;
            load.more(BOUND).with_context(said)?;
            // A moment of no choice.
            std::thread::sleep(Duration::from_millis(random.below(300)));
            let victim = random.below(NODES.into()) as u8;
            let mark = load.mark(victim);
            // A node may have been suspected, though it lived, since the round began: this one, or another, beside
            // which the cluster loses no second one.
            if cluster.cli(["status"])?.status != 0 {
                continue;
            }
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

#[test]
fn domains_die_under_load() -> Result<()> {
    const ROLES: [&str; 8] =
        ["vfs", "process", "memory", "console", "control", "posix", "member", "init"];
    let mut random = Random::seeded("deaths-domains");
    let rounds = rounds(100);
    let cluster = Arc::new(Cluster::up(NODES)?);
    let load = Load::start(&cluster, NODES, &mut random)?;
    let (mut back, mut served) = (Vec::new(), Vec::new());
    let (mut hung, mut served_then) = (Vec::new(), Vec::new());
    let (mut gaps, mut starts) = (BTreeMap::<&str, Vec<Duration>>::new(), Vec::new());
    let mut evicted = 0;
    gap::import(&cluster)?;
    let mut killing = || -> Result<()> {
        for round in 0..rounds {
            // In turn: init gives a domain up that dies more than ten times in a minute.
            let node = (round % usize::from(NODES)) as u8;
            for role in ROLES {
                let mut client = match gap::SERVERS.contains(&role) {
                    true => Gap::start(&cluster, node, role)
                        .and_then(|mut client| client.longest().map(|_| client))
                        .ok(),
                    false => None,
                };
                let said = || format!("round {round}, {role} of node {node}");
                cluster.whole(&mut evicted).with_context(said)?;
                load.more(BOUND).with_context(said)?;
                std::thread::sleep(Duration::from_millis(random.below(100)));
                let mark = load.mark(node);
                match domains::kill(&cluster, node, &[role]) {
                    Ok(took) => back.push(took),
                    // It was suspected, though it lived, since the round began.
                    Err(e) if is_down(&cluster, node)? => {
                        println!("deaths: {}: the node is down: {e:#}", said());
                        continue;
                    }
                    Err(e) => return Err(e.context(said())),
                }
                served.push(load.served(&mark, BOUND).with_context(said)?);
                // A client that was lost with its node tells nothing.
                if let Some(Ok(longest)) = client.as_mut().map(Gap::longest) {
                    gaps.entry(role).or_default().push(longest);
                    let begin = Instant::now();
                    cluster.command(["--version"]).output()?;
                    starts.push(begin.elapsed());
                }
                // A fifth of them hang besides.
                if round % 5 == 4 {
                    let said = || format!("round {round}, {role} of node {node} hung");
                    cluster.whole(&mut evicted).with_context(said)?;
                    load.more(BOUND).with_context(said)?;
                    let mark = load.mark(node);
                    match domains::hang(&cluster, node, role) {
                        Ok(took) => hung.push(took),
                        Err(e) if is_down(&cluster, node)? => {
                            println!("deaths: {}: the node is down: {e:#}", said());
                            continue;
                        }
                        Err(e) => return Err(e.context(said())),
                    }
                    served_then.push(load.served(&mark, BOUND).with_context(said)?);
                }
            }
        }
        Ok(())
    };
    let killed = killing();
    let ended = finish(&cluster, load, killed)?;
    println!(
        "deaths: {} domains killed, {} hung: {ended}; {evicted} live nodes were suspected and started again",
        served.len(),
        hung.len()
    );
    println!("deaths: from a domain's kill until `pds` shows the next: {}", shown(&mut back));
    println!("deaths: until every worker has been served: {}", shown(&mut served));
    println!("deaths: from a domain's hanging until the next: {}", shown(&mut hung));
    println!("deaths: until every worker has been served: {}", shown(&mut served_then));
    println!(
        "deaths: fork, exec and main of the same program, beside these: {}",
        shown(&mut starts)
    );
    for (role, gaps) in &mut gaps {
        println!("deaths: the longest call to a {role} that was killed: {}", shown(gaps));
    }
    let all = rounds * ROLES.len();
    ensure!(served.len() * 10 >= all * 8, "only {} kills of {all}", served.len());
    cluster.cli(["down"])?.ok()?;
    leftover::none(cluster.state())
}
