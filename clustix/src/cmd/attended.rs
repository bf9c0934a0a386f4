//! The local half of a job that this command attends to: input, output and signals, over as many connections as
//! it takes. What a node that went away had not passed on is kept here, and the next one is told how far the
//! streams have got.

use crate::connection::{self, Connection, WentAway};
use crate::interrupt;
use crate::state::Folder;
use crate::wire::{
    self, Attach, CHUNK, CREDIT, Input, Known, Reply, Request, Started, Stream, Whom,
};
use anyhow::{Context, Result, anyhow, bail};
use rustix::termios::tcgetwinsize;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest that another connection is looked for. Less than the job waits for one (`control/watch.rs`).
const COMING_BACK: Duration = Duration::from_secs(30);
/// Longest that one node is waited for meanwhile.
const ONE_NODE: Duration = Duration::from_secs(5);
/// Between two looks.
const MOMENT: Duration = Duration::from_millis(50);
/// Longest that what was typed before Ctrl-] is waited for.
const TYPED: Duration = Duration::from_secs(2);
/// Ctrl-].
const DETACH: u8 = 0x1d;

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;
const SIGTERM: i32 = 15;
const SIGWINCH: i32 = 28;

/// How it ended.
pub enum Ended {
    /// The program did: its wait status, and why, if not by itself.
    Exited(i32, Option<String>),
    /// This command was sent a signal.
    Signalled(i32),
    /// The user went, and the program goes on.
    Detached,
}

/// No connection to the program can be had any more.
#[derive(Debug, thiserror::Error)]
#[error("lost sight of program {pid}: {why:#}")]
pub struct Lost {
    pid: u32,
    why: anyhow::Error,
}

enum Event {
    Frame(Result<Option<Reply>>),
    Signal(i32),
    Detach,
}

/// What is under way to the node, and how.
struct Way {
    /// `None`: between two connections.
    stream: Option<UnixStream>,
    /// Bytes of input that the node has accepted.
    accepted: u64,
    /// Those after them that were sent.
    unaccepted: VecDeque<u8>,
    /// The input has ended.
    ended: bool,
    /// The program takes no more.
    deaf: bool,
}

impl Way {
    fn send(&mut self, input: &Input) {
        if let Some(stream) = &mut self.stream {
            // A node that went away is noticed by who reads from it.
            let _ = wire::send(stream, input);
        }
    }
}

struct Link {
    way: Mutex<Way>,
    more: Condvar,
}

impl Link {
    fn way(&self) -> MutexGuard<'_, Way> {
        self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, input: &Input) {
        self.way().send(input);
    }

    fn accept(&self, upto: u64) {
        let mut way = self.way();
        let new = upto.saturating_sub(way.accepted).min(way.unaccepted.len() as u64);
        way.unaccepted.drain(..new as usize);
        way.accepted = way.accepted.max(upto);
        drop(way);
        self.more.notify_all();
    }

    /// Waits until input may be sent: so many bytes; `None`: no more.
    fn room(&self) -> Option<usize> {
        let mut way = self.way();
        loop {
            if way.deaf {
                return None;
            }
            match (CREDIT as usize).saturating_sub(way.unaccepted.len()) {
                0 => way = self.more.wait(way).unwrap_or_else(PoisonError::into_inner),
                room => return Some(room.min(CHUNK)),
            }
        }
    }

    fn input(&self, bytes: &[u8]) {
        let mut way = self.way();
        way.unaccepted.extend(bytes);
        way.send(&Input::Stdin(bytes.to_vec()));
    }

    /// Waits until the node has accepted all, at most [`TYPED`].
    fn settle(&self) {
        let way = self.way();
        let waiting = |way: &mut Way| !way.unaccepted.is_empty() && !way.deaf;
        let _ = self.more.wait_timeout_while(way, TYPED, waiting);
    }

    fn end(&self) {
        let mut way = self.way();
        way.ended = true;
        way.send(&Input::Stdin(Vec::new()));
    }

    /// Goes on over another connection: what it has not accepted is sent again.
    fn turn_to(&self, stream: UnixStream, accepted: Option<u64>) {
        if let Some(accepted) = accepted {
            self.accept(accepted);
        }
        let mut way = self.way();
        way.stream = Some(stream);
        way.deaf = accepted.is_none();
        if !way.deaf {
            let again: Vec<u8> = way.unaccepted.iter().copied().collect();
            for bytes in again.chunks(CHUNK) {
                way.send(&Input::Stdin(bytes.to_vec()));
            }
            if way.ended {
                way.send(&Input::Stdin(Vec::new()));
            }
        }
        drop(way);
        self.more.notify_one();
    }
}

