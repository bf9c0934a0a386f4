//! The freeze rule: at any freeze every thread is in user code or before or after a call, and a
//! blocked call is data that another node can restart.

use crate::call::RESTART;
use crate::fd;
use crate::node::Node;
use crate::services::Services;
use crate::state::ProcessContext;
use clustix_ccache::cache::Version;
use clustix_ccache::name::Name;
use clustix_pd::exec;
use clustix_proto::Errno;
use clustix_proto::errno::EBUSY;
use clustix_proto::process::name;
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;

/// A blocked call (set `THREAD`), postcard: what is needed to make it again elsewhere.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Blocked {
    /// System call number.
    pub nr: u64,
    /// Its arguments.
    pub args: [u64; 6],
    /// How far it has come, in its own terms.
    pub progress: [u64; 2],
    /// The app's instruction pointer, behind the syscall instruction.
    pub ip: u64,
    /// What it waits for.
    pub on: Vec<(Name, Version)>,
    /// Until its deadline, ns.
    pub remaining: Option<u64>,
}

/// Holds a thread until the thaw; its blocked call, if any, stands in its THREAD object meanwhile.
pub async fn hold<S: Services>(
    node: &Node<S>,
    process: &mut ProcessContext,
    blocked: Option<Blocked>,
) -> Result<(), Errno> {
    let cache = node.services.cache();
    let object = name::thread(process.pid);
    let stored = blocked.is_some();
    if let Some(blocked) = blocked {
        fd::store(cache, object, &blocked).await?;
    }
    process.save(cache).await?;
    process.running.held.store(true, Ordering::Release);
    process.running.nudge();
    node.thawed().await;
    process.running.held.store(false, Ordering::Release);
    if stored {
        fd::discard(cache, object).await?;
    }
    if process.running.death.load(Ordering::Acquire) != 0 {
        return Err(RESTART);
    }
    Ok(())
}

/// How long the threads of a node may take to come to a call boundary, ns.
const BOUND_NS: u64 = 2_000_000_000;

/// Holds every thread at a call boundary, or in a call that is stored as data. EBUSY if one does not
/// get there in time; then none is held.
pub async fn freeze<S: Services>(node: &Node<S>) -> Result<(), Errno> {
    if !node.frozen() {
        node.freeze.fetch_add(1, Ordering::AcqRel);
        exec::wake_all(&node.freeze);
    }
    let until = exec::now_ns() + BOUND_NS;
    loop {
        let all: Vec<_> = node.processes().values().cloned().collect();
        let Some(late) = all.into_iter().find(|r| !r.held.load(Ordering::Acquire)) else {
            return Ok(());
        };
        let seen = late.attention.load(Ordering::Acquire);
        if late.held.load(Ordering::Acquire) {
            continue;
        }
        let moved = exec::changed(&late.attention, seen);
        // A process that ends leaves the table without a word.
        let again = exec::sleep_until(until.min(exec::now_ns() + 10_000_000));
        exec::select(moved, again).await;
        if exec::now_ns() >= until {
            thaw(node);
            return Err(EBUSY);
        }
    }
}

/// Lets the threads go on.
pub fn thaw<S: Services>(node: &Node<S>) {
    if node.frozen() {
        node.freeze.fetch_add(1, Ordering::AcqRel);
        exec::wake_all(&node.freeze);
    }
}
