//! `clustix chaos`: kills and pauses protection domains and nodes at random, with a seed.
//!
//! What is done when follows from the seed alone ([`Plan`]); to whom, from the seed and from who is there.
//! At most one node is down or paused at a time, and only while the cluster can lose one; whatever happens,
//! what was paused goes on and what was killed is started again before the command ends.

use super::{list, node};
use crate::args::{Chaos, Victims};
use crate::connection::ask_all;
use crate::interrupt::Interrupts;
use crate::procfs::{self, Process, timespec};
use crate::state::Folder;
use crate::wire::{Pd, Reply, Request};
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Longest that the cluster may take to be whole again at the end.
const WHOLE: Duration = Duration::from_secs(60);
/// Between two looks whether it is.
const LOOK: Duration = Duration::from_millis(200);
/// The domain whose death is its node's.
const CCACHE: &str = "ccache";

/// What is done to a victim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Deed {
    /// SIGKILL to a protection domain.
    KillDomain,
    /// SIGSTOP to one, and SIGCONT later; the health check may be quicker.
    PauseDomain,
    /// SIGKILL to a node's tree, and a start later.
    KillNode,
    /// SIGSTOP to all of a node's processes, and SIGCONT later; it may have been evicted meanwhile.
    PauseNode,
}

/// One thing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Step {
    /// After the one before.
    after: Duration,
    deed: Deed,
    /// Chooses among those who are there.
    choice: u64,
    /// How long it stays paused or down.
    lasts: Duration,
}

/// What follows from the seed: the same steps for the same arguments.
struct Plan {
    random: fastrand::Rng,
    mean: Duration,
    deeds: &'static [Deed],
}

impl Plan {
    fn new(seed: u64, mean: Duration, victims: Victims) -> Plan {
        use Deed::{KillDomain, KillNode, PauseDomain, PauseNode};
        let deeds: &[Deed] = match victims {
            Victims::All => &[KillDomain, KillDomain, PauseDomain, KillNode, KillNode, PauseNode],
            Victims::Pds => &[KillDomain, KillDomain, KillDomain, PauseDomain],
            Victims::Nodes => &[KillNode, KillNode, KillNode, PauseNode],
        };
        Plan { random: fastrand::Rng::with_seed(seed), mean, deeds }
    }

    fn next(&mut self) -> Step {
        let deed = self.deeds[self.random.usize(..self.deeds.len())];
        // Of a Poisson process's waits none is longer than four means here.
        let wait = -(1.0 - self.random.f64()).ln();
        let longest = match deed {
            Deed::KillDomain => 0,
            Deed::PauseDomain => 6_000,
            Deed::KillNode => 2_000,
            Deed::PauseNode => 3_000,
        };
        Step {
            after: self.mean.mul_f64(wait.min(4.0)),
            deed,
            choice: self.random.u64(..),
            lasts: Duration::from_millis(self.random.u64(0..=longest)),
        }
    }
}

/// Processes that stand still until this is dropped.
struct Paused(Vec<Process>);

impl Paused {
    fn stop(processes: Vec<Process>) -> Result<Paused> {
        let paused = Paused(processes);
        for process in &paused.0 {
            process.signal(Signal::STOP)?;
        }
        Ok(paused)
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        for process in &self.0 {
            // One that was killed meanwhile is no error.
            let _ = process.signal(Signal::CONT);
        }
    }
}

/// What was done.
#[derive(Default)]
struct Tally {
    domains: [u32; 2],
    nodes: [u32; 2],
    skipped: u32,
}

/// Does what the plan says until the time is over, or a signal comes.
///
/// # Errors
/// The cluster is not up here; a node does not come back; the cluster is not whole at the end.
pub fn chaos(folder: &Folder, args: &Chaos) -> Result<ExitCode> {
    let cluster = folder.running()?;
    if cluster.hosts.is_some() {
        bail!(
            "cluster {:?} has nodes on other hosts; chaos reaches those of one machine only",
            cluster.name
        );
    }
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("chaos: --seed {seed} does the same again");
    let interrupts = Interrupts::new()?;
    let mut plan = Plan::new(seed, Duration::from_secs_f64(args.every), args.victims);
    let mut tally = Tally::default();
    let begin = Instant::now();
    let until = begin + Duration::from_secs(args.seconds);
    loop {
        let step = plan.next();
        let left = until.saturating_duration_since(Instant::now());
        if step.after >= left {
            pause(left, &interrupts);
            break;
        }
        if pause(step.after, &interrupts) {
            break;
        }
        let what = act(folder, step, &mut tally, &interrupts)?;
        println!("{:8.1} s  {what}", begin.elapsed().as_secs_f64());
    }
    bring_back(folder)?;
    whole(folder)?;
    println!(
        "chaos: {} s, seed {seed}: domains killed {}, paused {}; nodes killed {}, paused {}; skipped {}; the cluster is whole",
        begin.elapsed().as_secs(),
        tally.domains[0],
        tally.domains[1],
        tally.nodes[0],
        tally.nodes[1],
        tally.skipped
    );
    Ok(ExitCode::SUCCESS)
}

