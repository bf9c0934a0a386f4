//! The host's side of a session: one program in one machine.

use super::state::State;
use crate::guest::{SESSIONS, port};
use crate::session::{CHUNK, Frames, ToGuest, ToHost, send};
use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long an agent that is up may take to start a program; emulated machines are slow.
pub const START: Duration = Duration::from_secs(60);

/// How a session ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ending {
    /// The program ended: its status, 128 + n if signal n ended it.
    Exited(i32),
    /// The program could not be run: errno of execve(2), and why.
    Refused(i32, String),
    /// The machine ended first.
    Lost,
    /// The time was up; the program was killed.
    OutOfTime,
}

/// What a program printed, and how it ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Output {
    /// How it ended.
    pub ending: Ending,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// How long a session may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Until the agent has started the program.
    pub start: Duration,
    /// In all; `None`: as long as the program likes.
    pub end: Option<Duration>,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { start: START, end: None }
    }
}

/// A port that nobody else uses; given back when the lock is closed.
struct Claim {
    stream: UnixStream,
    _lock: File,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Also for whoever has a copy of it. By this the agent knows that nobody waits for the program any more.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn claim(state: &State, k: u8) -> Result<Option<Claim>> {
    for n in 0..SESSIONS {
        let socket = state.node(k).join(port(n));
        let lock = File::create(socket.with_extension(format!("{n}.lock")))
            .with_context(|| format!("cannot use {}", socket.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        return match UnixStream::connect(&socket) {
            Ok(stream) => Ok(Some(Claim { stream, _lock: lock })),
            Err(e) if matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {
                Ok(None)
            }
            Err(e) => Err(e).with_context(|| format!("cannot connect to {}", socket.display())),
        };
    }
    bail!("all {SESSIONS} sessions of node {k} are in use")
}

/// Runs `words` in node `k`. What it prints goes to `out` and `err` as it comes. It ends with its output: what a
/// program leaves behind holds the session until that closes its output too. If this ends first,
/// the agent kills the program.
///
/// # Errors
/// The node has no session left, or what is printed cannot be written.
pub fn run(
    state: &State,
    k: u8,
    words: &[String],
    bounds: Bounds,
    mut input: Option<Box<dyn Read + Send>>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<Ending> {
    let begun = Instant::now();
    let Some(claim) = claim(state, k)? else { return Ok(Ending::Lost) };
    let session = RandomState::new().build_hasher().finish();
    let stream = &claim.stream;
    if send(stream, session, &ToGuest::Start(words.to_vec())).is_err() {
        return Ok(Ending::Lost);
    }
    let mut frames = Frames::new(stream);
    let mut feeding = None;
    let mut deadline = Some(begun + bounds.start.min(bounds.end.unwrap_or(Duration::MAX)));
    loop {
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        if left.is_some_and(|l| l.is_zero()) {
            return Ok(Ending::OutOfTime);
        }
        stream.set_read_timeout(left)?;
        let (of, frame) = match frames.frame::<ToHost>() {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(Ending::Lost),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                return Ok(Ending::Lost);
            }
            Err(e) => return Err(e).context("cannot read from the machine"),
        };
        // What a session before this one left in the port.
        if of != session {
            continue;
        }
        match frame {
            ToHost::Started => {
                deadline = bounds.end.map(|e| begun + e);
                let to = claim.stream.try_clone()?;
                match input.take() {
                    Some(from) => {
                        let (taken, next) = sync_channel(1);
                        thread::spawn(move || feed(session, from, &to, &next));
                        feeding = Some(taken);
                    }
                    None => drop(send(&to, session, &ToGuest::InputEnd)),
                }
            }
            ToHost::InputTaken => {
                if let Some(f) = &feeding {
                    // Full only if the agent answers more often than it was asked.
                    let _ = f.try_send(());
                }
            }
            ToHost::Out(bytes) => write(out, &bytes)?,
            ToHost::Err(bytes) => write(err, &bytes)?,
            ToHost::Ended(status) => return Ok(Ending::Exited(status)),
            ToHost::Refused(errno, why) => return Ok(Ending::Refused(errno, why)),
        }
    }
}

fn write(to: &mut dyn Write, bytes: &[u8]) -> Result<()> {
    to.write_all(bytes).and_then(|()| to.flush()).context("cannot write the program's output")
}

/// Sends input, each piece after the one before was taken. Ends with the input, or with the session.
fn feed(session: u64, mut from: Box<dyn Read + Send>, to: &UnixStream, next: &Receiver<()>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let frame = match from.read(&mut buffer) {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => ToGuest::InputEnd,
            Ok(n) => ToGuest::Input(buffer[..n].to_vec()),
        };
        let last = frame == ToGuest::InputEnd;
        if send(to, session, &frame).is_err() || last || next.recv().is_err() {
            return;
        }
    }
}

/// Runs `words` in node `k` without input, and keeps what it prints.
///
/// # Errors
/// As [`run`].
pub fn capture(state: &State, k: u8, words: &[&str], bounds: Bounds) -> Result<Output> {
    let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let ending = run(state, k, &words, bounds, None, &mut out, &mut err)?;
    let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
    Ok(Output { ending, out: text(out), err: text(err) })
}
