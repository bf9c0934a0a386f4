//! wait(2), without sleeping.

use crate::end::reap;
use crate::server::{Server, recall, remember};
use clustix_ccache::cache::Cache;
use clustix_proto::errno::{self, Errno};
use clustix_proto::object::{Attempts, Draft, load};
use clustix_proto::process::{Pid, Process, Reply, State, Waited, Which, name, status, wait};

fn selects(which: Which, child: &Process) -> bool {
    match which {
        Which::Pid(pid) => child.pid == pid,
        Which::Group(pgid) => child.pgid == pgid,
        Which::Any => true,
    }
}

/// The status that `child` has to report, if any.
fn report(child: &Process, options: u32) -> Option<i32> {
    match (child.state, child.unreported) {
        (State::Zombie(s), _) => Some(s),
        (_, Some(status::CONTINUED)) if options & wait::WCONTINUED != 0 => Some(status::CONTINUED),
        (State::Stopped(_), Some(s))
            if s != status::CONTINUED && options & wait::WUNTRACED != 0 =>
        {
            Some(s)
        }
        _ => None,
    }
}

fn waited(child: &Process, status: i32) -> Waited {
    Waited {
        pid: child.pid,
        status,
        verdict: child.verdict.clone(),
        uid: child.uid[0],
        used_us: used(child),
    }
}

fn used(p: &Process) -> (u64, u64) {
    (p.own_us.0.saturating_add(p.children_us.0), p.own_us.1.saturating_add(p.children_us.1))
}

impl<C: Cache> Server<C> {
    pub(crate) async fn wait(
        &self,
        parent: Pid,
        which: Which,
        options: u32,
        keep: bool,
        request: u64,
    ) -> Result<Reply, Errno> {
        let mut attempts = Attempts::new();
        loop {
            let mut d = if request == 0 {
                Draft::once(&self.cache)
            } else {
                Draft::repeatable(&self.cache)
            };
            let (mut me, candidates) = match (parent, which) {
                // Init's children are reaped by themselves; only a claimed one waits for this.
                (1, Which::Pid(pid)) => (None, vec![pid]),
                (1, _) => return Err(errno::ECHILD),
                _ => {
                    let me = self.own(&mut d, parent).await?;
                    if let Some(reply) = recall(&me, request) {
                        return Ok(reply);
                    }
                    let children = match which {
                        Which::Pid(pid) if me.children.contains(&pid) => vec![pid],
                        Which::Pid(_) => Vec::new(),
                        _ => me.children.clone(),
                    };
                    (Some(me), children)
                }
            };
            let mut any = false;
            let mut found = None;
            for pid in candidates {
                // Looked at outside the draft: only the one that is reported must not change.
                let child: Option<Process> = load(&self.cache, name::process(pid)).await?.0;
                let Some(child) = child else { continue };
                if child.ppid != parent
                    || !selects(which, &child)
                    || (me.is_none() && !child.claimed)
                {
                    continue;
                }
                any = true;
                if report(&child, options).is_some() {
                    found = Some(pid);
                    break;
                }
            }
            if !any {
                return Err(errno::ECHILD);
            }
            let Some(pid) = found else { return Ok(Reply::Waited(None)) };
            let Some(mut child) = d.load::<Process>(name::process(pid)).await? else {
                attempts.again().await?;
                continue;
            };
            let Some(status) = report(&child, options) else {
                attempts.again().await?;
                continue;
            };
            let reply = Reply::Waited(Some(waited(&child, status)));
            if keep {
                return Ok(reply);
            }
            if matches!(child.state, State::Zombie(_)) {
                reap(&mut d, &child).await?;
                if let Some(me) = me.as_mut() {
                    me.children.retain(|c| *c != pid);
                    let (user, system) = used(&child);
                    me.children_us.0 = me.children_us.0.saturating_add(user);
                    me.children_us.1 = me.children_us.1.saturating_add(system);
                }
            } else {
                child.unreported = None;
                d.store(name::process(pid), &child)?;
            }
            if let Some(me) = me.as_mut() {
                remember(me, request, &reply);
                d.store(name::process(parent), me)?;
            }
            if d.commit().await? {
                return Ok(reply);
            }
            attempts.again().await?;
        }
    }
}
