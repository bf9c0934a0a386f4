//! What the other protection domains of a node ask its ccache over their rings, and how it is
//! written there.
//!
//! A request is a label (the kind) and bytes. Reads and writes, which are many, have an encoding
//! of their own that copies a payload once; the rest is `postcard`. Everything a ring holds is
//! hostile until [`Request::decode`] and [`Rights::check`] have passed.

mod encoding;

pub use encoding::{OK, encode_get, encode_transaction, error_label, label_error};

use crate::cache::{CacheError, MAX_BYTES, MAX_OBJECTS, Transaction, Version, Waited};
use crate::name::{Name, SHARDS, Shard};
use crate::set::{self, CLASSES, Class, Durability};
use crate::view::{Slots, Survival, View};
use serde::{Deserialize, Serialize};

/// Most objects that one wait may name.
pub const MAX_WAITS: usize = 8;
/// Most names that one page of a listing holds.
pub const PAGE: usize = 256;
/// Most payload bytes in one page of a dump, or one restore.
pub const DUMP_BYTES: usize = 128 * 1024;

/// What a channel's badge allows. Bits 0–4: reading each class; 8–12: writing; 16: control; 17:
/// membership.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rights(pub u64);

impl Rights {
    /// Dump, restore, list every object, status.
    pub const CONTROL: Rights = Rights(1 << 16);
    /// Next event, install view.
    pub const MEMBER: Rights = Rights(1 << 17);
    /// Reading one class.
    pub const fn read(class: Class) -> Rights {
        Rights(1 << class as u8)
    }
    /// Writing one class (reading it has its own bit).
    pub const fn write(class: Class) -> Rights {
        Rights(1 << (8 + class as u8))
    }
    /// Reading and writing one class.
    pub const fn full(class: Class) -> Rights {
        Rights::read(class).and(Rights::write(class))
    }
    /// Both together.
    pub const fn and(self, other: Rights) -> Rights {
        Rights(self.0 | other.0)
    }
    /// Whether all of `other` is allowed.
    pub const fn allows(self, other: Rights) -> bool {
        self.0 & other.0 == other.0
    }
}

/// One object of a dump or restore.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Dumped {
    /// Which.
    pub name: Name,
    /// Its version when it was read (a restore takes it as it is and gives a new one).
    pub version: Version,
    /// Its payload.
    pub data: Vec<u8>,
}

/// One object, as `clustix objects` shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ObjectInfo {
    /// Which.
    pub name: Name,
    /// Version.
    pub version: Version,
    /// Payload bytes.
    pub len: u32,
    /// Node that owns it now.
    pub holder: Option<u8>,
    /// Nodes with a registered shared copy.
    pub sharers: Slots,
    /// Nodes with a complete copy, the primary first.
    pub replicas: Vec<u8>,
}

/// What the cluster-cache of one node knows of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NodeStatus {
    /// This node's slot.
    pub node: u8,
    /// This start of it.
    pub incarnation: u64,
    /// Epoch of the view in force; 0 before the first.
    pub epoch: u64,
    /// Its members: slot and incarnation.
    pub members: Vec<(u8, u64)>,
    /// Whether this node's lease is valid.
    pub lease: bool,
    /// Whether the view in force has been recovered to (no shard waits for a takeover).
    pub settled: bool,
    /// Whether a node can be lost.
    pub survival: Survival,
    /// Objects whose primary is here.
    pub objects: u64,
    /// Bytes of payload slots in use here, replicas included.
    pub used_bytes: u64,
    /// What the node may use.
    pub budget_bytes: u64,
    /// How many shards each member is primary of, in the members' order.
    pub primaries: Vec<u32>,
    /// The witness's incarnation, while one is there.
    pub witness: Option<u64>,
}

