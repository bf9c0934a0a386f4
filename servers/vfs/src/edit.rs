//! What operations on names do to inodes and directories, within one [`Attempt`].

use crate::attempt::{Attempt, Stop};
use crate::dir::{self, hash, position};
use crate::object::{self, Block, LEAF_BYTES, NameRef, dentry_bytes, encode_block, encode_inode};
use crate::{extent, number};
use clustix_ccache::cache::{Cache, Expect, Version};
use clustix_ccache::name::Shard;
use clustix_ccache::set::Class;
use clustix_proto::Answer;
use clustix_proto::errno::{EIO, ENAMETOOLONG, ENOENT, ENOSPC, ENOTDIR};
use clustix_proto::vfs::{Dentry, DirBlock, Inode, NAME_MAX, Time, name};

/// Most pages that go in the same transaction as the last name of their file.
const INLINE_PAGES: u64 = 12;

/// A directory within an attempt.
#[derive(Clone, Debug)]
pub struct Dir {
    pub ino: u64,
    pub inode: Inode,
}

impl<C: Cache> Attempt<'_, C> {
    /// The inode; `None`: there is none.
    pub async fn inode(&mut self, ino: u64) -> Answer<Option<Inode>> {
        match self.get(name::inode(ino)).await? {
            Some(bytes) => object::decode_inode(bytes).map(Some),
            None => Ok(None),
        }
    }

    /// Replaces an inode that was read.
    pub fn put_inode(&mut self, ino: u64, inode: &Inode) -> Answer<()> {
        self.put(name::inode(ino), encode_inode(inode)?)
    }

    /// A directory that names may be put in: ENOENT if it was removed.
    pub async fn dir(&mut self, ino: u64) -> Answer<Dir> {
        let inode = self.inode(ino).await?.ok_or(ENOENT)?;
        if !inode.is_dir() {
            return Err(ENOTDIR);
        }
        if inode.nlink == 0 {
            return Err(ENOENT);
        }
        Ok(Dir { ino, inode })
    }

    /// Creates an inode with a new number; `near`: the inode that it should stand by.
    pub fn create(&mut self, inode: &Inode, near: Option<u64>) -> Answer<u64> {
        let shard = self.cache().local_shard(Class::Vfs, near.map(Shard::of));
        let ino = number::inode(shard);
        let data = encode_inode(inode)?;
        self.write(name::inode(ino), Expect::Version(Version::ABSENT), Some(data));
        if inode.is_dir() {
            let block = encode_block(&DirBlock::Leaf(Vec::new()))?;
            self.write(name::dirblock(ino, dir::TRIE_ROOT), Expect::Any, Some(block));
        }
        Ok(ino)
    }

    async fn leaf(&mut self, ino: u64, name: &[u8]) -> Result<(u32, Vec<Dentry>), Stop> {
        let mut bytes = Vec::new();
        let leaf = dir::find_leaf(self.cache(), ino, hash(ino, name), &mut bytes).await?;
        let block = name::dirblock(ino, leaf.node);
        if !self.knows(block) {
            self.note(block, leaf.version, bytes);
        }
        let bytes = self.get(block).await?.ok_or(Stop::Again)?;
        let Block::Leaf(names) = Block::parse(bytes)? else { return Err(Stop::Again) };
        let names = names.map(|n| n.map(NameRef::to_dentry)).collect::<Result<_, _>>()?;
        Ok((leaf.node, names))
    }

    /// Looks a name up, so that the commit depends on the answer.
    pub async fn lookup(&mut self, ino: u64, name: &[u8]) -> Result<Option<Dentry>, Stop> {
        if name.len() > NAME_MAX {
            return Err(Stop::Fail(ENAMETOOLONG));
        }
        let (_, names) = self.leaf(ino, name).await?;
        Ok(names.into_iter().find(|d| d.name == name))
    }

    /// Adds a name that is not there. The directory's own inode is the caller's to change. A full
    /// leaf is split first, and the attempt made again.
    pub async fn add_name(&mut self, ino: u64, d: Dentry) -> Result<(), Stop> {
        let (node, mut names) = self.leaf(ino, &d.name).await?;
        let h = hash(ino, &d.name);
        let at = names.partition_point(|e| hash(ino, &e.name) < h);
        let near = [at.checked_sub(1), Some(at)];
        for other in near.into_iter().flatten().filter_map(|i| names.get(i)) {
            if position(hash(ino, &other.name)) == position(h) {
                return Err(Stop::Fail(ENOSPC));
            }
        }
        let bytes: usize = names.iter().map(|e| dentry_bytes(&e.name)).sum();
        if bytes + dentry_bytes(&d.name) + 8 > LEAF_BYTES {
            dir::split(self.cache(), ino, node).await?;
            return Err(Stop::Again);
        }
        names.insert(at, d);
        self.put(name::dirblock(ino, node), encode_block(&DirBlock::Leaf(names))?)?;
        Ok(())
    }

    /// Takes a name away. Returns the leaf's node if it has become small ([`dir::join`]).
    pub async fn take_name(&mut self, ino: u64, name: &[u8]) -> Result<Option<u32>, Stop> {
        let (node, mut names) = self.leaf(ino, name).await?;
        let at = names.iter().position(|d| d.name == name).ok_or(Stop::Again)?;
        names.remove(at);
        let data = encode_block(&DirBlock::Leaf(names))?;
        let small = dir::is_small(node, data.len()).then_some(node);
        self.put(name::dirblock(ino, node), data)?;
        Ok(small)
    }

    /// Makes an existing name refer to another inode.
    pub async fn turn_name(&mut self, ino: u64, d: Dentry) -> Result<(), Stop> {
        let (node, mut names) = self.leaf(ino, &d.name).await?;
        let old = names.iter_mut().find(|e| e.name == d.name).ok_or(Stop::Again)?;
        *old = d;
        self.put(name::dirblock(ino, node), encode_block(&DirBlock::Leaf(names))?)?;
        Ok(())
    }

    /// Takes one name's link from an inode, or all of a directory's. The last one removes the inode
    /// unless a node has it open or its pages are many; then the inode stays, nameless.
    pub async fn unlink(&mut self, ino: u64, mut inode: Inode, now: Time) -> Answer<Nameless> {
        inode.ctime = now;
        inode.nlink = if inode.is_dir() { 0 } else { inode.nlink.checked_sub(1).ok_or(EIO)? };
        if inode.nlink > 0 {
            self.put_inode(ino, &inode)?;
            return Ok(Nameless::Not);
        }
        let pages: u64 = inode.extents.iter().map(|e| u64::from(e.1)).sum();
        // Names still to be written need room: a rename writes at most two blocks and a superblock.
        let mut small = pages <= INLINE_PAGES.min(self.room().saturating_sub(5) as u64);
        if inode.is_dir() {
            // A directory that never outgrew its first block goes with it.
            let block = self.get(name::dirblock(ino, dir::TRIE_ROOT)).await?.map(Block::parse);
            small = matches!(block, Some(Ok(Block::Leaf(_))));
        }
        if inode.openers != 0 || !small {
            self.put_inode(ino, &inode)?;
            return Ok(if inode.openers != 0 { Nameless::Open(ino) } else { Nameless::Left(ino) });
        }
        self.remove(name::inode(ino))?;
        if inode.is_dir() {
            self.remove(name::dirblock(ino, dir::TRIE_ROOT))?;
        }
        if inode.is_symlink() {
            self.write(name::symlink(ino), Expect::Any, None);
        }
        for index in extent::pages(&inode.extents) {
            self.write(name::page(ino, index), Expect::Any, None);
        }
        Ok(Nameless::Gone)
    }
}

/// What an inode is after it lost a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Nameless {
    /// It has another.
    Not,
    /// Removed.
    Gone,
    /// Without a name, and nodes are noted as having it open.
    Open(u64),
    /// Without a name and openers, to be removed step by step ([`crate::open::reap`]).
    Left(u64),
}
