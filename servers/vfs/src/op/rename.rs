//! rename(2) and renameat2(2).
//!
//! A directory that gets another parent must not become its own ancestor. The ancestors are read one
//! by one; that no other rename moves one of them meanwhile is kept by the superblock, which every
//! such rename rewrites: of two that overlap, one is made again.

use super::unlink::check_delete;
use super::{Left, tidy};
use crate::attempt::{Attempt, Stop, retry_once};
use crate::edit::{Dir, Nameless};
use crate::object;
use crate::permission::{EXEC, WRITE, may};
use crate::walk::{Last, walk_parent};
use clustix_ccache::cache::Cache;
use clustix_proto::errno::*;
use clustix_proto::once::Record;
use clustix_proto::vfs::{Credentials, Dentry, Inode, LINK_MAX, ROOT, Time, name};
use clustix_proto::{Answer, Errno};

/// How the new name is to be treated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// Replace it.
    Replace,
    /// RENAME_NOREPLACE.
    NoReplace,
    /// RENAME_EXCHANGE.
    Exchange,
}

/// One side of a rename.
struct Side<'a> {
    dir: u64,
    name: &'a [u8],
    slash: bool,
}

/// What stands at a name.
struct Found {
    ino: u64,
    inode: Inode,
}

/// rename(2); replies as [`clustix_proto::vfs::Request::Rename`] says.
pub async fn rename<C: Cache>(
    cache: &C,
    record: Option<&Record>,
    cred: &Credentials,
    (old_dir, old): (u64, &[u8]),
    (new_dir, new): (u64, &[u8]),
    how: How,
) -> Answer<u64> {
    let from = walk_parent(cache, cred, old_dir, old, &mut 0).await?;
    let to = walk_parent(cache, cred, new_dir, new, &mut 0).await?;
    let Last::Name(old_name) = &from.last else { return Err(EBUSY) };
    let Last::Name(new_name) = &to.last else {
        return Err(if how == How::NoReplace { EEXIST } else { EBUSY });
    };
    let from = Side { dir: from.dir.ino, name: old_name, slash: from.slash };
    let to = Side { dir: to.dir.ino, name: new_name, slash: to.slash };
    let (reply, left) = retry_once(async || {
        let mut a = Attempt::begin(cache, record).await?;
        match prepare(&mut a, cred, &from, &to, how).await {
            Ok(left) => a.commit(left.1.reply()).await.map(|()| (left.1.reply(), left)),
            Err(e) => Err(a.refuse(e).await),
        }
    })
    .await?;
    tidy(cache, left).await;
    Ok(reply)
}

async fn prepare<C: Cache>(
    a: &mut Attempt<'_, C>,
    cred: &Credentials,
    from: &Side<'_>,
    to: &Side<'_>,
    how: How,
) -> Result<Left, Stop> {
    let mut old_dir = a.dir(from.dir).await?;
    let new_dir = a.dir(to.dir).await?;
    let moves = from.dir != to.dir;
    let source = found(a, from).await?.ok_or(ENOENT)?;
    let target = found(a, to).await?;
    match (&target, how) {
        (Some(_), How::NoReplace) => return Err(Stop::Fail(EEXIST)),
        (None, How::Exchange) => return Err(Stop::Fail(ENOENT)),
        (Some(t), How::Exchange) if to.slash && !t.inode.is_dir() => {
            return Err(Stop::Fail(ENOTDIR));
        }
        _ => {}
    }
    let is_dir = source.inode.is_dir();
    let target_is_dir = target.as_ref().is_some_and(|t| t.inode.is_dir());
    if !is_dir && (from.slash || (how != How::Exchange && to.slash)) {
        return Err(Stop::Fail(ENOTDIR));
    }
    if moves && (is_dir || target_is_dir) {
        check_cycle(a, from, to, &source, target.as_ref(), how).await?;
    }
    if target.as_ref().is_some_and(|t| t.ino == source.ino) {
        return Ok((None, Nameless::Not));
    }
    check_rights(cred, &old_dir.inode, &new_dir.inode, &source, target.as_ref(), moves, how)?;
    let now = object::now();
    if how == How::Exchange {
        let target = target.ok_or(ENOENT)?;
        exchange(a, (old_dir, from), (new_dir, to), source, target, now).await?;
        return Ok((None, Nameless::Not));
    }
    if target_is_dir && target.as_ref().is_some_and(|t| t.inode.size > 0) {
        return Err(Stop::Fail(ENOTEMPTY));
    }
    let mut new_dir = if moves { Some(new_dir) } else { None };
    let links = new_dir.as_ref().map_or(0, |d| d.inode.nlink);
    if is_dir && !target_is_dir && links >= LINK_MAX {
        return Err(Stop::Fail(EMLINK));
    }
    let dentry = Dentry { name: to.name.to_vec(), ino: source.ino, kind: source.inode.kind() };
    match &target {
        Some(_) => a.turn_name(to.dir, dentry).await?,
        None => a.add_name(to.dir, dentry).await?,
    }
    let small = a.take_name(from.dir, from.name).await?;
    // Counts of both directories (which may be one): the old name goes, the new one comes or stays.
    count(&mut old_dir.inode, -1, if is_dir { -1 } else { 0 })?;
    let there = new_dir.as_mut().unwrap_or(&mut old_dir);
    count(
        &mut there.inode,
        i64::from(target.is_none()),
        i32::from(is_dir) - i32::from(target_is_dir),
    )?;
    put_dir(a, &mut old_dir, now)?;
    if let Some(d) = &mut new_dir {
        put_dir(a, d, now)?;
    }
    let mut inode = source.inode;
    inode.ctime = now;
    if is_dir {
        inode.parent = to.dir;
    }
    a.put_inode(source.ino, &inode)?;
    let nameless = match target {
        Some(t) => a.unlink(t.ino, t.inode, now).await?,
        None => Nameless::Not,
    };
    Ok((small.map(|node| (from.dir, node)), nameless))
}

