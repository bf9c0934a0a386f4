//! The vfs's objects and requests.
//!
//! An inode number carries its shard in its low bits ([`clustix_ccache::name::Shard::of`]), so a
//! file's inode, directory blocks and pages share a shard. A directory is a binary trie of blocks:
//! trie node 1 is the root; a block that is full becomes [`DirBlock::Split`], and names go on in
//! nodes 2n and 2n+1 by the next bit of their hash. So absence too is a hit on a block, and readdir
//! walks the trie in hash order.

use crate::Answer;
use crate::once::{Operation, Repeat};
use clustix_ccache::name::Name;
use clustix_ccache::set;
use serde::{Deserialize, Serialize};

/// Bytes in a file page.
pub const PAGE_SIZE: usize = 4096;
/// The root directory's inode number.
pub const ROOT: u64 = 1024;
/// Longest name of a directory entry, bytes (NAME_MAX).
pub const NAME_MAX: usize = 255;
/// Longest path, bytes, with its final NUL (PATH_MAX).
pub const PATH_MAX: usize = 4096;
/// Most symbolic links followed in one walk.
pub const SYMLINK_DEPTH: usize = 40;

/// Where a file's pages come from when no node caches them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Backing {
    /// Nowhere: the cluster-cache is all there is.
    CacheOnly,
    /// A device's byte range, through a map object.
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
        /// Inode number of the map.
        map: u64,
    },
    /// Striped over nodes' devices.
    Striped {
        /// Stripe size in pages.
        unit: u32,
        /// Number of stripes.
        width: u16,
    },
}

/// Seconds and nanoseconds since 1970 (`CLOCK_REALTIME`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Time {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds, 0 to 999 999 999.
    pub nsec: u32,
}

/// An inode (set [`set::INODE`]), postcard.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Inode {
    /// File type (`S_IFMT`) and permissions, as st_mode.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names that refer to it.
    pub nlink: u32,
    /// Bytes; for a directory, its entries; for a symbolic link, its target's length.
    pub size: u64,
    /// Last access, change of data, change of the inode.
    pub atime: Time,
    /// Last change of data.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Device number for device files: major << 32 | minor.
    pub rdev: u64,
    /// For a directory: its parent's inode number.
    pub parent: u64,
    /// Nodes that may have it open: bit = node slot. An inode without names lives while any is set.
    pub openers: u16,
    /// Where its pages come from.
    pub backing: Backing,
    /// Runs of pages that may exist, (first, count): ascending, disjoint, not touching, at most
    /// [`MAX_EXTENTS`]. A page outside is a hole and needs no look-up. Pages at or past the size are
    /// left over from a truncation under way; they go before the file may grow again.
    pub extents: Vec<(u32, u32)>,
}

/// Most runs in [`Inode::extents`], so that an inode stays within its set's capacity. When one more
/// is needed the two nearest become one, hole included.
pub const MAX_EXTENTS: usize = 12;
/// Most pages of hole that a join of two runs may take in (256 MiB); a file that would need more is
/// too scattered: ENOSPC.
pub const MAX_JOINED_HOLE: u32 = 1 << 16;
/// Largest file, bytes: pages are counted in 32 bits.
pub const MAX_FILE_SIZE: u64 = (u32::MAX as u64) * PAGE_SIZE as u64;
/// Most names one inode may have (EMLINK past it).
pub const LINK_MAX: u32 = 65_000;

/// File type bits of [`Inode::mode`] (inode(7)).
pub mod mode {
    #![allow(missing_docs)]
    pub const S_IFMT: u32 = 0o170000;
    pub const S_IFSOCK: u32 = 0o140000;
    pub const S_IFLNK: u32 = 0o120000;
    pub const S_IFREG: u32 = 0o100000;
    pub const S_IFBLK: u32 = 0o060000;
    pub const S_IFDIR: u32 = 0o040000;
    pub const S_IFCHR: u32 = 0o020000;
    pub const S_IFIFO: u32 = 0o010000;
    pub const S_ISUID: u32 = 0o4000;
    pub const S_ISGID: u32 = 0o2000;
    pub const S_ISVTX: u32 = 0o1000;
}

impl Inode {
    /// The type bits of the mode.
    pub const fn kind(&self) -> u32 {
        self.mode & mode::S_IFMT
    }
    /// Whether it is a directory.
    pub const fn is_dir(&self) -> bool {
        self.kind() == mode::S_IFDIR
    }
    /// Whether it is a symbolic link.
    pub const fn is_symlink(&self) -> bool {
        self.kind() == mode::S_IFLNK
    }
    /// Whether it is a regular file.
    pub const fn is_regular(&self) -> bool {
        self.kind() == mode::S_IFREG
    }
    /// Units of 512 bytes for st_blocks: an upper bound, from [`Inode::extents`].
    pub fn blocks(&self) -> u64 {
        self.extents.iter().map(|e| e.1 as u64).sum::<u64>() * (PAGE_SIZE as u64 / 512)
    }
}

/// One name in a directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Dentry {
    /// The name's bytes.
    pub name: Vec<u8>,
    /// The inode it refers to.
    pub ino: u64,
    /// That inode's type bits (`S_IFMT`).
    pub kind: u32,
}

