//! Published entries: how a domain hits an object that its ccache has cached (rules 24–27).
//!
//! An entry is a line of eight words: seq, name low, name high, version, c0, kept above length,
//! shard epoch, place. seq is odd while the entry changes. Entry memory is recycled as entries
//! only, so a reader that comes late reads another entry, never something else.

use super::Arena;
use crate::cache::Version;
use crate::layout::{RegionId, SetLayout, control, hash, published};
use crate::name::Name;
use crate::set::CLASSES;
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
    let bucket = (published::bucket(hash) / 8) as usize;
    let tags = words.get(bucket..bucket + published::WAYS as usize)?;
    for tag in tags {
        let tag = tag.load(Ordering::Acquire);
        if tag >> 32 != hash >> 32 || tag as u32 == 0 {
            continue;
        }
        let at = (published::entry(tag as u32 - 1) / 8) as usize;
        let entry = words.get(at..at + 8)?;
        match read_entry(name, hash, entry, class, own, out) {
            Found::Hit(version) => {
                let until = own.get((control::LEASE / 8) as usize)?.load(Ordering::Acquire);
                return (clock() < until).then_some(version);
            }
            Found::Void => return None,
            Found::Other => {}
        }
    }
    None
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

/// Where a published payload stands.
pub enum Payload<'a> {
    /// In this node's own replica, at this offset of the class's region.
    Own {
        /// Byte offset.
        place: u64,
        /// Length.
        len: u32,
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
    entries: HashMap<Name, (u32, Option<(u16, u32)>)>,
    free: Vec<u32>,
    /// Entries never used so far begin here.
    fresh: u32,
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
        Publisher { arena, tables: Default::default(), copies: HashMap::new() }
    }

    /// Publishes `name`, in place of what was published of it before.
    pub fn publish(&mut self, set: &'static SetLayout, name: Name, fact: Fact, data: Payload<'_>) {
        let region = set.region();
        let (place, len, copy) = match data {
            Payload::Own { place, len } => (place, len, None),
            Payload::Copy { set, data } => {
                let Some(index) = self.copy_place(set) else {
                    self.withdraw(name);
                    return;
                };
                let place = set.copy(index);
                if !self.arena.region(region).write(place as usize, data) {
                    return;
                }
                (place, data.len() as u32, Some((set.set.id, index)))
            }
        };
        let class = set.set.class as usize;
        let number = match self.tables[class].entries.get(&name) {
            Some((number, _)) => *number,
            None => match self.new_entry(region, class, name) {
                Some(number) => number,
                None => return,
            },
        };
        let old = self.tables[class].entries.insert(name, (number, copy));
        let word = |i: u64| self.arena.word(region, published::entry(number) + 8 * i);
        let seq = word(0).load(Ordering::Relaxed);
        word(0).store(seq | 1, Ordering::Relaxed);
        fence(Ordering::Release);
        word(1).store(name.0 as u64, Ordering::Relaxed);
        word(2).store((name.0 >> 64) as u64, Ordering::Relaxed);
        word(3).store(fact.version, Ordering::Relaxed);
        word(4).store(fact.c0, Ordering::Relaxed);
        let kept = if fact.kept { published::KEPT } else { 0 };
        word(5).store(u64::from(len) | kept, Ordering::Relaxed);
        word(6).store(fact.epoch, Ordering::Relaxed);
        word(7).store(place, Ordering::Relaxed);
        word(0).store((seq | 1).wrapping_add(1), Ordering::Release);
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
        self.void(name);
        let class = set.set.class as usize;
        let Some((number, copy)) = self.tables[class].entries.remove(&name) else { return };
        let bucket = published::bucket(hash(name));
        for way in 0..published::WAYS {
            let tag = self.arena.word(set.region(), bucket + 8 * way);
            if tag.load(Ordering::Relaxed) as u32 == number + 1 {
                tag.store(0, Ordering::Release);
            }
        }
        self.tables[class].free.push(number);
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

    /// An entry and a tag for a name that has none; a full bucket gives one up.
    fn new_entry(&mut self, region: RegionId, class: usize, name: Name) -> Option<u32> {
        let hash = hash(name);
        let bucket = published::bucket(hash);
        let free = |arena: &Arena| {
            (0..published::WAYS)
                .find(|way| arena.word(region, bucket + 8 * way).load(Ordering::Relaxed) == 0)
        };
        let way = match free(&self.arena) {
            Some(way) => way,
            None => {
                let turn = self.tables[class].turn;
                self.tables[class].turn = turn.wrapping_add(1);
                let tag = self.arena.word(region, bucket + 8 * (turn % published::WAYS));
                let number = (tag.load(Ordering::Relaxed) as u32).checked_sub(1)?;
                let word = |i: u64| {
                    let at = published::entry(number) + 8 * i;
                    u128::from(self.arena.word(region, at).load(Ordering::Relaxed))
                };
                self.withdraw(Name(word(1) | word(2) << 64));
                free(&self.arena)?
            }
        };
        let table = &mut self.tables[class];
        let number = match table.free.pop() {
            Some(number) => number,
            None if u64::from(table.fresh) < published::ENTRY_COUNT => {
                table.fresh += 1;
                table.fresh - 1
            }
            None => return None,
        };
        let tag = (hash >> 32) << 32 | (u64::from(number) + 1);
        self.arena.word(region, bucket + 8 * way).store(tag, Ordering::Release);
        Some(number)
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
    fn full_buckets_and_places_evict() {
        let arena = Arena::anonymous().unwrap();
        let mut p = Publisher::new(arena.clone());
        let set = crate::layout::set(crate::set::SUPER).unwrap();
        let class = arena.region(set.region()).clone();
        let control = arena.region(RegionId::Control).clone();
        arena.set_control(control::LEASE, 1);
        let mut out = Vec::new();
        let count = u128::from(set.copy_count) * 3;
        for i in 0..count {
            let name = Name::new(set.set.id, Shard((i % 7) as u16), i);
            let fact = Fact { version: i as u64 + 1, c0: 0, epoch: 0, kept: false };
            p.publish(set, name, fact, Payload::Copy { set, data: &i.to_le_bytes() });
            assert_eq!(lookup(name, &class, &control, || 0, &mut out), Some(Version(i as u64 + 1)));
            assert_eq!(out, i.to_le_bytes());
        }
        assert!(p.len() <= set.copy_count as usize);
    }
}
