//! The vfs beside the host's own file system: the same random calls in both, comparing every result
//! and errno, and the whole tree at the end. As root, calls are made as the superuser and as an
//! ordinary user by turns.

mod common;

use clustix_ccache::local::LocalCache;
use clustix_pd::exec;
use clustix_proto::errno::*;
use clustix_proto::vfs::mode::*;
use clustix_proto::vfs::{Credentials, Inode, ROOT, Request, SetAttr};
use clustix_proto::{Answer, Errno};
use clustix_vfs::permission::{READ, WRITE};
use clustix_vfs::{may, stat, walk};
use common::Awkward;
use proptest::prelude::*;
use rustix::fs::{self as host, AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Clone, Debug)]
enum Call {
    Open { path: Vec<u8>, mode: u32, exclusive: bool },
    Mkdir { path: Vec<u8>, mode: u32 },
    Mknod { path: Vec<u8>, fifo: bool, mode: u32 },
    Symlink { target: Vec<u8>, path: Vec<u8> },
    Link { old: Vec<u8>, new: Vec<u8>, follow: bool },
    Unlink { path: Vec<u8>, rmdir: bool },
    Rename { old: Vec<u8>, new: Vec<u8>, flags: u32 },
    Write { path: Vec<u8>, offset: u64, len: usize, byte: u8, append: bool },
    Read { path: Vec<u8>, offset: u64, len: usize },
    Truncate { path: Vec<u8>, size: u64 },
    Chmod { path: Vec<u8>, mode: u32 },
    Chown { path: Vec<u8>, uid: Option<u32>, gid: Option<u32>, follow: bool },
    Times { path: Vec<u8>, now: bool },
    Stat { path: Vec<u8>, follow: bool },
    Readlink { path: Vec<u8> },
    List { path: Vec<u8> },
}

/// What a call gave, in a form both sides can be brought to.
type Outcome = Result<String, i32>;

const USER: u32 = 1000;

fn component() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        24 => (0u8..5).prop_map(|c| vec![b'a' + c]),
        1 => Just(b".".to_vec()),
        1 => Just(b"..".to_vec()),
    ]
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    let usual = (prop::collection::vec(component(), 1..4), 0u8..12).prop_map(|(parts, end)| {
        let mut p = parts.join(&b"/"[..]);
        match end {
            0 => p.push(b'/'),
            1 => p.extend(b"//"),
            2 => p.extend(b"/."),
            _ => {}
        }
        p
    });
    prop_oneof![
        60 => usual,
        1 => Just(vec![]),
        1 => Just(vec![b'n'; 255]),
        1 => Just(vec![b'n'; 256]),
        1 => Just([&b"a/"[..], &vec![b'n'; 256]].concat()),
        1 => Just(b"a/".repeat(2047)),
        1 => Just(b"a/".repeat(2048)),
    ]
}

/// At most one step up, so that nothing climbs out of the test's own directories.
fn target() -> impl Strategy<Value = Vec<u8>> {
    let name = || (0u8..5).prop_map(|c| vec![b'a' + c]);
    prop_oneof![
        name(),
        name().prop_map(|n| [&b"../"[..], &n].concat()),
        (name(), name()).prop_map(|(a, b)| [&a[..], b"/", &b].concat()),
        name().prop_map(|n| [&n[..], b"/"].concat()),
        Just(b".".to_vec()),
        Just(vec![]),
    ]
}

fn dir_mode() -> impl Strategy<Value = u32> {
    prop_oneof![
        6 => Just(0o777u32), 2 => Just(0o1777), 2 => Just(0o2777),
        1 => Just(0o700), 1 => Just(0o555), 1 => Just(0o311), 1 => Just(0o4755)
    ]
}

fn file_mode() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => Just(0o666u32), 2 => Just(0o644), 1 => Just(0o6777), 1 => Just(0o4755),
        1 => Just(0o2666), 1 => Just(0o000), 1 => Just(0o400)
    ]
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0u64), 0..10_000u64, 0..40u64, Just(4096), Just(8192), 0..400_000u64]
}

