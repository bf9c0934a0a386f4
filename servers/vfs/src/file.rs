//! Contents of files: pages of 4 KiB, each an object; a hole is a page that does not exist. A page's
//! payload may be shorter than a page: the rest is zeroes.
//!
//! A write is one transaction of pages and inode. The inode is written with the version it was read at,
//! so writes and truncations of one file take turns, and a page that is overwritten whole is not
//! read. Truncation makes the size smaller first and takes the pages after; until they are gone the
//! file may not grow over them, so that they are never seen again ([`trim`]).

use crate::attempt::{Stop, retry};
use crate::permission::without_set_id;
use crate::walk::Walked;
use crate::{extent, object};
use clustix_ccache::cache::{Cache, CacheError, Expect, MAX_OBJECTS, Transaction, Version, Write};
use clustix_proto::Answer;
use clustix_proto::errno::{EFBIG, EINVAL, EISDIR, ENODEV, ENOENT, ENOSPC};
use clustix_proto::object::Attempts;
use clustix_proto::vfs::{Backing, Credentials, Inode, MAX_FILE_SIZE, PAGE_SIZE, name};

/// Most bytes of one write transaction: 16 pages.
pub const CHUNK: usize = 16 * PAGE_SIZE;

const PAGE: u64 = PAGE_SIZE as u64;

/// What a write did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// Where the first byte went (with `append`: the end of the file then).
    pub offset: u64,
    /// How many bytes were written; fewer than asked only when an error ended it.
    pub len: usize,
}

/// The one way to a page: reads page `index` of an inode into `out` (cleared first). The answer says
/// whether it exists; its payload may be short. ENODEV: the backing is not there.
pub async fn page_in<C: Cache>(
    cache: &C,
    ino: u64,
    inode: &Inode,
    index: u32,
    out: &mut Vec<u8>,
) -> Answer<Version> {
    out.clear();
    match inode.backing {
        Backing::CacheOnly if !extent::contains(&inode.extents, index) => Ok(Version::ABSENT),
        Backing::CacheOnly => Ok(cache.get(name::page(ino, index), out).await?),
        Backing::Device { .. } | Backing::Striped { .. } => Err(ENODEV),
    }
}

/// The one way from a page: what a transaction must write for page `index`; `None` takes the page away.
pub fn page_out(
    ino: u64,
    inode: &Inode,
    index: u32,
    expect: Expect,
    data: Option<Vec<u8>>,
) -> Answer<Write> {
    match inode.backing {
        Backing::CacheOnly => Ok(Write { name: name::page(ino, index), expect, data }),
        Backing::Device { .. } | Backing::Striped { .. } => Err(ENODEV),
    }
}

/// Pages that a size takes.
pub fn pages_of(size: u64) -> u64 {
    size.div_ceil(PAGE)
}

/// Whether pages past its end are still to be taken ([`trim`]).
pub(crate) fn has_left_over(inode: &Inode) -> bool {
    extent::end(&inode.extents) > pages_of(inode.size)
}

fn check_kind(inode: &Inode) -> Answer<()> {
    match inode {
        i if i.is_regular() => Ok(()),
        i if i.is_dir() => Err(EISDIR),
        _ => Err(EINVAL),
    }
}

/// Reads file `ino` from `offset` on into `out`: how many bytes; fewer than `out` only at the end of
/// the file. Holes read as zero. Each page is as some moment had it.
pub async fn read<C: Cache>(cache: &C, ino: u64, offset: u64, out: &mut [u8]) -> Answer<usize> {
    let mut page = Vec::with_capacity(PAGE_SIZE);
    let mut attempts = Attempts::new();
    loop {
        let file = crate::stat(cache, ino).await?;
        check_kind(&file.inode)?;
        let left = file.inode.size.saturating_sub(offset);
        let len = out.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if read_at(cache, &file, offset, &mut out[..len], &mut page).await? {
            return Ok(len);
        }
        attempts.again().await?;
    }
}

/// `false`: a page was missing because the file changed.
async fn read_at<C: Cache>(
    cache: &C,
    file: &Walked,
    offset: u64,
    out: &mut [u8],
    page: &mut Vec<u8>,
) -> Answer<bool> {
    let mut done = 0;
    while done < out.len() {
        let at = offset + done as u64;
        let within = (at % PAGE) as usize;
        let n = (PAGE_SIZE - within).min(out.len() - done);
        let index = u32::try_from(at / PAGE).map_err(|_| EFBIG)?;
        let expected = extent::contains(&file.inode.extents, index);
        let version = page_in(cache, file.ino, &file.inode, index, page).await?;
        // A truncation may have taken it since the inode was read; a hole within a run is rare.
        if expected && !version.exists() {
            let again = object::inode(cache, file.ino).await?.ok_or(ENOENT)?;
            if again.version != file.version {
                return Ok(false);
            }
        }
        let have = page.get(within..).unwrap_or(&[]);
        let copied = have.len().min(n);
        let piece = &mut out[done..done + n];
        piece[..copied].copy_from_slice(&have[..copied]);
        piece[copied..].fill(0);
        done += n;
    }
    Ok(true)
}

