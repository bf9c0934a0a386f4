//! Signals: kill(2), signal(7), and job control's stops and continues.

use crate::server::Server;
use clustix_ccache::cache::Cache;
use clustix_proto::errno::{self, Errno};
use clustix_proto::object::{Attempts, Draft, load};
use clustix_proto::once::Record;
use clustix_proto::process::{
    Group, Inbox, Order, Pid, Process, Reply, SignalInfo, State, Target, name, status,
};
use std::collections::BTreeSet;

pub(crate) const SIGHUP: u8 = 1;
pub(crate) const SIGKILL: u8 = 9;
pub(crate) const SIGCHLD: u8 = 17;
pub(crate) const SIGCONT: u8 = 18;
pub(crate) const SIGSTOP: u8 = 19;
pub(crate) const SIGTSTP: u8 = 20;
pub(crate) const SIGTTIN: u8 = 21;
pub(crate) const SIGTTOU: u8 = 22;
/// Highest signal number.
pub(crate) const LAST: u8 = 64;

pub(crate) const SI_USER: i32 = 0;
pub(crate) const SI_KERNEL: i32 = 0x80;
pub(crate) const CLD_EXITED: i32 = 1;
pub(crate) const CLD_KILLED: i32 = 2;
pub(crate) const CLD_STOPPED: i32 = 5;
pub(crate) const CLD_CONTINUED: i32 = 6;

/// The signal's bit in a set; none for a number that is no signal.
pub(crate) const fn bit(signal: u8) -> u64 {
    if signal >= 1 && signal <= LAST { 1 << (signal - 1) } else { 0 }
}

const STOPS: u64 = bit(SIGSTOP) | bit(SIGTSTP) | bit(SIGTTIN) | bit(SIGTTOU);

/// What a process becomes when a signal is generated for it. Whether its parent must be told that
/// it continued.
pub(crate) fn generate(p: &mut Process, info: SignalInfo) -> bool {
    let mut continued = false;
    let clear = match info.signal {
        SIGCONT => STOPS,
        s if bit(s) & STOPS != 0 => bit(SIGCONT),
        _ => 0,
    };
    p.pending &= !clear;
    p.infos.retain(|i| bit(i.signal) & clear == 0);
    if matches!(p.state, State::Stopped(_)) {
        if info.signal == SIGCONT {
            p.state = State::Running;
            p.unreported = Some(status::CONTINUED);
            continued = true;
        } else if info.signal == SIGKILL {
            p.state = State::Running;
            p.unreported = None;
        }
    }
    if p.pending & bit(info.signal) == 0 {
        p.pending |= bit(info.signal);
        p.infos.push(info);
    }
    continued
}

/// Whether the rules of kill(2) let `sender` signal `target`.
pub(crate) fn may_signal(sender: &Process, target: &Process, signal: u8) -> bool {
    let (real, effective) = (sender.uid[0], sender.uid[1]);
    let theirs = [target.uid[0], target.uid[2]];
    effective == 0
        || theirs.contains(&real)
        || theirs.contains(&effective)
        || (signal == SIGCONT && sender.sid == target.sid)
}

/// Tells the node that runs `p` to look at it.
pub(crate) async fn notify<C: Cache>(d: &mut Draft<'_, C>, p: &Process) -> Result<(), Errno> {
    if p.node == Process::NOWHERE {
        return Ok(());
    }
    let mut inbox: Inbox = d.load(name::inbox(p.node)).await?.unwrap_or_default();
    inbox.push(p.pid);
    d.store(name::inbox(p.node), &inbox)
}

/// Generates a signal for a living process within a draft: `p` is stored, its node told, and its
/// parent when it continued.
pub(crate) async fn post<C: Cache>(
    d: &mut Draft<'_, C>,
    mut p: Process,
    info: SignalInfo,
) -> Result<(), Errno> {
    let continued = generate(&mut p, info);
    notify(d, &p).await?;
    d.store(name::process(p.pid), &p)?;
    if continued {
        tell_parent(d, &p, CLD_CONTINUED, i32::from(SIGCONT)).await?;
    }
    Ok(())
}

/// SIGCHLD for a stop or continue. The parent's object changes in any case, so that a parent that
/// waits for it to change looks again.
async fn tell_parent<C: Cache>(
    d: &mut Draft<'_, C>,
    child: &Process,
    code: i32,
    status: i32,
) -> Result<(), Errno> {
    if child.ppid <= 1 {
        return Ok(());
    }
    let Some(mut parent) = d.load::<Process>(name::process(child.ppid)).await? else {
        return Ok(());
    };
    if matches!(parent.state, State::Zombie(_)) {
        return Ok(());
    }
    if !parent.no_cldstop {
        // SIGCHLD neither stops nor continues, so there is nobody further up to tell.
        generate(
            &mut parent,
            SignalInfo { signal: SIGCHLD, code, pid: child.pid, uid: child.uid[0], status },
        );
        notify(d, &parent).await?;
    }
    d.store(name::process(parent.pid), &parent)
}

impl<C: Cache> Server<C> {
    pub(crate) async fn kill(
        &self,
        record: Option<&Record>,
        sender: Pid,
        target: Target,
        signal: u8,
    ) -> Result<(), Errno> {
        if signal > LAST {
            return Err(errno::EINVAL);
        }
        let by: Option<Process> = match sender {
            0 => None,
            pid => Some(load(&self.cache, name::process(pid)).await?.0.ok_or(errno::ESRCH)?),
        };
        match target {
            Target::Process(pid) => self.send(record, by.as_ref(), pid, signal).await,
            Target::Group(pgid) => {
                let pgid = match (pgid, &by) {
                    (0, Some(by)) => by.pgid,
                    (pgid, _) => pgid,
                };
                self.send_group(by.as_ref(), pgid, signal).await
            }
            Target::All => {
                self.order(Order::Kill { from: self.cache.node(), sender, signal }).await?;
                self.kill_local(sender, signal).await
            }
        }
    }