fn call() -> impl Strategy<Value = Call> {
    let owner = || prop_oneof![Just(None), Just(Some(0u32)), Just(Some(USER)), Just(Some(1001))];
    prop_oneof![
        4 => (path(), file_mode(), any::<bool>())
            .prop_map(|(path, mode, exclusive)| Call::Open { path, mode, exclusive }),
        5 => (path(), dir_mode()).prop_map(|(path, mode)| Call::Mkdir { path, mode }),
        1 => (path(), any::<bool>(), file_mode())
            .prop_map(|(path, fifo, mode)| Call::Mknod { path, fifo, mode }),
        3 => (target(), path()).prop_map(|(target, path)| Call::Symlink { target, path }),
        3 => (path(), path(), any::<bool>())
            .prop_map(|(old, new, follow)| Call::Link { old, new, follow }),
        3 => (path(), any::<bool>()).prop_map(|(path, rmdir)| Call::Unlink { path, rmdir }),
        7 => (path(), path(), prop_oneof![4 => Just(0u32), 1 => Just(1), 3 => Just(2)])
            .prop_map(|(old, new, flags)| Call::Rename { old, new, flags }),
        4 => (path(), offset(), prop_oneof![0..30usize, 0..9000usize, Just(4096), Just(100_000)],
              any::<u8>(), any::<bool>())
            .prop_map(|(path, offset, len, byte, append)| {
                Call::Write { path, offset, len, byte, append }
            }),
        2 => (path(), offset(), 0..9000usize)
            .prop_map(|(path, offset, len)| Call::Read { path, offset, len }),
        2 => (path(), offset()).prop_map(|(path, size)| Call::Truncate { path, size }),
        2 => (path(), prop_oneof![dir_mode(), file_mode()])
            .prop_map(|(path, mode)| Call::Chmod { path, mode }),
        1 => (path(), owner(), owner(), any::<bool>())
            // A chown of neither still clears set-id bits on Linux; a request cannot say that.
            .prop_filter("changes nothing", |(_, uid, gid, _)| uid.is_some() || gid.is_some())
            .prop_map(|(path, uid, gid, follow)| Call::Chown { path, uid, gid, follow }),
        1 => (path(), any::<bool>()).prop_map(|(path, now)| Call::Times { path, now }),
        2 => (path(), any::<bool>()).prop_map(|(path, follow)| Call::Stat { path, follow }),
        1 => path().prop_map(|path| Call::Readlink { path }),
        1 => path().prop_map(|path| Call::List { path }),
    ]
}

fn shown(mode: u32, nlink: u64, size: u64, uid: u32, gid: u32) -> String {
    let size = if mode & S_IFMT == S_IFDIR { 0 } else { size };
    format!("mode={mode:o} nlink={nlink} size={size} uid={uid} gid={gid}")
}

fn brief(bytes: &[u8]) -> String {
    format!("{} bytes, hash {:x}", bytes.len(), xxhash_rust::xxh3::xxh3_64(bytes))
}

// The host's side.

struct Host {
    top: PathBuf,
    dir: OwnedFd,
    root: bool,
}

