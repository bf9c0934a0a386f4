//! Import and export of trees.
//!
//! An import's frames are read by the session's thread, which makes directories and links; files are
//! written by [`WORKERS`] threads, each file by one, so that the cost of one call's way is hidden
//! behind the others. What waits between them is bounded: [`PIECES`] pieces per file.

use super::Node;
use super::session::{errno, failed, send};
use crate::wire::{self, CHUNK, Entry, Failure, Kind, Reply, Upload};
use clustix_pd::exec;
use clustix_proto::Errno;
use clustix_proto::errno::{EEXIST, EINVAL, EIO, EISDIR, ENAMETOOLONG, ENOENT, ENOTDIR};
use clustix_proto::vfs::{Credentials, Inode, PATH_MAX, ROOT, Request, SetAttr, Time, mode};
use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Threads that write files.
const WORKERS: usize = 4;
/// Pieces of one file that wait to be written.
const PIECES: usize = 4;
/// Between two reports of progress.
const REPORT: Duration = Duration::from_millis(100);
/// Names of a directory read at a time.
const NAMES: usize = 256;

async fn vfs(node: &Node, request: Request) -> Result<u64, Errno> {
    node.ask_vfs(&request).await
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// A file for a worker.
struct Job {
    dir: u64,
    name: Vec<u8>,
    path: Vec<u8>,
    entry: Entry,
    pieces: Receiver<Vec<u8>>,
}

#[derive(Default)]
struct Progress {
    files: u64,
    bytes: u64,
    under_way: usize,
    failure: Option<Failure>,
}

struct Shared {
    progress: Mutex<Progress>,
    done: Condvar,
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no file is under way.
    fn settle(&self) -> Result<(), Failure> {
        let mut progress = self.lock();
        while progress.under_way > 0 {
            progress = self.done.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
        progress.failure.clone().map_or(Ok(()), Err)
    }
}

/// Brings a tree in.
pub(crate) fn import(node: &Node, stream: &mut UnixStream, path: Vec<u8>) -> Result<(), Failure> {
    let Some(_pass) = node.gate.enter() else {
        return Err(failed("the cluster is stopping"));
    };
    let root = normal(&path)?;
    exec::block_on(parents(node, &root))?;
    let shared = Shared { progress: Mutex::default(), done: Condvar::new() };
    let (jobs, queue) = sync_channel::<Job>(WORKERS);
    let queue = Mutex::new(queue);
    let received = std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            let (shared, queue) = (&shared, &queue);
            std::thread::Builder::new()
                .name("import".into())
                .spawn_scoped(scope, move || work(node, queue, shared))
                .map_err(|e| failed(format!("no thread for the import: {e}")))?;
        }
        let mut upload = Import {
            node,
            root,
            shared: &shared,
            jobs,
            current: None,
            directories: Vec::new(),
            open: Vec::new(),
            reported: Instant::now(),
        };
        upload.receive(stream)
    });
    received?;
    let progress = shared.lock();
    send(stream, &Reply::Imported { files: progress.files, bytes: progress.bytes })
}

/// An absolute path without `.`, `..`, doubled or final slashes; empty for the root.
fn normal(path: &[u8]) -> Result<Vec<u8>, Failure> {
    let bad = |e| Err(errno(format!("{:?}", shown(path)), e));
    if !path.starts_with(b"/") || path.contains(&0) {
        return bad(EINVAL);
    }
    if path.len() >= PATH_MAX {
        return bad(ENAMETOOLONG);
    }
    let mut out = Vec::new();
    for part in path.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".") {
        if part == b".." {
            return bad(EINVAL);
        }
        out.push(b'/');
        out.extend_from_slice(part);
    }
    Ok(out)
}

