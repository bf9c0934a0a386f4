//! A capability: an object, what the holder may do with it, and its badge or guard.

use crate::id::{EndpointId, NotificationId, PdId, RegionId, ReplyId, StubId};
use clustix_abi::{Badge, GuardData, Rights};

/// What a capability names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Object {
    /// The object budget of a PD.
    Untyped(PdId),
    /// A CNode, by its number.
    CNode(u16),
    /// An endpoint.
    Endpoint(EndpointId),
    /// A notification.
    Notification(NotificationId),
    /// A reply object.
    Reply(ReplyId),
    /// A protection domain.
    Pd(PdId),
    /// The right to make stubs, charged to the PD that invokes it.
    StubPool,
    /// A stub.
    Stub(StubId),
    /// The right to make regions, charged to the PD that invokes it.
    RegionPool,
    /// A memory region.
    Region(RegionId),
    /// The node's metrics.
    Metrics,
}

/// A capability as it stands in a slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Cap {
    /// The object.
    pub object: Object,
    /// What the holder may do. CNode, Untyped and reply capabilities have all rights, always.
    pub rights: Rights,
    /// Endpoint and notification: badge. CNode: guard ([`GuardData::word`]). Others: 0.
    pub data: u64,
}

impl Cap {
    /// The badge, 0 for objects that have none.
    pub const fn badge(&self) -> Badge {
        match self.object {
            Object::Endpoint(_) | Object::Notification(_) => self.data,
            _ => 0,
        }
    }

    /// A CNode capability's guard.
    pub const fn guard(&self) -> GuardData {
        GuardData { bits: self.data >> 6, size: (self.data & 63) as u8 }
    }
}
