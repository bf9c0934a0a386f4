//! Which nodes have an inode open, and the end of inodes without names.
//!
//! An inode carries one bit per node slot. A node sets its bit before it relies on the inode staying
//! ([`opened`]) and may leave it set after its last close, so that opening the file again costs
//! nothing: [`Openers`] keeps the count on the node's side and says when the server must be told.
//! An inode with neither name nor opener is in its final state: nobody can open it any more, and
//! whoever finds it may remove it ([`reap`]).

use crate::attempt::{Stop, retry, transact};
use crate::object::{self, Block};
use crate::walk::Walked;
use crate::{dir, file};
use clustix_ccache::cache::{Cache, Expect, Transaction, Write};
use clustix_ccache::set;
use clustix_proto::Answer;
use clustix_proto::errno::{EAGAIN, ENOENT};
use clustix_proto::vfs::{Inode, name};
use std::collections::{BTreeMap, VecDeque};

fn is_final(inode: &Inode) -> bool {
    inode.nlink == 0 && inode.openers == 0
}

/// Sets this node's opener bit; replies the inode number. ENOENT: it was removed.
pub async fn opened<C: Cache>(cache: &C, ino: u64) -> Answer<u64> {
    change(cache, ino, |openers| openers | 1 << (cache.node() & 15)).await?.ok_or(ENOENT)?;
    Ok(ino)
}

/// Clears this node's opener bit, and removes the inode if nothing holds it any more.
pub async fn closed<C: Cache>(cache: &C, ino: u64) -> Answer<u64> {
    let inode = change(cache, ino, |openers| openers & !(1 << (cache.node() & 15))).await?;
    if inode.is_some_and(|i| is_final(&i)) {
        reap(cache, ino).await?;
    }
    Ok(0)
}

/// Changes the opener bits; the inode after that, `None` if it was in its final state or gone.
async fn change<C: Cache>(cache: &C, ino: u64, bits: impl Fn(u16) -> u16) -> Answer<Option<Inode>> {
    retry(async || {
        let Some(Walked { mut inode, version, .. }) = object::inode(cache, ino).await? else {
            return Ok::<_, Stop>(None);
        };
        if is_final(&inode) {
            return Ok(None);
        }
        let new = bits(inode.openers);
        if new != inode.openers {
            inode.openers = new;
            let data = object::encode_inode(&inode)?;
            transact(cache, Transaction::new().put(name::inode(ino), version, data)).await?;
        }
        Ok(Some(inode))
    })
    .await
}

/// Removes inode `ino`, in bounded steps, if it has neither name nor opener; else does nothing.
pub async fn reap<C: Cache>(cache: &C, ino: u64) -> Answer<()> {
    let Some(Walked { inode, .. }) = object::inode(cache, ino).await? else { return Ok(()) };
    if !is_final(&inode) {
        return Ok(());
    }
    if inode.is_dir() {
        remove_blocks(cache, ino).await?;
    } else {
        file::trim(cache, ino).await?;
    }
    retry(async || {
        let Some(Walked { inode, version, .. }) = object::inode(cache, ino).await? else {
            return Ok::<_, Stop>(());
        };
        if !is_final(&inode) || !inode.extents.is_empty() {
            return Ok(());
        }
        let mut t = Transaction::new().remove(name::inode(ino), version);
        if inode.is_symlink() {
            t.writes.push(Write { name: name::symlink(ino), expect: Expect::Any, data: None });
        }
        transact(cache, t).await
    })
    .await
}

