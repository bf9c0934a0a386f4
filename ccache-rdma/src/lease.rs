//! Leases and suspicion, as arithmetic on times handed in.
//!
//! A node serves anything only under an unexpired lease. It renews by writing a growing number
//! into each peer's memory; a renewal counts when a majority of the view's members (itself
//! included) has completed, and the lease then runs from the time at which that renewal was
//! *sent*. A survivor may take over from an evicted node once [`Lease::over_by`] has passed on its
//! own clock since it last let that node renew.

use serde::{Deserialize, Serialize};

/// The times, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Timing {
    /// How long a renewal lasts.
    pub lease_ns: u64,
    /// How often one is sent.
    pub renewal_ns: u64,
    /// Bound on how far two nodes' clocks drift apart within a lease.
    pub drift_ns: u64,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing { lease_ns: 250_000_000, renewal_ns: 50_000_000, drift_ns: 5_000_000 }
    }
}

impl Timing {
    /// How long a survivor must wait, from the moment at which the evicted node can no longer
    /// complete a renewal, until that node's lease is surely over.
    pub const fn over_by(&self) -> u64 {
        self.lease_ns + self.drift_ns
    }
    /// A timer that fires later than this after its time says that this node was stopped or
    /// starved itself.
    pub const fn late(&self) -> u64 {
        self.lease_ns / 4
    }
}