/// What membership hears from its ccache.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MemberEvent {
    /// No heartbeat of that node's incarnation for longer than a lease.
    Suspect {
        /// Slot.
        slot: u8,
        /// Incarnation.
        incarnation: u64,
    },
    /// It beats again.
    Trust {
        /// Slot.
        slot: u8,
        /// Incarnation.
        incarnation: u64,
    },
    /// These shards have been copied to that node in full, in the view with that epoch.
    Rebuilt {
        /// Slot of the node that holds the new copies.
        slot: u8,
        /// Epoch in which they were copied.
        epoch: u64,
        /// Shard numbers.
        shards: Vec<u16>,
    },
    /// That incarnation's process has ended, for certain.
    Ended {
        /// Slot.
        slot: u8,
        /// Incarnation.
        incarnation: u64,
    },
    /// This node has revoked all whom the view of that epoch leaves out.
    Revoked {
        /// The epoch.
        epoch: u64,
    },
    /// This node's own lease has run out.
    LeaseLost,
    /// Somebody asks that a complete copy of shards be their primary.
    Rehome {
        /// Epoch of the view that this was checked against.
        epoch: u64,
        /// Slot that holds the copies.
        to: u8,
        /// Shard numbers.
        shards: Vec<u16>,
    },
}

/// A request.
#[derive(Clone, PartialEq, Debug)]
pub enum Request {
    /// Read one object.
    Get {
        /// Which.
        name: Name,
    },
    /// Read a volatile object of a node: what that node's slab holds of it now; absent if the node is no
    /// member.
    GetOf {
        /// The node's slot.
        node: u8,
        /// Which.
        name: Name,
    },
    /// Read and write several as one.
    Transact(Transaction),
    /// Own one for a bounded time, and read it.
    Grab {
        /// Which.
        name: Name,
    },
    /// Stop owning it.
    Release {
        /// Which.
        name: Name,
    },
    /// Signal the caller's wait word when one of the objects has, or may have, another version.
    /// Answered at once; `Changed` means that there is nothing to sleep for.
    Wait {
        /// At most [`MAX_WAITS`], of waitable sets.
        on: Vec<(Name, Version)>,
        /// Index of the caller's wait word.
        word: u32,
    },
    /// Names and versions of a set's objects whose primary is this node.
    List {
        /// The set.
        set: u16,
        /// The last name of the page before.
        after: Option<Name>,
    },
    /// What this node's cluster-cache knows of itself.
    Status,
    /// All objects whose primary is this node.
    Objects {
        /// Only this set.
        set: Option<u16>,
        /// The last name of the page before.
        after: Option<Name>,
    },
    /// Objects, with their payloads, whose primary is this node.
    Dump {
        /// All sets, this node's volatile ones too; else those that outlive programs.
        everything: bool,
        /// The last name of the page before.
        after: Option<Name>,
    },
    /// Creates objects from a dump; those that exist already are left alone. None may be volatile: the
    /// slab's writer creates those.
    Restore(Vec<Dumped>),
    /// Make a node the primary of shards, by a view. It is asked for, not awaited: status says when
    /// the primaries are there, and an answer or a view may be lost with a node.
    Rehome {
        /// The node's slot.
        to: u8,
        /// Shard numbers.
        shards: Vec<u16>,
    },
    /// The next event for membership; answered when there is one.
    NextEvent,
    /// A view that a majority has committed.
    InstallView(View),
}

/// An answer.
#[derive(Clone, PartialEq, Debug)]
pub enum Reply {
    /// An object; [`Version::ABSENT`] and no bytes if there is none.
    Object(Version, Vec<u8>),
    /// It is done.
    Done,
    /// To a wait: the objects differ already, or the caller is queued.
    Waited(Option<Waited>),
    /// A page of names; empty after the last.
    Names(Vec<(Name, Version)>),
    /// Status.
    Status(Box<NodeStatus>),
    /// A page of objects; empty after the last.
    Objects(Vec<ObjectInfo>),
    /// A page of a dump; empty after the last.
    Dumped(Vec<Dumped>),
    /// An event for membership.
    Event(MemberEvent),
    /// To a rehome: the shards of which the node has no complete copy. If there are any, nothing is
    /// done; else `moving` says how many have another primary as yet.
    Rehoming {
        /// Shard numbers.
        lacking: Vec<u16>,
        /// How many shards.
        moving: u32,
    },
}

