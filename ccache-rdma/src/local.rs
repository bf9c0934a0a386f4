//! The plain specification of [`Cache`]: one map under one lock, in one process. Servers' logic is
//! tested on it, and the real cluster-cache is compared with it.

use crate::cache::{
    Cache, CacheError, Expect, MAX_BYTES, MAX_OBJECTS, Transaction, Version, Waited,
};
use crate::name::{Name, SHARDS, Shard};
use crate::set::{Class, descriptor};
use clustix_pd::exec;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Default)]
struct Objects {
    live: BTreeMap<Name, (Version, Vec<u8>)>,
    /// Versions never go back, across remove and create either.
    last: BTreeMap<Name, u64>,
}

/// An in-process cluster of one node. See the module.
#[derive(Default)]
pub struct LocalCache {
    objects: Mutex<Objects>,
    changes: AtomicU32,
    node: u8,
}

impl LocalCache {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of objects that exist.
    pub fn len(&self) -> usize {
        self.objects.lock().unwrap().live.len()
    }

    /// Whether no object exists.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Cache for LocalCache {
    async fn get(&self, name: Name, out: &mut Vec<u8>) -> Result<Version, CacheError> {
        descriptor(name.set()).ok_or(CacheError::Invalid)?;
        out.clear();
        let objects = self.objects.lock().unwrap();
        Ok(objects.live.get(&name).map_or(Version::ABSENT, |(v, d)| {
            out.extend_from_slice(d);
            *v
        }))
    }

    async fn transact(&self, t: Transaction) -> Result<(), CacheError> {
        let bytes: usize = t.writes.iter().filter_map(|w| w.data.as_ref()).map(Vec::len).sum();
        if t.reads.len() + t.writes.len() > MAX_OBJECTS || bytes > MAX_BYTES {
            return Err(CacheError::Invalid);
        }
        for w in &t.writes {
            let d = descriptor(w.name.set()).ok_or(CacheError::Invalid)?;
            let len = w.data.as_ref().map(Vec::len);
            if w.name.shard().0 >= SHARDS || len.is_some_and(|l| l == 0 || l > d.capacity as usize)
            {
                return Err(CacheError::Invalid);
            }
        }
        let mut objects = self.objects.lock().unwrap();
        let version = |o: &Objects, n| o.live.get(&n).map_or(Version::ABSENT, |x| x.0);
        let unchanged = t.reads.iter().all(|(n, v)| version(&objects, *n) == *v)
            && t.writes.iter().all(|w| match w.expect {
                Expect::Any => true,
                Expect::Version(v) => version(&objects, w.name) == v,
            });
        if !unchanged {
            return Err(CacheError::Conflict);
        }
        for w in t.writes {
            let last = objects.last.entry(w.name).or_default();
            *last += 1;
            let v = Version(*last);
            match w.data {
                Some(d) => objects.live.insert(w.name, (v, d)),
                None => objects.live.remove(&w.name),
            };
        }
        drop(objects);
        self.changes.fetch_add(1, Ordering::Release);
        exec::wake_all(&self.changes);
        Ok(())
    }

    async fn grab(&self, name: Name, out: &mut Vec<u8>) -> Result<Version, CacheError> {
        self.get(name, out).await
    }

    async fn release(&self, _: Name) -> Result<(), CacheError> {
        Ok(())
    }

    async fn wait(
        &self,
        on: &[(Name, Version)],
        deadline: Option<u64>,
    ) -> Result<Waited, CacheError> {
        loop {
            let seen = self.changes.load(Ordering::Acquire);
            {
                let objects = self.objects.lock().unwrap();
                for (n, v) in on {
                    if objects.live.get(n).map_or(Version::ABSENT, |x| x.0) != *v {
                        return Ok(Waited::Changed);
                    }
                }
            }
            let change = exec::changed(&self.changes, seen);
            match deadline {
                None => {
                    change.await;
                }
                Some(at) => {
                    if let exec::Either::Right(()) =
                        exec::select(change, exec::sleep_until(at)).await
                    {
                        return Ok(Waited::TimedOut);
                    }
                }
            }
        }
    }

    fn local_shard(&self, _: Class, near: Option<Shard>) -> Shard {
        near.unwrap_or(Shard(1))
    }

    fn node(&self) -> u8 {
        self.node
    }

    async fn list(
        &self,
        set: u16,
        after: Option<Name>,
    ) -> Result<Vec<(Name, Version)>, CacheError> {
        let objects = self.objects.lock().unwrap();
        Ok(objects
            .live
            .iter()
            .filter(|(n, _)| n.set() == set && after.is_none_or(|a| **n > a))
            .take(256)
            .map(|(n, (v, _))| (*n, *v))
            .collect())
    }
}

impl<C: Cache> Cache for std::sync::Arc<C> {
    async fn get(&self, name: Name, out: &mut Vec<u8>) -> Result<Version, CacheError> {
        (**self).get(name, out).await
    }
    async fn transact(&self, t: Transaction) -> Result<(), CacheError> {
        (**self).transact(t).await
    }
    async fn grab(&self, name: Name, out: &mut Vec<u8>) -> Result<Version, CacheError> {
        (**self).grab(name, out).await
    }
    async fn release(&self, name: Name) -> Result<(), CacheError> {
        (**self).release(name).await
    }
    async fn wait(
        &self,
        on: &[(Name, Version)],
        deadline: Option<u64>,
    ) -> Result<Waited, CacheError> {
        (**self).wait(on, deadline).await
    }
    fn local_shard(&self, class: Class, near: Option<Shard>) -> Shard {
        (**self).local_shard(class, near)
    }
    fn node(&self) -> u8 {
        (**self).node()
    }
    async fn list(
        &self,
        set: u16,
        after: Option<Name>,
    ) -> Result<Vec<(Name, Version)>, CacheError> {
        (**self).list(set, after).await
    }
}
