//! What runs beside the workers: the inbox of signals, timers, and stubs' deaths.

use crate::fd;
use crate::node::Node;
use crate::services::Services;
use crate::state::Running;
use clustix_ccache::cache::{Cache, Version};
use clustix_pd::exec;
use clustix_proto::process::{Inbox, Process, Request, SignalInfo, name};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How long the cluster-cache is left alone after an error.
const PAUSE_NS: u64 = 50_000_000;
const SIGALRM: u8 = 14;
const SI_KERNEL: i32 = 0x80;

/// Looks at one process's object for its worker, and makes the worker look too.
async fn mark<S: Services>(node: &Node<S>, running: &Running) {
    // Two bumps, one on each side of the addition: see signal::refresh.
    running.attention.fetch_add(1, Ordering::AcqRel);
    let object: Result<Option<Process>, _> =
        fd::load(node.services.cache(), name::process(running.pid)).await;
    if let Ok(Some(p)) = object {
        running.pending.fetch_or(p.pending, Ordering::AcqRel);
    }
    running.nudge();
}

/// A task's loop: follows this node's inbox.
pub async fn inbox<S: Services>(node: Arc<Node<S>>) {
    let cache = node.services.cache();
    let object = name::inbox(cache.node());
    let mut seen = 0;
    let mut bytes = Vec::new();
    loop {
        let version = match cache.get(object, &mut bytes).await {
            Ok(v) => v,
            Err(_) => {
                exec::sleep_until(exec::now_ns() + PAUSE_NS).await;
                continue;
            }
        };
        if version != Version::ABSENT
            && let Ok(inbox) = postcard::from_bytes::<Inbox>(&bytes)
        {
            let pids = inbox.since(seen).map(<[u32]>::to_vec);
            let whose: Vec<Arc<Running>> = {
                let processes = node.processes();
                match pids {
                    Some(pids) => pids.iter().filter_map(|p| processes.get(p).cloned()).collect(),
                    None => processes.values().cloned().collect(),
                }
            };
            for running in whose {
                mark(&node, &running).await;
            }
            seen = inbox.sequence;
        }
        if cache.wait(&[(object, version)], None).await.is_err() {
            exec::sleep_until(exec::now_ns() + PAUSE_NS).await;
        }
    }
}

/// A task's loop: raises SIGALRM for timers that are due.
pub async fn timers<S: Services>(node: Arc<Node<S>>) {
    loop {
        let seen = node.timers.load(Ordering::Acquire);
        let now = exec::now_ns();
        let all: Vec<Arc<Running>> = node.processes().values().cloned().collect();
        let mut earliest = None;
        for running in all {
            let at = running.timer.load(Ordering::Acquire);
            if at == 0 {
                continue;
            }
            let mut next = at;
            if at <= now {
                let interval = running.interval.load(Ordering::Acquire);
                next = if interval == 0 { 0 } else { (at + interval).max(now + 1) };
                // Set anew meanwhile: that counts, at the next round.
                let taken =
                    running.timer.compare_exchange(at, next, Ordering::AcqRel, Ordering::Acquire);
                if taken.is_err() {
                    next = now;
                } else {
                    raise(&node, &running).await;
                }
            }
            if next != 0 {
                earliest = Some(earliest.map_or(next, |e: u64| e.min(next)));
            }
        }
        let changed = exec::changed(&node.timers, seen);
        match earliest {
            Some(at) => {
                exec::select(changed, exec::sleep_until(at)).await;
            }
            None => {
                changed.await;
            }
        }
    }
}

async fn raise<S: Services>(node: &Node<S>, running: &Running) {
    let info = SignalInfo { signal: SIGALRM, code: SI_KERNEL, pid: 0, uid: 0, status: 0 };
    if node.services.process(&Request::Raise { pid: running.pid, info }).await.is_ok() {
        mark(node, running).await;
    }
}

/// A thread's loop: notes the ends of stubs until there are no more.
pub fn deaths<S: Services>(node: &Node<S>) {
    while let Some(death) = node.services.stubs().next_death() {
        crate::lifecycle::died(node, death.id, death.status);
    }
}