/// Checks what any transaction must be: sizes, sets, shards; no object written twice; a volatile
/// one alone.
pub fn check_transaction(t: &Transaction) -> Result<(), CacheError> {
    let bytes: usize = t.writes.iter().filter_map(|w| w.data.as_ref()).map(Vec::len).sum();
    if t.reads.len() + t.writes.len() > MAX_OBJECTS || bytes > MAX_BYTES {
        return Err(CacheError::Invalid);
    }
    for (name, _) in &t.reads {
        check_name(*name)?;
    }
    for (i, w) in t.writes.iter().enumerate() {
        let d = check_name(w.name)?;
        let len = w.data.as_ref().map(Vec::len);
        let twice = t.writes[..i].iter().any(|x| x.name == w.name);
        let volatile = d.durability == Durability::Volatile && t.writes.len() > 1;
        if twice || volatile || len.is_some_and(|l| l == 0 || l > d.capacity as usize) {
            return Err(CacheError::Invalid);
        }
    }
    Ok(())
}

/// The descriptor of a name's set, if the name is one at all.
pub fn check_name(name: Name) -> Result<&'static set::SetDescriptor, CacheError> {
    let d = set::descriptor(name.set()).ok_or(CacheError::Invalid)?;
    if name.shard().0 >= SHARDS { Err(CacheError::Invalid) } else { Ok(d) }
}

impl Request {
    /// Whether a channel with these rights may ask this.
    pub fn check(&self, rights: Rights) -> Result<(), CacheError> {
        let class = |n: Name| -> Result<Class, CacheError> { check_name(n).map(|d| d.class) };
        let may = |wanted: Rights| {
            if rights.allows(wanted) { Ok(()) } else { Err(CacheError::Denied) }
        };
        match self {
            Request::Get { name } | Request::GetOf { name, .. } => may(Rights::read(class(*name)?)),
            Request::Transact(t) => {
                for (n, _) in &t.reads {
                    may(Rights::read(class(*n)?))?;
                }
                for w in &t.writes {
                    may(Rights::write(class(w.name)?))?;
                }
                Ok(())
            }
            Request::Grab { name } | Request::Release { name } => may(Rights::full(class(*name)?)),
            Request::Wait { on, .. } => {
                on.iter().try_for_each(|(n, _)| may(Rights::read(class(*n)?)))
            }
            Request::List { set, .. } => {
                let d = set::descriptor(*set).ok_or(CacheError::Invalid)?;
                may(Rights::read(d.class)).or_else(|_| may(Rights::CONTROL))
            }
            // Which nodes there are is no secret, and whoever keeps objects must know whose are left over.
            Request::Status => may(Rights::MEMBER)
                .or_else(|_| may(Rights::CONTROL))
                .or_else(|e| if readable(rights).next().is_some() { Ok(()) } else { Err(e) }),
            Request::Objects { .. }
            | Request::Dump { .. }
            | Request::Restore(_)
            | Request::Rehome { .. } => may(Rights::CONTROL),
            Request::NextEvent | Request::InstallView(_) => may(Rights::MEMBER),
        }
    }

    /// Whether asking again after an unknown outcome is harmless.
    pub const fn idempotent(&self) -> bool {
        !matches!(self, Request::Transact(_))
    }
}

/// Bits of the classes that `rights` may read, as numbers of [`Class`].
pub fn readable(rights: Rights) -> impl Iterator<Item = Class> {
    Class::ALL.into_iter().filter(move |c| rights.allows(Rights::read(*c)))
}

/// Shards as they travel in events.
pub fn shards(numbers: &[u16]) -> Vec<Shard> {
    numbers.iter().filter(|n| **n < SHARDS).map(|n| Shard(*n)).collect()
}

