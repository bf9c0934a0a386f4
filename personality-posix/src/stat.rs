//! What a file is: stat(2), statx(2), access(2), readlink(2), statfs(2), getdents64(2), getcwd(2).

use crate::call::Call;
use crate::fd::{Kind, OpenFile};
use crate::layouts;
use crate::path::*;
use crate::services::Services;
use clustix_proto::Errno;
use clustix_proto::errno::*;
use clustix_proto::vfs::{Backing, Inode, Time, mode};

/// The inode that a descriptor without a name shows (pipes, terminals).
fn nameless(file: &OpenFile) -> (u64, Inode) {
    let (ino, kind, rdev) = match file.kind {
        Kind::Pipe { pipe, .. } => (pipe, mode::S_IFIFO | 0o600, 0),
        Kind::Tty { tty, .. } => {
            (u64::from(tty) + 1, mode::S_IFCHR | 0o620, 136 << 32 | u64::from(tty))
        }
        Kind::Char { major, minor, .. } => {
            (1, mode::S_IFCHR | 0o666, u64::from(major) << 32 | u64::from(minor))
        }
        Kind::File { ino } | Kind::Dir { ino } => (ino, 0, 0),
    };
    let inode = Inode {
        mode: kind,
        uid: 0,
        gid: 0,
        nlink: 1,
        size: 0,
        atime: Time::default(),
        mtime: Time::default(),
        ctime: Time::default(),
        rdev,
        parent: 0,
        openers: 0,
        backing: Backing::CacheOnly,
        extents: Vec::new(),
    };
    (ino, inode)
}

impl<S: Services> Call<'_, S> {
    /// The inode behind a descriptor.
    pub async fn inode_of(&self, fd: i32) -> Result<(u64, Inode), Errno> {
        let (_, file) = self.file(fd).await?;
        match file.kind.ino() {
            Some(ino) => {
                let found = clustix_vfs::stat(self.cache(), ino).await?;
                Ok((ino, found.inode))
            }
            None => Ok(nameless(&file)),
        }
    }

    /// The inode that the fstatat family means.
    async fn inode_at(&self, dirfd: i32, path: &[u8], flags: u64) -> Result<(u64, Inode), Errno> {
        if path.is_empty() {
            if flags & AT_EMPTY_PATH == 0 {
                return Err(ENOENT);
            }
            if dirfd == AT_FDCWD {
                let cwd = self.process.state.cwd;
                return Ok((cwd, clustix_vfs::stat(self.cache(), cwd).await?.inode));
            }
            return self.inode_of(dirfd).await;
        }
        let follow = flags & AT_SYMLINK_NOFOLLOW == 0;
        let path = if follow { self.own_names(path.to_vec()) } else { path.to_vec() };
        let found = self.walk(dirfd, &path, follow).await?;
        Ok((found.ino, found.inode))
    }

    async fn stat_to(
        &mut self,
        dirfd: i32,
        path: usize,
        buf: usize,
        flags: u64,
    ) -> Result<i64, Errno> {
        let path = self.path(path)?;
        let (ino, inode) = self.inode_at(dirfd, &path, flags).await?;
        self.out(buf, &layouts::stat(ino, &inode));
        Ok(0)
    }
}

/// stat(2).
pub async fn sys_stat<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    call.stat_to(AT_FDCWD, 0, 1, 0).await
}

/// lstat(2).
pub async fn sys_lstat<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    call.stat_to(AT_FDCWD, 0, 1, AT_SYMLINK_NOFOLLOW).await
}

/// fstat(2).
pub async fn sys_fstat<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let (ino, inode) = call.inode_of(call.int(0)).await?;
    call.out(1, &layouts::stat(ino, &inode));
    Ok(0)
}

/// fstatat(2).
pub async fn sys_newfstatat<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    // AT_NO_AUTOMOUNT changes nothing here.
    if call.args[3] & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | 0x800) != 0 {
        return Err(EINVAL);
    }
    call.stat_to(call.int(0), 1, 2, call.args[3]).await
}

/// statx(2).
pub async fn sys_statx<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    const STATX_RESERVED: u64 = 1 << 31;
    // AT_NO_AUTOMOUNT and AT_STATX_SYNC_TYPE change nothing here.
    let known = AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | 0x800 | 0x6000;
    if call.args[2] & !known != 0 || call.args[3] & STATX_RESERVED != 0 {
        return Err(EINVAL);
    }
    let path = call.path(1)?;
    let (ino, inode) = call.inode_at(call.int(0), &path, call.args[2]).await?;
    call.out(4, &layouts::statx(ino, &inode));
    Ok(0)
}

