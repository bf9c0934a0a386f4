//! Who a process is: process, group, session, user and group numbers.

use crate::call::Call;
use crate::fd;
use crate::services::Services;
use clustix_proto::Errno;
use clustix_proto::errno::*;
use clustix_proto::process::{Pid, Process, Reply, Request, name};

/// The process object of `pid`, 0 for the caller's; ESRCH if there is none.
pub async fn process_of<S: Services>(call: &Call<'_, S>, pid: Pid) -> Result<Process, Errno> {
    let pid = if pid == 0 { call.process.pid } else { pid };
    fd::load(call.cache(), name::process(pid)).await?.ok_or(ESRCH)
}

/// The caller's process object.
pub async fn own<S: Services>(call: &Call<'_, S>) -> Result<Process, Errno> {
    process_of(call, 0).await
}

fn pid(value: i32) -> Result<Pid, Errno> {
    Pid::try_from(value).map_err(|_| ESRCH)
}

/// getpid(2), gettid(2). (The stub answers getpid itself; this is for a caller that asks all the
/// same.)
pub async fn sys_getpid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    Ok(i64::from(call.process.pid))
}

/// getppid(2).
pub async fn sys_getppid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    Ok(i64::from(own(call).await?.ppid))
}

/// getpgid(2).
pub async fn sys_getpgid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    Ok(i64::from(process_of(call, pid(call.int(0))?).await?.pgid))
}

/// getpgrp(2).
pub async fn sys_getpgrp<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    Ok(i64::from(own(call).await?.pgid))
}

/// getsid(2).
pub async fn sys_getsid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    Ok(i64::from(process_of(call, pid(call.int(0))?).await?.sid))
}

/// setpgid(2).
pub async fn sys_setpgid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let (target, group) = (call.int(0), call.int(1));
    if group == 0 && target < 0 {
        return Err(EINVAL);
    }
    let pgid = Pid::try_from(group).map_err(|_| EINVAL)?;
    let request = Request::SetGroup { caller: call.process.pid, pid: pid(target)?, pgid };
    call.services().process(&request).await?;
    Ok(0)
}

/// setsid(2).
pub async fn sys_setsid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    match call.services().process(&Request::SetSession { pid: call.process.pid }).await? {
        Reply::Pid(sid) => Ok(i64::from(sid)),
        _ => Err(EIO),
    }
}

/// getuid(2).
pub async fn sys_getuid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    Ok(i64::from(own(call).await?.uid[0]))
}

/// geteuid(2).
pub async fn sys_geteuid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    Ok(i64::from(own(call).await?.uid[1]))
}

/// getgid(2).
pub async fn sys_getgid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    Ok(i64::from(own(call).await?.gid[0]))
}

/// getegid(2).
pub async fn sys_getegid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    Ok(i64::from(own(call).await?.gid[1]))
}

/// getresuid(2).
pub async fn sys_getresuid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let ids = own(call).await?.uid;
    for (i, id) in ids.iter().enumerate() {
        call.out(i, &id.to_le_bytes());
    }
    Ok(0)
}

/// getresgid(2).
pub async fn sys_getresgid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let ids = own(call).await?.gid;
    for (i, id) in ids.iter().enumerate() {
        call.out(i, &id.to_le_bytes());
    }
    Ok(0)
}

/// getgroups(2).
pub async fn sys_getgroups<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let groups = own(call).await?.groups;
    let room = usize::try_from(call.int(0)).map_err(|_| EINVAL)?;
    if room != 0 {
        if room < groups.len() {
            return Err(EINVAL);
        }
        let bytes: Vec<u8> = groups.iter().flat_map(|g| g.to_le_bytes()).collect();
        call.out(1, &bytes);
    }
    Ok(groups.len() as i64)
}

/// Writes new numbers to the process object and to what the personality keeps of them.
async fn set<S: Services>(call: &mut Call<'_, S>, p: Process) -> Result<i64, Errno> {
    let request = Request::SetIds { pid: p.pid, uid: p.uid, gid: p.gid, groups: p.groups.clone() };
    call.services().process(&request).await?;
    call.process.credentials = p.credentials();
    Ok(0)
}

