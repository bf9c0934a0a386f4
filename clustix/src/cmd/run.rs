//! `clustix run`: the local half of a program that runs in the cluster.

use crate::args;
use crate::connection::{self, Connection, PATIENCE, WentAway};
use crate::interrupt;
use crate::procfs::Process;
use crate::state::Folder;
use crate::wire::{self, CHUNK, Input, Reply, Request, Run, Stdio, Stream};
use anyhow::{Context, Result, anyhow, bail};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A node that goes, or whose control comes back, has done so after this.
const GOING: Duration = Duration::from_secs(10);
/// Between two looks at it.
const MOMENT: Duration = Duration::from_millis(50);

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;
const SIGTERM: i32 = 15;
const SIGWINCH: i32 = 28;

/// Runs a program and ends as it ended.
///
/// # Errors
/// It could not be started, or the cluster lost sight of it.
pub fn run(folder: &Folder, args: args::Run) -> Result<ExitCode> {
    if args.tty && !isatty(std::io::stdin()) {
        bail!("-t gives the program this terminal, but standard input is not one; leave -t out");
    }
    let request = Request::Run(program(&args)?);
    let (connection, pid) = match start(folder, args.node, &request) {
        Ok(started) => started,
        Err(e) => {
            let exit = e.downcast_ref::<wire::Failure>().map_or(1, |f| f.exit);
            eprintln!("clustix: {e:#}");
            return Ok(ExitCode::from(exit));
        }
    };
    if args.detach {
        println!("{pid}");
        return Ok(ExitCode::SUCCESS);
    }
    let node = connection.node;
    let process = folder.process(node)?;
    let terminal = if args.tty { Some(Raw::enter()?) } else { None };
    let ended = attend(connection, args.tty);
    drop(terminal);
    match ended {
        Ok(Ended::Exited(status, verdict)) => {
            if let Some(verdict) = verdict {
                eprintln!("clustix: {verdict}");
            }
            Ok(ExitCode::from(exit_code(status)))
        }
        Ok(Ended::Signalled(signal)) => Ok(ExitCode::from(128 + signal as u8)),
        Err(e) if e.downcast_ref::<WentAway>().is_some() => {
            if process.is_none_or(|p| node_ended(folder, node, &p)) {
                eprintln!("clustix: lost with node {node}");
                return Ok(ExitCode::from(137));
            }
            Err(e.context(format!(
                "lost sight of program {pid}: node {node} restarted its control; `clustix ps` tells whether it still runs"
            )))
        }
        Err(e) => Err(e),
    }
}

/// Whether a node whose control went away has ended (its ccache's death takes a moment to end it), or
/// its control alone was restarted, which answers then.
fn node_ended(folder: &Folder, node: u8, process: &Process) -> bool {
    let until = Instant::now() + GOING;
    while !process.wait(MOMENT) {
        let answers = Connection::open(folder, node, Request::Pds)
            .and_then(|mut c| c.next(Some(GOING)))
            .is_ok();
        if answers || Instant::now() >= until {
            return process.ended();
        }
    }
    true
}

/// The shell's idea of a wait status.
fn exit_code(status: i32) -> u8 {
    match status & 0x7f {
        0 => (status >> 8) as u8,
        signal => 128 + signal as u8,
    }
}

