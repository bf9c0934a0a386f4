//! `clustix run` and `clustix attach`, the cluster's half: which job is attended to, from where on, and what
//! becomes of it when that ends. The bytes between are moved by [`attend`](super::attend).

use super::attend::{Outcome, Session};
use super::session::{errno, failed, send};
use super::streams::{Flow, Inbox, lock, read};
use super::{Node, job};
use crate::wire::{Attach, Failure, Known, Reply, Run, Started, Whom};
use clustix_pd::exec;
use clustix_proto::console;
use clustix_proto::job::{self as jobs, Command, Ending, Io, Job};
use clustix_proto::object::load;
use clustix_proto::process::{self, Process, name};
use clustix_proto::{Errno, errno as numbers};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// Most tries of one client.
const TURNS: u64 = 1 << 32;
/// Longest arguments and variables of a program that may be started again: they are in the job's object.
const KEPT_COMMAND: usize = 60 * 1024;

/// Starts a program, unless its job is there; unless it is kept, attends to it.
pub(crate) fn run(node: &Node, stream: &mut UnixStream, run: Run) -> Result<(), Failure> {
    check(&run)?;
    let pass = node.gate.enter();
    if pass.is_none() {
        return Err(Failure {
            message: "the cluster is stopping".to_owned(),
            elsewhere: false,
            exit: 1,
        });
    }
    let what = format!(
        "could not start {:?} on node {}",
        String::from_utf8_lossy(&run.command.argv[0]),
        node.slot
    );
    let job = exec::block_on(begin(node, &run)).map_err(|e| {
        let exit = match e {
            numbers::ENOENT => 127,
            numbers::EACCES | numbers::ENOEXEC | numbers::EISDIR => 126,
            _ => 1,
        };
        Failure { exit, ..errno(what, e) }
    })?;
    drop(pass);
    if job.kept {
        let started = Started { job: run.job, turn: 0, pid: job.pid, terminal: false, input: None };
        return send(stream, &Reply::Started(started));
    }
    serve(node, stream, run.job, job, None)
}

fn check(run: &Run) -> Result<(), Failure> {
    let Command { argv, env, cwd, .. } = &run.command;
    let length = |list: &[Vec<u8>]| list.iter().map(|s| s.len() + 1).sum::<usize>();
    if run.job >= jobs::NUMBERS || run.turn > TURNS {
        return Err(failed("a job of such a number cannot be"));
    }
    if argv.is_empty() || argv[0].is_empty() {
        return Err(failed("which program?"));
    }
    if length(argv) > 128 * 1024 || length(env) > 128 * 1024 {
        return Err(failed("the arguments or variables are longer than 128 KiB"));
    }
    if run.restarts > 0 && length(argv) + length(env) + cwd.len() > KEPT_COMMAND {
        return Err(failed(
            "the arguments and variables of a program that may be started again are longer than 60 KiB",
        ));
    }
    if argv.iter().chain(env).chain([cwd]).any(|s| s.contains(&0)) {
        return Err(failed("an argument or variable has a zero byte"));
    }
    Ok(())
}

/// The job, whose program has been started, and whose turn is this session's; one whose program cannot be started is
/// not there any more.
async fn begin(node: &Node, run: &Run) -> Result<Job, Errno> {
    let made = job::make(node, run).await?;
    // First, so that a client which comes back finds it attended to by nobody else.
    let job = match (made.kept, made.io) {
        (false, _) => job::attend(node, run.job, Some(run.turn)).await?,
        (true, Io::Terminal(tty)) if made.starts == 0 => {
            let (job, turn) = (run.job, made.turn);
            let request = console::Request::Attach { tty, job, turn, attached: false };
            node.ask_console(&request).await?;
            made
        }
        (true, _) => made,
    };
    if job.starts > 0 {
        return Ok(job);
    }
    match job::start(node, run.job, &job, &run.command).await {
        Ok(now) => Ok(Job { turn: job.turn, ..now }),
        Err(e) => {
            // A process that was made though its program cannot be started is no start to be kept.
            let ending = async || match job::read(node, run.job).await {
                Ok(now) => {
                    let seen = Job { turn: job.turn, ..now };
                    job::end(node, run.job, &seen, Ending::Over).await
                }
                Err(e) => Err(e),
            };
            job::finish(node, "a program that could not be started", ending).await;
            Err(e)
        }
    }
}

/// Attends to a job that is there.
pub(crate) fn attach(node: &Node, stream: &mut UnixStream, attach: &Attach) -> Result<(), Failure> {
    if attach.known.is_some_and(|k| k.turn > TURNS) {
        return Err(failed("nobody can have tried so often"));
    }
    let number = match attach.whom {
        Whom::Job(number) => number,
        Whom::Process(pid) => {
            let found = exec::block_on(load::<_, Process>(&node.cache, name::process(pid)));
            let found = found.map_err(|e| errno(format!("could not find process {pid}"), e))?.0;
            match found.map(|p| p.job) {
                Some(Some(number)) => number,
                Some(None) => {
                    return Err(failed(format!("process {pid} was not started by `clustix run`")));
                }
                None => return Err(failed(format!("there is no process {pid}"))),
            }
        }
    };
    let taken = async {
        let job = job::read(node, number).await?;
        match job.io {
            // A start that its control domain did not live to see through.
            _ if job.starts == 0 || job.ending.is_some() => Err(numbers::ESRCH),
            Io::Null => Err(numbers::ENOTTY),
            Io::Terminal(_) if !attach.tty => Err(numbers::EINVAL),
            _ => job::attend(node, number, attach.known.map(|k| k.turn)).await,
        }
    };
    let job = exec::block_on(taken).map_err(|e| match e {
        numbers::ESRCH => failed("the program is not there any more"),
        numbers::ENOTTY => failed(
            "the program has neither a terminal nor pipes: it was started with --detach, without -t",
        ),
        numbers::EINVAL => failed("the program has a terminal: attach to it from one"),
        numbers::ESTALE => failed("another client attends to the program now"),
        e => errno("could not attend to the program", e),
    })?;
    serve(node, stream, number, job, attach.known)
}

