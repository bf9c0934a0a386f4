//! A new file system.

use crate::attempt::{Attempt, Stop, retry};
use crate::dir::{TRIE_ROOT, hash};
use crate::number;
use crate::object::{self, encode_block, encode_inode};
use clustix_ccache::cache::{Cache, Expect, Version};
use clustix_ccache::name::Shard;
use clustix_proto::Answer;
use clustix_proto::vfs::mode::{S_IFCHR, S_IFDIR, S_IFMT};
use clustix_proto::vfs::{Backing, Dentry, DirBlock, Inode, ROOT, name};

/// Directories of the root, with their permissions; `dev` gets the devices and `pts` besides.
const DIRECTORIES: &[(&str, u32)] =
    &[("dev", 0o755), ("etc", 0o755), ("proc", 0o555), ("tmp", 0o1777)];

/// Makes the root with /dev and its devices, /tmp, /proc and /etc, unless there is a root. One
/// transaction, so that nobody ever sees a part of it; may be called again, and by several nodes
/// at once.
pub async fn mkfs<C: Cache>(cache: &C) -> Answer<()> {
    retry(async || {
        let mut a = Attempt::new(cache);
        if a.get(name::inode(ROOT)).await?.is_some() {
            return Ok(());
        }
        a.write(name::superblock(), Expect::Any, Some(vec![1]));
        let dev = new_number();
        let mut devices = vec![entry("pts", put_dir(&mut a, new_number(), dev, 0o755, &mut [])?)];
        for (name, major, minor, permissions) in clustix_drivers::NODES {
            let ino = new_number();
            let mut inode = inode(S_IFCHR | permissions);
            inode.rdev = clustix_drivers::rdev(*major, *minor);
            a.write(name::inode(ino), ABSENT, Some(encode_inode(&inode)?));
            devices.push(entry(name, (ino, inode.mode)));
        }
        let mut root = Vec::new();
        for (name, permissions) in DIRECTORIES {
            let made = match *name {
                "dev" => put_dir(&mut a, dev, ROOT, *permissions, &mut devices)?,
                _ => put_dir(&mut a, new_number(), ROOT, *permissions, &mut [])?,
            };
            root.push(entry(name, made));
        }
        put_dir(&mut a, ROOT, ROOT, 0o755, &mut root)?;
        a.commit(0).await
    })
    .await
}

const ABSENT: Expect = Expect::Version(Version::ABSENT);

fn new_number() -> u64 {
    number::inode(Shard::of(ROOT))
}

fn entry(name: &str, (ino, mode): (u64, u32)) -> Dentry {
    Dentry { name: name.into(), ino, kind: mode & S_IFMT }
}

fn inode(mode: u32) -> Inode {
    let now = object::now();
    Inode {
        mode,
        uid: 0,
        gid: 0,
        nlink: 1,
        size: 0,
        atime: now,
        mtime: now,
        ctime: now,
        rdev: 0,
        parent: 0,
        openers: 0,
        backing: Backing::CacheOnly,
        extents: Vec::new(),
    }
}

/// Writes a directory with its names: its number and mode.
fn put_dir<C: Cache>(
    a: &mut Attempt<'_, C>,
    ino: u64,
    parent: u64,
    permissions: u32,
    names: &mut [Dentry],
) -> Result<(u64, u32), Stop> {
    let mut inode = inode(S_IFDIR | permissions);
    inode.parent = parent;
    inode.size = names.len() as u64;
    inode.nlink = 2 + names.iter().filter(|d| d.kind == S_IFDIR).count() as u32;
    names.sort_by_key(|d| hash(ino, &d.name));
    a.write(name::inode(ino), ABSENT, Some(encode_inode(&inode)?));
    let block = encode_block(&DirBlock::Leaf(names.to_vec()))?;
    a.write(name::dirblock(ino, TRIE_ROOT), Expect::Any, Some(block));
    Ok((ino, inode.mode))
}
