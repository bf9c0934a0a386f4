//! A node's arena: the mapped regions of [`crate::layout`], and access to them by the CPU.
//!
//! Everything in it may change under the reader. Words are read as atomics, payloads are copied
//! out, then validated, then used.

pub mod published;

use crate::layout::{self, REGIONS, RegionId};
use clustix_pd::Region;
use std::sync::atomic::{AtomicU64, Ordering};

/// All regions of one node's arena. Clones share them.
#[derive(Clone)]
pub struct Arena {
    regions: [Region; REGIONS],
}

impl Arena {
    /// From mapped regions, by [`RegionId::index`]; `None` if one is too short.
    pub fn new(regions: [Region; REGIONS]) -> Option<Arena> {
        RegionId::all()
            .all(|id| regions[id.index()].len() as u64 >= id.len())
            .then_some(Arena { regions })
    }

    /// An arena of this process's own, all zeroes, sparse: for tests and for a lone node.
    pub fn anonymous() -> std::io::Result<Arena> {
        let make = |i: usize| {
            let id = RegionId::all().nth(i).ok_or(std::io::ErrorKind::InvalidInput)?;
            Region::anonymous(id.len() as usize)
        };
        let regions = [make(0)?, make(1)?, make(2)?, make(3)?, make(4)?, make(5)?];
        Ok(Arena { regions })
    }

    /// A region.
    pub fn region(&self, id: RegionId) -> &Region {
        &self.regions[id.index()]
    }

    /// The word at a byte offset. Offsets come from [`crate::layout`]; one outside of the region or
    /// misaligned gives the region's first word, which nothing depends on.
    pub fn word(&self, id: RegionId, offset: u64) -> &AtomicU64 {
        let words = self.region(id).words();
        debug_assert!(offset.is_multiple_of(8) && offset / 8 < words.len() as u64);
        words.get((offset / 8) as usize).unwrap_or(&words[0])
    }

    /// Reads a control word.
    pub fn control(&self, offset: u64) -> u64 {
        self.word(RegionId::Control, offset).load(Ordering::Acquire)
    }

    /// Writes a control word that only this node's CPU writes.
    pub fn set_control(&self, offset: u64, value: u64) {
        self.word(RegionId::Control, offset).store(value, Ordering::Release);
    }

    /// Stamps every region; the node's first act.
    pub fn stamp(&self) {
        for id in RegionId::all() {
            self.word(id, 0).store(layout::MAGIC, Ordering::Release);
        }
    }
}
