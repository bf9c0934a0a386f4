//! Where everything stands in a node's arena.
//!
//! The arena is one memory region per [`Class`] of sets and one for control words. Every node's
//! has the same layout, computed from constants alone, so that an address on one replica is the
//! address on all. Regions are sparse: what was never touched costs no memory.
//!
//! A class's region holds first what the node publishes for its own readers (buckets, entries,
//! copies) and the high-water marks, then, for each shard and each set of the class, a sub-region:
//! directory, slot headers, payloads.

use crate::name::{Name, SHARDS, Shard};
use crate::set::{CLASSES, Class, SETS, SetDescriptor};
use crate::view::MAX_NODES;
use std::sync::LazyLock;

/// Alignment of the parts of a sub-region, bytes.
pub const PAGE: u64 = 4096;
/// First word of every region: says what it is and in which version of this layout.
pub const MAGIC: u64 = 0x434c_5553_5449_5801;

/// A region of the arena.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RegionId {
    /// Objects of one class.
    Class(Class),
    /// Counters, gates, mailboxes, redo records.
    Control,
}

/// Number of regions.
pub const REGIONS: usize = CLASSES + 1;

impl RegionId {
    /// All, by index.
    pub fn all() -> impl Iterator<Item = RegionId> {
        Class::ALL.into_iter().map(RegionId::Class).chain([RegionId::Control])
    }
    /// Index, 0 to [`REGIONS`] − 1.
    pub const fn index(self) -> usize {
        match self {
            RegionId::Class(c) => c as usize,
            RegionId::Control => CLASSES,
        }
    }
    /// Name of the memory region in the system description: `arena-vfs`, …, `arena-control`.
    pub fn name(self) -> String {
        match self {
            RegionId::Class(c) => format!("arena-{}", c.name()),
            RegionId::Control => "arena-control".into(),
        }
    }
    /// Whether the region is empty (none is).
    pub fn is_empty(self) -> bool {
        false
    }
    /// Length in bytes.
    pub fn len(self) -> u64 {
        match self {
            RegionId::Class(c) => class_len(c),
            RegionId::Control => control::LEN,
        }
    }
}

/// The control region: byte offsets.
pub mod control {
    use super::{MAX_NODES, SHARDS};

    /// [`super::MAGIC`].
    pub const MAGIC: u64 = 0;
    /// End of this node's lease, `CLOCK_MONOTONIC` ns; checked by every hit, written by ccache.
    pub const LEASE: u64 = 64;
    /// Epoch of the view in force here, for readers; written by ccache.
    pub const VIEW_EPOCH: u64 = 128;
    /// Bell of the node's ccache (a 32-bit futex word): rung for a message in a mailbox.
    pub const BELL: u64 = 192;
    /// Heartbeat words, one line each, by the slot of the node that beats. Written by peers.
    pub const HEARTBEATS: u64 = 4096;
    /// Gates (rule 33), one line each, by peer: the incarnation let in, plus 1; 0 is closed.
    pub const GATES: u64 = 8192;
    /// Busy words (rule 33), one line each, by peer: not 0 while it acts here.
    pub const BUSY: u64 = 12_288;
    /// Shards' epochs (rule 26): every entry published under another one is void.
    pub const SHARD_EPOCHS: u64 = 16_384;
    /// Shards' primaries in the view in force here, for readers: slot plus 1, 0 for none. Written
    /// by ccache.
    pub const PRIMARIES: u64 = 32_768;
    /// Validity counters.
    pub const COUNTERS: u64 = 65_536;
    /// Number of validity counters; a power of two.
    pub const COUNTER_COUNT: u64 = 65_536;
    /// Mailboxes, one per sender.
    pub const MAILBOXES: u64 = 1 << 20;
    /// Length of one mailbox: a line each for tail and head, then the ring.
    pub const MAILBOX_LEN: u64 = 128 * 1024;
    /// Ring bytes of a mailbox.
    pub const MAILBOX_RING: u64 = MAILBOX_LEN - 4096;
    /// Longest message, bytes.
    pub const MAX_MESSAGE: usize = 16 * 1024;
    /// Redo records, [`REDO_RECORDS`] per writing node.
    pub const REDO: u64 = 16 << 20;
    /// Records per writing node: its transactions under way at once.
    pub const REDO_RECORDS: u64 = 32;
    /// Length of one record; holds [`crate::cache::MAX_BYTES`] of payload and the heads.
    pub const REDO_LEN: u64 = 256 * 1024;
    /// Length of the region.
    pub const LEN: u64 = REDO + MAX_NODES as u64 * REDO_RECORDS * REDO_LEN;

