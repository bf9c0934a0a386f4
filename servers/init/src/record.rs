//! What init writes down in the cluster-cache: nodes, and domains that were given up.

use clustix_ccache::name::Name;
use clustix_ccache::set;
use serde::{Deserialize, Serialize};

/// A node (set [`set::NODE`], number = slot), postcard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Node {
    /// Its latest incarnation.
    pub incarnation: u64,
    /// When that started, `CLOCK_REALTIME` seconds.
    pub started: i64,
}

/// A protection domain that died too often and is not started any more.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Verdict {
    /// Its role.
    pub role: String,
    /// Why, in words.
    pub text: String,
    /// When, `CLOCK_REALTIME` seconds.
    pub at: i64,
    /// In which incarnation of the node.
    pub incarnation: u64,
}

/// The verdicts on a node's domains (set [`set::RECORD`]), postcard of a `Vec<Verdict>`.
pub const fn verdicts(node: u8) -> Name {
    Name::numbered(set::RECORD, node as u64)
}

/// The record of a node.
pub const fn node(slot: u8) -> Name {
    Name::numbered(set::NODE, slot as u64)
}

/// Most verdicts kept per node, and the longest text of one.
pub const MOST_VERDICTS: usize = 16;
