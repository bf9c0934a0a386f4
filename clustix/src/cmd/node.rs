//! `clustix kill-node`, `start-node` and `kill`.

use super::up;
use crate::args::{Kill, Rehome};
use crate::connection;
use crate::interrupt::Interrupts;
use crate::launch::{Evicted, Nodes};
use crate::procfs;
use crate::state::{Cluster, Folder, WITNESS, called};
use crate::wire::Request;
use anyhow::{Result, anyhow, bail};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Longest that a node may take to join.
const BOUND: Duration = Duration::from_secs(30);

/// How often a node is started that is evicted before it serves.
const STARTS: u32 = 3;

/// Kills a node's tree, or the witness.
///
/// # Errors
/// There is no such node, or it is down.
pub fn kill_node(folder: &Folder, slot: u8) -> Result<ExitCode> {
    let _lock = folder.lock()?;
    folder.running()?.check_here(slot)?;
    let Some(process) = folder.process(slot)? else {
        bail!(
            "{} is down; bring it back with `clustix start-node{} {}`",
            called(slot),
            folder.flag(),
            if slot == WITNESS { "witness".to_owned() } else { slot.to_string() }
        )
    };
    let begin = Instant::now();
    let (processes, stragglers) = procfs::kill_tree(&process)?;
    let plural = if processes == 1 { "" } else { "es" };
    println!(
        "{}: {processes} process{plural} killed in {} ms",
        called(slot),
        begin.elapsed().as_millis()
    );
    if stragglers > 0 {
        eprintln!("clustix: {stragglers} of them outlived their parent and were killed one by one");
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts a node that is down, or the witness.
///
/// # Errors
/// It runs; the cluster does not let it join in time, or evicts it again and again. Then it does not run.
pub fn start_node(folder: &Folder, slot: u8) -> Result<ExitCode> {
    let begin = Instant::now();
    let interrupts = Interrupts::new()?;
    let _lock = folder.lock()?;
    let mut cluster = folder.running()?;
    cluster.check_here(slot)?;
    let live = folder.live()?;
    if folder.process(slot)?.is_some() {
        bail!("{} runs already", called(slot));
    }
    if live.is_empty() && cluster.hosts.is_none() {
        bail!(
            "no node of cluster {:?} runs, so there is nothing to join; `clustix down{f}`, then `clustix up{f} --nodes {}`",
            cluster.name,
            cluster.nodes,
            f = folder.flag()
        );
    }
    let had = cluster.witness;
    let mut starts = 0;
    let incarnation = loop {
        let incarnation = cluster.incarnate(slot);
        folder.save(&cluster)?;
        let mut nodes = Nodes::new(folder);
        starts += 1;
        match join(folder, &cluster, &mut nodes, (slot, incarnation), live.len(), &interrupts) {
            Ok(()) => {
                nodes.keep();
                break incarnation;
            }
            // Who is evicted joins again, empty, as what it is: another incarnation.
            Err(e) if e.is::<Evicted>() && starts < STARTS => {
                drop(nodes);
                eprintln!("clustix: {}: {e}; starting it again", called(slot));
            }
            Err(e) => {
                drop(nodes);
                cluster.witness = had;
                folder.save(&cluster)?;
                return Err(e.context(format!("{} did not join", called(slot))));
            }
        }
    };
    println!(
        "{} {} after {} ms (incarnation {incarnation})",
        called(slot),
        match (slot, &cluster.hosts) {
            (WITNESS, Some(_)) => "is started",
            (WITNESS, None) => "is there",
            _ => "serves",
        },
        begin.elapsed().as_millis()
    );
    Ok(ExitCode::SUCCESS)
}

/// Starts a node, or the witness, and waits until it has joined the cluster.
fn join<'a>(
    folder: &'a Folder,
    cluster: &Cluster,
    nodes: &mut Nodes<'a>,
    (slot, incarnation): (u8, u64),
    live: usize,
    interrupts: &Interrupts,
) -> Result<()> {
    nodes.start(slot, incarnation)?;
    // Of nodes on other hosts nothing is known here.
    let bound = if cluster.hosts.is_some() { up::HOSTS_BOUND } else { BOUND };
    let wanted = live as u8 + u8::from(slot != WITNESS);
    nodes.serve(wanted, None, bound, interrupts)?;
    if slot == WITNESS && cluster.hosts.is_none() {
        let witness = Some(incarnation);
        let millis = u32::try_from(bound.as_millis()).unwrap_or(u32::MAX);
        connection::ask(folder, None, &Request::AwaitServing { nodes: 1, witness, millis })?;
    }
    Ok(())
}

/// Makes a node the primary of shards.
///
/// # Errors
/// There is no such node, or it has no complete copy of one of them.
pub fn rehome(folder: &Folder, args: &Rehome) -> Result<ExitCode> {
    let cluster = folder.running()?;
    if !cluster.slots().contains(&args.node) {
        bail!("cluster {:?} has no node {}", cluster.name, args.node);
    }
    let (first, last) = args.shards;
    connection::ask(folder, None, &Request::Rehome { to: args.node, first, last })?;
    Ok(ExitCode::SUCCESS)
}

/// Sends a signal to a process of the cluster.
///
/// # Errors
/// There is no such process or signal.
pub fn signal(folder: &Folder, args: &Kill) -> Result<ExitCode> {
    let (signal, target) = args.parse().map_err(|e| anyhow!(e))?;
    connection::ask(folder, None, &Request::Kill { signal, target })?;
    Ok(ExitCode::SUCCESS)
}
