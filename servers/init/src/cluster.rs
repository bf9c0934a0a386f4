//! The cluster's part: the first file system and PID 1, and telling the process server which nodes
//! are dead.

use crate::record::{self, Node};
use crate::supervise::wall_s;
use crate::tell::Servers;
use crate::watch::Watch;
use clustix_ccache::cache::{Cache, Version};
use clustix_ccache::client::CacheClient;
use clustix_ccache::layout::control;
use clustix_pd::{Boot, Region, exec};
use clustix_proto::Errno;
use clustix_proto::object::{Attempts, Draft, load};
use clustix_proto::process::{self, Process};
use std::sync::atomic::Ordering;

/// Pause between two looks at the view's epoch: one load of a shared word.
const LOOK_NS: u64 = 50_000_000;
/// Without the shared word a look is a call to ccache, and this far apart.
const ASK_NS: u64 = 200_000_000;
/// Pause before something is tried again.
const AGAIN_NS: u64 = 50_000_000;
/// Node slots.
const SLOTS: u8 = 16;

pub(crate) struct Cluster {
    cache: CacheClient,
    servers: Servers,
    control: Option<Region>,
    node: u8,
    incarnation: u64,
}

/// Makes what a new cluster starts with, as far as it is missing: the file system, then PID 1's
/// record (whoever sees that may use both). Idempotent; several nodes may do it at once.
pub async fn first_boot<C: Cache>(cache: &C) -> Result<(), Errno> {
    clustix_vfs::mkfs(cache).await?;
    let mut attempts = Attempts::new();
    loop {
        let mut d = Draft::repeatable(cache);
        if d.load_bytes(process::name::process(1)).await?.is_some() {
            return Ok(());
        }
        d.store(process::name::process(1), &Process::init(wall_s()))?;
        if d.commit().await? {
            return Ok(());
        }
        attempts.again().await?;
    }
}

/// One view's losses, told to `tell` (slot, highest dead incarnation) until each is acknowledged;
/// those that are not stay in `due` for the next call.
pub async fn follow_view(
    watch: &mut Watch,
    members: &[(u8, u64)],
    due: &mut Vec<(u8, u64)>,
    tell: impl AsyncFn(u8, u64) -> bool,
) {
    for (slot, incarnation) in watch.view(members) {
        due.retain(|(s, _)| *s != slot);
        due.push((slot, incarnation));
    }
    let mut left = Vec::new();
    for (slot, incarnation) in due.drain(..) {
        if !tell(slot, incarnation).await {
            left.push((slot, incarnation));
        }
    }
    *due = left;
}

impl Cluster {
    pub(crate) fn new(boot: &Boot, cache: CacheClient, servers: Servers) -> Cluster {
        Cluster {
            cache,
            servers,
            control: boot.region("arena-control").ok(),
            node: boot.node,
            incarnation: boot.incarnation,
        }
    }

    pub(crate) async fn run(&self) {
        let mut watch = Watch::new();
        self.begin(&mut watch).await;
        let mut due = Vec::new();
        let mut epoch = None;
        loop {
            let now = self.epoch();
            if now.is_none() || now != epoch || !due.is_empty() {
                match self.cache.status().await {
                    // Before the first view there is nothing to compare with.
                    Ok(status) if status.epoch > 0 => {
                        follow_view(&mut watch, &status.members, &mut due, async |slot, i| {
                            // Every node's init does: it is idempotent there, and so needs
                            // nobody to be chosen for it.
                            self.servers.node_lost(slot, i).await
                        })
                        .await;
                        epoch = Some(status.epoch);
                    }
                    Ok(_) => {}
                    Err(e) => tracing::debug!("no view: {e}"),
                }
            }
            let pause = if now.is_none() || !due.is_empty() { ASK_NS } else { LOOK_NS };
            exec::sleep_until(exec::now_ns() + pause).await;
        }
    }

    /// The epoch in force, if this domain may see it without asking.
    fn epoch(&self) -> Option<u64> {
        let words = self.control.as_ref()?.words();
        words.get(control::VIEW_EPOCH as usize / 8).map(|w| w.load(Ordering::Acquire))
    }

    /// Until the cluster has its file system and PID 1; the node's record; which nodes there were
    /// before an earlier init of this node died.
    async fn begin(&self, watch: &mut Watch) {
        let mut told = String::new();
        loop {
            match self.try_begin(watch).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(e) => {
                    let e = e.to_string();
                    if e != told {
                        tracing::warn!("the cluster is not set up yet: {e}");
                        told = e;
                    }
                }
            }
            exec::sleep_until(exec::now_ns() + AGAIN_NS).await;
        }
    }

    async fn try_begin(&self, watch: &mut Watch) -> Result<bool, Errno> {
        let status = self.cache.status().await?;
        if !status.members.contains(&(self.node, self.incarnation)) || !status.lease {
            return Ok(false);
        }
        let mut bytes = Vec::new();
        let pid1 = self.cache.get(process::name::process(1), &mut bytes).await?;
        let first = status.members.iter().map(|(slot, _)| *slot).min();
        if pid1 == Version::ABSENT {
            if first != Some(self.node) {
                return Ok(false);
            }
            first_boot(&self.cache).await?;
            tracing::info!("the file system and process 1 are there");
        }
        for slot in (0..SLOTS).filter(|s| *s != self.node) {
            if let Some(n) = load::<_, Node>(&self.cache, record::node(slot)).await?.0 {
                watch.recorded(slot, n.incarnation);
            }
        }
        let me = Node { incarnation: self.incarnation, started: wall_s() };
        let mut d = Draft::repeatable(&self.cache);
        let known: Option<Node> = d.load(record::node(self.node)).await?;
        if known.is_none_or(|k| k.incarnation < me.incarnation) {
            d.store(record::node(self.node), &me)?;
            return d.commit().await;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clustix_ccache::local::LocalCache;
    use std::cell::RefCell;

    #[test]
    fn first_boot_makes_the_root_and_pid_1_once() {
        let cache = LocalCache::new();
        exec::block_on(async {
            first_boot(&cache).await.unwrap();
            let objects = cache.len();
            let (p, _) = load::<_, Process>(&cache, process::name::process(1)).await.unwrap();
            assert_eq!((p.as_ref().unwrap().pid, p.unwrap().node), (1, Process::NOWHERE));
            clustix_vfs::stat(&cache, clustix_proto::vfs::ROOT).await.unwrap();
            first_boot(&cache).await.unwrap();
            assert_eq!(cache.len(), objects);
        });
    }

    #[test]
    fn a_loss_is_told_until_it_is_acknowledged() {
        exec::block_on(async {
            let (mut watch, mut due) = (Watch::new(), Vec::new());
            let told = RefCell::new(Vec::new());
            let deaf = async |slot, i| {
                told.borrow_mut().push((slot, i));
                false
            };
            follow_view(&mut watch, &[(0, 0), (1, 0), (2, 0)], &mut due, deaf).await;
            follow_view(&mut watch, &[(0, 0), (2, 0)], &mut due, deaf).await;
            follow_view(&mut watch, &[(0, 0)], &mut due, deaf).await;
            assert_eq!(*told.borrow(), [(1, 0), (1, 0), (2, 0)]);
            follow_view(&mut watch, &[(0, 0)], &mut due, async |_, _| true).await;
            assert_eq!(due, []);
        });
    }
}
