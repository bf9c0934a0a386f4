//! One connection: checks who it is, reads its request, answers it.

use super::{Node, ask, fsck, objects, program, tree};
use crate::wire::{self, Failure, Hello, Program, Reply, Request};
use clustix_ccache::cache::Cache;
use clustix_ccache::set;
use clustix_pd::exec;
use clustix_proto::Errno;
use clustix_proto::process::{self, Process, State, Target, name};
use rustix::net::sockopt::socket_peercred;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A peer that has connected must ask within this time.
const HELLO: Duration = Duration::from_secs(10);

/// How long a frozen node waits for imports and starts under way.
const FREEZE: Duration = Duration::from_secs(10);

/// A failure that says what, on what and why.
pub(crate) fn failed(what: impl Into<String>) -> Failure {
    Failure { message: what.into(), elsewhere: false, exit: 1 }
}

/// A failure from an error number; a node without majority or time is worth leaving for another.
pub(crate) fn errno(what: impl std::fmt::Display, e: Errno) -> Failure {
    use clustix_proto::errno::{EAGAIN, EBUSY, EIO};
    Failure {
        message: format!("{what}: {e}"),
        elsewhere: [EAGAIN, EBUSY, EIO].contains(&e),
        exit: 1,
    }
}

/// Serves one connection to its end.
pub(crate) fn serve(node: &Node, mut stream: UnixStream, full: bool) {
    match socket_peercred(&stream) {
        Ok(peer) if peer.uid == node.owner => {}
        _ => return,
    }
    let answer = if full {
        Err(Failure {
            message: format!("node {} has too many connections; try again", node.slot),
            elsewhere: true,
            exit: 1,
        })
    } else {
        hello(&mut stream).and_then(|request| dispatch(node, &mut stream, request))
    };
    let last = match answer {
        Ok(()) => Reply::Done,
        Err(failure) => Reply::Failed(failure),
    };
    // The peer may be gone; then there is nobody to tell.
    let _ = wire::send(&mut stream, &last);
    // What it sent and nobody read would turn the close into a reset that takes the reply along.
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    let mut rest = [0; 4096];
    for _ in 0..1024 {
        match std::io::Read::read(&mut stream, &mut rest) {
            Ok(n) if n > 0 => {}
            _ => break,
        }
    }
}

fn hello(stream: &mut UnixStream) -> Result<Request, Failure> {
    let io = |e: std::io::Error| failed(e.to_string());
    stream.set_read_timeout(Some(HELLO)).map_err(io)?;
    let hello: Hello = match wire::receive(stream) {
        Ok(Some(hello)) => hello,
        Ok(None) => return Err(failed("nothing was asked")),
        Err(e) => return Err(failed(format!("the request could not be read: {e}"))),
    };
    stream.set_read_timeout(None).map_err(io)?;
    if hello.version != wire::VERSION {
        return Err(failed(format!(
            "this node speaks version {} of the control protocol, the command line version {}; use the clustix program that started the cluster",
            wire::VERSION,
            hello.version
        )));
    }
    Ok(hello.request)
}

pub(crate) fn send(stream: &mut UnixStream, reply: &Reply) -> Result<(), Failure> {
    wire::send(stream, reply).map_err(|e| failed(format!("the connection failed: {e}")))
}

fn dispatch(node: &Node, stream: &mut UnixStream, request: Request) -> Result<(), Failure> {
    match request {
        Request::AwaitServing { nodes, witness, millis } => {
            objects::await_serving(node, nodes, witness, millis)
        }
        Request::Status => {
            let status = exec::block_on(objects::status(node))?;
            send(stream, &Reply::Status(status))
        }
        Request::Ps => {
            let programs = exec::block_on(programs(node))?;
            for page in programs.chunks(512) {
                send(stream, &Reply::Programs(page.to_vec()))?;
            }
            Ok(())
        }
        Request::Kill { signal, target } => exec::block_on(kill(node, signal, target)),
        Request::Objects { set } => objects::list(node, stream, set),
        Request::Pds => objects::pds(node, stream),
        Request::Metrics => objects::metrics(node, stream),
        Request::Run(run) => program::run(node, stream, run),
        Request::Attach(attach) => program::attach(node, stream, &attach),
        Request::Import { path } => tree::import(node, stream, path),
        Request::Export { path } => tree::export(node, stream, &path),
        Request::EndPrograms { grace_ms } => {
            let ended = exec::block_on(end_programs(node, grace_ms))?;
            for page in ended.chunks(512) {
                send(stream, &Reply::Programs(page.to_vec()))?;
            }
            Ok(())
        }
        Request::Freeze => {
            if !node.gate.close(FREEZE) {
                return Err(failed(format!(
                    "node {}: an import or the start of a program does not end",
                    node.slot
                )));
            }
            let frozen: Result<process::Pid, Errno> =
                exec::block_on(ask(&node.posix, &clustix_proto::posix::Request::Freeze));
            frozen.map(drop).map_err(|e| {
                node.gate.open();
                errno(format!("node {} could not freeze its programs", node.slot), e)
            })
        }
        Request::Thaw => {
            let thawed: Result<process::Pid, Errno> =
                exec::block_on(ask(&node.posix, &clustix_proto::posix::Request::Thaw));
            node.gate.open();
            thawed
                .map(drop)
                .map_err(|e| errno(format!("node {} could not thaw its programs", node.slot), e))
        }
        Request::Dump => objects::dump(node, stream),
        Request::Restore => objects::restore(node, stream),
        Request::Fsck => fsck::fsck(node, stream),
        Request::Rehome { to, first, last } => objects::rehome(node, to, first, last),
    }
}

