//! The cluster-cache: a pool of small typed objects, cached where they are used, kept
//! sequentially consistent by write-invalidate and replicated in other nodes' memory with
//! one-sided verbs.
//!
//! Servers and the personality use [`cache::Cache`]; only a node's ccache protection domain runs
//! the protocol itself.

// Devices are spoken to in `fabric::verbs`; nothing else may use `unsafe`.
#![deny(unsafe_code)]

pub mod arena;
pub mod cache;
pub mod client;
pub mod engine;
pub mod fabric;
pub mod half;
pub mod layout;
pub mod lease;
pub mod links;
pub mod local;
pub mod name;
pub mod network;
pub mod request;
pub mod service;
pub mod set;
pub mod slab;
pub mod succession;
pub mod view;
pub mod word;
