//! Birth and death of processes on this node: what is made and unmade together.

use crate::call::Call;
use crate::exec::Command;
use crate::fd::{self, Entry, FdTable, Kind, flags};
use crate::node::{MAX_PROCESSES, Node};
use crate::open;
use crate::services::Services;
use crate::state::{ProcessContext, ProcessState};
use crate::thread::{Start, start};
use crate::window::Request;
use clustix_ccache::cache::Cache;
use clustix_pd::exec;
use clustix_process::pipe::{self, End};
use clustix_proto::Errno;
use clustix_proto::errno::*;
use clustix_proto::job;
use clustix_proto::memory;
use clustix_proto::posix::Stdio;
use clustix_proto::process::{self, Pid, Reply, name};
use clustix_proto::vfs::{Credentials, ROOT};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A program to be started for somebody outside the cluster.
pub struct Spawn {
    /// What to run; a path without a slash is looked up in PATH.
    pub command: Command,
    /// Working directory.
    pub cwd: Vec<u8>,
    /// As whom.
    pub credentials: Credentials,
    /// Descriptors 0, 1 and 2.
    pub stdio: Stdio,
    /// Of which job.
    pub start: Option<job::Start>,
}

/// Starts a program; its PID. Whether the program can be run is found out by its own worker.
pub async fn spawn<S: Services>(node: &Arc<Node<S>>, spawn: Spawn) -> Result<Pid, Errno> {
    if node.processes().len() >= MAX_PROCESSES {
        return Err(EAGAIN);
    }
    let services = &node.services;
    let Spawn { mut command, cwd, credentials, stdio, start: of } = spawn;
    let cache = services.cache();
    let dir = match cwd.as_slice() {
        b"" => ROOT,
        path => {
            let found = clustix_vfs::walk(cache, &credentials, ROOT, path, true).await?;
            if !found.inode.is_dir() {
                return Err(ENOTDIR);
            }
            found.ino
        }
    };
    command.path = look_up(services, &credentials, dir, &command).await?;
    let mut shown = command.argv.join(&0);
    shown.truncate(1024);
    let tty = match stdio {
        Stdio::Tty(tty) => Some(tty),
        _ => None,
    };
    let request = process::Request::Spawn {
        uid: credentials.uid,
        gid: credentials.gid,
        groups: credentials.groups.clone(),
        command: shown,
        tty,
        start: of,
        personality: services.life().start,
    };
    let Reply::Pid(pid) = services.process(&request).await? else { return Err(EIO) };
    let made = async {
        if let Some(tty) = tty {
            let session = clustix_proto::console::Request::SetSession { tty, session: pid };
            services.console(&session).await?;
        }
        standard_streams(node, pid, &stdio).await?;
        let stub = services.stubs().spawn()?;
        let of = (services.life().incarnation, stub.id);
        let state = ProcessState { cwd: dir, stub: of, ..ProcessState::default() };
        let process = ProcessContext::new(pid, credentials, state, stub);
        process.save(cache).await?;
        start(node, process, Start::Program(command))
    };
    if let Err(e) = made.await {
        // One that is to run again after a loss is tried again.
        let status = match of {
            Some(start) if start.starts > 0 => process::status::LOST,
            _ => process::status::exited(126),
        };
        unmake(node, pid, status, Some(e.to_string()), (0, 0)).await;
        return Err(e);
    }
    Ok(pid)
}

/// The file that a command names: through PATH if its name has no slash.
async fn look_up<S: Services>(
    services: &S,
    credentials: &Credentials,
    dir: u64,
    command: &Command,
) -> Result<Vec<u8>, Errno> {
    let name = &command.path;
    if name.contains(&b'/') {
        return Ok(name.clone());
    }
    if name.is_empty() {
        return Err(ENOENT);
    }
    let path = command.env.iter().find_map(|e| e.strip_prefix(b"PATH=".as_slice()));
    let mut error = ENOENT;
    for part in
        path.unwrap_or(b"/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin").split(|b| *b == b':')
    {
        let mut full = part.to_vec();
        if !full.is_empty() {
            full.push(b'/');
        }
        full.extend_from_slice(name);
        let found = clustix_vfs::walk(services.cache(), credentials, dir, &full, true).await;
        match found {
            Ok(f)
                if clustix_vfs::may(credentials, &f.inode, clustix_vfs::permission::EXEC)
                    && !f.inode.is_dir() =>
            {
                return Ok(full);
            }
            Ok(_) => error = EACCES,
            Err(_) => {}
        }
    }
    Err(error)
}

