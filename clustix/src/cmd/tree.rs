//! `clustix import` and `clustix export`.

use crate::connection::{self, Connection, PATIENCE};
use crate::state::Folder;
use crate::wire::{CHUNK, Entry, Kind, Reply, Request, Upload};
use anyhow::{Context, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{IsTerminal, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

fn bar(length: Option<u64>) -> ProgressBar {
    let bar = match length {
        Some(n) => ProgressBar::new(n),
        None => ProgressBar::no_length(),
    };
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let template = if length.is_some() {
        "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}"
    } else {
        "{spinner} {bytes} {bytes_per_sec} {msg}"
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

fn summary(verb: &str, files: u64, bytes: u64, took: Duration) {
    println!("{verb} {files} files, {bytes} bytes in {} ms", took.as_millis());
}

/// An absolute path of the cluster as bytes.
fn cluster_path(path: &Path) -> Result<Vec<u8>> {
    if !path.is_absolute() {
        bail!("{:?}: write an absolute path of the cluster", path);
    }
    Ok(path.as_os_str().as_bytes().to_vec())
}

/// Copies a tree of this machine into the cluster.
///
/// # Errors
/// A file cannot be read; the cluster refuses. What was copied until then stays.
pub fn import(folder: &Folder, host: &Path, cluster: &Path) -> Result<ExitCode> {
    let begin = Instant::now();
    let path = cluster_path(cluster)?;
    let root =
        fs::symlink_metadata(host).with_context(|| format!("could not read {}", host.display()))?;
    let progress = bar(Some(total(host, &root)?));
    let slot = connection::candidates(folder, None)?[0];
    let mut connection = Connection::open(folder, slot, Request::Import { path })?;
    let mut answers = Connection { stream: connection.stream.try_clone()?, node: slot };
    let shown = progress.clone();
    let reader = std::thread::spawn(move || -> Result<(u64, u64)> {
        let mut last = (0, 0);
        while let Some(reply) = answers.next(None)? {
            let Reply::Imported { files, bytes } = reply else {
                bail!("node {slot} gave an unexpected answer")
            };
            last = (files, bytes);
            shown.set_position(bytes);
        }
        Ok(last)
    });
    let mut walk =
        Import { connection: &mut connection, root: host, links: HashMap::new(), skipped: 0 };
    let sent = walk.entry(host, &root).and_then(|()| walk.put(&Upload::End));
    let skipped = walk.skipped;
    if let Err(e) = &sent
        && e.downcast_ref::<Cut>().is_none()
    {
        // A file here cannot be read: the node need not wait for the rest.
        let _ = connection.stream.shutdown(std::net::Shutdown::Both);
    }
    let answered =
        reader.join().map_err(|_| anyhow!("the thread that reads the node's answers ended"))?;
    progress.finish_and_clear();
    let (files, bytes) = match (sent, answered) {
        (Ok(()), Ok(counts)) => counts,
        (Err(e), Err(answer)) if e.downcast_ref::<Cut>().is_some() => return Err(answer),
        (Err(e), _) | (Ok(()), Err(e)) => return Err(e),
    };
    summary("imported", files, bytes, begin.elapsed());
    if skipped > 0 {
        eprintln!("clustix: {skipped} devices, sockets or FIFOs were skipped");
    }
    Ok(ExitCode::SUCCESS)
}

/// The node hung up; its answer says why.
#[derive(Debug, thiserror::Error)]
#[error("the node hung up")]
struct Cut;

/// Bytes of regular files in a tree, hard links counted once for each name (it is only for the bar).
fn total(path: &Path, meta: &Metadata) -> Result<u64> {
    if !meta.is_dir() {
        return Ok(if meta.is_file() { meta.len() } else { 0 });
    }
    let mut sum = 0;
    for entry in fs::read_dir(path).with_context(|| format!("could not read {}", path.display()))? {
        let entry = entry?;
        sum += total(&entry.path(), &entry.metadata()?)?;
    }
    Ok(sum)
}

struct Import<'a> {
    connection: &'a mut Connection,
    root: &'a Path,
    /// Path below the root of each file with several names, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    skipped: u64,
}

impl Import<'_> {
    fn put(&mut self, upload: &Upload) -> Result<()> {
        self.connection.send(upload).map_err(|_| anyhow!(Cut))
    }

    fn below(&self, path: &Path) -> Vec<u8> {
        path.strip_prefix(self.root).unwrap_or(path).as_os_str().as_bytes().to_vec()
    }

    fn entry(&mut self, path: &Path, meta: &Metadata) -> Result<()> {
        let below = self.below(path);
        let kind = if meta.is_dir() {
            Kind::Directory
        } else if meta.is_symlink() {
            let target = fs::read_link(path)
                .with_context(|| format!("could not read {}", path.display()))?;
            Kind::Symlink(target.into_os_string().into_vec())
        } else if !meta.is_file() {
            eprintln!("clustix: {} skipped: {}", path.display(), special(meta));
            self.skipped += 1;
            return Ok(());
        } else if let Some(first) = self.links.get(&(meta.dev(), meta.ino())) {
            Kind::Link(first.clone())
        } else {
            if meta.nlink() > 1 {
                self.links.insert((meta.dev(), meta.ino()), below.clone());
            }
            Kind::File(meta.len())
        };
        let file = matches!(kind, Kind::File(_));
        // Opened before it is announced: what cannot be read is not half there.
        let open = if file {
            Some(File::open(path).with_context(|| format!("could not read {}", path.display()))?)
        } else {
            None
        };
        self.put(&Upload::Entry(Entry {
            path: below,
            kind,
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            atime: (meta.atime(), meta.atime_nsec() as u32),
            mtime: (meta.mtime(), meta.mtime_nsec() as u32),
        }))?;
        if let Some(open) = open {
            return self.data(open, path, meta.len());
        }
        if meta.is_dir() {
            let read = || -> std::io::Result<Vec<fs::DirEntry>> { fs::read_dir(path)?.collect() };
            let mut entries =
                read().with_context(|| format!("could not read {}", path.display()))?;
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                let path = entry.path();
                let meta = fs::symlink_metadata(&path)
                    .with_context(|| format!("could not read {}", path.display()))?;
                self.entry(&path, &meta)?;
            }
        }
        Ok(())
    }

    /// Exactly `length` bytes, as announced; a file that changes under the import is an error.
    fn data(&mut self, mut file: File, path: &Path, length: u64) -> Result<()> {
        let mut left = length;
        let mut buffer = vec![0; CHUNK];
        while left > 0 {
            let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let mut have = 0;
            while have < want {
                match file.read(&mut buffer[have..want]) {
                    Ok(0) => bail!("{} became shorter while it was read", path.display()),
                    Ok(n) => have += n,
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e).context(format!("could not read {}", path.display())),
                }
            }
            left -= want as u64;
            self.put(&Upload::Data(buffer[..want].to_vec()))?;
        }
        Ok(())
    }
}

