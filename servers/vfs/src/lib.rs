//! The vfs: one file tree on all nodes, kept in the cluster-cache.
//!
//! Two things in one crate:
//! - a *library* for the read-only side and the hot data path, linked by the personality: [`walk`],
//!   [`dir`] (lookup, readdir), [`permission`], [`file`] (read, write), [`open`]. It reads
//!   cached objects in the caller's own address space; a write is one transaction.
//! - the *server* ([`server`]): what changes names, link counts, attributes and lifetimes.
//!
//! Neither keeps state: all of it is objects of the vfs's class, so any instance on any node serves
//! any file. Every change is an optimistic transaction ([`attempt`]) with a bounded number of
//! retries. The code never holds a host descriptor, path or address.
//!
//! Invariants, checked by [`fsck`]: every name leads to an inode; an inode's `nlink` is its number of
//! names (for a directory 2 plus its subdirectories); a directory's `size` is its number of names and
//! its `parent` the directory that names it; the tree has no cycle; a page exists only within its
//! inode's extents.

#![forbid(unsafe_code)]

pub mod attempt;
pub mod dir;
mod edit;
mod extent;
pub mod file;
pub mod fsck;
pub mod mkfs;
mod number;
pub mod object;
mod op;
pub mod open;
pub mod permission;
pub mod server;
pub mod walk;

pub use dir::{Entry, lookup, readdir};
pub use file::{Written, read, write};
pub use fsck::fsck;
pub use mkfs::mkfs;
pub use permission::may;
pub use server::{handle, handle_once, main};
pub use walk::{Walked, path_of, walk};

use clustix_ccache::cache::Cache;
use clustix_proto::Answer;
use clustix_proto::errno::{EINVAL, EIO};

/// The inode `ino` as it is now: ENOENT if there is none (any more). One cached read.
pub async fn stat<C: Cache>(cache: &C, ino: u64) -> Answer<Walked> {
    object::inode(cache, ino).await?.ok_or(clustix_proto::errno::ENOENT)
}

/// The target of symbolic link `ino`; EINVAL if it is something else.
pub async fn readlink<C: Cache>(cache: &C, ino: u64) -> Answer<Vec<u8>> {
    let found = stat(cache, ino).await?;
    if !found.inode.is_symlink() {
        return Err(EINVAL);
    }
    let mut target = Vec::new();
    let version = cache.get(clustix_proto::vfs::name::symlink(ino), &mut target).await?;
    if !version.exists() { Err(EIO) } else { Ok(target) }
}
