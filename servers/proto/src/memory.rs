//! The memory server's objects and requests: every mapping of every address space.

use crate::Answer;
use crate::once::{Operation, Repeat};
use clustix_ccache::name::Name;
use clustix_ccache::set;
use serde::{Deserialize, Serialize};

/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// Lowest address an app may map (mmap_min_addr).
pub const LOWEST: u64 = 0x1_0000;
/// First address that is not the app's: the stub, its window and stacks stand above.
pub const HIGHEST: u64 = 0x7e00_0000_0000;
/// Addresses that the server chooses end here, top-down.
pub const TOP: u64 = 0x7dff_ffff_f000;
/// Most areas of one address space.
pub const MAX_AREAS: usize = 1024;

/// What an area's pages are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Source {
    /// Zero-filled, private.
    Anonymous,
    /// The program break's.
    Break,
    /// The stack's.
    Stack,
    /// A private copy of a file, from this page on.
    File {
        /// Inode.
        ino: u64,
        /// Byte offset, a multiple of 4096.
        offset: u64,
    },
}

/// A mapping: `start..end`, page-aligned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Area {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4.
    pub prot: u8,
    /// What it shows.
    pub source: Source,
}

/// An address space (set [`set::AREAS`]), postcard.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Areas {
    /// Sorted, not overlapping.
    pub areas: Vec<Area>,
    /// Start of the program break.
    pub brk_start: u64,
    /// Program break.
    pub brk: u64,
}

/// The name of an address space.
pub const fn areas(space: u32) -> Name {
    Name::numbered(set::AREAS, space as u64)
}

/// What the personality must order the stub to do; in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Step {
    /// munmap `start..end`.
    Unmap(u64, u64),
    /// Map this area (MAP_FIXED_NOREPLACE, private).
    Map(Area),
    /// mprotect `start..end`.
    Protect(u64, u64, u8),
    /// Copy `len` bytes within the address space, `from`, `to`, `len`: both are mapped and allow it.
    Copy(u64, u64, u64),
}

/// A request to the memory server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)] // fields are what the request's doc says
pub enum Request {
    /// mmap(2): at `hint` exactly if `fixed` (`no_replace`: EEXIST if something is there), else where
    /// the server chooses, near the hint. Replies the address.
    Map { space: u32, hint: u64, len: u64, prot: u8, source: Source, fixed: bool, no_replace: bool },
    /// munmap(2).
    Unmap { space: u32, start: u64, len: u64 },
    /// mprotect(2).
    Protect { space: u32, start: u64, len: u64, prot: u8 },
    /// brk(2): replies the new break, or the old one if it can't move.
    Break { space: u32, to: u64 },
    /// mremap(2); `may_move` as MREMAP_MAYMOVE, `to` as MREMAP_FIXED's address. Replies the address.
    ///
    Remap { space: u32, start: u64, old_len: u64, new_len: u64, may_move: bool, to: Option<u64> },
    /// A new, empty address space (exec): these areas, this break.
    Replace { space: u32, areas: Areas },
    /// fork: `child` gets a copy of `parent`'s.
    Fork { parent: u32, child: u32 },
    /// The address space is gone.
    Remove { space: u32 },
}

impl Operation for Request {
    fn repeat(&self) -> Repeat {
        match self {
            Request::Map { .. }
            | Request::Unmap { .. }
            | Request::Protect { .. }
            | Request::Break { .. }
            | Request::Remap { .. } => Repeat::ByNumber,
            // Nobody else works on that address space meanwhile.
            Request::Replace { .. } | Request::Fork { .. } | Request::Remove { .. } => {
                Repeat::Harmless
            }
        }
    }
}

/// The memory server's reply.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mapped {
    /// The address, or the break.
    pub addr: u64,
    /// What the stub must do.
    pub steps: Vec<Step>,
}

/// As every server's.
pub type Response = Answer<Mapped>;