    /// The heartbeat word that `slot` writes.
    pub const fn heartbeat(slot: u8) -> u64 {
        HEARTBEATS + slot as u64 * 64
    }
    /// The gate for `peer`.
    pub const fn gate(peer: u8) -> u64 {
        GATES + peer as u64 * 64
    }
    /// The busy word of `peer`.
    pub const fn busy(peer: u8) -> u64 {
        BUSY + peer as u64 * 64
    }
    /// The epoch word of a shard.
    pub const fn shard_epoch(shard: super::Shard) -> u64 {
        SHARD_EPOCHS + shard.0 as u64 * 8
    }
    /// The word that names a shard's primary.
    pub const fn primary(shard: super::Shard) -> u64 {
        PRIMARIES + shard.0 as u64 * 8
    }
    /// The validity counter with this index (taken modulo their number).
    pub const fn counter(index: u64) -> u64 {
        COUNTERS + (index % COUNTER_COUNT) * 8
    }
    /// The mailbox that `sender` writes.
    pub const fn mailbox(sender: u8) -> u64 {
        MAILBOXES + sender as u64 * MAILBOX_LEN
    }
    /// Redo record `index` of `writer`.
    pub const fn redo(writer: u8, index: u64) -> u64 {
        REDO + (writer as u64 * REDO_RECORDS + index) * REDO_LEN
    }

    const _: () = assert!(SHARD_EPOCHS + SHARDS as u64 * 8 <= PRIMARIES);
    const _: () = assert!(PRIMARIES + SHARDS as u64 * 8 <= COUNTERS);
    const _: () = assert!(COUNTERS + COUNTER_COUNT * 8 <= MAILBOXES);
    const _: () = assert!(MAILBOXES + MAX_NODES as u64 * MAILBOX_LEN <= REDO);
    const _: () = assert!(HEARTBEATS + MAX_NODES as u64 * 64 <= GATES);
    const _: () = assert!(GATES + MAX_NODES as u64 * 64 <= BUSY);
    const _: () = assert!(BUSY + MAX_NODES as u64 * 64 <= SHARD_EPOCHS);
}

/// A hash of a name that is the same on all nodes: chooses counter, bucket and directory bucket.
pub const fn hash(name: Name) -> u64 {
    let (lo, hi) = (name.0 as u64, (name.0 >> 64) as u64);
    // Two rounds of multiply and fold: names differ in few low bits.
    let a = (lo ^ 0x9e37_79b9_7f4a_7c15) as u128 * 0xa076_1d64_78bd_642f;
    let a = (a >> 64) as u64 ^ a as u64;
    let b = (a ^ hi) as u128 * 0xe703_7ed1_a0b4_28db;
    (b >> 64) as u64 ^ b as u64
}

