//! Real text files of this machine, as material for the demo.

use anyhow::{Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// Where to look, in this order.
const ROOTS: &[&str] = &[
    "/usr/include",
    "/usr/share/perl",
    "/usr/share/doc",
    "/usr/lib/python3",
    "/usr/share/i18n",
    "/usr/share/common-licenses",
    "/usr/share/info",
    "/usr/share/man",
];

/// Sizes of files taken, bytes: small ones would make it a test of file counts.
const SIZES: std::ops::RangeInclusive<u64> = 8 * 1024..=1024 * 1024;

fn is_text(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok() && !bytes.contains(&0)
}

/// Copies at least `wanted` bytes of text files into `to`, with their paths below it. How many files
/// and bytes.
pub fn collect(to: &Path, wanted: u64) -> Result<(usize, u64)> {
    let mut roots: Vec<PathBuf> = ROOTS.iter().map(PathBuf::from).collect();
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|h| Path::new(&h).join(".cargo")));
    roots.extend(home.map(|h| h.join("registry/src")));
    let (mut files, mut bytes) = (0, 0);
    let mut stack: Vec<PathBuf> = roots.into_iter().rev().filter(|r| r.is_dir()).collect();
    while let Some(dir) = stack.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            if bytes >= wanted {
                return Ok((files, bytes));
            }
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if meta.is_dir() {
                stack.push(path);
            } else if meta.is_file() && SIZES.contains(&meta.len()) {
                let Ok(content) = fs::read(&path) else { continue };
                if !is_text(&content) {
                    continue;
                }
                let target = to.join(path.strip_prefix("/")?);
                if let Some(parent) = target.parent() {
                    fs::create_dir_all(parent)?;
                }
                fs::write(&target, &content)?;
                files += 1;
                bytes += content.len() as u64;
            }
        }
    }
    bail!("this machine has only {bytes} bytes of text in {files} files; {wanted} are wanted")
}

/// Compares two trees: names, kinds, contents. The first difference, in words.
pub fn same_tree(a: &Path, b: &Path) -> Result<()> {
    let names = |d: &Path| -> Result<Vec<std::ffi::OsString>> {
        let mut v: Vec<_> =
            fs::read_dir(d)?.map(|e| e.map(|e| e.file_name())).collect::<Result<_, _>>()?;
        v.sort();
        Ok(v)
    };
    if fs::symlink_metadata(a)?.is_dir() {
        let (left, right) = (names(a)?, names(b)?);
        if left != right {
            bail!("{} and {} hold different names", a.display(), b.display());
        }
        for n in left {
            same_tree(&a.join(&n), &b.join(&n))?;
        }
    } else if fs::read(a)? != fs::read(b)? {
        bail!("{} and {} differ", a.display(), b.display());
    }
    Ok(())
}
