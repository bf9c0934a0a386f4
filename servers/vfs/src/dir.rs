//! Directories: a binary trie of blocks of names, in the order of the names' hashes.
//!
//! Trie node 1 is the root; a [`DirBlock::Split`] sends a name on to node 2n or 2n + 1 by the next
//! bit of its hash, highest first. Absence too is a hit on a block. Splitting a full leaf and joining
//! two small ones are transactions of their own that change no name, so that an operation on names
//! writes one block per name.
//!
//! The order is public: a *position* is the hash's upper 63 bits, and two names of one directory never
//! have the same one (the second is answered ENOSPC), so that readdir(3) resumes exactly.

use crate::object::{Block, LEAF_BYTES, NameRef, encode_block};
use clustix_ccache::cache::{Cache, CacheError, Transaction, Version};
use clustix_proto::errno::{EIO, ENAMETOOLONG, ENOENT, ENOSPC, ENOTDIR};
use clustix_proto::object::Attempts;
use clustix_proto::vfs::{Dentry, DirBlock, NAME_MAX, mode::S_IFDIR, name};
use clustix_proto::{Answer, Errno};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The root of a directory's trie.
pub const TRIE_ROOT: u32 = 1;
/// Deepest level: the node number still fits 32 bits.
pub const DEEPEST: u32 = 31;

/// Where `name` stands in directory `ino`.
pub fn hash(ino: u64, name: &[u8]) -> u64 {
    xxh3_64_with_seed(name, ino)
}

/// The readdir position of a hash, 2 to 2^63 - 2: 0 and 1 are `.` and `..`.
pub fn position(hash: u64) -> u64 {
    (hash >> 1).clamp(2, (1 << 63) - 2)
}

fn depth(node: u32) -> u32 {
    node.ilog2()
}

fn child(node: u32, hash: u64) -> u32 {
    node << 1 | (hash >> (63 - depth(node)) & 1) as u32
}

/// The last hash that a node covers.
fn last_hash(node: u32) -> u64 {
    let d = depth(node);
    if d == 0 {
        return u64::MAX;
    }
    let prefix = u64::from(node) & ((1 << d) - 1);
    prefix << (64 - d) | u64::MAX >> d
}

/// A leaf as it was read.
pub(crate) struct Leaf {
    pub node: u32,
    pub version: Version,
}

/// Finds the leaf that `hash` belongs to; its bytes are left in `bytes`. ENOENT: the directory has no
/// blocks (it was removed).
pub(crate) async fn find_leaf<C: Cache>(
    cache: &C,
    ino: u64,
    hash: u64,
    bytes: &mut Vec<u8>,
) -> Answer<Leaf> {
    let mut attempts = Attempts::new();
    loop {
        let mut node = TRIE_ROOT;
        loop {
            let version = cache.get(name::dirblock(ino, node), bytes).await?;
            if !version.exists() {
                if node == TRIE_ROOT {
                    return Err(ENOENT);
                }
                // Joined with its sibling since its parent was read: from the root again.
                break;
            }
            match Block::parse(bytes)? {
                Block::Leaf(_) => return Ok(Leaf { node, version }),
                Block::Split if depth(node) >= DEEPEST => return Err(EIO),
                Block::Split => node = child(node, hash),
            }
        }
        attempts.again().await?;
    }
}

/// Looks `name` up in directory `ino`: its inode number and type bits. No permission is checked.
/// ENAMETOOLONG past 255 bytes.
pub async fn lookup<C: Cache>(cache: &C, ino: u64, name: &[u8]) -> Answer<Option<(u64, u32)>> {
    let mut bytes = Vec::new();
    lookup_with(cache, ino, name, &mut bytes).await
}

/// As [`lookup`], with the caller's buffer, so that a walk allocates once.
pub(crate) async fn lookup_with<C: Cache>(
    cache: &C,
    ino: u64,
    name: &[u8],
    bytes: &mut Vec<u8>,
) -> Answer<Option<(u64, u32)>> {
    if name.len() > NAME_MAX {
        return Err(ENAMETOOLONG);
    }
    match find_leaf(cache, ino, hash(ino, name), bytes).await {
        Ok(_) => {}
        Err(ENOENT) => return Ok(None),
        Err(e) => return Err(e),
    }
    let Block::Leaf(names) = Block::parse(bytes)? else { return Err(EIO) };
    for entry in names {
        let NameRef { name: n, ino, kind } = entry?;
        if n == name {
            return Ok(Some((ino, kind)));
        }
    }
    Ok(None)
}

/// One name as readdir gives it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The name.
    pub name: Vec<u8>,
    /// The inode it refers to.
    pub ino: u64,
    /// That inode's type bits (`S_IFMT`).
    pub kind: u32,
    /// The cursor that continues after this name (d_off; always below 2^63).
    pub next: u64,
}

/// The names of directory `ino` from `cursor` on (0: the start), `.` and `..` first, then by
/// position; at most `max`. Empty: no more. A name that is there throughout is given exactly once,
/// whatever else comes and goes. ENOENT: the directory was removed; ENOTDIR.
pub async fn readdir<C: Cache>(cache: &C, ino: u64, cursor: u64, max: usize) -> Answer<Vec<Entry>> {
    let dir = crate::stat(cache, ino).await?.inode;
    if !dir.is_dir() {
        return Err(ENOTDIR);
    }
    if dir.nlink == 0 {
        return Err(ENOENT);
    }
    let mut out = Vec::new();
    for (at, name, target) in [(0, &b"."[..], ino), (1, b"..", dir.parent)] {
        if cursor <= at && out.len() < max {
            out.push(Entry { name: name.to_vec(), ino: target, kind: S_IFDIR, next: at + 1 });
        }
    }
    let mut from = cursor.max(2);
    let mut bytes = Vec::new();
    while out.len() < max && from < 1 << 63 {
        // Position 2 also stands for the lowest hashes.
        let start = if from == 2 { 0 } else { from << 1 };
        let leaf = find_leaf(cache, ino, start, &mut bytes).await?;
        let Block::Leaf(names) = Block::parse(&bytes)? else { return Err(EIO) };
        for entry in names {
            let entry = entry?;
            let at = position(hash(ino, entry.name));
            if at < from {
                continue;
            }
            if out.len() == max {
                break;
            }
            let NameRef { name, ino, kind } = entry;
            out.push(Entry { name: name.to_vec(), ino, kind, next: at + 1 });
        }
        let last = last_hash(leaf.node);
        if last == u64::MAX {
            break;
        }
        from = (last >> 1) + 1;
    }
    Ok(out)
}