    /// This node's part of kill(2) with -1: all that have their primary here, but PID 1 and the
    /// sender.
    pub(crate) async fn kill_local(&self, sender: Pid, signal: u8) -> Result<(), Errno> {
        let by: Option<Process> = match sender {
            0 => None,
            pid => match load(&self.cache, name::process(pid)).await?.0 {
                Some(by) => Some(by),
                None => return Ok(()),
            },
        };
        for pid in self.local_pids().await? {
            if pid != 1 && pid != sender {
                // One that has ended or may not be signalled does not stop the rest.
                let _ = self.send(None, by.as_ref(), pid, signal).await;
            }
        }
        Ok(())
    }

    /// Signals one process. `by` None: the operator.
    async fn send(
        &self,
        record: Option<&Record>,
        by: Option<&Process>,
        pid: Pid,
        signal: u8,
    ) -> Result<(), Errno> {
        let info = SignalInfo {
            signal,
            code: SI_USER,
            pid: by.map_or(0, |p| p.pid),
            uid: by.map_or(0, |p| p.uid[0]),
            status: 0,
        };
        let mut attempts = Attempts::new();
        loop {
            let mut d = Draft::repeatable(&self.cache);
            if let Some(answer) = d.recall::<Reply>(record).await? {
                return answer.map(drop);
            }
            let p: Process = d.load(name::process(pid)).await?.ok_or(errno::ESRCH)?;
            if by.is_some_and(|by| !may_signal(by, &p, signal)) {
                return Err(errno::EPERM);
            }
            if signal == 0 || pid == 1 || matches!(p.state, State::Zombie(_)) {
                return Ok(());
            }
            post(&mut d, p, info).await?;
            if d.commit_once(record, &Reply::Done).await? {
                return Ok(());
            }
            attempts.again().await?;
        }
    }

    /// Signals a group: its members, and those who joined while it was at it.
    pub(crate) async fn send_group(
        &self,
        by: Option<&Process>,
        pgid: Pid,
        signal: u8,
    ) -> Result<(), Errno> {
        const ROUNDS: usize = 4;
        let mut done = BTreeSet::new();
        let mut result = Err(errno::ESRCH);
        for _ in 0..ROUNDS {
            let group: Option<Group> = load(&self.cache, name::group(pgid)).await?.0;
            let Some(group) = group else { break };
            let new: Vec<Pid> = group.members.into_iter().filter(|m| !done.contains(m)).collect();
            if new.is_empty() {
                break;
            }
            for pid in new {
                done.insert(pid);
                match (self.send(None, by, pid, signal).await, &result) {
                    (Ok(()), _) => result = Ok(()),
                    (Err(e), Err(errno::ESRCH)) => result = Err(e),
                    _ => (),
                }
            }
        }
        result
    }

    pub(crate) async fn raise(
        &self,
        record: Option<&Record>,
        pid: Pid,
        info: SignalInfo,
    ) -> Result<(), Errno> {
        if bit(info.signal) == 0 {
            return Err(errno::EINVAL);
        }
        let mut attempts = Attempts::new();
        loop {
            let mut d = Draft::repeatable(&self.cache);
            if let Some(answer) = d.recall::<Reply>(record).await? {
                return answer.map(drop);
            }
            let p = self.own(&mut d, pid).await?;
            post(&mut d, p, info).await?;
            if d.commit_once(record, &Reply::Done).await? {
                return Ok(());
            }
            attempts.again().await?;
        }
    }

    pub(crate) async fn stop(
        &self,
        record: Option<&Record>,
        pid: Pid,
        signal: Option<u8>,
    ) -> Result<(), Errno> {
        if signal.is_some_and(|s| bit(s) & STOPS == 0) {
            return Err(errno::EINVAL);
        }
        let mut attempts = Attempts::new();
        loop {
            let mut d = Draft::repeatable(&self.cache);
            if let Some(answer) = d.recall::<Reply>(record).await? {
                return answer.map(drop);
            }
            let mut p = self.own(&mut d, pid).await?;
            match signal {
                Some(s) => {
                    p.pending &= !bit(s);
                    p.infos.retain(|i| i.signal != s);
                    let continued_since = p.pending & (bit(SIGCONT) | bit(SIGKILL)) != 0;
                    // setpgid(2): nobody is left who could continue an orphaned group; the
                    // terminal's signals do not stop it.
                    let void = continued_since
                        || (s != SIGSTOP && self.orphaned(p.pgid, None).await?.is_some());
                    if void || p.state == State::Stopped(s) {
                        d.store(name::process(pid), &p)?;
                    } else {
                        p.state = State::Stopped(s);
                        p.unreported = Some(status::stopped(s));
                        d.store(name::process(pid), &p)?;
                        tell_parent(&mut d, &p, CLD_STOPPED, i32::from(s)).await?;
                    }
                }
                None => {
                    if p.state == State::Running {
                        return Ok(());
                    }
                    p.state = State::Running;
                    p.unreported = Some(status::CONTINUED);
                    d.store(name::process(pid), &p)?;
                    tell_parent(&mut d, &p, CLD_CONTINUED, i32::from(SIGCONT)).await?;
                }
            }
            if d.commit_once(record, &Reply::Done).await? {
                return Ok(());
            }
            attempts.again().await?;
        }
    }
}
