//! The process server: one PID space for the cluster; processes, groups, sessions, signals, waits.
//!
//! 1. It keeps no state: every process and group is an object of the cluster-cache, and every
//!    request is one or a few optimistic transactions over them. Any node's server can serve any
//!    process; it changes only what runs on its own node, but for signals, reaping and losses.
//! 2. It never waits: a request that would sleep in Linux (wait, a full pipe) answers what to wait
//!    on, and the personality sleeps in the cluster-cache.
//! 3. What must happen on every node (kill(2) with -1, the loss of a node) is an order in one object
//!    that each node's server watches; each acts on the processes whose shards have their primary on
//!    its node, so that all are found without an index and without anyone walking the cluster.
//!
//! Called by the personality, console (signals) and control. Pipes are a library ([`pipe`]) that
//! the personality runs itself.

#![forbid(unsafe_code)]

mod end;
mod fork;
mod group;
mod loss;
mod pid;
pub mod pipe;
mod server;
mod signal;
mod wait;

pub use server::Server;

use clustix_ccache::client::CacheClient;
use clustix_ccache::set;
use clustix_pd::channel::Task;
use clustix_pd::{Boot, BootError, Call};
use clustix_proto::once::Record;
use clustix_proto::process::Request;
use clustix_proto::{once, service};

/// Roles whose sender 0 is the operator: they may signal anyone.
const OPERATORS: [&str; 3] = ["control", "console", "init"];

/// The protection domain `process`. Returns only when it cannot start.
pub fn main(boot: Boot) -> Result<(), BootError> {
    let cache = CacheClient::new(&boot)?;
    boot.enter_sandbox(None)?;
    let here = (boot.node, boot.incarnation);
    let server = Server::new(cache.clone(), boot.incarnation);
    let handler = async |call: &Call, record: Option<&Record>, request: Request| {
        let role = boot.server.client_role(call.channel);
        let operator = role.is_some_and(|r| OPERATORS.contains(&r.as_str()));
        server.handle_once(record, operator, request).await
    };
    let others: Vec<Task<'_>> =
        vec![Box::pin(server.follow()), Box::pin(once::tend(&cache, set::PROCANSWER))];
    service::run_once(&boot.server, set::PROCANSWER, here, handler, others);
    Ok(())
}
