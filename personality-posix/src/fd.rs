//! Descriptor tables and open file descriptions, as objects of volatile sets.
//!
//! A descriptor is an entry of its process's [`FdTable`]; it names an [`OpenFile`], which several
//! descriptors of several processes of one node may share (dup(2), fork(2)). Both live in the
//! node's slab and are written by this personality alone; [`OpenFiles`] serialises its threads.

use clustix_ccache::cache::Cache;
use clustix_proto::errno::*;
use clustix_proto::process::{Pid, name};
use clustix_proto::{Answer, Errno};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

/// Descriptors a process may have (RLIMIT_NOFILE): a full table still fits its object.
pub const MAX_FDS: usize = 1024;

/// open(2)'s flags, as Linux x86-64 numbers them.
#[allow(missing_docs)]
pub mod flags {
    pub const O_ACCMODE: u32 = 3;
    pub const O_RDONLY: u32 = 0;
    pub const O_WRONLY: u32 = 1;
    pub const O_RDWR: u32 = 2;
    pub const O_CREAT: u32 = 0o100;
    pub const O_EXCL: u32 = 0o200;
    pub const O_NOCTTY: u32 = 0o400;
    pub const O_TRUNC: u32 = 0o1000;
    pub const O_APPEND: u32 = 0o2000;
    pub const O_NONBLOCK: u32 = 0o4000;
    pub const O_DIRECTORY: u32 = 0o200000;
    pub const O_NOFOLLOW: u32 = 0o400000;
    pub const O_CLOEXEC: u32 = 0o2000000;
    pub const O_PATH: u32 = 0o10000000;
    pub const O_LARGEFILE: u32 = 0o100000;
}

/// What a descriptor leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Kind {
    /// A regular file.
    File {
        /// Inode.
        ino: u64,
    },
    /// A directory.
    Dir {
        /// Inode.
        ino: u64,
    },
    /// An end of a pipe or FIFO.
    Pipe {
        /// The pipe's number.
        pipe: u64,
        /// Reads.
        read: bool,
        /// Writes.
        write: bool,
        /// The FIFO's inode; 0 for an anonymous pipe.
        ino: u64,
    },
    /// A terminal.
    Tty {
        /// Its number.
        tty: u32,
        /// The device file's inode; 0 if it was not opened by name.
        ino: u64,
    },
    /// A character device.
    Char {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
        /// The device file's inode.
        ino: u64,
    },
}

impl Kind {
    /// The inode behind it, if it has one.
    pub fn ino(self) -> Option<u64> {
        match self {
            Kind::File { ino } | Kind::Dir { ino } => Some(ino),
            Kind::Pipe { ino, .. } | Kind::Tty { ino, .. } | Kind::Char { ino, .. } => {
                (ino != 0).then_some(ino)
            }
        }
    }
}

/// An open file description (set `OFILE`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OpenFile {
    /// What it leads to.
    pub kind: Kind,
    /// Access mode and status flags ([`flags`]).
    pub flags: u32,
    /// Next byte to read or write; for a directory, the getdents cursor.
    pub offset: u64,
    /// Descriptors that refer to it.
    pub refs: u32,
}

impl OpenFile {
    /// May be read from.
    pub fn readable(&self) -> bool {
        self.flags & flags::O_PATH == 0 && self.flags & flags::O_ACCMODE != flags::O_WRONLY
    }
    /// May be written to.
    pub fn writable(&self) -> bool {
        self.flags & flags::O_PATH == 0
            && matches!(self.flags & flags::O_ACCMODE, flags::O_WRONLY | flags::O_RDWR)
    }
    /// Calls on it never sleep.
    pub fn nonblocking(&self) -> bool {
        self.flags & flags::O_NONBLOCK != 0
    }
}

/// One descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Number of the open file description.
    pub file: u64,
    /// Closed by execve(2).
    pub cloexec: bool,
}

/// A process's descriptors (set `FDTABLE`); the index is the descriptor.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct FdTable {
    /// Entries; trailing empty ones are not kept.
    pub entries: Vec<Option<Entry>>,
}