/// Removes the blocks of an empty directory that nobody can add to, children before their parents so
/// that what is left is always reached from the root.
async fn remove_blocks<C: Cache>(cache: &C, ino: u64) -> Answer<()> {
    let mut path = vec![dir::TRIE_ROOT];
    let mut bytes = Vec::new();
    // A trie is never larger than what was once written to it; the bound only ends a corrupt one.
    for _ in 0..1u32 << 22 {
        let Some(&node) = path.last() else { return Ok(()) };
        let block = name::dirblock(ino, node);
        let version = cache.get(block, &mut bytes).await?;
        if version.exists() && matches!(Block::parse(&bytes), Ok(Block::Split)) {
            let mut child = Vec::new();
            let mut below = None;
            for c in [node << 1, node << 1 | 1] {
                if node < 1 << 31 && cache.get(name::dirblock(ino, c), &mut child).await?.exists() {
                    below = Some(c);
                    break;
                }
            }
            if let Some(c) = below {
                path.push(c);
                continue;
            }
        }
        if version.exists() {
            let gone = Write { name: block, expect: Expect::Any, data: None };
            let t = Transaction { reads: Vec::new(), writes: vec![gone] };
            retry(async || transact(cache, t.clone()).await).await?;
        }
        path.pop();
    }
    Err(EAGAIN)
}

/// Goes through all inodes whose primary is on this node: takes away opener bits of nodes that are not
/// in `live` (bit = slot; 0: nobody has anything open, as before a snapshot), removes what is left
/// without names and openers, and pages past the ends of files. Replies how many were removed. Safe beside anything else, as long as
/// a node that is not in `live` stays away meanwhile.
pub async fn orphans<C: Cache>(cache: &C, live: u16) -> Answer<u64> {
    orphans_beside(cache, async || Ok(live)).await
}

/// As [`orphans`], where nodes may join meanwhile: `live` is asked again for each inode that has a bit
/// of a node outside of the last answer, after the bit was seen. A node joins before it opens anything.
pub async fn orphans_beside<C: Cache>(
    cache: &C,
    mut live: impl AsyncFnMut() -> Answer<u16>,
) -> Answer<u64> {
    let mut now = live().await?;
    let mut after = None;
    let mut removed = 0;
    loop {
        let page = cache.list(set::INODE, after).await?;
        let Some((last, _)) = page.last() else { return Ok(removed) };
        after = Some(*last);
        for (object, _) in page {
            let ino = object.id() as u64;
            let Some(Walked { inode, .. }) = object::inode(cache, ino).await? else { continue };
            let mut gone = inode.openers & !now;
            if gone != 0 {
                now = live().await?;
                gone &= !now;
                change(cache, ino, |openers| openers & !gone).await?;
            }
            if inode.nlink == 0 && inode.openers & !gone == 0 {
                reap(cache, ino).await?;
                removed += 1;
            } else if file::has_left_over(&inode) {
                file::trim(cache, ino).await?;
            }
        }
    }
}

/// What the server must be told before a file is used as open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opening {
    /// Nothing: this node is noted already.
    Noted,
    /// Call `Opened`, then [`Openers::noted`] (or [`Openers::close`] if that failed).
    Tell,
    /// A `Closed` or another thread's `Opened` is under way: let it end and ask again.
    Wait,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Telling,
    Noted,
    Closing,
}

/// A node's own count of what it has open: kept by the personality, beside its descriptors.
///
/// Inodes that were closed linger, noted at the server, up to a bound; the personality calls `Closed`
/// for what [`Openers::close`] and [`Openers::unnamed`] return, and now and then for those of
/// [`Openers::lingering`] whose inode has lost its last name.
#[derive(Debug, Default)]
pub struct Openers {
    open: BTreeMap<u64, (u32, Phase)>,
    /// Closed, oldest first; may name inodes that were opened again.
    closed: VecDeque<u64>,
}

impl Openers {
    /// Most inodes that linger.
    pub const LINGERING: usize = 4096;

    /// One more open of `ino`. Counts it unless the answer is [`Opening::Wait`]. `noted`: the inode,
    /// as just read, has this node's bit set.
    pub fn open(&mut self, ino: u64, noted: bool) -> Opening {
        let first = (0, if noted { Phase::Noted } else { Phase::Telling });
        let known = self.open.contains_key(&ino);
        let entry = self.open.entry(ino).or_insert(first);
        match entry.1 {
            Phase::Noted => {
                entry.0 += 1;
                Opening::Noted
            }
            Phase::Telling if !known => {
                entry.0 += 1;
                Opening::Tell
            }
            Phase::Telling | Phase::Closing => Opening::Wait,
        }
    }