/// A process as `ps` shows it.
fn shown(p: &Process) -> Program {
    let words: Vec<String> = p
        .command
        .split(|b| *b == 0)
        .filter(|w| !w.is_empty())
        .map(|w| String::from_utf8_lossy(w).into_owned())
        .collect();
    Program {
        pid: p.pid,
        ppid: p.ppid,
        pgid: p.pgid,
        node: p.node,
        uid: p.uid[0],
        state: match p.state {
            State::Running => 'R',
            State::Stopped(_) => 'T',
            State::Zombie(_) => 'Z',
        },
        tty: p.tty,
        start: p.start,
        command: words.join(" "),
    }
}

/// The processes whose primary is here, but for PID 1, which is no program. All nodes together have
/// all.
async fn programs(node: &Node) -> Result<Vec<Program>, Failure> {
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let page = node
            .cache
            .list(set::PROCESS, after)
            .await
            .map_err(|e| errno("could not list processes", e.into()))?;
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        for (object, _) in page {
            let (process, _) = clustix_proto::object::load::<_, Process>(&node.cache, object)
                .await
                .map_err(|e| errno(format!("could not read {object}"), e))?;
            // It may have ended since it was listed.
            found.extend(process.filter(|p| p.pid != 1).map(|p| shown(&p)));
        }
    }
    found.sort_by_key(|p| p.pid);
    Ok(found)
}

async fn signal(node: &Node, target: Target, signal: u8) -> Result<(), Errno> {
    let request = process::Request::Kill { sender: 0, target, signal };
    node.ask_process(&request).await.map(drop)
}

async fn kill(node: &Node, number: u8, target: i64) -> Result<(), Failure> {
    let pid = u32::try_from(target.unsigned_abs()).map_err(|_| failed("no such process"))?;
    let (target, what) = match target {
        1 => return Err(failed("process 1 is the cluster's own; it cannot be signalled")),
        t if t > 0 => (Target::Process(pid), format!("could not signal process {pid}")),
        _ => (Target::Group(pid), format!("could not signal process group {pid}")),
    };
    signal(node, target, number).await.map_err(|e| errno(what, e))
}

/// TERM to all that [`programs`] lists, KILL to those left after the grace; returns who was running.
async fn end_programs(node: &Node, grace_ms: u32) -> Result<Vec<Program>, Failure> {
    let running = |list: Vec<Program>| -> Vec<Program> {
        list.into_iter().filter(|p| p.state != 'Z').collect()
    };
    let first = running(programs(node).await?);
    for (number, bound_ms) in [(15u8, grace_ms), (9, 5_000)] {
        let left = running(programs(node).await?);
        if left.is_empty() {
            return Ok(first);
        }
        for p in &left {
            match signal(node, Target::Process(p.pid), number).await {
                Ok(()) | Err(clustix_proto::errno::ESRCH) => {}
                Err(e) => return Err(errno(format!("could not end process {}", p.pid), e)),
            }
            if number == 15 && p.state == 'T' {
                // A stopped program takes the signal once it goes on.
                let _ = signal(node, Target::Process(p.pid), 18).await;
            }
        }
        let until = exec::now_ns() + u64::from(bound_ms) * 1_000_000;
        // Those that end may leave children that were not seen; look again until none is left.
        loop {
            let left = running(programs(node).await?);
            if left.is_empty() {
                return Ok(first);
            }
            if exec::now_ns() >= until {
                break;
            }
            await_end(node, &left, until).await?;
        }
    }
    let left = running(programs(node).await?);
    if left.is_empty() {
        return Ok(first);
    }
    let pids: Vec<String> = left.iter().map(|p| p.pid.to_string()).collect();
    Err(failed(format!("these programs would not end: {}", pids.join(" "))))
}

/// Sleeps until one of these has ended, or changed.
async fn await_end(node: &Node, left: &[Program], until: u64) -> Result<(), Failure> {
    let mut on = Vec::new();
    for p in left.iter().take(8) {
        let (process, version) =
            clustix_proto::object::load::<_, Process>(&node.cache, name::process(p.pid))
                .await
                .map_err(|e| errno(format!("could not read process {}", p.pid), e))?;
        match process {
            Some(p) if !matches!(p.state, State::Zombie(_)) => {
                on.push((name::process(p.pid), version))
            }
            _ => return Ok(()),
        }
    }
    node.cache
        .wait(&on, Some(until))
        .await
        .map(drop)
        .map_err(|e| errno("could not wait for programs to end", e.into()))
}

/// The sets that outlive programs.
pub(crate) fn kept(set: u16) -> bool {
    set::descriptor(set).is_some_and(|d| d.snapshot)
}
