//! The vfs server: requests in, transactions out.

use crate::op::rename::How;
use crate::op::{attr, link, make, rename, unlink};
use crate::{mkfs, open};
use clustix_ccache::cache::Cache;
use clustix_ccache::client::CacheClient;
use clustix_pd::{Boot, BootError, Call};
use clustix_proto::errno::EINVAL;
use clustix_proto::service;
use clustix_proto::vfs::{Reply, Request};

/// The protection domain `vfs`. Returns only when it cannot start.
pub fn main(boot: Boot) -> Result<(), BootError> {
    let cache = CacheClient::new(&boot)?;
    // Seeds the numbers while getrandom(2) may still be called.
    crate::number::random();
    boot.enter_sandbox()?;
    let handler = async |_: &Call, request: Request| handle(&cache, request).await;
    service::run(&boot.server, handler, Vec::new());
    Ok(())
}

/// Serves one request. Errors are those of the man page of the call of the same name.
pub async fn handle<C: Cache>(cache: &C, request: Request) -> Reply {
    match request {
        Request::Create { cred, dir, path, mode, exclusive } => {
            make::create(cache, &cred, dir, &path, mode, exclusive).await
        }
        Request::Mkdir { cred, dir, path, mode } => {
            make::mkdir(cache, &cred, dir, &path, mode).await
        }
        Request::Mknod { cred, dir, path, mode, rdev } => {
            make::mknod(cache, &cred, dir, &path, mode, rdev).await
        }
        Request::Symlink { cred, target, dir, path } => {
            make::symlink(cache, &cred, &target, dir, &path).await
        }
        Request::Link { cred, old_dir, old, new_dir, new, follow } => {
            link::link(cache, &cred, (old_dir, &old), (new_dir, &new), follow).await
        }
        Request::Unlink { cred, dir, path, rmdir } => {
            unlink::unlink(cache, &cred, dir, &path, rmdir).await
        }
        Request::Rename { cred, old_dir, old, new_dir, new, no_replace, exchange } => {
            let how = match (no_replace, exchange) {
                (false, false) => How::Replace,
                (true, false) => How::NoReplace,
                (false, true) => How::Exchange,
                (true, true) => return Err(EINVAL),
            };
            rename::rename(cache, &cred, (old_dir, &old), (new_dir, &new), how).await
        }
        Request::SetAttr { cred, ino, attr } => attr::set_attr(cache, &cred, ino, &attr).await,
        Request::Opened { ino } => open::opened(cache, ino).await,
        Request::Closed { ino } => open::closed(cache, ino).await,
        Request::Format => mkfs::mkfs(cache).await.map(|()| 0),
        Request::Orphans { live } => open::orphans(cache, live).await,
    }
}
