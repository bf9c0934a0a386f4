//! The control protection domain: the node's side of the command line.
//!
//! 1. It holds one host descriptor, the listening socket that the launcher bound, and opens no other.
//! 2. Each connection has a thread of its own ([`session`]), at most [`MAX_SESSIONS`] at a time; a
//!    thread sleeps in the futex executor or in a read of its socket, never on another session.
//! 3. It keeps nothing: what a command starts lives in the cluster-cache and in the servers. Its
//!    death costs the commands under way, no program: `clustix run` goes on at whoever serves next ([`job`]).
//! 4. One thread more watches over the jobs ([`watch`]).
//!
//! Nobody calls it over a channel.

mod attend;
mod fsck;
mod gate;
mod job;
mod objects;
mod program;
mod session;
mod streams;
mod tree;
mod watch;

use anyhow::{Context, Result};
use clustix_ccache::client::CacheClient;
use clustix_ccache::set::Class;
use clustix_pd::{Boot, CallError, Client, Kernel, exec};
use clustix_proto::Errno;
use clustix_proto::job::Attendant;
use clustix_proto::once::{self, Lanes};
use clustix_proto::{console, process, vfs};
use gate::Gate;
use rustix::net::sockopt::Timeout;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most connections at a time.
pub const MAX_SESSIONS: usize = 64;

/// What every session of a node uses.
pub(crate) struct Node {
    pub cache: CacheClient,
    pub process: Client,
    pub vfs: Client,
    pub process_lanes: Lanes,
    pub vfs_lanes: Lanes,
    pub console_lanes: Lanes,
    pub console: Client,
    pub posix: Client,
    pub kernel: Kernel,
    pub slot: u8,
    pub incarnation: u64,
    /// When this life of control started, ns.
    life: u64,
    pub cluster: String,
    pub gate: Gate,
    /// The user whose command line is answered; the sandbox does not let it be asked for later.
    pub owner: rustix::process::Uid,
}

impl Node {
    /// This life of control, for the jobs that it attends to.
    pub(crate) fn attendant(&self) -> Attendant {
        Attendant { node: self.slot, incarnation: self.incarnation, life: self.life }
    }

    pub(crate) async fn ask_process(&self, request: &process::Request) -> process::Response {
        once::ask(&self.process_lanes, &self.cache, &self.process, request).await
    }

    pub(crate) async fn ask_vfs(&self, request: &vfs::Request) -> vfs::Reply {
        once::ask(&self.vfs_lanes, &self.cache, &self.vfs, request).await
    }

    pub(crate) async fn ask_console(&self, request: &console::Request) -> console::Response {
        once::ask(&self.console_lanes, &self.cache, &self.console, request).await
    }
}

/// Serves the command line until the node ends.
///
/// # Errors
/// A capability or the socket that the system description should grant is missing.
pub fn main(mut boot: Boot) -> Result<()> {
    let socket = boot.descriptor("control").context("the listening socket")?;
    let channel = |name: &str| boot.channel(name).with_context(|| format!("channel {name}"));
    let node = Arc::new(Node {
        cache: CacheClient::new(&boot).context("the cluster-cache")?,
        process: channel("process")?,
        vfs: channel("vfs")?,
        process_lanes: Lanes::new(Class::Process),
        vfs_lanes: Lanes::new(Class::Vfs),
        console_lanes: Lanes::new(Class::Console),
        console: channel("console")?,
        posix: channel("posix")?,
        kernel: boot.kernel.clone(),
        slot: boot.node,
        incarnation: boot.incarnation,
        life: exec::now_ns(),
        cluster: boot.cluster.clone(),
        gate: Gate::default(),
        owner: rustix::process::geteuid(),
    });
    // The loop beats though nobody comes.
    rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(exec::LONGEST_SLEEP))
        .context("the listening socket")?;
    boot.enter_sandbox(None).context("the sandbox")?;
    let listener = UnixListener::from(socket);
    let watched = node.clone();
    std::thread::Builder::new()
        .name("jobs".into())
        .spawn(move || watch::watch(&watched))
        .context("no thread that watches over the jobs")?;
    let sessions = Arc::new(AtomicUsize::new(0));
    loop {
        clustix_pd::metrics::beat();
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(e)
                if matches!(
                    e.kind(),
                    std::io::ErrorKind::Interrupted | std::io::ErrorKind::WouldBlock
                ) =>
            {
                continue;
            }
            Err(e) => return Err(e).context("the listening socket"),
        };
        clustix_pd::metrics::add("clustix_control_connections_total", 1);
        let node = node.clone();
        let full = sessions.fetch_add(1, Ordering::AcqRel) >= MAX_SESSIONS;
        let place = Place(sessions.clone());
        let thread = std::thread::Builder::new().name("session".into()).spawn(move || {
            let _place = place;
            session::serve(&node, stream, full);
        });
        if let Err(e) = thread {
            tracing::warn!("no thread for a connection: {e}");
        }
    }
}

/// A session's place among [`MAX_SESSIONS`], given up however it ends.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Asks the personality; its death or a full queue is an error number too.
pub(crate) async fn ask<Q: Serialize, R: DeserializeOwned>(
    server: &Client,
    request: &Q,
) -> Result<R, Errno> {
    match clustix_pd::rpc::<Q, Result<R, Errno>>(server, request).await {
        Ok(answer) => answer,
        Err(CallError::Busy) => Err(clustix_proto::errno::EAGAIN),
        Err(CallError::TooLarge) => Err(clustix_proto::errno::E2BIG),
        Err(CallError::Gone | CallError::Revoked | CallError::Malformed) => {
            Err(clustix_proto::errno::EIO)
        }
    }
}
