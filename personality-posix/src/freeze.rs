//! The freeze rule: at any freeze every thread is in user code or before or after a call, and a
//! blocked call is data that another node can restart.

use crate::call::RESTART;
use crate::fd::{self, Kind, OpenFile};
use crate::node::Node;
use crate::services::Services;
use crate::state::ProcessContext;
use clustix_ccache::cache::{Cache, Version};
use clustix_ccache::name::Name;
use clustix_pd::exec;
use clustix_process::pipe;
use clustix_proto::Errno;
use clustix_proto::errno::EBUSY;
use clustix_proto::process::{self, Pid, Reply, Which, name};
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
    /// What the descriptor in its first argument leads to, for calls on descriptors.
    pub file: Option<OpenFile>,
}

/// What a blocked call came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Completed {
    /// Its result.
    pub result: Result<i64, Errno>,
    /// What it fills in: for a read the bytes, for wait4 the status.
    pub out: Vec<u8>,
}

/// Makes a blocked call of process `pid` from its data alone, on any node: reads of pipes and
/// terminals, waits and sleeps. `None`: this kind of call needs the app's memory.
pub async fn complete<S: Services>(services: &S, pid: Pid, blocked: &Blocked) -> Option<Completed> {
    const READ: u64 = 0;
    const NANOSLEEP: u64 = 35;
    const WAIT4: u64 = 61;
    let cache = services.cache();
    let mut out = Vec::new();
    let result = match (blocked.nr, blocked.file.map(|f| f.kind)) {
        (READ, Some(Kind::Pipe { pipe, read: true, .. })) => loop {
            let max = usize::try_from(blocked.args[2]).unwrap_or(usize::MAX);
            match pipe::read(cache, pipe, max, &mut out).await {
                Ok(pipe::Step::Done(n)) => break Ok(n as i64),
                Ok(pipe::Step::WouldBlock(name, version)) => {
                    if let Err(e) = cache.wait(&[(name, version)], None).await {
                        break Err(e.into());
                    }
                }
                Err(e) => break Err(e),
            }
        },
        (WAIT4, _) => {
            let which = match blocked.args[0] as i32 {
                -1 => Which::Any,
                n if n > 0 => Which::Pid(n as u32),
                n if n < -1 && n != i32::MIN => Which::Group(-n as u32),
                _ => return None,
            };
            let options = blocked.args[2] as u32 & 0xf;
            let parent = name::process(pid);
            loop {
                let version = match cache.get(parent, &mut Vec::new()).await {
                    Ok(v) => v,
                    Err(e) => break Err(e.into()),
                };
                let request =
                    process::Request::Wait { parent: pid, which, options, keep: false, request: 0 };
                match services.process(&request).await {
                    Ok(Reply::Waited(Some(w))) => {
                        out.extend_from_slice(&w.status.to_le_bytes());
                        break Ok(i64::from(w.pid));
                    }
                    Ok(_) => {}
                    Err(e) => break Err(e),
                }
                if let Err(e) = cache.wait(&[(parent, version)], None).await {
                    break Err(e.into());
                }
            }
        }
        (NANOSLEEP, _) => {
            exec::sleep_until(exec::now_ns().saturating_add(blocked.remaining.unwrap_or(0))).await;
            Ok(0)
        }
        _ => return None,
    };
    Some(Completed { result, out })
}

/// Whether a call's first argument is a descriptor.
pub(crate) fn on_descriptor(nr: u64) -> bool {
    matches!(nr, 0 | 1 | 3 | 16 | 17..=20 | 40 | 72 | 295 | 296)
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
