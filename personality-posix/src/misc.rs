//! Everything small: names of the system, random bytes, limits, prctl(2), arch_prctl(2), futex(2).

use crate::call::{Call, step};
use crate::layouts::Bytes;
use crate::services::Services;
use crate::state::{LIMITS, bit};
use crate::window::{at, op};
use clustix_pd::exec;
use clustix_proto::Errno;
use clustix_proto::errno::*;
use clustix_proto::process::Pid;

/// Random bytes for the initial stack: seeds of programs' stack protectors and hash tables.
pub fn random_bytes(n: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; n];
    let mut done = 0;
    while done < n {
        // A signal may cut a request of more than 256 bytes short.
        match rustix::rand::getrandom(&mut bytes[done..], rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => done += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Errno(e.raw_os_error())),
        }
    }
    Ok(bytes)
}

/// getrandom(2).
pub async fn sys_getrandom<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    const MOST: u64 = 256 * 1024;
    if call.args[2] & !7 != 0 {
        return Err(EINVAL);
    }
    let n = call.args[1].min(MOST) as usize;
    let bytes = random_bytes(n)?;
    call.out(0, &bytes);
    Ok(n as i64)
}

/// uname(2).
pub async fn sys_uname<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    const FIELD: usize = 65;
    let mut bytes = Vec::with_capacity(6 * FIELD);
    let fields: [&[u8]; 6] =
        [b"Linux", b"clustix", b"6.1.0-clustix", b"#1 SMP", b"x86_64", b"(none)"];
    for (i, f) in fields.iter().enumerate() {
        bytes.extend_from_slice(f);
        bytes.resize((i + 1) * FIELD, 0);
    }
    call.out(0, &bytes);
    Ok(0)
}

/// sysinfo(2): uptime and number of processes of this node, and the host's memory.
pub async fn sys_sysinfo<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let [total, free] = crate::host::facts().memory;
    let processes = call.node.processes().len();
    let bytes = Bytes::default()
        .u64(exec::now_ns() / 1_000_000_000)
        .u64(0)
        .u64(0)
        .u64(0)
        .u64(total)
        .u64(free)
        .u64(0)
        .u64(0)
        .u64(0)
        .u64(0)
        .u16(u16::try_from(processes).unwrap_or(u16::MAX))
        .pad(88)
        .u64(0)
        .u64(0)
        .u32(1)
        .pad(112);
    call.out(0, &bytes.0);
    Ok(0)
}

/// arch_prctl(2): the FS base.
pub async fn sys_arch_prctl<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    const ARCH_SET_FS: u64 = 0x1002;
    const ARCH_GET_FS: u64 = 0x1003;
    let value = call.args[1];
    match call.args[0] {
        ARCH_SET_FS => {
            let set = [step(op::SET_FS, [value, 0, 0, 0])];
            call.program(&[], &set).await?;
            Ok(0)
        }
        ARCH_GET_FS => {
            call.program(&[], &[step(op::GET_FS, [0; 4])]).await?;
            let mut base = [0; 8];
            if !call.process.window.read(at::DATA, &mut base) {
                return Err(EIO);
            }
            call.out(1, &base);
            Ok(0)
        }
        _ => Err(EINVAL),
    }
}

/// set_tid_address(2): a process is its only thread, so nobody waits for the word to be cleared.
pub async fn sys_set_tid_address<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    Ok(i64::from(call.process.pid))
}

/// set_robust_list(2): accepted; there are no other threads to unlock for.
pub async fn sys_set_robust_list<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    if call.args[1] == 24 { Ok(0) } else { Err(EINVAL) }
}

/// futex(2) in a process of one thread: nobody else can wake or be woken.
pub async fn sys_futex<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    const WAIT: u64 = 0;
    const WAKE: u64 = 1;
    const WAIT_BITSET: u64 = 9;
    const WAKE_BITSET: u64 = 10;
    const CLOCK_REALTIME: u64 = 256;
    let [address, operation, value, timeout, _, _] = call.args;
    if address % 4 != 0 {
        return Err(EINVAL);
    }
    match operation & 0x7f & !CLOCK_REALTIME {
        WAKE | WAKE_BITSET => Ok(0),
        kind @ (WAIT | WAIT_BITSET) => {
            let time = if timeout == 0 { None } else { call.struct_in::<16>(3)? };
            let now = call.read_user(address, 4).await?;
            if now != (value as u32).to_le_bytes() {
                return Err(EAGAIN);
            }
            let start = exec::now_ns();
            let until = match time {
                None => None,
                Some(t) => {
                    let ns = crate::time::timespec(&t)?;
                    // WAIT_BITSET's is absolute, on the monotonic clock unless asked otherwise.
                    Some(if kind == WAIT { call.deadline(start.saturating_add(ns)) } else { ns })
                }
            };
            loop {
                if until.is_some_and(|u| exec::now_ns() >= u) {
                    return Err(ETIMEDOUT);
                }
                call.sleep_on(&[], until).await?;
            }
        }
        _ => Err(ENOSYS),
    }
}

