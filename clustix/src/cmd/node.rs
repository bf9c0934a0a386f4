//! `clustix kill-node`, `start-node` and `kill`.

use super::up;
use crate::args::{Kill, Rehome};
use crate::connection;
use crate::interrupt::Interrupts;
use crate::launch::Nodes;
use crate::procfs;
use crate::state::Folder;
use crate::wire::Request;
use anyhow::{Context, Result, anyhow, bail};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Longest that a node may take to join.
const BOUND: Duration = Duration::from_secs(30);

/// Kills a node's tree.
///
/// # Errors
/// There is no such node, or it is down.
pub fn kill_node(folder: &Folder, slot: u8) -> Result<ExitCode> {
    let _lock = folder.lock()?;
    connection::candidates(folder, Some(slot))?;
    let process = folder.process(slot)?.with_context(|| format!("node {slot} is down"))?;
    let begin = Instant::now();
    let (processes, stragglers) = procfs::kill_tree(&process)?;
    println!("node {slot}: {processes} processes killed in {} ms", begin.elapsed().as_millis());
    if stragglers > 0 {
        eprintln!("clustix: {stragglers} of them outlived their parent and were killed one by one");
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts a node that is down.
///
/// # Errors
/// It runs; the cluster does not let it join in time. Then it does not run.
pub fn start_node(folder: &Folder, slot: u8) -> Result<ExitCode> {
    let begin = Instant::now();
    let interrupts = Interrupts::new()?;
    let _lock = folder.lock()?;
    let mut cluster = folder.running()?;
    cluster.check_here(slot)?;
    let live = folder.live()?;
    if live.iter().any(|(s, _)| *s == slot) {
        bail!("node {slot} runs already");
    }
    if live.is_empty() && cluster.hosts.is_none() {
        bail!(
            "no node of cluster {:?} runs, so there is nothing to join; `clustix down{f}`, then `clustix up{f} --nodes {}`",
            cluster.name,
            cluster.nodes,
            f = folder.flag()
        );
    }
    let incarnation = cluster.incarnate(slot);
    folder.save(&cluster)?;
    let mut nodes = Nodes::new(folder);
    nodes.start(slot, incarnation)?;
    // Of nodes on other hosts nothing is known here.
    let bound = if cluster.hosts.is_some() { up::HOSTS_BOUND } else { BOUND };
    nodes
        .serve(live.len() as u8 + 1, bound, &interrupts)
        .with_context(|| format!("node {slot} did not join"))?;
    nodes.keep();
    println!(
        "node {slot} serves after {} ms (incarnation {incarnation})",
        begin.elapsed().as_millis()
    );
    Ok(ExitCode::SUCCESS)
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
