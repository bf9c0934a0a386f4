//! Raft's log, vote and snapshot, in a memory region that outlives this process but not its node's
//! incarnation.
//!
//! The whole image is small (the log is cut at a snapshot every few dozen entries), so each change
//! writes all of it to the half of the region that is not current, then makes that half current.

use crate::TypeConfig;
use crate::command::{Applied, State};
use clustix_ccache::view::View;
use clustix_pd::Region;
use openraft::storage::{LogFlushed, LogState, RaftLogStorage, RaftStateMachine, Snapshot};
use openraft::{
    AnyError, BasicNode, Entry, EntryPayload, LogId, RaftLogReader, RaftSnapshotBuilder,
    SnapshotMeta, StorageError, StorageIOError, StoredMembership, Vote,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::Cursor;
use std::ops::RangeBounds;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, watch};

/// Length of the region.
pub const BYTES: usize = 4 << 20;
const HALF: usize = BYTES / 2;
/// Words at the start of a half: number of the image (0: none), length, checksum.
const HEAD: usize = 24;

type Failure = StorageError<u64>;

#[derive(Default, Serialize, Deserialize)]
struct Image {
    id: u64,
    vote: Option<Vote<u64>>,
    committed: Option<LogId<u64>>,
    purged: Option<LogId<u64>>,
    log: BTreeMap<u64, Entry<TypeConfig>>,
    snapshot: Option<(SnapshotMeta<u64, BasicNode>, Vec<u8>)>,
}

struct Inner {
    image: Image,
    region: Region,
    number: u64,
}

/// Log and vote. Clones share them.
#[derive(Clone)]
pub struct Store(Arc<Mutex<Inner>>);

fn no_room() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::StorageFull, "the raft region is full")
}

impl Store {
    /// Opens the region for raft id `id`: what an earlier process of the same incarnation left
    /// there, or nothing.
    pub fn open(region: Region, id: u64) -> std::io::Result<Store> {
        if region.len() < BYTES || !region.writable() {
            return Err(no_room());
        }
        let read = |half: usize| -> Option<(u64, Image)> {
            let word = |i: usize| region.words()[half * HALF / 8 + i].load(Ordering::Acquire);
            let (number, len, sum) = (word(0), word(1) as usize, word(2));
            if number == 0 || len > HALF - HEAD {
                return None;
            }
            let mut bytes = vec![0; len];
            (region.read(half * HALF + HEAD, &mut bytes)
                && xxhash_rust::xxh3::xxh3_64(&bytes) == sum)
                .then_some(())?;
            Some((number, postcard::from_bytes(&bytes).ok()?))
        };
        let latest = [read(0), read(1)]
            .into_iter()
            .flatten()
            .filter(|(_, image)| image.id == id)
            .max_by_key(|(number, _)| *number);
        let (number, image) = latest.unwrap_or((0, Image { id, ..Image::default() }));
        Ok(Store(Arc::new(Mutex::new(Inner { image, region, number }))))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was nothing.
    pub fn pristine(&self) -> bool {
        let inner = self.inner();
        inner.image.vote.is_none() && inner.image.log.is_empty() && inner.image.snapshot.is_none()
    }

    fn change<T>(&self, f: impl FnOnce(&mut Image) -> T) -> std::io::Result<T> {
        let mut inner = self.inner();
        let result = f(&mut inner.image);
        let bytes = postcard::to_stdvec(&inner.image).map_err(|_| no_room())?;
        inner.number += 1;
        let half = (inner.number % 2) as usize * HALF;
        let words = &inner.region.words()[half / 8..];
        words[0].store(0, Ordering::SeqCst);
        if bytes.len() > HALF - HEAD || !inner.region.write(half + HEAD, &bytes) {
            return Err(no_room());
        }
        words[1].store(bytes.len() as u64, Ordering::SeqCst);
        words[2].store(xxhash_rust::xxh3::xxh3_64(&bytes), Ordering::SeqCst);
        words[0].store(inner.number, Ordering::SeqCst);
        Ok(result)
    }
}

fn write_failure(e: &std::io::Error) -> Failure {
    StorageIOError::write(AnyError::new(e)).into()
}

impl RaftLogReader<TypeConfig> for Store {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<TypeConfig>>, Failure> {
        Ok(self.inner().image.log.range(range).map(|(_, e)| e.clone()).collect())
    }
}

impl RaftLogStorage<TypeConfig> for Store {
    type LogReader = Store;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, Failure> {
        let inner = self.inner();
        let last = inner.image.log.values().next_back().map(|e| e.log_id);
        Ok(LogState {
            last_purged_log_id: inner.image.purged,
            last_log_id: last.or(inner.image.purged),
        })
    }