/// A block of a directory (set [`set::DIRBLOCK`]), postcard.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum DirBlock {
    /// Names, ascending by hash.
    Leaf(Vec<Dentry>),
    /// Full once: look in trie nodes 2n (hash bit 0) and 2n+1 (hash bit 1).
    Split,
}

/// Object names of the vfs.
pub mod name {
    use super::*;
    /// The inode.
    pub const fn inode(ino: u64) -> Name {
        Name::numbered(set::INODE, ino)
    }
    /// Trie node `node` of directory `ino`.
    pub const fn dirblock(ino: u64, node: u32) -> Name {
        Name::part(set::DIRBLOCK, ino, node)
    }
    /// The target of symbolic link `ino`.
    pub const fn symlink(ino: u64) -> Name {
        Name::numbered(set::SYMLINK, ino)
    }
    /// Page `index` of file `ino`.
    pub const fn page(ino: u64, index: u32) -> Name {
        Name::part(set::PAGE, ino, index)
    }
    /// The state of the whole file system: rewritten by every rename that gives a directory another
    /// parent, so that such renames see each other (no cycles).
    pub const fn superblock() -> Name {
        Name::numbered(set::SUPER, 0)
    }
}

/// On whose behalf.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Credentials {
    /// Effective (file-system) user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Supplementary groups, at most 32.
    pub groups: Vec<u32>,
}

impl Credentials {
    /// The superuser's.
    pub const ROOT: Credentials = Credentials { uid: 0, gid: 0, groups: Vec::new() };
}

/// What [`Request::SetAttr`] changes; `None` leaves a field.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SetAttr {
    /// Permission bits (07777).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Truncate or extend to this size.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<Time>,
    /// Modification time.
    pub mtime: Option<Time>,
    /// Both times to the server's present (utimensat with two UTIME_NOW, utime with NULL): whoever
    /// may write the file may do this, where setting a chosen time takes its owner.
    pub touch: bool,
}

/// A request to the vfs. `dir` is the directory that a relative path starts from (AT_FDCWD is
/// resolved by the caller); absolute paths start from [`ROOT`]. Errors are those of the man page
/// of the system call of the same name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)] // fields are said in the variants' text
pub enum Request {
    /// open(2) with O_CREAT: creates a regular file unless it exists; `exclusive` as O_EXCL;
    /// follows symbolic links unless exclusive. `mode`: umask already applied. Replies the inode
    /// number, with the serving node's opener bit set as by [`Request::Opened`]: the caller has it
    /// open, or says [`Request::Closed`].
    Create { cred: Credentials, dir: u64, path: Vec<u8>, mode: u32, exclusive: bool },
    /// mkdir(2).
    Mkdir { cred: Credentials, dir: u64, path: Vec<u8>, mode: u32 },
    /// mknod(2): FIFO, character or block device, or an empty regular file.
    Mknod { cred: Credentials, dir: u64, path: Vec<u8>, mode: u32, rdev: u64 },
    /// symlink(2).
    Symlink { cred: Credentials, target: Vec<u8>, dir: u64, path: Vec<u8> },
    /// link(2); `follow` a symbolic link at the old path.
    Link { cred: Credentials, old_dir: u64, old: Vec<u8>, new_dir: u64, new: Vec<u8>, follow: bool },
    /// unlink(2), or rmdir(2) if `rmdir`. Replies the inode number if that was its last name and
    /// nodes are still noted as having it open (one that has it not must say [`Request::Closed`]),
    /// else 0.
    Unlink { cred: Credentials, dir: u64, path: Vec<u8>, rmdir: bool },
    /// rename(2); `no_replace` and `exchange` as renameat2(2). Replies as [`Request::Unlink`], for
    /// what was at the new name.
    Rename {
        cred: Credentials,
        old_dir: u64,
        old: Vec<u8>,
        new_dir: u64,
        new: Vec<u8>,
        no_replace: bool,
        exchange: bool,
    },
    /// chmod, chown, truncate, utimensat on an inode already found. The right to change the *size*
    /// is the caller's to check (ftruncate: the descriptor's; truncate: write permission).
    SetAttr { cred: Credentials, ino: u64, attr: SetAttr },
    /// This node has the inode open from now on (sets its opener bit). Not needed while the bit is
    /// set. ENOENT: it was removed since it was found, walk again.
    Opened { ino: u64 },
    /// This node no longer has it open; an inode without names and openers is removed.
    Closed { ino: u64 },
    /// Makes a new file system (root, /dev, /tmp, /proc, /etc), or what of it is not there. Replies 0.
    ///
    Format,
    /// Takes away opener bits of nodes that are not in `live` (bit = slot; 0 before a snapshot) and
    /// removes inodes without names and openers, of those whose primary is the serving node. Replies
    /// how many were removed.
    Orphans { live: u16 },
}

impl Operation for Request {
    fn repeat(&self) -> Repeat {
        match self {
            Request::Create { .. }
            | Request::Mkdir { .. }
            | Request::Mknod { .. }
            | Request::Symlink { .. }
            | Request::Link { .. }
            | Request::Unlink { .. }
            | Request::Rename { .. }
            | Request::SetAttr { .. } => Repeat::ByNumber,
            Request::Opened { .. }
            | Request::Closed { .. }
            | Request::Format
            | Request::Orphans { .. } => Repeat::Harmless,
        }
    }
}

/// The vfs's reply: the inode number concerned, or 0.
pub type Reply = Answer<u64>;