impl FdTable {
    /// The entry of a descriptor.
    pub fn get(&self, fd: i32) -> Answer<Entry> {
        usize::try_from(fd).ok().and_then(|i| *self.entries.get(i)?).ok_or(EBADF)
    }

    /// Puts an entry at the lowest free descriptor that is at least `from`.
    pub fn add(&mut self, from: usize, entry: Entry) -> Answer<i32> {
        let fd = (from..MAX_FDS)
            .find(|&i| self.entries.get(i).is_none_or(Option::is_none))
            .ok_or(EMFILE)?;
        self.set(fd, entry);
        Ok(fd as i32)
    }

    /// Puts an entry at `fd`, which is below [`MAX_FDS`]; answers what was there.
    pub fn set(&mut self, fd: usize, entry: Entry) -> Option<Entry> {
        if self.entries.len() <= fd {
            self.entries.resize(fd + 1, None);
        }
        self.entries[fd].replace(entry)
    }

    /// Takes a descriptor out.
    pub fn take(&mut self, fd: i32) -> Answer<Entry> {
        let entry = usize::try_from(fd)
            .ok()
            .and_then(|i| self.entries.get_mut(i))
            .and_then(Option::take)
            .ok_or(EBADF)?;
        while self.entries.last().is_some_and(Option::is_none) {
            self.entries.pop();
        }
        Ok(entry)
    }

    /// Takes out everything that execve(2) closes.
    pub fn take_cloexec(&mut self) -> Vec<Entry> {
        let mut out = Vec::new();
        for e in &mut self.entries {
            if e.is_some_and(|e| e.cloexec) {
                out.extend(e.take());
            }
        }
        while self.entries.last().is_some_and(Option::is_none) {
            self.entries.pop();
        }
        out
    }
}

/// Reads a postcard object; absent is `None`, malformed is EIO.
pub async fn load<C: Cache, T: DeserializeOwned>(
    cache: &C,
    name: clustix_ccache::name::Name,
) -> Answer<Option<T>> {
    let mut buf = Vec::new();
    if !cache.get(name, &mut buf).await?.exists() {
        return Ok(None);
    }
    postcard::from_bytes(&buf).map(Some).map_err(|_| EIO)
}

/// Writes a postcard object.
pub async fn store<C: Cache, T: Serialize>(
    cache: &C,
    name: clustix_ccache::name::Name,
    value: &T,
) -> Answer<()> {
    let bytes = postcard::to_stdvec(value).map_err(|_| EIO)?;
    cache.put(name, bytes).await.map_err(Errno::from)
}

/// Removes an object that only this personality writes.
pub async fn discard<C: Cache>(cache: &C, name: clustix_ccache::name::Name) -> Answer<()> {
    use clustix_ccache::cache::{Expect, Transaction, Write};
    let t = Transaction {
        reads: vec![],
        writes: vec![Write { name, expect: Expect::Any, data: None }],
    };
    cache.transact(t).await.map_err(Errno::from)
}

const LOCKS: usize = 64;

/// Serialises the personality's threads on open file descriptions and tables; holds no state.
pub struct OpenFiles {
    locks: [Mutex<()>; LOCKS],
    next: AtomicU64,
}

impl OpenFiles {
    /// `first`: a number above every description's in the slab.
    pub fn new(first: u64) -> Self {
        Self { locks: [const { Mutex::new(()) }; LOCKS], next: AtomicU64::new(first) }
    }

    /// Held over a read-modify-write of one description; the slab answers without sleeping.
    pub fn lock(&self, file: u64) -> MutexGuard<'_, ()> {
        self.locks[file as usize % LOCKS].lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Description `number` comes from elsewhere: no new one gets it, nor any before it.
    pub fn reserve(&self, number: u64) {
        self.next.fetch_max(number.saturating_add(1), Ordering::Relaxed);
    }