fn special(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// Copies a tree of the cluster to this machine.
///
/// # Errors
/// The host path exists; a file cannot be written; the cluster refuses. Then what was made is
/// removed again.
pub fn export(folder: &Folder, cluster: &Path, host: &Path) -> Result<ExitCode> {
    let begin = Instant::now();
    let path = cluster_path(cluster)?;
    if fs::symlink_metadata(host).is_ok() {
        bail!("{} exists; export makes a new file or directory: name another", host.display());
    }
    let slot = connection::candidates(folder, None)?[0];
    let mut connection = Connection::open(folder, slot, Request::Export { path })?;
    let progress = bar(None);
    let mut tree = Export {
        root: host,
        directories: Vec::new(),
        made: HashSet::new(),
        file: None,
        files: 0,
        bytes: 0,
        skipped: 0,
    };
    let done = loop {
        match connection.next(Some(PATIENCE)) {
            Err(e) => break Err(e),
            Ok(None) => break tree.finish(),
            Ok(Some(reply)) => {
                if let Err(e) = tree.reply(reply) {
                    break Err(e);
                }
                progress.set_position(tree.bytes);
            }
        }
    };
    progress.finish_and_clear();
    if let Err(e) = done {
        let _ = fs::remove_dir_all(host).or_else(|_| fs::remove_file(host));
        return Err(e.context(format!("could not export {}", cluster.display())));
    }
    summary("exported", tree.files, tree.bytes, begin.elapsed());
    if tree.skipped > 0 {
        eprintln!("clustix: {} devices, sockets or FIFOs were skipped", tree.skipped);
    }
    Ok(ExitCode::SUCCESS)
}

struct Export<'a> {
    root: &'a Path,
    /// Directories made, whose modes and times are set at the end.
    directories: Vec<(PathBuf, Entry)>,
    made: HashSet<PathBuf>,
    file: Option<(File, PathBuf, Entry, u64)>,
    files: u64,
    bytes: u64,
    skipped: u64,
}