fn limit_bytes((soft, hard): (u64, u64)) -> Vec<u8> {
    Bytes::default().u64(soft).u64(hard).0
}

async fn set_limit<S: Services>(
    call: &mut Call<'_, S>,
    which: usize,
    new: [u8; 16],
) -> Result<(), Errno> {
    const NOFILE: usize = 7;
    let word = |i: usize| {
        let mut b = [0; 8];
        b.copy_from_slice(&new[i * 8..i * 8 + 8]);
        u64::from_le_bytes(b)
    };
    let (soft, hard) = (word(0), word(1));
    let old = call.process.state.limits[which];
    if soft > hard {
        return Err(EINVAL);
    }
    if hard > old.1 && call.process.credentials.uid != 0 {
        return Err(EPERM);
    }
    if which == NOFILE && hard > crate::fd::MAX_FDS as u64 {
        return Err(EPERM);
    }
    call.process.state.limits[which] = (soft, hard);
    call.save().await
}

fn which(value: u64) -> Result<usize, Errno> {
    usize::try_from(value).ok().filter(|w| *w < LIMITS).ok_or(EINVAL)
}

/// getrlimit(2).
pub async fn sys_getrlimit<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let limit = call.process.state.limits[which(call.args[0])?];
    call.out(1, &limit_bytes(limit));
    Ok(0)
}

/// setrlimit(2).
pub async fn sys_setrlimit<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let new = call.struct_in::<16>(1)?.ok_or(EFAULT)?;
    set_limit(call, which(call.args[0])?, new).await.map(|()| 0)
}

/// prlimit64(2), of the caller itself.
pub async fn sys_prlimit64<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let pid = call.args[0] as Pid;
    if pid != 0 && pid != call.process.pid {
        return Err(EPERM);
    }
    let which = which(call.args[1])?;
    let old = call.process.state.limits[which];
    if let Some(new) = call.struct_in::<16>(2)? {
        set_limit(call, which, new).await?;
    }
    if call.args[3] != 0 {
        call.out(3, &limit_bytes(old));
    }
    Ok(0)
}

/// prctl(2), in part.
pub async fn sys_prctl<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let argument = call.args[1];
    match call.args[0] {
        // PR_SET_PDEATHSIG, PR_GET_PDEATHSIG
        1 => {
            let signal = u8::try_from(argument).ok().filter(|s| *s <= 64).ok_or(EINVAL)?;
            call.process.state.pdeathsig = signal;
            call.save().await?;
        }
        2 => {
            let signal = i32::from(call.process.state.pdeathsig);
            call.out(1, &signal.to_le_bytes());
        }
        // PR_GET_DUMPABLE, PR_SET_DUMPABLE
        3 => return Ok(i64::from(call.process.state.dumpable)),
        4 => {
            call.process.state.dumpable = match argument {
                0 => false,
                1 => true,
                _ => return Err(EINVAL),
            };
            call.save().await?;
        }
        // PR_SET_NAME, PR_GET_NAME
        15 => {
            let name = call.read_string(argument, 4096).await?;
            let mut comm = [0; 16];
            let len = name.len().min(15);
            comm[..len].copy_from_slice(&name[..len]);
            call.process.state.comm = comm;
            call.save().await?;
        }
        16 => {
            let comm = call.process.state.comm;
            call.out(1, &comm);
        }
        // PR_GET_NO_NEW_PRIVS
        39 => return Ok(0),
        // PR_SET_VMA (names of mappings)
        0x5356_4d41 => {}
        _ => return Err(EINVAL),
    }
    Ok(0)
}

/// getpriority(2), setpriority(2), sched_*: one policy, one priority.
pub async fn sys_getpriority<S: Services>(_: &mut Call<'_, S>) -> Result<i64, Errno> {
    // The system call answers 20 - nice.
    Ok(20)
}

/// setpriority(2): accepted, without effect.
pub async fn sys_setpriority<S: Services>(_: &mut Call<'_, S>) -> Result<i64, Errno> {
    Ok(0)
}

/// sched_getaffinity(2): the host's CPUs.
pub async fn sys_sched_getaffinity<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let cpus = crate::host::facts().cpus;
    if call.args[1] < 8 || !call.args[1].is_multiple_of(8) {
        return Err(EINVAL);
    }
    let mask = if cpus == 64 { u64::MAX } else { bit(cpus + 1) - 1 };
    call.out(2, &mask.to_le_bytes());
    Ok(8)
}
