//! Memory that the kernel hands out: memfds whose size is sealed, so that no domain can make
//! another fault on a page that went away.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};

/// A memfd of `len` zero bytes whose size cannot change. It can still be sealed against writing.
pub(crate) fn create(name: &str, len: u64) -> std::io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, len)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(fd)
}

/// A memfd that holds `bytes` and can never change.
pub(crate) fn constant(name: &str, bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let n = rustix::io::write(&fd, rest)?;
        rest = &rest[n..];
    }
    rustix::fs::fcntl_add_seals(
        &fd,
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL,
    )?;
    Ok(fd)
}

/// Seals against writing, for good; fails while a writable mapping exists anywhere.
pub(crate) fn seal(fd: BorrowedFd<'_>) -> std::io::Result<()> {
    Ok(rustix::fs::fcntl_add_seals(fd, SealFlags::WRITE | SealFlags::SEAL)?)
}

/// The same memory, opened anew so that whoever holds the descriptor can only read it. (A PD that
/// could open paths could open it for writing again; its sandbox does not let it.)
pub(crate) fn read_only(fd: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// A second descriptor of the same open file.
pub(crate) fn duplicate(fd: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    fd.try_clone_to_owned()
}

/// What stands at byte offset `at`, 8 bytes.
pub(crate) fn word_at(fd: &OwnedFd, at: u64) -> u64 {
    let mut bytes = [0; 8];
    match rustix::io::pread(fd.as_fd(), &mut bytes, at) {
        Ok(8) => u64::from_ne_bytes(bytes),
        _ => 0,
    }
}
