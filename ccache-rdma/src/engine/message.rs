//! What engines tell each other. Steady state needs none of it: creating, removing, waiting and
//! views do.

use super::ask::Published;
use crate::cache::CacheError;
use crate::name::Name;
use crate::name::SHARDS;
use serde::{Deserialize, Serialize};

/// A set of shards.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ShardSet(Vec<u64>);

impl ShardSet {
    const WORDS: usize = SHARDS as usize / 64;

    pub(crate) fn none() -> ShardSet {
        ShardSet(vec![0; Self::WORDS])
    }
    pub(crate) fn contains(&self, shard: u16) -> bool {
        self.0.get(usize::from(shard / 64)).is_some_and(|w| w & 1 << (shard % 64) != 0)
    }
    pub(crate) fn insert(&mut self, shard: u16) {
        if let Some(w) = self.0.get_mut(usize::from(shard / 64)) {
            *w |= 1 << (shard % 64);
        }
    }
    pub(crate) fn union(&mut self, other: &ShardSet) {
        for (a, b) in self.0.iter_mut().zip(&other.0) {
            *a |= b;
        }
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|w| *w == 0)
    }
    pub(crate) fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (0..SHARDS).filter(|s| self.contains(*s))
    }
}

/// A message.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    /// To a primary: a slot for this name, please. Asking again is harmless.
    Allocate { ticket: Ticket, name: Name, len: u32 },
    /// The slot that the name is bound to.
    Allocated { ticket: Ticket, result: Result<u32, CacheError> },
    /// To a primary: this slot may be free now (removed, or never written). A hint.
    Free { name: Name, slot: u32 },
    /// To a primary: tell this node when the object changes, once.
    Watch { ticket: Ticket, name: Name },
    /// The watch stands.
    Watching { ticket: Ticket },
    /// To a primary: a write of this waitable object has been committed.
    Changed { name: Name },
    /// To a watcher.
    Notify { name: Name },
    /// To the holder of a word: another node waits for it (rule 12). A hint.
    GiveBack { name: Name },
    /// The sender has ended its write of an object for which the receiver waits.
    Ended { name: Name },
    /// To a node: what does your slab hold of this volatile object?
    Ask { ticket: Ticket, name: Name },
    /// What it holds.
    Told { ticket: Ticket, published: Published },
    /// A survivor has reached this step of the change to the view with this epoch.
    Confirm {
        epoch: u64,
        step: u8,
        /// Shards whose primary changed since this node last settled (in step 1).
        affected: ShardSet,
        /// Slots of nodes gone since then (in step 1).
        gone: u16,
        /// Epoch of the view in which it last settled.
        settled: u64,
    },
}

/// What an answer is for: an operation of the asker's, one attempt of it, one part of that.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ticket {
    pub(crate) op: u64,
    pub(crate) attempt: u32,
    pub(crate) part: u16,
}

impl Message {
    pub(crate) fn encode(&self) -> Vec<u8> {
        // Serialising these types into memory cannot fail; an empty message is ignored.
        postcard::to_stdvec(self).unwrap_or_default()
    }
    pub(crate) fn decode(bytes: &[u8]) -> Option<Message> {
        let m = match postcard::take_from_bytes(bytes) {
            Ok((m, [])) => m,
            _ => return None,
        };
        match &m {
            Message::Confirm { affected, .. } if affected.0.len() != ShardSet::WORDS => None,
            _ => Some(m),
        }
    }
}
