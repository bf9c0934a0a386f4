//! What the cluster-cache offers to servers and the personality.

use crate::name::{Name, Shard};
use crate::set::Class;
use serde::{Deserialize, Serialize};
use std::future::Future;

/// Version of an object. [`Version::ABSENT`] stands for "there is no such object".
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct Version(pub u64);

impl Version {
    /// The version of an object that does not exist.
    pub const ABSENT: Version = Version(0);
    /// Whether the object exists.
    pub const fn exists(self) -> bool {
        self.0 != 0
    }
}

/// What a write demands of the object before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Expect {
    /// Anything, absence too.
    Any,
    /// Exactly this version; [`Version::ABSENT`] makes the write a create.
    Version(Version),
}

/// One object that a transaction writes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Write {
    /// Which object.
    pub name: Name,
    /// What it must be.
    pub expect: Expect,
    /// The new payload; `None` removes the object.
    pub data: Option<Vec<u8>>,
}

/// Most objects that one transaction may read and write together.
pub const MAX_OBJECTS: usize = 24;
/// Most payload bytes that one transaction may write.
pub const MAX_BYTES: usize = 192 * 1024;

/// Several objects read and written as one: all of it happens, or nothing.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Transaction {
    /// Objects that must still have the version at which they were read.
    pub reads: Vec<(Name, Version)>,
    /// Objects written.
    pub writes: Vec<Write>,
}

impl Transaction {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }
    /// Demands that `name` still has `version` (absent: [`Version::ABSENT`]).
    pub fn read(mut self, name: Name, version: Version) -> Self {
        self.reads.push((name, version));
        self
    }
    /// Creates `name`.
    pub fn create(self, name: Name, data: Vec<u8>) -> Self {
        self.put(name, Version::ABSENT, data)
    }
    /// Replaces `name`, last seen at `version`.
    pub fn put(mut self, name: Name, version: Version, data: Vec<u8>) -> Self {
        self.writes.push(Write { name, expect: Expect::Version(version), data: Some(data) });
        self
    }
    /// Writes `name`, whatever it was.
    pub fn set(mut self, name: Name, data: Vec<u8>) -> Self {
        self.writes.push(Write { name, expect: Expect::Any, data: Some(data) });
        self
    }
    /// Removes `name`, last seen at `version`.
    pub fn remove(mut self, name: Name, version: Version) -> Self {
        self.writes.push(Write { name, expect: Expect::Version(version), data: None });
        self
    }
}

/// Why the cluster-cache did not do what it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
pub enum CacheError {
    /// An object changed since it was read (or exists, or is absent): read again and retry.
    #[error("an object changed since it was read")]
    Conflict,
    /// The caller holds no capability for the object's class, or not this right.
    #[error("no capability for this set")]
    Denied,
    /// Malformed: unknown set, shard out of range, too many or too large objects.
    #[error("malformed request")]
    Invalid,
    /// The memory budget of a replica, or the shard's slots, are used up.
    #[error("no space left in the cluster-cache")]
    NoSpace,
    /// A queue is full; try again later.
    #[error("busy")]
    Busy,
    /// This node has no valid lease, or the shard has no primary: it is in a minority or evicted.
    #[error("this node is not part of the cluster's majority")]
    NoQuorum,
    /// The effect may or may not have happened (the node was evicted while it was under way).
    #[error("outcome unknown")]
    Unknown,
    /// The service on the other end of the channel died; a new one will come.
    #[error("the cache service went away")]
    Gone,
}

/// How a [`Cache::wait`] ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Waited {
    /// One of the objects has, or may have, another version.
    Changed,
    /// The deadline passed.
    TimedOut,
}

/// The cluster-cache, as one protection domain sees it.
///
/// Every method is sequentially consistent with every other, on every node. Futures must be
/// driven by [`clustix_pd::exec`]; dropping one is safe at any moment (a write already handed on
/// still takes effect or not, as a whole).
pub trait Cache {
    /// Reads `name` into `out` (cleared first; shared copy). [`Version::ABSENT`]: no such object.
    /// A hit costs no IPC.
    fn get(
        &self,
        name: Name,
        out: &mut Vec<u8>,
    ) -> impl Future<Output = Result<Version, CacheError>>;

    /// Reads and writes several objects as one. Objects of a [`Volatile`] set may only be written
    /// alone, and only by the PD that writes that slab.
    ///
    /// [`Volatile`]: crate::set::Durability::Volatile
    fn transact(&self, transaction: Transaction) -> impl Future<Output = Result<(), CacheError>>;

    /// Takes the object exclusively for a bounded time: no other node's put of it succeeds until
    /// this PD's next write of it, [`Cache::release`], or the bound (100 ms). Reads it into `out`.
    fn grab(
        &self,
        name: Name,
        out: &mut Vec<u8>,
    ) -> impl Future<Output = Result<Version, CacheError>>;

    /// Ends a [`Cache::grab`] without writing.
    fn release(&self, name: Name) -> impl Future<Output = Result<(), CacheError>>;

    /// Sleeps until one of `on` (at most 8, all of waitable sets) no longer has the version given,
    /// or until `deadline` (`CLOCK_MONOTONIC`, ns). May end early.
    fn wait(
        &self,
        on: &[(Name, Version)],
        deadline: Option<u64>,
    ) -> impl Future<Output = Result<Waited, CacheError>>;

    /// A shard of `class` whose primary is this node, for creating objects that should live here.
    /// `near` is preferred if its primary is here.
    fn local_shard(&self, class: Class, near: Option<Shard>) -> Shard;

    /// This node's slot in the cluster, 0 to 15.
    fn node(&self) -> u8;

    /// Names and versions of all objects of a set whose primary is this node, in pages: starts
    /// after `after`, ends with an empty page.
    fn list(
        &self,
        set: u16,
        after: Option<Name>,
    ) -> impl Future<Output = Result<Vec<(Name, Version)>, CacheError>>;

    /// Writes one object, whatever it was: a transaction of one.
    fn put(&self, name: Name, data: Vec<u8>) -> impl Future<Output = Result<(), CacheError>> {
        self.transact(Transaction::new().set(name, data))
    }
}
