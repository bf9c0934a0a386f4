//! Names and attributes: mkdir(2), unlink(2), rename(2), link(2), symlink(2), mknod(2), chmod(2),
//! chown(2), utimensat(2), truncate(2). The vfs does the work; here are arguments.

use crate::call::Call;
use crate::fd::Kind;
use crate::layouts::splitdev;
use crate::path::*;
use crate::services::Services;
use clustix_proto::Errno;
use clustix_proto::errno::*;
use clustix_proto::vfs::{Credentials, Request, SetAttr, Time, mode};

fn cred<S: Services>(call: &Call<'_, S>) -> Credentials {
    call.process.credentials.clone()
}

async fn mkdir<S: Services>(
    call: &mut Call<'_, S>,
    dirfd: Option<usize>,
    path: usize,
) -> Result<i64, Errno> {
    let (dir, name) = call.at(dirfd, path).await?;
    let mode = call.args[path + 1] as u32 & 0o1777 & !call.process.state.umask;
    call.services().vfs(&Request::Mkdir { cred: cred(call), dir, path: name, mode }).await?;
    Ok(0)
}

/// mkdir(2).
pub async fn sys_mkdir<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    mkdir(call, None, 0).await
}

/// mkdirat(2).
pub async fn sys_mkdirat<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    mkdir(call, Some(0), 1).await
}

async fn mknod<S: Services>(
    call: &mut Call<'_, S>,
    dirfd: Option<usize>,
    path: usize,
) -> Result<i64, Errno> {
    let (dir, name) = call.at(dirfd, path).await?;
    let given = call.args[path + 1] as u32;
    let kind = match given & mode::S_IFMT {
        0 | mode::S_IFREG => mode::S_IFREG,
        k @ (mode::S_IFIFO | mode::S_IFSOCK) => k,
        k @ (mode::S_IFCHR | mode::S_IFBLK) => {
            if call.process.credentials.uid != 0 {
                return Err(EPERM);
            }
            k
        }
        mode::S_IFDIR => return Err(EPERM),
        _ => return Err(EINVAL),
    };
    let mode = kind | (given & 0o7777 & !call.process.state.umask);
    let (major, minor) = splitdev(call.args[path + 2]);
    let rdev = u64::from(major) << 32 | u64::from(minor);
    call.services().vfs(&Request::Mknod { cred: cred(call), dir, path: name, mode, rdev }).await?;
    Ok(0)
}

/// mknod(2).
pub async fn sys_mknod<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    mknod(call, None, 0).await
}

/// mknodat(2).
pub async fn sys_mknodat<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    mknod(call, Some(0), 1).await
}

async fn unlink<S: Services>(
    call: &mut Call<'_, S>,
    dirfd: Option<usize>,
    path: usize,
    rmdir: bool,
) -> Result<i64, Errno> {
    let (dir, name) = call.at(dirfd, path).await?;
    let request = Request::Unlink { cred: cred(call), dir, path: name, rmdir };
    let nameless = call.services().vfs(&request).await?;
    if nameless != 0 {
        call.node.openers.nameless(call.services(), nameless).await;
    }
    Ok(0)
}

/// unlink(2).
pub async fn sys_unlink<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    unlink(call, None, 0, false).await
}

/// rmdir(2).
pub async fn sys_rmdir<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    unlink(call, None, 0, true).await
}

/// unlinkat(2).
pub async fn sys_unlinkat<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    if call.args[2] & !AT_REMOVEDIR != 0 {
        return Err(EINVAL);
    }
    unlink(call, Some(0), 1, call.args[2] & AT_REMOVEDIR != 0).await
}

async fn rename<S: Services>(
    call: &mut Call<'_, S>,
    old: (Option<usize>, usize),
    new: (Option<usize>, usize),
    flags: u64,
) -> Result<i64, Errno> {
    const NOREPLACE: u64 = 1;
    const EXCHANGE: u64 = 2;
    if flags & !(NOREPLACE | EXCHANGE) != 0 || flags == NOREPLACE | EXCHANGE {
        return Err(EINVAL);
    }
    let (old_dir, old) = call.at(old.0, old.1).await?;
    let (new_dir, new) = call.at(new.0, new.1).await?;
    let request = Request::Rename {
        cred: cred(call),
        old_dir,
        old,
        new_dir,
        new,
        no_replace: flags & NOREPLACE != 0,
        exchange: flags & EXCHANGE != 0,
    };
    let nameless = call.services().vfs(&request).await?;
    if nameless != 0 {
        call.node.openers.nameless(call.services(), nameless).await;
    }
    Ok(0)
}

/// rename(2).
pub async fn sys_rename<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    rename(call, (None, 0), (None, 1), 0).await
}

