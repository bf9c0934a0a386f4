//! `clustix fsck`, the cluster's half.

use super::Node;
use super::session::{errno, failed, send};
use crate::wire::{self, Failure, Listed, Reply};
use clustix_ccache::set;
use clustix_pd::exec;
use clustix_vfs::fsck::{Inventory, check};
use std::os::unix::net::UnixStream;

/// More objects than a node can have.
const OBJECTS: usize = 1 << 26;
/// Most problems told.
const BOUND: usize = 1000;

/// Checks the file system, of which the peer names every object.
pub(crate) fn fsck(node: &Node, stream: &mut UnixStream) -> Result<(), Failure> {
    let mut all = Inventory::default();
    loop {
        match wire::receive::<Listed>(stream) {
            Ok(Some(_)) if all.0.len() > OBJECTS => return Err(failed("too many objects")),
            Ok(Some(Listed::Names(names))) => all.0.extend(names),
            Ok(Some(Listed::End)) => break,
            Ok(None) => return Err(failed("the list of objects ended early")),
            Err(e) => return Err(failed(format!("the list of objects could not be read: {e}"))),
        }
    }
    let foreign = all.0.iter().find(|n| {
        set::descriptor(n.set()).is_none_or(|d| d.class != set::Class::Vfs || !d.snapshot)
    });
    if let Some(name) = foreign {
        return Err(failed(format!("{name} is no object of the file system")));
    }
    let found = exec::block_on(check(&node.cache, &all))
        .map_err(|e| errno("the file system could not be read", e))?;
    let mut problems: Vec<String> = found.into_iter().map(|p| p.0).collect();
    let more = problems.len().saturating_sub(BOUND);
    problems.truncate(BOUND);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    send(stream, &Reply::Problems(problems))
}