async fn exchange<C: Cache>(
    a: &mut Attempt<'_, C>,
    (mut old_dir, from): (Dir, &Side<'_>),
    (mut new_dir, to): (Dir, &Side<'_>),
    mut source: Found,
    mut target: Found,
    now: Time,
) -> Result<(), Stop> {
    let there = Dentry { name: to.name.to_vec(), ino: source.ino, kind: source.inode.kind() };
    let here = Dentry { name: from.name.to_vec(), ino: target.ino, kind: target.inode.kind() };
    a.turn_name(to.dir, there).await?;
    a.turn_name(from.dir, here).await?;
    let change = i32::from(source.inode.is_dir()) - i32::from(target.inode.is_dir());
    if from.dir != to.dir {
        if change > 0 && new_dir.inode.nlink >= LINK_MAX
            || change < 0 && old_dir.inode.nlink >= LINK_MAX
        {
            return Err(Stop::Fail(EMLINK));
        }
        count(&mut old_dir.inode, 0, -change)?;
        count(&mut new_dir.inode, 0, change)?;
        put_dir(a, &mut new_dir, now)?;
    }
    put_dir(a, &mut old_dir, now)?;
    for (f, parent) in [(&mut source, to.dir), (&mut target, from.dir)] {
        f.inode.ctime = now;
        if f.inode.is_dir() {
            f.inode.parent = parent;
        }
        a.put_inode(f.ino, &f.inode)?;
    }
    Ok(())
}

async fn found<C: Cache>(a: &mut Attempt<'_, C>, at: &Side<'_>) -> Result<Option<Found>, Stop> {
    let Some(dentry) = a.lookup(at.dir, at.name).await? else { return Ok(None) };
    // A name without its inode: the two were read at different moments.
    let inode = a.inode(dentry.ino).await?.ok_or(Stop::Again)?;
    Ok(Some(Found { ino: dentry.ino, inode }))
}

fn count(dir: &mut Inode, names: i64, links: i32) -> Result<(), Stop> {
    // Fewer than none: inode and names were read at different moments.
    dir.size = dir.size.checked_add_signed(names).ok_or(Stop::Again)?;
    dir.nlink = dir.nlink.checked_add_signed(links).ok_or(Stop::Again)?;
    Ok(())
}

fn put_dir<C: Cache>(a: &mut Attempt<'_, C>, d: &mut Dir, now: Time) -> Answer<()> {
    (d.inode.mtime, d.inode.ctime) = (now, now);
    a.put_inode(d.ino, &d.inode)
}

/// Refuses to put a directory below itself (EINVAL), and to replace a directory by something below
/// it (ENOTEMPTY, or EINVAL when they are exchanged).
async fn check_cycle<C: Cache>(
    a: &mut Attempt<'_, C>,
    from: &Side<'_>,
    to: &Side<'_>,
    source: &Found,
    target: Option<&Found>,
    how: How,
) -> Result<(), Stop> {
    // Read first, rewritten in the commit: no other such rename may fall in between.
    let superblock = match a.get(name::superblock()).await? {
        Some(bytes) => bytes.to_vec(),
        None => return Err(Stop::Fail(EIO)),
    };
    a.put(name::superblock(), superblock)?;
    if source.inode.is_dir() && is_above(a, source.ino, to.dir).await? {
        return Err(Stop::Fail(EINVAL));
    }
    if let Some(t) = target
        && t.inode.is_dir()
        && is_above(a, t.ino, from.dir).await?
    {
        return Err(Stop::Fail(if how == How::Exchange { EINVAL } else { ENOTEMPTY }));
    }
    Ok(())
}

/// Whether `above` is `dir` or one of its ancestors.
async fn is_above<C: Cache>(a: &Attempt<'_, C>, above: u64, dir: u64) -> Result<bool, Stop> {
    let mut at = dir;
    // A path of PATH_MAX bytes has half as many components, but renames can build deeper trees.
    for _ in 0..1 << 20 {
        if at == above {
            return Ok(true);
        }
        if at == ROOT {
            return Ok(false);
        }
        // Gone: its own removal or a rename came between.
        at = object::inode(a.cache(), at).await?.ok_or(Stop::Again)?.inode.parent;
    }
    Err(Stop::Fail(ELOOP))
}

fn check_rights(
    cred: &Credentials,
    old_dir: &Inode,
    new_dir: &Inode,
    source: &Found,
    target: Option<&Found>,
    moves: bool,
    how: How,
) -> Result<(), Errno> {
    let is_dir = source.inode.is_dir();
    check_delete(cred, old_dir, &source.inode, is_dir)?;
    match target {
        None if !may(cred, new_dir, WRITE | EXEC) => return Err(EACCES),
        None => {}
        Some(t) => {
            let as_dir = if how == How::Exchange { t.inode.is_dir() } else { is_dir };
            check_delete(cred, new_dir, &t.inode, as_dir)?;
        }
    }
    // Its `..` is rewritten.
    if moves && is_dir && !may(cred, &source.inode, WRITE) {
        return Err(EACCES);
    }
    match target {
        Some(t) if moves && how == How::Exchange && t.inode.is_dir() => {
            if may(cred, &t.inode, WRITE) { Ok(()) } else { Err(EACCES) }
        }
        _ => Ok(()),
    }
}