/// renameat(2).
pub async fn sys_renameat<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    rename(call, (Some(0), 1), (Some(2), 3), 0).await
}

/// renameat2(2).
pub async fn sys_renameat2<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    rename(call, (Some(0), 1), (Some(2), 3), call.args[4] as u32 as u64).await
}

/// link(2).
pub async fn sys_link<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    link(call, (None, 0), (None, 1), false).await
}

/// linkat(2).
pub async fn sys_linkat<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    if call.args[4] & !AT_SYMLINK_FOLLOW != 0 {
        return Err(EINVAL);
    }
    link(call, (Some(0), 1), (Some(2), 3), call.args[4] & AT_SYMLINK_FOLLOW != 0).await
}

async fn link<S: Services>(
    call: &mut Call<'_, S>,
    old: (Option<usize>, usize),
    new: (Option<usize>, usize),
    follow: bool,
) -> Result<i64, Errno> {
    let (old_dir, old) = call.at(old.0, old.1).await?;
    let (new_dir, new) = call.at(new.0, new.1).await?;
    let request = Request::Link { cred: cred(call), old_dir, old, new_dir, new, follow };
    call.services().vfs(&request).await?;
    Ok(0)
}

async fn symlink<S: Services>(
    call: &mut Call<'_, S>,
    dirfd: Option<usize>,
    path: usize,
) -> Result<i64, Errno> {
    let target = call.path(0)?;
    let (dir, name) = call.at(dirfd, path).await?;
    call.services().vfs(&Request::Symlink { cred: cred(call), target, dir, path: name }).await?;
    Ok(0)
}

/// symlink(2).
pub async fn sys_symlink<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    symlink(call, None, 1).await
}

/// symlinkat(2).
pub async fn sys_symlinkat<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    symlink(call, Some(1), 2).await
}

async fn set<S: Services>(call: &Call<'_, S>, ino: u64, attr: SetAttr) -> Result<i64, Errno> {
    call.services().vfs(&Request::SetAttr { cred: cred(call), ino, attr }).await?;
    Ok(0)
}

/// The inode of the descriptor in argument `i`, for changing its attributes.
async fn changeable<S: Services>(call: &Call<'_, S>, i: usize) -> Result<u64, Errno> {
    let (_, file) = call.file(call.int(i)).await?;
    if file.flags & crate::fd::flags::O_PATH != 0 {
        return Err(EBADF);
    }
    // A pipe or terminal without a name has no attributes that anyone else could see.
    file.kind.ino().ok_or(EPERM)
}

fn chmod_attr(mode: u64) -> SetAttr {
    SetAttr { mode: Some(mode as u32 & 0o7777), ..SetAttr::default() }
}

/// chmod(2).
pub async fn sys_chmod<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let path = call.path(0)?;
    let ino = call.walk(AT_FDCWD, &path, true).await?.ino;
    set(call, ino, chmod_attr(call.args[1])).await
}

/// fchmod(2).
pub async fn sys_fchmod<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let ino = changeable(call, 0).await?;
    set(call, ino, chmod_attr(call.args[1])).await
}

/// fchmodat(2), the system call: without flags.
pub async fn sys_fchmodat<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let path = call.path(1)?;
    let ino = call.walk(call.int(0), &path, true).await?.ino;
    set(call, ino, chmod_attr(call.args[2])).await
}

fn chown_attr(uid: u64, gid: u64) -> SetAttr {
    let id = |v: u64| (v as u32 != u32::MAX).then_some(v as u32);
    SetAttr { uid: id(uid), gid: id(gid), ..SetAttr::default() }
}

/// chown(2).
pub async fn sys_chown<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let path = call.path(0)?;
    let ino = call.walk(AT_FDCWD, &path, true).await?.ino;
    set(call, ino, chown_attr(call.args[1], call.args[2])).await
}

/// lchown(2).
pub async fn sys_lchown<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let path = call.path(0)?;
    let ino = call.walk(AT_FDCWD, &path, false).await?.ino;
    set(call, ino, chown_attr(call.args[1], call.args[2])).await
}

/// fchown(2).
pub async fn sys_fchown<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let ino = changeable(call, 0).await?;
    set(call, ino, chown_attr(call.args[1], call.args[2])).await
}

/// fchownat(2).
pub async fn sys_fchownat<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let flags = call.args[4];
    if flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(EINVAL);
    }
    let path = call.path(1)?;
    let attr = chown_attr(call.args[2], call.args[3]);
    if path.is_empty() && flags & AT_EMPTY_PATH != 0 {
        let ino = changeable(call, 0).await?;
        return set(call, ino, attr).await;
    }
    let ino = call.walk(call.int(0), &path, flags & AT_SYMLINK_NOFOLLOW == 0).await?.ino;
    set(call, ino, attr).await
}

