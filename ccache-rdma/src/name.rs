//! Names of objects: set 16 bits, shard 16, id 96.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

/// Shards of a cluster. The shard in a name never changes.
pub const SHARDS: u16 = 1024;

/// One of the cluster's [`SHARDS`] shards.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Shard(pub u16);

impl Shard {
    /// The shard that a number which carries its own shard (an inode's, a PID) belongs to.
    pub const fn of(number: u64) -> Shard {
        Shard((number % SHARDS as u64) as u16)
    }
}

/// The name of an object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Name(pub u128);

impl Name {
    /// Builds a name; `id` keeps its low 96 bits.
    pub const fn new(set: u16, shard: Shard, id: u128) -> Name {
        Name((set as u128) << 112 | (shard.0 as u128) << 96 | (id & ((1 << 96) - 1)))
    }
    /// The name of object `number` of a set whose numbers carry their shard ([`Shard::of`]).
    pub const fn numbered(set: u16, number: u64) -> Name {
        Name::new(set, Shard::of(number), number as u128)
    }
    /// The name of part `index` of object `number`, in the same shard as that object.
    pub const fn part(set: u16, number: u64, index: u32) -> Name {
        Name::new(set, Shard::of(number), (number as u128) << 32 | index as u128)
    }
    /// The set.
    pub const fn set(self) -> u16 {
        (self.0 >> 112) as u16
    }
    /// The shard.
    pub const fn shard(self) -> Shard {
        Shard((self.0 >> 96) as u16)
    }
    /// The id, 96 bits.
    pub const fn id(self) -> u128 {
        self.0 & ((1 << 96) - 1)
    }
    /// For a name made by [`Name::part`]: the number.
    pub const fn part_number(self) -> u64 {
        (self.id() >> 32) as u64
    }
    /// For a name made by [`Name::part`]: the index.
    pub const fn part_index(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match crate::set::descriptor(self.set()) {
            Some(d) => write!(f, "{}/{}/{:x}", d.name, self.shard().0, self.id()),
            None => write!(f, "set{}/{}/{:x}", self.set(), self.shard().0, self.id()),
        }
    }
}
/// A map by what is short and made of words.
pub type Map<K, T> = HashMap<K, T, BuildHasherDefault<NameHasher>>;
/// A map by names.
pub type Names<T> = Map<Name, T>;

/// Hashes what is short and made of words: names, slots. It mixes as [`crate::layout::hash`] does,
/// which chooses buckets of published entries too; whoever can choose names can fill those as well,
/// so that a keyed hash here would guard nothing.
#[derive(Default)]
pub struct NameHasher(u64);

impl Hasher for NameHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }
    fn write_u64(&mut self, word: u64) {
        let a = u128::from(self.0.rotate_left(23) ^ word ^ 0x9e37_79b9_7f4a_7c15)
            * 0xa076_1d64_78bd_642f;
        self.0 = (a >> 64) as u64 ^ a as u64;
    }
    fn write_u128(&mut self, n: u128) {
        self.write_u64(n as u64);
        self.write_u64((n >> 64) as u64);
    }
}
