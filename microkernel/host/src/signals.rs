//! Signals to the kernel process, as a descriptor.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Blocks `signals` in this thread and returns a descriptor that becomes readable when one comes.
pub(crate) fn descriptor(signals: &[i32]) -> std::io::Result<OwnedFd> {
    // SAFETY: an all-zero sigset_t is valid storage, initialised by sigemptyset before use; all
    // pointers are to live locals.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for &s in signals {
            libc::sigaddset(&mut set, s);
        }
        let error = libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        if error != 0 {
            return Err(std::io::Error::from_raw_os_error(error));
        }
        let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // A fresh descriptor that nobody else owns.
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Takes one pending signal from a signalfd, if there is one.
pub(crate) fn take(fd: &OwnedFd) -> Option<i32> {
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    let n = rustix::io::read(fd.as_fd(), &mut info).ok()?;
    // `ssi_signo` is the structure's first field.
    (n == info.len()).then(|| i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
}

/// Empties this thread's signal mask: what a fresh process should start with.
pub(crate) fn unblock_all() {
    // SAFETY: as in `descriptor`; async-signal-safe.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

/// Closes every descriptor of this process from `first` on.
pub(crate) fn close_from(first: u32) {
    // SAFETY: called only in a forked child that goes on to exec or to a loop that owns nothing of
    // what is closed.
    unsafe {
        libc::syscall(libc::SYS_close_range, first, u32::MAX, 0u32);
    }
}

/// Closes descriptor `fd` if it is open.
pub(crate) fn close(fd: &impl AsRawFd) {
    // SAFETY: as for `close_from`.
    unsafe {
        libc::close(fd.as_raw_fd());
    }
}
