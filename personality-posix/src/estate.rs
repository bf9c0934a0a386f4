//! What a personality that died has left: its programs, in their stubs, and in the node's slab their states,
//! descriptors and open files. The next one goes on with every program whose thread can ([`Standing`]); what is
//! left of the others is taken away before new programs need the room, and the servers are told.

use crate::fd::{self, FdTable, Kind, OpenFile};
use crate::lifecycle;
use crate::node::Node;
use crate::services::Services;
use crate::standing::Standing;
use crate::state::{ProcessContext, ProcessState};
use crate::thread::{Start, start};
use clustix_ccache::cache::Cache;
use clustix_ccache::name::Name;
use clustix_ccache::set;
use clustix_pd::{Stub, exec};
use clustix_process::pipe::{self, End};
use clustix_proto::Errno;
use clustix_proto::errno::ESRCH;
use clustix_proto::process::{Pid, Process, Request, name};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Pause before the cluster is asked again.
const AGAIN_NS: u64 = 100_000_000;
/// More requests than a life of a process makes that must happen once: its next life's have other numbers.
const REQUESTS: u64 = 1 << 32;

/// What is left to be told, once there may be new programs.
#[derive(Default)]
struct Left {
    /// Processes of this personality's that cannot go on.
    lost: Vec<Pid>,
    /// Inodes that nobody has open any more.
    inodes: BTreeSet<u64>,
}

/// A program that can go on.
struct Program {
    process: ProcessContext,
    standing: Standing,
    table: FdTable,
}

/// A task's work: goes on with the programs in `stubs`, then lets new ones in, tells the process server which
/// personalities are dead, and lets go of what their programs had open.
pub async fn succeed<S: Services>(node: Arc<Node<S>>, stubs: Vec<Stub>) {
    let left = match take_over(&node, stubs).await {
        Ok(left) => left,
        Err(e) => {
            eprintln!("posix: what the one before left in the slab cannot be taken over: {e}");
            std::process::exit(1);
        }
    };
    node.open();
    node.strays().clear();
    settle(&node, left).await;
}

/// Every object of a set of the slab.
async fn all<C: Cache>(cache: &C, set: u16) -> Result<Vec<Name>, Errno> {
    let mut names = Vec::new();
    loop {
        let page = cache.list(set, names.last().copied()).await?;
        if page.is_empty() {
            return Ok(names);
        }
        names.extend(page.into_iter().map(|(name, _)| name));
    }
}

/// # Errors
/// The slab's. Nothing runs yet then.
async fn take_over<S: Services>(node: &Arc<Node<S>>, stubs: Vec<Stub>) -> Result<Left, Errno> {
    let cache = node.services.cache();
    let mut left = Left::default();
    let mut stubs: HashMap<u32, Stub> = stubs.into_iter().map(|s| (s.id, s)).collect();
    let mut programs: Vec<Program> = Vec::new();
    for object in all(cache, set::PSTATE).await? {
        match claim(node, object, &mut stubs, &mut left).await {
            Some(program) => programs.push(program),
            None => fd::discard(cache, object).await?,
        }
    }
    for stub in stubs.into_keys() {
        node.services.stubs().kill(stub);
    }
    for object in all(cache, set::FDTABLE).await? {
        if !programs.iter().any(|p| p.process.pid == object.id() as Pid) {
            fd::discard(cache, object).await?;
        }
    }
    let mut refs: BTreeMap<u64, u32> = BTreeMap::new();
    for entry in programs.iter().flat_map(|p| p.table.entries.iter().flatten()) {
        *refs.entry(entry.file).or_default() += 1;
    }
    let mut broken = BTreeSet::new();
    for object in all(cache, set::OFILE).await? {
        let number = object.id() as u64;
        node.files.reserve(number);
        // One that cannot be read leads nowhere that could be told.
        let file: Option<OpenFile> = fd::load(cache, object).await.unwrap_or_default();
        match (refs.get(&number), file) {
            (Some(refs), Some(file)) => {
                fd::store(cache, object, &OpenFile { refs: *refs, ..file }).await?;
                if let Err(e) = hold(node, file.kind).await {
                    tracing::warn!("an open file could not be taken over: {e}");
                    broken.insert(number);
                }
            }
            (_, file) => {
                left.inodes.extend(file.and_then(|f| f.kind.ino()));
                fd::discard(cache, object).await?;
            }
        }
    }
    for Program { process, standing, table } in programs {
        let (pid, stub) = (process.pid, process.stub());
        let whole = !table.entries.iter().flatten().any(|e| broken.contains(&e.file));
        if !whole || start(node, process, Start::Left(standing)).is_err() {
            node.services.stubs().kill(stub);
            lifecycle::lose(node, pid).await;
        } else {
            lifecycle::died_before(node, stub);
        }
    }
    // Timers are looked at when one is set: now.
    node.timers.fetch_add(1, Ordering::Release);
    exec::wake_all(&node.timers);
    Ok(left)
}

