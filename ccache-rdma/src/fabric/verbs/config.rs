//! What a node must be told to use the fabric.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// How long a queue pair tries before it gives its peer up: a dead machine is noticed about
/// 4 µs × 2^`ack_timeout` × (`retry_count` + 3) after its last answer, a dead process at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Patience {
    /// Local ACK timeout, as the exponent of the InfiniBand specification (9.7.6.1.3), 1 to 31.
    pub ack_timeout: u8,
    /// Retries, 0 to 6. (rxe never gives up at 7.)
    pub retry_count: u8,
    /// How long a sender without a posted buffer at the other end is told to wait, as the
    /// specification's code (table 45), 1 to 31. Credits keep that from happening.
    pub rnr_timer: u8,
    /// How often it then tries again, 0 to 6 (7 would be for ever).
    pub rnr_retry: u8,
}

impl Patience {
    /// Soft-RoCE between emulated machines. With an `ack_timeout` of 14 a healthy peer was given up once
    /// in a handful of starts of three machines on two processors.
    pub const EMULATED: Patience =
        Patience { ack_timeout: 15, retry_count: 6, rnr_timer: 14, rnr_retry: 6 };
    /// Real devices, one switch between them.
    pub const HOSTS: Patience =
        Patience { ack_timeout: 12, retry_count: 6, rnr_timer: 12, rnr_retry: 6 };

    /// The time after which nothing new is posted while nothing is answered, ns. Each request that is
    /// posted puts rxe's time-out off (its sender task runs the completer, which sets the timer anew):
    /// heartbeats alone would keep a dead peer's queue pair alive until its queue is full.
    pub(super) fn silence(self) -> u64 {
        2 * (4_096 << self.ack_timeout)
    }

    /// The same, within what the fields allow.
    pub(super) fn bounded(self) -> Patience {
        Patience {
            ack_timeout: self.ack_timeout.clamp(1, 31),
            retry_count: self.retry_count.min(6),
            rnr_timer: self.rnr_timer.clamp(1, 31),
            rnr_retry: self.rnr_retry.min(6),
        }
    }
}

/// Configuration of a node's end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VerbsConfig {
    /// Where peers connect, an address of the RDMA device's own network interface. Port 0: any.
    pub listen: SocketAddr,
    /// The device that must have that address; `None`: whichever has it.
    pub device: Option<String>,
    /// The cluster's: who does not know it is not answered.
    pub token: u64,
    /// How long queue pairs try.
    pub patience: Patience,
    /// Whether a WRITE or atomic waits for the atomics before it on its queue pair, as the
    /// specification asks of those who need them in order (table 76); `None`: unless the device's
    /// responder is known to finish each before it begins the next. For READs it always waits: one
    /// whose answer was lost is done again, and would see what was written since.
    pub fence: Option<bool>,
}

impl VerbsConfig {
    /// With what is usual for the rest.
    pub fn new(listen: SocketAddr, token: u64) -> VerbsConfig {
        VerbsConfig { listen, device: None, token, patience: Patience::EMULATED, fence: None }
    }
}