impl Export<'_> {
    fn reply(&mut self, reply: Reply) -> Result<()> {
        match reply {
            Reply::Entry(entry) => {
                self.end_file()?;
                self.entry(entry)
            }
            Reply::Data(bytes) => {
                let Some((file, path, _, left)) = &mut self.file else {
                    bail!("the node sent data of no file")
                };
                *left = left.checked_sub(bytes.len() as u64).with_context(|| {
                    format!("the node sent more of {} than it said", path.display())
                })?;
                self.bytes += bytes.len() as u64;
                file.write_all(&bytes)
                    .with_context(|| format!("could not write {}", path.display()))
            }
            _ => bail!("the node gave an unexpected answer"),
        }
    }

    /// The host path of a path below the root, which must lie in a directory made here: a node must
    /// not be able to write anywhere else.
    fn place(&self, below: &[u8]) -> Result<PathBuf> {
        let below = Path::new(std::ffi::OsStr::from_bytes(below));
        if below.as_os_str().is_empty() {
            return Ok(self.root.to_owned());
        }
        let plain = below.components().all(|c| matches!(c, Component::Normal(_)));
        let path = self.root.join(below);
        if !plain || !path.parent().is_some_and(|p| self.made.contains(p)) {
            bail!("the node sent the path {below:?}, which is not in the tree");
        }
        Ok(path)
    }

    fn entry(&mut self, entry: Entry) -> Result<()> {
        let path = self.place(&entry.path)?;
        let failed = || format!("could not make {}", path.display());
        match &entry.kind {
            Kind::Directory => {
                fs::DirBuilder::new().mode(0o700).create(&path).with_context(failed)?;
                self.made.insert(path.clone());
                self.directories.push((path, entry));
            }
            Kind::File(length) => {
                let file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&path)
                    .with_context(failed)?;
                let length = *length;
                self.files += 1;
                self.file = Some((file, path, entry, length));
            }
            Kind::Symlink(target) => {
                std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), &path)
                    .with_context(failed)?;
                own(&path, &entry)?;
                times(&path, &entry)?;
            }
            Kind::Link(first) => {
                let first = self.place(first)?;
                fs::hard_link(first, &path).with_context(failed)?;
            }
            Kind::Other => {
                eprintln!("clustix: {} skipped: not a file, directory or link", path.display());
                self.skipped += 1;
            }
        }
        Ok(())
    }

    fn end_file(&mut self) -> Result<()> {
        let Some((file, path, entry, left)) = self.file.take() else { return Ok(()) };
        if left > 0 {
            bail!("the node sent {left} bytes less of {} than it said", path.display());
        }
        drop(file);
        finish(&path, &entry)
    }

    fn finish(&mut self) -> Result<()> {
        self.end_file()?;
        for (path, entry) in self.directories.iter().rev() {
            finish(path, entry)?;
        }
        Ok(())
    }
}

/// Owner, mode and times of a file or directory whose content is complete.
fn finish(path: &Path, entry: &Entry) -> Result<()> {
    own(path, entry)?;
    fs::set_permissions(path, Permissions::from_mode(entry.mode & 0o7777))
        .with_context(|| format!("could not set the mode of {}", path.display()))?;
    times(path, entry)
}

/// Only the superuser can give files away.
fn own(path: &Path, entry: &Entry) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(entry.uid), Some(entry.gid))
        .with_context(|| format!("could not set the owner of {}", path.display()))
}

fn times(path: &Path, entry: &Entry) -> Result<()> {
    let spec = |(sec, nsec): (i64, u32)| Timespec { tv_sec: sec, tv_nsec: nsec.into() };
    let stamps =
        Timestamps { last_access: spec(entry.atime), last_modification: spec(entry.mtime) };
    utimensat(CWD, path, &stamps, AtFlags::SYMLINK_NOFOLLOW)
        .with_context(|| format!("could not set the times of {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, kind: Kind) -> Entry {
        Entry { path: path.into(), kind, mode: 0o750, uid: 0, gid: 0, atime: (5, 6), mtime: (7, 8) }
    }

    #[test]
    fn a_hostile_node_writes_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("out");
        let mut e = Export {
            root: &root,
            directories: vec![],
            made: HashSet::new(),
            file: None,
            files: 0,
            bytes: 0,
            skipped: 0,
        };
        e.entry(file("", Kind::Directory)).unwrap();
        e.entry(file("a", Kind::Symlink(b"/etc".to_vec()))).unwrap();
        for bad in ["../x", "/etc/x", "a/passwd", "b/c", "./x/../../y"] {
            assert!(e.entry(file(bad, Kind::File(0))).is_err(), "{bad}");
        }
        assert!(e.reply(Reply::Data(vec![1])).is_err(), "data of no file");
        e.reply(Reply::Entry(file("f", Kind::File(2)))).unwrap();
        assert!(e.reply(Reply::Data(vec![1, 2, 3])).is_err(), "more than announced");
        assert!(e.finish().is_err(), "less than announced");
    }

    #[test]
    fn modes_and_times_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("out");
        let mut e = Export {
            root: &root,
            directories: vec![],
            made: HashSet::new(),
            file: None,
            files: 0,
            bytes: 0,
            skipped: 0,
        };
        e.reply(Reply::Entry(file("", Kind::Directory))).unwrap();
        e.reply(Reply::Entry(file("f", Kind::File(3)))).unwrap();
        e.reply(Reply::Data(b"abc".to_vec())).unwrap();
        e.reply(Reply::Entry(file("g", Kind::Link(b"f".to_vec())))).unwrap();
        e.finish().unwrap();
        for name in ["", "f", "g"] {
            let m = fs::metadata(root.join(name)).unwrap();
            assert_eq!((m.mode() & 0o7777, m.mtime(), m.mtime_nsec()), (0o750, 7, 8), "{name:?}");
        }
        assert_eq!(fs::read(root.join("g")).unwrap(), b"abc");
    }
}