    async fn get_log_reader(&mut self) -> Store {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), Failure> {
        self.change(|i| i.vote = Some(*vote)).map_err(|e| write_failure(&e))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, Failure> {
        Ok(self.inner().image.vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId<u64>>) -> Result<(), Failure> {
        self.change(|i| i.committed = committed).map_err(|e| write_failure(&e))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId<u64>>, Failure> {
        Ok(self.inner().image.committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), Failure>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + Send,
        I::IntoIter: Send,
    {
        let done = self.change(|i| i.log.extend(entries.into_iter().map(|e| (e.log_id.index, e))));
        callback.log_io_completed(done);
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId<u64>) -> Result<(), Failure> {
        self.change(|i| drop(i.log.split_off(&log_id.index))).map_err(|e| write_failure(&e))
    }

    async fn purge(&mut self, log_id: LogId<u64>) -> Result<(), Failure> {
        self.change(|i| {
            i.log = i.log.split_off(&(log_id.index + 1));
            i.purged = Some(log_id);
        })
        .map_err(|e| write_failure(&e))
    }
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Replicated {
    applied: Option<LogId<u64>>,
    membership: StoredMembership<u64, BasicNode>,
    state: State,
}

/// The state machine: applies commands and hands every view on, in order.
pub struct Machine {
    now: Replicated,
    store: Store,
    views: mpsc::Sender<View>,
    latest: watch::Sender<State>,
}

/// Builds a snapshot of one moment.
pub struct Builder {
    of: Replicated,
    store: Store,
}

fn decode(bytes: &[u8]) -> Option<Replicated> {
    let r: Replicated = postcard::from_bytes(bytes).ok()?;
    (r.state.view.epoch == 0 || r.state.view.well_formed()).then_some(r)
}

impl Machine {
    /// Starts from the snapshot in the store, if there is one. Each view that is applied goes to
    /// `views`; the latest state stands in `latest`.
    pub async fn new(
        store: Store,
        views: mpsc::Sender<View>,
        latest: watch::Sender<State>,
    ) -> Machine {
        let saved = store.inner().image.snapshot.as_ref().and_then(|(_, bytes)| decode(bytes));
        let machine = Machine { now: saved.unwrap_or_default(), store, views, latest };
        machine.publish().await;
        machine
    }

    async fn publish(&self) {
        self.latest.send_replace(self.now.state.clone());
        if self.now.state.view.epoch > 0 {
            // The receiver ends only when this node does.
            let _ = self.views.send(self.now.state.view.clone()).await;
        }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, Failure> {
        let bytes = postcard::to_stdvec(&self.of)
            .map_err(|e| StorageIOError::write_snapshot(None, AnyError::new(&e)))?;
        let index = self.of.applied.map_or(0, |l| l.index);
        let meta = SnapshotMeta {
            last_log_id: self.of.applied,
            last_membership: self.of.membership.clone(),
            snapshot_id: format!("{index}"),
        };
        self.store
            .change(|i| i.snapshot = Some((meta.clone(), bytes.clone())))
            .map_err(|e| write_failure(&e))?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(bytes)) })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<u64>>, StoredMembership<u64, BasicNode>), Failure> {
        Ok((self.now.applied, self.now.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, Failure>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + Send,
        I::IntoIter: Send,
    {
        let mut results = Vec::new();
        for e in entries {
            self.now.applied = Some(e.log_id);
            let mut result = Applied { epoch: self.now.state.view.epoch, changed: false };
            match e.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(command) => {
                    result = self.now.state.apply(&command);
                    if result.changed {
                        self.publish().await;
                    } else {
                        self.latest.send_replace(self.now.state.clone());
                    }
                }
                EntryPayload::Membership(m) => {
                    self.now.membership = StoredMembership::new(Some(e.log_id), m);
                }
            }
            results.push(result);
        }
        Ok(results)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { of: self.now.clone(), store: self.store.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, Failure> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, BasicNode>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), Failure> {
        let bytes = snapshot.into_inner();
        let malformed = std::io::Error::from(std::io::ErrorKind::InvalidData);
        let new = decode(&bytes).ok_or_else(|| {
            StorageIOError::read_snapshot(Some(meta.signature()), AnyError::new(&malformed))
        })?;
        self.store
            .change(|i| i.snapshot = Some((meta.clone(), bytes)))
            .map_err(|e| write_failure(&e))?;
        self.now = Replicated {
            applied: meta.last_log_id,
            membership: meta.last_membership.clone(),
            state: new.state,
        };
        self.publish().await;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, Failure> {
        let saved = self.store.inner().image.snapshot.clone();
        Ok(saved.map(|(meta, bytes)| Snapshot { meta, snapshot: Box::new(Cursor::new(bytes)) }))
    }
}
