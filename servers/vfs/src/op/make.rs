//! What makes inodes: open(2) with O_CREAT, mkdir, mknod, symlink.

use crate::attempt::{Attempt, Stop, retry_once};
use crate::permission::{EXEC, WRITE, in_group, may};
use crate::walk::{Last, walk_parent};
use crate::{dir, object, open};
use clustix_ccache::cache::{Cache, Expect};
use clustix_proto::errno::*;
use clustix_proto::object::Attempts;
use clustix_proto::once::Record;
use clustix_proto::vfs::mode::*;
use clustix_proto::vfs::{Backing, Credentials, Dentry, Inode, LINK_MAX, SYMLINK_DEPTH, name};
use clustix_proto::{Answer, Errno};

/// What to make.
struct New<'a> {
    /// Type bits and permissions.
    mode: u32,
    rdev: u64,
    target: &'a [u8],
    openers: u16,
}

/// open(2) with O_CREAT.
pub async fn create<C: Cache>(
    cache: &C,
    record: Option<&Record>,
    cred: &Credentials,
    start: u64,
    path: &[u8],
    mode: u32,
    exclusive: bool,
) -> Answer<u64> {
    let new = New {
        mode: S_IFREG | mode & 0o7777,
        rdev: 0,
        target: &[],
        openers: 1 << (cache.node() & 15),
    };
    let (mut start, mut path, mut links) = (start, path.to_vec(), 0);
    let mut attempts = Attempts::new();
    loop {
        let parent = walk_parent(cache, cred, start, &path, &mut links).await?;
        let Last::Name(name) = parent.last else {
            return Err(if exclusive { EEXIST } else { EISDIR });
        };
        if parent.slash {
            return Err(EISDIR);
        }
        let dir = parent.dir.ino;
        match dir::lookup(cache, dir, &name).await? {
            None => match make(cache, record, cred, dir, &name, &new).await {
                // Another was faster: that one is opened.
                Err(EEXIST) if !exclusive => {}
                r => return r,
            },
            Some(_) if exclusive => return Err(EEXIST),
            Some((_, S_IFDIR)) => return Err(EISDIR),
            Some((ino, S_IFLNK)) => {
                links += 1;
                if links > SYMLINK_DEPTH {
                    return Err(ELOOP);
                }
                match crate::readlink(cache, ino).await {
                    Ok(target) => (start, path) = (dir, target),
                    Err(ENOENT | EIO) => {}
                    Err(e) => return Err(e),
                }
            }
            Some((ino, _)) => match open::opened(cache, ino).await {
                Err(ENOENT) => {}
                r => return r,
            },
        }
        attempts.again().await?;
    }
}

/// mkdir(2).
pub async fn mkdir<C: Cache>(
    cache: &C,
    record: Option<&Record>,
    cred: &Credentials,
    start: u64,
    path: &[u8],
    mode: u32,
) -> Answer<u64> {
    let new = New { mode: S_IFDIR | mode & 0o1777, rdev: 0, target: &[], openers: 0 };
    make_at(cache, record, cred, start, path, &new).await
}

/// mknod(2).
pub async fn mknod<C: Cache>(
    cache: &C,
    record: Option<&Record>,
    cred: &Credentials,
    start: u64,
    path: &[u8],
    mode: u32,
    rdev: u64,
) -> Answer<u64> {
    let kind = match mode & S_IFMT {
        0 => S_IFREG,
        S_IFDIR => return Err(EPERM),
        k @ (S_IFREG | S_IFIFO | S_IFSOCK | S_IFCHR | S_IFBLK) => k,
        _ => return Err(EINVAL),
    };
    let device = matches!(kind, S_IFCHR | S_IFBLK);
    let rdev = if device { rdev } else { 0 };
    let new = New { mode: kind | mode & 0o7777, rdev, target: &[], openers: 0 };
    make_at(cache, record, cred, start, path, &new).await
}

/// symlink(2).
pub async fn symlink<C: Cache>(
    cache: &C,
    record: Option<&Record>,
    cred: &Credentials,
    target: &[u8],
    start: u64,
    path: &[u8],
) -> Answer<u64> {
    if target.is_empty() {
        return Err(ENOENT);
    }
    if target.len() >= clustix_proto::vfs::PATH_MAX {
        return Err(ENAMETOOLONG);
    }
    make_at(
        cache,
        record,
        cred,
        start,
        path,
        &New { mode: S_IFLNK | 0o777, rdev: 0, target, openers: 0 },
    )
    .await
}

