//! unlink(2) and rmdir(2).

use super::{Left, tidy};
use crate::attempt::{Attempt, Stop, retry_once};
use crate::object;
use crate::permission::{EXEC, WRITE, may, sticky};
use crate::walk::{Last, walk_parent};
use clustix_ccache::cache::Cache;
use clustix_proto::errno::*;
use clustix_proto::once::Record;
use clustix_proto::vfs::{Credentials, Inode};
use clustix_proto::{Answer, Errno};

/// unlink(2), or rmdir(2); replies as [`clustix_proto::vfs::Request::Unlink`] says.
pub async fn unlink<C: Cache>(
    cache: &C,
    record: Option<&Record>,
    cred: &Credentials,
    start: u64,
    path: &[u8],
    rmdir: bool,
) -> Answer<u64> {
    let parent = walk_parent(cache, cred, start, path, &mut 0).await?;
    let name = match (parent.last, rmdir) {
        (Last::Name(name), _) => name,
        (Last::Dot, true) => return Err(EINVAL),
        (Last::DotDot, true) => return Err(ENOTEMPTY),
        (Last::Root, true) => return Err(EBUSY),
        (_, false) => return Err(EISDIR),
    };
    let dir = parent.dir.ino;
    let (reply, left) = retry_once(async || {
        let mut a = Attempt::begin(cache, record).await?;
        match prepare(&mut a, cred, dir, &name, parent.slash, rmdir).await {
            Ok(left) => a.commit(left.1.reply()).await.map(|()| (left.1.reply(), left)),
            Err(Stop::Fail(ENOENT)) => Err(Stop::Fail(ENOENT)),
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
    dir: u64,
    name: &[u8],
    slash: bool,
    rmdir: bool,
) -> Result<Left, Stop> {
    let mut d = a.dir(dir).await?;
    let dentry = a.lookup(dir, name).await?.ok_or(ENOENT)?;
    let inode = a.inode(dentry.ino).await?.ok_or(Stop::Again)?;
    if !rmdir && slash {
        return Err(Stop::Fail(if inode.is_dir() { EISDIR } else { ENOTDIR }));
    }
    check_delete(cred, &d.inode, &inode, rmdir)?;
    if rmdir && inode.size > 0 {
        return Err(Stop::Fail(ENOTEMPTY));
    }
    let now = object::now();
    let small = a.take_name(dir, name).await?;
    // Fewer than none: inode and names were read at different moments.
    d.inode.size = d.inode.size.checked_sub(1).ok_or(Stop::Again)?;
    d.inode.nlink = d.inode.nlink.checked_sub(u32::from(rmdir)).ok_or(Stop::Again)?;
    (d.inode.mtime, d.inode.ctime) = (now, now);
    a.put_inode(dir, &d.inode)?;
    let nameless = a.unlink(dentry.ino, inode, now).await?;
    Ok((small.map(|node| (dir, node)), nameless))
}

/// Whether `cred` may take the name of `inode` from `dir`, as `as_dir` or not (Linux's may_delete).
pub(super) fn check_delete(
    cred: &Credentials,
    dir: &Inode,
    inode: &Inode,
    as_dir: bool,
) -> Result<(), Errno> {
    if !may(cred, dir, WRITE | EXEC) {
        return Err(EACCES);
    }
    if sticky(cred, dir, inode) {
        return Err(EPERM);
    }
    match (as_dir, inode.is_dir()) {
        (true, false) => Err(ENOTDIR),
        (false, true) => Err(EISDIR),
        _ => Ok(()),
    }
}
