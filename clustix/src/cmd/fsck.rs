//! `clustix fsck`: is the file tree as it should be?

use super::list::print;
use crate::connection::{Connection, ask, ask_all, candidates};
use crate::state::Folder;
use crate::wire::{CHUNK, Listed, Reply, Request};
use anyhow::{Context, Result, bail};
use clustix_ccache::name::Name;
use clustix_ccache::set;
use std::process::ExitCode;
use std::time::Duration;

/// Most times that the objects are listed.
const TRIES: usize = 20;
/// Longest that a node may take to check everything.
const BOUND: Duration = Duration::from_secs(600);

/// Checks every invariant of the file system; exit status 1 if one does not hold.
///
/// # Errors
/// No node can be asked.
pub fn fsck(folder: &Folder) -> Result<ExitCode> {
    let names = names(folder)?;
    let slot = *candidates(folder, None)?.first().context("no node runs")?;
    let mut connection = Connection::open(folder, slot, Request::Fsck)?;
    for page in names.chunks(CHUNK / size_of::<Name>()) {
        connection.send(&Listed::Names(page.to_vec()))?;
    }
    connection.send(&Listed::End)?;
    match connection.next(Some(BOUND))? {
        Some(Reply::Problems(problems)) if problems.is_empty() => {
            print(&format!("{} objects, nothing wrong\n", names.len()))?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Reply::Problems(problems)) => {
            print(&(problems.join("\n") + "\n"))?;
            Ok(ExitCode::FAILURE)
        }
        _ => bail!("node {slot} gave an unexpected answer"),
    }
}

/// All objects of the file system: listed while the nodes stay the same.
fn names(folder: &Folder) -> Result<Vec<Name>> {
    for _ in 0..TRIES {
        let view = view(folder)?;
        let mut names: Vec<Name> = Vec::new();
        let mut asked = Vec::new();
        for set in set::SETS.iter().filter(|d| d.class == set::Class::Vfs && d.snapshot) {
            let answers = ask_all(folder, None, &Request::Objects { set: Some(set.id) })?;
            asked = answers.iter().map(|(slot, _)| *slot).collect();
            for reply in answers.into_iter().flat_map(|(_, replies)| replies) {
                if let Reply::Objects(page) = reply {
                    names.extend(page.into_iter().map(|o| o.name));
                }
            }
        }
        if view.1 == asked && view == self::view(folder)? {
            return Ok(names);
        }
    }
    bail!("nodes come and go; try again when they do not")
}

/// The view's number and its nodes.
fn view(folder: &Folder) -> Result<(u64, Vec<u8>)> {
    let (_, replies) = ask(folder, None, &Request::Status)?;
    match replies.into_iter().next() {
        Some(Reply::Status(status)) => {
            let mut nodes: Vec<u8> = status.nodes.iter().map(|n| n.node).collect();
            nodes.sort_unstable();
            Ok((status.epoch, nodes))
        }
        _ => bail!("a node gave an unexpected answer"),
    }
}
