//! The agent: one thread per virtio-serial port; each serves one session after another.

use super::{SESSIONS, port};
use crate::session::{CHUNK, Frames, ToGuest, ToHost, send};
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Serves the ports of this machine for ever.
///
/// # Errors
/// There is no port, or one can no longer be read.
pub fn serve() -> Result<()> {
    let mut threads = Vec::new();
    for n in 0..SESSIONS {
        let path = device(&port(n))?;
        let open = || OpenOptions::new().read(true).write(true).open(&path);
        let port = Arc::new(open().with_context(|| format!("cannot open {}", path.display()))?);
        threads.push(thread::spawn(move || Port { port, writing: Arc::default() }.serve()));
    }
    for thread in threads {
        match thread.join() {
            Ok(done) => done?,
            Err(_) => bail!("a thread of the agent panicked"),
        }
    }
    Ok(())
}

/// The device of the port called `name`.
fn device(name: &str) -> Result<PathBuf> {
    let class = "/sys/class/virtio-ports";
    for entry in fs::read_dir(class).with_context(|| format!("cannot read {class}"))? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|n| n.trim() == name) {
            return Ok(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    bail!("there is no virtio-serial port {name}")
}

#[derive(Clone)]
struct Port {
    port: Arc<File>,
    /// Held while a frame is written.
    writing: Arc<Mutex<()>>,
}

impl Port {
    fn serve(&self) -> Result<()> {
        loop {
            // Blocks until a host is connected: reading would answer "end" at once until then.
            self.write(&[0]).context("cannot write to the port")?;
            self.connection().context("cannot read the port")?;
        }
    }

    /// Until the host goes.
    fn connection(&self) -> Result<()> {
        let mut frames = Frames::new(&*self.port);
        let mut running: Option<Running> = None;
        while let Some((session, frame)) = frames.frame::<ToGuest>()? {
            match frame {
                ToGuest::Start(words) => {
                    // Also ends, by dropping it, what a host left that went and came back unnoticed.
                    drop(running.take());
                    running = self.start(session, &words)?;
                }
                ToGuest::Input(bytes) => {
                    if let Some(r) = running.as_mut().filter(|r| r.session == session) {
                        r.input(bytes);
                    }
                }
                ToGuest::InputEnd => {
                    if let Some(r) = running.as_mut().filter(|r| r.session == session) {
                        r.input = None;
                    }
                }
            }
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8]) -> std::io::Result<()> {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        (&*self.port).write_all(bytes)
    }

    fn say(&self, session: u64, frame: &ToHost) -> std::io::Result<()> {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        send(&*self.port, session, frame)
    }

    fn start(&self, session: u64, words: &[String]) -> Result<Option<Running>> {
        let Some((program, arguments)) = words.split_first() else {
            self.say(session, &ToHost::Refused(0, "no program was named".to_owned()))?;
            return Ok(None);
        };
        let spawned = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(e) => {
                let why = format!("{program}: {e}");
                self.say(session, &ToHost::Refused(e.raw_os_error().unwrap_or(0), why))?;
                return Ok(None);
            }
        };
        self.say(session, &ToHost::Started)?;
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let ended = Arc::new(AtomicBool::new(false));
        let (input, inputs) = sync_channel(1);
        if let Some(stdin) = child.stdin.take() {
            let port = self.clone();
            thread::spawn(move || port.feed(session, stdin, &inputs));
        }
        let port = self.clone();
        let mark = Arc::clone(&ended);
        thread::spawn(move || port.follow(session, child, &mark));
        Ok(Some(Running { session, input: Some(input), group, ended }))
    }

    /// Writes what comes to the program. Once it wants no more, what comes is taken and dropped.
    fn feed(&self, session: u64, stdin: ChildStdin, inputs: &Receiver<Vec<u8>>) {
        let mut stdin = Some(stdin);
        while let Ok(bytes) = inputs.recv() {
            if stdin.as_mut().is_some_and(|s| s.write_all(&bytes).is_err()) {
                stdin = None;
            }
            if self.say(session, &ToHost::InputTaken).is_err() {
                return;
            }
        }
    }

    /// Sends what the program prints, and how it ended.
    fn follow(&self, session: u64, mut child: Child, ended: &AtomicBool) {
        let (out, err) = (child.stdout.take(), child.stderr.take());
        thread::scope(|s| {
            s.spawn(|| out.map(|from| self.forward(session, from, ToHost::Out)));
            s.spawn(|| err.map(|from| self.forward(session, from, ToHost::Err)));
        });
        let status = child.wait();
        ended.store(true, Ordering::Release);
        let status =
            status.map_or(255, |s| s.code().or(s.signal().map(|n| 128 + n)).unwrap_or(255));
        // If the host has gone, nobody wants to know.
        let _ = self.say(session, &ToHost::Ended(status));
    }

    fn forward(&self, session: u64, mut from: impl Read, frame: fn(Vec<u8>) -> ToHost) {
        let mut buffer = vec![0; CHUNK];
        loop {
            match from.read(&mut buffer) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return,
                Ok(n) => {
                    if self.say(session, &frame(buffer[..n].to_vec())).is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// A session's program. Dropping it kills the program's process group, unless it has ended.
struct Running {
    session: u64,
    input: Option<SyncSender<Vec<u8>>>,
    group: Option<Pid>,
    ended: Arc<AtomicBool>,
}

impl Running {
    /// Never waits: the host sends the next input once the last was taken, so there is room; one that does not
    /// keep to that loses its input.
    fn input(&mut self, bytes: Vec<u8>) {
        if self.input.as_ref().is_some_and(|i| i.try_send(bytes).is_err()) {
            self.input = None;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = self.group.filter(|_| !self.ended.load(Ordering::Acquire)) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}
