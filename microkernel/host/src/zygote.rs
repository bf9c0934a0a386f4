//! The zygote: a process forked before anything else, with nothing open but its socket, from which
//! every stub is started; the stubs are its children, those they fork too (CLONE_PARENT).
//!
//! It does what it is told and tells what it sees. A pid is unambiguous between the two because
//! only the zygote reaps: it sends signals itself, and only to children that it has not reaped.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use clustix_pd::{socket, wire};
use serde::{Deserialize, Serialize};

use crate::process::Process;
use crate::signals;

/// Descriptors of a stub.
const STUB_SOCKET: i32 = clustix_pd::kernel::STUB_SOCKET_FD;
const STUB_WINDOW: i32 = clustix_pd::kernel::STUB_WINDOW_FD;

/// Most descriptors of a stub: what it has, and what passes through it.
const STUB_DESCRIPTORS: u64 = 64;

/// What the kernel orders.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Start a stub; its socket and its window come along.
    Spawn { token: u32 },
    /// Send a signal to a child that was not reaped yet.
    Signal { pid: u32, signal: i32 },
}

/// What the zygote tells.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The stub was started as this process, or not (a Linux error number).
    Spawned { token: u32, result: Result<u32, i32> },
    /// A child ended, with this wait status, and was reaped.
    Died { pid: u32, status: i32 },
}

/// Forks the zygote; returns its process and the kernel's end of its socket.
pub(crate) fn start(image: &OwnedFd) -> std::io::Result<(Process, OwnedFd)> {
    let (ours, theirs) = crate::process::packet_pair()?;
    let parent = std::process::id();
    // SAFETY: the process has one thread (the caller's promise: `Host::run`), so the child may use
    // everything; it never returns from here.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error()),
        0 => {
            // However it ends, nothing of it stays; the parent's destructors do not run.
            let _ = run(theirs, image, parent);
            end()
        }
        pid => Ok((Process::of_child(pid as u32)?, ours)),
    }
}

fn run(socket: OwnedFd, image: &OwnedFd, parent: u32) -> std::io::Result<()> {
    // SAFETY: numbers only.
    unsafe {
        libc::setpgid(0, 0);
        // Not SIGKILL: what a hostile app forked behind everybody's back has no parent-death signal,
        // and goes only with the group (`end`).
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
        libc::prctl(libc::PR_SET_NAME, c"clustix-zygote".as_ptr());
        if libc::getppid() as u32 != parent {
            return Ok(());
        }
    }
    rustix::thread::set_no_new_privs(true)?;
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    let _ = rustix::process::setrlimit(
        rustix::process::Resource::Core,
        rustix::process::Rlimit { current: Some(0), maximum: Some(0) },
    );
    // Keep two descriptors, under numbers of our own; everything the kernel had open goes. The
    // descriptors' owners are in the parent's memory, of which this is a copy that is never used.
    let socket = move_to(&socket, 3)?;
    let image = move_to(image, 4)?;
    for fd in 0..3 {
        signals::close(&fd);
    }
    signals::close_from(5);
    signals::unblock_all();
    let children = signals::descriptor(&[libc::SIGCHLD, libc::SIGTERM])?;
    let mut bytes = Vec::new();
    loop {
        let mut fds = [
            rustix::event::PollFd::new(&socket, rustix::event::PollFlags::IN),
            rustix::event::PollFd::new(&children, rustix::event::PollFlags::IN),
        ];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        while let Some(signal) = signals::take(&children) {
            if signal == libc::SIGTERM {
                end();
            }
        }
        reap(&socket)?;
        match socket::receive(socket.as_fd(), &mut bytes, true) {
            Ok(None) => end(),
            Ok(Some(received)) => {
                let Ok(order) = postcard::from_bytes(&bytes) else { continue };
                obey(&socket, &image, order, received.descriptors)?;
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}

/// The kernel is gone: ends this process and every descendant. Stubs cannot leave the group.
fn end() -> ! {
    // SAFETY: numbers only; the group is killed only if it is this process's own.
    unsafe {
        if libc::getpgrp() == libc::getpid() {
            libc::kill(0, libc::SIGKILL);
        }
        libc::_exit(71)
    }
}

/// Moves a descriptor to the number `to`, close-on-exec.
fn move_to(fd: &OwnedFd, to: i32) -> std::io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: the child owns its whole descriptor table; what stood at `to` is one of the copies
    // that are never used. The two calls keep `fd` itself clear of `to` for the next one.
    unsafe {
        let high = libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 100);
        if high < 0 || libc::dup3(high, to, libc::O_CLOEXEC) < 0 {
            return Err(std::io::Error::last_os_error());
        }
        libc::close(high);
        Ok(OwnedFd::from_raw_fd(to))
    }
}

fn report(socket: &OwnedFd, report: &Report) -> std::io::Result<()> {
    let bytes = postcard::to_stdvec(report).map_err(|_| std::io::ErrorKind::InvalidData)?;
    debug_assert!(bytes.len() <= wire::MAX_PACKET);
    // The kernel always reads, so waiting for room is bounded by its step.
    loop {
        match socket::send(socket.as_fd(), &bytes, &[], false) {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                let mut fds = [rustix::event::PollFd::new(socket, rustix::event::PollFlags::OUT)];
                let _ = rustix::event::poll(&mut fds, None);
            }
            other => return other,
        }
    }
}

