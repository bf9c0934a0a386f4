//! The protocol's engine: one node's coherence, transactions and recovery, as a step function.
//!
//! [`Engine::handle`] takes an event and the time and appends actions. The shell (ccache's
//! service) carries out actions on the fabric and the rings and feeds back what happened; a
//! simulator or model checker can do the same. No clock, no I/O, no thread in here. Beside events
//! the engine reads its own arena with the CPU, and writes there what the protocol lets a CPU
//! write: published entries, copies, epochs, directories.
//!
//! What the shell owes the engine:
//! - every [`Action::Post`] ends in one [`Event::Completed`], chains to one peer in order;
//! - [`Action::Revoke`] ends in [`Event::Revoked`], after which the fabric holds to rules 33 and 34;
//! - [`Event::Tick`] at or soon after [`Engine::deadline`];
//! - [`Event::Lease`] whenever the lease is renewed; the same end of lease stands in the control
//!   region's lease word, written before the event is handled;
//! - views in the order of their epochs, each one committed by a majority.

use crate::arena::Arena;
use crate::cache::CacheError;
use crate::fabric::{FabricError, Outcome, Token, Verb};
use crate::lease::Timing;
use crate::request::{Reply, Request};
use crate::view::View;

/// Names a request; chosen by the shell, unique among those under way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub u64);

/// Names the domain that asks (its channel), for what it grabbed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientId(pub u64);

/// What this node is.
#[derive(Clone, Debug)]
pub struct Config {
    /// Slot, 0 to 15.
    pub node: u8,
    /// Start of the kernel process.
    pub incarnation: u64,
    /// Whether this slot never had a node before (rule 6).
    pub first_incarnation: bool,
    /// Lease times.
    pub timing: Timing,
    /// Memory budget for replicas, bytes.
    pub budget_bytes: u64,
    /// Slots copied per millisecond when a shard is rebuilt.
    pub rebuild_rate: u32,
}

/// What happened.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// A domain of this node asks; rights and shape are checked already. [`Request::NextEvent`]
    /// and [`Request::InstallView`] are the shell's and refused here.
    Request {
        /// Name for the reply.
        id: RequestId,
        /// Who.
        client: ClientId,
        /// What.
        request: Request,
    },
    /// A queued wait is not wanted any more; unknown ids are ignored.
    Cancel {
        /// The wait.
        id: RequestId,
    },
    /// A domain died: its grabs and waits end.
    ClientGone {
        /// Which.
        client: ClientId,
    },
    /// A posted chain ended.
    Completed {
        /// The node it went to.
        peer: u8,
        /// Its name.
        token: Token,
        /// One outcome per verb, or an error.
        result: Result<Vec<Outcome>, FabricError>,
    },
    /// A message from another node's engine.
    Message {
        /// Its slot.
        from: u8,
        /// Its bytes: checked in here.
        bytes: Vec<u8>,
    },
    /// A revoke is done.
    Revoked {
        /// The peer.
        peer: u8,
    },
    /// A view is in force.
    View(View),
    /// The lease now runs until this time, ns.
    Lease {
        /// Its end.
        until: u64,
    },
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Post this chain; `peer` may be this node itself.
    Post {
        /// To whom.
        peer: u8,
        /// Its name.
        token: Token,
        /// The verbs.
        chain: Vec<Verb>,
    },
    /// Send a message. When the peer's mailbox is full, keep it and retry in order.
    Send {
        /// To whom; never this node itself.
        peer: u8,
        /// At most [`crate::layout::control::MAX_MESSAGE`] bytes.
        bytes: Vec<u8>,
    },
    /// Answer a request. A wait is answered once with `Waited`; if that said "queued" there is
    /// one [`Action::Changed`] later.
    Reply {
        /// Which.
        id: RequestId,
        /// The answer.
        reply: Result<Reply, CacheError>,
    },
    /// A queued wait is over: something has, or may have, changed. It is forgotten.
    Changed {
        /// The wait.
        id: RequestId,
    },
    /// Revoke the peer; rule 13 and 33–34.
    Revoke {
        /// Which.
        peer: u8,
    },
    /// A member with a new incarnation: (re)connect to it, then post to it as usual.
    Connect {
        /// Slot.
        peer: u8,
    },
    /// The copier has passed: these shards are whole on `slot`. For membership.
    Rebuilt {
        /// Whose copies.
        slot: u8,
        /// Epoch of the view in which they were copied.
        epoch: u64,
        /// Shard numbers.
        shards: Vec<u16>,
    },
}

/// One node's protocol engine. See the module.
pub struct Engine {
    config: Config,
    arena: Arena,
}

impl Engine {
    /// An engine with no view yet: it refuses everything until it has one, and a lease. Stamps the
    /// arena, which must be all zeroes (a new incarnation starts empty).
    pub fn new(config: Config, arena: Arena) -> Engine {
        Engine { config, arena }
    }

    /// One step. Never blocks; appends to `actions`, in the order in which they are to be done.
    pub fn handle(&mut self, now: u64, event: Event, actions: &mut Vec<Action>) {
        let _ = (now, event, actions, &self.config, &self.arena);
    }

    /// When [`Event::Tick`] is wanted next, ns.
    pub fn deadline(&self) -> Option<u64> {
        None
    }
}
