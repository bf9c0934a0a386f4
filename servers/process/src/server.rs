//! The server: what it knows, and which request goes where.

use crate::fork::Program;
use crate::pid::Cursor;
use clustix_ccache::cache::Cache;
use clustix_pd::exec;
use clustix_proto::errno::{self, Errno};
use clustix_proto::object::Draft;
use clustix_proto::once::{self, Record};
use clustix_proto::process::{
    Group, MAX_MEMBERS, Pid, Process, REMEMBERED, Reply, Request, Response, name,
};
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest verdict kept, bytes.
pub(crate) const VERDICT_MAX: usize = 128;
/// Longest command line kept, bytes.
pub(crate) const COMMAND_MAX: usize = 1024;
/// Most supplementary groups.
pub(crate) const GROUPS_MAX: usize = 32;

/// One node's process server. Stateless but for hints; every method may run many times at once.
pub struct Server<C> {
    pub(crate) cache: C,
    pub(crate) incarnation: u64,
    pub(crate) cursor: Cursor,
}

/// `CLOCK_REALTIME`, seconds.
pub(crate) fn wall_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

impl<C: Cache> Server<C> {
    /// The server of this node's `incarnation`.
    pub fn new(cache: C, incarnation: u64) -> Self {
        let seed = (exec::now_ns() / 1_000_000) ^ incarnation.rotate_left(7);
        Server { cache, incarnation, cursor: Cursor::new(seed) }
    }

    /// Serves one request. `operator`: the caller may signal as sender 0.
    pub async fn handle(&self, operator: bool, request: Request) -> Response {
        self.serve(None, operator, request).await
    }

    /// Serves one request, whose answer is recorded with its effect.
    pub async fn handle_once(
        &self,
        record: Option<&Record>,
        operator: bool,
        request: Request,
    ) -> Response {
        once::serve(&self.cache, record, self.serve(record, operator, request)).await
    }

    async fn serve(&self, record: Option<&Record>, operator: bool, request: Request) -> Response {
        let done = |()| Reply::Done;
        match request {
            Request::Spawn { uid, gid, groups, command, tty, start, personality } => {
                let program = Program { uid, gid, groups, command, tty, start, personality };
                self.spawn(record, program).await
            }
            Request::Fork { parent, exit_signal, request } => {
                self.fork(parent, exit_signal, request).await
            }
            Request::Exec { pid, command, euid, egid } => self
                .change(record, pid, |p| {
                    p.command = command.get(..COMMAND_MAX).unwrap_or(&command).to_vec();
                    (p.uid[1], p.uid[2]) = (euid, euid);
                    (p.gid[1], p.gid[2]) = (egid, egid);
                    p.execed = true;
                })
                .await
                .map(done),
            Request::Exit { pid, status, verdict, own_us } => {
                self.end(pid, status, verdict, own_us, self.here()).await.map(done)
            }
            Request::Stop { pid, signal } => self.stop(record, pid, signal).await.map(done),
            Request::Wait { parent, which, options, keep, request } => {
                self.wait(parent, which, options, keep, request).await
            }
            Request::Kill { sender, target, signal } => {
                if sender == 0 && !operator {
                    return Err(errno::EPERM);
                }
                self.kill(record, sender, target, signal).await.map(done)
            }
            Request::Raise { pid, info } => self.raise(record, pid, info).await.map(done),
            Request::Take { pid, signals } => self
                .change(record, pid, |p| {
                    p.pending &= !signals;
                    let pending = p.pending;
                    p.infos.retain(|i| pending & crate::signal::bit(i.signal) != 0);
                })
                .await
                .map(done),
            Request::ChildPolicy { pid, autoreap, no_cldstop } => self
                .change(record, pid, |p| {
                    p.autoreap = autoreap;
                    p.no_cldstop = no_cldstop;
                })
                .await
                .map(done),
            Request::SetGroup { caller, pid, pgid } => {
                self.set_group(record, caller, pid, pgid).await.map(done)
            }
            Request::SetSession { pid } => self.set_session(record, pid).await,
            Request::SetTty { pid, tty } => {
                self.change(record, pid, |p| p.tty = tty).await.map(done)
            }
            Request::SetIds { pid, uid, gid, groups } => {
                if groups.len() > GROUPS_MAX {
                    return Err(errno::EINVAL);
                }
                self.change(record, pid, |p| {
                    p.uid = uid;
                    p.gid = gid;
                    p.groups = groups.clone();
                })
                .await
                .map(done)
            }
            Request::Orphaned { pid } => {
                let (p, _) =
                    clustix_proto::object::load::<C, Process>(&self.cache, name::process(pid))
                        .await?;
                let p = p.ok_or(errno::ESRCH)?;
                Ok(Reply::Pid(self.orphaned(p.pgid, None).await?.is_some().into()))
            }
            Request::NodeLost { node, incarnation } => {
                self.node_lost(node, incarnation).await.map(done)
            }
            Request::Claim { pid, personality } => {
                self.change(record, pid, |p| p.personality = personality).await.map(done)
            }
            Request::PersonalityLost { life } => self.personality_lost(life).await.map(done),
        }
    }

