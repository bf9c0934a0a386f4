//! The end of a process: children to init, zombies, SIGCHLD, groups that it leaves orphaned.

use crate::server::{Server, VERDICT_MAX, leave, wall_s};
use crate::signal::{
    CLD_EXITED, CLD_KILLED, LAST, SI_KERNEL, SIGCHLD, SIGCONT, SIGHUP, generate, notify,
};
use clustix_ccache::cache::Cache;
use clustix_proto::errno::{self, Errno};
use clustix_proto::object::{Attempts, Draft, load};
use clustix_proto::process::{Pid, Process, SignalInfo, State, name};
use std::collections::BTreeSet;

/// Children given to init per transaction: each may bring its group along.
const BATCH: usize = 8;

/// Takes a zombie away for good.
pub(crate) async fn reap<C: Cache>(d: &mut Draft<'_, C>, p: &Process) -> Result<(), Errno> {
    leave(d, p.pgid, p.pid).await?;
    d.remove(name::process(p.pid));
    Ok(())
}

impl<C: Cache> Server<C> {
    /// Ends `pid` if it (still) belongs to node incarnation `of`; if it has ended already, nothing.
    pub(crate) async fn end(
        &self,
        pid: Pid,
        status: i32,
        mut verdict: Option<String>,
        own_us: (u64, u64),
        of: (u8, u64),
    ) -> Result<(), Errno> {
        if let Some(v) = verdict.as_mut()
            && v.len() > VERDICT_MAX
        {
            let cut = (0..=VERDICT_MAX).rev().find(|i| v.is_char_boundary(*i)).unwrap_or(0);
            v.truncate(cut);
        }
        let mut attempts = Attempts::new();
        let mut orphans_told = false;
        loop {
            let mut d = Draft::repeatable(&self.cache);
            let Some(mut p) = d.load::<Process>(name::process(pid)).await? else { return Ok(()) };
            if pid == 1 || (p.node, p.incarnation) != of {
                return Err(errno::ESRCH);
            }
            if matches!(p.state, State::Zombie(_)) {
                return Ok(());
            }
            // Before anything of it is taken apart, so that a retry after a crash finds the same
            // groups again.
            if !orphans_told {
                self.hang_up_orphans(&p).await?;
                orphans_told = true;
                continue;
            }
            if !p.children.is_empty() {
                let rest = p.children.split_off(p.children.len().min(BATCH));
                let batch = std::mem::replace(&mut p.children, rest);
                for child in batch {
                    let Some(mut c) = d.load::<Process>(name::process(child)).await? else {
                        continue;
                    };
                    (c.ppid, c.exit_signal, c.claimed) = (1, SIGCHLD, false);
                    if matches!(c.state, State::Zombie(_)) {
                        reap(&mut d, &c).await?;
                    } else {
                        d.store(name::process(child), &c)?;
                    }
                }
                d.store(name::process(pid), &p)?;
                if !d.commit().await? {
                    attempts.again().await?;
                }
                continue;
            }
            p.state = State::Zombie(status);
            p.verdict = verdict.clone();
            p.own_us = own_us;
            p.end = wall_s();
            (p.unreported, p.pending, p.tty) = (None, 0, None);
            p.infos.clear();
            p.answered.clear();
            let parent: Option<Process> = match p.ppid {
                0 | 1 => None,
                ppid => d.load(name::process(ppid)).await?,
            };
            match parent.filter(|q| !matches!(q.state, State::Zombie(_))) {
                Some(mut parent) => {
                    if parent.autoreap && p.exit_signal == SIGCHLD {
                        parent.children.retain(|c| *c != pid);
                        reap(&mut d, &p).await?;
                    } else {
                        d.store(name::process(pid), &p)?;
                    }
                    if (1..=LAST).contains(&p.exit_signal) {
                        generate(&mut parent, child_info(&p, status));
                        notify(&mut d, &parent).await?;
                    }
                    // Stored in any case: a parent in wait(2) waits for its object to change.
                    d.store(name::process(parent.pid), &parent)?;
                }
                None if p.claimed => {
                    p.ppid = 1;
                    d.store(name::process(pid), &p)?;
                }
                None => reap(&mut d, &p).await?,
            }
            if d.commit().await? {
                return Ok(());
            }
            attempts.again().await?;
        }
    }

    /// SIGHUP and SIGCONT to the groups that have a stopped member and are orphaned by the end of
    /// `p` (POSIX _exit(2), Linux kill_orphaned_pgrp): its own, and its children's.
    async fn hang_up_orphans(&self, p: &Process) -> Result<(), Errno> {
        let mut groups = BTreeSet::new();
        if p.ppid > 1 {
            let parent = load::<C, Process>(&self.cache, name::process(p.ppid)).await?.0;
            if parent.is_some_and(|q| q.sid == p.sid && q.pgid != p.pgid) {
                groups.insert(p.pgid);
            }
        }
        for child in &p.children {
            let c = load::<C, Process>(&self.cache, name::process(*child)).await?.0;
            if let Some(c) = c
                && c.sid == p.sid
                && c.pgid != p.pgid
            {
                groups.insert(c.pgid);
            }
        }
        for pgid in groups {
            if self.orphaned(pgid, Some(p.pid)).await? == Some(true) {
                for signal in [SIGHUP, SIGCONT] {
                    match self.send_group(None, pgid, signal).await {
                        Ok(()) | Err(errno::ESRCH) => (),
                        Err(e) => return Err(e),
                    }
                }
            }
        }
        Ok(())
    }
}

/// What the parent's handler is told.
fn child_info(p: &Process, status: i32) -> SignalInfo {
    let signal = status & 0x7f;
    SignalInfo {
        signal: p.exit_signal,
        code: match (p.exit_signal, signal) {
            (SIGCHLD, 0) => CLD_EXITED,
            (SIGCHLD, _) => CLD_KILLED,
            _ => SI_KERNEL,
        },
        pid: p.pid,
        uid: p.uid[0],
        status: if signal == 0 { status >> 8 & 0xff } else { signal },
    }
}