/// Opens descriptors 0, 1 and 2 of a new process.
async fn standard_streams<S: Services>(
    node: &Node<S>,
    pid: Pid,
    stdio: &Stdio,
) -> Result<(), Errno> {
    let cache = node.services.cache();
    let mut table = FdTable::default();
    let pipe = |pipe, read| Kind::Pipe { pipe, read, write: !read, ino: 0 };
    let life = node.services.life();
    let plan = match stdio {
        Stdio::Pipes([i, o, e]) => vec![
            (pipe(*i, true), flags::O_RDONLY, vec![0]),
            (pipe(*o, false), flags::O_WRONLY, vec![1]),
            (pipe(*e, false), flags::O_WRONLY, vec![2]),
        ],
        Stdio::Tty(tty) => {
            vec![(Kind::Tty { tty: *tty, ino: 0 }, flags::O_RDWR, vec![0, 1, 2])]
        }
        Stdio::Null => {
            vec![(Kind::Char { major: 1, minor: 3, ino: 0 }, flags::O_RDWR, vec![0, 1, 2])]
        }
    };
    for (kind, access, fds) in plan {
        if let Kind::Pipe { pipe, read, .. } = kind {
            let end = if read { End::Read } else { End::Write };
            pipe::open(cache, pipe, end, life).await?;
        }
        let file = match node.files.create(cache, kind, access).await {
            Ok(file) => file,
            Err(e) => {
                let _ = open::close_kind(node, kind).await;
                return Err(e);
            }
        };
        let refs = fds.len() as u32;
        for fd in fds {
            table.set(fd, Entry { file, cloexec: false });
        }
        let put = async {
            node.files.update(cache, file, |f| f.refs = refs).await?;
            fd::set_table(cache, pid, &table).await
        };
        if let Err(e) = put.await {
            for _ in 0..refs {
                let _ = open::drop_reference(node, file).await;
            }
            return Err(e);
        }
        // From here on the table holds it, and the table's end closes it.
    }
    Ok(())
}

/// What exec does to a process beyond its memory: close-on-exec descriptors.
pub async fn exec<S: Services>(node: &Node<S>, process: &ProcessContext) -> Result<(), Errno> {
    open::close_on_exec(node, process.pid).await
}

/// Tells whoever reads the program's standard error why it could not be started.
pub async fn say<S: Services>(node: &Node<S>, process: &mut ProcessContext, path: &[u8], e: Errno) {
    let text = format!("clustix: {}: {e}\n", String::from_utf8_lossy(path));
    let mut call = Call::new(node, process, &Request::default());
    let Ok((number, file)) = call.file(2).await else { return };
    if call.write_file(number, file, text.as_bytes(), None).await.is_err() {
        tracing::info!("nobody reads: {text}");
    }
}

/// The process has ended: its stub, descriptors, memory and state go; its parent is told.
pub async fn finish<S: Services>(node: &Node<S>, process: &mut ProcessContext, status: i32) {
    node.services.stubs().kill(process.stub());
    // A core dump's flag is not ours: nobody dumps.
    let status = if status & 0x7f != 0 { status & 0x7f } else { status & 0xff00 };
    unmake(node, process.pid, status, None, process.used_us).await;
}

/// A process cannot go on under this personality, which has taken over what it had open.
pub async fn lose<S: Services>(node: &Node<S>, pid: Pid) {
    let process::Request::Exit { status, verdict, own_us, .. } = lost(node, pid) else { return };
    unmake(node, pid, status, verdict, own_us).await;
}

/// The end of a process that cannot go on.
pub(crate) fn lost<S: Services>(node: &Node<S>, pid: Pid) -> process::Request {
    let verdict = format!("lost with the personality of node {}", node.services.cache().node());
    let status = process::status::LOST;
    process::Request::Exit { pid, status, verdict: Some(verdict), own_us: (0, 0) }
}

