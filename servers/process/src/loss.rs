//! Losses: a node's processes end with it; and what every node's server does at an order.

use crate::end::reap;
use crate::pipe;
use crate::server::{Server, wall_s};
use clustix_ccache::cache::{Cache, Version};
use clustix_ccache::set;
use clustix_pd::exec;
use clustix_proto::errno::{self, Errno};
use clustix_proto::object::{Attempts, Draft, load};
use clustix_proto::process::{
    Broadcast, Life, Order, Pid, Process, State, UNCLAIMED_S, name, status,
};

/// Node slots of a cluster.
const SLOTS: u8 = 16;
/// First and longest pause between two sweeps.
const SWEEP_NS: u64 = 250_000_000;
const LONGEST_SWEEP_NS: u64 = 10_000_000_000;
/// Most pages of one listing.
const PAGES: usize = 4096;

/// The personality that a process is under.
fn life(p: &Process) -> Life {
    Life { incarnation: p.incarnation, start: p.personality }
}

impl<C: Cache> Server<C> {
    /// All PIDs whose objects have their primary here.
    pub(crate) async fn local_pids(&self) -> Result<Vec<Pid>, Errno> {
        let mut pids = Vec::new();
        let mut after = None;
        for _ in 0..PAGES {
            let page = self.cache.list(set::PROCESS, after).await?;
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            pids.extend(page.iter().map(|(n, _)| n.id() as Pid));
        }
        Ok(pids)
    }

    /// Gives an order to the other nodes' servers.
    pub(crate) async fn order(&self, order: Order) -> Result<(), Errno> {
        let mut attempts = Attempts::new();
        loop {
            let mut d = Draft::repeatable(&self.cache);
            let mut b: Broadcast = d.load(name::broadcast()).await?.unwrap_or_default();
            b.sequence += 1;
            if b.orders.len() >= Broadcast::BOUND {
                let surplus = b.orders.len() + 1 - Broadcast::BOUND;
                b.orders.drain(..surplus);
            }
            b.orders.push(order.clone());
            d.store(name::broadcast(), &b)?;
            if d.commit().await? {
                return Ok(());
            }
            attempts.again().await?;
        }
    }

    pub(crate) async fn node_lost(&self, node: u8, incarnation: u64) -> Result<(), Errno> {
        if node >= SLOTS || (node, incarnation) == self.here() {
            return Err(errno::EINVAL);
        }
        let losses = self.note(|b| {
            b.dead.resize(usize::from(SLOTS), 0);
            if let Some(known) = b.dead.get_mut(usize::from(node)) {
                // Incarnations are kept one higher, so that 0 says "none".
                *known = (*known).max(incarnation.saturating_add(1));
            }
        });
        self.sweep(&losses.await?).await
    }

    pub(crate) async fn personality_lost(&self, life: Life) -> Result<(), Errno> {
        let (node, incarnation) = self.here();
        if life.incarnation != incarnation {
            return Err(errno::EINVAL);
        }
        let losses = self.note(|b| {
            b.lost.resize(usize::from(SLOTS), Life::default());
            if let Some(known) = b.lost.get_mut(usize::from(node))
                && (known.incarnation, known.start) < (life.incarnation, life.start)
            {
                *known = life;
            }
        });
        self.sweep(&losses.await?).await
    }

    /// Adds to what is known to be lost, which all servers follow: as it is then.
    async fn note(&self, loss: impl Fn(&mut Broadcast)) -> Result<Broadcast, Errno> {
        let mut attempts = Attempts::new();
        loop {
            let mut d = Draft::repeatable(&self.cache);
            let old: Broadcast = d.load(name::broadcast()).await?.unwrap_or_default();
            let mut b = old.clone();
            loss(&mut b);
            if b == old {
                return Ok(b);
            }
            d.store(name::broadcast(), &b)?;
            if d.commit().await? {
                return Ok(b);
            }
            attempts.again().await?;
        }
    }

