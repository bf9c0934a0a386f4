//! Bytes: read(2), write(2) and their vectored and positioned kin, lseek(2), sendfile(2), fsync(2).

use crate::call::Call;
use crate::fd::{Kind, OpenFile, flags::*};
use crate::services::Services;
use crate::tty;
use clustix_process::pipe::{self, Step};
use clustix_proto::Errno;
use clustix_proto::errno::*;
use clustix_proto::process::{Request, SignalInfo};
use clustix_proto::vfs::MAX_FILE_SIZE;

/// Most bytes that one call moves; more is a short count (Linux: 0x7ffff000).
const MOST: usize = 4 << 20;
/// Bytes that are moved as one step.
const STEP: usize = 64 * 1024;
/// Most elements of an iovec array (IOV_MAX).
const IOV_MAX: u64 = 1024;
/// Elements whose bytes the stub copies ahead.
const GATHERED: usize = 64;

const SIGPIPE: u8 = 13;
const SI_KERNEL: i32 = 0x80;

impl<S: Services> Call<'_, S> {
    /// Sends the calling process a signal of the kernel's own.
    pub async fn raise(&self, signal: u8) -> Result<(), Errno> {
        let info = SignalInfo { signal, code: SI_KERNEL, pid: 0, uid: 0, status: 0 };
        self.services().process(&Request::Raise { pid: self.process.pid, info }).await?;
        Ok(())
    }

    /// Reads at most `max` bytes through an open file description; `at`: pread(2).
    pub async fn read_file(
        &mut self,
        number: u64,
        file: OpenFile,
        max: usize,
        at: Option<u64>,
    ) -> Result<Vec<u8>, Errno> {
        if !file.readable() {
            return Err(EBADF);
        }
        let max = max.min(MOST);
        match file.kind {
            Kind::Dir { .. } => Err(EISDIR),
            Kind::File { ino } => self.read_regular(number, ino, max, at).await,
            _ if at.is_some() && !matches!(file.kind, Kind::Char { .. }) => Err(ESPIPE),
            Kind::Pipe { pipe, .. } => {
                let mut out = Vec::new();
                loop {
                    match pipe::read(self.cache(), pipe, max, &mut out).await? {
                        Step::Done(_) => return Ok(out),
                        Step::WouldBlock(..) if max == 0 => return Ok(out),
                        Step::WouldBlock(..) if file.nonblocking() => return Err(EAGAIN),
                        Step::WouldBlock(name, version) => {
                            self.sleep_on(&[(name, version)], None).await?;
                        }
                    }
                }
            }
            Kind::Tty { tty, .. } => tty::read(self, tty, max, file.nonblocking()).await,
            Kind::Char { major, minor, .. } => {
                let device = clustix_drivers::device(major, minor).ok_or(ENXIO)?;
                let mut out = vec![0; max.min(1 << 20)];
                let n = device.read(&mut out).ok_or(EIO)??;
                out.truncate(n);
                Ok(out)
            }
        }
    }

    #[allow(clippy::await_holding_lock)] // one thread per app thread: holding it is the point
    async fn read_regular(
        &mut self,
        number: u64,
        ino: u64,
        max: usize,
        at: Option<u64>,
    ) -> Result<Vec<u8>, Errno> {
        let cache = self.cache();
        let size = clustix_vfs::stat(cache, ino).await?.inode.size;
        if let Some(at) = at {
            let mut out = vec![0; max.min(left(size, at))];
            let n = clustix_vfs::read(cache, ino, at, &mut out).await?;
            out.truncate(n);
            return Ok(out);
        }
        let files = &self.node.files;
        let held = files.lock(number);
        let mut file = files.get(cache, number).await?;
        let mut out = vec![0; max.min(left(size, file.offset))];
        let n = clustix_vfs::read(cache, ino, file.offset, &mut out).await?;
        out.truncate(n);
        if n > 0 {
            file.offset += n as u64;
            crate::fd::store(cache, clustix_proto::process::name::ofile(number), &file).await?;
        }
        drop(held);
        Ok(out)
    }

    /// Writes `bytes` through an open file description, sleeping as need be: how many went in. `at`:
    /// pwrite(2). An error after some bytes is a short count.
    #[allow(clippy::await_holding_lock)]
    pub async fn write_file(
        &mut self,
        number: u64,
        file: OpenFile,
        bytes: &[u8],
        at: Option<u64>,
    ) -> Result<usize, Errno> {
        if !file.writable() {
            return Err(EBADF);
        }
        let cache = self.cache();
        match file.kind {
            Kind::Dir { .. } => Err(EISDIR),
            Kind::File { ino } => {
                let append = file.flags & O_APPEND != 0;
                let cred = &self.process.credentials;
                if let Some(at) = at {
                    return Ok(clustix_vfs::write(cache, cred, ino, at, bytes, append).await?.len);
                }
                let files = &self.node.files;
                let _held = files.lock(number);
                let mut file = files.get(cache, number).await?;
                let w = clustix_vfs::write(cache, cred, ino, file.offset, bytes, append).await?;
                file.offset = w.offset + w.len as u64;
                crate::fd::store(cache, clustix_proto::process::name::ofile(number), &file).await?;
                Ok(w.len)
            }
            _ if at.is_some() && !matches!(file.kind, Kind::Char { .. }) => Err(ESPIPE),
            Kind::Pipe { pipe, .. } => {
                let mut done = 0;
                loop {
                    match pipe::write(cache, pipe, &bytes[done..]).await {
                        Ok(Step::Done(n)) => {
                            done += n;
                            self.progress[0] += n as u64;
                            if done >= bytes.len() {
                                return Ok(done);
                            }
                        }
                        Ok(Step::WouldBlock(..)) if file.nonblocking() => {
                            return if done > 0 { Ok(done) } else { Err(EAGAIN) };
                        }
                        Ok(Step::WouldBlock(name, version)) => {
                            match self.sleep_on(&[(name, version)], None).await {
                                Err(_) if done > 0 => return Ok(done),
                                other => other?,
                            };
                        }
                        Err(EPIPE) => {
                            self.raise(SIGPIPE).await?;
                            return if done > 0 { Ok(done) } else { Err(EPIPE) };
                        }
                        Err(e) => return if done > 0 { Ok(done) } else { Err(e) },
                    }
                }
            }
            Kind::Tty { tty, .. } => tty::write(self, tty, bytes, file.nonblocking()).await,
            Kind::Char { major, minor, .. } => {
                clustix_drivers::device(major, minor).ok_or(ENXIO)?.write(bytes).ok_or(EIO)?
            }
        }
    }
}

