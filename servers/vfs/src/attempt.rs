//! Optimistic transactions: one attempt reads objects, changes copies, and commits all of it or
//! nothing; an attempt that lost a race is made again, for a bounded time ([`Attempts`]).

use clustix_ccache::cache::{Cache, CacheError, Expect, MAX_OBJECTS, Transaction, Version, Write};
use clustix_ccache::name::Name;
use clustix_proto::errno::EIO;
use clustix_proto::object::Attempts;
use clustix_proto::once::{Recall, Record};
use clustix_proto::{Answer, Errno};
use std::collections::{BTreeMap, BTreeSet};

/// Why an attempt ended without an effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// The answer to the caller.
    Fail(Errno),
    /// The same, which has been recorded before, with the effect.
    Done(u64),
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
            // Only of attempts with a record.
            Err(Stop::Done(_)) => return Err(EIO),
            Err(Stop::Again) => attempts.again().await?,
        }
    }
}

/// Carries out a transaction that may be made again though it has had its effect, with whatever read it.
pub(crate) async fn transact<C: Cache>(cache: &C, t: Transaction) -> Result<(), Stop> {
    match cache.transact(t).await {
        Err(CacheError::Unknown) => Err(Stop::Again),
        outcome => Ok(outcome?),
    }
}

/// As [`retry`], of a request with a record: its reply, and what is left to do after it, which is nothing
/// where it had had its effect before.
pub async fn retry_once<R: Default>(
    mut attempt: impl AsyncFnMut() -> Result<(u64, R), Stop>,
) -> Answer<(u64, R)> {
    retry(async || match attempt().await {
        Err(Stop::Done(reply)) => Ok((reply, R::default())),
        r => r,
    })
    .await
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
    record: Option<&'a Record>,
    pub(crate) objects: BTreeMap<Name, Object>,
    read: BTreeSet<Name>,
}

impl<'a, C: Cache> Attempt<'a, C> {
    /// A new one, of something that no record is kept of.
    pub fn new(cache: &'a C) -> Self {
        Attempt { cache, record: None, objects: BTreeMap::new(), read: BTreeSet::new() }
    }

    /// A new one for a request: [`Stop::Done`] if it has had its effect before.
    pub async fn begin(cache: &'a C, record: Option<&'a Record>) -> Result<Self, Stop> {
        let mut a = Attempt { record, ..Attempt::new(cache) };
        if let Some(record) = record {
            match record.recall(cache).await? {
                Recall::Answered(Ok(reply)) => return Err(Stop::Done(reply)),
                Recall::Answered(Err(e)) => return Err(Stop::Fail(e)),
                Recall::New(version, data) => a.note(record.name(), version, data),
            }
        }
        Ok(a)
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

    /// Takes over what has been put together elsewhere.
    pub fn add(&mut self, t: Transaction) {
        for (name, version) in t.reads {
            self.note(name, version, Vec::new());
        }
        for Write { name, expect, data } in t.writes {
            self.write(name, expect, data);
        }
    }

    /// Makes the changes, and records that the answer is `reply`, if all that was read is still so; without
    /// changes, only sees to that.
    pub async fn commit(mut self, reply: u64) -> Result<(), Stop> {
        let record = self.record.filter(|_| self.objects.values().any(|o| o.written));
        if let Some(record) = record {
            self.put(record.name(), record.encode(Ok(reply))?)?;
        }
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
        let outcome = self.cache.transact(t).await;
        match record {
            Some(record) if record.ended(outcome) => Err(Stop::Again),
            _ => Ok(outcome?),
        }
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
