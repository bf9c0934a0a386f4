//! The simulator: whole clusters in one thread, under schedules that follow from a seed.
//!
//! It runs the product's own code: the engine, the lease, the watch on peers, views and published
//! entries. What it puts in place of the rest is a network ([`net`], whose end for one node is
//! the fabric [`fabric::SimFabric`]), a shell around the engine ([`node`]), clocks that drift
//! ([`clock`]), an oracle that decides views where a majority can talk ([`membership`]), and
//! clients ([`work`], [`run`]). What happens to a cluster is a [`plan`]: nodes die in the middle of
//! a write, and again during recovery; live ones are taken for dead, cut off, stopped, come back;
//! queue pairs are slow; dead memory is overwritten. The checkers are in [`check`], [`words`] and
//! [`history`]; known mistakes that they catch are put back by `bugs`.

#![forbid(unsafe_code)]

#[cfg(feature = "put-back-bugs")]
pub mod bugs;
pub mod check;
pub mod clock;
pub mod cluster;
pub mod contention;
pub mod fabric;
pub mod group;
pub mod history;
pub mod membership;
pub mod net;
pub mod node;
pub mod plan;
pub mod random;
pub mod run;
pub mod seeds;
pub mod words;
pub mod work;