impl Host {
    fn new() -> Host {
        let base = if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" };
        let name = format!("clustix-vfs-{}-{:x}", std::process::id(), exec::now_ns());
        let top = Path::new(base).join(name);
        let deep = top.join("1/2/3/4/5/6/7/8");
        std::fs::create_dir_all(&deep).unwrap();
        let dir = host::open(&deep, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        host::fchmod(&dir, Mode::from_raw_mode(0o777)).unwrap();
        Host { top, dir, root: rustix::process::geteuid().is_root() }
    }

    fn become_user(&self, user: bool) {
        if !self.root {
            return;
        }
        let keep = None::<Uid>;
        if user {
            let gid = Some(Gid::from_raw(USER));
            set_thread_groups(&[Gid::from_raw(1001)]).unwrap();
            set_thread_res_gid(None::<Gid>, gid, None::<Gid>).unwrap();
            set_thread_res_uid(keep, Some(Uid::from_raw(USER)), keep).unwrap();
        } else {
            set_thread_res_uid(keep, Some(Uid::ROOT), keep).unwrap();
            set_thread_res_gid(None::<Gid>, Some(Gid::ROOT), None::<Gid>).unwrap();
            set_thread_groups(&[]).unwrap();
        }
    }

    fn run(&self, call: &Call, user: bool) -> Outcome {
        self.become_user(user);
        let r = self.call(call);
        self.become_user(false);
        r.map_err(|e| e.raw_os_error())
    }

    fn call(&self, call: &Call) -> rustix::io::Result<String> {
        let d = &self.dir;
        let m = Mode::from_raw_mode;
        let flags = OFlags::CLOEXEC | OFlags::NONBLOCK;
        let done = |r: rustix::io::Result<()>| r.map(|()| String::new());
        let no_follow = |follow| if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        match call {
            Call::Open { path, mode, exclusive } => {
                let excl = if *exclusive { OFlags::EXCL } else { OFlags::empty() };
                let f = flags | OFlags::CREATE | OFlags::RDWR | excl;
                host::openat(d, &path[..], f, m(*mode)).map(|_| String::new())
            }
            Call::Mkdir { path, mode } => done(host::mkdirat(d, &path[..], m(*mode))),
            Call::Mknod { path, fifo, mode } => {
                let kind = if *fifo { FileType::Fifo } else { FileType::RegularFile };
                done(host::mknodat(d, &path[..], kind, m(*mode), 0))
            }
            Call::Symlink { target, path } => done(host::symlinkat(&target[..], d, &path[..])),
            Call::Link { old, new, follow } => {
                let f = if *follow { AtFlags::SYMLINK_FOLLOW } else { AtFlags::empty() };
                done(host::linkat(d, &old[..], d, &new[..], f))
            }
            Call::Unlink { path, rmdir } => {
                let f = if *rmdir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
                done(host::unlinkat(d, &path[..], f))
            }
            Call::Rename { old, new, flags } => {
                let f = RenameFlags::from_bits_retain(*flags);
                done(host::renameat_with(d, &old[..], d, &new[..], f))
            }
            Call::Write { path, offset, len, byte, append } => {
                let a = if *append { OFlags::APPEND } else { OFlags::empty() };
                let f = host::openat(d, &path[..], flags | OFlags::WRONLY | a, Mode::empty())?;
                let bytes = vec![*byte; *len];
                let n = match append {
                    true => rustix::io::write(&f, &bytes)?,
                    false => rustix::io::pwrite(&f, &bytes, *offset)?,
                };
                Ok(n.to_string())
            }
            Call::Read { path, offset, len } => {
                let f = host::openat(d, &path[..], flags | OFlags::RDONLY, Mode::empty())?;
                let mut bytes = vec![0; *len];
                let n = rustix::io::pread(&f, &mut bytes, *offset)?;
                Ok(brief(&bytes[..n]))
            }
            Call::Truncate { path, size } => {
                let f = host::openat(d, &path[..], flags | OFlags::WRONLY, Mode::empty())?;
                done(host::ftruncate(&f, *size))
            }
            Call::Chmod { path, mode } => {
                done(host::chmodat(d, &path[..], m(*mode), AtFlags::empty()))
            }
            Call::Chown { path, uid, gid, follow } => {
                let (u, g) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                done(host::chownat(d, &path[..], u, g, no_follow(*follow)))
            }
            Call::Times { path, now } => {
                let t =
                    host::Timespec { tv_sec: 5, tv_nsec: if *now { host::UTIME_NOW } else { 6 } };
                let t = host::Timestamps { last_access: t, last_modification: t };
                done(host::utimensat(d, &path[..], &t, AtFlags::empty()))
            }
            Call::Stat { path, follow } => {
                let s = host::statat(d, &path[..], no_follow(*follow))?;
                Ok(shown(s.st_mode, s.st_nlink as u64, s.st_size as u64, s.st_uid, s.st_gid))
            }
            Call::Readlink { path } => {
                let l = host::readlinkat(d, &path[..], Vec::new())?;
                Ok(l.to_string_lossy().into_owned())
            }
            Call::List { path } => {
                let f = flags | OFlags::RDONLY | OFlags::DIRECTORY;
                let f = host::openat(d, &path[..], f, Mode::empty())?;
                // Not host::Dir: that opens "." anew, which takes search permission.
                let mut buffer = Vec::with_capacity(8192);
                let mut dir = host::RawDir::new(&f, buffer.spare_capacity_mut());
                let mut names = Vec::new();
                while let Some(e) = dir.next() {
                    names.push(e?.file_name().to_string_lossy().into_owned());
                }
                names.sort();
                Ok(names.join(" "))
            }
        }
    }

    fn tree(&self) -> Tree {
        let mut tree = Tree::default();
        let mut inodes = BTreeMap::new();
        let mut left = vec![PathBuf::from("")];
        while let Some(at) = left.pop() {
            let here = if at.as_os_str().is_empty() { Path::new(".") } else { &at };
            let s = host::statat(&self.dir, here, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            let shown = shown(s.st_mode, s.st_nlink as u64, s.st_size as u64, s.st_uid, s.st_gid);
            let open = |f| host::openat(&self.dir, here, f | OFlags::CLOEXEC, Mode::empty());
            let content = match s.st_mode & S_IFMT {
                S_IFREG => {
                    let mut bytes = vec![0; s.st_size as usize];
                    let n =
                        rustix::io::pread(open(OFlags::RDONLY).unwrap(), &mut bytes, 0).unwrap();
                    assert_eq!(n, bytes.len());
                    brief(&bytes)
                }
                S_IFLNK => {
                    let l = host::readlinkat(&self.dir, here, Vec::new()).unwrap();
                    l.to_string_lossy().into_owned()
                }
                S_IFDIR => {
                    let dir = open(OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
                    for e in host::Dir::read_from(&dir).unwrap() {
                        let name = e.unwrap().file_name().to_string_lossy().into_owned();
                        if name != "." && name != ".." {
                            left.push(at.join(name));
                        }
                    }
                    String::new()
                }
                _ => String::new(),
            };
            inodes.entry(s.st_ino).or_insert_with(Vec::new).push(at.clone());
            tree.files.insert(at, format!("{shown} {content}"));
        }
        tree.finish(inodes)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.top);
    }
}

#[derive(Default, PartialEq, Eq, Debug)]
struct Tree {
    files: BTreeMap<PathBuf, String>,
    same: Vec<Vec<PathBuf>>,
}

impl Tree {
    fn finish(mut self, inodes: BTreeMap<u64, Vec<PathBuf>>) -> Tree {
        self.same = inodes.into_values().collect();
        self.same.iter_mut().for_each(|s| s.sort());
        self.same.sort();
        self
    }
}

// The cluster's side: what a personality does around the server's requests and the library.

struct Cluster {
    cache: Awkward,
    dir: u64,
}

impl Cluster {
    async fn new(inner: Arc<LocalCache>, seed: u64) -> Cluster {
        let cache = Awkward::new(inner, seed, 12, false);
        let mut dir = ROOT;
        for name in ["1", "2", "3", "4", "5", "6", "7", "8"] {
            dir = clustix_vfs::handle(&cache, common::mkdir(dir, name)).await.unwrap();
        }
        Cluster { cache, dir }
    }

    async fn find(&self, cred: &Credentials, path: &[u8], follow: bool) -> Answer<(u64, Inode)> {
        let w = walk(&self.cache, cred, self.dir, path, follow).await?;
        Ok((w.ino, w.inode))
    }

    /// open(2) without O_CREAT.
    async fn open(&self, cred: &Credentials, path: &[u8], rights: u32) -> Answer<(u64, Inode)> {
        let (ino, inode) = self.find(cred, path, true).await?;
        if inode.is_dir() && rights & WRITE != 0 {
            return Err(EISDIR);
        }
        if !may(cred, &inode, rights) {
            return Err(EACCES);
        }
        if inode.kind() == S_IFIFO && rights == WRITE {
            return Err(ENXIO);
        }
        Ok((ino, inode))
    }

    async fn request(&self, r: Request) -> Answer<String> {
        common::run(&self.cache, r).await.map(|_| String::new())
    }

    async fn call(&self, call: &Call, cred: &Credentials) -> Answer<String> {
        let (c, dir, cred) = (&self.cache, self.dir, cred.clone());
        let set = |ino, attr| self.request(Request::SetAttr { cred: cred.clone(), ino, attr });
        match call.clone() {
            Call::Open { path, mode, exclusive } => {
                let there = self.find(&cred, &path, true).await.is_ok();
                let r = Request::Create { cred: cred.clone(), dir, path, mode, exclusive };
                let ino = common::run(c, r).await?;
                if there && !may(&cred, &stat(c, ino).await?.inode, READ | WRITE) {
                    return Err(EACCES);
                }
                Ok(String::new())
            }
            Call::Mkdir { path, mode } => {
                self.request(Request::Mkdir { cred, dir, path, mode }).await
            }
            Call::Mknod { path, fifo, mode } => {
                let mode = mode | if fifo { S_IFIFO } else { S_IFREG };
                self.request(Request::Mknod { cred, dir, path, mode, rdev: 0 }).await
            }
            Call::Symlink { target, path } => {
                self.request(Request::Symlink { cred, target, dir, path }).await
            }
            Call::Link { old, new, follow } => {
                let r = Request::Link { cred, old_dir: dir, old, new_dir: dir, new, follow };
                self.request(r).await
            }
            Call::Unlink { path, rmdir } => {
                self.request(Request::Unlink { cred, dir, path, rmdir }).await
            }
            Call::Rename { old, new, flags } => {
                let (no_replace, exchange) = (flags & 1 != 0, flags & 2 != 0);
                let r = Request::Rename {
                    cred,
                    old_dir: dir,
                    old,
                    new_dir: dir,
                    new,
                    no_replace,
                    exchange,
                };
                self.request(r).await
            }
            Call::Write { path, offset, len, byte, append } => {
                let (ino, _) = self.open(&cred, &path, WRITE).await?;
                let w = clustix_vfs::write(c, &cred, ino, offset, &vec![byte; len], append).await?;
                Ok(w.len.to_string())
            }
            Call::Read { path, offset, len } => {
                let (ino, inode) = self.open(&cred, &path, READ).await?;
                if inode.kind() == S_IFIFO {
                    return Err(ESPIPE);
                }
                let mut bytes = vec![0xee; len];
                let n = clustix_vfs::read(c, ino, offset, &mut bytes).await?;
                Ok(brief(&bytes[..n]))
            }
            Call::Truncate { path, size } => {
                let (ino, _) = self.open(&cred, &path, WRITE).await?;
                set(ino, SetAttr { size: Some(size), ..SetAttr::default() }).await
            }
            Call::Chmod { path, mode } => {
                let (ino, _) = self.find(&cred, &path, true).await?;
                set(ino, SetAttr { mode: Some(mode), ..SetAttr::default() }).await
            }
            Call::Chown { path, uid, gid, follow } => {
                let (ino, _) = self.find(&cred, &path, follow).await?;
                set(ino, SetAttr { uid, gid, ..SetAttr::default() }).await
            }
            Call::Times { path, now } => {
                let (ino, _) = self.find(&cred, &path, true).await?;
                let t = (!now).then_some(clustix_proto::vfs::Time { sec: 5, nsec: 6 });
                set(ino, SetAttr { atime: t, mtime: t, touch: now, ..SetAttr::default() }).await
            }
            Call::Stat { path, follow } => {
                let (_, i) = self.find(&cred, &path, follow).await?;
                Ok(shown(i.mode, i.nlink as u64, i.size, i.uid, i.gid))
            }
            Call::Readlink { path } => {
                let (ino, _) = self.find(&cred, &path, false).await?;
                let l = clustix_vfs::readlink(c, ino).await?;
                Ok(String::from_utf8_lossy(&l).into_owned())
            }
            Call::List { path } => {
                let (ino, inode) = self.find(&cred, &path, true).await?;
                if !inode.is_dir() {
                    return Err(ENOTDIR);
                }
                if !may(&cred, &inode, READ) {
                    return Err(EACCES);
                }
                let mut names = self.names(ino).await?;
                names.sort();
                Ok(names.join(" "))
            }
        }
    }

    async fn names(&self, ino: u64) -> Answer<Vec<String>> {
        let (mut names, mut cursor) = (Vec::new(), 0);
        loop {
            let some = clustix_vfs::readdir(&self.cache, ino, cursor, 3).await?;
            let Some(last) = some.last() else { return Ok(names) };
            cursor = last.next;
            names.extend(some.into_iter().map(|e| String::from_utf8_lossy(&e.name).into_owned()));
        }
    }

    async fn tree(&self) -> Answer<Tree> {
        let mut tree = Tree::default();
        let mut inodes = BTreeMap::new();
        let mut left = vec![(PathBuf::from(""), self.dir)];
        while let Some((at, ino)) = left.pop() {
            let i = stat(&self.cache, ino).await?.inode;
            let shown = shown(i.mode, i.nlink as u64, i.size, i.uid, i.gid);
            let content = match i.kind() {
                S_IFREG => {
                    let mut bytes = vec![0; i.size as usize];
                    let n = clustix_vfs::read(&self.cache, ino, 0, &mut bytes).await?;
                    assert_eq!(n, bytes.len());
                    brief(&bytes)
                }
                S_IFLNK => {
                    let l = clustix_vfs::readlink(&self.cache, ino).await?;
                    String::from_utf8_lossy(&l).into_owned()
                }
                S_IFDIR => {
                    for e in clustix_vfs::readdir(&self.cache, ino, 2, usize::MAX).await? {
                        left.push((at.join(String::from_utf8_lossy(&e.name).as_ref()), e.ino));
                    }
                    let path = clustix_vfs::path_of(&self.cache, ino).await?;
                    let path = PathBuf::from(String::from_utf8_lossy(&path).into_owned());
                    assert_eq!(path, Path::new("/1/2/3/4/5/6/7/8").join(&at));
                    String::new()
                }
                _ => String::new(),
            };
            inodes.entry(ino).or_insert_with(Vec::new).push(at.clone());
            tree.files.insert(at, format!("{shown} {content}"));
        }
        Ok(tree.finish(inodes))
    }
}

/// A call with its paths as text, long runs cut.
fn text(call: &Call) -> String {
    let mut shown = format!("{call:?}");
    let mut out = String::new();
    while let Some(at) = shown.find('[') {
        let end = shown[at..].find(']').map_or(shown.len(), |e| at + e + 1);
        let bytes = shown[at + 1..end - 1].split(", ").filter_map(|n| n.parse().ok());
        let bytes: Vec<u8> = bytes.take(40).collect();
        out += &format!("{}{:?}", &shown[..at], String::from_utf8_lossy(&bytes));
        shown = shown[end..].to_string();
    }
    out + &shown
}

fn compare(calls: &[(Call, bool)], seed: u64) -> Result<(), TestCaseError> {
    if std::env::var("SHOW").is_ok() {
        calls.iter().for_each(|(c, user)| println!("{user} {}", text(c)));
        println!("--");
    }
    let host = Host::new();
    let inner = common::fresh();
    let cluster = exec::block_on(Cluster::new(inner.clone(), seed));
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    for (n, (call, user)) in calls.iter().enumerate() {
        let user = *user && host.root;
        let cred = match user {
            true => Credentials { uid: USER, gid: USER, groups: vec![1001] },
            false => Credentials { uid, gid, groups: vec![] },
        };
        let expected = host.run(call, user);
        let got = exec::block_on(cluster.call(call, &cred)).map_err(|e| e.0);
        let name = |r: &Outcome| r.clone().map_err(|e| Errno(e).name());
        let (expected, got) = (name(&expected), name(&got));
        prop_assert_eq!(&got, &expected, "call {}, user {}: {}", n, user, text(call));
    }
    let expected = host.tree();
    let got = exec::block_on(cluster.tree()).unwrap();
    prop_assert_eq!(got, expected);
    let problems = exec::block_on(clustix_vfs::fsck(&cluster.cache)).unwrap();
    prop_assert!(problems.is_empty(), "{:#?}", problems);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("CASES").ok().and_then(|c| c.parse().ok()).unwrap_or(400),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_same_calls_end_the_same(
        calls in prop::collection::vec((call(), any::<bool>()), 1..80),
        seed in any::<u64>(),
    ) {
        rustix::process::umask(Mode::empty());
        compare(&calls, seed)?;
    }
}