async fn unmake<S: Services>(
    node: &Node<S>,
    pid: Pid,
    status: i32,
    verdict: Option<String>,
    own_us: (u64, u64),
) {
    let services = &node.services;
    let cache = services.cache();
    let log = |what: &str, r: Result<(), Errno>| {
        if let Err(e) = r {
            tracing::warn!("{what} of process {pid}: {e}");
        }
    };
    log("closing the descriptors", open::close_all(node, pid).await);
    let memory = services.memory(&memory::Request::Remove { space: pid }).await;
    log("removing the areas", memory.map(|_| ()));
    log("removing the state", fd::discard(cache, name::pstate(pid)).await);
    node.processes().remove(&pid);
    tell(node, process::Request::Exit { pid, status, verdict, own_us }).await;
}

/// Tells the end of a process: its parent must hear of it, however long the cluster takes to settle.
async fn tell<S: Services>(node: &Node<S>, end: process::Request) {
    for _ in 0..TRIES {
        match node.services.process(&end).await {
            Ok(_) | Err(ESRCH) => return,
            Err(e) => tracing::warn!("telling the end of a process: {e}"),
        }
        exec::sleep_until(exec::now_ns() + PAUSE_NS).await;
    }
}

/// How often an end is told while the cluster cannot take it.
const TRIES: u32 = 100;
/// And how long between.
const PAUSE_NS: u64 = 100_000_000;

/// Makes a running child of a process: everything but its place in the stub, which is forked already
/// by order of the caller.
pub struct Birth {
    /// Its PID.
    pub pid: Pid,
    /// Its stub, and the window it will say hello on.
    pub stub: clustix_pd::Stub,
}

/// What fork(2) copies, before the stub forks: process object, descriptors, areas, state.
pub async fn conceive<S: Services>(
    node: &Node<S>,
    process: &mut ProcessContext,
    exit_signal: u8,
) -> Result<Birth, Errno> {
    if node.processes().len() >= MAX_PROCESSES {
        return Err(EAGAIN);
    }
    let services = &node.services;
    let request = process.request();
    let parent = process.pid;
    let fork = process::Request::Fork { parent, exit_signal, request };
    let Reply::Pid(pid) = services.process(&fork).await? else { return Err(EIO) };
    let made = async {
        open::inherit(node, parent, pid).await?;
        services.memory(&memory::Request::Fork { parent, child: pid }).await?;
        services.stubs().fork(process.stub())
    };
    match made.await {
        Ok(stub) => Ok(Birth { pid, stub }),
        Err(e) => {
            unmake(node, pid, process::status::killed(9), None, (0, 0)).await;
            Err(e)
        }
    }
}

/// Starts the worker of a child whose stub has been forked.
pub async fn deliver<S: Services>(
    node: &Arc<Node<S>>,
    parent: &ProcessContext,
    birth: Birth,
    begin: Start,
) -> Result<Pid, Errno> {
    let Birth { pid, stub } = birth;
    let id = stub.id;
    let state = ProcessState {
        requests: 0,
        saved_mask: None,
        timer: (0, 0),
        stub: (node.services.life().incarnation, id),
        ..parent.state.clone()
    };
    let child = ProcessContext::new(pid, parent.credentials.clone(), state, stub);
    let started = match child.save(node.services.cache()).await {
        Ok(()) => start(node, child, begin),
        Err(e) => Err(e),
    };
    if let Err(e) = started {
        node.services.stubs().kill(id);
        unmake(node, pid, process::status::killed(9), None, (0, 0)).await;
        return Err(e);
    }
    Ok(pid)
}

/// A fork that the stub did not make.
pub async fn abandon<S: Services>(node: &Node<S>, birth: Birth) {
    node.services.stubs().kill(birth.stub.id);
    unmake(node, birth.pid, process::status::killed(9), None, (0, 0)).await;
}

/// Notes that a stub has ended: whose it was finds out.
pub fn died<S: Services>(node: &Node<S>, stub: u32, status: i32) {
    let processes = node.processes();
    let whose = processes.values().find(|r| r.stub.load(Ordering::Acquire) == stub).cloned();
    match whose {
        Some(running) => {
            running.death.store(status as u32 & 0xffff | 1 << 31, Ordering::Release);
            running.nudge();
        }
        // Perhaps of a process that is about to be taken over.
        None if node.ready.load(Ordering::Acquire) == 0 => node.strays().push((stub, status)),
        None => {}
    }
}

/// Notes the end of a stub that ended before its process was taken over.
pub fn died_before<S: Services>(node: &Node<S>, stub: u32) {
    let before = node.strays().iter().find(|(id, _)| *id == stub).copied();
    if let Some((_, status)) = before {
        died(node, stub, status);
    }
}