const KEEP: u32 = u32::MAX;

/// By the rules of setresuid(2): anything for the superuser, else one of the three it has.
fn allowed(privileged: bool, have: [u32; 3], want: u32) -> Result<(), Errno> {
    if want == KEEP || privileged || have.contains(&want) { Ok(()) } else { Err(EPERM) }
}

/// setuid(2).
pub async fn sys_setuid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let mut p = own(call).await?;
    let uid = call.args[0] as u32;
    if uid == KEEP {
        return Err(EINVAL);
    }
    if p.uid[1] == 0 {
        p.uid = [uid; 3];
    } else if uid == p.uid[0] || uid == p.uid[2] {
        p.uid[1] = uid;
    } else {
        return Err(EPERM);
    }
    set(call, p).await
}

/// setgid(2).
pub async fn sys_setgid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let mut p = own(call).await?;
    let gid = call.args[0] as u32;
    if gid == KEEP {
        return Err(EINVAL);
    }
    if p.uid[1] == 0 {
        p.gid = [gid; 3];
    } else if gid == p.gid[0] || gid == p.gid[2] {
        p.gid[1] = gid;
    } else {
        return Err(EPERM);
    }
    set(call, p).await
}

fn change(privileged: bool, ids: &mut [u32; 3], want: [u32; 3]) -> Result<(), Errno> {
    for w in want {
        allowed(privileged, *ids, w)?;
    }
    for (id, w) in ids.iter_mut().zip(want) {
        if w != KEEP {
            *id = w;
        }
    }
    Ok(())
}

/// setresuid(2).
pub async fn sys_setresuid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let mut p = own(call).await?;
    let want = [0, 1, 2].map(|i| call.args[i] as u32);
    change(p.uid[1] == 0, &mut p.uid, want)?;
    set(call, p).await
}

/// setresgid(2).
pub async fn sys_setresgid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let mut p = own(call).await?;
    let want = [0, 1, 2].map(|i| call.args[i] as u32);
    change(p.uid[1] == 0, &mut p.gid, want)?;
    set(call, p).await
}

/// The saved number follows the effective one if the real one is set, or the effective one to
/// something else than the real one (setreuid(2)).
fn change_two(
    privileged: bool,
    ids: &mut [u32; 3],
    real: u32,
    effective: u32,
) -> Result<(), Errno> {
    let old = *ids;
    if !privileged && real != KEEP && real != old[0] && real != old[1] {
        return Err(EPERM);
    }
    allowed(privileged, old, effective)?;
    if real != KEEP {
        ids[0] = real;
    }
    if effective != KEEP {
        ids[1] = effective;
    }
    if real != KEEP || (effective != KEEP && effective != old[0]) {
        ids[2] = ids[1];
    }
    Ok(())
}

/// setreuid(2).
pub async fn sys_setreuid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let mut p = own(call).await?;
    let (real, effective) = (call.args[0] as u32, call.args[1] as u32);
    change_two(p.uid[1] == 0, &mut p.uid, real, effective)?;
    set(call, p).await
}

/// setregid(2).
pub async fn sys_setregid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let mut p = own(call).await?;
    let (real, effective) = (call.args[0] as u32, call.args[1] as u32);
    change_two(p.uid[1] == 0, &mut p.gid, real, effective)?;
    set(call, p).await
}

/// setfsuid(2), setfsgid(2): the effective numbers are used for files; nothing else can be set.
pub async fn sys_setfsuid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    Ok(i64::from(call.process.credentials.uid))
}

/// setfsgid(2).
pub async fn sys_setfsgid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    Ok(i64::from(call.process.credentials.gid))
}

/// setgroups(2).
pub async fn sys_setgroups<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    const MOST: u64 = 32;
    let mut p = own(call).await?;
    if p.uid[1] != 0 {
        return Err(EPERM);
    }
    if call.args[0] > MOST {
        return Err(EINVAL);
    }
    let bytes = if call.args[0] == 0 { Vec::new() } else { call.copied_in(1)? };
    if bytes.len() as u64 != call.args[0] * 4 {
        return Err(EFAULT);
    }
    p.groups =
        bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    set(call, p).await
}
