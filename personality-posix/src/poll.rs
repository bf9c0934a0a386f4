//! poll(2), ppoll(2), select(2), pselect6(2).

use crate::call::{Call, RESTART_NOHAND};
use crate::fd::{Kind, OpenFile, flags::*};
use crate::services::Services;
use crate::tty;
use clustix_ccache::cache::{Version, Waited};
use clustix_ccache::name::Name;
use clustix_pd::exec;
use clustix_process::pipe::{self, End};
use clustix_proto::errno::*;
use clustix_proto::{Errno, console};

const POLLIN: u16 = 0x1;
const POLLOUT: u16 = 0x4;
const POLLERR: u16 = 0x8;
const POLLHUP: u16 = 0x10;
const POLLNVAL: u16 = 0x20;
const POLLRDNORM: u16 = 0x40;
const POLLWRNORM: u16 = 0x100;

/// Objects that one wait can name; past it a poll looks again after [`LOOK_AGAIN_NS`].
const WATCHED: usize = 8;
const LOOK_AGAIN_NS: u64 = 20_000_000;
/// Most descriptors of one call.
const MAX: usize = 1024;

const READ: u16 = POLLIN | POLLRDNORM;
const WRITE: u16 = POLLOUT | POLLWRNORM;

impl<S: Services> Call<'_, S> {
    /// What a description is ready for, and what to wait on for a change.
    async fn ready(&self, file: &OpenFile) -> Result<(u16, Option<(Name, Version)>), Errno> {
        Ok(match file.kind {
            Kind::File { .. } | Kind::Dir { .. } | Kind::Char { .. } => (READ | WRITE, None),
            Kind::Pipe { pipe, read, write, .. } => {
                let mut events = 0;
                let mut on = None;
                if read {
                    let r = pipe::poll(self.cache(), pipe, End::Read).await?;
                    if r.readable {
                        events |= READ;
                    }
                    if r.hangup {
                        events |= POLLHUP;
                    }
                    if r.error {
                        events |= POLLERR;
                    }
                    on = Some(r.on);
                }
                if write {
                    let r = pipe::poll(self.cache(), pipe, End::Write).await?;
                    if r.writable {
                        events |= WRITE;
                    }
                    if r.error {
                        events |= POLLERR;
                    }
                    on = Some(r.on);
                }
                (events, on)
            }
            Kind::Tty { tty, .. } => {
                let (now, version) = tty::look(self.cache(), tty).await?;
                let mut events = 0;
                if tty::readable(&now) > 0 {
                    events |= READ;
                }
                if now.hangup {
                    events |= READ | POLLHUP;
                }
                let room = !now.attached
                    || now.output_end.saturating_sub(now.output_taken)
                        < (console::Tty::OUTPUT - console::Tty::ECHO_RESERVE) as u64;
                if room && !now.stopped {
                    events |= WRITE;
                }
                (events, Some((console::tty(tty), version)))
            }
        })
    }

    /// Waits until one of the descriptors has one of the events asked for, or `deadline`.
    async fn poll_fds(
        &mut self,
        asked: &[(i32, u16)],
        deadline: Option<u64>,
    ) -> Result<Vec<u16>, Errno> {
        loop {
            let mut answers = Vec::with_capacity(asked.len());
            let mut on = Vec::new();
            for &(fd, events) in asked {
                if fd < 0 {
                    answers.push(0);
                    continue;
                }
                let answer = match self.file(fd).await {
                    Ok((_, file)) if file.flags & O_PATH == 0 => {
                        let (ready, wait) = self.ready(&file).await?;
                        on.extend(wait);
                        ready & (events | POLLERR | POLLHUP)
                    }
                    _ => POLLNVAL,
                };
                answers.push(answer);
            }
            let any = answers.iter().any(|a| *a != 0);
            if any || deadline.is_some_and(|d| d <= exec::now_ns()) {
                return Ok(answers);
            }
            on.dedup();
            let until = if on.len() > WATCHED {
                on.truncate(WATCHED);
                let soon = exec::now_ns() + LOOK_AGAIN_NS;
                Some(deadline.map_or(soon, |d| d.min(soon)))
            } else {
                deadline
            };
            match self.sleep_on(&on, until).await {
                Ok(Waited::TimedOut | Waited::Changed) => {}
                Err(crate::call::RESTART) => return Err(RESTART_NOHAND),
                Err(e) => return Err(e),
            }
        }
    }

    /// A relative `struct timespec` as a deadline.
    fn deadline_in(&mut self, ts: [u8; 16]) -> Result<u64, Errno> {
        let word = |i: usize| i64::from_le_bytes(ts[i..i + 8].try_into().unwrap_or([0; 8]));
        let (sec, nsec) = (word(0), word(8));
        if sec < 0 || !(0..1_000_000_000).contains(&nsec) {
            return Err(EINVAL);
        }
        let ns = (sec as u64).saturating_mul(1_000_000_000).saturating_add(nsec as u64);
        Ok(self.deadline(exec::now_ns().saturating_add(ns)))
    }

    /// For a call with a signal mask: puts it in place until the call's end.
    async fn with_mask(&mut self, mask: Option<[u8; 8]>) -> Result<(), Errno> {
        if let Some(mask) = mask {
            let old = self.process.state.mask;
            self.process.state.mask = u64::from_le_bytes(mask) & !UNBLOCKABLE;
            self.process.state.saved_mask = Some(old);
            self.save().await?;
        }
        Ok(())
    }

    /// Puts the mask from before [`Call::with_mask`] back, unless a signal is to be delivered first:
    /// then that is done with the frame.
    async fn without_mask(&mut self) -> Result<(), Errno> {
        if !self.signalled()
            && let Some(old) = self.process.state.saved_mask.take()
        {
            self.process.state.mask = old;
            self.save().await?;
        }
        Ok(())
    }
}