/// Published entries (rules 24–27): byte offsets in a class's region.
///
/// What a hit costs is waiting for memory, and for the page tables of memory. So a tag is one byte,
/// and stays in the caches; it says by its place where its entry is; entries stand close together;
/// and a small payload stands right behind its entry. A hit then waits for memory about once.
pub mod published {
    /// How many buckets are in use: their number, a power of two, minus 1. Written by ccache, which
    /// makes it larger as it publishes more.
    pub const MASK: u64 = 64;
    /// [`MASK`] at first.
    pub const FIRST_MASK: u64 = (1 << 3) - 1;
    /// Buckets: one line of tags each, by the numbers of their entries. 0 is free.
    pub const TAGS: u64 = 4096;
    /// Most buckets.
    pub const BUCKET_COUNT: u64 = 1 << 13;
    /// Tags in a bucket.
    pub const WAYS: u64 = 64;
    /// Entries, [`ENTRY_LEN`] each.
    pub const ENTRIES: u64 = TAGS + ENTRY_COUNT;
    /// Number of entries.
    pub const ENTRY_COUNT: u64 = BUCKET_COUNT * WAYS;
    /// Payloads of at most this many bytes stand in their entries.
    pub const INLINE: usize = 256;
    /// Words of an entry before that: seq, name low, name high, version, c0, kept above length,
    /// shard epoch, place.
    pub const WORDS: u64 = 8;
    /// Length of an entry.
    pub const ENTRY_LEN: u64 = WORDS * 8 + INLINE as u64;
    /// Where the high-water marks of the class's sets begin; copies come after them.
    pub const MARKS: u64 = ENTRIES + ENTRY_COUNT * ENTRY_LEN;
    /// Byte offset of an entry.
    pub const fn entry(number: u32) -> u64 {
        ENTRIES + number as u64 * ENTRY_LEN
    }
    /// Byte offset of an entry's payload.
    pub const fn inline(number: u32) -> u64 {
        entry(number) + WORDS * 8
    }
    /// The first entry of the bucket for a hash while `mask` is in force.
    pub const fn bucket(hash: u64, mask: u64) -> u32 {
        ((hash & mask & (BUCKET_COUNT - 1)) * WAYS) as u32
    }
    /// The way of its bucket from which on a name is put, and looked for: the middle for half of them.
    pub const fn first_way(hash: u64) -> u64 {
        (hash >> 32) % 2 * (WAYS / 2)
    }
    /// The tag of a name with this hash. The bucket takes the hash's low bits.
    pub const fn tag(hash: u64) -> u8 {
        let high = (hash >> 56) as u8;
        if high == 0 { 1 } else { high }
    }
    /// Bit of an entry's sixth word that says "kept": its owner is this node.
    pub const KEPT: u64 = 1 << 63;
}

/// A slot's header: byte offsets in it. 128 bytes: two lines.
pub mod header {
    /// Length.
    pub const LEN: u64 = 128;
    /// The slot word ([`crate::word::Word`]); counts on the primary alone.
    pub const WORD: u64 = 0;
    /// The name that the primary has bound the slot to, low and high; 0 when free.
    pub const NAME: u64 = 8;
    /// A version that the name which the slot is bound to has surely left behind: its first
    /// write here goes beyond it, so that a name's versions never go back either.
    pub const FLOOR: u64 = 24;
    /// Heads of the two halves.
    pub const HEADS: u64 = 32;
    /// Length of a head: version, length and flags, checksum of the payload, name low, name high,
    /// checksum of the head.
    pub const HEAD_LEN: u64 = 48;
    /// Bit of a head's second word: the object was removed by this version.
    pub const TOMBSTONE: u64 = 1 << 63;
    /// Byte offset of the head of half `half` (0 or 1).
    pub const fn head(half: u64) -> u64 {
        HEADS + (half & 1) * HEAD_LEN
    }
}

/// Entries of a directory's bucket.
pub const DIRECTORY_WAYS: u64 = 8;
/// Buckets that hold a name's entry: its own and those after it. Read as one.
pub const DIRECTORY_WINDOW: u64 = 4;

/// Levels of a directory. The first is one page, so that a shard with few objects costs little;
/// the next ones are used when a window of the one before is full, and then said to be.
pub const DIRECTORY_LEVELS: usize = 3;
/// Buckets of the levels but the last, whose number follows from the set's slots.
const LEVEL_BUCKETS: [u64; DIRECTORY_LEVELS - 1] = [32, 512];

/// A level of a directory: byte offset in the sub-region, and buckets that names hash to (more
/// follow, for the window); a power of two.
#[derive(Clone, Copy, Debug, Default)]
struct Level {
    offset: u64,
    buckets: u64,
}

