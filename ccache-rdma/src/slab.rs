//! The slab of a node's volatile objects (rule 31): records that one protection domain writes and
//! ccache may read, so that a put of, say, a file offset costs no wake-up.
//!
//! Each set has an array of records; a record has a head and two places for its payload, of which
//! the head names the current one. (The heads stand together, so that looking for a name touches
//! none of the places: the region is sparse, and what is touched is memory used.) A writer fills the other place and then flips the head, so a
//! writer that dies in the middle changes nothing. The slab outlives its writer: a new one calls
//! [`Slab::recover`] to free the locks that the dead one held.

use crate::cache::{CacheError, Expect, Version};
use crate::name::Name;
use crate::set;
use clustix_pd::region::Region;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

/// Records of one set.
struct Array {
    set: u16,
    records: usize,
    /// Payload words of one place.
    payload: usize,
    /// Word in the region where its heads start.
    heads: usize,
    /// Word in the region where its places start.
    places: usize,
}

/// Words of a record's head: name (2), current, lock.
const HEAD: usize = 4;
/// Words before a place's payload: stamp, length in bytes.
const PLACE: usize = 2;
/// Words at the start of the region: magic, stamps.
const START: usize = 8;
const MAGIC: u64 = 0x31_62_61_6c_73_78_6c_63; // "clxslab1"
/// Records that a name may stand in, from where its hash points.
const PROBES: usize = 64;
/// Times that a lock held, or a record that changes while it is read, is tried again: the first
/// [`SPINS`] at once, then after a [`PAUSE`] each, more than a second in all.
const ATTEMPTS: usize = 10_000;
const SPINS: usize = 1_000;
const PAUSE: Duration = Duration::from_micros(100);

const fn array(set: u16, records: usize, capacity: usize, base: usize) -> Array {
    Array { set, records, payload: capacity / 8, heads: base, places: base + records * HEAD }
}
const fn end(a: &Array) -> usize {
    a.places + a.records * 2 * (PLACE + a.payload)
}

const OFILES: Array = array(set::OFILE, 16_384, 256, START);
const PSTATES: Array = array(set::PSTATE, 4_096, 4_096, end(&OFILES));
const FDTABLES: Array = array(set::FDTABLE, 4_096, 8_192, end(&PSTATES));
const ARRAYS: [&Array; 3] = [&OFILES, &PSTATES, &FDTABLES];

/// Length of the region, bytes. It is sparse: memory is used as records are.
pub const BYTES: usize = end(&FDTABLES) * 8;

/// The slab in its region. See the module.
#[derive(Clone)]
pub struct Slab(Region);

/// One record's words.
struct Record<'a> {
    head: &'a [AtomicU64],
    places: &'a [AtomicU64],
}

impl<'a> Record<'a> {
    fn name(&self) -> u128 {
        u128::from(self.head[0].load(Ordering::Acquire))
            | u128::from(self.head[1].load(Ordering::Acquire)) << 64
    }
    fn set_name(&self, name: u128) {
        self.head[0].store(name as u64, Ordering::Release);
        self.head[1].store((name >> 64) as u64, Ordering::Release);
    }
    /// Stamp of the current version times two, plus which place holds it.
    fn current(&self) -> &'a AtomicU64 {
        &self.head[2]
    }
    fn lock(&self) -> &'a AtomicU64 {
        &self.head[3]
    }
    fn place(&self, which: u64) -> &'a [AtomicU64] {
        let (even, odd) = self.places.split_at(self.places.len() / 2);
        if which & 1 == 0 { even } else { odd }
    }

    /// The current version and payload; `ABSENT` if removed. `None`: it changed under the reader.
    fn read(&self, out: Option<&mut Vec<u8>>) -> Option<Version> {
        let current = self.current().load(Ordering::Acquire);
        if current == 0 {
            return Some(Version::ABSENT);
        }
        let place = self.place(current);
        if place[0].load(Ordering::Acquire) != current >> 1 {
            return None;
        }
        let len = place[1].load(Ordering::Relaxed) as usize;
        if len.div_ceil(8) > place.len() - PLACE {
            return None;
        }
        if let Some(out) = out {
            out.clear();
            for w in &place[PLACE..PLACE + len.div_ceil(8)] {
                out.extend_from_slice(&w.load(Ordering::Relaxed).to_le_bytes());
            }
            out.truncate(len);
        }
        fence(Ordering::Acquire);
        if place[0].load(Ordering::Relaxed) != current >> 1 {
            return None;
        }
        Some(if len == 0 { Version::ABSENT } else { Version(current >> 1) })
    }

    /// Writes a new version; the caller holds the lock. No data: removed.
    fn write(&self, stamp: u64, data: &[u8]) {
        let which = (self.current().load(Ordering::Relaxed) & 1) ^ 1;
        let place = self.place(which);
        place[0].store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        place[1].store(data.len() as u64, Ordering::Relaxed);
        for (w, bytes) in place[PLACE..].iter().zip(data.chunks(8)) {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            w.store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
        place[0].store(stamp, Ordering::Release);
        self.current().store(stamp << 1 | which, Ordering::Release);
    }
}

