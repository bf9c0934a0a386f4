//! link(2).

use crate::attempt::{Attempt, Stop, retry_once};
use crate::object;
use crate::permission::{EXEC, READ, WRITE, may, owns};
use crate::walk::{Last, walk, walk_parent};
use clustix_ccache::cache::Cache;
use clustix_proto::Answer;
use clustix_proto::errno::*;
use clustix_proto::once::Record;
use clustix_proto::vfs::mode::*;
use clustix_proto::vfs::{Credentials, Dentry, Inode, LINK_MAX};

/// link(2); replies the inode number.
pub async fn link<C: Cache>(
    cache: &C,
    record: Option<&Record>,
    cred: &Credentials,
    (old_dir, old): (u64, &[u8]),
    (new_dir, new): (u64, &[u8]),
    follow: bool,
) -> Answer<u64> {
    let source = walk(cache, cred, old_dir, old, follow).await?;
    let parent = walk_parent(cache, cred, new_dir, new, &mut 0).await?;
    let Last::Name(name) = parent.last else { return Err(EEXIST) };
    let dir = parent.dir.ino;
    retry_once(async || {
        let mut a = Attempt::begin(cache, record).await?;
        let mut d = a.dir(dir).await?;
        if a.lookup(dir, &name).await?.is_some() {
            return Err(Stop::Fail(EEXIST));
        }
        if parent.slash {
            return Err(Stop::Fail(ENOENT));
        }
        let mut inode = a.inode(source.ino).await?.ok_or(ENOENT)?;
        if !owns(cred, &inode) && !is_safe_source(cred, &inode) {
            return Err(Stop::Fail(EPERM));
        }
        if !may(cred, &d.inode, WRITE | EXEC) {
            return Err(Stop::Fail(EACCES));
        }
        if inode.is_dir() {
            return Err(Stop::Fail(EPERM));
        }
        if inode.nlink == 0 {
            return Err(Stop::Fail(ENOENT));
        }
        if inode.nlink >= LINK_MAX {
            return Err(Stop::Fail(EMLINK));
        }
        let now = object::now();
        inode.nlink += 1;
        inode.ctime = now;
        a.put_inode(source.ino, &inode)?;
        let dentry = Dentry { name: name.clone(), ino: source.ino, kind: inode.kind() };
        a.add_name(dir, dentry).await?;
        d.inode.size += 1;
        (d.inode.mtime, d.inode.ctime) = (now, now);
        a.put_inode(dir, &d.inode)?;
        a.commit(source.ino).await?;
        Ok((source.ino, ()))
    })
    .await
    .map(|(ino, ())| ino)
}

/// Whether someone who is not its owner may give it another name (Linux's protected_hardlinks): else
/// a program with a hole could be kept after its owner replaced it.
fn is_safe_source(cred: &Credentials, inode: &Inode) -> bool {
    let group_id = inode.mode & (S_ISGID | 0o010) == S_ISGID | 0o010;
    inode.is_regular() && inode.mode & S_ISUID == 0 && !group_id && may(cred, inode, READ | WRITE)
}