/// Where one set's parts stand in each shard's region.
#[derive(Clone, Copy, Debug)]
pub struct SetLayout {
    /// The set.
    pub set: &'static SetDescriptor,
    /// Bytes from one half to the next.
    pub stride: u64,
    levels: [Level; DIRECTORY_LEVELS],
    /// Number of the set in its class, and of sets in the class.
    index: u64,
    count: u64,
    /// Of the sub-region, from the start of its shard's region; it begins with the directory.
    base: u64,
    headers: u64,
    payloads: u64,
    len: u64,
    copies: u64,
    /// Places for copies of objects that this node does not replicate.
    pub copy_count: u32,
}

struct ClassLayout {
    shards: u64,
    shard_len: u64,
    len: u64,
}

struct Layout {
    sets: Vec<SetLayout>,
    classes: Vec<ClassLayout>,
}

const fn align(x: u64, to: u64) -> u64 {
    x.div_ceil(to) * to
}

static LAYOUT: LazyLock<Layout> = LazyLock::new(|| {
    let mut sets = Vec::new();
    let mut classes = Vec::new();
    for class in Class::ALL {
        let mut base = 0;
        // Volatile sets have no slots and stand in the slab.
        let of_class = || SETS.iter().filter(|s| s.class == class && s.slots > 0);
        let count = of_class().count() as u64;
        let mut copies = align(published::MARKS + count * u64::from(SHARDS) * 8, PAGE);
        for (index, set) in of_class().enumerate() {
            let capacity = u64::from(set.capacity);
            let stride = align(capacity, if capacity < PAGE { 64 } else { PAGE });
            let slots = u64::from(set.slots);
            let wanted = (slots / 4).next_power_of_two();
            let mut levels = [Level::default(); DIRECTORY_LEVELS];
            // The first line says how many levels are in use.
            let mut offset = DIRECTORY_WAYS * 8;
            for (i, level) in levels.iter_mut().enumerate() {
                let most = LEVEL_BUCKETS.get(i).copied().unwrap_or(u64::MAX);
                let buckets = wanted.min(most);
                *level = Level { offset, buckets };
                offset += (buckets + DIRECTORY_WINDOW) * DIRECTORY_WAYS * 8;
                offset = align(offset, PAGE);
                if buckets == wanted {
                    break;
                }
            }
            let headers = offset;
            let payloads = headers + align(slots * header::LEN, PAGE);
            let len = payloads + align(slots * 2 * stride, PAGE);
            let copy_count = (set.slots.saturating_mul(16)).clamp(64, 32_768);
            sets.push(SetLayout {
                set,
                stride,
                levels,
                index: index as u64,
                count,
                base,
                headers,
                payloads,
                len,
                copies,
                copy_count,
            });
            base += len;
            copies += align(u64::from(copy_count) * stride, PAGE);
        }
        let len = copies + base * u64::from(SHARDS);
        classes.push(ClassLayout { shards: copies, shard_len: base, len });
    }
    Layout { sets, classes }
});

/// Length in bytes of the region of a class.
pub fn class_len(class: Class) -> u64 {
    LAYOUT.classes[class as usize].len
}

/// Layouts of all replicated sets.
pub fn sets() -> &'static [SetLayout] {
    &LAYOUT.sets
}

/// The layout of a replicated set; `None` for an unknown or volatile one.
pub fn set(set: u16) -> Option<&'static SetLayout> {
    LAYOUT.sets.iter().find(|l| l.set.id == set)
}