/// One output on its way to a descriptor of this command's.
struct Output {
    /// Bytes received, over the program's whole life.
    received: u64,
    queue: Sender<(u64, Vec<u8>)>,
    writer: JoinHandle<()>,
}

impl Output {
    fn new(stream: Stream, mut to: impl Write + Send + 'static, link: Arc<Link>) -> Result<Output> {
        // The node keeps to its credit: that is the queue's bound.
        let (queue, chunks) = channel::<(u64, Vec<u8>)>();
        let writer = std::thread::Builder::new().name("output".into()).spawn(move || {
            let mut open = true;
            for (at, bytes) in chunks {
                open = open && to.write_all(&bytes).and_then(|()| to.flush()).is_ok();
                if !open {
                    // Again and again: who attends may have changed.
                    link.send(&Input::Closed(stream));
                }
                link.send(&Input::Taken(stream, at + bytes.len() as u64));
            }
        })?;
        Ok(Output { received: 0, queue, writer })
    }

    /// What was received before is not shown again.
    fn show(&mut self, at: u64, mut bytes: Vec<u8>) {
        let known = self.received.saturating_sub(at).min(bytes.len() as u64);
        bytes.drain(..known as usize);
        if bytes.is_empty() {
            return;
        }
        let at = at + known;
        self.received = at + bytes.len() as u64;
        let _ = self.queue.send((at, bytes));
    }
}

/// This terminal's size: rows, columns, x and y pixels.
pub fn size() -> [u16; 4] {
    tcgetwinsize(std::io::stdin())
        .map_or([24, 80, 0, 0], |w| [w.ws_row, w.ws_col, w.ws_xpixel, w.ws_ypixel])
}

