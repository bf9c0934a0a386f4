//! A model of the cluster-cache's protocol at the granularity of single verbs, for stateright: every
//! schedule of a small workload on three nodes is tried.
//!
//! It is written from the meaning of the rules in `docs/protocol.md`, not from the engine; of the
//! product it uses the slot word and its arithmetic. Nothing depends on this crate.
//!
//! - a verb lands in one step, in order within a queue pair ([`fabric`]);
//! - a node's CPU looks at what has completed, and acts, in steps of its own ([`get`], [`write`]);
//! - a change of view is a step for each thing that each survivor does ([`recovery`]);
//! - deaths, false evictions and returns are steps that are possible at any time ([`cluster`]).
//!
//! What it leaves out is at the pieces that do, and in `docs/protocol.md`.

#![forbid(unsafe_code)]

pub mod bugs;
pub mod check;
pub mod cluster;
pub mod counts;
pub mod fabric;
pub mod get;
pub mod history;
pub mod properties;
pub mod recovery;
pub mod state;
pub mod workloads;
pub mod write;
