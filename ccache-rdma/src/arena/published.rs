//! Published entries: how a domain hits an object that its ccache has cached (rules 24–27).
//!
//! An entry is a line of eight words (seq, name low, name high, version, c0, kept above length,
//! shard epoch, place) and room for a small payload. seq is odd while the entry changes. Entry
//! memory is recycled as entries only, so a reader that comes late reads another entry, never
//! something else.

use super::Arena;
use crate::cache::Version;
use crate::layout::{PAGE, RegionId, SetLayout, control, hash, published};
use crate::name::{Name, Names};
use crate::set::{CLASSES, Class};
use clustix_pd::Region;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// How often a reader tries an entry that changes under it before it asks ccache.
const ATTEMPTS: u32 = 4;
/// An epoch that no shard ever has: voids an entry.
const NO_EPOCH: u64 = u64::MAX;

/// A hit, made by the reader in its own address space, without IPC, lock or system call: copies
/// the object's payload to `out` (cleared first) and returns its version. `None`: ask ccache (not
/// cached, not valid any more, absent, or changing).
///
/// `class` is the region of the name's class and `control` the control region, both may be mapped
/// read-only. `clock` is `CLOCK_MONOTONIC` in ns; it is read after the copy is made, since the
/// lease must have held at that moment.
pub fn lookup(
    name: Name,
    class: &Region,
    control: &Region,
    clock: impl FnOnce() -> u64,
    out: &mut Vec<u8>,
) -> Option<Version> {
    let hash = hash(name);
    let words = class.words();
    let own = control.words();
    // Its address follows from the name: it is on its way while the entry is looked for.
    control.prefetch(control::counter(hash) as usize, 8);
    let mask = words.get((published::MASK / 8) as usize)?.load(Ordering::Relaxed);
    let bucket = published::bucket(hash, mask);
    let tags = (published::TAGS / 8) as usize + bucket as usize / 8;
    let tags = words.get(tags..tags + (published::WAYS / 8) as usize)?;
    let first = (published::first_way(hash) / 8) as usize;
    for i in (first..tags.len()).chain(0..first) {
        let mut matching = matching(tags[i].load(Ordering::Acquire), published::tag(hash));
        while matching != 0 {
            let number = bucket + i as u32 * 8 + matching.trailing_zeros() / 8;
            matching &= matching - 1;
            let at = published::entry(number) as usize;
            // All of it at once, before its first line says how much that is.
            class.prefetch(at, published::ENTRY_LEN as usize);
            let entry = words.get(at / 8..at / 8 + published::WORDS as usize)?;
            match read_entry(name, hash, entry, class, own, out) {
                Found::Hit(version) => {
                    let until = own.get((control::LEASE / 8) as usize)?.load(Ordering::Acquire);
                    return (clock() < until).then_some(version);
                }
                Found::Void => return None,
                Found::Other => {}
            }
        }
    }
    None
}

/// The high bits of those bytes of a word that are `byte`; those above one that is may be set too.
const fn matching(word: u64, byte: u8) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let x = word ^ (ONES * byte as u64);
    x.wrapping_sub(ONES) & !x & (ONES << 7)
}

enum Found {
    Hit(Version),
    Void,
    Other,
}

/// Rule 25, but for the lease.
fn read_entry(
    name: Name,
    hash: u64,
    entry: &[AtomicU64],
    class: &Region,
    own: &[AtomicU64],
    out: &mut Vec<u8>,
) -> Found {
    let [seq, low, high, version, c0, length, epoch, place] = entry else { return Found::Other };
    for _ in 0..ATTEMPTS {
        let before = seq.load(Ordering::Acquire);
        if before & 1 == 1 {
            std::hint::spin_loop();
            continue;
        }
        if low.load(Ordering::Relaxed) != name.0 as u64
            || high.load(Ordering::Relaxed) != (name.0 >> 64) as u64
        {
            return Found::Other;
        }
        let version = version.load(Ordering::Relaxed);
        let c0 = c0.load(Ordering::Relaxed);
        let length = length.load(Ordering::Relaxed);
        let epoch = epoch.load(Ordering::Relaxed);
        let place = place.load(Ordering::Relaxed);
        let len = (length & 0xffff_ffff) as usize;
        // A torn entry may hold any length; a true one is a payload's.
        if len > 65_536 {
            continue;
        }
        out.resize(len, 0);
        if !class.read(place as usize, out) {
            continue;
        }
        // The copy is complete before seq, counter, epoch and clock are looked at.
        fence(Ordering::Acquire);
        if seq.load(Ordering::Relaxed) != before {
            continue;
        }
        let word = |offset: u64| own.get((offset / 8) as usize).map(|w| w.load(Ordering::Acquire));
        let kept = length & published::KEPT != 0;
        let valid = (kept || word(control::counter(hash)) == Some(c0))
            && word(control::shard_epoch(name.shard())) == Some(epoch);
        return if valid { Found::Hit(Version(version)) } else { Found::Void };
    }
    Found::Void
}