fn left(size: u64, at: u64) -> usize {
    usize::try_from(size.saturating_sub(at)).unwrap_or(usize::MAX)
}

/// A file offset argument.
fn offset(arg: u64) -> Result<u64, Errno> {
    if arg > i64::MAX as u64 { Err(EINVAL) } else { Ok(arg) }
}

/// A byte count, capped at what one call moves.
fn count(arg: u64) -> Result<usize, Errno> {
    if arg > i64::MAX as u64 { Err(EINVAL) } else { Ok((arg as usize).min(MOST)) }
}

/// read(2).
pub async fn sys_read<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let (number, file) = call.file(call.int(0)).await?;
    if file.readable() && call.faulted(1) {
        return Err(EFAULT);
    }
    let bytes = call.read_file(number, file, count(call.args[2])?, None).await?;
    let n = bytes.len() as i64;
    call.out_vec(call.args[1], bytes);
    Ok(n)
}

/// pread64(2).
pub async fn sys_pread64<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let at = offset(call.args[3])?;
    let (number, file) = call.file(call.int(0)).await?;
    let bytes = call.read_file(number, file, count(call.args[2])?, Some(at)).await?;
    let n = bytes.len() as i64;
    call.out_vec(call.args[1], bytes);
    Ok(n)
}

/// Writes argument 1, `args[2]` bytes, in steps as they come from the app's memory.
async fn write<S: Services>(call: &mut Call<'_, S>, at: Option<u64>) -> Result<i64, Errno> {
    let (number, file) = call.file(call.int(0)).await?;
    let len = count(call.args[2])?;
    let mut done = 0;
    loop {
        let want = (len - done).min(STEP);
        let step = async {
            let bytes = call.bytes_in(1, done as u64, want).await?;
            let at = at.map(|a| a + done as u64);
            // A copy made ahead may be shorter than asked for; an empty one of a non-empty
            // buffer would loop for ever.
            if bytes.is_empty() && want > 0 {
                return Err(EFAULT);
            }
            call.write_file(number, file, &bytes, at).await.map(|n| (n, bytes.len()))
        };
        match step.await {
            Ok((n, given)) => {
                done += n;
                if done >= len || n < given {
                    return Ok(done as i64);
                }
            }
            Err(_) if done > 0 => return Ok(done as i64),
            Err(e) => return Err(e),
        }
    }
}

