//! Optimistic transactions: one attempt reads objects, changes copies, and commits all of it or
//! nothing; an attempt that lost a race is made again, for a bounded time ([`Attempts`]).

use clustix_ccache::cache::{Cache, CacheError, Expect, MAX_OBJECTS, Transaction, Version, Write};
use clustix_ccache::name::Name;
use clustix_proto::errno::EIO;
use clustix_proto::object::Attempts;
use clustix_proto::{Answer, Errno};
use std::collections::{BTreeMap, BTreeSet};

/// Why an attempt ended without an effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// The answer to the caller.
    Fail(Errno),
    /// Something changed under it, or was put in order for it: again.
    Again,
}

impl From<Errno> for Stop {
    fn from(e: Errno) -> Stop {
        Stop::Fail(e)
    }
}

impl From<CacheError> for Stop {
    fn from(e: CacheError) -> Stop {
        match e {
            CacheError::Conflict | CacheError::Busy => Stop::Again,
            e => Stop::Fail(e.into()),
        }
    }
}

/// Makes attempts until one ends otherwise than with [`Stop::Again`].
pub async fn retry<R>(mut attempt: impl AsyncFnMut() -> Result<R, Stop>) -> Answer<R> {
    let mut attempts = Attempts::new();
    loop {
        match attempt().await {
            Ok(r) => return Ok(r),
            Err(Stop::Fail(e)) => return Err(e),
            Err(Stop::Again) => attempts.again().await?,
        }
    }
}

pub(crate) struct Object {
    expect: Expect,
    pub(crate) data: Option<Vec<u8>>,
    written: bool,
}

/// One attempt's view of the objects it concerns: what it read, with its own changes applied. All
/// that it read is checked again by the commit.
pub struct Attempt<'a, C> {
    cache: &'a C,
    pub(crate) objects: BTreeMap<Name, Object>,
    read: BTreeSet<Name>,
}

impl<'a, C: Cache> Attempt<'a, C> {
    /// A new one.
    pub fn new(cache: &'a C) -> Self {
        Attempt { cache, objects: BTreeMap::new(), read: BTreeSet::new() }
    }

    /// The cache it works on.
    pub fn cache(&self) -> &'a C {
        self.cache
    }

    /// The object as this attempt sees it; `None`: absent.
    pub async fn get(&mut self, name: Name) -> Answer<Option<&[u8]>> {
        if !self.objects.contains_key(&name) {
            let mut data = Vec::new();
            let version = self.cache.get(name, &mut data).await?;
            self.note(name, version, data);
        }
        Ok(self.objects.get(&name).and_then(|o| o.data.as_deref()))
    }

    /// Takes in what the caller read itself.
    pub fn note(&mut self, name: Name, version: Version, data: Vec<u8>) {
        self.read.insert(name);
        self.objects.entry(name).or_insert(Object {
            expect: Expect::Version(version),
            data: version.exists().then_some(data),
            written: false,
        });
    }

    /// Whether the object was read or written by this attempt.
    pub fn knows(&self, name: Name) -> bool {
        self.objects.contains_key(&name)
    }

    /// Replaces an object that this attempt has read.
    pub fn put(&mut self, name: Name, data: Vec<u8>) -> Answer<()> {
        let o = self.objects.get_mut(&name).ok_or(EIO)?;
        (o.data, o.written) = (Some(data), true);
        Ok(())
    }

    /// Writes an object without having read it: `expect` is [`Version::ABSENT`] to create it.
    pub fn write(&mut self, name: Name, expect: Expect, data: Option<Vec<u8>>) {
        self.objects.insert(name, Object { expect, data, written: true });
    }

    /// Removes an object that this attempt has read.
    pub fn remove(&mut self, name: Name) -> Answer<()> {
        let o = self.objects.get_mut(&name).ok_or(EIO)?;
        (o.data, o.written) = (None, true);
        Ok(())
    }

    /// How many more objects fit.
    pub fn room(&self) -> usize {
        MAX_OBJECTS.saturating_sub(self.objects.len())
    }

    /// Makes the changes, if all that was read is still so; without changes, only sees to that.
    pub async fn commit(self) -> Result<(), Stop> {
        let mut t = Transaction::new();
        for (name, o) in self.objects {
            match o {
                Object { written: true, expect, data } => {
                    t.writes.push(Write { name, expect, data });
                }
                Object { expect: Expect::Version(v), .. } => t.reads.push((name, v)),
                Object { expect: Expect::Any, .. } => {}
            }
        }
        Ok(self.cache.transact(t).await?)
    }

    /// `refusal`, if all that was read is still so: several objects read one after the other may
    /// add up to something that never was.
    pub async fn refuse(self, refusal: Stop) -> Stop {
        let Stop::Fail(_) = refusal else { return refusal };
        let mut t = Transaction::new();
        for (name, o) in &self.objects {
            if let Expect::Version(v) = o.expect
                && self.read.contains(name)
            {
                t.reads.push((*name, v));
            }
        }
        match self.cache.transact(t).await {
            Ok(()) => refusal,
            Err(e) => e.into(),
        }
    }
}
