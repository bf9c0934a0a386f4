//! What the kernel orders the host to do.

use crate::event::{MESSAGE_CAPS, Message};
use crate::id::{ChannelId, EndpointId, PdId, RegionId, StubId};
use clustix_abi::error::NO_ERROR;
use clustix_abi::{Badge, CPtr, Error, MessageInfo};

/// Whom an answer goes to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Request {
    /// The PD that asked.
    pub pd: PdId,
    /// Its request.
    pub request: u64,
}

/// What a request ended with: the answer to an invocation, or a received message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Delivery {
    /// Badge of the capability the message was sent through, or the signals of a notification; 0
    /// for the answer to a call, and for "nothing there" of a call that does not wait.
    pub badge: Badge,
    /// The message. `info.extra_caps()` counts the capabilities that arrived, unwrapped or not.
    pub message: Message,
    /// For each capability that arrived: its badge if it was unwrapped, else the slot it is in now.
    pub caps: [u64; MESSAGE_CAPS],
}

impl Delivery {
    /// The answer to an invocation that went well: label 0 and these words.
    pub fn of(words: &[u64]) -> Self {
        let mut message = Message::default();
        let length = words.len().min(message.words.len());
        message.info = MessageInfo::new(NO_ERROR, 0, 0, length);
        message.words.iter_mut().zip(words).for_each(|(to, from)| *to = *from);
        Delivery { message, ..Delivery::default() }
    }
}

/// One step's output, to be carried out in order.
///
/// A `Request` in an action other than [`Action::Answer`] is one that the host answers itself once it
/// has done what is ordered (with what is said there), or with [`Error::HostFailure`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Tell a PD how its request ended. Every request ends with one answer, this or the host's own.
    Answer {
        /// Which request.
        to: Request,
        /// How it ended.
        result: Result<Delivery, Error>,
    },
    /// Start the PD's process. Everything it holds has been ordered before
    /// ([`Action::ChannelOpen`], [`Action::RegionMap`] without request), for its boot message.
    PdStart {
        /// Which PD.
        pd: PdId,
        /// Which start; counted from 1.
        incarnation: u32,
    },
    /// Kill the PD's process. Its end is told by [`crate::Event::PdDied`].
    PdKill {
        /// Which PD.
        pd: PdId,
        /// Which start.
        incarnation: u32,
    },
    /// Make a channel. If one of the two PDs does not run yet, hand it over with its boot message.
    ChannelOpen {
        /// The channel.
        channel: ChannelId,
        /// Who calls.
        client: PdId,
        /// Who serves.
        server: PdId,
        /// The server's endpoint.
        endpoint: EndpointId,
        /// What the server sees as the client's badge.
        badge: Badge,
    },
    /// Mark a channel dead: calls under way end with "gone", no further ones are served.
    ChannelRevoke {
        /// The channel.
        channel: ChannelId,
    },
    /// Start a stub; answer with its number, the slot and the host pid, and the window.
    StubSpawn {
        /// The new stub.
        stub: StubId,
        /// Slot of its capability.
        slot: CPtr,
        /// Who asked, and owns it.
        to: Request,
    },
    /// Prepare the copy of a stub by fork; answer as for [`Action::StubSpawn`].
    StubFork {
        /// The new stub.
        stub: StubId,
        /// The stub it is copied from.
        parent: StubId,
        /// Slot of its capability.
        slot: CPtr,
        /// Who asked, and owns it.
        to: Request,
    },
    /// Kill a stub's process. Its end is told by [`crate::Event::StubDied`].
    StubKill {
        /// Which stub.
        stub: StubId,
    },
    /// The stub object is gone: kill what still runs, free what the host keeps for it.
    StubDestroy {
        /// Which stub.
        stub: StubId,
    },
    /// Send a stub the preemption signal.
    StubPreempt {
        /// Which stub.
        stub: StubId,
    },
    /// Make a memory region; answer with its number and slot, and the memory.
    RegionCreate {
        /// The new region.
        region: RegionId,
        /// Its length in bytes.
        length: u64,
        /// Slot of its capability.
        slot: CPtr,
        /// Who asked, and owns it.
        to: Request,
    },
    /// Seal a region; answer with nothing, or with the error.
    RegionSeal {
        /// Which region.
        region: RegionId,
        /// Who asked.
        to: Request,
    },
    /// Send a sealed region's memory to a stub; answer with nothing, or with the error.
    RegionSend {
        /// Which region.
        region: RegionId,
        /// To which stub.
        stub: StubId,
        /// Who asked.
        to: Request,
    },
    /// Hand a PD a region's memory: with the answer if it asked, else with its boot message.
    RegionMap {
        /// Which region.
        region: RegionId,
        /// Which PD.
        pd: PdId,
        /// Whether it may write.
        writable: bool,
        /// Who asked, if anyone did.
        to: Option<Request>,
    },
    /// The region object is gone: free what the host keeps for it.
    RegionDestroy {
        /// Which region.
        region: RegionId,
    },
    /// Answer with every PD's counters.
    MetricsRead {
        /// Who asked.
        to: Request,
    },
    /// Answer with every PD's state.
    MetricsPds {
        /// Who asked.
        to: Request,
    },
}
