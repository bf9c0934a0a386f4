//! The vfs's objects as bytes. What is read is checked: bytes that make no sense are EIO, never a panic.

use crate::walk::Walked;
use clustix_ccache::cache::Cache;
use clustix_proto::errno::EIO;
use clustix_proto::vfs::{Dentry, DirBlock, Inode, Time, name};
use clustix_proto::{Answer, Errno};
use std::ops::Range;

/// Most encoded bytes of a leaf before it is split. Half of what the set has room for: a change of one
/// name rewrites its block on every replica, and a look-up scans it, so smaller is quicker; larger
/// makes the trie less deep. 8 KiB hold about 250 names of common length.
pub const LEAF_BYTES: usize = 8 * 1024;

/// Encodes an inode.
pub fn encode_inode(inode: &Inode) -> Answer<Vec<u8>> {
    postcard::to_stdvec(inode).map_err(|_| EIO)
}

/// Decodes an inode.
pub fn decode_inode(bytes: &[u8]) -> Answer<Inode> {
    let inode: Inode = postcard::from_bytes(bytes).map_err(|_| EIO)?;
    let mut next = 0;
    for &(first, count) in &inode.extents {
        // Ascending and disjoint, and no page number overflows: later arithmetic relies on it.
        if count == 0 || first < next {
            return Err(EIO);
        }
        next = first.checked_add(count).ok_or(EIO)?;
    }
    Ok(inode)
}

/// Encodes a block of a directory.
pub fn encode_block(block: &DirBlock) -> Answer<Vec<u8>> {
    postcard::to_stdvec(block).map_err(|_| EIO)
}

/// Reads an inode; `None`: there is none of that number.
pub async fn inode<C: Cache>(cache: &C, ino: u64) -> Answer<Option<Walked>> {
    let mut bytes = Vec::new();
    let version = cache.get(name::inode(ino), &mut bytes).await?;
    if !version.exists() {
        return Ok(None);
    }
    Ok(Some(Walked { ino, inode: decode_inode(&bytes)?, version }))
}

/// A directory block, read in place: lookups scan names without copying them.
pub enum Block<'a> {
    /// See [`DirBlock::Split`].
    Split,
    /// See [`DirBlock::Leaf`].
    Leaf(Names<'a>),
}

/// One name, borrowed from its block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NameRef<'a> {
    /// The name's bytes.
    pub name: &'a [u8],
    /// The inode it refers to.
    pub ino: u64,
    /// That inode's type bits.
    pub kind: u32,
}

impl NameRef<'_> {
    /// A copy.
    pub fn to_dentry(self) -> Dentry {
        Dentry { name: self.name.to_vec(), ino: self.ino, kind: self.kind }
    }
}

/// Iterates over a leaf's names; a malformed one ends it with an error.
pub struct Names<'a> {
    rest: &'a [u8],
    left: u64,
    len: usize,
}

impl Names<'_> {
    /// Where in the block the next name begins.
    pub fn offset(&self) -> usize {
        self.len - self.rest.len()
    }
}

impl<'a> Block<'a> {
    /// Reads the head of a block ([`DirBlock`] in postcard: a tag, then the number of names).
    pub fn parse(bytes: &'a [u8]) -> Answer<Block<'a>> {
        let mut rest = bytes;
        match varint(&mut rest)? {
            0 => {
                let left = varint(&mut rest)?;
                Ok(Block::Leaf(Names { rest, left, len: bytes.len() }))
            }
            1 => Ok(Block::Split),
            _ => Err(EIO),
        }
    }
}

impl<'a> Iterator for Names<'a> {
    type Item = Result<NameRef<'a>, Errno>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let mut one = || {
            let len = usize::try_from(varint(&mut self.rest)?).map_err(|_| EIO)?;
            let (name, rest) = self.rest.split_at_checked(len).ok_or(EIO)?;
            self.rest = rest;
            let ino = varint(&mut self.rest)?;
            let kind = u32::try_from(varint(&mut self.rest)?).map_err(|_| EIO)?;
            Ok(NameRef { name, ino, kind })
        };
        let r = one();
        if r.is_err() {
            self.left = 0;
        }
        Some(r)
    }
}

/// Postcard's unsigned integers: little-endian groups of 7 bits, high bit = more follow.
fn varint(bytes: &mut &[u8]) -> Answer<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&b, rest) = bytes.split_first().ok_or(EIO)?;
        *bytes = rest;
        value |= u64::from(b & 0x7f) << shift;
        if b & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(EIO)
}

