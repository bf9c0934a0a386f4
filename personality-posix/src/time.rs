//! Time: sleeping, alarms, and what a process has used. (Clocks are answered by the stub.)

use crate::call::{Call, step};
use crate::layouts::Bytes;
use crate::services::Services;
use crate::window::{at, op};
use clustix_pd::exec;
use clustix_proto::Errno;
use clustix_proto::errno::*;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

const SECOND: u64 = 1_000_000_000;
const CLOCK_REALTIME: u64 = 0;
const TIMER_ABSTIME: u64 = 1;

fn words(b: &[u8]) -> (i64, i64) {
    let word = |i: usize| {
        let mut w = [0; 8];
        if let Some(from) = b.get(i * 8..i * 8 + 8) {
            w.copy_from_slice(from);
        }
        i64::from_le_bytes(w)
    };
    (word(0), word(1))
}

/// A struct timespec in ns; EINVAL.
pub fn timespec(b: &[u8]) -> Result<u64, Errno> {
    let (s, ns) = words(b);
    let s = u64::try_from(s).map_err(|_| EINVAL)?;
    let ns = u64::try_from(ns).ok().filter(|n| *n < SECOND).ok_or(EINVAL)?;
    Ok(s.saturating_mul(SECOND).saturating_add(ns))
}

fn timeval(b: &[u8]) -> Result<u64, Errno> {
    let (s, us) = words(b);
    let s = u64::try_from(s).map_err(|_| EINVAL)?;
    let us = u64::try_from(us).ok().filter(|n| *n < 1_000_000).ok_or(EINVAL)?;
    Ok(s.saturating_mul(SECOND).saturating_add(us * 1000))
}

fn as_timespec(ns: u64) -> Vec<u8> {
    Bytes::default().u64(ns / SECOND).u64(ns % SECOND).0
}

fn as_timeval(ns: u64) -> Vec<u8> {
    Bytes::default().u64(ns / SECOND).u64(ns % SECOND / 1000).0
}

/// Sleeps; where a handler ends it, the rest goes out through argument `rest`.
async fn sleep<S: Services>(
    call: &mut Call<'_, S>,
    until: u64,
    rest: Option<usize>,
) -> Result<i64, Errno> {
    loop {
        let now = exec::now_ns();
        if now >= until {
            return Ok(0);
        }
        call.progress = [until - now, 0];
        if call.sleep_on(&[], Some(until)).await.is_err() {
            if let Some(i) = rest.filter(|i| call.args[*i] != 0) {
                let left = until.saturating_sub(exec::now_ns());
                call.out(i, &as_timespec(left));
            }
            return Err(EINTR);
        }
    }
}

/// nanosleep(2).
pub async fn sys_nanosleep<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let ns = timespec(&call.struct_in::<16>(0)?.ok_or(EFAULT)?)?;
    let until = call.deadline(exec::now_ns().saturating_add(ns));
    sleep(call, until, Some(1)).await
}

/// clock_nanosleep(2).
pub async fn sys_clock_nanosleep<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let ns = timespec(&call.struct_in::<16>(2)?.ok_or(EFAULT)?)?;
    if !matches!(call.args[0], 0 | 1 | 7 | 8 | 9 | 11) {
        return Err(EINVAL);
    }
    let now = exec::now_ns();
    if call.args[1] & TIMER_ABSTIME == 0 {
        let until = call.deadline(now.saturating_add(ns));
        return sleep(call, until, Some(3)).await;
    }
    let until = match call.args[0] {
        CLOCK_REALTIME | 8 | 11 => {
            let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| EINVAL)?;
            now.saturating_add(ns.saturating_sub(wall.as_nanos() as u64))
        }
        _ => ns,
    };
    sleep(call, until, None).await
}

/// Sets ITIMER_REAL; what was left of it before, ns.
async fn set_timer<S: Services>(
    call: &mut Call<'_, S>,
    first: u64,
    interval: u64,
) -> Result<u64, Errno> {
    let now = exec::now_ns();
    let at = if first == 0 { 0 } else { now.saturating_add(first) };
    call.process.state.timer = (at, interval);
    call.save().await?;
    let running = &call.process.running;
    running.interval.store(interval, Ordering::Release);
    let before = running.timer.swap(at, Ordering::AcqRel);
    call.node.timers.fetch_add(1, Ordering::Release);
    exec::wake_all(&call.node.timers);
    Ok(if before == 0 { 0 } else { before.saturating_sub(now).max(1) })
}

/// alarm(2).
pub async fn sys_alarm<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let seconds = u64::from(call.args[0] as u32);
    let left = set_timer(call, seconds * SECOND, 0).await?;
    Ok(left.div_ceil(SECOND) as i64)
}

/// setitimer(2): ITIMER_REAL; the others are ENOSYS.
pub async fn sys_setitimer<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    match call.args[0] {
        0 => {}
        1 | 2 => return Err(ENOSYS),
        _ => return Err(EINVAL),
    }
    let new = call.struct_in::<32>(1)?.unwrap_or([0; 32]);
    let (interval, first) = (timeval(&new[..16])?, timeval(&new[16..])?);
    let was = call.process.running.interval.load(Ordering::Acquire);
    let left = set_timer(call, first, interval).await?;
    if call.args[2] != 0 {
        let bytes = [as_timeval(was), as_timeval(left)].concat();
        call.out(2, &bytes);
    }
    Ok(0)
}

/// getitimer(2).
pub async fn sys_getitimer<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    if call.args[0] > 2 {
        return Err(EINVAL);
    }
    let running = &call.process.running;
    let (mut left, mut interval) = (0, 0);
    if call.args[0] == 0 {
        let at = running.timer.load(Ordering::Acquire);
        left = if at == 0 { 0 } else { at.saturating_sub(exec::now_ns()).max(1) };
        interval = running.interval.load(Ordering::Acquire);
    }
    let bytes = [as_timeval(interval), as_timeval(left)].concat();
    call.out(1, &bytes);
    Ok(0)
}

/// User and system time of the calling process, µs: the host counts them as one, and what the
/// personality does for it is not in them.
pub async fn used_us<S: Services>(call: &mut Call<'_, S>) -> Result<(u64, u64), Errno> {
    const CLOCK_PROCESS_CPUTIME_ID: u64 = 2;
    call.program(&[], &[step(op::CLOCK, [CLOCK_PROCESS_CPUTIME_ID, 0, 0, 0])]).await?;
    let mut time = [0; 16];
    if !call.process.window.read(at::DATA, &mut time) {
        return Err(EIO);
    }
    let ns = timespec(&time).unwrap_or(0);
    Ok((ns / 1000, 0))
}

/// times(2), in units of 10 ms.
pub async fn sys_times<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    const TICK_US: u64 = 10_000;
    if call.args[0] != 0 {
        let (user, system) = used_us(call).await?;
        let children = call.process_object().await?.children_us;
        let mut bytes = Bytes::default();
        for us in [user, system, children.0, children.1] {
            bytes = bytes.u64(us / TICK_US);
        }
        call.out(0, &bytes.0);
    }
    Ok((exec::now_ns() / (TICK_US * 1000)) as i64)
}

/// getrusage(2): times only.
pub async fn sys_getrusage<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let used = match call.int(0) {
        0 | 1 => used_us(call).await?,
        -1 => call.process_object().await?.children_us,
        _ => return Err(EINVAL),
    };
    call.out(1, &crate::process::rusage(used));
    Ok(0)
}
