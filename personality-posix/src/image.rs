//! Images of files as sealed memory regions, for exec and private file mappings.

use clustix_ccache::cache::Version;
use clustix_pd::Region;
use std::sync::Mutex;

/// The images that this node keeps, latest last.
#[derive(Default)]
pub struct Images {
    /// (inode, its version, its image).
    kept: Mutex<Vec<(u64, Version, Region)>>,
}

impl Images {
    /// Number of images kept.
    pub fn len(&self) -> usize {
        self.kept.lock().map_or(0, |k| k.len())
    }
    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
