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