/// Before another look at a record that a thread is at: that thread may be one that the host does not
/// let run for many milliseconds.
fn pause(attempt: usize) {
    if attempt < SPINS {
        std::hint::spin_loop();
    } else {
        std::thread::sleep(PAUSE);
    }
}

/// Held while a record is written.
struct Locked<'a>(&'a AtomicU64);

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}

impl Slab {
    /// The slab in a region of at least [`BYTES`]; a zeroed one is empty.
    pub fn new(region: Region) -> Result<Slab, CacheError> {
        if region.words().len() * 8 < BYTES {
            return Err(CacheError::Invalid);
        }
        if region.writable() {
            let _ =
                region.words()[0].compare_exchange(0, MAGIC, Ordering::AcqRel, Ordering::Acquire);
        }
        match region.words()[0].load(Ordering::Acquire) {
            0 | MAGIC => Ok(Slab(region)),
            _ => Err(CacheError::Invalid),
        }
    }

    /// Whether this domain may write it.
    pub fn writable(&self) -> bool {
        self.0.writable()
    }

    /// Frees locks that a dead writer held. Only for the writing PD, before it writes.
    pub fn recover(&self) {
        for a in ARRAYS {
            for i in 0..a.records {
                let r = self.record(a, i);
                if r.lock().load(Ordering::Relaxed) != 0 {
                    r.lock().store(0, Ordering::Release);
                }
            }
        }
    }