/// Waits; whether a signal came.
fn pause(time: Duration, interrupts: &Interrupts) -> bool {
    let until = Instant::now() + time;
    loop {
        if interrupts.caught().is_some() {
            return true;
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let fd = interrupts.fd();
        // An error is a signal, or costs a turn.
        let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timespec(left)));
    }
}

/// One step: what was done, in words.
fn act(folder: &Folder, step: Step, tally: &mut Tally, interrupts: &Interrupts) -> Result<String> {
    let of_node = matches!(step.deed, Deed::KillNode | Deed::PauseNode);
    if of_node {
        // One that was paused may have been evicted, and have ended.
        bring_back(folder)?;
    }
    if of_node && !list::get_status(folder).is_ok_and(|s| s.serving && s.can_lose_a_node) {
        tally.skipped += 1;
        return Ok("no node can be lost now: skipped".into());
    }
    if of_node {
        let live = folder.live()?;
        let (slot, process) = &live[(step.choice % live.len().max(1) as u64) as usize];
        if step.deed == Deed::KillNode {
            tally.nodes[0] += 1;
            procfs::kill_tree(process)?;
        } else {
            tally.nodes[1] += 1;
            let below = procfs::descendants(process.pid);
            let mut tree: Vec<Process> =
                below.iter().filter_map(|s| Process::open(s.pid, s.start)).collect();
            tree.extend(procfs::stat(process.pid).and_then(|s| Process::open(s.pid, s.start)));
            let paused = Paused::stop(tree)?;
            pause(step.lasts, interrupts);
            drop(paused);
            return Ok(format!("node {slot} paused for {} ms", step.lasts.as_millis()));
        }
        pause(step.lasts, interrupts);
        bring_back(folder)?;
        return Ok(format!(
            "node {slot} killed, started again {} ms later",
            step.lasts.as_millis()
        ));
    }
    let domains = domains(folder)?;
    let Some(pd) = domains.get((step.choice % domains.len().max(1) as u64) as usize) else {
        tally.skipped += 1;
        return Ok("no domain runs: skipped".into());
    };
    let name = format!("{} of node {}", pd.role, pd.node);
    let Some(process) = procfs::stat(pd.pid).and_then(|s| Process::open(s.pid, s.start)) else {
        tally.skipped += 1;
        return Ok(format!("{name} has just ended: skipped"));
    };
    if step.deed == Deed::KillDomain {
        tally.domains[0] += 1;
        process.signal(Signal::KILL)?;
        return Ok(format!("{name} killed"));
    }
    tally.domains[1] += 1;
    let paused = Paused::stop(vec![process])?;
    pause(step.lasts, interrupts);
    drop(paused);
    Ok(format!("{name} paused for {} ms", step.lasts.as_millis()))
}

/// The domains that run and are not their node's life.
fn domains(folder: &Folder) -> Result<Vec<Pd>> {
    let mut found = Vec::new();
    for (_, replies) in ask_all(folder, None, &Request::Pds)? {
        for reply in replies {
            if let Reply::Pds(list) = reply {
                found.extend(list.into_iter().filter(|p| p.pid != 0 && p.role != CCACHE));
            }
        }
    }
    found.sort_by(|a, b| (a.node, &a.role).cmp(&(b.node, &b.role)));
    Ok(found)
}

/// Starts every node that is down.
fn bring_back(folder: &Folder) -> Result<()> {
    for slot in folder.running()?.slots() {
        let until = Instant::now() + WHOLE;
        while folder.process(slot)?.is_none() {
            match node::start_node(folder, slot) {
                Ok(_) => {}
                // Its loss may not have been decided yet.
                Err(e) if Instant::now() >= until => return Err(e),
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }
    Ok(())
}

/// Waits until all nodes are members and everything has its copies. A paused node may have been evicted.
fn whole(folder: &Folder) -> Result<()> {
    let until = Instant::now() + WHOLE;
    loop {
        bring_back(folder)?;
        let wanted = usize::from(folder.running()?.nodes);
        let status = list::get_status(folder);
        if let Ok(s) = &status
            && s.serving
            && s.rebuilding == 0
            && s.nodes.len() == wanted
        {
            return Ok(());
        }
        if Instant::now() >= until {
            let status = status.context("the cluster does not say how it is")?;
            bail!(
                "{} of {wanted} nodes are members {} s after the last deed, {} shards are being rebuilt; see `clustix status`",
                status.nodes.len(),
                WHOLE.as_secs(),
                status.rebuilding
            );
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_plan() {
        let steps = |seed, victims| {
            let mut plan = Plan::new(seed, Duration::from_secs(2), victims);
            (0..100).map(|_| plan.next()).collect::<Vec<_>>()
        };
        assert_eq!(steps(7, Victims::All), steps(7, Victims::All));
        assert_ne!(steps(7, Victims::All), steps(8, Victims::All));
        let pds = steps(1, Victims::Pds);
        assert!(pds.iter().all(|s| matches!(s.deed, Deed::KillDomain | Deed::PauseDomain)));
        assert!(pds.iter().all(|s| s.after <= Duration::from_secs(8)));
        let nodes = steps(1, Victims::Nodes);
        assert!(nodes.iter().any(|s| s.deed == Deed::PauseNode));
        assert!(nodes.iter().all(|s| matches!(s.deed, Deed::KillNode | Deed::PauseNode)));
    }
}
