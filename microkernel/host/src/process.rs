//! Processes: the start and the end of a protection domain's.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use clustix_pd::boot::KERNEL_FD;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

/// What to execute for a domain.
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    /// Arguments before the role.
    pub(crate) arguments: Vec<OsString>,
}

/// A process that this one started and has not reaped.
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
}

impl Process {
    /// Takes hold of a child that was not reaped yet.
    pub(crate) fn of_child(pid: u32) -> std::io::Result<Process> {
        let raw = Pid::from_raw(pid as i32).ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(Process { pid, pidfd: pidfd_open(raw, PidfdFlags::empty())? })
    }

    pub(crate) fn kill(&self) {
        // It fails only when the process is dead already.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Reaps it if it has ended: its wait status as of waitpid(2).
    pub(crate) fn reap(&self, wait: bool) -> Option<i32> {
        let options = if wait {
            WaitIdOptions::EXITED
        } else {
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG
        };
        loop {
            match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
                Ok(None) => return None,
                Ok(Some(status)) => {
                    let code = status.exit_status().map(|c| (c & 0xff) << 8);
                    return Some(code.or(status.terminating_signal()).unwrap_or(0));
                }
                Err(rustix::io::Errno::INTR) => {}
                // Nothing to wait for: as if it had been killed.
                Err(_) => return Some(libc::SIGKILL),
            }
        }
    }
}

/// Starts `program` as the domain `role`: descriptor 3 is `socket`, 2 is `log`, nothing else is
/// open; the environment is empty; it dies with this thread; its process group is its own.
pub(crate) fn start(
    program: &Program,
    role: &str,
    socket: OwnedFd,
    log: BorrowedFd<'_>,
) -> std::io::Result<Process> {
    let parent = std::process::id();
    let mut command = Command::new(&program.path);
    command
        .arg0("clustix")
        .args(&program.arguments)
        .arg(role)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(log.try_clone_to_owned()?))
        .process_group(0);
    let fd = socket.as_raw_fd();
    // SAFETY: the closure runs in the forked child and makes only async-signal-safe calls on
    // numbers; it allocates nothing.
    unsafe {
        command.pre_exec(move || {
            crate::signals::unblock_all();
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // The parent may have died before that.
            if libc::getppid() as u32 != parent {
                libc::_exit(127);
            }
            let moved = if fd == KERNEL_FD {
                libc::fcntl(fd, libc::F_SETFD, 0)
            } else {
                libc::dup2(fd, KERNEL_FD)
            };
            if moved < 0 {
                return Err(std::io::Error::last_os_error());
            }
            // std's own pipe for telling of a failed exec must live until then: so close-on-exec.
            libc::syscall(
                libc::SYS_close_range,
                KERNEL_FD as u32 + 1,
                u32::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            );
            Ok(())
        });
    }
    let child = command.spawn()?;
    drop(socket);
    Process::of_child(child.id())
}

/// Lets the process run before all that is not real-time, and before a ccache that has become so
/// ([`clustix_pd::urgency`]): SCHED_RR, sched(7). Its threads come to inherit that.
///
/// # Errors
/// EPERM: neither CAP_SYS_NICE nor RLIMIT_RTPRIO allow it, or its control group has no time for it.
pub(crate) fn make_realtime(process: &Process) -> std::io::Result<()> {
    let priority = libc::sched_param { sched_priority: 2 };
    // SAFETY: the call reads `priority` only. The pid is a child's that was not reaped yet, so nobody else's.
    match unsafe {
        libc::sched_setscheduler(process.pid as i32, libc::SCHED_RR, &raw const priority)
    } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Waits for every child there still is, at most five seconds. The zygote's death has killed its
/// stubs (PR_SET_PDEATHSIG) and made them this process's children.
pub(crate) fn reap_orphans() {
    let until = clustix_pd::exec::now_ns() + 5_000_000_000;
    while clustix_pd::exec::now_ns() < until {
        match waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
            // Something still dies: its exit is not long in coming, and there is nothing else to do.
            Ok(None) => std::thread::sleep(std::time::Duration::from_millis(1)),
            Err(_) => return,
        }
    }
}

/// A connected pair of packet sockets: the kernel's end does not block.
pub(crate) fn packet_pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (kernel, other) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::ioctl_fionbio(&kernel, true)?;
    Ok((kernel, other))
}