async fn access<S: Services>(
    call: &mut Call<'_, S>,
    dirfd: i32,
    path: usize,
    rights: u64,
    flags: u64,
) -> Result<i64, Errno> {
    if rights & !7 != 0 || flags & !(AT_EACCESS | AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(EINVAL);
    }
    let path = call.path(path)?;
    let mut cred = call.process.credentials.clone();
    if flags & AT_EACCESS == 0 {
        let process = call.process_object().await?;
        cred.uid = process.uid[0];
        cred.gid = process.gid[0];
    }
    let inode = if path.is_empty() && flags & AT_EMPTY_PATH != 0 {
        call.inode_of(dirfd).await?.1
    } else {
        let path = call.own_names(path);
        call.walk_as(&cred, dirfd, &path, flags & AT_SYMLINK_NOFOLLOW == 0).await?.inode
    };
    if rights != 0 && !clustix_vfs::may(&cred, &inode, rights as u32) {
        return Err(EACCES);
    }
    Ok(0)
}

/// access(2).
pub async fn sys_access<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    access(call, AT_FDCWD, 0, call.args[1], 0).await
}

/// faccessat(2), the system call: without flags.
pub async fn sys_faccessat<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    access(call, call.int(0), 1, call.args[2], 0).await
}

/// faccessat2(2).
pub async fn sys_faccessat2<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    access(call, call.int(0), 1, call.args[2], call.args[3]).await
}

async fn readlink<S: Services>(
    call: &mut Call<'_, S>,
    dirfd: i32,
    [path, buf, size]: [usize; 3],
) -> Result<i64, Errno> {
    let size = call.int(size);
    if size <= 0 {
        return Err(EINVAL);
    }
    let path = call.path(path)?;
    let mut target = if path == b"/proc/self/exe" {
        call.process.state.exe.clone()
    } else {
        let found = call.walk(dirfd, &path, false).await?;
        clustix_vfs::readlink(call.cache(), found.ino).await?
    };
    target.truncate(size as usize);
    call.out(buf, &target);
    Ok(target.len() as i64)
}

/// readlink(2).
pub async fn sys_readlink<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    readlink(call, AT_FDCWD, [0, 1, 2]).await
}

/// readlinkat(2).
pub async fn sys_readlinkat<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    readlink(call, call.int(0), [1, 2, 3]).await
}

/// Blocks that the file system says it has; the cluster-cache has no figure of its own for one file
/// system, and a full one answers ENOSPC.
const BLOCKS: u64 = 1 << 20;

/// statfs(2).
pub async fn sys_statfs<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let path = call.path(0)?;
    call.walk(AT_FDCWD, &path, true).await?;
    call.out(1, &layouts::statfs(BLOCKS, BLOCKS / 2));
    Ok(0)
}

/// fstatfs(2).
pub async fn sys_fstatfs<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    call.file(call.int(0)).await?;
    call.out(1, &layouts::statfs(BLOCKS, BLOCKS / 2));
    Ok(0)
}

/// Most bytes of directory entries that one call gives.
const MAX_DIRENTS: usize = 64 * 1024;

/// getdents64(2).
pub async fn sys_getdents64<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let (number, file) = call.file(call.int(0)).await?;
    let Kind::Dir { ino } = file.kind else { return Err(ENOTDIR) };
    if !file.readable() {
        return Err(EBADF);
    }
    if call.faulted(1) {
        return Err(EFAULT);
    }
    let room = (call.args[2] as u32 as usize).min(MAX_DIRENTS);
    let mut out = Vec::new();
    let mut cursor = file.offset;
    'full: loop {
        // The shortest entry takes 24 bytes.
        let most = ((room - out.len()) / 24).clamp(1, 512);
        let entries = clustix_vfs::readdir(call.cache(), ino, cursor, most).await?;
        if entries.is_empty() {
            break;
        }
        for e in entries {
            if !layouts::dirent64(&mut out, room, e.ino, e.next, e.kind, &e.name) {
                if out.is_empty() {
                    return Err(EINVAL);
                }
                break 'full;
            }
            cursor = e.next;
        }
    }
    call.node.files.update(call.cache(), number, |f| f.offset = cursor).await?;
    let len = out.len() as i64;
    call.out_vec(call.args[1], out);
    Ok(len)
}

/// getcwd(2).
pub async fn sys_getcwd<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let mut path = clustix_vfs::path_of(call.cache(), call.process.state.cwd).await?;
    path.push(0);
    if path.len() as u64 > call.args[1] {
        return Err(ERANGE);
    }
    call.out(0, &path);
    Ok(path.len() as i64)
}

/// chdir(2).
pub async fn sys_chdir<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let path = call.path(0)?;
    let found = call.walk(AT_FDCWD, &path, true).await?;
    enter(call, found.ino, &found.inode).await
}

/// fchdir(2).
pub async fn sys_fchdir<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let (ino, inode) = call.inode_of(call.int(0)).await?;
    enter(call, ino, &inode).await
}

async fn enter<S: Services>(call: &mut Call<'_, S>, ino: u64, dir: &Inode) -> Result<i64, Errno> {
    if !dir.is_dir() {
        return Err(ENOTDIR);
    }
    if !clustix_vfs::may(&call.process.credentials, dir, 1) {
        return Err(EACCES);
    }
    call.process.state.cwd = ino;
    call.save().await?;
    Ok(0)
}
