//! What is left of a cluster: processes and files, looked for from outside.

use anyhow::{Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Processes of the clusters below `state`: kernels, domains and stubs. A domain or stub whose kernel has
/// died counts whosever it was: nobody else will.
pub fn processes(state: &Path) -> BTreeSet<(u32, String)> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let exe = fs::read_link(entry.path().join("exe")).unwrap_or_default();
        let exe = exe.to_string_lossy().into_owned();
        let words = command_line(pid);
        let second = words.get(1).map_or("", String::as_str);
        let stub = exe.starts_with("/memfd:") && exe.contains("stub");
        let domain =
            words.first().is_some_and(|w| w.contains("cl") || w.contains("exe")) && second == "pd";
        let ours = if second == "node" {
            of_state(&words) == Some(state.to_owned())
        } else if stub || domain {
            // Every process of a node is in the session that its kernel leads.
            let kernel = session(pid).map(command_line).as_deref().and_then(of_state);
            kernel.is_none_or(|k| k == state)
        } else {
            false
        };
        if ours {
            found.insert((pid, format!("{exe} {second}")));
        }
    }
    found
}

fn command_line(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect()
}

/// The folder in which the state folder of `clustix node … --state FOLDER …` is.
fn of_state(words: &[String]) -> Option<PathBuf> {
    if words.get(1).map(String::as_str) != Some("node") {
        return None;
    }
    let at = words.iter().position(|w| w == "--state")?;
    Path::new(words.get(at + 1)?).parent().map(Path::to_owned)
}

fn session(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.get(stat.rfind(')')? + 2..)?.split(' ').nth(3)?.parse().ok()
}

/// Waits until no process of the clusters below `state` is left, at most a second.
///
/// # Errors
/// Some are; says which.
pub fn none(state: &Path) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(1);
    loop {
        let left = processes(state);
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