/// Makes the directories that lead to `path`.
async fn parents(node: &Node, path: &[u8]) -> Result<(), Failure> {
    let slashes: Vec<usize> =
        path.iter().enumerate().skip(1).filter(|(_, b)| **b == b'/').map(|(i, _)| i).collect();
    for end in slashes {
        let dir = path.get(..end).unwrap_or_default();
        directory(node, ROOT, dir, dir).await?;
    }
    Ok(())
}

/// Makes a directory unless it is there; its inode.
async fn directory(node: &Node, at: u64, name: &[u8], path: &[u8]) -> Result<u64, Failure> {
    let what = || format!("could not make directory {:?}", shown(path));
    let request =
        Request::Mkdir { cred: Credentials::ROOT, dir: at, path: name.to_vec(), mode: 0o755 };
    match vfs(node, request).await {
        Ok(ino) if ino != 0 => return Ok(ino),
        Ok(_) | Err(EEXIST) => {}
        Err(e) => return Err(errno(what(), e)),
    }
    let found = clustix_vfs::walk(&node.cache, &Credentials::ROOT, at, name, true)
        .await
        .map_err(|e| errno(what(), e))?;
    if !found.inode.is_dir() {
        return Err(errno(what(), ENOTDIR));
    }
    Ok(found.ino)
}

struct Import<'a> {
    node: &'a Node,
    root: Vec<u8>,
    shared: &'a Shared,
    jobs: SyncSender<Job>,
    /// The file whose data comes now, and how much of it is still to come.
    current: Option<(SyncSender<Vec<u8>>, u64)>,
    /// Directories whose attributes are set at the end, since filling them changes their times.
    directories: Vec<(u64, Entry)>,
    /// The directories from the root to where the walk is: path below the root, inode.
    open: Vec<(Vec<u8>, u64)>,
    reported: Instant,
}

