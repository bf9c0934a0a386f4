//! A table of objects of one kind: bounded, with generations, in the order a free list gives.

use heapless::Vec;

/// A number of 12 bits of index and 20 bits of generation.
pub trait Key: Copy {
    /// From its raw form.
    fn from_raw(raw: u32) -> Self;
    /// Its raw form.
    fn raw(self) -> u32;
}

/// Most entries of any table: what the index bits of a [`Key`] reach.
pub const MAX: usize = 1 << INDEX_BITS;
const INDEX_BITS: u32 = 12;

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    /// Index + 1 of the next free entry, 0 at the end.
    next_free: u16,
    value: Option<T>,
}

/// The table. An empty one is all zero bytes, so that a kernel in a `static` costs no file space.
#[derive(Debug)]
pub struct Table<T, const N: usize> {
    entries: Vec<Entry<T>, N>,
    /// Index + 1 of the first free entry, 0 if none.
    free: u16,
    live: usize,
}

impl<T, const N: usize> Table<T, N> {
    pub const fn new() -> Self {
        assert!(N <= MAX);
        Table { entries: Vec::new(), free: 0, live: 0 }
    }

    pub fn clear(&mut self) {
        self.entries.clear();
        self.free = 0;
        self.live = 0;
    }

    /// Entries that can still be added.
    pub fn room(&self) -> usize {
        N - self.live
    }

    /// Adds a value; `None` when the table is full.
    pub fn insert<K: Key>(&mut self, value: T) -> Option<K> {
        if let Some(index) = self.free.checked_sub(1) {
            let e = self.entries.get_mut(usize::from(index))?;
            self.free = e.next_free;
            e.value = Some(value);
            self.live += 1;
            return Some(K::from_raw(e.generation << INDEX_BITS | u32::from(index)));
        }
        let index = self.entries.len();
        self.entries.push(Entry { generation: 0, next_free: 0, value: Some(value) }).ok()?;
        self.live += 1;
        Some(K::from_raw(index as u32))
    }

    fn index<K: Key>(&self, key: K) -> Option<usize> {
        let index = (key.raw() & (MAX as u32 - 1)) as usize;
        let e = self.entries.get(index)?;
        (e.generation == key.raw() >> INDEX_BITS).then_some(index)
    }

    pub fn get<K: Key>(&self, key: K) -> Option<&T> {
        self.entries[self.index(key)?].value.as_ref()
    }

    pub fn get_mut<K: Key>(&mut self, key: K) -> Option<&mut T> {
        let index = self.index(key)?;
        self.entries[index].value.as_mut()
    }

    pub fn remove<K: Key>(&mut self, key: K) -> Option<T> {
        let index = self.index(key)?;
        let free = self.free;
        let e = &mut self.entries[index];
        let value = e.value.take()?;
        e.generation = (e.generation + 1) & (u32::MAX >> INDEX_BITS);
        e.next_free = free;
        self.free = index as u16 + 1;
        self.live -= 1;
        Some(value)
    }

    /// All entries, by index.
    pub fn iter<K: Key>(&self) -> impl Iterator<Item = (K, &T)> {
        self.entries.iter().enumerate().filter_map(|(i, e)| {
            let key = K::from_raw(e.generation << INDEX_BITS | i as u32);
            e.value.as_ref().map(|v| (key, v))
        })
    }
}
