//! Devices with cluster-wide names: what a character device's number means, and what reading and
//! writing it does where that needs no state.
//!
//! The personality calls [`device`] with the number in a device inode and acts on the answer.
//! Terminals are only named here; the console server serves them. Nothing in this crate opens a
//! host file or keeps state: the one thing it takes from the host is entropy (getrandom(2)).

#![forbid(unsafe_code)]

mod entropy;

use clustix_proto::errno::{EAGAIN, ENOSPC};
use clustix_proto::{Answer, vfs::mode};
pub use entropy::{Source, fill};

/// A character device, by its Linux number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CharDevice {
    /// /dev/null: end of file, takes everything.
    Null,
    /// /dev/zero: zeroes without end, takes everything.
    Zero,
    /// /dev/full: zeroes without end, ENOSPC on writing.
    Full,
    /// /dev/random and /dev/urandom: the host's generator; what is written is dropped.
    Random,
    /// /dev/tty: the calling process's controlling terminal.
    ControllingTerminal,
    /// /dev/console: the node's first terminal.
    Console,
    /// /dev/pts/N: terminal N of the console server.
    Terminal(u32),
}

/// The devices that a new file system has in /dev: name, major, minor, permissions.
pub const NODES: &[(&str, u32, u32, u32)] = &[
    ("null", 1, 3, 0o666),
    ("zero", 1, 5, 0o666),
    ("full", 1, 7, 0o666),
    ("random", 1, 8, 0o666),
    ("urandom", 1, 9, 0o666),
    ("tty", 5, 0, 0o666),
    ("console", 5, 1, 0o600),
];

/// Major number of pseudo-terminals (Linux's UNIX98 slaves).
pub const TERMINAL_MAJOR: u32 = 136;

/// The device of that number, if Clustix has one; opening any other is ENXIO.
pub const fn device(major: u32, minor: u32) -> Option<CharDevice> {
    Some(match (major, minor) {
        (1, 3) => CharDevice::Null,
        (1, 5) => CharDevice::Zero,
        (1, 7) => CharDevice::Full,
        (1, 8) | (1, 9) => CharDevice::Random,
        (5, 0) => CharDevice::ControllingTerminal,
        (5, 1) => CharDevice::Console,
        (TERMINAL_MAJOR, n) => CharDevice::Terminal(n),
        _ => return None,
    })
}

/// The device of an inode's `mode` and `rdev`; `None` if it is no character device or unknown.
pub const fn of_inode(st_mode: u32, rdev: u64) -> Option<CharDevice> {
    if st_mode & mode::S_IFMT != mode::S_IFCHR {
        return None;
    }
    device((rdev >> 32) as u32, rdev as u32)
}

/// `rdev` as an inode holds it.
pub const fn rdev(major: u32, minor: u32) -> u64 {
    (major as u64) << 32 | minor as u64
}

impl CharDevice {
    /// Whether the console server serves it, so that [`CharDevice::read`] and
    /// [`CharDevice::write`] do not apply.
    pub const fn is_terminal(self) -> bool {
        matches!(
            self,
            CharDevice::ControllingTerminal | CharDevice::Console | CharDevice::Terminal(_)
        )
    }

    /// Reads into `out`: how many bytes of it were filled (0: end of file). `None`: a terminal, ask
    /// the console server.
    pub fn read(self, out: &mut [u8]) -> Option<Answer<usize>> {
        Some(match self {
            CharDevice::Null => Ok(0),
            CharDevice::Zero | CharDevice::Full => {
                out.fill(0);
                Ok(out.len())
            }
            CharDevice::Random => fill(out, Source::Random).map_err(|_| EAGAIN).map(|()| out.len()),
            _ => return None,
        })
    }

    /// Writes `bytes`: how many were taken. `None`: a terminal, ask the console server.
    pub fn write(self, bytes: &[u8]) -> Option<Answer<usize>> {
        Some(match self {
            CharDevice::Null | CharDevice::Zero | CharDevice::Random => Ok(bytes.len()),
            CharDevice::Full => Err(ENOSPC),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_node_is_a_device() {
        for (name, major, minor, _) in NODES {
            assert!(device(*major, *minor).is_some(), "{name}");
            let d = of_inode(mode::S_IFCHR | 0o666, rdev(*major, *minor));
            assert_eq!(d, device(*major, *minor));
        }
        assert_eq!(device(8, 0), None);
        assert_eq!(of_inode(mode::S_IFBLK, rdev(1, 3)), None);
        assert_eq!(of_inode(mode::S_IFCHR, rdev(136, 4)), Some(CharDevice::Terminal(4)));
    }

    #[test]
    fn the_simple_ones_read_and_write_as_linux_does() {
        let mut b = [7u8; 64];
        assert_eq!(CharDevice::Null.read(&mut b), Some(Ok(0)));
        assert_eq!(CharDevice::Null.write(&b), Some(Ok(64)));
        assert_eq!(CharDevice::Zero.read(&mut b), Some(Ok(64)));
        assert_eq!(b, [0; 64]);
        assert_eq!(CharDevice::Full.write(&b), Some(Err(ENOSPC)));
        assert_eq!(CharDevice::Random.read(&mut b), Some(Ok(64)));
        assert_ne!(b, [0; 64]);
        assert_eq!(CharDevice::Console.read(&mut b), None);
    }
}
