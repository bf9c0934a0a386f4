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
use std::collections::HashMap;
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

/// What was done to domains, or to nodes.
#[derive(Default)]
struct Done {
    killed: u32,
    paused: u32,
}

/// What was done.
#[derive(Default)]
struct Tally {
    domains: Done,
    nodes: Done,
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
        tally.domains.killed,
        tally.domains.paused,
        tally.nodes.killed,
        tally.nodes.paused,
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
    let done = match step.deed {
        Deed::KillNode | Deed::PauseNode => hit_node(folder, step, &mut tally.nodes, interrupts),
        Deed::KillDomain | Deed::PauseDomain => {
            hit_domain(folder, step, &mut tally.domains, interrupts)
        }
    };
    Ok(done?.unwrap_or_else(|why| {
        tally.skipped += 1;
        format!("skipped: {why}")
    }))
}

/// What was done, or why nothing was.
type Outcome = Result<std::result::Result<String, &'static str>>;

fn hit_node(folder: &Folder, step: Step, done: &mut Done, interrupts: &Interrupts) -> Outcome {
    // One that was paused may have been evicted, and have ended.
    bring_back(folder)?;
    if !list::get_status(folder).is_ok_and(|s| s.serving && s.can_lose_a_node) {
        return Ok(Err("no node can be lost now"));
    }
    let live = folder.live()?;
    let Some((slot, process)) = chosen(live.len(), step.choice).and_then(|i| live.get(i)) else {
        return Ok(Err("no node runs"));
    };
    let ms = step.lasts.as_millis();
    if step.deed == Deed::KillNode {
        done.killed += 1;
        procfs::kill_tree(process)?;
        pause(step.lasts, interrupts);
        bring_back(folder)?;
        return Ok(Ok(format!("node {slot} killed, started again {ms} ms later")));
    }
    done.paused += 1;
    let mut tree = procfs::descendants(process.pid);
    tree.extend(procfs::stat(process.pid));
    let paused = Paused::stop(tree.iter().filter_map(|s| Process::open(s.pid, s.start)).collect())?;
    pause(step.lasts, interrupts);
    drop(paused);
    Ok(Ok(format!("node {slot} paused for {ms} ms")))
}

fn hit_domain(folder: &Folder, step: Step, done: &mut Done, interrupts: &Interrupts) -> Outcome {
    let mut domains = domains(folder)?;
    let Some(index) = chosen(domains.len(), step.choice) else {
        return Ok(Err("no domain runs"));
    };
    let (pd, process) = domains.swap_remove(index);
    let name = format!("{} of node {}", pd.role, pd.node);
    if step.deed == Deed::KillDomain {
        done.killed += 1;
        process.signal(Signal::KILL)?;
        return Ok(Ok(format!("{name} killed")));
    }
    done.paused += 1;
    let paused = Paused::stop(vec![process])?;
    pause(step.lasts, interrupts);
    drop(paused);
    Ok(Ok(format!("{name} paused for {} ms", step.lasts.as_millis())))
}

/// Which of `len` is chosen; none of none.
fn chosen(len: usize, choice: u64) -> Option<usize> {
    choice.checked_rem(len as u64).map(|index| index as usize)
}

/// The domains that run and are not their node's life. The numbers are those nodes' own word: one that is
/// not a process below its node's is left alone.
fn domains(folder: &Folder) -> Result<Vec<(Pd, Process)>> {
    let mut below = HashMap::new();
    for (slot, process) in folder.live()? {
        below
            .extend(procfs::descendants(process.pid).into_iter().map(|s| ((slot, s.pid), s.start)));
    }
    let mut found = Vec::new();
    for (slot, _) in folder.live()? {
        // Of one whose domains die or stand still it may not be known.
        for (_, replies) in ask_all(folder, Some(slot), &Request::Pds).unwrap_or_default() {
            let Some(Reply::Pds(list)) = replies.into_iter().next() else { continue };
            for pd in list.into_iter().filter(|p| p.role != CCACHE) {
                let start = below.get(&(slot, pd.pid));
                if let Some(process) = start.and_then(|start| Process::open(pd.pid, *start)) {
                    found.push((pd, process));
                }
            }
        }
    }
    found.sort_by(|(a, _), (b, _)| (a.node, &a.role).cmp(&(b.node, &b.role)));
    Ok(found)
}

/// Starts every node that is down.
fn bring_back(folder: &Folder) -> Result<()> {
    for slot in folder.running()?.slots() {
        let until = Instant::now() + WHOLE;
        while folder.process(slot)?.is_none() {
            match node::start_node(folder, slot) {
                Ok(_) => {}
                // Its loss may not have been decided yet, of which nobody tells.
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
        // Nor of the last copy.
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
