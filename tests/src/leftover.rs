//! What is left of a cluster: processes and files, looked for from outside.

use anyhow::{Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Processes that belong to the clusters of a state folder: kernels by their command line, everything
/// below them, and what was below them and lost its parent (a stub or a domain maps memory whose names
/// say so).
pub fn processes(state: &Path) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<String> =
            command.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
        let kernel = words.iter().any(|w| Path::new(w).starts_with(state));
        if kernel && words.get(1).is_some_and(|w| w == "node") {
            found.push((pid, words.join(" ")));
        }
    }
    found
}

/// Every process whose executable is a stub, or `clustix` running a domain: of all clusters of this
/// machine.
pub fn domains_and_stubs() -> BTreeSet<(u32, String)> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let exe = fs::read_link(entry.path().join("exe")).unwrap_or_default();
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let second = command.split(|b| *b == 0).nth(1).unwrap_or_default();
        let exe = exe.to_string_lossy().into_owned();
        let stub = exe.starts_with("/memfd:") && exe.contains("stub");
        let domain = exe.contains("/clustix") && (second == b"pd" || second == b"node");
        if stub || domain {
            found.insert((pid, exe));
        }
    }
    found
}

/// Waits until no process but those of `before` is left, at most a second.
///
/// # Errors
/// Some are; says which.
pub fn none_but(before: &BTreeSet<(u32, String)>) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(1);
    loop {
        let left: Vec<_> = domains_and_stubs().difference(before).cloned().collect();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("these processes are left: {left:?}");
        }
        std::thread::yield_now();
    }
}

/// Every file below a folder.
pub fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut from = vec![folder.to_owned()];
    while let Some(dir) = from.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                from.push(entry.path());
            } else {
                found.insert(entry.path());
            }
        }
    }
    found
}

/// Checks that a state folder holds nothing but what a cluster that is down keeps.
///
/// # Errors
/// It does; says what.
pub fn only_what_down_keeps(state: &Path) -> Result<()> {
    let left: Vec<_> = files(state)
        .into_iter()
        .filter(|f| !f.ends_with("cluster.json") && !f.ends_with("snapshot"))
        .collect();
    if !left.is_empty() {
        bail!("these files are left: {left:?}");
    }
    Ok(())
}

/// Names in /dev/shm and /tmp, to be compared before and after.
pub fn shared_places() -> BTreeSet<PathBuf> {
    ["/dev/shm", "/run/shm"]
        .iter()
        .flat_map(|d| fs::read_dir(d).into_iter().flatten().flatten())
        .map(|e| e.path())
        .collect()
}