/// Attends to a job until it ends; `tty`: standard input is a terminal in raw mode. `keys`: Ctrl-] detaches.
///
/// # Errors
/// [`Lost`]; what the node said.
pub fn attend(
    folder: &Folder,
    connection: Connection,
    started: &Started,
    keys: bool,
) -> Result<Ended> {
    let tty = started.terminal;
    let way = Way {
        stream: None,
        accepted: started.input.unwrap_or(0),
        unaccepted: VecDeque::new(),
        ended: false,
        deaf: false,
    };
    let link = Arc::new(Link { way: Mutex::new(way), more: Condvar::new() });
    link.turn_to(connection.stream.try_clone()?, started.input);
    let (events, inbox) = sync_channel::<Event>(16);

    let (to_link, to_events) = (link.clone(), events.clone());
    std::thread::Builder::new()
        .name("stdin".into())
        .spawn(move || feed(&to_link, keys.then_some(&to_events)))?;

    let (signals, to_link) = (events.clone(), link.clone());
    let caught: &[i32] = if tty {
        &[SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH]
    } else {
        &[SIGHUP, SIGINT, SIGQUIT, SIGTERM]
    };
    interrupt::catch(caught, move |signal| match signal {
        SIGWINCH => to_link.send(&Input::Winsize(size())),
        SIGINT | SIGQUIT => to_link.send(&Input::Signal(signal as u8)),
        other => drop(signals.send(Event::Signal(other))),
    })?;
    // The size may have changed before the signal was caught.
    if tty {
        link.send(&Input::Winsize(size()));
    }
    receive(connection, &events)?;

    let mut out = Output::new(Stream::Out, std::io::stdout(), link.clone())?;
    let mut err = Output::new(Stream::Err, std::io::stderr(), link.clone())?;
    let (mut pid, mut turn) = (started.pid, started.turn);
    let mut detaching = false;
    let (status, verdict) = loop {
        match inbox.recv().context("the connection's thread ended")? {
            // The node sends SIGHUP to the program when this connection ends.
            Event::Signal(signal) => return Ok(Ended::Signalled(signal)),
            Event::Detach => {
                detaching = true;
                link.send(&Input::Detach);
            }
            Event::Frame(Ok(Some(frame))) => match frame {
                Reply::Output { stream: Stream::Out, at, bytes } => out.show(at, bytes),
                Reply::Output { stream: Stream::Err, at, bytes } => err.show(at, bytes),
                Reply::Accepted(upto) => link.accept(upto),
                Reply::Again { pid: now, why } => {
                    eprintln!("clustix: {pid}: {why}; started again as {now}\r");
                    pid = now;
                }
                Reply::Exited { status, verdict } => break (status, verdict),
                _ => bail!("the node gave an unexpected answer"),
            },
            Event::Frame(Ok(None)) if detaching => return Ok(Ended::Detached),
            Event::Frame(Ok(None)) => bail!("the node gave an unexpected answer"),
            Event::Frame(Err(e)) if e.downcast_ref::<WentAway>().is_none() => return Err(e),
            Event::Frame(Err(e)) => {
                link.way().stream = None;
                let accepted = link.way().accepted;
                let known = Known { turn, accepted, received: [out.received, err.received] };
                let attach = Attach { whom: Whom::Job(started.job), tty, known: Some(known) };
                match come_back(folder, attach, &inbox, &mut detaching, e) {
                    Ok(Back::Over(connection, now)) => {
                        turn = now.turn;
                        if now.pid != pid {
                            eprintln!("clustix: {pid} was lost; started again as {}\r", now.pid);
                            pid = now.pid;
                        }
                        link.turn_to(connection.stream.try_clone()?, now.input);
                        if tty {
                            link.send(&Input::Winsize(size()));
                        }
                        if detaching {
                            link.send(&Input::Detach);
                        }
                        receive(connection, &events)?;
                    }
                    Ok(Back::Signalled(signal)) => return Ok(Ended::Signalled(signal)),
                    Err(why) => return Err(anyhow!(Lost { pid, why })),
                }
            }
        }
    };
    drop((out.queue, err.queue));
    // A signal ends the wait for a reader that does not read.
    let writers = [out.writer, err.writer];
    let done = std::thread::spawn(move || {
        for writer in writers {
            let _ = writer.join();
        }
    });
    while !done.is_finished() {
        match inbox.recv_timeout(Duration::from_millis(5)) {
            Ok(Event::Signal(signal)) => return Ok(Ended::Signalled(signal)),
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                let _ = done.join();
                break;
            }
        }
    }
    Ok(Ended::Exited(status, verdict))
}

/// Passes a connection's frames on until it ends.
fn receive(mut connection: Connection, events: &SyncSender<Event>) -> Result<()> {
    let events = events.clone();
    std::thread::Builder::new().name("frames".into()).spawn(move || {
        loop {
            let frame = connection.next(None);
            let last = !matches!(frame, Ok(Some(_)));
            if events.send(Event::Frame(frame)).is_err() || last {
                return;
            }
        }
    })?;
    Ok(())
}

/// What a search for another connection comes to.
enum Back {
    Over(Connection, Started),
    Signalled(i32),
}

