//! `clustix run` and `clustix attach`, the cluster's half: a program's pipes or terminal, its signals and its end.
//!
//! One thread reads the peer's frames into a bounded queue; the session's own thread runs the tasks
//! that move bytes, all in the futex executor. Both outputs keep to the credit that the
//! peer gives back, so a peer that does not read stops its program and nothing else. What it has not
//! taken stays in the cluster: should this domain end, the peer goes on at another.

use super::session::{errno, failed, send};
use super::streams::{Flow, Inbox, Words, lock, read};
use super::{Node, job};
use crate::wire::{self, Attach, CHUNK, Failure, Input, Known, Reply, Run, Started, Stream, Whom};
use clustix_ccache::cache::{Cache, Version};
use clustix_ccache::name::Name;
use clustix_pd::exec;
use clustix_process::pipe::{self, End, Step};
use clustix_proto::console::{self, Tty};
use clustix_proto::job::{self as jobs, Command, Ending, Io, Job};
use clustix_proto::object::load;
use clustix_proto::process::{self, Process, State, name};
use clustix_proto::{Errno, errno as numbers};
use std::future::Future;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Pause before something is tried again that the cluster could not do.
const AGAIN_NS: u64 = 20_000_000;
/// Longest that the end of a session is tried; a node that cannot for so long is about to leave the cluster.
const LEAVE_NS: u64 = 60_000_000_000;
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
            finish(node, "a program that could not be started", ending).await;
            Err(e)
        }
    }
}

/// Does what ends a session, again until it is done or the job is another's.
async fn finish(node: &Node, what: &str, end: impl AsyncFn() -> Result<(), Errno>) {
    let until = exec::now_ns() + LEAVE_NS;
    loop {
        match end().await {
            Ok(()) | Err(numbers::ESTALE | numbers::ESRCH) => return,
            Err(e) if exec::now_ns() >= until => {
                return tracing::error!("node {}: {what} is left over: {e}", node.slot);
            }
            Err(_) => exec::sleep_until(exec::now_ns() + AGAIN_NS).await,
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
            finish(node, &what, || job::orphan(node, number, &job)).await;
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
                finish(node, &what, ending).await;
            });
            if told { Ok(()) } else { Err(failed("the connection was closed")) }
        }
        Outcome::Gone => {
            exec::block_on(finish(node, &what, leaving));
            // The peer that asked for it is there, and told.
            match session.detached.load(Ordering::Acquire) {
                true => Ok(()),
                false => Err(failed("the connection was closed")),
            }
        }
        Outcome::Other => Err(failed(format!("another client attends to program {pid} now"))),
        Outcome::Failed(failure) => {
            exec::block_on(finish(node, &what, || job::orphan(node, number, &job)));
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

/// How a session ends.
enum Outcome {
    Exited(i32, Option<String>),
    /// The peer went.
    Gone,
    /// Another attends to the job.
    Other,
    Failed(Failure),
}

/// A job whose peer is there.
struct Session<'a> {
    node: &'a Node,
    number: u64,
    turn: u64,
    pid: AtomicU32,
    inbox: &'a Inbox,
    peer: &'a Mutex<&'a mut UnixStream>,
    /// The peer has asked for its leave.
    detached: AtomicBool,
    /// Bytes of input that were accepted before, as the client counts.
    accepted: u64,
    /// The same, as the pipe or terminal counts.
    at: u64,
    out: Flow,
    err: Flow,
}

type Mover<'f> = Pin<Box<dyn Future<Output = ()> + 'f>>;

