//! The vfs server: requests in, transactions out.

use crate::op::rename::How;
use crate::op::{attr, link, make, rename, unlink};
use crate::{mkfs, open};
use clustix_ccache::cache::Cache;
use clustix_ccache::client::CacheClient;
use clustix_ccache::set;
use clustix_pd::channel::Task;
use clustix_pd::{Boot, BootError, Call, exec};
use clustix_proto::errno::EINVAL;
use clustix_proto::once::Record;
use clustix_proto::vfs::{Reply, Request};
use clustix_proto::{Answer, once, service};

/// The protection domain `vfs`. Returns only when it cannot start.
pub fn main(boot: Boot) -> Result<(), BootError> {
    let cache = CacheClient::new(&boot)?;
    // Seeds the numbers while getrandom(2) may still be called.
    crate::number::random();
    boot.enter_sandbox(None)?;
    let here = (boot.node, boot.incarnation);
    let handler = async |_: &Call, record: Option<&Record>, request: Request| {
        handle_once(&cache, record, request).await
    };
    let others: Vec<Task<'_>> = vec![Box::pin(tend(&cache))];
    service::run_once(&boot.server, set::VFSANSWER, here, handler, others);
    Ok(())
}

/// First and longest pause between two looks at the cluster's members, ns.
const FIRST_LOOK: u64 = 20_000_000;
const LONGEST_LOOK: u64 = 5_000_000_000;

/// What the server does unasked: makes the file system of a new cluster, and, at its start and when a
/// node was lost, ends what nobody holds any more.
async fn tend(cache: &CacheClient) {
    let mut made = false;
    let mut known: Option<Vec<(u8, u64)>> = None;
    let mut pause = FIRST_LOOK;
    loop {
        if !made {
            match mkfs::mkfs(cache).await {
                Ok(()) => (made, pause) = (true, FIRST_LOOK),
                Err(e) => tracing::debug!(%e, "no file system yet"),
            }
        }
        if made
            && let Ok(status) = cache.status().await
            && status.lease
            && status.settled
        {
            let lost = known.as_ref().is_none_or(|k| k.iter().any(|m| !status.members.contains(m)));
            let tended = !lost
                || once::forget(cache, set::VFSANSWER, async || once::members(cache).await)
                    .await
                    .is_ok()
                    && match open::orphans_beside(cache, async || live(cache).await).await {
                        Ok(0) => true,
                        Ok(n) => {
                            tracing::info!("removed {n} files without names that nobody has open");
                            true
                        }
                        Err(e) => {
                            tracing::debug!(%e, "not all files without names could be looked at");
                            false
                        }
                    };
            if tended {
                known = Some(status.members);
            }
        }
        exec::sleep_until(exec::now_ns() + pause).await;
        // Until the cluster serves, others wait for this.
        pause = if known.is_some() { (pause * 2).min(LONGEST_LOOK) } else { FIRST_LOOK };
    }
}

/// The slots of the present members, as bits.
async fn live(cache: &CacheClient) -> Answer<u16> {
    let members = once::members(cache).await?;
    Ok(members.iter().fold(0, |bits, m| bits | 1 << (m.0 & 15)))
}

/// Serves one request, whose answer is recorded with its effect.
pub async fn handle_once<C: Cache>(cache: &C, record: Option<&Record>, request: Request) -> Reply {
    once::serve(cache, record, serve(cache, record, request)).await
}

/// Serves one request, which will not be repeated unless that is harmless. Errors are those of the man page
/// of the call of the same name.
pub async fn handle<C: Cache>(cache: &C, request: Request) -> Reply {
    serve(cache, None, request).await
}

async fn serve<C: Cache>(cache: &C, record: Option<&Record>, request: Request) -> Reply {
    match request {
        Request::Create { cred, dir, path, mode, exclusive } => {
            make::create(cache, record, &cred, dir, &path, mode, exclusive).await
        }
        Request::Mkdir { cred, dir, path, mode } => {
            make::mkdir(cache, record, &cred, dir, &path, mode).await
        }
        Request::Mknod { cred, dir, path, mode, rdev } => {
            make::mknod(cache, record, &cred, dir, &path, mode, rdev).await
        }
        Request::Symlink { cred, target, dir, path } => {
            make::symlink(cache, record, &cred, &target, dir, &path).await
        }
        Request::Link { cred, old_dir, old, new_dir, new, follow } => {
            link::link(cache, record, &cred, (old_dir, &old), (new_dir, &new), follow).await
        }
        Request::Unlink { cred, dir, path, rmdir } => {
            unlink::unlink(cache, record, &cred, dir, &path, rmdir).await
        }
        Request::Rename { cred, old_dir, old, new_dir, new, no_replace, exchange } => {
            let how = match (no_replace, exchange) {
                (false, false) => How::Replace,
                (true, false) => How::NoReplace,
                (false, true) => How::Exchange,
                (true, true) => return Err(EINVAL),
            };
            rename::rename(cache, record, &cred, (old_dir, &old), (new_dir, &new), how).await
        }
        Request::SetAttr { cred, ino, attr } => {
            attr::set_attr(cache, record, &cred, ino, &attr).await
        }
        Request::Opened { ino } => open::opened(cache, ino).await,
        Request::Closed { ino } => open::closed(cache, ino).await,
        Request::Format => mkfs::mkfs(cache).await.map(|()| 0),
        Request::Orphans { live } => open::orphans(cache, live).await,
    }
}