/// write(2).
pub async fn sys_write<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    write(call, None).await
}

/// pwrite64(2).
pub async fn sys_pwrite64<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let at = offset(call.args[3])?;
    write(call, Some(at)).await
}

/// The elements of an iovec array as (address, length); their sum fits in an i64.
fn iovecs(bytes: &[u8]) -> Result<Vec<(u64, usize)>, Errno> {
    let mut sum = 0u64;
    bytes
        .chunks_exact(16)
        .map(|c| {
            let word = |i: usize| u64::from_le_bytes(c[i..i + 8].try_into().unwrap_or([0; 8]));
            let (base, len) = (word(0), word(8));
            sum = sum.checked_add(len).filter(|s| *s <= i64::MAX as u64).ok_or(EINVAL)?;
            Ok((base, len as usize))
        })
        .collect()
}

async fn readv<S: Services>(call: &mut Call<'_, S>, at: Option<u64>) -> Result<i64, Errno> {
    if call.args[2] > IOV_MAX {
        return Err(EINVAL);
    }
    let (number, file) = call.file(call.int(0)).await?;
    if call.args[2] == 0 {
        return Ok(0);
    }
    let heads = call.args[2] as usize * 16;
    let vectors = iovecs(&call.bytes_in(1, 0, heads).await?)?;
    let total: usize = vectors.iter().map(|v| v.1).sum();
    let bytes = call.read_file(number, file, total, at).await?;
    let mut done = 0;
    for (base, len) in vectors {
        let n = len.min(bytes.len() - done);
        call.out_at(base, &bytes[done..done + n]);
        done += n;
    }
    Ok(bytes.len() as i64)
}

/// readv(2).
pub async fn sys_readv<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    readv(call, None).await
}

/// preadv(2).
pub async fn sys_preadv<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let at = offset(call.args[3])?;
    readv(call, Some(at)).await
}

async fn writev<S: Services>(call: &mut Call<'_, S>, at: Option<u64>) -> Result<i64, Errno> {
    if call.args[2] > IOV_MAX {
        return Err(EINVAL);
    }
    let (number, file) = call.file(call.int(0)).await?;
    if call.args[2] == 0 {
        return Ok(0);
    }
    let n = call.args[2] as usize;
    let ahead = call.copied_in(1)?;
    let vectors = if n <= GATHERED {
        iovecs(ahead.get(..n * 16).ok_or(EFAULT)?)?
    } else {
        let heads = call.read_user(call.args[1], n * 16).await?;
        iovecs(&heads)?
    };
    let total = vectors.iter().map(|v| v.1).sum::<usize>().min(MOST);
    let mut bytes = ahead.get(n.min(GATHERED) * 16..).unwrap_or(&[]).to_vec();
    if n > GATHERED {
        bytes.clear();
    }
    bytes.truncate(total);
    // What did not fit in the copy made ahead.
    let mut skip = bytes.len();
    for (base, len) in vectors {
        if bytes.len() >= total {
            break;
        }
        let within = skip.min(len);
        skip -= within;
        let want = (len - within).min(total - bytes.len());
        if want > 0 {
            bytes.extend(call.read_user(base.wrapping_add(within as u64), want).await?);
        }
    }
    Ok(call.write_file(number, file, &bytes, at).await? as i64)
}