async fn make_at<C: Cache>(
    cache: &C,
    record: Option<&Record>,
    cred: &Credentials,
    start: u64,
    path: &[u8],
    new: &New<'_>,
) -> Answer<u64> {
    let parent = walk_parent(cache, cred, start, path, &mut 0).await?;
    let Last::Name(name) = parent.last else { return Err(EEXIST) };
    // Only a directory may be named with a slash before it is there.
    if parent.slash && new.mode & S_IFMT != S_IFDIR {
        let found = dir::lookup(cache, parent.dir.ino, &name).await?;
        return Err(if found.is_some() { EEXIST } else { ENOENT });
    }
    make(cache, record, cred, parent.dir.ino, &name, new).await
}

async fn make<C: Cache>(
    cache: &C,
    record: Option<&Record>,
    cred: &Credentials,
    dir: u64,
    name: &[u8],
    new: &New<'_>,
) -> Answer<u64> {
    // Files stand by their directory, so that what is used together moves together; directories
    // are spread over this node's shards.
    let mut near = (new.mode & S_IFMT != S_IFDIR).then_some(dir);
    retry_once(async || {
        let mut a = Attempt::begin(cache, record).await?;
        let ino = prepare(&mut a, cred, dir, name, new, near).await?;
        match a.commit(ino).await {
            // That shard may be full where others are not.
            Err(Stop::Fail(ENOSPC)) if near.take().is_some() => Err(Stop::Again),
            r => r.map(|()| (ino, ())),
        }
    })
    .await
    .map(|(ino, ())| ino)
}

async fn prepare<C: Cache>(
    a: &mut Attempt<'_, C>,
    cred: &Credentials,
    dir: u64,
    file_name: &[u8],
    new: &New<'_>,
    near: Option<u64>,
) -> Result<u64, Stop> {
    let mut d = a.dir(dir).await?;
    if a.lookup(dir, file_name).await?.is_some() {
        return Err(Stop::Fail(EEXIST));
    }
    check_make(cred, &d.inode, new)?;
    let kind = new.mode & S_IFMT;
    let now = object::now();
    let mut mode = new.mode;
    let mut gid = cred.gid;
    if d.inode.mode & S_ISGID != 0 {
        gid = d.inode.gid;
        if kind == S_IFDIR {
            mode |= S_ISGID;
        }
    }
    let group_id = mode & (S_ISGID | 0o010) == S_ISGID | 0o010;
    if kind != S_IFDIR && group_id && cred.uid != 0 && !in_group(cred, gid) {
        mode &= !S_ISGID;
    }
    let inode = Inode {
        mode,
        uid: cred.uid,
        gid,
        nlink: if kind == S_IFDIR { 2 } else { 1 },
        size: new.target.len() as u64,
        atime: now,
        mtime: now,
        ctime: now,
        rdev: new.rdev,
        parent: if kind == S_IFDIR { dir } else { 0 },
        openers: new.openers,
        backing: Backing::CacheOnly,
        extents: Vec::new(),
    };
    let ino = a.create(&inode, near)?;
    if kind == S_IFLNK {
        a.write(name::symlink(ino), Expect::Any, Some(new.target.to_vec()));
    }
    a.add_name(dir, Dentry { name: file_name.to_vec(), ino, kind }).await?;
    d.inode.size += 1;
    d.inode.nlink += u32::from(kind == S_IFDIR);
    (d.inode.mtime, d.inode.ctime) = (now, now);
    a.put_inode(dir, &d.inode)?;
    Ok(ino)
}

fn check_make(cred: &Credentials, dir: &Inode, new: &New<'_>) -> Result<(), Errno> {
    if !may(cred, dir, WRITE | EXEC) {
        return Err(EACCES);
    }
    match new.mode & S_IFMT {
        S_IFCHR | S_IFBLK if cred.uid != 0 => Err(EPERM),
        S_IFDIR if dir.nlink >= LINK_MAX => Err(EMLINK),
        _ => Ok(()),
    }
}