impl SetLayout {
    /// The region it is in.
    pub fn region(&self) -> RegionId {
        RegionId::Class(self.set.class)
    }
    /// Slots per shard.
    pub fn slots(&self) -> u32 {
        self.set.slots
    }
    /// Byte offset of the high-water mark of `shard`: slots from there on were never used. The
    /// marks of a class stand together, so that looking at all of them touches few pages.
    pub fn mark(&self, shard: Shard) -> u64 {
        published::MARKS + (u64::from(shard.0 % SHARDS) * self.count + self.index) * 8
    }
    /// Byte offset of the sub-region of `shard`.
    fn sub_region(&self, shard: Shard) -> u64 {
        let c = &LAYOUT.classes[self.set.class as usize];
        c.shards + u64::from(shard.0 % SHARDS) * c.shard_len + self.base
    }
    /// Length of a sub-region.
    pub fn len(&self) -> u64 {
        self.len
    }
    /// Whether a sub-region is empty (none is).
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Byte offset of the word that says how many levels of a shard's directory are in use beyond
    /// the first.
    pub fn levels_in_use(&self, shard: Shard) -> u64 {
        self.sub_region(shard)
    }
    /// Levels that the set's directories have.
    pub fn levels(&self) -> usize {
        self.levels.iter().filter(|l| l.buckets > 0).count()
    }
    /// Byte offset of the window of a name with this hash in a level of the directory:
    /// [`DIRECTORY_WINDOW`] × [`DIRECTORY_WAYS`] words. An entry is the hash's high 32 bits above
    /// the slot plus 1.
    pub fn directory(&self, shard: Shard, hash: u64, level: usize) -> u64 {
        let level = self.levels.get(level).unwrap_or(&self.levels[0]);
        let bucket = hash % level.buckets.max(1);
        self.sub_region(shard) + level.offset + bucket * DIRECTORY_WAYS * 8
    }
    /// Byte offset of a slot's header.
    pub fn header(&self, shard: Shard, slot: u32) -> u64 {
        self.sub_region(shard) + self.headers + u64::from(slot) * header::LEN
    }
    /// Byte offset of half `half & 1` of a slot's payload.
    pub fn payload(&self, shard: Shard, slot: u32, half: u64) -> u64 {
        self.sub_region(shard) + self.payloads + (u64::from(slot) * 2 + (half & 1)) * self.stride
    }
    /// Byte offset of a place for a copy.
    pub fn copy(&self, place: u32) -> u64 {
        self.copies + u64::from(place) * self.stride
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_overlap() {
        for class in Class::ALL {
            let mut parts: Vec<(u64, u64)> =
                vec![(0, published::ENTRIES), (published::ENTRIES, published::MARKS)];
            for l in sets().iter().filter(|l| l.set.class == class) {
                parts.push((l.copy(0), l.copy(l.copy_count)));
                for shard in [Shard(0), Shard(1), Shard(SHARDS - 1)] {
                    let last = l.slots() - 1;
                    let window = DIRECTORY_WINDOW * DIRECTORY_WAYS * 8;
                    let word = l.levels_in_use(shard);
                    parts.push((word, word + 8));
                    for (i, level) in l.levels[..l.levels()].iter().enumerate() {
                        let first = l.directory(shard, 0, i);
                        let last = l.directory(shard, level.buckets - 1, i);
                        assert!(level.buckets.is_power_of_two());
                        parts.push((first, last + window));
                    }
                    let at = l.sub_region(shard);
                    parts.push((l.mark(shard), l.mark(shard) + 8));
                    parts.push((l.header(shard, 0), l.header(shard, last) + header::LEN));
                    let end = l.payload(shard, last, 1) + l.stride;
                    parts.push((l.payload(shard, 0, 0), end));
                    assert!(end <= at + l.len());
                    assert!(l.stride >= u64::from(l.set.capacity));
                }
            }
            parts.sort();
            for w in parts.windows(2) {
                assert!(w[0].1 <= w[1].0, "{class:?}: {w:?}");
            }
            assert!(parts.last().unwrap().1 <= class_len(class));
            assert!(class_len(class) < 1 << 42, "{class:?} {}", class_len(class));
            assert_eq!(class_len(class) % PAGE, 0);
        }
        assert!(header::head(1) + header::HEAD_LEN <= header::LEN);
        assert_eq!(control::LEN % PAGE, 0);
    }

    #[test]
    fn record_holds_the_largest_transaction() {
        use crate::cache::{MAX_BYTES, MAX_OBJECTS};
        assert!((MAX_BYTES + MAX_OBJECTS * 64 + 64) as u64 <= control::REDO_LEN);
    }
}
