//! The operations of [`clustix_proto::vfs::Request`], one file per family. Errors, and the order in
//! which they are found, are Linux's (fs/namei.c, fs/attr.c); `tests/host.rs` compares them.

pub mod attr;
pub mod link;
pub mod make;
pub mod rename;
pub mod unlink;

use crate::edit::Nameless;
use crate::{dir, open};
use clustix_ccache::cache::Cache;
use clustix_proto::Answer;

/// What is left to do after names were taken away: none of it changes what anyone sees, and if this
/// instance dies first, [`open::orphans`] does it.
async fn tidy<C: Cache>(
    cache: &C,
    small: &[Option<(u64, u32)>],
    nameless: Nameless,
) -> Answer<u64> {
    for (ino, node) in small.iter().flatten() {
        dir::join(cache, *ino, *node).await;
    }
    match nameless {
        Nameless::Not | Nameless::Gone => Ok(0),
        Nameless::Open(ino) => Ok(ino),
        Nameless::Left(ino) => {
            // The name is gone, which is what was asked; a failure here costs space only.
            if let Err(e) = open::reap(cache, ino).await {
                tracing::warn!(ino, %e, "a removed file's pages stay for now");
            }
            Ok(0)
        }
    }
}