    /// Makes a description with one reference.
    pub async fn create<C: Cache>(&self, cache: &C, kind: Kind, flags: u32) -> Answer<u64> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let file = OpenFile { kind, flags, offset: 0, refs: 1 };
        store(cache, name::ofile(number), &file).await?;
        Ok(number)
    }

    /// Reads a description.
    pub async fn get<C: Cache>(&self, cache: &C, number: u64) -> Answer<OpenFile> {
        load(cache, name::ofile(number)).await?.ok_or(EBADF)
    }

    /// Changes a description under its lock.
    #[allow(clippy::await_holding_lock)] // volatile objects are read and written without sleeping
    pub async fn update<C: Cache, T>(
        &self,
        cache: &C,
        number: u64,
        change: impl FnOnce(&mut OpenFile) -> T,
    ) -> Answer<T> {
        let _held = self.lock(number);
        let mut file = self.get(cache, number).await?;
        let answer = change(&mut file);
        store(cache, name::ofile(number), &file).await?;
        Ok(answer)
    }

    /// Drops one reference; the description itself, once nobody refers to it any more, is removed and
    /// returned: what it led to must be closed.
    #[allow(clippy::await_holding_lock)]
    pub async fn release<C: Cache>(&self, cache: &C, number: u64) -> Answer<Option<OpenFile>> {
        let _held = self.lock(number);
        let mut file = self.get(cache, number).await?;
        file.refs = file.refs.saturating_sub(1);
        if file.refs > 0 {
            store(cache, name::ofile(number), &file).await?;
            return Ok(None);
        }
        discard(cache, name::ofile(number)).await?;
        Ok(Some(file))
    }
}

/// A process's table; absent reads as empty.
pub async fn table<C: Cache>(cache: &C, pid: Pid) -> Answer<FdTable> {
    Ok(load(cache, name::fdtable(pid)).await?.unwrap_or_default())
}

/// Writes a process's table.
pub async fn set_table<C: Cache>(cache: &C, pid: Pid, table: &FdTable) -> Answer<()> {
    store(cache, name::fdtable(pid), table).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use clustix_ccache::local::LocalCache;
    use clustix_pd::exec::block_on;

    #[test]
    fn descriptors_are_the_lowest_free() {
        let mut t = FdTable::default();
        let e = |file| Entry { file, cloexec: file == 8 };
        for i in 0..3 {
            assert_eq!(t.add(0, e(i)), Ok(i as i32));
        }
        assert_eq!(t.take(1), Ok(e(1)));
        assert_eq!(t.take(1), Err(EBADF));
        assert_eq!(t.take(-1), Err(EBADF));
        assert_eq!(t.add(0, e(7)), Ok(1));
        assert_eq!(t.add(10, e(8)), Ok(10));
        assert_eq!(t.take_cloexec(), vec![e(8)]);
        assert_eq!(t.entries.len(), 3);
        for _ in 3..MAX_FDS {
            t.add(0, e(9)).unwrap();
        }
        assert_eq!(t.add(0, e(9)), Err(EMFILE));
    }

    #[test]
    fn the_last_reference_takes_the_description() {
        block_on(async {
            let (cache, files) = (LocalCache::new(), OpenFiles::new(1));
            let n = files.create(&cache, Kind::File { ino: 5 }, flags::O_RDWR).await.unwrap();
            files.update(&cache, n, |f| f.refs += 1).await.unwrap();
            assert_eq!(files.release(&cache, n).await, Ok(None));
            let last = files.release(&cache, n).await.unwrap().unwrap();
            assert_eq!(last.kind, Kind::File { ino: 5 });
            assert_eq!(files.get(&cache, n).await, Err(EBADF));
        });
    }

    #[test]
    fn a_full_table_fits_its_object() {
        let mut t = FdTable::default();
        for _ in 0..MAX_FDS {
            t.add(0, Entry { file: 1 << 27, cloexec: true }).unwrap();
        }
        let max = clustix_ccache::set::descriptor(clustix_ccache::set::FDTABLE).unwrap().capacity;
        assert!(postcard::to_stdvec(&t).unwrap().len() <= max as usize);
    }
}
