//! `clustix down`: ends programs, keeps what outlives them, ends the nodes.

use crate::args::Down;
use crate::connection::Connection;
use crate::interrupt::Interrupts;
use crate::procfs::{self, Process};
use crate::snapshot::{self, Writer};
use crate::state::{Cluster, Folder, Phase, WITNESS, called};
use crate::wire::{Program, Reply, Request, Status};
use anyhow::{Context, Result, anyhow, bail};
use clustix_ccache::set;
use rustix::process::Signal;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

/// Between TERM and KILL.
const GRACE: Duration = Duration::from_secs(5);
/// Longest that the nodes may take to end after they were asked to.
const END: Duration = Duration::from_secs(10);
/// Longest that a cluster may take to recover from a loss before it is given up.
const SETTLE: Duration = Duration::from_secs(10);
/// How often a dump is begun anew because the cluster's view changed under it.
const ATTEMPTS: usize = 5;

/// Stops a cluster.
///
/// # Errors
/// No snapshot could be made (then it goes on running, unless `--discard`); a node would not end.
pub fn down(folder: &Folder, args: &Down) -> Result<ExitCode> {
    let _lock = folder.lock()?;
    let Some(mut cluster) = folder.cluster()? else {
        bail!("cluster {:?} was never up", folder.name())
    };
    let begin = Instant::now();
    let live = folder.all_live()?;
    let ended = match cluster.phase {
        Phase::Stopped if live.is_empty() => {
            folder.clean()?;
            println!("cluster {:?} is down already", cluster.name);
            return Ok(ExitCode::SUCCESS);
        }
        Phase::Starting | Phase::Stopped => {
            eprintln!("clustix: an `up` of this cluster was interrupted; cleaning up after it");
            end_nodes(&live)?;
            finish(folder, &mut cluster)?;
            Ended::default()
        }
        Phase::Ending => {
            eprintln!("clustix: an earlier `down` of this cluster was interrupted; finishing it");
            end_nodes(&live)?;
            finish(folder, &mut cluster)?;
            let (objects, bytes, _) = snapshot::verify(&folder.snapshot())?.unwrap_or_default();
            Ended { objects, bytes, ..Ended::default() }
        }
        Phase::Running | Phase::Stopping
            if cluster.hosts.is_none() && live.iter().all(|(slot, _)| *slot == WITNESS) =>
        {
            eprintln!(
                "clustix: no node ran any more: what was written since the last `up` is lost"
            );
            end_nodes(&live)?;
            finish(folder, &mut cluster)?;
            Ended::default()
        }
        Phase::Running | Phase::Stopping if let Some((_, here)) = cluster.hosts => {
            end_nodes(&live)?;
            finish(folder, &mut cluster)?;
            println!(
                "{} of cluster {:?} is down after {} ms; what the cluster holds stays with the others that run",
                called(here),
                cluster.name,
                begin.elapsed().as_millis()
            );
            return Ok(ExitCode::SUCCESS);
        }
        Phase::Running | Phase::Stopping => stop(folder, &mut cluster, args.discard)?,
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&super::list::programs_json(&ended.programs))?);
    } else {
        for p in &ended.programs {
            println!("ended: {} {} (node {})", p.pid, p.command, p.node);
        }
        println!(
            "cluster {:?} is down after {} ms; {} objects ({} bytes) kept",
            cluster.name,
            begin.elapsed().as_millis(),
            ended.objects,
            ended.bytes
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// What a stop did.
#[derive(Debug, Default)]
pub struct Ended {
    /// Programs that were running.
    pub programs: Vec<Program>,
    /// Objects in the snapshot.
    pub objects: u64,
    /// Bytes of the snapshot.
    pub bytes: u64,
}

/// Stops a cluster whose lock is held. An interrupt before the snapshot is complete leaves the
/// cluster running, thawed; after that the stop is carried through.
///
/// # Errors
/// As [`down`].
pub fn stop(folder: &Folder, cluster: &mut Cluster, discard: bool) -> Result<Ended> {
    let interrupts = Interrupts::new()?;
    let live = folder.all_live()?;
    let mut ended = Ended::default();
    if !discard {
        cluster.phase = Phase::Stopping;
        folder.save(cluster)?;
        match keep(folder, &live, &mut ended, &interrupts) {
            Ok(()) => {}
            Err(e) => {
                for (slot, _) in live.iter().filter(|(slot, _)| *slot != WITNESS) {
                    let _ =
                        Connection::open(folder, *slot, Request::Thaw).and_then(|mut c| c.all());
                }
                cluster.phase = Phase::Running;
                folder.save(cluster)?;
                return Err(e.context(format!(
                    "cluster {:?} goes on running: its files could not be kept; try again, or throw them away with `clustix down{} --discard`",
                    cluster.name,
                    folder.flag()
                )));
            }
        }
    }
    // From here on a `down` that is killed leaves nodes that can do nothing but end: some may have,
    // and the others are no majority that could be asked again.
    cluster.phase = Phase::Ending;
    folder.save(cluster)?;
    end_nodes(&live)?;
    finish(folder, cluster)?;
    Ok(ended)
}

fn keep(
    folder: &Folder,
    live: &[(u8, Process)],
    ended: &mut Ended,
    interrupts: &Interrupts,
) -> Result<()> {
    let slots: Vec<u8> = live.iter().map(|(slot, _)| *slot).filter(|s| *s != WITNESS).collect();
    let stop_here = || match interrupts.caught() {
        Some(signal) => Err(anyhow!("interrupted by signal {signal}")),
        None => Ok(()),
    };
    let grace_ms = GRACE.as_millis() as u32;
    // Twice: a program may have been started while the first round went from node to node.
    for _ in 0..2 {
        let rounds: Vec<Result<Vec<Reply>>> = std::thread::scope(|scope| {
            let nodes: Vec<_> = slots
                .iter()
                .map(|slot| {
                    scope.spawn(|| any(folder, &[*slot], &Request::EndPrograms { grace_ms }))
                })
                .collect();
            nodes
                .into_iter()
                .map(|n| {
                    n.join().unwrap_or_else(|_| Err(anyhow!("a thread of this command ended")))
                })
                .collect()
        });
        for replies in rounds {
            for reply in replies? {
                if let Reply::Programs(programs) = reply {
                    ended.programs.extend(programs);
                }
            }
        }
        ended.programs.sort_by_key(|p| p.pid);
        ended.programs.dedup_by_key(|p| p.pid);
        stop_here()?;
    }
    for slot in &slots {
        Connection::open(folder, *slot, Request::Freeze)?.all()?;
    }
    let created =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    for _ in 0..ATTEMPTS {
        stop_here()?;
        let before = status(folder, &slots)?;
        let mut writer = Writer::create(&folder.snapshot(), created)
            .with_context(|| format!("could not write {}", folder.snapshot().display()))?;
        let dumped =
            before.nodes.iter().try_for_each(|n| dump(folder, n.node, &mut writer, interrupts));
        let after = status(folder, &slots)?;
        if before.epoch != after.epoch {
            // A node was lost meanwhile, and its shards changed hands.
            continue;
        }
        dumped?;
        stop_here()?;
        (ended.objects, ended.bytes) = writer
            .finish()
            .with_context(|| format!("could not write {}", folder.snapshot().display()))?;
        return Ok(());
    }
    bail!("nodes keep coming and going")
}

/// The status that a serving node gives; a cluster that recovers from a loss is waited for.
fn status(folder: &Folder, slots: &[u8]) -> Result<Status> {
    let until = Instant::now() + SETTLE;
    loop {
        for slot in slots {
            let Ok(replies) = any(folder, &[*slot], &Request::Status) else { continue };
            let found = replies.into_iter().find_map(|r| match r {
                Reply::Status(s) if s.serving => Some(s),
                _ => None,
            });
            if let Some(status) = found {
                return Ok(status);
            }
        }
        if Instant::now() > until {
            bail!("the nodes that run are no majority of the cluster: none serves");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Asks the nodes in turn until one answers. (The cluster is not `running` here.)
fn any(folder: &Folder, slots: &[u8], request: &Request) -> Result<Vec<Reply>> {
    let mut last = anyhow!("no node runs");
    for slot in slots {
        match Connection::open(folder, *slot, request.clone()).and_then(|mut c| c.all()) {
            Ok(replies) => return Ok(replies),
            Err(e) if crate::connection::is_elsewhere(&e) => last = e,
            Err(e) => return Err(e),
        }
    }
    Err(last)
}

fn dump(folder: &Folder, slot: u8, writer: &mut Writer, interrupts: &Interrupts) -> Result<()> {
    let mut connection = Connection::open(folder, slot, Request::Dump)?;
    while let Some(reply) = connection.next(Some(crate::connection::PATIENCE))? {
        if let Some(signal) = interrupts.caught() {
            bail!("interrupted by signal {signal}");
        }
        let Reply::Objects(objects) = reply else { bail!("node {slot} gave an unexpected answer") };
        for o in objects {
            let set = set::descriptor(o.name.set())
                .with_context(|| format!("node {slot} sent object {} of an unknown set", o.name))?;
            let data =
                o.data.with_context(|| format!("node {slot} sent {} without data", o.name))?;
            writer.object(&snapshot::Object { name: o.name, layout: set.layout, data })?;
        }
    }
    Ok(())
}

/// Asks the nodes to end, and ends those that do not.
fn end_nodes(live: &[(u8, Process)]) -> Result<()> {
    let trees: Vec<(u8, Vec<Process>)> = live
        .iter()
        .map(|(slot, p)| {
            let below = procfs::descendants(p.pid);
            (*slot, below.iter().filter_map(|s| Process::open(s.pid, s.start)).collect())
        })
        .collect();
    for (_, process) in live {
        process.signal(Signal::TERM)?;
    }
    let until = Instant::now() + END;
    for (slot, process) in live {
        if !process.wait(until.saturating_duration_since(Instant::now())) {
            eprintln!("clustix: {} did not end by itself; killing it", called(*slot));
            procfs::kill_tree(process)
                .with_context(|| format!("could not end {}", called(*slot)))?;
        }
    }
    let until = Instant::now() + END;
    for (slot, below) in &trees {
        for process in below {
            if !process.wait(Duration::from_secs(2)) {
                process.signal(Signal::KILL)?;
            }
            if !process.wait(until.saturating_duration_since(Instant::now())) {
                bail!("process {} of {} would not end", process.pid, called(*slot));
            }
        }
    }
    Ok(())
}

fn finish(folder: &Folder, cluster: &mut Cluster) -> Result<()> {
    folder.clean()?;
    cluster.phase = Phase::Stopped;
    folder.save(cluster)
}
