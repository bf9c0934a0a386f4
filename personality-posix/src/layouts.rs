//! Byte layouts of the structures that file calls fill in, for x86-64 (linux/stat.h,
//! asm/stat.h, linux/dirent.h).

use clustix_proto::vfs::{Inode, PAGE_SIZE, Time};

/// Little-endian bytes, field after field.
#[derive(Default)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    /// Appends 2 bytes.
    pub fn u16(mut self, v: u16) -> Self {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }
    /// Appends 4 bytes.
    pub fn u32(mut self, v: u32) -> Self {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }
    /// Appends 8 bytes.
    pub fn u64(mut self, v: u64) -> Self {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }
    /// Appends seconds and nanoseconds, 8 bytes each.
    pub fn time(self, t: Time) -> Self {
        self.u64(t.sec as u64).u64(u64::from(t.nsec))
    }
    /// Appends zeroes up to a length of `n`.
    pub fn pad(mut self, n: usize) -> Self {
        self.0.resize(n.max(self.0.len()), 0);
        self
    }
}

/// Major and minor of the one file system, as st_dev shows it.
pub const DEVICE: (u32, u32) = (0, 42);

/// The kernel's dev_t as user space sees it (makedev(3)).
pub fn makedev(major: u32, minor: u32) -> u64 {
    let (major, minor) = (u64::from(major), u64::from(minor));
    (major & 0xfff) << 8 | (major & !0xfff) << 32 | (minor & 0xff) | (minor & !0xff) << 12
}

/// Splits a dev_t given to mknod(2).
pub fn splitdev(dev: u64) -> (u32, u32) {
    let major = (dev >> 8 & 0xfff) | (dev >> 32 & !0xfff);
    let minor = (dev & 0xff) | (dev >> 12 & !0xff);
    (major as u32, minor as u32)
}

fn rdev(inode: &Inode) -> (u32, u32) {
    ((inode.rdev >> 32) as u32, inode.rdev as u32)
}

/// 512-byte blocks that a file of this size takes when it has no holes.
fn blocks(inode: &Inode) -> u64 {
    if inode.kind() == clustix_proto::vfs::mode::S_IFREG {
        inode.size.div_ceil(PAGE_SIZE as u64) * (PAGE_SIZE as u64 / 512)
    } else {
        0
    }
}

/// `struct stat`, 144 bytes.
pub fn stat(ino: u64, inode: &Inode) -> Vec<u8> {
    let (major, minor) = rdev(inode);
    Bytes::default()
        .u64(makedev(DEVICE.0, DEVICE.1))
        .u64(ino)
        .u64(u64::from(inode.nlink))
        .u32(inode.mode)
        .u32(inode.uid)
        .u32(inode.gid)
        .u32(0)
        .u64(makedev(major, minor))
        .u64(inode.size)
        .u64(PAGE_SIZE as u64)
        .u64(blocks(inode))
        .time(inode.atime)
        .time(inode.mtime)
        .time(inode.ctime)
        .pad(144)
        .0
}

/// STATX_BASIC_STATS (linux/stat.h).
const STATX_BASIC_STATS: u32 = 0x7ff;

/// `struct statx`, 256 bytes.
pub fn statx(ino: u64, inode: &Inode) -> Vec<u8> {
    let time = |b: Bytes, t: Time| b.u64(t.sec as u64).u32(t.nsec).u32(0);
    let (major, minor) = rdev(inode);
    let mut b = Bytes::default()
        .u32(STATX_BASIC_STATS)
        .u32(PAGE_SIZE as u32)
        .u64(0)
        .u32(inode.nlink)
        .u32(inode.uid)
        .u32(inode.gid)
        .u16(inode.mode as u16)
        .u16(0)
        .u64(ino)
        .u64(inode.size)
        .u64(blocks(inode))
        .u64(0);
    for t in [inode.atime, Time::default(), inode.ctime, inode.mtime] {
        b = time(b, t);
    }
    b.u32(major).u32(minor).u32(DEVICE.0).u32(DEVICE.1).pad(256).0
}

