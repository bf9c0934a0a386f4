//! The cluster-cache: a pool of small typed objects, cached where they are used, kept
//! sequentially consistent by write-invalidate and replicated in other nodes' memory with
//! one-sided verbs.
//!
//! Servers and the personality use [`cache::Cache`]; only a node's ccache protection domain runs
//! the protocol itself.

#![forbid(unsafe_code)]

pub mod cache;
pub mod local;
pub mod name;
pub mod set;
pub mod lease;
pub mod request;
pub mod view;
pub mod arena;
pub mod engine;
pub mod fabric;
pub mod layout;
pub mod links;
pub mod word;
pub mod client;
pub mod service;
pub mod slab;
pub mod half;
