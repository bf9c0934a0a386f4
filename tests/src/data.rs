//! Real text files of this machine, for the demonstration's tree.

use anyhow::{Result, bail};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Files smaller than this would only be names.
const SMALLEST: u64 = 2 << 10;
/// Larger ones would only be bytes.
const LARGEST: u64 = 1 << 20;

/// Where text is found on a machine with a Rust toolchain and little else.
fn places() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cargo = std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    vec![
        "/usr/share/perl".into(),
        "/usr/share/doc".into(),
        "/usr/include".into(),
        "/usr/share/common-licenses".into(),
        cargo.join("registry/src"),
        "/usr/lib/python3".into(),
        home.join(".rustup"),
    ]
}

/// A text file, by its first 4 KiB.
fn is_text(path: &Path) -> bool {
    let mut head = Vec::new();
    let read = fs::File::open(path).and_then(|f| f.take(4096).read_to_end(&mut head));
    read.is_ok() && !head.is_empty() && !head.contains(&0)
}

/// Copies text files into `to` until there are `bytes` of them; how many files and bytes.
///
/// # Errors
/// This machine has too few; a file cannot be copied.
pub fn collect(to: &Path, bytes: u64) -> Result<(u64, u64)> {
    let (mut files, mut sum) = (0, 0);
    let mut stack = places();
    stack.reverse();
    while let Some(path) = stack.pop() {
        if sum >= bytes {
            break;
        }
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.is_dir() {
            let Ok(entries) = fs::read_dir(&path) else { continue };
            let mut entries: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
            entries.sort();
            stack.extend(entries.into_iter().rev());
            continue;
        }
        // The job names files in shell words and lines.
        let plain = path
            .to_str()
            .is_some_and(|p| p.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._+-".contains(&b)));
        let fits = (SMALLEST..=LARGEST).contains(&meta.len());
        if !meta.is_file() || !plain || !fits || !is_text(&path) {
            continue;
        }
        let target = to.join(path.strip_prefix("/")?);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(&path, &target)?;
        let times = fs::FileTimes::new().set_modified(meta.modified()?);
        fs::File::options().append(true).open(&target)?.set_times(times)?;
        files += 1;
        sum += meta.len();
    }
    if sum < bytes {
        bail!("this machine has only {sum} bytes of text in {:?}; {bytes} are needed", places());
    }
    Ok((files, sum))
}

/// Every file of a tree with its content, by its path below the root; a symbolic link by its target.
///
/// # Errors
/// A file cannot be read.
pub fn contents(root: &Path) -> Result<std::collections::BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = std::collections::BTreeMap::new();
    for path in crate::leftover::files(root) {
        let below = path.strip_prefix(root)?.to_owned();
        let link = fs::read_link(&path).ok();
        let bytes = match link {
            Some(target) => target.into_os_string().into_encoded_bytes(),
            None => fs::read(&path)?,
        };
        found.insert(below, bytes);
    }
    Ok(found)
}