impl Import<'_> {
    fn receive(&mut self, stream: &mut UnixStream) -> Result<(), Failure> {
        loop {
            let upload = match wire::receive::<Upload>(stream) {
                Ok(Some(upload)) => upload,
                Ok(None) => return Err(failed("the import was cut off")),
                Err(e) => return Err(failed(format!("the import could not be read: {e}"))),
            };
            match upload {
                Upload::Entry(entry) => {
                    self.end_file()?;
                    self.entry(entry)?;
                }
                Upload::Data(bytes) => self.data(bytes)?,
                Upload::End => break,
            }
            self.report(stream)?;
        }
        self.end_file()?;
        self.shared.settle()?;
        for (ino, entry) in std::mem::take(&mut self.directories).into_iter().rev() {
            exec::block_on(attributes(self.node, ino, &entry, true)).map_err(|e| {
                errno(format!("could not set the attributes of {:?}", shown(&entry.path)), e)
            })?;
        }
        Ok(())
    }

    fn report(&mut self, stream: &mut UnixStream) -> Result<(), Failure> {
        if self.reported.elapsed() < REPORT {
            return Ok(());
        }
        self.reported = Instant::now();
        let (files, bytes) = {
            let progress = self.shared.lock();
            if let Some(failure) = &progress.failure {
                return Err(failure.clone());
            }
            (progress.files, progress.bytes)
        };
        send(stream, &Reply::Imported { files, bytes })
    }

    fn data(&mut self, bytes: Vec<u8>) -> Result<(), Failure> {
        let Some((pieces, left)) = &mut self.current else {
            return Err(failed("data of no file"));
        };
        *left = left
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| failed("more data than the file was said to have"))?;
        // A worker that failed has said why, and takes the rest all the same.
        let _ = pieces.send(bytes);
        Ok(())
    }

    fn end_file(&mut self) -> Result<(), Failure> {
        match self.current.take() {
            Some((_, left)) if left > 0 => Err(failed("less data than the file was said to have")),
            _ => Ok(()),
        }
    }

    /// The directory that `below` stands in, and its last name.
    fn place(&mut self, below: &[u8]) -> Result<(u64, Vec<u8>), Failure> {
        let outside = || failed(format!("{:?} is not in the tree", shown(below)));
        let (parent, name) = match below.iter().rposition(|b| *b == b'/') {
            Some(at) => (below[..at].to_vec(), below[at + 1..].to_vec()),
            None => (Vec::new(), below.to_vec()),
        };
        if name.is_empty() || name == b"." || name == b".." || name.contains(&0) {
            return Err(outside());
        }
        while self.open.last().is_some_and(|(path, _)| *path != parent) {
            self.open.pop();
        }
        let (_, ino) = self.open.last().ok_or_else(outside)?;
        Ok((*ino, name))
    }

    fn entry(&mut self, entry: Entry) -> Result<(), Failure> {
        let mut path = self.root.clone();
        if !entry.path.is_empty() {
            path.push(b'/');
            path.extend_from_slice(&entry.path);
        }
        if path.len() >= PATH_MAX {
            return Err(errno(format!("{:?}", shown(&path)), ENAMETOOLONG));
        }
        let (dir, name) = if entry.path.is_empty() {
            (ROOT, if path.is_empty() { b"/".to_vec() } else { path.clone() })
        } else {
            self.place(&entry.path)?
        };
        match entry.kind.clone() {
            Kind::Directory => {
                let ino = if path.is_empty() {
                    ROOT
                } else {
                    exec::block_on(directory(self.node, dir, &name, &path))?
                };
                self.open.push((entry.path.clone(), ino));
                // The root of the cluster keeps its own attributes.
                if ino != ROOT {
                    self.directories.push((ino, entry));
                }
                Ok(())
            }
            Kind::File(length) => {
                let (pieces, incoming) = sync_channel(PIECES);
                self.shared.lock().under_way += 1;
                let job = Job { dir, name, path, entry, pieces: incoming };
                self.jobs.send(job).map_err(|_| failed("the import's threads ended"))?;
                self.current = Some((pieces, length));
                Ok(())
            }
            Kind::Symlink(target) => exec::block_on(symlink(self.node, dir, &name, target, &entry))
                .map_err(|e| errno(format!("could not make symbolic link {:?}", shown(&path)), e)),
            Kind::Link(first) => {
                self.shared.settle()?;
                let mut old = self.root.clone();
                old.push(b'/');
                old.extend_from_slice(&first);
                exec::block_on(link(self.node, old, dir, &name))
                    .map_err(|e| errno(format!("could not make link {:?}", shown(&path)), e))
            }
            Kind::Other => Ok(()),
        }
    }
}

fn work(node: &Node, queue: &Mutex<Receiver<Job>>, shared: &Shared) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let done = exec::block_on(file(node, &job));
        // Whatever happened, the sender must not wait for room.
        while job.pieces.recv().is_ok() {}
        let mut progress = shared.lock();
        progress.under_way -= 1;
        match done {
            Ok(bytes) => {
                progress.files += 1;
                progress.bytes += bytes;
            }
            Err(e) => {
                let failure = errno(format!("could not write {:?}", shown(&job.path)), e);
                progress.failure.get_or_insert(failure);
            }
        }
        shared.done.notify_all();
    }
}

/// Writes one file: replaces what is there.
async fn file(node: &Node, job: &Job) -> Result<u64, Errno> {
    let ino = create(node, job.dir, &job.name).await?;
    let written = fill(node, ino, job).await;
    let closed = vfs(node, Request::Closed { ino }).await;
    let bytes = written?;
    closed?;
    Ok(bytes)
}

async fn create(node: &Node, dir: u64, name: &[u8]) -> Result<u64, Errno> {
    let exclusive = |mode| Request::Create {
        cred: Credentials::ROOT,
        dir,
        path: name.to_vec(),
        mode,
        exclusive: true,
    };
    match vfs(node, exclusive(0o600)).await {
        Err(EEXIST) => {}
        other => return other,
    }
    // A new inode under the old name: who has the old file open, or another name of it, keeps it.
    remove(node, dir, name).await?;
    vfs(node, exclusive(0o600)).await
}