    /// The node incarnation whose processes this server may change.
    pub(crate) fn here(&self) -> (u8, u64) {
        (self.cache.node(), self.incarnation)
    }

    /// Loads a living process of this node; ESRCH if there is none.
    pub(crate) async fn own(&self, d: &mut Draft<'_, C>, pid: Pid) -> Result<Process, Errno> {
        let p: Process = d.load(name::process(pid)).await?.ok_or(errno::ESRCH)?;
        let alive = !matches!(p.state, clustix_proto::process::State::Zombie(_));
        if alive && (p.node, p.incarnation) == self.here() { Ok(p) } else { Err(errno::ESRCH) }
    }

    /// Changes one process of this node.
    async fn change(
        &self,
        record: Option<&Record>,
        pid: Pid,
        change: impl Fn(&mut Process),
    ) -> Result<(), Errno> {
        let mut attempts = clustix_proto::object::Attempts::new();
        loop {
            let mut d = Draft::repeatable(&self.cache);
            if let Some(answer) = d.recall::<Reply>(record).await? {
                return answer.map(drop);
            }
            let old = self.own(&mut d, pid).await?;
            let mut new = old.clone();
            change(&mut new);
            if new == old {
                return Ok(());
            }
            d.store(name::process(pid), &new)?;
            if d.commit_once(record, &Reply::Done).await? {
                return Ok(());
            }
            attempts.again().await?;
        }
    }
}

/// Adds a member to a group, making it if need be: EAGAIN when it is full.
pub(crate) async fn join<C: Cache>(
    d: &mut Draft<'_, C>,
    pgid: Pid,
    sid: Pid,
    pid: Pid,
) -> Result<(), Errno> {
    let mut g: Group =
        d.load(name::group(pgid)).await?.unwrap_or(Group { sid, members: Vec::new() });
    if g.members.len() >= MAX_MEMBERS {
        return Err(errno::EAGAIN);
    }
    if !g.members.contains(&pid) {
        g.members.push(pid);
    }
    d.store(name::group(pgid), &g)
}

/// Takes a member off its group; the last one's group goes.
pub(crate) async fn leave<C: Cache>(
    d: &mut Draft<'_, C>,
    pgid: Pid,
    pid: Pid,
) -> Result<(), Errno> {
    let Some(mut g) = d.load::<Group>(name::group(pgid)).await? else { return Ok(()) };
    g.members.retain(|m| *m != pid);
    if g.members.is_empty() {
        d.remove(name::group(pgid));
        return Ok(());
    }
    d.store(name::group(pgid), &g)
}

/// Keeps the reply of a call that must not be run twice. `request` 0: the caller never retries.
pub(crate) fn remember(p: &mut Process, request: u64, reply: &Reply) {
    if request == 0 {
        return;
    }
    if p.answered.len() >= REMEMBERED {
        let surplus = p.answered.len() + 1 - REMEMBERED;
        p.answered.drain(..surplus);
    }
    p.answered.push((request, reply.clone()));
}

/// The reply that this call has had already.
pub(crate) fn recall(p: &Process, request: u64) -> Option<Reply> {
    if request == 0 {
        return None;
    }
    p.answered.iter().find(|(r, _)| *r == request).map(|(_, reply)| reply.clone())
}
