//! The protection domain: threads beside the workers, and what control asks.

use crate::estate;
use crate::exec::Command;
use crate::freeze;
use crate::host;
use crate::lifecycle::{Spawn, spawn};
use crate::node::Node;
use crate::remote::Remote;
use crate::services::Services;
use crate::watch;
use clustix_pd::channel::Task;
use clustix_pd::{Boot, BootError, Call};
use clustix_proto::Errno;
use clustix_proto::errno::EAGAIN;
use clustix_proto::posix::Request;
use clustix_proto::process::Pid;
use clustix_proto::service;
use clustix_proto::vfs::Credentials;
use std::io::Write;
use std::sync::Arc;

/// The personality's protection domain; returns only when it cannot start.
pub fn main(mut boot: Boot) -> Result<(), BootError> {
    host::facts();
    // A worker's panic costs one process (thread.rs); a backtrace would need files, which the sandbox
    // does not have.
    std::panic::set_hook(Box::new(|info| {
        // Without its log too.
        let _ = writeln!(std::io::stderr(), "posix: a fault of the personality: {info}");
    }));
    let services = Remote::new(&boot)?;
    boot.enter_sandbox(None)?;
    let node = Node::new(services);
    let deaths = node.clone();
    let started =
        std::thread::Builder::new().name("deaths".into()).spawn(move || watch::deaths(&deaths));
    if let Err(e) = started {
        eprintln!("posix: no thread for the ends of stubs: {e}");
        return Ok(());
    }
    let others: Vec<Task<'_>> = vec![
        Box::pin(watch::inbox(node.clone())),
        Box::pin(watch::timers(node.clone())),
        Box::pin(node.openers.run(&node.services)),
        Box::pin(estate::succeed(node.clone(), std::mem::take(&mut boot.stubs))),
    ];
    let handler = async |_: &Call, request: Request| serve(&node, request).await;
    service::run(&boot.server, handler, others);
    Ok(())
}

/// Answers one request.
pub async fn serve<S: Services>(node: &Arc<Node<S>>, request: Request) -> Result<Pid, Errno> {
    node.opened().await;
    match request {
        Request::Spawn { argv, env, cwd, uid, gid, groups, stdio, start } => {
            if node.frozen() {
                return Err(EAGAIN);
            }
            let path = argv.first().cloned().unwrap_or_default();
            let command = Command { path, argv, env };
            let credentials = Credentials { uid, gid, groups };
            spawn(node, Spawn { command, cwd, credentials, stdio, start }).await
        }
        Request::Freeze => freeze::freeze(node).await.map(|()| 0),
        Request::Thaw => {
            freeze::thaw(node);
            Ok(0)
        }
        Request::Restore { objects } => freeze::restore(node, objects).await.map(|()| 0),
    }
}