/// Takes a name that is no directory's away.
async fn remove(node: &Node, dir: u64, name: &[u8]) -> Result<(), Errno> {
    let request =
        Request::Unlink { cred: Credentials::ROOT, dir, path: name.to_vec(), rmdir: false };
    match vfs(node, request).await {
        Ok(_) | Err(ENOENT) => Ok(()),
        Err(EISDIR) => Err(EISDIR),
        Err(e) => Err(e),
    }
}

async fn fill(node: &Node, ino: u64, job: &Job) -> Result<u64, Errno> {
    let mut offset = 0;
    // The thread is this file's alone: it may sleep in the channel.
    while let Ok(piece) = job.pieces.recv() {
        let mut rest = piece.as_slice();
        while !rest.is_empty() {
            let written =
                clustix_vfs::write(&node.cache, &Credentials::ROOT, ino, offset, rest, false)
                    .await?;
            if written.len == 0 {
                return Err(EIO);
            }
            offset += written.len as u64;
            rest = rest.get(written.len..).unwrap_or_default();
        }
    }
    attributes(node, ino, &job.entry, true).await?;
    Ok(offset)
}

fn time((sec, nsec): (i64, u32)) -> Time {
    Time { sec, nsec: nsec.min(999_999_999) }
}

async fn attributes(node: &Node, ino: u64, entry: &Entry, with_mode: bool) -> Result<(), Errno> {
    let attr = SetAttr {
        mode: with_mode.then_some(entry.mode & 0o7777),
        uid: Some(entry.uid),
        gid: Some(entry.gid),
        atime: Some(time(entry.atime)),
        mtime: Some(time(entry.mtime)),
        ..SetAttr::default()
    };
    vfs(node, Request::SetAttr { cred: Credentials::ROOT, ino, attr }).await.map(drop)
}

async fn symlink(
    node: &Node,
    dir: u64,
    name: &[u8],
    target: Vec<u8>,
    entry: &Entry,
) -> Result<(), Errno> {
    let request = || Request::Symlink {
        cred: Credentials::ROOT,
        target: target.clone(),
        dir,
        path: name.to_vec(),
    };
    match vfs(node, request()).await {
        Err(EEXIST) => {
            remove(node, dir, name).await?;
            vfs(node, request()).await?;
        }
        other => drop(other?),
    }
    let made = clustix_vfs::walk(&node.cache, &Credentials::ROOT, dir, name, false).await?;
    attributes(node, made.ino, entry, false).await
}

async fn link(node: &Node, old: Vec<u8>, dir: u64, name: &[u8]) -> Result<(), Errno> {
    let request = || Request::Link {
        cred: Credentials::ROOT,
        old_dir: ROOT,
        old: old.clone(),
        new_dir: dir,
        new: name.to_vec(),
        follow: false,
    };
    match vfs(node, request()).await {
        Err(EEXIST) => {
            remove(node, dir, name).await?;
            vfs(node, request()).await.map(drop)
        }
        other => other.map(drop),
    }
}