fn program(args: &args::Run) -> Result<Run> {
    let mut env: Vec<(Vec<u8>, Vec<u8>)> = vec![
        (b"PATH".to_vec(), b"/bin:/usr/bin:/sbin:/usr/sbin".to_vec()),
        (b"HOME".to_vec(), b"/".to_vec()),
    ];
    let mut set = |name: &[u8], value: Vec<u8>| {
        env.retain(|(n, _)| n != name);
        env.push((name.to_vec(), value));
    };
    if args.tty
        && let Some(term) = std::env::var_os("TERM")
    {
        set(b"TERM", term.into_vec());
    }
    for assignment in &args.env {
        match assignment.split_once('=') {
            Some(("", _)) => bail!("--env {assignment:?}: a variable needs a name"),
            Some((name, value)) => set(name.as_bytes(), value.as_bytes().to_vec()),
            None => match std::env::var_os(assignment) {
                Some(value) => set(assignment.as_bytes(), value.into_vec()),
                None => bail!(
                    "--env {assignment}: this shell has no such variable; write --env {assignment}=VALUE"
                ),
            },
        }
    }
    if !args.cwd.starts_with('/') {
        bail!("--cwd {:?}: write an absolute path of the cluster", args.cwd);
    }
    Ok(Run {
        argv: args.command.iter().cloned().map(OsStringExt::into_vec).collect(),
        env: env.into_iter().map(|(n, v)| [n, v].join(&b'=')).collect(),
        cwd: args.cwd.clone().into_bytes(),
        uid: args.user.0,
        gid: args.user.1,
        stdio: match (args.detach, args.tty) {
            (true, _) => Stdio::Null,
            (_, true) => Stdio::Terminal(size()),
            _ => Stdio::Pipes,
        },
    })
}

/// Starts it on the node asked for, or on the first that can.
fn start(folder: &Folder, node: Option<u8>, request: &Request) -> Result<(Connection, u32)> {
    let mut last = anyhow!("no node answered");
    for slot in connection::candidates(folder, node)? {
        let started = Connection::open(folder, slot, request.clone())
            .and_then(|mut c| c.next(Some(PATIENCE)).map(|r| (c, r)));
        match started {
            Ok((connection, Some(Reply::Started { pid }))) => return Ok((connection, pid)),
            Ok(_) => bail!("node {slot} gave an unexpected answer"),
            Err(e) if e.downcast_ref::<WentAway>().is_some() => {
                // It may have started there: a program is never run twice by its own.
                return Err(e.context(format!("node {slot} was lost while it started the program")));
            }
            Err(e) if connection::is_elsewhere(&e) => last = e,
            Err(e) => return Err(e),
        }
    }
    Err(last)
}

enum Ended {
    Exited(i32, Option<String>),
    Signalled(i32),
}

enum Event {
    Frame(Result<Option<Reply>>),
    Signal(i32),
}

/// Frames to the node, from several threads.
#[derive(Clone)]
struct Sender(Arc<Mutex<UnixStream>>);

impl Sender {
    /// A node that went away is noticed by who reads from it.
    fn send(&self, input: &Input) {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = wire::send(&mut *stream, input);
    }
}

#[derive(Default)]
struct Credit {
    bytes: Mutex<u32>,
    more: Condvar,
}

impl Credit {
    fn add(&self, n: u32) {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        *bytes = bytes.saturating_add(n);
        self.more.notify_one();
    }
    /// Waits for some.
    fn some(&self) -> u32 {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        while *bytes == 0 {
            bytes = self.more.wait(bytes).unwrap_or_else(PoisonError::into_inner);
        }
        *bytes
    }
    fn spend(&self, n: u32) {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        *bytes = bytes.saturating_sub(n);
    }
}