/// Writes `bytes` to file `ino` at `offset` as `cred`, or at its end if `append` (each piece of at
/// most [`CHUNK`] bytes in one step with finding the end). Write permission is the caller's to check:
/// it is the descriptor's. EFBIG past [`MAX_FILE_SIZE`]; ENOSPC, also for a file scattered over too
/// many places.
pub async fn write<C: Cache>(
    cache: &C,
    cred: &Credentials,
    ino: u64,
    offset: u64,
    bytes: &[u8],
    append: bool,
) -> Answer<Written> {
    let mut done = Written { offset, len: 0 };
    loop {
        let rest = &bytes[done.len..];
        let at = done.offset.checked_add(done.len as u64).ok_or(EFBIG)?;
        let step = retry(async || write_chunk(cache, cred, ino, at, rest, append).await).await;
        match step {
            Ok((start, n)) => {
                if done.len == 0 {
                    done.offset = start;
                }
                done.len += n;
            }
            Err(_) if done.len > 0 => return Ok(done),
            Err(e) => return Err(e),
        }
        if done.len >= bytes.len() {
            return Ok(done);
        }
    }
}

/// Writes as much of `bytes` as one transaction takes: where, and how much.
async fn write_chunk<C: Cache>(
    cache: &C,
    cred: &Credentials,
    ino: u64,
    offset: u64,
    bytes: &[u8],
    append: bool,
) -> Result<(u64, usize), Stop> {
    let Walked { mut inode, version, .. } = crate::stat(cache, ino).await?;
    check_kind(&inode)?;
    let start = if append { inode.size } else { offset };
    if bytes.is_empty() {
        return Ok((start, 0));
    }
    if start >= MAX_FILE_SIZE {
        return Err(Stop::Fail(EFBIG));
    }
    let limit = (MAX_FILE_SIZE - start).min((CHUNK - start as usize % PAGE_SIZE) as u64);
    let bytes = &bytes[..bytes.len().min(limit as usize)];
    let end = start + bytes.len() as u64;
    if end > inode.size && has_left_over(&inode) {
        trim(cache, ino).await?;
        return Err(Stop::Again);
    }
    let mut t = Transaction::new();
    let mut extents = inode.extents.clone();
    let mut done = 0;
    while done < bytes.len() {
        let at = start + done as u64;
        let within = (at % PAGE) as usize;
        let n = (PAGE_SIZE - within).min(bytes.len() - done);
        let index = u32::try_from(at / PAGE).map_err(|_| EFBIG)?;
        let piece = &bytes[done..done + n];
        let (expect, data) = if n == PAGE_SIZE {
            (Expect::Any, piece.to_vec())
        } else {
            let mut data = Vec::with_capacity(PAGE_SIZE);
            let version = page_in(cache, ino, &inode, index, &mut data).await?;
            if data.len() < within + n {
                data.resize(within + n, 0);
            }
            data[within..within + n].copy_from_slice(piece);
            (Expect::Version(version), data)
        };
        if !extent::insert(&mut extents, index) {
            return Err(Stop::Fail(ENOSPC));
        }
        t.writes.push(page_out(ino, &inode, index, expect, Some(data))?);
        done += n;
    }
    let now = object::now();
    inode.extents = extents;
    inode.size = inode.size.max(end);
    inode.mode = without_set_id(cred, &inode);
    (inode.mtime, inode.ctime) = (now, now);
    t = t.put(name::inode(ino), version, object::encode_inode(&inode)?);
    cache.transact(t).await?;
    Ok((start, bytes.len()))
}

/// Puts into `t` what a change of size from `inode.size` to `size` does to the page that `size` ends
/// in, and sets the size. [`Stop::Again`]: left-over pages stood in the way and were taken.
pub(crate) async fn resize<C: Cache>(
    cache: &C,
    ino: u64,
    inode: &mut Inode,
    size: u64,
    t: &mut Transaction,
) -> Result<(), Stop> {
    check_kind(inode)?;
    if size > MAX_FILE_SIZE {
        return Err(Stop::Fail(EFBIG));
    }
    if size > inode.size && has_left_over(inode) {
        trim(cache, ino).await?;
        return Err(Stop::Again);
    }
    let keep = (size % PAGE) as usize;
    if size < inode.size && keep > 0 {
        let index = u32::try_from(size / PAGE).map_err(|_| EFBIG)?;
        let mut data = Vec::new();
        let version = page_in(cache, ino, inode, index, &mut data).await?;
        if data.len() > keep {
            data.truncate(keep);
            t.writes.push(page_out(ino, inode, index, Expect::Version(version), Some(data))?);
        }
    }
    inode.size = size;
    Ok(())
}

/// Takes the pages that a truncation left past the end of file `ino`, or all of them if the inode has
/// no name and no opener, in bounded steps. Several may do this at once, beside other writers.
pub(crate) async fn trim<C: Cache>(cache: &C, ino: u64) -> Answer<()> {
    // Each step that succeeds makes the extents smaller; the bound is on those that lose a race.
    let mut attempts = Attempts::new();
    loop {
        let Some(Walked { mut inode, version, .. }) = object::inode(cache, ino).await? else {
            return Ok(());
        };
        let dead = inode.nlink == 0 && inode.openers == 0;
        let from = if dead { 0 } else { pages_of(inode.size) };
        // From the end: what is left when this is cut short is in order.
        let stale: Vec<u32> = extent::pages(&inode.extents)
            .rev()
            .take_while(|i| u64::from(*i) >= from)
            .take(MAX_OBJECTS - 1)
            .collect();
        let Some(lowest) = stale.last() else { return Ok(()) };
        let mut t = Transaction::new();
        for index in &stale {
            t.writes.push(page_out(ino, &inode, *index, Expect::Any, None)?);
        }
        extent::truncate(&mut inode.extents, u64::from(*lowest));
        t = t.put(name::inode(ino), version, object::encode_inode(&inode)?);
        match cache.transact(t).await {
            Ok(()) => attempts = Attempts::new(),
            Err(CacheError::Conflict | CacheError::Busy | CacheError::Unknown) => {
                attempts.again().await?;
            }
            Err(e) => return Err(e.into()),
        }
    }
}
