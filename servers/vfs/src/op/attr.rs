//! chmod, chown, truncate, utimensat.

use crate::attempt::{Attempt, retry_once};
use crate::permission::{WRITE, in_group, may, owns, strip_set_id, without_set_id};
use crate::{file, object};
use clustix_ccache::cache::{Cache, Transaction};
use clustix_proto::errno::*;
use clustix_proto::once::Record;
use clustix_proto::vfs::mode::*;
use clustix_proto::vfs::{Credentials, Inode, SetAttr, Time, name};
use clustix_proto::{Answer, Errno};

/// Changes what `attr` names; replies the inode number.
pub async fn set_attr<C: Cache>(
    cache: &C,
    record: Option<&Record>,
    cred: &Credentials,
    ino: u64,
    attr: &SetAttr,
) -> Answer<u64> {
    let (_, in_order) = retry_once(async || {
        let mut a = Attempt::begin(cache, record).await?;
        let found = crate::stat(cache, ino).await?;
        let mut inode = found.inode;
        let now = object::now();
        apply(cred, &mut inode, attr, now)?;
        let mut t = Transaction::new();
        if let Some(size) = attr.size {
            file::resize(cache, ino, &mut inode, size, &mut t).await?;
            inode.mode = without_set_id(cred, &inode);
            inode.mtime = attr.mtime.unwrap_or(now);
        }
        inode.ctime = now;
        let in_order = !file::has_left_over(&inode);
        a.add(t.put(name::inode(ino), found.version, object::encode_inode(&inode)?));
        a.commit(ino).await?;
        Ok((ino, in_order))
    })
    .await?;
    if !in_order && attr.size.is_some() {
        // The size is what was asked for; pages past it cost space only, and go at the next growth.
        if let Err(e) = file::trim(cache, ino).await {
            tracing::warn!(ino, %e, "pages past a file's end stay for now");
        }
    }
    Ok(ino)
}

/// All but the size.
fn apply(cred: &Credentials, inode: &mut Inode, attr: &SetAttr, now: Time) -> Result<(), Errno> {
    let owner = owns(cred, inode);
    if attr.uid.is_some() || attr.gid.is_some() {
        let same_uid = attr.uid.is_none_or(|u| u == inode.uid);
        let own_gid = attr.gid.is_none_or(|g| g == inode.gid || in_group(cred, g));
        if cred.uid != 0 && !(owner && same_uid && own_gid) {
            return Err(EPERM);
        }
        if !inode.is_dir() {
            inode.mode = strip_set_id(cred, inode);
        }
        inode.uid = attr.uid.unwrap_or(inode.uid);
        inode.gid = attr.gid.unwrap_or(inode.gid);
    }
    if let Some(mode) = attr.mode {
        if !owner {
            return Err(EPERM);
        }
        if inode.is_symlink() {
            return Err(EOPNOTSUPP);
        }
        inode.mode = inode.kind() | mode & 0o7777;
        if cred.uid != 0 && !in_group(cred, inode.gid) {
            inode.mode &= !S_ISGID;
        }
    }
    if attr.touch {
        if !owner && !may(cred, inode, WRITE) {
            return Err(EACCES);
        }
        (inode.atime, inode.mtime) = (now, now);
    }
    if attr.atime.is_some() || attr.mtime.is_some() {
        if !owner {
            return Err(EPERM);
        }
        if [attr.atime, attr.mtime].iter().flatten().any(|t| t.nsec >= 1_000_000_000) {
            return Err(EINVAL);
        }
        inode.atime = attr.atime.unwrap_or(inode.atime);
        inode.mtime = attr.mtime.unwrap_or(inode.mtime);
    }
    Ok(())
}