    /// The server has noted `ino`.
    pub fn noted(&mut self, ino: u64) {
        if let Some(e) = self.open.get_mut(&ino) {
            e.1 = Phase::Noted;
        }
    }

    /// One open of `ino` less. Returns an inode to call `Closed` for, then [`Openers::gone`].
    /// `nameless`: it is known that `ino` has no name left.
    pub fn close(&mut self, ino: u64, nameless: bool) -> Option<u64> {
        let entry = self.open.get_mut(&ino)?;
        entry.0 = entry.0.saturating_sub(1);
        if entry.0 > 0 {
            return None;
        }
        match entry.1 {
            // `Opened` failed: the server knows of nothing.
            Phase::Telling => {
                self.open.remove(&ino);
                None
            }
            Phase::Noted if nameless => self.unnamed(ino),
            Phase::Noted => {
                self.closed.push_back(ino);
                self.evict()
            }
            Phase::Closing => None,
        }
    }

    fn evict(&mut self) -> Option<u64> {
        while self.closed.len() > Self::LINGERING {
            let oldest = self.closed.pop_front()?;
            if let Some(e) = self.unnamed(oldest) {
                return Some(e);
            }
        }
        None
    }

    /// `ino` lost its last name: returns it if it only lingers, to call `Closed` for, then
    /// [`Openers::gone`].
    pub fn unnamed(&mut self, ino: u64) -> Option<u64> {
        let entry = self.open.get_mut(&ino).filter(|e| *e == &(0, Phase::Noted))?;
        entry.1 = Phase::Closing;
        Some(ino)
    }

    /// The server has answered `Closed`.
    pub fn gone(&mut self, ino: u64) {
        self.open.remove(&ino);
    }

    /// How many opens of `ino` there are.
    pub fn count(&self, ino: u64) -> u32 {
        self.open.get(&ino).map_or(0, |e| e.0)
    }

    /// Inodes that are noted at the server and not open: those whose inode has no name left should be
    /// given to [`Openers::unnamed`].
    pub fn lingering(&self) -> impl Iterator<Item = u64> + '_ {
        self.open.iter().filter(|e| *e.1 == (0, Phase::Noted)).map(|e| *e.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_linger_and_are_told_once() {
        let mut o = Openers::default();
        assert_eq!(o.open(7, false), Opening::Tell);
        assert_eq!(o.open(7, false), Opening::Wait);
        o.noted(7);
        assert_eq!(o.open(7, true), Opening::Noted);
        assert_eq!(o.close(7, false), None);
        assert_eq!(o.unnamed(7), None, "still open");
        assert_eq!(o.close(7, false), None);
        assert_eq!(o.lingering().collect::<Vec<_>>(), [7]);
        assert_eq!(o.open(7, true), Opening::Noted);
        assert_eq!(o.close(7, true), Some(7));
        assert_eq!(o.open(7, true), Opening::Wait, "while Closed is under way");
        o.gone(7);
        assert_eq!(o.open(7, false), Opening::Tell);
        assert_eq!(o.close(7, false), None);
        assert_eq!(o.count(7), 0);
        assert_eq!(o.open(7, false), Opening::Tell, "Opened had failed");
    }

    #[test]
    fn lingering_is_bounded() {
        let mut o = Openers::default();
        let mut told = 0;
        for ino in 0..Openers::LINGERING as u64 + 100 {
            o.open(ino, true);
            if let Some(old) = o.close(ino, false) {
                o.gone(old);
                told += 1;
            }
        }
        assert_eq!(told, 100);
        assert_eq!(o.lingering().count(), Openers::LINGERING);
        // Opening and closing one file for ever does not fill the queue.
        for _ in 0..3 * Openers::LINGERING {
            o.open(5000, true);
            if let Some(old) = o.close(5000, false) {
                o.gone(old);
            }
        }
        assert!(o.closed.len() <= Openers::LINGERING);
    }
}
