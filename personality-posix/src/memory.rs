//! mmap and its kin: the memory server decides, the stub maps.

use crate::call::{Call, step};
use crate::fd::Kind;
use crate::services::Services;
use crate::window::{APP_END, op};
use clustix_proto::Errno;
use clustix_proto::errno::*;
use clustix_proto::memory::{Area, Mapped, PAGE, Request, Source, Step};
use clustix_vfs::Walked;

const MAP_SHARED: u64 = 1;
const MAP_PRIVATE: u64 = 2;
const MAP_TYPE: u64 = 0xf;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;

/// Has the stub do what the memory server decided. `file`: what a mapping of a file shows.
async fn carry_out<S: Services>(
    call: &mut Call<'_, S>,
    mapped: Mapped,
    file: Option<&Walked>,
) -> Result<i64, Errno> {
    let mut steps = Vec::new();
    for s in &mapped.steps {
        let end = match s {
            Step::Unmap(_, end) | Step::Protect(_, end, _) => *end,
            Step::Map(a) => a.end,
            Step::Copy(_, to, len) => to.saturating_add(*len),
        };
        // The stub's filter would kill for it.
        if end > APP_END {
            return Err(ENOMEM);
        }
        match *s {
            Step::Unmap(start, end) => steps.push(step(op::UNMAP, [start, end - start, 0, 0])),
            Step::Map(Area { start, end, prot, source }) => match source {
                Source::File { ino, offset } => {
                    let found;
                    let file = match file {
                        Some(f) if f.ino == ino => f,
                        _ => {
                            found = clustix_vfs::stat(call.cache(), ino).await?;
                            &found
                        }
                    };
                    let image = call.node.images.get(call.services(), file).await?;
                    call.services().stubs().send(&image, call.process.stub())?;
                    steps.push(step(op::RECEIVE, [0; 4]));
                    // What lies wholly behind the file's end is mapped all the same: SIGBUS there.
                    steps.push(step(op::MAP_FILE, [start, end - start, u64::from(prot), offset]));
                    steps.push(step(op::DROP, [0; 4]));
                }
                _ => steps.push(step(op::MAP, [start, end - start, u64::from(prot), 0])),
            },
            Step::Protect(start, end, prot) => {
                steps.push(step(op::PROTECT, [start, end - start, u64::from(prot), 0]));
            }
            Step::Copy(from, to, len) => steps.push(step(op::MOVE, [from, to, len, 0])),
        }
    }
    for some in steps.chunks(128) {
        call.program(&[], some).await.map_err(|e| if e == EEXIST { ENOMEM } else { e })?;
    }
    Ok(mapped.addr as i64)
}

fn prot(value: u64) -> Result<u8, Errno> {
    // PROT_GROWSDOWN and PROT_GROWSUP are refused; PROT_SEM means nothing here.
    if value & !0xf != 0 {
        return Err(EINVAL);
    }
    Ok((value & 7) as u8)
}

/// mmap(2).
pub async fn sys_mmap<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let [hint, len, protection, flags, fd, offset] = call.args;
    let prot = prot(protection)?;
    if len == 0 || offset % PAGE != 0 {
        return Err(EINVAL);
    }
    let len = len.checked_next_multiple_of(PAGE).ok_or(ENOMEM)?;
    let mut file = None;
    let source = if flags & MAP_ANONYMOUS != 0 {
        match flags & MAP_TYPE {
            MAP_PRIVATE => Source::Anonymous,
            // Shared with nobody yet: children of a fork would need it to be one memory.
            MAP_SHARED | 3 => return Err(ENODEV),
            _ => return Err(EINVAL),
        }
    } else {
        let (_, open) = call.file(fd as i32).await?;
        if !open.readable() {
            return Err(EACCES);
        }
        let Kind::File { ino } = open.kind else { return Err(ENODEV) };
        match flags & MAP_TYPE {
            MAP_PRIVATE => {}
            // A shared mapping that nobody here can write shows the file as it is now.
            MAP_SHARED | 3 if prot & 2 == 0 && !open.writable() => {}
            MAP_SHARED | 3 => return Err(ENODEV),
            _ => return Err(EINVAL),
        }
        file = Some(clustix_vfs::stat(call.cache(), ino).await?);
        Source::File { ino, offset }
    };
    // Made before anything is replaced, since it can fail.
    if let Some(f) = &file {
        call.node.images.get(call.services(), f).await?;
    }
    let no_replace = flags & MAP_FIXED_NOREPLACE != 0;
    let fixed = flags & MAP_FIXED != 0 || no_replace;
    let space = call.process.pid;
    let request = Request::Map { space, hint, len, prot, source, fixed, no_replace };
    let mapped = call.services().memory(&request).await?;
    carry_out(call, mapped, file.as_ref()).await
}

/// munmap(2).
pub async fn sys_munmap<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let [start, len, ..] = call.args;
    let request = Request::Unmap { space: call.process.pid, start, len };
    let mapped = call.services().memory(&request).await?;
    carry_out(call, mapped, None).await.map(|_| 0)
}

/// mprotect(2).
pub async fn sys_mprotect<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let [start, len, protection, ..] = call.args;
    let prot = prot(protection)?;
    let request = Request::Protect { space: call.process.pid, start, len, prot };
    let mapped = call.services().memory(&request).await?;
    carry_out(call, mapped, None).await.map(|_| 0)
}

/// brk(2).
pub async fn sys_brk<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let request = Request::Break { space: call.process.pid, to: call.args[0] };
    let mapped = call.services().memory(&request).await?;
    carry_out(call, mapped, None).await
}

/// mremap(2).
pub async fn sys_mremap<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    const MAYMOVE: u64 = 1;
    const FIXED: u64 = 2;
    let [start, old_len, new_len, flags, to, _] = call.args;
    if flags & !(MAYMOVE | FIXED) != 0 || flags & FIXED != 0 && flags & MAYMOVE == 0 {
        return Err(EINVAL);
    }
    let request = Request::Remap {
        space: call.process.pid,
        start,
        old_len,
        new_len,
        may_move: flags & MAYMOVE != 0,
        to: (flags & FIXED != 0).then_some(to),
    };
    let mapped = call.services().memory(&request).await?;
    carry_out(call, mapped, None).await
}

/// madvise(2): only MADV_DONTNEED and MADV_FREE do something.
pub async fn sys_madvise<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let [start, len, advice, ..] = call.args;
    if start % PAGE != 0 {
        return Err(EINVAL);
    }
    let end = len.checked_next_multiple_of(PAGE).and_then(|l| start.checked_add(l));
    let end = end.filter(|e| *e <= APP_END).ok_or(ENOMEM)?;
    match advice {
        4 | 8 if end > start => {
            call.program(&[], &[step(op::DISCARD, [start, end - start, 0, 0])]).await?;
            Ok(0)
        }
        0..=4 | 8 | 10..=17 | 20..=22 => Ok(0),
        _ => Err(EINVAL),
    }
}

/// msync(2): there is nothing to write back in private memory.
pub async fn sys_msync<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    if !call.args[0].is_multiple_of(PAGE) {
        return Err(EINVAL);
    }
    Ok(0)
}

/// mlock(2), munlock(2) and their kin: accepted, without effect.
pub async fn sys_mlock<S: Services>(_: &mut Call<'_, S>) -> Result<i64, Errno> {
    Ok(0)
}