/// Where a published payload stands; a small one is copied to its entry either way.
pub enum Payload<'a> {
    /// In this node's own replica, at this offset of the class's region.
    Own {
        /// Byte offset.
        place: u64,
        /// The payload.
        data: &'a [u8],
    },
    /// Nowhere yet: it is copied to a place for copies.
    Copy {
        /// Layout of the object's set.
        set: &'static SetLayout,
        /// The payload.
        data: &'a [u8],
    },
}

/// What is known of an object when it is published.
#[derive(Clone, Copy, Debug)]
pub struct Fact {
    /// Its version.
    pub version: u64,
    /// Own validity counter, read before the copy was asked for.
    pub c0: u64,
    /// Own epoch word of its shard, read with `c0`.
    pub epoch: u64,
    /// The node holds the object's word: valid whatever the counter says.
    pub kept: bool,
}

#[derive(Default)]
struct Table {
    /// Entry numbers in use, by name, with the place of a copy.
    entries: Names<(u32, Option<(u16, u32)>)>,
    /// Buckets in use, minus 1.
    mask: u64,
    /// Which way of a full bucket is evicted next.
    turn: u64,
}

#[derive(Default)]
struct Copies {
    free: Vec<u32>,
    fresh: u32,
    /// Names with a copy, oldest first; a name may stand here without having one any more.
    queue: VecDeque<Name>,
}

/// The writing side, ccache's: entries, buckets and places for copies.
pub struct Publisher {
    arena: Arena,
    tables: [Table; CLASSES],
    copies: HashMap<u16, Copies>,
}

impl Publisher {
    /// For an arena whose published part is all zeroes.
    pub fn new(arena: Arena) -> Publisher {
        let mut tables: [Table; CLASSES] = Default::default();
        for (table, class) in tables.iter_mut().zip(Class::ALL) {
            table.mask = published::FIRST_MASK;
            arena
                .word(RegionId::Class(class), published::MASK)
                .store(table.mask, Ordering::Release);
        }
        Publisher { arena, tables, copies: HashMap::new() }
    }

    /// Publishes `name`, in place of what was published of it before.
    pub fn publish(&mut self, set: &'static SetLayout, name: Name, fact: Fact, data: Payload<'_>) {
        let region = set.region();
        let class = set.set.class as usize;
        let number = match self.tables[class].entries.get(&name) {
            Some((number, _)) => *number,
            None => match self.new_entry(region, class, name) {
                Some(number) => number,
                None => return,
            },
        };
        let (place, len, copy, inline) = match data {
            Payload::Own { data, .. } | Payload::Copy { data, .. }
                if data.len() <= published::INLINE =>
            {
                (published::inline(number), data.len() as u32, None, data)
            }
            Payload::Own { place, data } => (place, data.len() as u32, None, &[][..]),
            Payload::Copy { set, data } => {
                let Some(index) = self.copy_place(set) else {
                    self.withdraw(name);
                    return;
                };
                let place = set.copy(index);
                if !self.arena.region(region).write(place as usize, data) {
                    return;
                }
                (place, data.len() as u32, Some((set.set.id, index)), &[][..])
            }
        };
        let old = self.tables[class].entries.insert(name, (number, copy));
        let kept = if fact.kept { published::KEPT } else { 0 };
        let words = [fact.version, fact.c0, u64::from(len) | kept, fact.epoch, place];
        self.write_entry(region, number, name, words, inline);
        let had_copy = match old {
            // The old place may be reused only now that no entry names it.
            Some((_, Some((set, index)))) => {
                self.copies.entry(set).or_default().free.push(index);
                true
            }
            _ => false,
        };
        if copy.is_some() && !had_copy {
            self.copies.entry(set.set.id).or_default().queue.push_back(name);
        }
    }

