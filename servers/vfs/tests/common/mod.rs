//! What the vfs's tests share: a cache that is awkward on purpose, and fresh file systems.
#![allow(dead_code)]

use clustix_ccache::cache::{Cache, CacheError, Transaction, Version, Waited};
use clustix_ccache::local::LocalCache;
use clustix_ccache::name::{Name, Shard};
use clustix_ccache::set::Class;
use clustix_pd::exec;
use clustix_proto::Answer;
use clustix_proto::vfs::{Credentials, Request};
use std::cell::Cell;
use std::sync::Arc;

/// A cache that lets other tasks run in the middle of things and refuses some transactions, in an
/// order that its seed decides.
pub struct Awkward {
    pub inner: Arc<LocalCache>,
    state: Cell<u64>,
    /// Of 256 transactions, those refused without cause.
    refused: u64,
    yields: bool,
    pub node: u8,
    pub transactions: Cell<u64>,
    pub gets: Cell<u64>,
}

impl Awkward {
    pub fn new(inner: Arc<LocalCache>, seed: u64, refused: u64, yields: bool) -> Self {
        let state = Cell::new(seed | 1);
        let (transactions, gets) = Default::default();
        Awkward { inner, state, refused, yields, node: 0, transactions, gets }
    }

    pub fn random(&self) -> u64 {
        let mut x = self.state.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.state.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    async fn pause(&self) {
        if self.yields {
            for _ in 0..self.random() % 4 {
                exec::yield_now().await;
            }
        }
    }
}

impl Cache for Awkward {
    async fn get(&self, name: Name, out: &mut Vec<u8>) -> Result<Version, CacheError> {
        self.pause().await;
        self.gets.set(self.gets.get() + 1);
        self.inner.get(name, out).await
    }
    async fn transact(&self, t: Transaction) -> Result<(), CacheError> {
        self.pause().await;
        if self.random() % 256 < self.refused {
            return Err(if self.random().is_multiple_of(4) {
                CacheError::Busy
            } else {
                CacheError::Conflict
            });
        }
        self.transactions.set(self.transactions.get() + 1);
        self.inner.transact(t).await
    }
    async fn grab(&self, name: Name, out: &mut Vec<u8>) -> Result<Version, CacheError> {
        self.inner.grab(name, out).await
    }
    async fn release(&self, name: Name) -> Result<(), CacheError> {
        self.inner.release(name).await
    }
    async fn wait(&self, on: &[(Name, Version)], d: Option<u64>) -> Result<Waited, CacheError> {
        self.inner.wait(on, d).await
    }
    fn local_shard(&self, class: Class, near: Option<Shard>) -> Shard {
        self.inner.local_shard(class, near)
    }
    fn node(&self) -> u8 {
        self.node
    }
    async fn list(
        &self,
        set: u16,
        after: Option<Name>,
    ) -> Result<Vec<(Name, Version)>, CacheError> {
        self.inner.list(set, after).await
    }
}

/// A new file system on a cache that behaves.
pub fn fresh() -> Arc<LocalCache> {
    let cache = Arc::new(LocalCache::new());
    exec::block_on(clustix_vfs::mkfs(&*cache)).unwrap();
    cache
}

pub const ROOT_USER: Credentials = Credentials::ROOT;

pub fn mkdir(dir: u64, path: &str) -> Request {
    Request::Mkdir { cred: ROOT_USER, dir, path: path.into(), mode: 0o777 }
}

pub fn create(dir: u64, path: &str) -> Request {
    Request::Create { cred: ROOT_USER, dir, path: path.into(), mode: 0o666, exclusive: false }
}

pub fn unlink(dir: u64, path: &str) -> Request {
    Request::Unlink { cred: ROOT_USER, dir, path: path.into(), rmdir: false }
}

pub fn rmdir(dir: u64, path: &str) -> Request {
    Request::Unlink { cred: ROOT_USER, dir, path: path.into(), rmdir: true }
}

pub fn rename(dir: u64, old: &str, new: &str) -> Request {
    Request::Rename {
        cred: ROOT_USER,
        old_dir: dir,
        old: old.into(),
        new_dir: dir,
        new: new.into(),
        no_replace: false,
        exchange: false,
    }
}

/// Runs a request, and closes what it left open, as a personality with nothing open would.
pub async fn run<C: Cache>(cache: &C, request: Request) -> Answer<u64> {
    let create = matches!(request, Request::Create { .. });
    let takes = matches!(request, Request::Unlink { .. } | Request::Rename { .. });
    let r = clustix_vfs::handle(cache, request).await;
    if let Ok(ino) = r
        && (create || takes && ino != 0)
    {
        clustix_vfs::handle(cache, Request::Closed { ino }).await?;
    }
    r
}

/// The file system has no problem, and what is left of it is as many objects as expected.
pub fn assert_sound<C: Cache>(cache: &C) {
    let problems = exec::block_on(clustix_vfs::fsck(cache)).unwrap();
    assert!(problems.is_empty(), "{problems:#?}");
}

/// A seed for a test, printed so that a failure can be run again: `SEED=… cargo test`.
pub fn seed() -> u64 {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(exec::now_ns);
    println!("SEED={seed}");
    seed
}