/// Moves bytes until the program has ended, the peer has gone, or another attends.
fn serve(
    node: &Node,
    stream: &mut UnixStream,
    number: u64,
    job: Job,
    known: Option<Known>,
) -> Result<(), Failure> {
    let what = format!("the session of program {}", job.pid);
    let places = exec::block_on(async {
        let places = places(node, number, &job, known).await;
        if places.is_err() {
            // The client will ask again.
            job::finish(node, &what, || job::orphan(node, number, &job)).await;
        }
        places
    });
    let places =
        places.map_err(|e| errno(format!("could not attend to program {}", job.pid), e))?;
    let started = Started {
        job: number,
        turn: job.turn,
        pid: job.pid,
        terminal: matches!(job.io, Io::Terminal(_)),
        input: places.input,
    };
    let started = send(stream, &Reply::Started(started));
    let inbox = Arc::new(Inbox::new());
    let reader = match started.and_then(|()| {
        stream.try_clone().map_err(|e| failed(format!("the connection failed: {e}")))
    }) {
        Ok(from) => {
            let inbox = inbox.clone();
            std::thread::Builder::new()
                .name("input".into())
                .spawn(move || read(from, &inbox))
                .map_err(|e| failed(format!("no thread for the program's input: {e}")))
        }
        Err(e) => Err(e),
    };
    if reader.is_err() {
        inbox.end();
    }
    let peer = Mutex::new(stream);
    let session = Session {
        node,
        number,
        turn: job.turn,
        pid: AtomicU32::new(job.pid),
        inbox: &inbox,
        peer: &peer,
        detached: AtomicBool::new(false),
        accepted: places.input.unwrap_or(0),
        at: places.at,
        out: Flow::new(places.output[0]),
        err: Flow::new(places.output[1]),
    };
    let end = match job.io {
        Io::Pipes => session.pipes(),
        Io::Terminal(tty) => session.terminal(tty),
        Io::Null => Outcome::Gone,
    };
    let pid = session.pid.load(Ordering::Acquire);
    let leaving = async || match job::read(node, number).await {
        Ok(now) => job::leave(node, number, &Job { turn: job.turn, ..now }).await,
        Err(e) => Err(e),
    };
    let answer = match end {
        Outcome::Exited(status, verdict) => {
            let told = session.send(&Reply::Exited { status, verdict });
            exec::block_on(async {
                job::reap(node, pid).await;
                let ending = async || match job::read(node, number).await {
                    Ok(now) => {
                        let seen = Job { turn: job.turn, ..now };
                        job::end(node, number, &seen, Ending::Over).await
                    }
                    Err(e) => Err(e),
                };
                job::finish(node, &what, ending).await;
            });
            if told { Ok(()) } else { Err(failed("the connection was closed")) }
        }
        Outcome::Gone => {
            exec::block_on(job::finish(node, &what, leaving));
            // The peer that asked for it is there, and told.
            match session.detached.load(Ordering::Acquire) {
                true => Ok(()),
                false => Err(failed("the connection was closed")),
            }
        }
        Outcome::Other => Err(failed(format!("another client attends to program {pid} now"))),
        Outcome::Failed(failure) => {
            exec::block_on(job::finish(node, &what, || job::orphan(node, number, &job)));
            Err(failure)
        }
    };
    inbox.close();
    // Nobody reads what still comes: the reader's thread ends with the connection.
    let _ = lock(&peer).shutdown(Shutdown::Read);
    if let Ok(thread) = reader {
        let _ = thread.join();
    }
    answer
}

/// Where the streams go on.
struct Places {
    /// As the client counts; `None`: the program takes none.
    input: Option<u64>,
    /// As the pipe or terminal counts.
    at: u64,
    output: [u64; 2],
}

async fn places(
    node: &Node,
    number: u64,
    job: &Job,
    known: Option<Known>,
) -> Result<Places, Errno> {
    let typed = job::typed(node, number, job).await?;
    // What went nowhere, since the program reads no more, the client alone has counted.
    let accepted = known.map_or(0, |k| k.accepted);
    let input = typed.map(|typed| typed.max(accepted));
    let output = match (job.io, known) {
        // Whether it was detached or not, what it has kept is shown to who comes new.
        (Io::Terminal(tty), known) => {
            let turn = job.turn;
            let request = console::Request::Attach { tty, job: number, turn, attached: true };
            let kept = node.ask_console(&request).await?.value;
            [kept.max(known.map_or(0, |k| k.received[0])), 0]
        }
        (_, Some(known)) => known.received,
        (_, None) => [kept(node, number, 1).await?, kept(node, number, 2).await?],
    };
    Ok(Places { input, at: typed.unwrap_or(0), output })
}

/// Where what a pipe has kept begins.
async fn kept(node: &Node, number: u64, fd: u8) -> Result<u64, Errno> {
    let object = name::pipe(jobs::pipe(number, fd));
    let (found, _) = load::<_, process::Pipe>(&node.cache, object).await?;
    Ok(found.map_or(0, |p| p.read()))
}