/// Looks for a node that attends to the job, in place of the one that went away.
fn come_back(
    folder: &Folder,
    mut attach: Attach,
    inbox: &Receiver<Event>,
    detaching: &mut bool,
    mut why: anyhow::Error,
) -> Result<Back> {
    let until = Instant::now() + COMING_BACK;
    loop {
        for slot in connection::candidates(folder, None)? {
            // A node that was asked before, and answers late, must not take the job from this one.
            attach.known.iter_mut().for_each(|known| known.turn += 1);
            let asked = Connection::open(folder, slot, Request::Attach(attach.clone()))
                .and_then(|mut c| c.next(Some(ONE_NODE)).map(|reply| (c, reply)));
            match asked {
                Ok((connection, Some(Reply::Started(started)))) => {
                    return Ok(Back::Over(connection, started));
                }
                Ok(_) => bail!("node {slot} gave an unexpected answer"),
                // It knows, and says that there is nothing to come back to.
                Err(e) if e.downcast_ref::<wire::Failure>().is_some_and(|f| !f.elsewhere) => {
                    return Err(e);
                }
                Err(e) => why = e,
            }
        }
        match inbox.recv_timeout(MOMENT) {
            Ok(Event::Signal(signal)) => return Ok(Back::Signalled(signal)),
            Ok(Event::Detach) => *detaching = true,
            Ok(Event::Frame(_)) | Err(_) => {}
        }
        if Instant::now() >= until {
            return Err(why);
        }
    }
}

/// Standard input to the node, within its credit.
fn feed(link: &Link, keys: Option<&SyncSender<Event>>) {
    let mut buffer = vec![0; CHUNK];
    while let Some(room) = link.room() {
        match std::io::stdin().lock().read(&mut buffer[..room]) {
            Ok(0) => return link.end(),
            Ok(n) => {
                let key = keys.and_then(|_| buffer[..n].iter().position(|b| *b == DETACH));
                let before = &buffer[..key.unwrap_or(n)];
                if !before.is_empty() {
                    link.input(before);
                }
                if let (Some(_), Some(events)) = (key, keys) {
                    link.settle();
                    let _ = events.send(Event::Detach);
                    return;
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return link.end(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(stream: UnixStream) -> Link {
        let way = Way {
            stream: Some(stream),
            accepted: 0,
            unaccepted: VecDeque::new(),
            ended: false,
            deaf: false,
        };
        Link { way: Mutex::new(way), more: Condvar::new() }
    }

    fn next(from: &mut UnixStream) -> Input {
        wire::receive(from).unwrap().unwrap()
    }

    #[test]
    fn what_a_node_did_not_accept_goes_to_the_next() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let link = link(near);
        link.input(b"one two three");
        link.accept(4);
        link.end();
        assert_eq!(next(&mut far), Input::Stdin(b"one two three".to_vec()));
        let (near, mut far) = UnixStream::pair().unwrap();
        link.turn_to(near, Some(8));
        assert_eq!(next(&mut far), Input::Stdin(b"three".to_vec()));
        assert_eq!(next(&mut far), Input::Stdin(Vec::new()));
        assert_eq!(link.room(), Some(CHUNK));
    }

    #[test]
    fn a_program_that_takes_no_input_ends_the_feeding() {
        let (near, _far) = UnixStream::pair().unwrap();
        let link = link(near);
        // Nobody reads at the other end.
        link.way().unaccepted.extend([7; CREDIT as usize]);
        let (near, _far) = UnixStream::pair().unwrap();
        link.turn_to(near, None);
        assert_eq!(link.room(), None);
    }

    #[test]
    fn output_that_comes_twice_is_shown_once() {
        let (near, _far) = UnixStream::pair().unwrap();
        let shown = Arc::new(Mutex::new(Vec::new()));
        struct To(Arc<Mutex<Vec<u8>>>);
        impl Write for To {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().extend(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut out = Output::new(Stream::Out, To(shown.clone()), Arc::new(link(near))).unwrap();
        for (at, bytes) in [(0, "abc"), (0, "abc"), (1, "bcd"), (4, "ef"), (2, "cd"), (9, "j")] {
            out.show(at, bytes.as_bytes().to_vec());
        }
        drop(out.queue);
        out.writer.join().unwrap();
        assert_eq!(*shown.lock().unwrap(), b"abcdefj");
    }
}