/// `struct statfs`, 120 bytes: magic number, block size, blocks in all and free.
pub fn statfs(total: u64, free: u64) -> Vec<u8> {
    /// "CLUX", the file system's magic number.
    const MAGIC: u64 = 0x434c_5558;
    Bytes::default()
        .u64(MAGIC)
        .u64(PAGE_SIZE as u64)
        .u64(total)
        .u64(free)
        .u64(free)
        .u64(1 << 40)
        .u64(1 << 40)
        .u64(0)
        .u64(clustix_proto::vfs::NAME_MAX as u64)
        .u64(PAGE_SIZE as u64)
        .pad(120)
        .0
}

/// DT_* of a dirent, from an inode's type bits.
fn dirent_kind(kind: u32) -> u8 {
    (kind >> 12) as u8
}

/// Appends a `struct linux_dirent64` if it fits in `room` bytes in all; whether it did.
pub fn dirent64(
    out: &mut Vec<u8>,
    room: usize,
    ino: u64,
    next: u64,
    kind: u32,
    name: &[u8],
) -> bool {
    let len = (19 + name.len() + 1).next_multiple_of(8);
    if out.len() + len > room {
        return false;
    }
    let end = out.len() + len;
    out.extend_from_slice(&ino.to_le_bytes());
    out.extend_from_slice(&next.to_le_bytes());
    out.extend_from_slice(&(len as u16).to_le_bytes());
    out.push(dirent_kind(kind));
    out.extend_from_slice(name);
    out.resize(end, 0);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use clustix_proto::vfs::Backing;

    fn inode() -> Inode {
        let t = |sec| Time { sec, nsec: 5 };
        Inode {
            mode: 0o100644,
            uid: 7,
            gid: 8,
            nlink: 2,
            size: 4097,
            atime: t(1),
            mtime: t(2),
            ctime: t(3),
            rdev: 5 << 32 | 1,
            parent: 0,
            openers: 0,
            backing: Backing::CacheOnly,
            ..template()
        }
    }

    fn template() -> Inode {
        // Fields that these layouts do not show.
        postcard::from_bytes(&[0; 256]).expect("an all-zero inode decodes")
    }

    #[test]
    fn stat_has_the_kernel_layout() {
        let s = stat(99, &inode());
        assert_eq!(s.len(), 144);
        let u64_at = |o: usize| u64::from_le_bytes(s[o..o + 8].try_into().unwrap());
        assert_eq!((u64_at(8), u64_at(16), u64_at(48)), (99, 2, 4097));
        assert_eq!(u32::from_le_bytes(s[24..28].try_into().unwrap()), 0o100644);
        assert_eq!((u64_at(40), u64_at(64)), (makedev(5, 1), 16));
        assert_eq!((u64_at(72), u64_at(88), u64_at(104)), (1, 2, 3));
    }

    #[test]
    fn statx_has_the_kernel_layout() {
        let s = statx(99, &inode());
        assert_eq!(s.len(), 256);
        let u64_at = |o: usize| u64::from_le_bytes(s[o..o + 8].try_into().unwrap());
        assert_eq!((u64_at(32), u64_at(40), u64_at(48)), (99, 4097, 16));
        assert_eq!((u64_at(64), u64_at(96), u64_at(112)), (1, 3, 2));
        assert_eq!(u32::from_le_bytes(s[128..132].try_into().unwrap()), 5);
    }

    #[test]
    fn device_numbers_survive_the_round_trip() {
        for (a, b) in [(1, 3), (4095, 255), (4096, 256), (0x12345, 0xabcde)] {
            assert_eq!(splitdev(makedev(a, b)), (a, b));
        }
    }

    #[test]
    fn dirents_stop_at_the_room_given() {
        let mut out = Vec::new();
        assert!(dirent64(&mut out, 56, 1, 2, 0o040000, b"abc"));
        assert_eq!((out.len(), out[18], &out[19..23]), (24, 4, &b"abc\0"[..]));
        assert!(dirent64(&mut out, 56, 1, 3, 0o100000, b"0123456789"));
        assert!(!dirent64(&mut out, 56, 1, 4, 0o100000, b"x"));
        assert_eq!(out.len(), 56);
    }
}
