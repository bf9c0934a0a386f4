//! A cluster-cache under which a server is killed at a transaction, for tests of what its successor does.

use clustix_ccache::cache::{Cache, CacheError, Transaction, Version, Waited};
use clustix_ccache::local::LocalCache;
use clustix_ccache::name::{Name, Shard};
use clustix_ccache::set::Class;
use clustix_pd::exec;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::sync::Arc;
use std::task::Poll;

/// How a server ends at a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Killed; the transaction never takes effect.
    Before,
    /// Killed once it has.
    After,
    /// Killed; the transaction takes effect right before so many of the successor's.
    Late(usize),
    /// Not killed: the cluster-cache cannot tell, and it has not taken effect.
    UnknownNot,
    /// Not killed: the cluster-cache cannot tell, and it has taken effect.
    UnknownDone,
}

impl Fault {
    /// All of them; a late one before each of a successor's first transactions.
    pub const ALL: [Fault; 7] = [
        Fault::Before,
        Fault::After,
        Fault::Late(0),
        Fault::Late(1),
        Fault::Late(2),
        Fault::UnknownNot,
        Fault::UnknownDone,
    ];
}

/// The cluster-cache as one server sees it, which ends at one of its transactions.
pub struct Faulty {
    inner: Arc<LocalCache>,
    /// At which transaction what happens.
    at: Option<(usize, Fault)>,
    count: Cell<usize>,
    /// The fault has come.
    pub hit: Cell<bool>,
    dead: Cell<bool>,
    /// A predecessor's transaction, and before how many of this server's it comes.
    pub late: RefCell<Option<(usize, Transaction)>>,
}

impl Faulty {
    /// Over `inner`; without a fault all goes well.
    pub fn new(inner: &Arc<LocalCache>, at: Option<(usize, Fault)>) -> Faulty {
        let (count, hit, dead, late) = Default::default();
        Faulty { inner: inner.clone(), at, count, hit, dead, late }
    }

    /// What a server on this cache comes to; `None`: it was killed before.
    pub fn run<T>(&self, server: impl Future<Output = T>) -> Option<T> {
        let killed = std::future::poll_fn(|_| match self.dead.get() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        });
        match exec::block_on(exec::select(server, killed)) {
            exec::Either::Left(done) => Some(done),
            exec::Either::Right(()) => None,
        }
    }

    /// The successor's cache, where a transaction of this server's may come late.
    pub fn successor(&self) -> Faulty {
        let next = Faulty::new(&self.inner, None);
        *next.late.borrow_mut() = self.late.take();
        next
    }

    /// The predecessor's transaction, if it has not come yet, comes now.
    pub fn comes_late(&self) {
        if let Some((_, t)) = self.late.take() {
            let _ = exec::block_on(self.inner.transact(t));
        }
    }

    async fn die<T>(&self) -> T {
        self.dead.set(true);
        std::future::pending().await
    }
}

impl Cache for Faulty {
    async fn get(&self, name: Name, out: &mut Vec<u8>) -> Result<Version, CacheError> {
        self.inner.get(name, out).await
    }
    async fn transact(&self, t: Transaction) -> Result<(), CacheError> {
        if t.writes.is_empty() {
            return self.inner.transact(t).await;
        }
        let count = self.count.get();
        self.count.set(count + 1);
        let late = self.late.borrow_mut().take_if(|(before, _)| *before == count);
        if let Some((_, t)) = late {
            let _ = self.inner.transact(t).await;
        }
        match self.at {
            Some((at, fault)) if at == count => {
                self.hit.set(true);
                match fault {
                    Fault::Before => self.die().await,
                    Fault::After => {
                        let _ = self.inner.transact(t).await;
                        self.die().await
                    }
                    Fault::Late(before) => {
                        *self.late.borrow_mut() = Some((before, t));
                        self.die().await
                    }
                    Fault::UnknownNot => Err(CacheError::Unknown),
                    Fault::UnknownDone => {
                        self.inner.transact(t).await?;
                        Err(CacheError::Unknown)
                    }
                }
            }
            _ => self.inner.transact(t).await,
        }
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
        0
    }
    async fn list(
        &self,
        set: u16,
        after: Option<Name>,
    ) -> Result<Vec<(Name, Version)>, CacheError> {
        self.inner.list(set, after).await
    }
}

/// What the client of a server hears in the end that is killed by `fault` at its transaction `at`: from it, or
/// from its successor, which is asked `again`. `None`: the server did not come to that transaction.
#[expect(clippy::arc_with_non_send_sync, reason = "one thread; servers share their cache by Arc")]
pub fn answer<R>(
    cache: &Arc<LocalCache>,
    (at, fault): (usize, Fault),
    serve: impl Fn(&Arc<Faulty>, bool) -> Option<R>,
) -> Option<R> {
    let first = Arc::new(Faulty::new(cache, Some((at, fault))));
    let answer = serve(&first, false).or_else(|| {
        let next = Arc::new(first.successor());
        let answer = serve(&next, true);
        assert!(answer.is_some(), "nothing kills the successor");
        // If it has not come in time it must not do anything any more.
        next.comes_late();
        answer
    });
    answer.filter(|_| first.hit.get())
}