/// A leaf with the bytes `at` replaced by `new` (nothing, or one encoded [`Dentry`]) and `names` more
/// (or fewer) names: as good as decoding and encoding it all, without a copy of each name.
pub fn splice(leaf: &[u8], at: Range<usize>, new: Option<&Dentry>, names: i64) -> Answer<Vec<u8>> {
    let mut rest = leaf;
    if varint(&mut rest)? != 0 {
        return Err(EIO);
    }
    let count = varint(&mut rest)?.checked_add_signed(names).ok_or(EIO)?;
    let head = leaf.len() - rest.len();
    let (before, after) = (leaf.get(head..at.start), leaf.get(at.end..));
    let mut out = Vec::with_capacity(leaf.len() + 300);
    out.push(0);
    out = postcard::to_extend(&count, out).map_err(|_| EIO)?;
    out.extend_from_slice(before.ok_or(EIO)?);
    if let Some(dentry) = new {
        out = postcard::to_extend(dentry, out).map_err(|_| EIO)?;
    }
    out.extend_from_slice(after.ok_or(EIO)?);
    Ok(out)
}

/// Bytes that a name adds to its block.
pub fn dentry_bytes(name: &[u8]) -> usize {
    // Length (2 bytes from 128 up), inode number (at most 8), type bits (3), rounded up.
    name.len() + 2 + 8 + 3
}

/// The server's present time.
pub fn now() -> Time {
    let d = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Time { sec: d.as_secs() as i64, nsec: d.subsec_nanos() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clustix_ccache::set;
    use clustix_proto::vfs::{Backing, MAX_EXTENTS};

    #[test]
    fn the_scanner_reads_what_postcard_writes() {
        let names: Vec<Dentry> = (0..300u64)
            .map(|i| Dentry {
                name: vec![b'x'; 1 + (i as usize * 7) % 255],
                ino: i << (i % 43),
                kind: 0o170000 & (i as u32) << 12,
            })
            .collect();
        let bytes = encode_block(&DirBlock::Leaf(names.clone())).unwrap();
        let Block::Leaf(read) = Block::parse(&bytes).unwrap() else { panic!() };
        let read: Vec<Dentry> = read.map(|n| n.unwrap().to_dentry()).collect();
        assert_eq!(read, names);
        assert!(matches!(Block::parse(&encode_block(&DirBlock::Split).unwrap()), Ok(Block::Split)));
        // Cut short anywhere, it ends with an error and does not panic.
        for cut in 0..bytes.len() {
            match Block::parse(&bytes[..cut]) {
                Ok(Block::Leaf(mut n)) => assert!(n.any(|n| n.is_err())),
                Ok(Block::Split) => panic!(),
                Err(e) => assert_eq!(e, EIO),
            }
        }
    }

    #[test]
    fn splicing_is_decoding_and_encoding() {
        let dentry = |i: u64| Dentry { name: format!("n{i}").into(), ino: i << 30, kind: 0o100000 };
        let mut names: Vec<Dentry> = Vec::new();
        let mut bytes = encode_block(&DirBlock::Leaf(names.clone())).unwrap();
        for i in 0..600u64 {
            let at = (i * 7919) as usize % (names.len() + 1);
            let mut offsets = Vec::new();
            let Block::Leaf(mut read) = Block::parse(&bytes).unwrap() else { panic!() };
            while read.left > 0 {
                offsets.push(read.offset());
                read.next();
            }
            offsets.push(bytes.len());
            if i % 3 == 2 && at < names.len() {
                names.remove(at);
                bytes = splice(&bytes, offsets[at]..offsets[at + 1], None, -1).unwrap();
            } else {
                names.insert(at, dentry(i));
                bytes = splice(&bytes, offsets[at]..offsets[at], Some(&dentry(i)), 1).unwrap();
            }
            assert_eq!(bytes, encode_block(&DirBlock::Leaf(names.clone())).unwrap());
        }
    }

    #[test]
    fn the_largest_inode_fits_its_set() {
        let t = Time { sec: i64::MIN, nsec: u32::MAX };
        let inode = Inode {
            mode: u32::MAX,
            uid: u32::MAX,
            gid: u32::MAX,
            nlink: u32::MAX,
            size: u64::MAX,
            atime: t,
            mtime: t,
            ctime: t,
            rdev: u64::MAX,
            parent: u64::MAX,
            openers: u16::MAX,
            backing: Backing::Striped { unit: u32::MAX, width: u16::MAX },
            extents: vec![(u32::MAX, u32::MAX); MAX_EXTENTS],
        };
        let capacity = set::descriptor(set::INODE).unwrap().capacity as usize;
        assert!(encode_inode(&inode).unwrap().len() <= capacity);
        assert!(LEAF_BYTES <= set::descriptor(set::DIRBLOCK).unwrap().capacity as usize);
    }
}