/// The name under which directory `ino` lists inode `target`; looks at every block.
pub(crate) async fn name_of<C: Cache>(cache: &C, ino: u64, target: u64) -> Answer<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let mut start = 0;
    loop {
        let leaf = find_leaf(cache, ino, start, &mut bytes).await?;
        let Block::Leaf(names) = Block::parse(&bytes)? else { return Err(EIO) };
        for entry in names {
            let entry = entry?;
            if entry.ino == target {
                return Ok(Some(entry.name.to_vec()));
            }
        }
        match last_hash(leaf.node).checked_add(1) {
            Some(next) => start = next,
            None => return Ok(None),
        }
    }
}

/// Splits leaf `node` of directory `ino` in two. `Ok` also if another was faster or the cluster-cache
/// is busy: the caller looks again either way. ENOSPC: it is as deep as can be.
pub(crate) async fn split<C: Cache>(cache: &C, ino: u64, node: u32) -> Answer<()> {
    if depth(node) >= DEEPEST {
        return Err(ENOSPC);
    }
    let mut bytes = Vec::new();
    let version = cache.get(name::dirblock(ino, node), &mut bytes).await?;
    if !version.exists() {
        return Ok(());
    }
    let Block::Leaf(names) = Block::parse(&bytes)? else { return Ok(()) };
    let (mut low, mut high) = (Vec::new(), Vec::new());
    for entry in names {
        let entry = entry?.to_dentry();
        let side = child(node, hash(ino, &entry.name)) & 1;
        if side == 0 { low.push(entry) } else { high.push(entry) }
    }
    let t = Transaction::new()
        .put(name::dirblock(ino, node), version, encode_block(&DirBlock::Split)?)
        .set(name::dirblock(ino, node << 1), encode_block(&DirBlock::Leaf(low))?)
        .set(name::dirblock(ino, node << 1 | 1), encode_block(&DirBlock::Leaf(high))?);
    match cache.transact(t).await {
        Ok(()) | Err(CacheError::Conflict | CacheError::Busy | CacheError::Unknown) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Joins leaf `node`, grown small, with its sibling if that is small too, and so on upwards while
/// leaves are empty. Only tidies up: names stay as they are, and whatever fails is left for later.
pub(crate) async fn join<C: Cache>(cache: &C, ino: u64, mut node: u32) {
    while node > TRIE_ROOT {
        match join_once(cache, ino, node).await {
            Ok(true) => node >>= 1,
            _ => return,
        }
    }
}

async fn join_once<C: Cache>(cache: &C, ino: u64, node: u32) -> Result<bool, Errno> {
    let (low, high, parent) = (node & !1, node | 1, node >> 1);
    let (mut a, mut b, mut p) = (Vec::new(), Vec::new(), Vec::new());
    let parent_version = cache.get(name::dirblock(ino, parent), &mut p).await?;
    let low_version = cache.get(name::dirblock(ino, low), &mut a).await?;
    let high_version = cache.get(name::dirblock(ino, high), &mut b).await?;
    if a.len() + b.len() > LEAF_BYTES / 4 || !low_version.exists() || !high_version.exists() {
        return Ok(false);
    }
    let (Block::Leaf(x), Block::Leaf(y)) = (Block::parse(&a)?, Block::parse(&b)?) else {
        return Ok(false);
    };
    let names: Vec<Dentry> =
        x.chain(y).map(|n| n.map(NameRef::to_dentry)).collect::<Result<_, _>>()?;
    let t = Transaction::new()
        .put(name::dirblock(ino, parent), parent_version, encode_block(&DirBlock::Leaf(names))?)
        .remove(name::dirblock(ino, low), low_version)
        .remove(name::dirblock(ino, high), high_version);
    Ok(cache.transact(t).await.is_ok())
}

/// Whether leaf `node` of this many bytes is worth a [`join`].
pub(crate) fn is_small(node: u32, bytes: usize) -> bool {
    // Joins of an eighth and less: far enough from a split that names coming and going do not
    // split and join by turns.
    node > TRIE_ROOT && bytes < LEAF_BYTES / 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_cover_the_hashes_in_order() {
        for h in [0, 1, u64::MAX, u64::MAX / 3, 1 << 63] {
            let mut node = TRIE_ROOT;
            for _ in 0..DEEPEST {
                assert!(h <= last_hash(node));
                let next = child(node, h);
                assert!(last_hash(next) <= last_hash(node));
                assert_eq!(last_hash(node << 1 | 1), last_hash(node));
                node = next;
            }
            assert_eq!(u64::from(node), 1 << 31 | h >> 33);
        }
    }

    #[test]
    fn positions_are_in_hash_order_and_leave_room_for_the_dots() {
        assert_eq!(position(0), 2);
        assert_eq!(position(u64::MAX), (1 << 63) - 2);
        assert!(position(1 << 40) < position((1 << 40) + 2));
    }
}