/// SIGKILL and SIGSTOP.
const UNBLOCKABLE: u64 = 1 << 8 | 1 << 18;

async fn poll<S: Services>(call: &mut Call<'_, S>, deadline: Option<u64>) -> Result<i64, Errno> {
    let n = call.args[1] as usize;
    if n > MAX {
        return Err(EINVAL);
    }
    let mut fds = if n == 0 { Vec::new() } else { call.bytes_in(0, 0, n * 8).await? };
    if fds.len() != n * 8 {
        return Err(EFAULT);
    }
    let asked: Vec<(i32, u16)> = fds
        .chunks_exact(8)
        .map(|c| (i32::from_le_bytes([c[0], c[1], c[2], c[3]]), u16::from_le_bytes([c[4], c[5]])))
        .collect();
    let answers = call.poll_fds(&asked, deadline).await?;
    for (c, a) in fds.chunks_exact_mut(8).zip(&answers) {
        c[6..8].copy_from_slice(&a.to_le_bytes());
    }
    call.out(0, &fds);
    Ok(answers.iter().filter(|a| **a != 0).count() as i64)
}

/// poll(2).
pub async fn sys_poll<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let ms = call.int(2);
    let deadline = (ms >= 0).then(|| call.deadline(exec::now_ns() + ms as u64 * 1_000_000));
    poll(call, deadline).await
}

/// ppoll(2).
pub async fn sys_ppoll<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let deadline = match call.struct_in::<16>(2)? {
        Some(ts) => Some(call.deadline_in(ts)?),
        None => None,
    };
    let mask = call.struct_in::<8>(3)?;
    call.with_mask(mask).await?;
    let answer = poll(call, deadline).await;
    call.without_mask().await?;
    answer
}

/// The three sets of a select, as bit maps of `n` descriptors.
async fn select<S: Services>(call: &mut Call<'_, S>, deadline: Option<u64>) -> Result<i64, Errno> {
    let n = call.int(0);
    if n < 0 {
        return Err(EINVAL);
    }
    let n = (n as usize).min(MAX);
    let bytes = n.div_ceil(64) * 8;
    let mut sets: [Option<Vec<u8>>; 3] = [None, None, None];
    for (i, set) in sets.iter_mut().enumerate() {
        if call.args[i + 1] != 0 && bytes > 0 {
            *set = Some(call.read_user(call.args[i + 1], bytes).await?);
        }
    }
    let has = |set: &Option<Vec<u8>>, fd: usize| {
        set.as_ref().is_some_and(|s| s[fd / 8] & 1 << (fd % 8) != 0)
    };
    let mut asked = Vec::new();
    for fd in 0..n {
        let mut events = 0;
        if has(&sets[0], fd) {
            events |= READ;
        }
        if has(&sets[1], fd) {
            events |= WRITE;
        }
        if events != 0 || has(&sets[2], fd) {
            asked.push((fd as i32, events));
        }
    }
    let answers = call.poll_fds(&asked, deadline).await?;
    if answers.iter().any(|a| a & POLLNVAL != 0) {
        return Err(EBADF);
    }
    let mut count = 0;
    let mut out: [Vec<u8>; 3] = [vec![0; bytes], vec![0; bytes], vec![0; bytes]];
    for ((fd, events), answer) in asked.iter().zip(&answers) {
        let (at, bit) = (*fd as usize / 8, 1u8 << (*fd % 8));
        if events & READ != 0 && answer & (READ | POLLHUP | POLLERR) != 0 {
            out[0][at] |= bit;
            count += 1;
        }
        if events & WRITE != 0 && answer & (WRITE | POLLERR) != 0 {
            out[1][at] |= bit;
            count += 1;
        }
    }
    for (i, set) in out.iter().enumerate() {
        if sets[i].is_some() {
            call.out(i + 1, set);
        }
    }
    Ok(count)
}

/// select(2).
pub async fn sys_select<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let deadline = if call.args[4] == 0 {
        None
    } else {
        let mut ts: [u8; 16] =
            call.read_user(call.args[4], 16).await?.try_into().map_err(|_| EFAULT)?;
        let usec = i64::from_le_bytes(ts[8..].try_into().map_err(|_| EFAULT)?);
        if !(0..1_000_000).contains(&usec) {
            return Err(EINVAL);
        }
        ts[8..].copy_from_slice(&(usec * 1000).to_le_bytes());
        Some(call.deadline_in(ts)?)
    };
    select(call, deadline).await
}

/// pselect6(2).
pub async fn sys_pselect6<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let mut deadline = None;
    if call.args[4] != 0 {
        let ts = call.read_user(call.args[4], 16).await?.try_into().map_err(|_| EFAULT)?;
        deadline = Some(call.deadline_in(ts)?);
    }
    let mut mask = None;
    if call.args[5] != 0 {
        let b = call.read_user(call.args[5], 16).await?;
        let at = u64::from_le_bytes(b[..8].try_into().map_err(|_| EFAULT)?);
        if at != 0 {
            mask = Some(call.read_user(at, 8).await?.try_into().map_err(|_| EFAULT)?);
        }
    }
    call.with_mask(mask).await?;
    let answer = select(call, deadline).await;
    call.without_mask().await?;
    answer
}
