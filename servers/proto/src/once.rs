//! Once, over a server's restart: each request that has an effect carries a number, and its answer is
//! recorded in the transaction of the effect.
//!
//! A client repeats a request whose server died, or could not tell the outcome, under the same number; the
//! server that gets the repeat finds the record and answers with it. Nothing else would do: a transaction
//! that the dead server had handed to the cluster-cache may still take effect, also after the repeat has
//! come. So the record is checked, by its version, in the transaction of the effect: of the dead server's
//! and the repeat's only one is carried out. A repeat's refusal is recorded too, for the same reason.
//!
//! A *lane* is what a record stands for: of its requests one is under way at a time, so that the newest
//! answer is all that is kept. Numbers are compared for equality only, and start anew with each client.
//!
//! The record is RIFL's completion record (Lee et al., SOSP 2015, section 3), which is made durable with the
//! effect; the lane is a slot of NFS 4.1's sessions (RFC 8881, section 2.10.6). Here slots are nodes'.

mod lanes;
mod record;

pub use lanes::{Lanes, ask};
pub use record::{Client, Recall, Record, forget, members, serve, tend};

use serde::{Deserialize, Serialize};

/// What a repeat of a request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repeat {
    /// No more than the request alone did, whatever others did in between.
    Harmless,
    /// It is told by its number, and answered from the record.
    ByNumber,
}

/// A server's request enum: which of its requests may be repeated, and how.
pub trait Operation {
    /// What a repeat of this one does.
    fn repeat(&self) -> Repeat;
}

/// One of a client's lanes. The shard is the client's choice, near itself; it is part of the name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lane {
    /// Among that client's.
    pub index: u32,
    /// Where its record stands.
    pub shard: u16,
}

/// Tells a request from every other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Once {
    /// Whose answers these are.
    pub lane: Lane,
    /// Which request.
    pub number: u64,
    /// It has been sent before: its effect may be there, or still come.
    pub again: bool,
}

/// A request as it is sent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Asked<Q> {
    /// `None`: a repeat is harmless.
    pub once: Option<Once>,
    /// What is asked.
    pub request: Q,
}