    fn array(name: Name) -> Result<&'static Array, CacheError> {
        ARRAYS.into_iter().find(|a| a.set == name.set()).ok_or(CacheError::Invalid)
    }

    fn record(&self, a: &Array, index: usize) -> Record<'_> {
        let len = 2 * (PLACE + a.payload);
        let (head, places) = (a.heads + index * HEAD, a.places + index * len);
        let words = self.0.words();
        Record { head: &words[head..head + HEAD], places: &words[places..places + len] }
    }

    fn probes(a: &Array, name: Name) -> impl Iterator<Item = usize> {
        let hash = xxhash_rust::xxh3::xxh3_64(&name.0.to_le_bytes()) as usize;
        let records = a.records;
        (0..PROBES).map(move |i| (hash % records + i) % records)
    }

    fn find(&self, a: &Array, name: Name) -> Option<Record<'_>> {
        Self::probes(a, name).map(|i| self.record(a, i)).find(|r| r.name() == name.0)
    }

    /// Reads an object into `out` (cleared first). `Busy` where it is never whole, after more than a second.
    pub fn get(&self, name: Name, out: &mut Vec<u8>) -> Result<Version, CacheError> {
        self.attempt(name, out, ATTEMPTS)
    }

    /// The same without sleeping: for ccache, which a writer that leaves a record half written must not hold up.
    pub fn look(&self, name: Name, out: &mut Vec<u8>) -> Result<Version, CacheError> {
        self.attempt(name, out, SPINS)
    }

    fn attempt(&self, name: Name, out: &mut Vec<u8>, tries: usize) -> Result<Version, CacheError> {
        let a = Self::array(name)?;
        for attempt in 0..tries {
            out.clear();
            let Some(r) = self.find(a, name) else { return Ok(Version::ABSENT) };
            if let Some(v) = r.read(Some(out))
                && r.name() == name.0
            {
                return Ok(v);
            }
            pause(attempt);
        }
        Err(CacheError::Busy)
    }

    /// The version of an object, without its payload.
    pub fn version(&self, name: Name) -> Result<Version, CacheError> {
        self.get(name, &mut Vec::new())
    }

    fn lock<'a>(&self, r: &Record<'a>) -> Result<Locked<'a>, CacheError> {
        for i in 0..ATTEMPTS {
            let taken = r.lock().compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed);
            if taken.is_ok() {
                return Ok(Locked(r.lock()));
            }
            pause(i);
        }
        Err(CacheError::Busy)
    }

    fn stamp(&self) -> u64 {
        self.0.words()[1].fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Writes (`None`: removes) an object if it is what `expect` demands. Returns its new version.
    pub fn put(
        &self,
        name: Name,
        expect: Expect,
        data: Option<&[u8]>,
    ) -> Result<Version, CacheError> {
        let a = Self::array(name)?;
        if data.is_some_and(|d| d.is_empty() || d.len() > a.payload * 8) || !self.0.writable() {
            return Err(CacheError::Invalid);
        }
        // Creating is serialised per array, by the lock of a name's first record: all threads that
        // could create the same name meet there.
        let first = self.record(a, Self::probes(a, name).next().unwrap_or(0));
        if let Some(r) = self.find(a, name) {
            let _held = self.lock(&r)?;
            if r.name() == name.0 {
                return self.put_locked(&r, expect, data);
            }
        }
        if matches!(expect, Expect::Version(v) if v.exists()) {
            return Err(CacheError::Conflict);
        }
        let Some(data) = data else { return Ok(Version::ABSENT) };
        let _held = self.lock(&first)?;
        if let Some(r) = self.find(a, name) {
            // Made by another thread meanwhile.
            let same = std::ptr::eq(r.lock(), first.lock());
            let _held = if same { None } else { Some(self.lock(&r)?) };
            return if r.name() == name.0 {
                self.put_locked(&r, expect, Some(data))
            } else {
                Err(CacheError::Busy)
            };
        }
        for i in Self::probes(a, name) {
            let r = self.record(a, i);
            let same = std::ptr::eq(r.lock(), first.lock());
            if r.name() != 0 && r.read(None) != Some(Version::ABSENT) {
                continue;
            }
            let _held = match same {
                true => None,
                false => {
                    match r.lock().compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed) {
                        Ok(_) => Some(Locked(r.lock())),
                        // Another creator is at it; two that wait for each other must not.
                        Err(_) => continue,
                    }
                }
            };
            if r.name() == 0 || r.read(None) == Some(Version::ABSENT) {
                r.set_name(name.0);
                return self.put_locked(&r, Expect::Any, Some(data));
            }
        }
        Err(CacheError::NoSpace)
    }

    fn put_locked(
        &self,
        r: &Record<'_>,
        expect: Expect,
        data: Option<&[u8]>,
    ) -> Result<Version, CacheError> {
        let now = r.read(None).ok_or(CacheError::Busy)?;
        if let Expect::Version(v) = expect
            && v != now
        {
            return Err(CacheError::Conflict);
        }
        if data.is_none() && !now.exists() {
            return Ok(Version::ABSENT);
        }
        let stamp = self.stamp();
        r.write(stamp, data.unwrap_or_default());
        Ok(if data.is_some() { Version(stamp) } else { Version::ABSENT })
    }

    /// Names and versions of a set's objects after `after`, in order of their names, at most `max`.
    pub fn list(
        &self,
        set: u16,
        after: Option<Name>,
        max: usize,
    ) -> Result<Vec<(Name, Version)>, CacheError> {
        let a = ARRAYS.into_iter().find(|a| a.set == set).ok_or(CacheError::Invalid)?;
        let mut all: Vec<(Name, Version)> = (0..a.records)
            .map(|i| self.record(a, i))
            .filter_map(|r| {
                let name = Name(r.name());
                (name.0 != 0 && name.set() == set && after.is_none_or(|x| name > x))
                    .then(|| (name, r.read(None)))
            })
            .filter_map(|(n, v)| v.filter(|v| v.exists()).map(|v| (n, v)))
            .collect();
        all.sort_unstable();
        all.truncate(max);
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn slab() -> Slab {
        Slab::new(Region::anonymous(BYTES).unwrap()).unwrap()
    }

    fn name(n: u64) -> Name {
        Name::numbered(set::OFILE, n)
    }

    #[test]
    fn versions_are_checked_and_never_come_back() {
        let s = slab();
        let mut out = Vec::new();
        assert_eq!(s.get(name(1), &mut out), Ok(Version::ABSENT));
        let v = s.put(name(1), Expect::Version(Version::ABSENT), Some(b"one")).unwrap();
        assert_eq!(
            s.put(name(1), Expect::Version(Version::ABSENT), Some(b"x")),
            Err(CacheError::Conflict)
        );
        let w = s.put(name(1), Expect::Version(v), Some(b"second")).unwrap();
        assert_eq!((s.get(name(1), &mut out), &out[..]), (Ok(w), &b"second"[..]));
        assert_eq!(s.put(name(1), Expect::Version(v), None), Err(CacheError::Conflict));
        assert_eq!(s.put(name(1), Expect::Version(w), None), Ok(Version::ABSENT));
        assert_eq!(s.get(name(1), &mut out), Ok(Version::ABSENT));
        let x = s.put(name(1), Expect::Any, Some(b"third")).unwrap();
        assert!(x > w);
        assert!(s.list(set::OFILE, None, 10).unwrap() == [(name(1), x)]);
        assert!(s.list(set::OFILE, Some(name(1)), 10).unwrap().is_empty());
    }

    #[test]
    fn too_large_or_of_another_set_is_refused() {
        let s = slab();
        assert_eq!(s.put(name(1), Expect::Any, Some(&[0; 257])), Err(CacheError::Invalid));
        assert_eq!(s.put(name(1), Expect::Any, Some(&[])), Err(CacheError::Invalid));
        let inode = Name::numbered(set::INODE, 1);
        assert_eq!(s.put(inode, Expect::Any, Some(b"x")), Err(CacheError::Invalid));
    }

    #[test]
    fn places_are_used_again_until_there_is_no_room_for_more() {
        let s = slab();
        let mut held = 0u64;
        let full = loop {
            match s.put(Name::numbered(set::PSTATE, held), Expect::Any, Some(b"p")) {
                Ok(_) => held += 1,
                Err(e) => break e,
            }
        };
        assert_eq!(full, CacheError::NoSpace);
        assert!(held > 2_000, "{held}");
        for n in 0..held {
            s.put(Name::numbered(set::PSTATE, n), Expect::Any, None).unwrap();
        }
        for n in 10_000..10_000 + held / 2 {
            s.put(Name::numbered(set::PSTATE, n), Expect::Any, Some(b"q")).unwrap();
        }
    }

    #[test]
    fn a_writer_that_died_leaves_the_old_version() {
        let s = slab();
        let v = s.put(name(9), Expect::Any, Some(b"before")).unwrap();
        let a = Slab::array(name(9)).unwrap();
        let r = s.find(a, name(9)).unwrap();
        r.lock().store(1, Ordering::Relaxed);
        let which = (r.current().load(Ordering::Relaxed) & 1) ^ 1;
        r.place(which)[0].store(0, Ordering::Relaxed);
        r.place(which)[PLACE].store(u64::MAX, Ordering::Relaxed);
        assert_eq!(s.put(name(9), Expect::Any, Some(b"x")), Err(CacheError::Busy));
        // A record that is never whole keeps nobody who only looks.
        let mut out = Vec::new();
        let stamp = r.place(which ^ 1)[0].swap(0, Ordering::Relaxed);
        assert_eq!(s.look(name(9), &mut out), Err(CacheError::Busy));
        r.place(which ^ 1)[0].store(stamp, Ordering::Relaxed);
        s.recover();
        assert_eq!((s.look(name(9), &mut out), &out[..]), (Ok(v), &b"before"[..]));
        assert!(s.put(name(9), Expect::Version(v), Some(b"after")).is_ok());
    }

    #[test]
    fn readers_and_writers_at_once_see_whole_versions_only() {
        let s = slab();
        let threads: Vec<_> = (0..3u8)
            .map(|t| {
                let s = s.clone();
                std::thread::spawn(move || {
                    let mut out = Vec::new();
                    let mut seen: HashMap<Name, Version> = HashMap::new();
                    for i in 0..20_000u64 {
                        let n = name(i % 5);
                        if t == 0 {
                            s.get(n, &mut out).unwrap();
                        } else {
                            let byte = [(i as u8) ^ t; 200];
                            let len = 100 + (i % 100) as usize;
                            let gone = i % 50 == 49;
                            let _ = s.put(n, Expect::Any, (!gone).then_some(&byte[..len]));
                            s.get(n, &mut out).unwrap();
                        }
                        assert!(out.windows(2).all(|w| w[0] == w[1]), "torn");
                        let v = s.version(n).unwrap();
                        if v.exists() {
                            let before = seen.insert(n, v).unwrap_or_default();
                            assert!(v >= before, "went back");
                        }
                    }
                })
            })
            .collect();
        for t in threads {
            t.join().unwrap();
        }
    }
}
