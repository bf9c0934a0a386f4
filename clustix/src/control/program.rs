//! `clustix run`, the cluster's half: a program's pipes or terminal, its signals and its end.
//!
//! One thread reads the peer's frames into a bounded queue ([`Inbox`]); the session's own thread runs
//! the tasks that move bytes, all in the futex executor. Both outputs keep to the credit that the
//! peer gives back, so a peer that does not read stops its program and nothing else.

use super::session::{errno, failed, send};
use super::{Node, ask};
use crate::wire::{self, CHUNK, CREDIT, Failure, Input, Reply, Run, Stdio, Stream};
use clustix_ccache::cache::Cache;
use clustix_pd::exec;
use clustix_process::pipe::{self, End, Step};
use clustix_proto::console::{self, Tty};
use clustix_proto::object::load;
use clustix_proto::process::{self, Pid, Process, State, Target, Which, name};
use clustix_proto::{Errno, errno as numbers, posix};
use std::collections::VecDeque;
use std::future::Future;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SIGHUP: u8 = 1;
const SIGCONT: u8 = 18;

/// Starts a program; unless it is detached, serves it until it ends or the peer goes.
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
        String::from_utf8_lossy(&run.argv[0]),
        node.slot
    );
    let io = exec::block_on(open(node, &run.stdio)).map_err(|e| errno(&what, e))?;
    let request = posix::Request::Spawn {
        argv: run.argv,
        env: run.env,
        cwd: run.cwd,
        uid: run.uid,
        gid: run.gid,
        groups: Vec::new(),
        stdio: match &io {
            Io::Pipes(numbers) => posix::Stdio::Pipes(*numbers),
            Io::Terminal(number) => posix::Stdio::Tty(*number),
            Io::Null => posix::Stdio::Null,
        },
    };
    let pid: Pid = match exec::block_on(ask(&node.posix, &request)) {
        Ok(pid) => pid,
        Err(e) => {
            exec::block_on(abandon(node, &io));
            let exit = match e {
                numbers::ENOENT => 127,
                numbers::EACCES | numbers::ENOEXEC | numbers::EISDIR => 126,
                _ => 1,
            };
            return Err(Failure { exit, ..errno(what, e) });
        }
    };
    drop(pass);
    let started = send(stream, &Reply::Started { pid });
    if matches!(io, Io::Null) {
        return started;
    }
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
    let program =
        Attended { node, pid, inbox: &inbox, peer: &peer, out: Flow::new(), err: Flow::new() };
    let ended = match &io {
        Io::Pipes(numbers) => program.pipes(*numbers),
        Io::Terminal(number) => program.terminal(*number),
        Io::Null => Ok(None),
    };
    // Nobody reads what still comes: the reader's thread ends with the connection.
    let _ = lock(&peer).shutdown(std::net::Shutdown::Read);
    if let Ok(thread) = reader {
        let _ = thread.join();
    }
    match ended? {
        Some((status, verdict)) => send(&mut lock(&peer), &Reply::Exited { status, verdict }),
        None => Err(failed("the connection was closed")),
    }
}

fn check(run: &Run) -> Result<(), Failure> {
    let long = |list: &[Vec<u8>]| list.iter().map(|s| s.len() + 1).sum::<usize>() > 128 * 1024;
    if run.argv.is_empty() || run.argv[0].is_empty() {
        return Err(failed("which program?"));
    }
    if long(&run.argv) || long(&run.env) {
        return Err(failed("the arguments or variables are longer than 128 KiB"));
    }
    if run.argv.iter().chain(&run.env).chain([&run.cwd]).any(|s| s.contains(&0)) {
        return Err(failed("an argument or variable has a zero byte"));
    }
    Ok(())
}

/// What a program's descriptors were made of.
enum Io {
    /// Standard input, output and error.
    Pipes([u64; 3]),
    Terminal(u32),
    Null,
}

