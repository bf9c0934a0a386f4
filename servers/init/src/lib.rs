//! init: starts a node's protection domains in order, restarts what dies, and sees to it that what
//! a dead node had is given up.
//!
//! 1. It decides in step functions: [`restart`] (when to start which domain, when to stop trying)
//!    and [`watch`] (which node incarnations are dead). Everything else here is the shell.
//! 2. It waits on no server: one task supervises, another talks to the cluster-cache and the process
//!    server, and neither needs the other.
//! 3. It may itself die: the kernel restarts it, starting a domain that runs does nothing, and all
//!    that it tells others it may tell again.
//!
//! Nobody calls it; it calls the kernel, ccache and the process server.

#![forbid(unsafe_code)]

pub mod record;
pub mod restart;
mod supervise;
mod tell;
pub mod watch;

mod cluster;

pub use cluster::{first_boot, follow_view};

use clustix_ccache::client::CacheClient;
use clustix_pd::channel::Task;
use clustix_pd::{Boot, BootError, exec};
use std::sync::Arc;

/// The protection domain `init`. `boot.args`: postcard of a list of roles, in the order in which
/// they are started. Returns only when it cannot start.
pub fn main(boot: Boot) -> Result<(), BootError> {
    let roles: Vec<String> = postcard::from_bytes(&boot.args).unwrap_or_else(|e| {
        tracing::error!("init was given no list of roles: {e}");
        Vec::new()
    });
    let cache = CacheClient::new(&boot)?;
    let process = boot.channel("process")?;
    // Threads are made before the sandbox closes.
    let deaths = Arc::new(supervise::Deaths::new(&boot.kernel).map_err(BootError::Socket)?);
    boot.enter_sandbox(None)?;
    let servers = tell::Servers { process };
    let supervised = supervise::Supervisor::new(&boot, roles, cache.clone(), servers.clone());
    let cluster = cluster::Cluster::new(&boot, cache, servers);
    let tasks: [Task<'_>; 3] =
        [Box::pin(supervised.run(&deaths)), Box::pin(supervised.mourn()), Box::pin(cluster.run())];
    exec::run(tasks);
    Ok(())
}