/// Sends a tree out, in pre-order.
pub(crate) fn export(node: &Node, stream: &mut UnixStream, path: &[u8]) -> Result<(), Failure> {
    let what = |e| errno(format!("could not read {:?}", shown(path)), e);
    let root =
        match exec::block_on(clustix_vfs::walk(&node.cache, &Credentials::ROOT, ROOT, path, false))
        {
            Ok(found) => found,
            Err(e) => return Err(what(e)),
        };
    let mut links: HashMap<u64, Vec<u8>> = HashMap::new();
    // What is still to be sent, the next one last.
    let mut stack: Vec<(u64, Vec<u8>)> = vec![(root.ino, Vec::new())];
    while let Some((ino, below)) = stack.pop() {
        let what = |e| errno(format!("could not read {:?} in {:?}", shown(&below), shown(path)), e);
        let inode = match exec::block_on(clustix_vfs::stat(&node.cache, ino)) {
            Ok(found) => found.inode,
            // It was removed since its name was read.
            Err(ENOENT) if !below.is_empty() => continue,
            Err(e) => return Err(what(e)),
        };
        let kind = match inode.kind() {
            mode::S_IFDIR => Kind::Directory,
            mode::S_IFLNK => Kind::Symlink(
                exec::block_on(clustix_vfs::readlink(&node.cache, ino)).map_err(what)?,
            ),
            mode::S_IFREG => match links.get(&ino) {
                Some(first) => Kind::Link(first.clone()),
                None => {
                    if inode.nlink > 1 {
                        links.insert(ino, below.clone());
                    }
                    Kind::File(inode.size)
                }
            },
            _ => Kind::Other,
        };
        send(stream, &Reply::Entry(entry(&below, kind.clone(), &inode)))?;
        match kind {
            Kind::File(length) => data(node, stream, ino, length, &below)?,
            Kind::Directory => {
                let names = exec::block_on(names(node, ino)).map_err(what)?;
                for (name, child) in names.into_iter().rev() {
                    let mut path = below.clone();
                    if !path.is_empty() {
                        path.push(b'/');
                    }
                    path.extend_from_slice(&name);
                    if path.len() >= PATH_MAX {
                        return Err(what(ENAMETOOLONG));
                    }
                    stack.push((child, path));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn entry(below: &[u8], kind: Kind, inode: &Inode) -> Entry {
    Entry {
        path: below.to_vec(),
        kind,
        mode: inode.mode & 0o7777,
        uid: inode.uid,
        gid: inode.gid,
        atime: (inode.atime.sec, inode.atime.nsec),
        mtime: (inode.mtime.sec, inode.mtime.nsec),
    }
}

/// A directory's names but `.` and `..`, in the order of their bytes.
async fn names(node: &Node, ino: u64) -> Result<Vec<(Vec<u8>, u64)>, Errno> {
    let mut found = Vec::new();
    let mut cursor = 0;
    loop {
        let page = clustix_vfs::readdir(&node.cache, ino, cursor, NAMES).await?;
        let Some(last) = page.last() else { break };
        cursor = last.next;
        found.extend(
            page.into_iter().filter(|e| e.name != b"." && e.name != b"..").map(|e| (e.name, e.ino)),
        );
    }
    found.sort();
    Ok(found)
}

fn data(
    node: &Node,
    stream: &mut UnixStream,
    ino: u64,
    length: u64,
    below: &[u8],
) -> Result<(), Failure> {
    let mut offset = 0;
    let mut buffer = vec![0; CHUNK];
    while offset < length {
        let want = buffer.len().min(usize::try_from(length - offset).unwrap_or(usize::MAX));
        let some = buffer.get_mut(..want).unwrap_or_default();
        let n = exec::block_on(clustix_vfs::read(&node.cache, ino, offset, some))
            .map_err(|e| errno(format!("could not read {:?}", shown(below)), e))?;
        if n == 0 {
            return Err(failed(format!("{:?} became shorter while it was read", shown(below))));
        }
        send(stream, &Reply::Data(buffer.get(..n).unwrap_or_default().to_vec()))?;
        offset += n as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_normal() {
        let ok = |p: &str| normal(p.as_bytes()).map(|b| String::from_utf8(b).unwrap());
        assert_eq!(ok("/"), Ok(String::new()));
        assert_eq!(ok("//a/./b/"), Ok("/a/b".to_owned()));
        for bad in ["", "a", "/a/../b", "/..", "/a\0"] {
            assert!(ok(bad).is_err(), "{bad:?}");
        }
        assert!(normal(&vec![b'/'; PATH_MAX]).is_err());
    }
}
