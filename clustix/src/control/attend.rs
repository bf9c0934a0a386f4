//! A job whose client is there: its pipes or terminal, its signals and its end.
//!
//! One thread reads the peer's frames into a bounded queue; the session's own thread runs the tasks
//! that move bytes, all in the futex executor. Both outputs keep to the credit that the
//! peer gives back, so a peer that does not read stops its program and nothing else. What it has not
//! taken stays in the cluster: should this domain end, the peer goes on at another.

use super::session::failed;
use super::streams::{Flow, Inbox, Words, lock};
use super::{Node, job};
use crate::wire::{self, CHUNK, Failure, Input, Reply, Stream};
use clustix_ccache::cache::{Cache, Version};
use clustix_ccache::name::Name;
use clustix_pd::exec;
use clustix_process::pipe::{self, End, Step};
use clustix_proto::console::{self, Tty};
use clustix_proto::job::{self as jobs, Job};
use clustix_proto::object::load;
use clustix_proto::process::{self, Process, State, name};
use clustix_proto::{Errno, errno as numbers};
use std::future::Future;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

/// Pause before something is tried again that the cluster could not do.
const AGAIN_NS: u64 = 20_000_000;

/// How a session ends.
pub(super) enum Outcome {
    Exited(i32, Option<String>),
    /// The peer went.
    Gone,
    /// Another attends to the job.
    Other,
    Failed(Failure),
}

/// A job whose peer is there.
pub(super) struct Session<'a> {
    pub node: &'a Node,
    pub number: u64,
    pub turn: u64,
    pub pid: AtomicU32,
    pub inbox: &'a Inbox,
    pub peer: &'a Mutex<&'a mut UnixStream>,
    /// The peer has asked for its leave.
    pub detached: AtomicBool,
    /// Bytes of input that were accepted before, as the client counts.
    pub accepted: u64,
    /// The same, as the pipe or terminal counts.
    pub at: u64,
    pub out: Flow,
    pub err: Flow,
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

    pub fn pipes(&self) -> Outcome {
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
                    job::finish(self.node, "a detached program", || {
                        job::keep(self.node, self.number)
                    })
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

    pub fn send(&self, reply: &Reply) -> bool {
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

    pub fn terminal(&self, tty: u32) -> Outcome {
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