/// writev(2).
pub async fn sys_writev<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    writev(call, None).await
}

/// pwritev(2).
pub async fn sys_pwritev<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let at = offset(call.args[3])?;
    writev(call, Some(at)).await
}

/// lseek(2). SEEK_DATA and SEEK_HOLE see a file without holes.
pub async fn sys_lseek<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let (number, file) = call.file(call.int(0)).await?;
    let by = call.args[1] as i64;
    let ino = match file.kind {
        Kind::File { ino } | Kind::Dir { ino } => ino,
        Kind::Char { .. } => return Ok(0),
        _ => return Err(ESPIPE),
    };
    if file.flags & O_PATH != 0 {
        return Err(EBADF);
    }
    let size = match call.args[2] {
        0 | 1 => 0,
        _ => clustix_vfs::stat(call.cache(), ino).await?.inode.size as i64,
    };
    let whence = call.args[2];
    let is_dir = matches!(file.kind, Kind::Dir { .. });
    call.node
        .files
        .update(call.cache(), number, |f| {
            let to = match whence {
                0 => Some(by),
                1 => (f.offset as i64).checked_add(by),
                2 => size.checked_add(by),
                3 | 4 if by < 0 || by >= size => return Err(ENXIO),
                3 => Some(by),
                4 => Some(size),
                _ => return Err(EINVAL),
            };
            let to = to.ok_or(EOVERFLOW)?;
            if to < 0 || (!is_dir && to as u64 > MAX_FILE_SIZE) {
                return Err(EINVAL);
            }
            f.offset = to as u64;
            Ok(to)
        })
        .await?
}

/// sendfile(2).
pub async fn sys_sendfile<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let (out_number, out) = call.file(call.int(0)).await?;
    let (in_number, from) = call.file(call.int(1)).await?;
    let len = count(call.args[3])?;
    let Kind::File { .. } = from.kind else { return Err(EINVAL) };
    if out.flags & O_APPEND != 0 {
        return Err(EINVAL);
    }
    let given = call.struct_in::<8>(2)?.map(u64::from_le_bytes);
    let start = offset(given.unwrap_or(from.offset))?;
    let mut done = 0;
    while done < len {
        let at = start + done as u64;
        let bytes = call.read_file(in_number, from, (len - done).min(STEP), Some(at)).await?;
        if bytes.is_empty() {
            break;
        }
        match call.write_file(out_number, out, &bytes, None).await {
            Ok(n) => {
                done += n;
                if n < bytes.len() {
                    break;
                }
            }
            Err(e) if done == 0 => return Err(e),
            Err(_) => break,
        }
    }
    let end = start + done as u64;
    match given {
        Some(_) => call.out(2, &end.to_le_bytes()),
        None => call.node.files.update(call.cache(), in_number, |f| f.offset = end).await?,
    }
    Ok(done as i64)
}

/// fsync(2), fdatasync(2): a write is already in other nodes' memory when it returns.
pub async fn sys_fsync<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    match call.file(call.int(0)).await?.1.kind {
        Kind::File { .. } | Kind::Dir { .. } => Ok(0),
        _ => Err(EINVAL),
    }
}

/// sync(2), syncfs(2): as fsync(2).
pub async fn sys_sync<S: Services>(_: &mut Call<'_, S>) -> Result<i64, Errno> {
    Ok(0)
}

/// fadvise64(2), readahead(2): advice that changes nothing.
pub async fn sys_advise<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    match call.file(call.int(0)).await?.1.kind {
        Kind::Pipe { .. } => Err(ESPIPE),
        _ => Ok(0),
    }
}
