//! Postcard objects read and written as one optimistic transaction.
//!
//! A server's handler loads what it needs into a [`Draft`], changes it, and commits; when an object
//! changed meanwhile it starts again from fresh reads, a bounded number of times ([`Attempts`]).

use crate::Answer;
use crate::errno::{self, Errno};
use crate::once::Record;
use clustix_ccache::cache::{Cache, CacheError, Expect, Transaction, Version, Write};
use clustix_ccache::name::Name;
use clustix_pd::exec;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Parses an object; bytes that are none are EIO (the cluster-cache's contents are damaged).
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Errno> {
    postcard::from_bytes(bytes).map_err(|_| errno::EIO)
}

/// An object's bytes.
pub fn encode<T: Serialize>(object: &T) -> Result<Vec<u8>, Errno> {
    postcard::to_allocvec(object).map_err(|_| errno::EIO)
}

/// Reads one object. `None`: absent.
pub async fn load<C: Cache, T: DeserializeOwned>(
    cache: &C,
    name: Name,
) -> Result<(Option<T>, Version), Errno> {
    let mut bytes = Vec::new();
    let version = cache.get(name, &mut bytes).await?;
    Ok((if version.exists() { Some(decode(&bytes)?) } else { None }, version))
}

struct Seen {
    name: Name,
    version: Version,
    data: Option<Vec<u8>>,
    written: bool,
}

/// What a handler has read and means to write, as one transaction.
pub struct Draft<'c, C> {
    cache: &'c C,
    seen: Vec<Seen>,
    repeatable: bool,
}

impl<'c, C: Cache> Draft<'c, C> {
    /// An empty one, of a handler that may be run again when the outcome of its commit is unknown
    /// (it looks whether its effect is already there).
    pub fn repeatable(cache: &'c C) -> Self {
        Draft { cache, seen: Vec::new(), repeatable: true }
    }

    /// An empty one, of a handler that must not be run twice.
    pub fn once(cache: &'c C) -> Self {
        Draft { cache, seen: Vec::new(), repeatable: false }
    }

    async fn find(&mut self, name: Name) -> Result<usize, Errno> {
        if let Some(i) = self.seen.iter().position(|s| s.name == name) {
            return Ok(i);
        }
        let mut data = Vec::new();
        let version = self.cache.get(name, &mut data).await?;
        let data = version.exists().then_some(data);
        self.seen.push(Seen { name, version, data, written: false });
        Ok(self.seen.len() - 1)
    }

    /// The object as this draft leaves it; `None`: absent. What is loaded must still be so at the
    /// commit.
    pub async fn load<T: DeserializeOwned>(&mut self, name: Name) -> Result<Option<T>, Errno> {
        let i = self.find(name).await?;
        self.seen[i].data.as_deref().map(decode).transpose()
    }

    /// As [`Draft::load`], of an object that is plain bytes.
    pub async fn load_bytes(&mut self, name: Name) -> Result<Option<Vec<u8>>, Errno> {
        let i = self.find(name).await?;
        Ok(self.seen[i].data.clone())
    }

    /// The version at which this draft loaded `name`.
    pub fn version(&self, name: Name) -> Version {
        self.seen.iter().find(|s| s.name == name).map_or(Version::ABSENT, |s| s.version)
    }

    /// The answer that a request has had already; if it has had none, the commit is void should that
    /// change meanwhile.
    pub async fn recall<R: DeserializeOwned>(
        &mut self,
        record: Option<&Record>,
    ) -> Result<Option<Answer<R>>, Errno> {
        let Some(record) = record else { return Ok(None) };
        let i = self.find(record.name()).await?;
        Ok(record.read(self.seen[i].data.as_ref()))
    }

    /// As [`Draft::commit`], of a request's effect, whose answer is recorded.
    pub async fn commit_once<R: Serialize>(
        mut self,
        record: Option<&Record>,
        answer: &R,
    ) -> Result<bool, Errno> {
        let Some(record) = record.filter(|_| self.seen.iter().any(|s| s.written)) else {
            return self.commit().await;
        };
        self.store_bytes(record.name(), record.encode(Ok(answer))?);
        match self.transact().await {
            Err(CacheError::Conflict) => Ok(false),
            outcome if record.ended(outcome) => Ok(false),
            outcome => Ok(outcome.map(|()| true)?),
        }
    }

    /// Writes an object: one loaded before, or else a new one.
    pub fn store<T: Serialize>(&mut self, name: Name, object: &T) -> Result<(), Errno> {
        self.write(name, Some(encode(object)?));
        Ok(())
    }

    /// As [`Draft::store`], of an object that is plain bytes.
    pub fn store_bytes(&mut self, name: Name, bytes: Vec<u8>) {
        self.write(name, Some(bytes));
    }

    /// Removes an object loaded before.
    pub fn remove(&mut self, name: Name) {
        self.write(name, None);
    }

    fn write(&mut self, name: Name, data: Option<Vec<u8>>) {
        match self.seen.iter_mut().find(|s| s.name == name) {
            Some(s) => {
                s.data = data;
                s.written = true;
            }
            None => self.seen.push(Seen { name, version: Version::ABSENT, data, written: true }),
        }
    }

    /// Objects that it has read or means to write.
    pub fn objects(&self) -> usize {
        self.seen.len()
    }

    /// Commits. `false`: something changed meanwhile, nothing was done, start again.
    pub async fn commit(self) -> Result<bool, Errno> {
        let repeatable = self.repeatable;
        match self.transact().await {
            Ok(()) => Ok(true),
            Err(CacheError::Conflict) => Ok(false),
            Err(CacheError::Unknown | CacheError::Gone) if repeatable => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    async fn transact(self) -> Result<(), CacheError> {
        let mut t = Transaction::new();
        for s in self.seen {
            match (s.written, s.data) {
                (false, _) => t.reads.push((s.name, s.version)),
                // Made and removed again within this draft.
                (true, None) if !s.version.exists() => t.reads.push((s.name, s.version)),
                (true, data) => {
                    t.writes.push(Write { name: s.name, expect: Expect::Version(s.version), data })
                }
            }
        }
        if t.writes.is_empty() { Ok(()) } else { self.cache.transact(t).await }
    }
}

/// The bound on an optimistic handler's tries: a time, for what is in the way is another's success,
/// and on a machine that is busy with other things that other may not run for long.
pub struct Attempts {
    until: u64,
    pause_ns: u64,
}

impl Attempts {
    /// How long tries go on, ns.
    pub const PATIENCE: u64 = 10_000_000_000;
    /// First and longest pause between two tries, ns.
    const PAUSES: (u64, u64) = (20_000, 4_000_000);

    /// None used yet.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Attempts {
        Attempts { until: 0, pause_ns: 0 }
    }

    /// After a conflict: pauses, then lets the handler try again; EBUSY when it has tried for long
    /// enough.
    pub async fn again(&mut self) -> Result<(), Errno> {
        if self.pause_ns == 0 {
            // The first conflict is mostly over by now.
            exec::yield_now().await;
            self.pause_ns = Self::PAUSES.0;
            return Ok(());
        }
        let now = exec::now_ns();
        if self.until == 0 {
            self.until = now + Self::PATIENCE;
        }
        if now >= self.until {
            return Err(errno::EBUSY);
        }
        // Those who lost the same race do not meet again: half of the pause is by chance.
        let half = self.pause_ns / 2;
        let chance = now.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        exec::sleep_until(now + half + chance % half).await;
        self.pause_ns = (self.pause_ns * 2).min(Self::PAUSES.1);
        Ok(())
    }
}
