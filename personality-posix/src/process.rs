//! fork, exit, wait.

use crate::call::{Call, step};
use crate::lifecycle;
use crate::services::Services;
use crate::thread::Start;
use crate::window::op;
use clustix_ccache::cache::Cache;
use clustix_proto::Errno;
use clustix_proto::errno::*;
use clustix_proto::process::{Pid, Reply, Request, Waited, Which, name, wait};

const SIGCHLD: u8 = 17;

async fn fork<S: Services>(
    call: &mut Call<'_, S>,
    exit_signal: u8,
    begin: Start,
) -> Result<Pid, Errno> {
    let node = call.node.shared()?;
    let birth = lifecycle::conceive(&node, call.process, exit_signal).await?;
    if let Err(e) = call.program(&[], &[step(op::FORK, [0; 4])]).await {
        lifecycle::abandon(&node, birth).await;
        return Err(if e == ESRCH { e } else { EAGAIN });
    }
    lifecycle::deliver(&node, call.process, birth, begin).await
}

/// fork(2) and vfork(2).
pub async fn sys_fork<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    fork(call, SIGCHLD, Start::Child { stack: 0, tid_at: 0 }).await.map(i64::from)
}

/// clone(2): a new process only; threads and namespaces are refused (ENOSYS). Memory that parent and
/// child would share until the child execs (CLONE_VM | CLONE_VFORK) is copied instead.
pub async fn sys_clone<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    const CLONE_VM: u64 = 0x100;
    const CLONE_VFORK: u64 = 0x4000;
    const CLONE_PARENT_SETTID: u64 = 0x10_0000;
    const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
    const CLONE_CHILD_SETTID: u64 = 0x100_0000;
    let [flags, stack, parent_tid, child_tid, _, _] = call.args;
    let known = 0xff
        | CLONE_VM
        | CLONE_VFORK
        | CLONE_PARENT_SETTID
        | CLONE_CHILD_CLEARTID
        | CLONE_CHILD_SETTID;
    let thread = flags & CLONE_VM != 0 && flags & CLONE_VFORK == 0;
    if flags & !known != 0 || thread {
        return Err(ENOSYS);
    }
    let signal = (flags & 0xff) as u8;
    if signal > 64 {
        return Err(EINVAL);
    }
    let tid_at = if flags & CLONE_CHILD_SETTID != 0 { child_tid } else { 0 };
    let pid = fork(call, signal, Start::Child { stack, tid_at }).await?;
    if flags & CLONE_PARENT_SETTID != 0 {
        call.out_at(parent_tid, &pid.to_le_bytes());
    }
    Ok(i64::from(pid))
}

/// exit(2) and exit_group(2).
pub async fn sys_exit<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let status = (call.args[0] as i32 & 0xff) << 8;
    call.process.exiting = Some(status);
    if let Ok(us) = crate::time::used_us(call).await {
        call.process.used_us = us;
    }
    Ok(0)
}

/// Sleeps until a child has something to say, unless WNOHANG.
async fn wait<S: Services>(
    call: &mut Call<'_, S>,
    which: Which,
    options: u32,
    keep: bool,
) -> Result<Option<Waited>, Errno> {
    let parent = call.process.pid;
    loop {
        // The version before the question: a child that ends after it changes the object.
        let version = call.cache().get(name::process(parent), &mut Vec::new()).await?;
        let request = call.process.request();
        let request = Request::Wait { parent, which, options, keep, request };
        match call.services().process(&request).await? {
            Reply::Waited(Some(w)) => return Ok(Some(w)),
            Reply::Waited(None) if options & wait::WNOHANG != 0 => return Ok(None),
            Reply::Waited(None) => {}
            _ => return Err(EIO),
        }
        call.sleep_on(&[(name::process(parent), version)], None).await?;
    }
}

/// struct rusage with these times, µs.
pub(crate) fn rusage((user, system): (u64, u64)) -> [u8; 144] {
    let mut bytes = [0; 144];
    for (i, us) in [user, system].into_iter().enumerate() {
        bytes[i * 16..i * 16 + 8].copy_from_slice(&(us / 1_000_000).to_le_bytes());
        bytes[i * 16 + 8..i * 16 + 16].copy_from_slice(&(us % 1_000_000).to_le_bytes());
    }
    bytes
}

/// wait4(2).
pub async fn sys_wait4<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let which = match call.int(0) {
        -1 => Which::Any,
        0 => Which::Group(call.process_object().await?.pgid),
        pid if pid > 0 => Which::Pid(pid as u32),
        i32::MIN => return Err(ESRCH),
        group => Which::Group(-group as u32),
    };
    const KNOWN: u32 = wait::WNOHANG | wait::WUNTRACED | wait::WCONTINUED | 0xe000_0000;
    let options = call.args[2] as u32;
    if options & !KNOWN != 0 {
        return Err(EINVAL);
    }
    let Some(child) = wait(call, which, options & 0xf, false).await? else { return Ok(0) };
    heard(call).await;
    if call.args[1] != 0 {
        call.out(1, &child.status.to_le_bytes());
    }
    if call.args[3] != 0 {
        call.out(3, &rusage(child.used_us));
    }
    Ok(i64::from(child.pid))
}

/// A child's SIGCHLD came with its change of state: its handler runs before wait(2) returns.
async fn heard<S: Services>(call: &Call<'_, S>) {
    // An error is no loss: the inbox tells of the signal too, only later.
    let _ = crate::signal::refresh(call.node, call.process).await;
}

/// waitid(2).
pub async fn sys_waitid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    const WNOWAIT: u32 = 0x0100_0000;
    let id = call.args[1] as u32;
    let which = match call.args[0] {
        0 => Which::Any,
        1 => Which::Pid(id),
        2 if id == 0 => Which::Group(call.process_object().await?.pgid),
        2 => Which::Group(id),
        _ => return Err(EINVAL),
    };
    let options = call.args[3] as u32;
    let kinds = wait::WUNTRACED | wait::WEXITED | wait::WCONTINUED;
    if options & kinds == 0 || options & !(kinds | wait::WNOHANG | WNOWAIT | 0xe000_0000) != 0 {
        return Err(EINVAL);
    }
    let child = wait(call, which, options & 0xf, options & WNOWAIT != 0).await?;
    let mut info = [0u8; 128];
    if let Some(w) = &child {
        heard(call).await;
        let (code, status) = match w.status {
            0xffff => (6, 18),
            s if s & 0xff == 0x7f => (5, s >> 8 & 0xff),
            s if s & 0x7f != 0 => (2, s & 0x7f),
            s => (1, s >> 8 & 0xff),
        };
        let fields = [
            (0, i32::from(SIGCHLD)),
            (8, code),
            (16, w.pid as i32),
            (20, w.uid as i32),
            (24, status),
        ];
        for (at, v) in fields {
            info[at..at + 4].copy_from_slice(&v.to_le_bytes());
        }
    }
    if call.args[2] != 0 {
        call.out(2, &info);
    }
    if call.args[4] != 0 {
        call.out(4, &rusage(child.map_or((0, 0), |w| w.used_us)));
    }
    Ok(0)
}