fn attend(mut connection: Connection, tty: bool) -> Result<Ended> {
    let sender = Sender(Arc::new(Mutex::new(connection.stream.try_clone()?)));
    let credit = Arc::new(Credit::default());
    let (events, inbox) = sync_channel::<Event>(16);

    let (to_credit, to_sender) = (credit.clone(), sender.clone());
    std::thread::Builder::new().name("stdin".into()).spawn(move || feed(&to_credit, &to_sender))?;

    let (signals, winch) = (events.clone(), sender.clone());
    let caught: &[i32] = if tty {
        &[SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH]
    } else {
        &[SIGHUP, SIGINT, SIGQUIT, SIGTERM]
    };
    interrupt::catch(caught, move |signal| match signal {
        SIGWINCH => winch.send(&Input::Winsize(size())),
        SIGINT | SIGQUIT => winch.send(&Input::Signal(signal as u8)),
        other => drop(signals.send(Event::Signal(other))),
    })?;
    // The size may have changed before the signal was caught.
    if tty {
        sender.send(&Input::Winsize(size()));
    }

    std::thread::Builder::new().name("frames".into()).spawn(move || {
        loop {
            let frame = connection.next(None);
            let last = !matches!(frame, Ok(Some(_)));
            if events.send(Event::Frame(frame)).is_err() || last {
                return;
            }
        }
    })?;

    let (out, out_thread) = writer(Stream::Out, std::io::stdout(), sender.clone())?;
    let (err, err_thread) = writer(Stream::Err, std::io::stderr(), sender.clone())?;
    let (status, verdict) = loop {
        match inbox.recv().context("the connection's thread ended")? {
            // The node sends SIGHUP to the program when this connection ends.
            Event::Signal(signal) => return Ok(Ended::Signalled(signal)),
            Event::Frame(frame) => match frame? {
                Some(Reply::Output(Stream::Out, bytes)) => drop(out.send(bytes)),
                Some(Reply::Output(Stream::Err, bytes)) => drop(err.send(bytes)),
                Some(Reply::Credit(n)) => credit.add(n),
                Some(Reply::Exited { status, verdict }) => break (status, verdict),
                Some(_) | None => bail!("the node gave an unexpected answer"),
            },
        }
    };
    drop((out, err));
    // A signal ends the wait for a reader that does not read.
    let done = std::thread::spawn(move || {
        let _ = out_thread.join();
        let _ = err_thread.join();
    });
    while !done.is_finished() {
        match inbox.recv_timeout(std::time::Duration::from_millis(5)) {
            Ok(Event::Signal(signal)) => return Ok(Ended::Signalled(signal)),
            Ok(Event::Frame(_)) | Err(_) if done.is_finished() => break,
            Ok(Event::Frame(_)) => {}
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                let _ = done.join();
                break;
            }
        }
    }
    Ok(Ended::Exited(status, verdict))
}

/// Standard input to the node, within its credit.
fn feed(credit: &Credit, sender: &Sender) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let some = (credit.some() as usize).min(buffer.len());
        match std::io::stdin().lock().read(&mut buffer[..some]) {
            Ok(0) => return sender.send(&Input::Stdin(Vec::new())),
            Ok(n) => {
                credit.spend(n as u32);
                sender.send(&Input::Stdin(buffer[..n].to_vec()));
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return sender.send(&Input::Stdin(Vec::new())),
        }
    }
}

/// One output stream; a reader that has gone is told to the node once.
fn writer(
    stream: Stream,
    mut to: impl Write + Send + 'static,
    sender: Sender,
) -> Result<(SyncSender<Vec<u8>>, JoinHandle<()>)> {
    // The node keeps to its credit, so this queue never holds more than that.
    let (queue, chunks): (_, Receiver<Vec<u8>>) = sync_channel(1024);
    let thread = std::thread::Builder::new().name("output".into()).spawn(move || {
        let mut open = true;
        for bytes in chunks {
            if open && to.write_all(&bytes).and_then(|()| to.flush()).is_err() {
                open = false;
                sender.send(&Input::Closed(stream));
            }
            sender.send(&Input::Taken(stream, bytes.len() as u32));
        }
    })?;
    Ok((queue, thread))
}

/// This terminal's size: rows, columns, x and y pixels.
fn size() -> [u16; 4] {
    tcgetwinsize(std::io::stdin())
        .map_or([24, 80, 0, 0], |w| [w.ws_row, w.ws_col, w.ws_xpixel, w.ws_ypixel])
}

/// This terminal in raw mode, as it was again when dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Result<Raw> {
        let before =
            tcgetattr(std::io::stdin()).context("could not read this terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)
            .context("could not put this terminal in raw mode")?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses_become_exit_codes() {
        assert_eq!(exit_code(0), 0);
        assert_eq!(exit_code(3 << 8), 3);
        assert_eq!(exit_code(9), 137);
        assert_eq!(exit_code(0x80 | 11), 139);
    }
}
