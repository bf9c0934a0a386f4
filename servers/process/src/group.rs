//! Process groups and sessions: setpgid(2), setsid(2), and which groups are orphaned.

use crate::server::{Server, join, leave};
use clustix_ccache::cache::Cache;
use clustix_proto::errno::{self, Errno};
use clustix_proto::object::{Attempts, Draft, load};
use clustix_proto::once::Record;
use clustix_proto::process::{Group, Pid, Process, Reply, State, name};

impl<C: Cache> Server<C> {
    pub(crate) async fn set_group(
        &self,
        record: Option<&Record>,
        caller: Pid,
        pid: Pid,
        pgid: Pid,
    ) -> Result<(), Errno> {
        let pid = if pid == 0 { caller } else { pid };
        let pgid = if pgid == 0 { pid } else { pgid };
        let mut attempts = Attempts::new();
        loop {
            let mut d = Draft::repeatable(&self.cache);
            if let Some(answer) = d.recall::<Reply>(record).await? {
                return answer.map(drop);
            }
            let caller = self.own(&mut d, caller).await?;
            let mut p: Process = if pid == caller.pid {
                caller.clone()
            } else {
                let p: Process = d.load(name::process(pid)).await?.ok_or(errno::ESRCH)?;
                if p.ppid != caller.pid {
                    return Err(errno::ESRCH);
                }
                if p.sid != caller.sid {
                    return Err(errno::EPERM);
                }
                if p.execed {
                    return Err(errno::EACCES);
                }
                p
            };
            if p.sid == p.pid {
                return Err(errno::EPERM);
            }
            if pgid != pid {
                let group: Option<Group> = d.load(name::group(pgid)).await?;
                if group.is_none_or(|g| g.sid != caller.sid) {
                    return Err(errno::EPERM);
                }
            }
            if p.pgid == pgid {
                return Ok(());
            }
            leave(&mut d, p.pgid, pid).await?;
            join(&mut d, pgid, p.sid, pid).await?;
            p.pgid = pgid;
            d.store(name::process(pid), &p)?;
            if d.commit_once(record, &Reply::Done).await? {
                return Ok(());
            }
            attempts.again().await?;
        }
    }

    pub(crate) async fn set_session(
        &self,
        record: Option<&Record>,
        pid: Pid,
    ) -> Result<Reply, Errno> {
        let mut attempts = Attempts::new();
        loop {
            let mut d = Draft::once(&self.cache);
            if let Some(answer) = d.recall(record).await? {
                return answer;
            }
            let mut p = self.own(&mut d, pid).await?;
            if p.sid == pid || d.load::<Group>(name::group(pid)).await?.is_some() {
                return Err(errno::EPERM);
            }
            leave(&mut d, p.pgid, pid).await?;
            join(&mut d, pid, pid, pid).await?;
            (p.sid, p.pgid, p.tty) = (pid, pid, None);
            d.store(name::process(pid), &p)?;
            if d.commit_once(record, &Reply::Pid(pid)).await? {
                return Ok(Reply::Pid(pid));
            }
            attempts.again().await?;
        }
    }

    /// If the group is orphaned, whether one of its members is stopped. Orphaned: no member has a
    /// parent in another group of the same session (POSIX 3.264). `dying`: a process that is about
    /// to end and counts neither as a member nor as a parent.
    pub(crate) async fn orphaned(
        &self,
        pgid: Pid,
        dying: Option<Pid>,
    ) -> Result<Option<bool>, Errno> {
        let Some(group) = load::<C, Group>(&self.cache, name::group(pgid)).await?.0 else {
            return Ok(Some(false));
        };
        let mut stopped = false;
        for pid in group.members {
            if Some(pid) == dying {
                continue;
            }
            let Some(p) = load::<C, Process>(&self.cache, name::process(pid)).await?.0 else {
                continue;
            };
            match p.state {
                State::Zombie(_) => continue,
                State::Stopped(_) => stopped = true,
                State::Running => (),
            }
            if p.ppid <= 1 || Some(p.ppid) == dying {
                continue;
            }
            let parent = load::<C, Process>(&self.cache, name::process(p.ppid)).await?.0;
            if parent.is_some_and(|q| q.sid == p.sid && q.pgid != pgid) {
                return Ok(None);
            }
        }
        Ok(Some(stopped))
    }
}
