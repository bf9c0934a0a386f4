//! The freeze rule: at any freeze every thread is in user code or before or after a call, and a
//! blocked call is data that another node can restart.

use crate::call::RESTART;
use crate::fd::{self, Kind, OpenFile};
use crate::node::Node;
use crate::services::Services;
use crate::state::ProcessContext;
use crate::tty::{self, Next, Reading};
use clustix_ccache::cache::{Cache, CacheError, Transaction, Version, Waited};
use clustix_ccache::name::Name;
use clustix_ccache::set::{self, Durability};
use clustix_pd::exec;
use clustix_process::pipe;
use clustix_proto::Errno;
use clustix_proto::console;
use clustix_proto::errno::{EBUSY, EEXIST, EINVAL};
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

/// Makes a blocked call of process `pid` from its data, on any node: reads of pipes and terminals,
/// writes to pipes, waits and sleeps. `memory` is what stands in the app's memory where the call's
/// buffer does: private memory comes by another way, and only writes need it. `None`: this kind of
/// call is not made here, or needs more of the app's memory.
pub async fn complete<S: Services>(
    services: &S,
    pid: Pid,
    blocked: &Blocked,
    memory: &[u8],
) -> Option<Completed> {
    const READ: u64 = 0;
    const WRITE: u64 = 1;
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
        (READ, Some(Kind::Tty { tty, .. })) => {
            let max = usize::try_from(blocked.args[2]).unwrap_or(usize::MAX);
            let until = blocked.remaining.map(|left| exec::now_ns().saturating_add(left));
            let mut reading = Reading::new(tty, max, until);
            let ended = read_terminal(services, &mut reading).await;
            out = reading.out;
            ended.map(|()| out.len() as i64)
        }
        (WRITE, Some(Kind::Pipe { pipe, write: true, .. })) => {
            let bytes = memory.get(..usize::try_from(blocked.args[2]).ok()?)?;
            let mut done = usize::try_from(blocked.progress[0]).ok()?;
            loop {
                let rest = bytes.get(done..)?;
                if rest.is_empty() {
                    break Ok(done as i64);
                }
                let error = match pipe::write(cache, pipe, rest).await {
                    Ok(pipe::Step::Done(n)) => {
                        done += n;
                        continue;
                    }
                    Ok(pipe::Step::WouldBlock(name, version)) => {
                        match cache.wait(&[(name, version)], None).await {
                            Ok(_) => continue,
                            Err(e) => e.into(),
                        }
                    }
                    Err(e) => e,
                };
                break if done > 0 { Ok(done as i64) } else { Err(error) };
            }
        }
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

/// Reads until the read is over, or its deadline.
async fn read_terminal<S: Services>(services: &S, reading: &mut Reading) -> Result<(), Errno> {
    let cache = services.cache();
    loop {
        let (now, version) = tty::look(cache, reading.tty).await?;
        match reading.step(services, &now).await? {
            Next::End => return Ok(()),
            Next::Step => continue,
            Next::Sleep => {}
        }
        let on = [(console::tty(reading.tty), version)];
        if cache.wait(&on, reading.deadline).await? == Waited::TimedOut {
            return Ok(());
        }
    }
}

/// Puts volatile objects of a freeze in this node's slab, before the programs they are of go on here.
/// Those that stand there with the same contents are left alone (the request may come twice). EEXIST:
/// one stands there with other contents, since another program has its number. EINVAL: an object that
/// is not volatile, or that no personality makes; nothing is done.
pub async fn restore<S: Services>(
    node: &Node<S>,
    objects: Vec<(Name, Vec<u8>)>,
) -> Result<(), Errno> {
    let mut files = Vec::new();
    for (object, data) in &objects {
        let number = u64::try_from(object.id()).map_err(|_| EINVAL)?;
        let set = set::descriptor(object.set()).ok_or(EINVAL)?;
        let volatile = set.durability == Durability::Volatile;
        if !volatile || *object != Name::numbered(set.id, number) || data.is_empty() {
            return Err(EINVAL);
        }
        if set.id == set::OFILE {
            files.push(number);
        }
    }
    // Before any of them stands there: no description made meanwhile may get its number.
    files.into_iter().for_each(|number| node.files.reserve(number));
    let cache = node.services.cache();
    for (object, data) in objects {
        match cache.transact(Transaction::new().create(object, data.clone())).await {
            Err(CacheError::Conflict) => {
                let mut stands = Vec::new();
                cache.get(object, &mut stands).await?;
                if stands != data {
                    return Err(EEXIST);
                }
            }
            other => other?,
        }
    }
    Ok(())
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