/// Reaps every child that ended, those that stubs forked too.
fn reap(socket: &OwnedFd) -> std::io::Result<()> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a live local.
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
        if pid <= 0 {
            return Ok(());
        }
        report(socket, &Report::Died { pid: pid as u32, status })?;
    }
}

/// Whether `pid` is a child that was not reaped.
fn is_child(pid: u32) -> bool {
    let Some(pid) = rustix::process::Pid::from_raw(pid as i32) else { return false };
    let options = rustix::process::WaitIdOptions::EXITED
        | rustix::process::WaitIdOptions::NOHANG
        | rustix::process::WaitIdOptions::NOWAIT;
    rustix::process::waitid(rustix::process::WaitId::Pid(pid), options).is_ok()
}

fn obey(
    socket: &OwnedFd,
    image: &OwnedFd,
    order: Order,
    descriptors: Vec<OwnedFd>,
) -> std::io::Result<()> {
    match order {
        Order::Signal { pid, signal } => {
            if pid > 1 && is_child(pid) {
                // SAFETY: numbers only; the pid is a child's, which nobody but this thread reaps.
                unsafe { libc::kill(pid as i32, signal) };
            }
            Ok(())
        }
        Order::Spawn { token } => {
            let result = match <[OwnedFd; 2]>::try_from(descriptors) {
                Ok([kernel, window]) => spawn(image, &kernel, &window),
                Err(_) => Err(libc::EPROTO),
            };
            report(socket, &Report::Spawned { token, result })
        }
    }
}

fn spawn(image: &OwnedFd, kernel: &OwnedFd, window: &OwnedFd) -> Result<u32, i32> {
    let zygote = std::process::id();
    let name: &CStr = c"stub";
    let argv = [name.as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null::<libc::c_char>()];
    let fds = [kernel.as_raw_fd(), window.as_raw_fd(), image.as_raw_fd()];
    // SAFETY: this process has one thread. The child makes async-signal-safe calls on numbers and
    // on the static strings above, and ends in execveat or _exit.
    unsafe {
        match libc::fork() {
            -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EAGAIN)),
            0 => {
                signals::unblock_all();
                libc::signal(libc::SIGPIPE, libc::SIG_DFL);
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if libc::getppid() as u32 != zygote {
                    libc::_exit(127);
                }
                let high = fds.map(|fd| libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 100));
                if high.contains(&-1)
                    || libc::dup2(high[0], STUB_SOCKET) < 0
                    || libc::dup2(high[1], STUB_WINDOW) < 0
                {
                    libc::_exit(126);
                }
                for fd in 0..3 {
                    libc::close(fd);
                }
                libc::syscall(
                    libc::SYS_close_range,
                    STUB_WINDOW as u32 + 1,
                    u32::MAX,
                    libc::CLOSE_RANGE_CLOEXEC,
                );
                let limit = libc::rlimit { rlim_cur: STUB_DESCRIPTORS, rlim_max: STUB_DESCRIPTORS };
                libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
                libc::syscall(
                    libc::SYS_execveat,
                    high[2],
                    c"".as_ptr(),
                    argv.as_ptr(),
                    envp.as_ptr(),
                    libc::AT_EMPTY_PATH,
                );
                libc::_exit(125)
            }
            pid => Ok(pid as u32),
        }
    }
}
