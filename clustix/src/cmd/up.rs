//! `clustix up`.

use super::down;
use crate::args::Up;
use crate::hosts::Hosts;
use crate::interrupt::Interrupts;
use crate::launch::{self, Nodes};
use crate::procfs;
use crate::snapshot;
use crate::state::{Cluster, Folder, MAX_NODES, Phase, WITNESS, called};
use anyhow::{Context, Result, bail};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Longest that a cluster may take until it serves.
const BOUND: Duration = Duration::from_secs(30);
/// The same for a node that may have to wait for other hosts.
pub const HOSTS_BOUND: Duration = Duration::from_secs(120);

/// Starts a cluster.
///
/// # Errors
/// It is up already; the snapshot is refused; a node does not serve; a signal. Then nothing that was
/// started runs any more.
pub fn up(folder: &Folder, args: &Up) -> Result<ExitCode> {
    let begin = Instant::now();
    let interrupts = Interrupts::new()?;
    folder.create()?;
    let _lock = folder.lock()?;
    let mut cluster = folder.cluster()?.unwrap_or_else(|| Cluster::new(folder.name()));
    make_way(folder, &mut cluster)?;
    if let Some(file) = &args.hosts {
        let slot = args.node.unwrap_or(WITNESS);
        return up_here(folder, cluster, Hosts::read(file)?, slot, &interrupts);
    }
    let Some(nodes_wanted) = args.nodes else { bail!("how many nodes? Use --nodes") };
    cluster.hosts = None;

    // Before anything runs: a snapshot that is refused must leave nothing half-made.
    let kept = if args.fresh { None } else { snapshot::verify(&folder.snapshot())? };

    cluster.nodes = nodes_wanted;
    cluster.memory = match args.memory {
        Some(bytes) => bytes,
        None => default_memory(nodes_wanted)?,
    };
    cluster.phase = Phase::Starting;
    cluster.generation += 1;
    let incarnations: Vec<u64> = (0..nodes_wanted).map(|slot| cluster.incarnate(slot)).collect();
    cluster.incarnations.truncate(usize::from(nodes_wanted));
    cluster.witness = None;
    let witness = args.witness.then(|| (WITNESS, cluster.incarnate(WITNESS)));
    folder.save(&cluster)?;

    let mut nodes = Nodes::new(folder);
    let served = (0..nodes_wanted)
        .zip(incarnations)
        .chain(witness)
        .try_for_each(|(slot, incarnation)| nodes.start(slot, incarnation))
        .and_then(|()| nodes.serve(nodes_wanted, cluster.witness, BOUND, &interrupts))
        .and_then(|()| match kept {
            Some(_) => launch::restore(&nodes, &folder.snapshot(), &interrupts),
            None => Ok(0),
        });
    let restored = match served {
        Ok(restored) => restored,
        Err(e) => {
            // The logs go with the nodes: what they say last is all there is to learn from.
            if !format!("{e:#}").contains("its log ends") && interrupts.caught().is_none() {
                for slot in (0..nodes_wanted).chain(witness.map(|(slot, _)| slot)) {
                    eprintln!("{}{}", called(slot), launch::tail(folder, slot));
                }
            }
            drop(nodes);
            cluster.phase = Phase::Stopped;
            folder.save(&cluster)?;
            return Err(e.context(format!("cluster {:?} did not come up", cluster.name)));
        }
    };
    if args.fresh {
        remove_snapshot(folder)?;
    }
    cluster.phase = Phase::Running;
    folder.save(&cluster)?;
    nodes.keep();
    let plural = if nodes_wanted == 1 { "" } else { "s" };
    print!(
        "cluster {:?} serves with {} node{plural}{} after {} ms",
        cluster.name,
        nodes_wanted,
        if args.witness { " and a witness" } else { "" },
        begin.elapsed().as_millis()
    );
    match kept {
        Some((_, bytes, _)) => println!("; {restored} objects ({bytes} bytes) restored"),
        None => println!(),
    }
    if nodes_wanted < 2 {
        println!("one node holds the only copy of everything: no node can be lost");
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts this host's node of a cluster of several, or its witness.
fn up_here(
    folder: &Folder,
    mut cluster: Cluster,
    hosts: Hosts,
    slot: u8,
    interrupts: &Interrupts,
) -> Result<ExitCode> {
    let begin = Instant::now();
    hosts.address(slot)?;
    let others: Vec<String> = hosts
        .node
        .iter()
        .filter(|n| n.slot != slot)
        .map(|n| format!("node {} at {}", n.slot, n.address))
        .collect();
    cluster.nodes = u8::try_from(hosts.node.len()).unwrap_or(MAX_NODES);
    cluster.memory = match hosts.memory() {
        Some(bytes) => bytes,
        None => default_memory(1)?,
    };
    cluster.generation += 1;
    cluster.phase = Phase::Starting;
    cluster.hosts = Some((hosts, slot));
    cluster.witness = None;
    let incarnation = cluster.incarnate(slot);
    folder.save(&cluster)?;
    let mut nodes = Nodes::new(folder);
    let served =
        nodes.start(slot, incarnation).and_then(|()| nodes.serve(1, None, HOSTS_BOUND, interrupts));
    let served = served.with_context(|| {
        format!("{} did not come up; it may lack {}", called(slot), others.join(", "))
    });
    if let Err(e) = served {
        drop(nodes);
        cluster.phase = Phase::Stopped;
        folder.save(&cluster)?;
        return Err(e);
    }
    cluster.phase = Phase::Running;
    folder.save(&cluster)?;
    nodes.keep();
    println!(
        "{} of cluster {:?} {} after {} ms (incarnation {incarnation})",
        called(slot),
        cluster.name,
        if slot == WITNESS { "is started" } else { "serves" },
        begin.elapsed().as_millis()
    );
    Ok(ExitCode::SUCCESS)
}

/// Cleans what a killed `up` or `down` left, or says why there can be no new start.
fn make_way(folder: &Folder, cluster: &mut Cluster) -> Result<()> {
    let live = folder.all_live()?;
    let nodes = live.iter().filter(|(slot, _)| *slot != WITNESS).count();
    match cluster.phase {
        Phase::Running if nodes > 0 || cluster.hosts.is_some() && !live.is_empty() => bail!(
            "cluster {:?} is up already, with {nodes} of {} nodes running; stop it with `clustix down{}` or use another --name",
            cluster.name,
            cluster.nodes,
            folder.flag()
        ),
        Phase::Stopping if nodes > 0 && cluster.hosts.is_none() => {
            eprintln!(
                "clustix: an earlier `down` of this cluster was interrupted; finishing it first"
            );
            return down::stop(folder, cluster, false).map(drop);
        }
        Phase::Running if cluster.hosts.is_none() => eprintln!(
            "clustix: cluster {:?} ended without `clustix down`: what was written since it came up is lost",
            cluster.name
        ),
        Phase::Starting => eprintln!(
            "clustix: an earlier `up` of this cluster was interrupted; cleaning up after it"
        ),
        _ => {}
    }
    for (slot, process) in &live {
        procfs::kill_tree(process).with_context(|| format!("could not end {}", called(*slot)))?;
    }
    folder.clean()
}

fn remove_snapshot(folder: &Folder) -> Result<()> {
    match std::fs::remove_file(folder.snapshot()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).context(format!("could not remove {}", folder.snapshot().display()))
        }
        _ => Ok(()),
    }
}

/// A quarter of this machine's memory, shared out between the nodes.
fn default_memory(nodes: u8) -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("could not read /proc/meminfo")?;
    let kib: u64 = text
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:"))
        .and_then(|l| l.trim().strip_suffix(" kB"))
        .and_then(|n| n.trim().parse().ok())
        .context("/proc/meminfo does not say how much memory there is; use --memory")?;
    Ok((kib * 1024 / 4 / u64::from(nodes)).max(64 << 20))
}
