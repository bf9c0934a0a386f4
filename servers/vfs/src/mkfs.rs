//! A new file system.

use crate::attempt::{Attempt, retry};
use crate::dir::TRIE_ROOT;
use crate::object::{self, encode_block, encode_inode};
use crate::op::make;
use clustix_ccache::cache::{Cache, Expect, Version};
use clustix_proto::Answer;
use clustix_proto::errno::EEXIST;
use clustix_proto::vfs::mode::{S_IFCHR, S_IFDIR};
use clustix_proto::vfs::{Backing, Credentials, DirBlock, Inode, ROOT, name};

const DIRECTORIES: &[(&str, u32)] =
    &[("dev", 0o755), ("dev/pts", 0o755), ("etc", 0o755), ("proc", 0o555), ("tmp", 0o1777)];

/// Makes the root, /dev with its devices, /tmp, /proc and /etc, as far as they are not there. May be
/// called again, and by several nodes at once.
pub async fn mkfs<C: Cache>(cache: &C) -> Answer<()> {
    retry(async || {
        let mut a = Attempt::new(cache);
        if a.inode(ROOT).await?.is_some() {
            return Ok(());
        }
        let now = object::now();
        let root = Inode {
            mode: S_IFDIR | 0o755,
            uid: 0,
            gid: 0,
            nlink: 2,
            size: 0,
            atime: now,
            mtime: now,
            ctime: now,
            rdev: 0,
            parent: ROOT,
            openers: 0,
            backing: Backing::CacheOnly,
            extents: Vec::new(),
        };
        let absent = Expect::Version(Version::ABSENT);
        a.write(name::inode(ROOT), absent, Some(encode_inode(&root)?));
        let block = encode_block(&DirBlock::Leaf(Vec::new()))?;
        a.write(name::dirblock(ROOT, TRIE_ROOT), Expect::Any, Some(block));
        a.write(name::superblock(), Expect::Any, Some(vec![1]));
        a.commit().await
    })
    .await?;
    let cred = &Credentials::ROOT;
    for (path, mode) in DIRECTORIES {
        unless_there(make::mkdir(cache, cred, ROOT, path.as_bytes(), *mode).await)?;
    }
    for (name, major, minor, mode) in clustix_drivers::NODES {
        let (path, rdev) = (format!("dev/{name}"), clustix_drivers::rdev(*major, *minor));
        let mode = S_IFCHR | mode;
        unless_there(make::mknod(cache, cred, ROOT, path.as_bytes(), mode, rdev).await)?;
    }
    Ok(())
}

fn unless_there(r: Answer<u64>) -> Answer<()> {
    match r {
        Ok(_) | Err(EEXIST) => Ok(()),
        Err(e) => Err(e),
    }
}
