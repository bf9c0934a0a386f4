//! Numbers of kernel objects. An object that is made at run time has a generation in its number, so
//! that a late word about a destroyed object is never taken for one about its successor.

/// A protection domain: its place in the order of declaration. The same over restarts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PdId(pub u16);

macro_rules! generational {
    ($($(#[$m:meta])* $name:ident,)*) => { $(
        $(#[$m])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(pub u32);
        impl crate::table::Key for $name {
            fn from_raw(raw: u32) -> Self { $name(raw) }
            fn raw(self) -> u32 { self.0 }
        }
    )* };
}

generational! {
    /// An endpoint.
    EndpointId,
    /// A notification.
    NotificationId,
    /// A reply object.
    ReplyId,
    /// A memory region.
    RegionId,
    /// A stub process.
    StubId,
}

/// A fast-path channel. Never used again after its end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ChannelId(pub u64);