    /// What is published of `name` as kept is valid by its counter from now on: as long as that is
    /// `c0`.
    pub fn share(&mut self, name: Name, c0: u64) {
        let Some(set) = crate::layout::set(name.set()) else { return };
        let Some((number, _)) = self.tables[set.set.class as usize].entries.get(&name) else {
            return;
        };
        let word = |i: u64| self.arena.word(set.region(), published::entry(*number) + 8 * i);
        if word(5).load(Ordering::Relaxed) & published::KEPT == 0 {
            // Published by a read since: that one says itself when it is valid.
            return;
        }
        let seq = word(0).load(Ordering::Relaxed);
        word(0).store(seq | 1, Ordering::Relaxed);
        fence(Ordering::Release);
        word(4).store(c0, Ordering::Relaxed);
        word(5).store(word(5).load(Ordering::Relaxed) & !published::KEPT, Ordering::Relaxed);
        // Before the word is anyone's: no reader may take the entry for a kept one after that.
        word(0).store((seq | 1).wrapping_add(1), Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Makes what is published of `name` void; its entry stays.
    pub fn void(&mut self, name: Name) {
        let Some(set) = crate::layout::set(name.set()) else { return };
        let class = set.set.class as usize;
        if let Some((number, _)) = self.tables[class].entries.get(&name) {
            // One word: no reader can take a void entry for a valid one, whatever it read before.
            let at = published::entry(*number) + 48;
            self.arena.word(set.region(), at).store(NO_EPOCH, Ordering::SeqCst);
            let seq = self.arena.word(set.region(), published::entry(*number));
            seq.store(seq.load(Ordering::Relaxed).wrapping_add(2), Ordering::SeqCst);
        }
    }

    /// Takes back what is published of `name`, its entry too.
    pub fn withdraw(&mut self, name: Name) {
        let Some(set) = crate::layout::set(name.set()) else { return };
        let class = set.set.class as usize;
        let Some((number, copy)) = self.tables[class].entries.remove(&name) else { return };
        let region = set.region();
        self.clear_entry(region, number);
        self.set_tag(region, number, 0);
        if let Some((set, index)) = copy {
            self.copies.entry(set).or_default().free.push(index);
        }
    }

    /// Number of objects published.
    pub fn len(&self) -> usize {
        self.tables.iter().map(|t| t.entries.len()).sum()
    }

    /// Whether nothing is published.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills an entry: name, then the words from the version on, then what stands in it.
    fn write_entry(&self, region: RegionId, at: u32, name: Name, words: [u64; 5], inline: &[u8]) {
        let word = |i: u64| self.arena.word(region, published::entry(at) + 8 * i);
        let seq = word(0).load(Ordering::Relaxed);
        word(0).store(seq | 1, Ordering::Relaxed);
        fence(Ordering::Release);
        word(1).store(name.0 as u64, Ordering::Relaxed);
        word(2).store((name.0 >> 64) as u64, Ordering::Relaxed);
        for (i, value) in (3..).zip(words) {
            word(i).store(value, Ordering::Relaxed);
        }
        // Inside of the region by the layout.
        let _ = self.arena.region(region).write(published::inline(at) as usize, inline);
        word(0).store((seq | 1).wrapping_add(1), Ordering::Release);
    }

    /// Makes an entry nobody's.
    fn clear_entry(&self, region: RegionId, at: u32) {
        let word = |i: u64| self.arena.word(region, published::entry(at) + 8 * i);
        let seq = word(0).load(Ordering::Relaxed);
        word(0).store(seq | 1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        word(1).store(0, Ordering::Relaxed);
        word(2).store(0, Ordering::Relaxed);
        word(6).store(NO_EPOCH, Ordering::Relaxed);
        word(0).store((seq | 1).wrapping_add(1), Ordering::SeqCst);
    }

    fn tag_word(&self, region: RegionId, number: u32) -> (&AtomicU64, u32) {
        let at = published::TAGS + u64::from(number / 8 * 8);
        (self.arena.word(region, at), number % 8 * 8)
    }

    fn set_tag(&self, region: RegionId, number: u32, tag: u8) {
        let (word, shift) = self.tag_word(region, number);
        let others = word.load(Ordering::Relaxed) & !(0xff << shift);
        word.store(others | u64::from(tag) << shift, Ordering::Release);
    }

    /// The first free entry of the bucket for a hash, from where readers look first.
    fn free_entry(&self, region: RegionId, hash: u64, mask: u64) -> Option<u32> {
        let bucket = published::bucket(hash, mask);
        let first = published::first_way(hash);
        (0..published::WAYS).map(|turn| bucket + ((first + turn) % published::WAYS) as u32).find(
            |number| {
                let (word, shift) = self.tag_word(region, *number);
                (word.load(Ordering::Relaxed) >> shift) as u8 == 0
            },
        )
    }

    /// Doubles the buckets in use, and moves the entries that belong elsewhere then.
    fn grow(&mut self, region: RegionId, class: usize) {
        let table = &mut self.tables[class];
        let before = table.mask;
        let mask = before * 2 + 1;
        table.mask = mask;
        let all = table.entries.iter().map(|(name, (number, _))| (*name, *number));
        let mut all: Vec<(Name, u32)> =
            all.filter(|(name, _)| hash(*name) & mask != hash(*name) & before).collect();
        // In order: a schedule replayed from its seed must be the same again.
        all.sort_unstable();
        // Soon every page of the new half is in use. Pages that are touched in order lie close
        // together in the machine's memory, and then so do the page tables that hits wait for, a
        // virtual machine's above all.
        let first = |mask: u64| published::entry(((mask + 1) * published::WAYS) as u32);
        for page in (first(before)..first(mask)).step_by(PAGE as usize) {
            self.arena.word(region, page).fetch_or(0, Ordering::Relaxed);
        }
        let mut inline = Vec::new();
        for (name, from) in &all {
            let hash = hash(*name);
            // The new buckets are empty, and get no more than the old ones held.
            let Some(to) = self.free_entry(region, hash, mask) else { continue };
            let word = |i: u64| self.arena.word(region, published::entry(*from) + 8 * i);
            let mut words = [3, 4, 5, 6, 7].map(|i| word(i).load(Ordering::Relaxed));
            inline.clear();
            if words[4] == published::inline(*from) {
                words[4] = published::inline(to);
                inline.resize((words[2] as u32 as usize).min(published::INLINE), 0);
                let at = published::inline(*from) as usize;
                let _ = self.arena.region(region).read(at, &mut inline);
            }
            self.write_entry(region, to, *name, words, &inline);
            self.set_tag(region, to, published::tag(hash));
            if let Some((number, _)) = self.tables[class].entries.get_mut(name) {
                *number = to;
            }
        }
        self.arena.word(region, published::MASK).store(mask, Ordering::Release);
        // Whoever looks by the mask before finds nothing there any more, and asks.
        for (_, from) in &all {
            self.clear_entry(region, *from);
            self.set_tag(region, *from, 0);
        }
    }

    /// An entry and a tag for a name that has none; a full bucket gives one up.
    fn new_entry(&mut self, region: RegionId, class: usize, name: Name) -> Option<u32> {
        let hash = hash(name);
        loop {
            let table = &self.tables[class];
            let mask = table.mask;
            if let Some(number) = self.free_entry(region, hash, mask) {
                self.set_tag(region, number, published::tag(hash));
                return Some(number);
            }
            // A bucket that overflows while most others have room is no reason to grow: at this
            // load few do by chance, and names may have been chosen for it.
            let most = (mask + 1) * published::WAYS / 16 * 13;
            if table.entries.len() as u64 >= most && mask + 1 < published::BUCKET_COUNT {
                self.grow(region, class);
                continue;
            }
            let turn = table.turn;
            self.tables[class].turn = turn.wrapping_add(1);
            let number = published::bucket(hash, mask) + (turn % published::WAYS) as u32;
            let word = |i: u64| {
                let at = published::entry(number) + 8 * i;
                u128::from(self.arena.word(region, at).load(Ordering::Relaxed))
            };
            self.withdraw(Name(word(1) | word(2) << 64));
            // Whoever's it was.
            self.set_tag(region, number, 0);
        }
    }

    /// A free place for a copy; the oldest copy goes when there is none.
    fn copy_place(&mut self, set: &'static SetLayout) -> Option<u32> {
        loop {
            let copies = self.copies.entry(set.set.id).or_default();
            if let Some(index) = copies.free.pop() {
                return Some(index);
            }
            if copies.fresh < set.copy_count {
                copies.fresh += 1;
                return Some(copies.fresh - 1);
            }
            let oldest = copies.queue.pop_front()?;
            self.withdraw(oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Shard;
    use crate::set::INODE;

    #[test]
    fn hits_only_what_is_valid() {
        let arena = Arena::anonymous().unwrap();
        let mut p = Publisher::new(arena.clone());
        let set = crate::layout::set(INODE).unwrap();
        let name = Name::new(INODE, Shard(9), 77);
        let class = arena.region(set.region()).clone();
        let control = arena.region(RegionId::Control).clone();
        let mut out = Vec::new();
        arena.set_control(control::LEASE, 1000);
        let fact = Fact { version: 5, c0: 0, epoch: 0, kept: false };
        p.publish(set, name, fact, Payload::Copy { set, data: b"hello" });
        assert_eq!(lookup(name, &class, &control, || 999, &mut out), Some(Version(5)));
        assert_eq!(out, b"hello");
        assert_eq!(lookup(name, &class, &control, || 1000, &mut out), None);
        let other = Name::new(INODE, Shard(9), 78);
        assert_eq!(lookup(other, &class, &control, || 0, &mut out), None);
        arena.set_control(control::counter(hash(name)), 1);
        assert_eq!(lookup(name, &class, &control, || 0, &mut out), None);
        let fact = Fact { version: 6, c0: 1, epoch: 0, kept: false };
        p.publish(set, name, fact, Payload::Copy { set, data: b"again" });
        assert_eq!(lookup(name, &class, &control, || 0, &mut out), Some(Version(6)));
        arena.set_control(control::shard_epoch(Shard(9)), 2);
        assert_eq!(lookup(name, &class, &control, || 0, &mut out), None);
        arena.set_control(control::shard_epoch(Shard(9)), 0);
        let fact = Fact { version: 7, c0: 0, epoch: 0, kept: true };
        p.publish(set, name, fact, Payload::Copy { set, data: b"mine" });
        arena.set_control(control::counter(hash(name)), 8);
        assert_eq!(lookup(name, &class, &control, || 0, &mut out), Some(Version(7)));
        p.share(name, 8);
        assert_eq!(lookup(name, &class, &control, || 0, &mut out), Some(Version(7)));
        arena.set_control(control::counter(hash(name)), 9);
        assert_eq!(lookup(name, &class, &control, || 0, &mut out), None);
        p.void(name);
        assert_eq!(lookup(name, &class, &control, || 0, &mut out), None);
        p.withdraw(name);
        assert!(p.is_empty());
    }

    #[test]
    fn places_evict() {
        let arena = Arena::anonymous().unwrap();
        let mut p = Publisher::new(arena.clone());
        let set = crate::layout::set(crate::set::SUPER).unwrap();
        let class = arena.region(set.region()).clone();
        let control = arena.region(RegionId::Control).clone();
        arena.set_control(control::LEASE, 1);
        let mut out = Vec::new();
        let count = u128::from(set.copy_count) * 3;
        // Too long for an entry.
        let payload = |i: u128| [&i.to_le_bytes()[..], &[7; published::INLINE]].concat();
        for i in 0..count {
            let name = Name::new(set.set.id, Shard((i % 7) as u16), i);
            let fact = Fact { version: i as u64 + 1, c0: 0, epoch: 0, kept: false };
            p.publish(set, name, fact, Payload::Copy { set, data: &payload(i) });
            assert_eq!(lookup(name, &class, &control, || 0, &mut out), Some(Version(i as u64 + 1)));
            assert_eq!(out, payload(i));
        }
        assert!(p.len() <= set.copy_count as usize);
    }

    #[test]
    fn buckets_grow_with_what_is_in_them() {
        let arena = Arena::anonymous().unwrap();
        let mut p = Publisher::new(arena.clone());
        let set = crate::layout::set(INODE).unwrap();
        let class = arena.region(set.region()).clone();
        let control = arena.region(RegionId::Control).clone();
        arena.set_control(control::LEASE, 1);
        let mask = || class.words()[(published::MASK / 8) as usize].load(Ordering::Relaxed);
        let mut out = Vec::new();
        let name = |i: u64| Name::new(INODE, Shard((i % 1024) as u16), u128::from(i));
        let mut publish = |i: u64| {
            let fact = Fact { version: i + 1, c0: 0, epoch: 0, kept: false };
            let data = &i.to_le_bytes();
            p.publish(set, name(i), fact, Payload::Own { place: 0, data });
            p.len() as u64
        };
        let count = 100 * published::WAYS;
        let mut len = 0;
        for i in 0..count {
            len = publish(i);
            let found = lookup(name(i), &class, &control, || 0, &mut out);
            assert_eq!(found, Some(Version(i + 1)));
            assert_eq!(out, i.to_le_bytes());
        }
        assert_eq!(mask(), 127);
        assert!(len > count * 98 / 100, "{len} of {count}");
        let left = (0..count).filter(|i| {
            lookup(name(*i), &class, &control, || 0, &mut out) == Some(Version(*i + 1))
        });
        assert!(left.count() as u64 > count * 98 / 100);
    }
}
