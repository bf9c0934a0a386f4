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

/// A directory's block that has become small, and what has lost its name.
type Left = (Option<(u64, u32)>, Nameless);

/// What is left to do after names were taken away: none of it changes what anyone sees, and if this
/// instance dies first, [`open::orphans`] does it.
async fn tidy<C: Cache>(cache: &C, (small, nameless): Left) {
    if let Some((ino, node)) = small {
        dir::join(cache, ino, node).await;
    }
    // The name is gone, which is what was asked; a failure here costs space only.
    if let Nameless::Left(ino) = nameless
        && let Err(e) = open::reap(cache, ino).await
    {
        tracing::warn!(ino, %e, "a removed file's pages stay for now");
    }
}