impl Session<'_> {
    /// Runs these tasks until the program has ended, the peer has gone or another attends.
    fn attend<'f>(&'f self, gone: &'f AtomicU32, movers: Vec<Mover<'f>>) -> Outcome {
        let stop = AtomicU32::new(0);
        let end = Mutex::new(Outcome::Gone);
        let mut tasks: Vec<Mover<'_>> = Vec::new();
        for mover in movers {
            let stop = &stop;
            tasks.push(Box::pin(async move {
                exec::select(mover, exec::changed(stop, 0)).await;
            }));
        }
        tasks.push(Box::pin(async {
            let ended = exec::select(self.end(), exec::changed(gone, 0)).await;
            if let exec::Either::Left(how) = ended {
                *lock(&end) = how;
            }
            stop.store(1, Ordering::Release);
            exec::wake_all(&stop);
        }));
        exec::run(tasks);
        end.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn pipes(&self) -> Outcome {
        let (input, gone) = (Words::new(), AtomicU32::new(0));
        let end = self.attend(
            &gone,
            vec![
                Box::pin(self.dispatch(None, &input, &gone)),
                Box::pin(self.feed(&input)),
                Box::pin(self.show(1, Stream::Out, &self.out)),
                Box::pin(self.show(2, Stream::Err, &self.err)),
            ],
        );
        if matches!(end, Outcome::Exited(..)) {
            exec::block_on(async {
                // What the program left in its pipes; what its children still write, nobody reads.
                self.rest(1, Stream::Out, &self.out).await;
                self.rest(2, Stream::Err, &self.err).await;
            });
        }
        end
    }

    /// Waits for the program's end, also of one that takes its place.
    async fn end(&self) -> Outcome {
        let mut why = None;
        loop {
            match self.look(&mut why).await {
                Ok(Look::End(end)) => return end,
                Ok(Look::On(on)) => {
                    if self.node.cache.wait(&on, None).await.is_err() {
                        self.pause().await;
                    }
                }
                // The node has no majority for now, or its ccache is busy.
                Err(_) => self.pause().await,
            }
        }
    }

    async fn look(&self, why: &mut Option<String>) -> Result<Look, Errno> {
        let cache = &self.node.cache;
        let (job, version) = load::<_, Job>(cache, jobs::name(self.number)).await?;
        let Some(job) = job else {
            let gone = format!("program {} is gone", self.pid.load(Ordering::Acquire));
            return Ok(Look::End(Outcome::Failed(failed(gone))));
        };
        if job.turn != self.turn {
            return Ok(Look::End(Outcome::Other));
        }
        let watched = (jobs::name(self.number), version);
        if self.pid.swap(job.pid, Ordering::AcqRel) != job.pid {
            self.send(&Reply::Again { pid: job.pid, why: why.take().unwrap_or_default() });
        }
        let object = name::process(job.pid);
        let (program, version) = load::<_, Process>(cache, object).await?;
        Ok(match program {
            None => Look::End(Outcome::Failed(failed(format!(
                "program {} ended and its status was taken by another",
                job.pid
            )))),
            Some(p) if job.starts_again(&p) => {
                *why = p.verdict;
                Look::On(vec![watched])
            }
            Some(Process { state: State::Zombie(status), verdict, .. }) => {
                Look::End(Outcome::Exited(status, verdict))
            }
            Some(_) => Look::On(vec![watched, (object, version)]),
        })
    }

    /// Hands the peer's frames to whom they concern; rings `gone` when the peer has gone.
    async fn dispatch(&self, tty: Option<u32>, input: &Words, gone: &AtomicU32) {
        while let Some(frame) = self.inbox.next().await {
            match frame {
                Input::Stdin(bytes) => {
                    if !input.push(bytes) {
                        break;
                    }
                }
                Input::Signal(number) if (1..=64).contains(&number) => {
                    // As a terminal's: nobody waits for it to succeed.
                    let pid = self.pid.load(Ordering::Acquire);
                    let _ = job::signal(self.node, pid, number).await;
                }
                Input::Signal(_) => break,
                Input::Winsize(winsize) => {
                    if let Some(tty) = tty {
                        let request = console::Request::SetWinsize { tty, winsize };
                        let _ = self.node.ask_console(&request).await;
                    }
                }
                Input::Taken(Stream::Out, upto) => self.out.take_upto(upto),
                Input::Taken(Stream::Err, upto) => self.err.take_upto(upto),
                // A terminal whose client does not show it any more is hung up.
                Input::Closed(_) if tty.is_some() => break,
                Input::Closed(Stream::Out) => self.out.close(),
                Input::Closed(Stream::Err) => self.err.close(),
                Input::Detach => {
                    finish(self.node, "a detached program", || job::keep(self.node, self.number))
                        .await;
                    self.detached.store(true, Ordering::Release);
                    break;
                }
            }
        }
        gone.store(1, Ordering::Release);
        exec::wake_all(gone);
        std::future::pending::<()>().await;
    }

    fn send(&self, reply: &Reply) -> bool {
        wire::send(&mut **lock(self.peer), reply).is_ok()
    }

    /// The peer's bytes into the program's standard input.
    async fn feed(&self, input: &Words) {
        let (cache, number) = (&self.node.cache, jobs::pipe(self.number, 0));
        let (mut accepted, mut at) = (self.accepted, self.at);
        loop {
            let bytes = input.next().await;
            if bytes.is_empty() {
                while pipe::leave(cache, number, End::Write).await.is_err() {
                    self.pause().await;
                }
                return;
            }
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                match pipe::put(cache, number, at, rest).await {
                    Ok(Step::Done(n)) => {
                        at += n as u64;
                        rest = rest.get(n..).unwrap_or_default();
                    }
                    Ok(Step::WouldBlock(on, version)) => self.sleep(on, version).await,
                    Err(numbers::EPIPE) => match self.reader(number).await {
                        // It has closed its standard input: the bytes go nowhere, as with a local
                        // pipe whose writer ignores SIGPIPE.
                        Ok(None) => break,
                        Ok(Some(version)) => self.sleep(name::pipe(number), version).await,
                        Err(_) => self.pause().await,
                    },
                    Err(_) => self.pause().await,
                }
            }
            // Where it began is the peer's word.
            accepted = accepted.saturating_add(bytes.len() as u64);
            self.send(&Reply::Accepted(accepted));
        }
    }

    /// What to wait on for a reader of the program's input, which has none; `None`: none will come.
    async fn reader(&self, number: u64) -> Result<Option<Version>, Errno> {
        let cache = &self.node.cache;
        let (found, version) = load::<_, process::Pipe>(cache, name::pipe(number)).await?;
        let job = job::read(self.node, self.number).await?;
        // Each start opens it, a moment after its process is there.
        let comes =
            found.is_some_and(|p| p.reader_opens < u64::from(job.starts) || job.restarts > 0);
        Ok(comes.then_some(version))
    }

    async fn sleep(&self, on: Name, version: Version) {
        if self.node.cache.wait(&[(on, version)], None).await.is_err() {
            // The node has no majority for now.
            self.pause().await;
        }
    }

    async fn pause(&self) {
        exec::sleep_until(exec::now_ns() + AGAIN_NS).await;
    }

    /// One output of the program to the peer. What the peer has taken is taken away.
    async fn show(&self, fd: u8, stream: Stream, flow: &Flow) {
        let (cache, number) = (&self.node.cache, jobs::pipe(self.number, fd));
        let mut away = 0;
        loop {
            let bell = flow.bell();
            if flow.is_closed() {
                while pipe::leave(cache, number, End::Read).await.is_err() {
                    self.pause().await;
                }
                return;
            }
            let taken = flow.taken();
            if taken > away {
                match pipe::skip(cache, number, taken).await {
                    Ok(()) => away = taken,
                    Err(_) => self.pause().await,
                }
                continue;
            }
            let room = flow.room();
            if room == 0 {
                flow.rung(bell).await;
                continue;
            }
            let mut bytes = Vec::new();
            match pipe::peek(cache, number, flow.sent(), room, &mut bytes).await {
                Ok((at, Step::Done(n))) => {
                    flow.send(at, n);
                    if !self.send(&Reply::Output { stream, at, bytes }) {
                        return;
                    }
                }
                Ok((at, Step::WouldBlock(on, version))) => {
                    flow.send(at, 0);
                    exec::select(self.sleep(on, version), flow.rung(bell)).await;
                }
                Err(_) => self.pause().await,
            }
        }
    }

    /// What is in the pipe now.
    async fn rest(&self, fd: u8, stream: Stream, flow: &Flow) {
        if flow.is_closed() {
            return;
        }
        let number = jobs::pipe(self.number, fd);
        // A pipe holds 64 KiB: no more than that was left by the program itself.
        let mut left = process::Pipe::CAPACITY as usize;
        while left > 0 {
            let mut bytes = Vec::new();
            let some = left.min(CHUNK);
            match pipe::peek(&self.node.cache, number, flow.sent(), some, &mut bytes).await {
                Ok((at, Step::Done(n))) => {
                    left = left.saturating_sub(n);
                    flow.send(at, n);
                    if !self.send(&Reply::Output { stream, at, bytes }) {
                        return;
                    }
                }
                Ok((_, Step::WouldBlock(..))) => return,
                Err(_) if self.is_gone().await => return,
                Err(_) => self.pause().await,
            }
        }
    }

    /// Whether there is no such job any more: then there is nothing to wait for.
    async fn is_gone(&self) -> bool {
        matches!(job::read(self.node, self.number).await, Err(numbers::ESRCH))
    }

    fn terminal(&self, tty: u32) -> Outcome {
        let (input, gone) = (Words::new(), AtomicU32::new(0));
        let end = self.attend(
            &gone,
            vec![
                Box::pin(self.dispatch(Some(tty), &input, &gone)),
                Box::pin(self.keys(tty, &input)),
                Box::pin(self.screen(tty)),
            ],
        );
        if matches!(end, Outcome::Exited(..)) {
            exec::block_on(async {
                // What is left is 8 KiB at most.
                loop {
                    match load::<_, Tty>(&self.node.cache, console::tty(tty)).await {
                        Ok((Some(now), _)) => drop(self.put_out(&now)),
                        Ok((None, _)) => {}
                        Err(_) => {
                            self.pause().await;
                            continue;
                        }
                    }
                    return;
                }
            });
        }
        end
    }

    /// The peer's keystrokes through the line discipline.
    async fn keys(&self, tty: u32, input: &Words) {
        let (mut accepted, mut at) = (self.accepted, self.at);
        loop {
            let bytes = input.next().await;
            if bytes.is_empty() {
                // The end of the peer's standard input, if that is no terminal of ours: ^D.
                let request = console::Request::Input { tty, at: None, bytes: vec![4] };
                let _ = self.node.ask_console(&request).await;
                continue;
            }
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let object = console::tty(tty);
                let version = match load::<_, Tty>(&self.node.cache, object).await {
                    Ok((Some(tty), version)) if !tty.hangup => version,
                    // Nobody will read it.
                    Ok(_) => break,
                    Err(_) => {
                        self.pause().await;
                        continue;
                    }
                };
                let some = rest.get(..1024).unwrap_or(rest).to_vec();
                let request = console::Request::Input { tty, at: Some(at), bytes: some };
                match self.node.ask_console(&request).await {
                    Ok(reply) if reply.value == 0 => self.sleep(object, version).await,
                    Ok(reply) => {
                        at += reply.value;
                        rest = rest
                            .get(usize::try_from(reply.value).unwrap_or(usize::MAX)..)
                            .unwrap_or_default();
                    }
                    Err(_) => self.pause().await,
                }
            }
            // Where it began is the peer's word.
            accepted = accepted.saturating_add(bytes.len() as u64);
            self.send(&Reply::Accepted(accepted));
        }
    }

    /// The terminal's output to the peer. What the peer has taken makes room for more.
    async fn screen(&self, tty: u32) {
        let object = console::tty(tty);
        // What a control domain before this one was told, it may not have told.
        let mut told = 0;
        loop {
            let bell = self.out.bell();
            let taken = self.out.taken();
            if taken > told {
                let request = console::Request::Taken { tty, upto: taken };
                match self.node.ask_console(&request).await {
                    Ok(_) => told = taken,
                    Err(_) => self.pause().await,
                }
                continue;
            }
            match load::<_, Tty>(&self.node.cache, object).await {
                Ok((Some(now), version)) => {
                    if self.out.room() < Tty::OUTPUT {
                        self.out.rung(bell).await;
                    } else if !self.put_out(&now) {
                        exec::select(self.sleep(object, version), self.out.rung(bell)).await;
                    }
                }
                Ok((None, _)) => return,
                Err(_) => self.pause().await,
            }
        }
    }

    /// Sends what a terminal has put out and was not sent; whether there was any.
    fn put_out(&self, now: &Tty) -> bool {
        let kept = now.output_end - now.output.len() as u64;
        let at = self.out.sent().max(kept);
        let new = now.output_since(at).unwrap_or_default();
        if new.is_empty() {
            return false;
        }
        self.out.send(at, new.len());
        self.send(&Reply::Output { stream: Stream::Out, at, bytes: new.to_vec() })
    }
}

/// What a look at the job and its program says.
enum Look {
    End(Outcome),
    /// Both go on: what to wait on.
    On(Vec<(Name, Version)>),
}