/// Takes a process over, if its thread can go on.
async fn claim<S: Services>(
    node: &Node<S>,
    object: Name,
    stubs: &mut HashMap<u32, Stub>,
    left: &mut Left,
) -> Option<Program> {
    let services = &node.services;
    let (cache, life, pid) = (services.cache(), services.life(), object.id() as Pid);
    let state: ProcessState = fd::load(cache, object).await.ok().flatten()?;
    let (incarnation, id) = state.stub;
    let stub = stubs.get(&id).filter(|_| incarnation == life.incarnation)?.clone();
    let standing = Standing::of(&stub.window)?;
    let table = fd::table(cache, pid).await.ok()?;
    let taken = async {
        services.process(&Request::Claim { pid, personality: life.start }).await?;
        taken(node, pid, state, stub).await
    };
    match taken.await {
        Ok(process) => {
            stubs.remove(&id);
            Some(Program { process, standing, table })
        }
        Err(ESRCH) => None,
        Err(e) => {
            // It may be this personality's now.
            tracing::warn!("process {pid} could not be taken over: {e}");
            left.lost.push(pid);
            None
        }
    }
}

/// A process that is this personality's from now on.
async fn taken<S: Services>(
    node: &Node<S>,
    pid: Pid,
    mut state: ProcessState,
    stub: Stub,
) -> Result<ProcessContext, Errno> {
    let cache = node.services.cache();
    let object: Process = fd::load(cache, name::process(pid)).await?.ok_or(ESRCH)?;
    if let Some(mask) = state.saved_mask.take() {
        // The call that came with another one is made again.
        state.mask = mask;
    }
    state.requests = state.requests.saturating_add(REQUESTS);
    let (at, interval) = state.timer;
    let process = ProcessContext::new(pid, object.credentials(), state, stub);
    process.save(cache).await?;
    process.running.interval.store(interval, Ordering::Release);
    process.running.timer.store(at, Ordering::Release);
    // What a freeze may have noted of the call under way.
    fd::discard(cache, name::thread(pid)).await?;
    Ok(process)
}

/// What an open file leads to is this personality's from now on.
async fn hold<S: Services>(node: &Node<S>, kind: Kind) -> Result<(), Errno> {
    let services = &node.services;
    if let Some(ino) = kind.ino() {
        node.openers.open(services, ino, true).await?;
    }
    if let Kind::Pipe { pipe, read, write, .. } = kind {
        for (end, held) in [(End::Read, read), (End::Write, write)] {
            if held {
                pipe::claim(services.cache(), pipe, end, services.life()).await?;
            }
        }
    }
    Ok(())
}

/// Tells the process server who cannot go on and which personalities are dead, and lets go of what they had open.
async fn settle<S: Services>(node: &Node<S>, left: Left) {
    let services = &node.services;
    for pid in left.lost {
        insist(node, &lifecycle::lost(node, pid)).await;
    }
    insist(node, &Request::PersonalityLost { life: services.life() }).await;
    for ino in left.inodes {
        // Its mark is this node's, whoever set it: as if it were opened here and closed.
        if node.openers.open(services, ino, true).await.is_ok() {
            node.openers.close(services, ino).await;
        }
    }
}

async fn insist<S: Services>(node: &Node<S>, request: &Request) {
    loop {
        match node.services.process(request).await {
            Ok(_) | Err(ESRCH) => return,
            Err(e) => tracing::debug!("who is lost is not noted yet: {e}"),
        }
        exec::sleep_until(exec::now_ns() + AGAIN_NS).await;
    }
}
