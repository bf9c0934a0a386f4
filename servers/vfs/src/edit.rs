//! What operations on names do to inodes and directories, within one [`Attempt`].

use crate::attempt::{Attempt, Stop};
use crate::dir::{self, hash, position};
use crate::object::{self, Block, LEAF_BYTES, Names, dentry_bytes, encode_block, encode_inode};
use crate::{extent, number};
use clustix_ccache::cache::{Cache, Expect, Version};
use clustix_ccache::name::Shard;
use clustix_ccache::set::Class;
use clustix_proto::Answer;
use clustix_proto::errno::{EIO, ENAMETOOLONG, ENOENT, ENOSPC, ENOTDIR};
use clustix_proto::vfs::{Dentry, DirBlock, Inode, NAME_MAX, Time, name};
use std::ops::Range;

/// Most pages that go in the same transaction as the last name of their file.
const INLINE_PAGES: u64 = 12;

/// A directory within an attempt.
#[derive(Clone, Debug)]
pub struct Dir {
    pub ino: u64,
    pub inode: Inode,
}

/// A name's place in the leaf that it belongs to.
struct Leaf {
    ino: u64,
    node: u32,
    /// Its bytes; empty, where they would stand, if it is not there.
    at: Range<usize>,
    found: Option<Dentry>,
    /// Another name has its readdir position.
    taken: bool,
    /// Bytes of the whole leaf.
    len: usize,
}

impl Leaf {
    fn scan(mut names: Names<'_>, ino: u64, node: u32, name: &[u8]) -> Result<Leaf, Stop> {
        let h = hash(ino, name);
        let (mut place, mut taken, mut found) = (None, false, None);
        let mut start = names.offset();
        while let Some(entry) = names.next() {
            let entry = entry?;
            let end = names.offset();
            if entry.name == name {
                found = Some((start..end, entry.to_dentry()));
            }
            let other = hash(ino, entry.name);
            taken |= position(other) == position(h);
            if other > h && place.is_none() {
                place = Some(start);
            }
            start = end;
        }
        let len = start;
        let place = place.unwrap_or(len);
        let (at, found) = found.map_or((place..place, None), |(at, d)| (at, Some(d)));
        Ok(Leaf { ino, node, at, found, taken, len })
    }
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

    /// Reads the leaf that a name belongs to.
    async fn leaf(&mut self, ino: u64, name: &[u8]) -> Result<Leaf, Stop> {
        let mut bytes = Vec::new();
        let leaf = dir::find_leaf(self.cache(), ino, hash(ino, name), &mut bytes).await?;
        let block = name::dirblock(ino, leaf.node);
        if !self.knows(block) {
            self.note(block, leaf.version, bytes);
        }
        // As this attempt has it: perhaps changed already.
        let bytes = self.get(block).await?.ok_or(Stop::Again)?;
        let Block::Leaf(names) = Block::parse(bytes)? else { return Err(Stop::Again) };
        Leaf::scan(names, ino, leaf.node, name)
    }

    fn change_leaf(&mut self, l: &Leaf, new: Option<&Dentry>, names: i64) -> Result<usize, Stop> {
        let block = name::dirblock(l.ino, l.node);
        let bytes = self.objects.get(&block).and_then(|o| o.data.as_deref()).ok_or(EIO)?;
        let bytes = object::splice(bytes, l.at.clone(), new, names)?;
        let len = bytes.len();
        self.put(block, bytes)?;
        Ok(len)
    }

    /// Looks a name up, so that the commit depends on the answer.
    pub async fn lookup(&mut self, ino: u64, name: &[u8]) -> Result<Option<Dentry>, Stop> {
        if name.len() > NAME_MAX {
            return Err(Stop::Fail(ENAMETOOLONG));
        }
        Ok(self.leaf(ino, name).await?.found)
    }

    /// Adds a name that is not there. The directory's own inode is the caller's to change. A full
    /// leaf is split first, and the attempt made again.
    pub async fn add_name(&mut self, ino: u64, d: Dentry) -> Result<(), Stop> {
        let leaf = self.leaf(ino, &d.name).await?;
        if leaf.found.is_some() {
            return Err(Stop::Again);
        }
        if leaf.taken {
            return Err(Stop::Fail(ENOSPC));
        }
        if leaf.len + dentry_bytes(&d.name) > LEAF_BYTES {
            dir::split(self.cache(), ino, leaf.node).await?;
            return Err(Stop::Again);
        }
        self.change_leaf(&leaf, Some(&d), 1)?;
        Ok(())
    }

    /// Takes a name away. Returns the leaf's node if it has become small ([`dir::join`]).
    pub async fn take_name(&mut self, ino: u64, name: &[u8]) -> Result<Option<u32>, Stop> {
        let leaf = self.leaf(ino, name).await?;
        if leaf.found.is_none() {
            return Err(Stop::Again);
        }
        let len = self.change_leaf(&leaf, None, -1)?;
        Ok(dir::is_small(leaf.node, len).then_some(leaf.node))
    }

    /// Makes an existing name refer to another inode.
    pub async fn turn_name(&mut self, ino: u64, d: Dentry) -> Result<(), Stop> {
        let leaf = self.leaf(ino, &d.name).await?;
        if leaf.found.is_none() {
            return Err(Stop::Again);
        }
        self.change_leaf(&leaf, Some(&d), 0)?;
        Ok(())
    }

    /// Takes one name's link from an inode, or all of a directory's. The last one removes the inode
    /// unless a node has it open or its pages are many; then the inode stays, nameless.
    pub async fn unlink(
        &mut self,
        ino: u64,
        mut inode: Inode,
        now: Time,
    ) -> Result<Nameless, Stop> {
        inode.ctime = now;
        // Fewer than none: inode and name were read at different moments.
        let left = if inode.is_dir() { Some(0) } else { inode.nlink.checked_sub(1) };
        inode.nlink = left.ok_or(Stop::Again)?;
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Nameless {
    /// It has another.
    #[default]
    Not,
    /// Removed.
    Gone,
    /// Without a name, and nodes are noted as having it open.
    Open(u64),
    /// Without a name and openers, to be removed step by step ([`crate::open::reap`]).
    Left(u64),
}

impl Nameless {
    /// What the caller is told: the inode that its node may have to let go, or 0.
    pub const fn reply(self) -> u64 {
        match self {
            Nameless::Open(ino) => ino,
            _ => 0,
        }
    }
}