const _: () = assert!(CLASSES <= 8, "rights have eight bits per kind");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Expect, Write};
    use proptest::prelude::*;

    fn name() -> impl Strategy<Value = Name> {
        let sets = set::SETS.iter().map(|d| d.id).collect::<Vec<_>>();
        (proptest::sample::select(sets), 0..SHARDS, any::<u64>())
            .prop_map(|(set, shard, id)| Name::new(set, Shard(shard), id.into()))
    }

    fn write() -> impl Strategy<Value = Write> {
        let expect =
            prop_oneof![Just(Expect::Any), any::<u64>().prop_map(|v| Expect::Version(Version(v)))];
        let data = proptest::option::of(proptest::collection::vec(any::<u8>(), 1..200));
        (name(), expect, data).prop_map(|(name, expect, data)| Write { name, expect, data })
    }

    fn request() -> impl Strategy<Value = Request> {
        let versions = proptest::collection::vec((name(), any::<u64>().prop_map(Version)), 0..4);
        let after = || proptest::option::of(name());
        prop_oneof![
            name().prop_map(|name| Request::Get { name }),
            name().prop_map(|name| Request::Grab { name }),
            (0..16u8, any::<u64>()).prop_map(|(node, n)| Request::GetOf {
                node,
                name: Name::numbered(set::FDTABLE, n)
            }),
            name().prop_map(|name| Request::Release { name }),
            (versions, proptest::collection::vec(write(), 0..6))
                .prop_map(|(reads, writes)| Request::Transact(Transaction { reads, writes })),
            (any::<u64>(), any::<u32>()).prop_map(|(v, word)| Request::Wait {
                on: vec![(Name::numbered(set::PIPE, v), Version(v))],
                word
            }),
            after().prop_map(|after| Request::List { set: set::INODE, after }),
            after().prop_map(|after| Request::Objects { set: None, after }),
            (any::<bool>(), after())
                .prop_map(|(everything, after)| Request::Dump { everything, after }),
            (0..16u8, 0..SHARDS)
                .prop_map(|(to, s)| Request::Rehome { to, shards: (s..SHARDS).collect() }),
            Just(Request::Status),
            Just(Request::NextEvent),
        ]
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(r in request()) {
            let mut bytes = Vec::new();
            let label = r.encode(&mut bytes);
            match Request::decode(label, &bytes) {
                Ok(back) => prop_assert_eq!(back, r),
                // The only ones that may be refused are transactions that no cache takes.
                Err(e) => {
                    prop_assert_eq!(e, CacheError::Invalid);
                    let Request::Transact(t) = r else { panic!("{r:?}") };
                    prop_assert!(check_transaction(&t).is_err());
                }
            }
        }

        #[test]
        fn noise_is_refused_or_is_a_checked_request(
            label in 0..20u32,
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            if let Ok(r) = Request::decode(label, &bytes) {
                let _ = r.check(Rights::default());
                if let Request::Transact(t) = &r {
                    prop_assert_eq!(check_transaction(t), Ok(()));
                }
            }
        }

        #[test]
        fn a_byte_changed_or_missing_never_breaks_the_reader(
            r in request(),
            at in any::<proptest::sample::Index>(),
            with in any::<u8>(),
        ) {
            let mut bytes = Vec::new();
            let label = r.encode(&mut bytes);
            if bytes.is_empty() { return Ok(()) }
            let at = at.index(bytes.len());
            bytes[at] = with;
            let _ = Request::decode(label, &bytes);
            let _ = Request::decode(label, &bytes[..at]);
        }

        #[test]
        fn only_the_rights_it_needs_let_a_request_through(w in write()) {
            let class = check_name(w.name).unwrap().class;
            let r = Request::Transact(Transaction { reads: vec![], writes: vec![w] });
            prop_assert_eq!(r.check(Rights::write(class)), Ok(()));
            let others = Rights(!Rights::write(class).0);
            prop_assert_eq!(r.check(others), Err(CacheError::Denied));
        }
    }

    #[test]
    fn control_and_membership_are_rights_of_their_own() {
        let all_classes =
            Class::ALL.into_iter().fold(Rights::default(), |r, c| r.and(Rights::full(c)));
        for r in [Request::NextEvent, Request::InstallView(View::default())] {
            assert_eq!(r.check(all_classes.and(Rights::CONTROL)), Err(CacheError::Denied));
            assert_eq!(r.check(Rights::MEMBER), Ok(()));
        }
        for r in [
            Request::Restore(vec![]),
            Request::Dump { everything: false, after: None },
            Request::Objects { set: None, after: None },
            Request::Rehome { to: 0, shards: vec![0] },
        ] {
            assert_eq!(r.check(all_classes.and(Rights::MEMBER)), Err(CacheError::Denied));
            assert_eq!(r.check(Rights::CONTROL), Ok(()));
        }
        for enough in [Rights::MEMBER, Rights::CONTROL, Rights::read(Class::Vfs)] {
            assert_eq!(Request::Status.check(enough), Ok(()));
        }
        assert_eq!(Request::Status.check(Rights::default()), Err(CacheError::Denied));
    }
}
