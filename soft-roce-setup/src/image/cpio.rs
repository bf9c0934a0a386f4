//! An initial root file system: a cpio archive in the "newc" format (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst). Same entries, same bytes: no times, no inode
//! numbers of the host's. The kernel unpacks archives that follow one another as one.

use std::collections::BTreeSet;

/// An archive under way. Missing folders of an entry's path are made.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    made: BTreeSet<String>,
}

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_777;

impl Archive {
    /// A folder.
    pub fn folder(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent);
        }
        if self.made.insert(path.to_owned()) {
            self.entry(path, FOLDER, &[]);
        }
    }

    /// A file; `mode` is its permissions.
    pub fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) {
        self.put(path, FILE | mode, bytes);
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.put(path, LINK, target.as_bytes());
    }

    fn put(&mut self, path: &str, mode: u32, bytes: &[u8]) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent);
        }
        if self.made.insert(path.to_owned()) {
            self.entry(path, mode, bytes);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, bytes: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let name = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(b"070701");
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        for field in [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name, 0] {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn busybox_unpacks_it() {
        let mut a = Archive::default();
        a.file("bin/deep/tool", 0o755, b"#!/bin/sh\n");
        a.file("bin/odd", 0o644, b"x");
        a.link("bin/alias", "deep/tool");
        a.folder("proc");
        let (first, mut second) = (a.finish(), Archive::default());
        second.file("init", 0o700, b"123");
        let dir = tempfile::tempdir().unwrap();
        for bytes in [first, second.finish()] {
            let mut child = Command::new("busybox")
                .args(["cpio", "-i", "-d"])
                .current_dir(dir.path())
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(&bytes).unwrap();
            assert!(child.wait().unwrap().success());
        }
        let read = |p: &str| std::fs::read_to_string(dir.path().join(p)).unwrap();
        assert_eq!((read("bin/deep/tool").as_str(), read("init").as_str()), ("#!/bin/sh\n", "123"));
        assert_eq!(read("bin/alias"), "#!/bin/sh\n");
        assert!(dir.path().join("proc").is_dir());
    }
}