fn le(b: &[u8]) -> i64 {
    b.try_into().map_or(0, i64::from_le_bytes)
}

/// The time in 16 bytes; `unit` nanoseconds per count of the second word.
fn time(b: &[u8], unit: i64) -> Result<Time, Errno> {
    let (sec, sub) = (le(&b[..8]), le(&b[8..16]));
    if !(0..1_000_000_000 / unit).contains(&sub) {
        return Err(EINVAL);
    }
    Ok(Time { sec, nsec: (sub * unit) as u32 })
}

/// Both times at present.
const TOUCH: SetAttr =
    SetAttr { mode: None, uid: None, gid: None, size: None, atime: None, mtime: None, touch: true };

/// utimensat(2).
pub async fn sys_utimensat<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    const UTIME_NOW: i64 = (1 << 30) - 1;
    const UTIME_OMIT: i64 = (1 << 30) - 2;
    let flags = call.args[3];
    if flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(EINVAL);
    }
    let attr = match call.struct_in::<32>(2)? {
        None => TOUCH,
        Some(b) => {
            let one = |b: &[u8]| match le(&b[8..16]) {
                UTIME_NOW => Ok(Some(clustix_vfs::object::now())),
                UTIME_OMIT => Ok(None),
                _ => time(b, 1).map(Some),
            };
            if le(&b[8..16]) == UTIME_NOW && le(&b[24..32]) == UTIME_NOW {
                TOUCH
            } else {
                SetAttr { atime: one(&b[..16])?, mtime: one(&b[16..])?, ..SetAttr::default() }
            }
        }
    };
    let ino = if call.args[1] == 0 {
        // futimens(3).
        changeable(call, 0).await?
    } else {
        let path = call.path(1)?;
        if path.is_empty() && flags & AT_EMPTY_PATH != 0 {
            changeable(call, 0).await?
        } else {
            call.walk(call.int(0), &path, flags & AT_SYMLINK_NOFOLLOW == 0).await?.ino
        }
    };
    if attr == SetAttr::default() {
        return Ok(0);
    }
    set(call, ino, attr).await
}

async fn utimes<S: Services>(
    call: &mut Call<'_, S>,
    dirfd: i32,
    path: usize,
) -> Result<i64, Errno> {
    let attr = match call.struct_in::<32>(path + 1)? {
        None => TOUCH,
        Some(b) => SetAttr {
            atime: Some(time(&b[..16], 1000)?),
            mtime: Some(time(&b[16..], 1000)?),
            ..SetAttr::default()
        },
    };
    let path = call.path(path)?;
    let ino = call.walk(dirfd, &path, true).await?.ino;
    set(call, ino, attr).await
}

/// utimes(2).
pub async fn sys_utimes<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    utimes(call, AT_FDCWD, 0).await
}

/// futimesat(2).
pub async fn sys_futimesat<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    utimes(call, call.int(0), 1).await
}

/// utime(2).
pub async fn sys_utime<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let attr = match call.struct_in::<16>(1)? {
        None => TOUCH,
        Some(b) => SetAttr {
            atime: Some(Time { sec: le(&b[..8]), nsec: 0 }),
            mtime: Some(Time { sec: le(&b[8..]), nsec: 0 }),
            ..SetAttr::default()
        },
    };
    let path = call.path(0)?;
    let ino = call.walk(AT_FDCWD, &path, true).await?.ino;
    set(call, ino, attr).await
}

/// truncate(2).
pub async fn sys_truncate<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let size = u64::try_from(call.args[1] as i64).map_err(|_| EINVAL)?;
    let path = call.path(0)?;
    let found = call.walk(AT_FDCWD, &path, true).await?;
    if found.inode.is_dir() {
        return Err(EISDIR);
    }
    if found.inode.kind() != mode::S_IFREG {
        return Err(EINVAL);
    }
    if !clustix_vfs::may(&call.process.credentials, &found.inode, 2) {
        return Err(EACCES);
    }
    set(call, found.ino, SetAttr { size: Some(size), ..SetAttr::default() }).await
}

/// ftruncate(2).
pub async fn sys_ftruncate<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let size = u64::try_from(call.args[1] as i64).map_err(|_| EINVAL)?;
    let (_, file) = call.file(call.int(0)).await?;
    let Kind::File { ino } = file.kind else { return Err(EINVAL) };
    if !file.writable() {
        return Err(EINVAL);
    }
    set(call, ino, SetAttr { size: Some(size), ..SetAttr::default() }).await
}
