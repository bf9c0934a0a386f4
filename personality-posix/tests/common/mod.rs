//! Stubs made by the test process itself, as the kernel's zygote makes them.
#![allow(dead_code)]

pub mod local;

use clustix_pd::{Region, Stub, StubWindow, socket};
use clustix_posix::STUB_IMAGE;
use clustix_posix::services::{Death, Stubs};
use clustix_posix::window::WINDOW_LEN;
use clustix_proto::Errno;
use clustix_proto::errno::{EAGAIN, EIO, ENOMEM};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::collections::HashMap;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};

struct Known {
    /// Not there before its hello.
    pid: Option<Pid>,
    socket: Arc<OwnedFd>,
}

/// See the module.
pub struct HostStubs {
    next: AtomicU32,
    known: Arc<Mutex<HashMap<u32, Known>>>,
    deaths: Mutex<Receiver<Death>>,
    died: Mutex<Sender<Death>>,
}

fn stub_path() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("clustix-stub-{}", std::process::id()));
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o700)
            .open(&path)
            .unwrap()
            .write_all(STUB_IMAGE)
            .unwrap();
        path.to_string_lossy().into_owned()
    })
}

/// A stub dies with the thread that started it: one thread, never ending, starts them all.
fn zygote(window: OwnedFd, socket: OwnedFd) {
    type Job = (OwnedFd, OwnedFd, Sender<()>);
    static JOBS: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let jobs = JOBS.get_or_init(|| {
        let (tx, rx) = channel::<Job>();
        std::thread::spawn(move || {
            for (window, socket, done) in rx {
                // Reaped by whoever watches the stub's end.
                #[allow(clippy::zombie_processes)]
                Command::new("/bin/sh")
                    .args(["-c", "exec 3<&0 4<&1 0<&- 1<&- 2<&-; exec \"$0\"", stub_path()])
                    .stdin(Stdio::from(socket))
                    .stdout(Stdio::from(window))
                    .spawn()
                    .unwrap();
                done.send(()).unwrap();
            }
        });
        Mutex::new(tx)
    });
    let (tx, rx) = channel();
    jobs.lock().unwrap().send((window, socket, tx)).unwrap();
    rx.recv().unwrap();
}

impl HostStubs {
    pub fn new() -> HostStubs {
        let (died, deaths) = channel();
        HostStubs {
            next: AtomicU32::new(1),
            known: Arc::default(),
            deaths: Mutex::new(deaths),
            died: Mutex::new(died),
        }
    }

    fn window() -> (OwnedFd, StubWindow) {
        let fd = memfd_create("window", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, WINDOW_LEN as u64).unwrap();
        let window = StubWindow::map(&fd).unwrap();
        (fd, window)
    }

    fn pair() -> (OwnedFd, OwnedFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        sockopt::set_socket_passcred(&ours, true).unwrap();
        (ours, theirs)
    }

    /// Waits for the hello, then (in a thread of its own) for the end.
    fn watch(&self, ours: OwnedFd, id: u32) {
        let (known, died) = (self.known.clone(), self.died.lock().unwrap().clone());
        let ours = Arc::new(ours);
        known.lock().unwrap().insert(id, Known { pid: None, socket: ours.clone() });
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let status = match socket::receive(ours.as_fd(), &mut bytes, false) {
                Ok(Some(hello)) => {
                    let pid = Pid::from_raw(hello.sender.unwrap()).unwrap();
                    known.lock().unwrap().get_mut(&id).unwrap().pid = Some(pid);
                    loop {
                        match waitpid(Some(pid), WaitOptions::empty()) {
                            Ok(Some((_, status))) => break status.as_raw(),
                            Err(rustix::io::Errno::INTR) => {}
                            other => panic!("{other:?}"),
                        }
                    }
                }
                _ => 127 << 8,
            };
            known.lock().unwrap().remove(&id);
            let _ = died.send(Death { id, status });
        });
    }

    pub fn pid(&self, id: u32) -> Option<i32> {
        self.known.lock().unwrap().get(&id)?.pid.map(|p| p.as_raw_nonzero().get())
    }

    fn signal(&self, id: u32, signal: Signal) {
        // A child that was just forked has not said hello yet.
        for _ in 0..1_000_000 {
            match self.known.lock().unwrap().get(&id).map(|k| k.pid) {
                None => return,
                Some(Some(pid)) => {
                    let _ = kill_process(pid, signal);
                    return;
                }
                Some(None) => {}
            }
            std::thread::yield_now();
        }
    }
}

impl Stubs for HostStubs {
    fn spawn(&self) -> Result<Stub, Errno> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (fd, window) = Self::window();
        let (ours, theirs) = Self::pair();
        zygote(fd, theirs);
        self.watch(ours, id);
        Ok(Stub { id, pid: 0, window })
    }
    fn fork(&self, parent: u32) -> Result<Stub, Errno> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (fd, window) = Self::window();
        let (ours, theirs) = Self::pair();
        let socket = self.known.lock().unwrap().get(&parent).ok_or(EAGAIN)?.socket.clone();
        socket::send(socket.as_fd(), &[1], &[fd.as_fd(), theirs.as_fd()], false)
            .map_err(|_| EIO)?;
        self.watch(ours, id);
        Ok(Stub { id, pid: 0, window })
    }
    fn kill(&self, stub: u32) {
        self.signal(stub, Signal::KILL);
    }
    fn preempt(&self, stub: u32) {
        if let Some(pid) = self.pid(stub) {
            let _ = Command::new("/bin/kill").args(["-63", &pid.to_string()]).status();
        }
    }
    fn next_death(&self) -> Option<Death> {
        self.deaths.lock().unwrap().recv().ok()
    }
    fn region(&self, len: usize) -> Result<Region, Errno> {
        let fd = memfd_create("image", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(|_| ENOMEM)?;
        ftruncate(&fd, len as u64).map_err(|_| ENOMEM)?;
        Region::map(fd, len, true, true).map_err(|_| ENOMEM)
    }
    fn seal(&self, region: &Region) -> Result<(), Errno> {
        let seals = SealFlags::FUTURE_WRITE | SealFlags::GROW | SealFlags::SHRINK;
        fcntl_add_seals(region.as_fd().ok_or(EIO)?, seals).map_err(|_| EIO)
    }
    fn send(&self, region: &Region, stub: u32) -> Result<(), Errno> {
        let socket = self.known.lock().unwrap().get(&stub).ok_or(EAGAIN)?.socket.clone();
        socket::send(socket.as_fd(), &[2], &[region.as_fd().ok_or(EIO)?], false).map_err(|_| EIO)
    }
}
