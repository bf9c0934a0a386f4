//! What a personality that died has left in the node's slab: descriptors, open files and states of programs that
//! died with it. It is taken away before the next one's programs need the room, and the servers are told.

use crate::fd::{self, OpenFile};
use crate::node::Node;
use crate::services::Services;
use clustix_ccache::cache::Cache;
use clustix_ccache::name::Name;
use clustix_ccache::set;
use clustix_pd::exec;
use clustix_proto::Errno;
use clustix_proto::process::Request;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Pause before the cluster is asked again.
const AGAIN_NS: u64 = 100_000_000;

/// Empties the slab, before the first program: the inodes that were open.
///
/// # Errors
/// The slab's.
pub async fn clear<S: Services>(node: &Node<S>) -> Result<BTreeSet<u64>, Errno> {
    let cache = node.services.cache();
    let mut inodes = BTreeSet::new();
    for set in [set::FDTABLE, set::PSTATE, set::OFILE] {
        let mut after: Option<Name> = None;
        loop {
            let page = cache.list(set, after).await?;
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            for (object, _) in page {
                if set == set::OFILE {
                    // One that cannot be read leads nowhere that could be told.
                    let file: Option<OpenFile> = fd::load(cache, object).await.unwrap_or_default();
                    inodes.extend(file.and_then(|f| f.kind.ino()));
                }
                fd::discard(cache, object).await?;
            }
        }
    }
    Ok(inodes)
}

/// A task's work: tells the process server which personalities are dead, and lets go of what they had open.
pub async fn settle<S: Services>(node: Arc<Node<S>>, inodes: BTreeSet<u64>) {
    let services = &node.services;
    let lost = Request::PersonalityLost { life: services.life() };
    while let Err(e) = services.process(&lost).await {
        tracing::debug!("who died before is not noted yet: {e}");
        exec::sleep_until(exec::now_ns() + AGAIN_NS).await;
    }
    for ino in inodes {
        // Its mark is this node's, whoever set it: as if it were opened here and closed.
        if node.openers.open(services, ino, true).await.is_ok() {
            node.openers.close(services, ino).await;
        }
    }
}