    /// Ends what is lost, closes lost pipe ends, and takes away what nobody will ever ask for,
    /// among the objects that have their primary here.
    async fn sweep(&self, losses: &Broadcast) -> Result<(), Errno> {
        let mut first_error = Ok(());
        for pid in self.local_pids().await? {
            let p: Option<Process> = load(&self.cache, name::process(pid)).await?.0;
            let Some(p) = p else { continue };
            let done = match p.state {
                State::Zombie(_) => self.forget(&p).await,
                _ if losses.is_lost(p.node, life(&p)) => {
                    let verdict = match losses.is_dead(p.node, p.incarnation) {
                        true => Some(format!("lost with node {}", p.node)),
                        false => Some(format!("lost with the personality of node {}", p.node)),
                    };
                    let of = (p.node, p.incarnation);
                    match self.end(pid, status::LOST, verdict, (0, 0), of).await {
                        Err(errno::ESRCH) => Ok(()),
                        r => r,
                    }
                }
                _ => Ok(()),
            };
            // One that cannot be ended now is tried again at the next sweep; the others go on.
            if first_error.is_ok() {
                first_error = done;
            }
        }
        if !losses.dead.is_empty() || !losses.lost.is_empty() {
            let mut after = None;
            for _ in 0..PAGES {
                let page = self.cache.list(set::PIPE, after).await?;
                let Some((last, _)) = page.last() else { break };
                after = Some(*last);
                for (n, _) in &page {
                    let done = pipe::lose(&self.cache, n.id() as u64, losses).await;
                    if first_error.is_ok() {
                        first_error = done;
                    }
                }
            }
        }
        first_error
    }

    /// Takes a zombie away that waits for nobody: unclaimed for too long, or its parent is gone.
    async fn forget(&self, p: &Process) -> Result<(), Errno> {
        let old = wall_s().saturating_sub(p.end) > UNCLAIMED_S;
        let parent_gone = p.ppid > 1 && {
            let parent: Option<Process> = load(&self.cache, name::process(p.ppid)).await?.0;
            parent.is_none_or(|q| !q.children.contains(&p.pid))
        };
        if !(parent_gone || p.ppid <= 1 && (old || !p.claimed)) {
            return Ok(());
        }
        let mut d = Draft::repeatable(&self.cache);
        let now: Option<Process> = d.load(name::process(p.pid)).await?;
        if let Some(now) = now.filter(|now| now == p) {
            reap(&mut d, &now).await?;
            // A conflict means that somebody is at it; the next sweep looks again.
            d.commit().await?;
        }
        Ok(())
    }

    /// Follows the orders for ever: the one task of a server that nobody calls.
    pub async fn follow(&self) {
        let mut seen: Option<u64> = None;
        let mut known = (Vec::new(), Vec::new());
        let mut pause = SWEEP_NS;
        loop {
            let (b, version) = match load::<C, Broadcast>(&self.cache, name::broadcast()).await {
                Ok((b, version)) => (b.unwrap_or_default(), version),
                Err(e) => {
                    tracing::warn!("orders cannot be read: {e}");
                    exec::sleep_until(exec::now_ns() + SWEEP_NS).await;
                    continue;
                }
            };
            // Orders given before this server's start were followed by the one before it, or
            // concern processes that are long gone.
            let since = seen.replace(b.sequence).unwrap_or(b.sequence);
            let new = b.sequence.saturating_sub(since).min(b.orders.len() as u64) as usize;
            for order in &b.orders[b.orders.len() - new..] {
                if let Err(e) = self.obey(order).await {
                    tracing::warn!("{order:?} was not followed in full: {e}");
                }
            }
            if (&b.dead, &b.lost) != (&known.0, &known.1) {
                known = (b.dead.clone(), b.lost.clone());
                pause = SWEEP_NS;
            }
            if let Err(e) = self.sweep(&b).await {
                tracing::debug!("a sweep is not complete: {e}");
            }
            self.doze(version, pause).await;
            pause = (pause * 2).min(LONGEST_SWEEP_NS);
        }
    }

    async fn doze(&self, version: Version, pause: u64) {
        let until = exec::now_ns() + pause;
        if self.cache.wait(&[(name::broadcast(), version)], Some(until)).await.is_err() {
            exec::sleep_until(exec::now_ns() + SWEEP_NS).await;
        }
    }

    async fn obey(&self, order: &Order) -> Result<(), Errno> {
        match *order {
            Order::Kill { from, sender, signal } if from != self.cache.node() => {
                self.kill_local(sender, signal).await
            }
            _ => Ok(()),
        }
    }
}