async fn open(node: &Node, stdio: &Stdio) -> Result<Io, Errno> {
    match stdio {
        Stdio::Null => Ok(Io::Null),
        Stdio::Terminal(winsize) => {
            let request = console::Request::New { winsize: *winsize };
            let reply = node.ask_console(&request).await?;
            u32::try_from(reply.value).map(Io::Terminal).map_err(|_| numbers::EIO)
        }
        Stdio::Pipes => {
            let mut made = [0; 3];
            for i in 0..3 {
                match pipe::create(&node.cache, node.incarnation).await {
                    Ok(number) => made[i] = number,
                    Err(e) => {
                        for number in &made[..i] {
                            close_both(node, *number).await;
                        }
                        return Err(e);
                    }
                }
            }
            Ok(Io::Pipes(made))
        }
    }
}

async fn close_both(node: &Node, number: u64) {
    close(node, number, End::Read).await;
    close(node, number, End::Write).await;
}

/// A pipe that cannot be closed now is closed with its node, at the latest.
async fn close(node: &Node, number: u64, end: End) {
    if let Err(e) = pipe::close(&node.cache, number, end, node.incarnation).await {
        eprintln!("control: pipe {number:x} could not be closed: {e}");
    }
}

/// Takes back what was made for a program that did not start.
async fn abandon(node: &Node, io: &Io) {
    match io {
        Io::Null => {}
        Io::Pipes(made) => {
            for number in made {
                close_both(node, *number).await;
            }
        }
        Io::Terminal(tty) => {
            let request = console::Request::Remove { tty: *tty };
            let _ = node.ask_console(&request).await;
        }
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the peer sent and no task has taken yet.
struct Inbox {
    queue: Mutex<VecDeque<Input>>,
    /// Counts the changes; the executor sleeps on it.
    word: AtomicU32,
}

impl Inbox {
    /// Most frames waiting. Bytes of standard input are bounded by their credit besides.
    const BOUND: usize = 4096;

    fn new() -> Inbox {
        Inbox { queue: Mutex::default(), word: AtomicU32::new(0) }
    }

    fn push(&self, input: Input) -> bool {
        let mut queue = lock(&self.queue);
        if queue.len() >= Self::BOUND {
            return false;
        }
        queue.push_back(input);
        drop(queue);
        self.ring();
        true
    }

    fn ring(&self) {
        self.word.fetch_add(2, Ordering::AcqRel);
        exec::wake_all(&self.word);
    }

    /// The peer is gone: bit 0 of the word.
    fn end(&self) {
        self.word.fetch_or(1, Ordering::AcqRel);
        exec::wake_all(&self.word);
    }

    /// The next frame; `None`: the peer is gone.
    async fn next(&self) -> Option<Input> {
        loop {
            let seen = self.word.load(Ordering::Acquire);
            if let Some(input) = lock(&self.queue).pop_front() {
                return Some(input);
            }
            if seen & 1 == 1 {
                return None;
            }
            exec::changed(&self.word, seen).await;
        }
    }
}

fn read(mut from: UnixStream, inbox: &Inbox) {
    // A malformed frame, or a queue that a well-behaved peer never fills, ends the connection.
    while let Ok(Some(input)) = wire::receive::<Input>(&mut from) {
        if !inbox.push(input) {
            break;
        }
    }
    inbox.end();
}

/// Standard input on its way: at most the credit's bytes.
struct Words {
    queue: Mutex<VecDeque<Vec<u8>>>,
    more: AtomicU32,
}

impl Words {
    fn new() -> Words {
        Words { queue: Mutex::default(), more: AtomicU32::new(0) }
    }

    /// `false`: the peer sent more than its credit.
    fn push(&self, bytes: Vec<u8>) -> bool {
        let mut queue = lock(&self.queue);
        let waiting = queue.iter().map(Vec::len).sum::<usize>() + bytes.len();
        queue.push_back(bytes);
        drop(queue);
        self.more.fetch_add(1, Ordering::AcqRel);
        exec::wake_all(&self.more);
        waiting <= CREDIT as usize
    }

    async fn next(&self) -> Vec<u8> {
        loop {
            let seen = self.more.load(Ordering::Acquire);
            if let Some(bytes) = lock(&self.queue).pop_front() {
                return bytes;
            }
            exec::changed(&self.more, seen).await;
        }
    }
}

/// One output's credit.
struct Flow {
    /// Bytes sent and not yet taken by the peer.
    under_way: AtomicU32,
    /// Nobody reads it any more.
    closed: AtomicU32,
}

impl Flow {
    fn new() -> Flow {
        Flow { under_way: AtomicU32::new(0), closed: AtomicU32::new(0) }
    }

    /// Waits until less than the credit is under way.
    async fn room(&self) -> usize {
        loop {
            let now = self.under_way.load(Ordering::Acquire);
            if now < CREDIT {
                return ((CREDIT - now) as usize).min(CHUNK);
            }
            exec::changed(&self.under_way, now).await;
        }
    }

    fn sent(&self, n: usize) {
        self.under_way.fetch_add(n as u32, Ordering::AcqRel);
    }

    fn taken(&self, n: u32) {
        let now = self.under_way.load(Ordering::Acquire);
        self.under_way.store(now.saturating_sub(n), Ordering::Release);
        exec::wake_all(&self.under_way);
    }

    fn close(&self) {
        self.closed.store(1, Ordering::Release);
        exec::wake_all(&self.closed);
    }
}

type Exit = Option<(i32, Option<String>)>;

/// A program whose peer is there.
struct Attended<'a> {
    node: &'a Node,
    pid: Pid,
    inbox: &'a Inbox,
    peer: &'a Mutex<&'a mut UnixStream>,
    out: Flow,
    err: Flow,
}

impl Attended<'_> {
    /// Runs these tasks until the program has ended or the peer has gone.
    fn attend<'f>(
        &'f self,
        gone: &'f AtomicU32,
        movers: Vec<Pin<Box<dyn Future<Output = ()> + 'f>>>,
    ) -> Result<Exit, Failure> {
        let stop = AtomicU32::new(0);
        let ended = Mutex::new(Ok(None));
        let mut tasks: Vec<Pin<Box<dyn Future<Output = ()> + '_>>> = Vec::new();
        for mover in movers {
            let stop = &stop;
            tasks.push(Box::pin(async move {
                exec::select(mover, exec::changed(stop, 0)).await;
            }));
        }
        tasks.push(Box::pin(async {
            if let exec::Either::Left(end) = exec::select(self.end(), exec::changed(gone, 0)).await
            {
                *lock(&ended) = end;
            }
            stop.store(1, Ordering::Release);
            exec::wake_all(&stop);
        }));
        exec::run(tasks);
        ended.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn pipes(&self, [stdin, stdout, stderr]: [u64; 3]) -> Result<Exit, Failure> {
        let (input, gone) = (Words::new(), AtomicU32::new(0));
        let ended = self.attend(
            &gone,
            vec![
                Box::pin(self.dispatch(None, &input, &gone)),
                Box::pin(self.feed(stdin, &input)),
                Box::pin(self.show(stdout, Stream::Out, &self.out)),
                Box::pin(self.show(stderr, Stream::Err, &self.err)),
            ],
        );
        exec::block_on(async {
            if let Ok(Some(_)) = &ended {
                // What the program left in its pipes; what its children still write, nobody reads.
                self.rest(stdout, Stream::Out, &self.out).await;
                self.rest(stderr, Stream::Err, &self.err).await;
            } else {
                self.hang_up().await;
            }
            close(self.node, stdin, End::Write).await;
            close(self.node, stdout, End::Read).await;
            close(self.node, stderr, End::Read).await;
        });
        ended
    }

    /// The peer is gone: its program is told so.
    async fn hang_up(&self) {
        self.signal(SIGHUP).await;
        self.signal(SIGCONT).await;
    }

    async fn signal(&self, number: u8) {
        let request =
            process::Request::Kill { sender: 0, target: Target::Group(self.pid), signal: number };
        // A group that has ended needs no signal.
        let _ = self.node.ask_process(&request).await;
    }

    /// Waits for the program's end and takes its status.
    async fn end(&self) -> Result<Exit, Failure> {
        let object = name::process(self.pid);
        loop {
            let (found, version) = load::<_, Process>(&self.node.cache, object)
                .await
                .map_err(|e| errno(format!("could not watch program {}", self.pid), e))?;
            match found {
                None => {
                    return Err(failed(format!(
                        "program {} ended and its status was taken by another",
                        self.pid
                    )));
                }
                Some(Process { state: State::Zombie(status), verdict, .. }) => {
                    let request = process::Request::Wait {
                        parent: 1,
                        which: Which::Pid(self.pid),
                        options: 0,
                        keep: false,
                        request: 0,
                    };
                    // Its record goes by itself after a while if this fails.
                    let _ = self.node.ask_process(&request).await;
                    return Ok(Some((status, verdict)));
                }
                Some(_) => {}
            }
            self.node
                .cache
                .wait(&[(object, version)], None)
                .await
                .map_err(|e| errno(format!("could not watch program {}", self.pid), e.into()))?;
        }
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
                Input::Signal(number) if (1..=64).contains(&number) => self.signal(number).await,
                Input::Signal(_) => break,
                Input::Winsize(winsize) => {
                    if let Some(tty) = tty {
                        let request = console::Request::SetWinsize { tty, winsize };
                        let _ = self.node.ask_console(&request).await;
                    }
                }
                Input::Taken(Stream::Out, n) => self.out.taken(n),
                Input::Taken(Stream::Err, n) => self.err.taken(n),
                // A terminal whose client does not show it any more is hung up.
                Input::Closed(_) if tty.is_some() => break,
                Input::Closed(Stream::Out) => self.out.close(),
                Input::Closed(Stream::Err) => self.err.close(),
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
    async fn feed(&self, number: u64, input: &Words) {
        self.send(&Reply::Credit(CREDIT));
        loop {
            let bytes = input.next().await;
            if bytes.is_empty() {
                return close(self.node, number, End::Write).await;
            }
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                match pipe::write(&self.node.cache, number, rest).await {
                    Ok(Step::Done(n)) => rest = rest.get(n..).unwrap_or_default(),
                    Ok(Step::WouldBlock(on, version)) => self.sleep(on, version).await,
                    // It has closed its standard input: the bytes go nowhere, as with a local pipe
                    // whose writer ignores SIGPIPE.
                    Err(_) => break,
                }
            }
            self.send(&Reply::Credit(bytes.len() as u32));
        }
    }

    async fn sleep(&self, on: clustix_ccache::name::Name, version: clustix_ccache::cache::Version) {
        if self.node.cache.wait(&[(on, version)], None).await.is_err() {
            // The node has no majority for now.
            exec::sleep_until(exec::now_ns() + 20_000_000).await;
        }
    }

    /// One output of the program to the peer.
    async fn show(&self, number: u64, stream: Stream, flow: &Flow) {
        let open = async {
            loop {
                let room = flow.room().await;
                let mut bytes = Vec::new();
                match pipe::read(&self.node.cache, number, room, &mut bytes).await {
                    Ok(Step::Done(0)) => return,
                    Ok(Step::Done(n)) => {
                        flow.sent(n);
                        if !self.send(&Reply::Output(stream, bytes)) {
                            return;
                        }
                    }
                    Ok(Step::WouldBlock(on, version)) => self.sleep(on, version).await,
                    Err(e) => {
                        let text = format!("clustix: output was lost: {e}\n");
                        flow.sent(text.len());
                        self.send(&Reply::Output(Stream::Err, text.into_bytes()));
                        return;
                    }
                }
            }
        };
        let closed = exec::select(open, exec::changed(&flow.closed, 0)).await;
        if matches!(closed, exec::Either::Right(_)) {
            close(self.node, number, End::Read).await;
        }
    }

    /// What is in the pipe now.
    async fn rest(&self, number: u64, stream: Stream, flow: &Flow) {
        if flow.closed.load(Ordering::Acquire) == 1 {
            return;
        }
        // A pipe holds 64 KiB: no more than that was left by the program itself.
        let mut left = process::Pipe::CAPACITY as usize;
        while left > 0 {
            let mut bytes = Vec::new();
            match pipe::read(&self.node.cache, number, left.min(CHUNK), &mut bytes).await {
                Ok(Step::Done(n)) if n > 0 => {
                    left = left.saturating_sub(n);
                    if !self.send(&Reply::Output(stream, bytes)) {
                        return;
                    }
                }
                _ => return,
            }
        }
    }

    fn terminal(&self, tty: u32) -> Result<Exit, Failure> {
        let (input, gone) = (Words::new(), AtomicU32::new(0));
        let shown = Mutex::new(0u64);
        let screen = async {
            loop {
                match self.screen(tty, &shown).await {
                    Ok(Some((on, version))) => self.sleep(on, version).await,
                    Ok(None) => {}
                    Err(_) => return,
                }
            }
        };
        let ended = self.attend(
            &gone,
            vec![
                Box::pin(self.dispatch(Some(tty), &input, &gone)),
                Box::pin(self.keys(tty, &input)),
                Box::pin(screen),
            ],
        );
        exec::block_on(async {
            if let Ok(Some(_)) = &ended {
                // Nobody tells any more what the peer has taken; what is left is 8 KiB at most.
                self.out.taken(u32::MAX);
                while let Ok(None) = self.screen(tty, &shown).await {
                    self.out.taken(u32::MAX);
                }
            } else {
                let request = console::Request::Hangup { tty };
                let _ = self.node.ask_console(&request).await;
                self.hang_up().await;
            }
            let request = console::Request::Remove { tty };
            let _ = self.node.ask_console(&request).await;
        });
        ended
    }

    /// The peer's keystrokes through the line discipline.
    async fn keys(&self, tty: u32, input: &Words) {
        self.send(&Reply::Credit(CREDIT));
        loop {
            let bytes = input.next().await;
            if bytes.is_empty() {
                // The end of the peer's standard input, if that is no terminal of ours: ^D.
                let request = console::Request::Input { tty, bytes: vec![4] };
                let _ = self.node.ask_console(&request).await;
                continue;
            }
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let object = console::tty(tty);
                let version = match load::<_, Tty>(&self.node.cache, object).await {
                    Ok((Some(_), version)) => version,
                    _ => break,
                };
                let some = rest.len().min(1024);
                let request = console::Request::Input { tty, bytes: rest[..some].to_vec() };
                match self.node.ask_console(&request).await {
                    Ok(reply) if reply.value == 0 => self.sleep(object, version).await,
                    Ok(reply) => {
                        rest = rest
                            .get(usize::try_from(reply.value).unwrap_or(0)..)
                            .unwrap_or_default();
                    }
                    Err(_) => break,
                }
            }
            self.send(&Reply::Credit(bytes.len() as u32));
        }
    }

    /// Sends the terminal's new output; if there was none, what to wait on.
    async fn screen(
        &self,
        tty: u32,
        shown: &Mutex<u64>,
    ) -> Result<Option<(clustix_ccache::name::Name, clustix_ccache::cache::Version)>, Errno> {
        let object = console::tty(tty);
        let (found, version) = load::<_, Tty>(&self.node.cache, object).await?;
        let found = found.ok_or(numbers::ENXIO)?;
        let from = *lock(shown);
        let start = found.output_end - found.output.len() as u64;
        let new = match found.output_since(from) {
            Some(new) => new,
            None => found.output_since(start).unwrap_or_default(),
        };
        if new.is_empty() {
            return Ok(Some((object, version)));
        }
        self.out.room().await;
        self.out.sent(new.len());
        if !self.send(&Reply::Output(Stream::Out, new.to_vec())) {
            return Err(numbers::EIO);
        }
        *lock(shown) = found.output_end;
        let request = console::Request::Taken { tty, upto: found.output_end };
        self.node.ask_console(&request).await?;
        Ok(None)
    }
}
