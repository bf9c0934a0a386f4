//! What the other protection domains of a node ask its ccache over their rings, and how it is
//! written there.
//!
//! A request is a label (the kind) and bytes. Reads and writes, which are many, have an encoding
//! of their own that copies a payload once; the rest is `postcard`. Everything a ring holds is
//! hostile until [`Request::decode`] and [`Rights::check`] have passed.

use crate::cache::{
    CacheError, Expect, MAX_BYTES, MAX_OBJECTS, Transaction, Version, Waited, Write,
};
use crate::name::{Name, SHARDS, Shard};
use crate::set::{self, CLASSES, Class, Durability};
use crate::view::{MAX_NODES, Slots, Survival, View};
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

/// Labels of requests on the ring.
mod label {
    pub const GET: u32 = 1;
    pub const TRANSACT: u32 = 2;
    pub const GRAB: u32 = 3;
    pub const RELEASE: u32 = 4;
    pub const WAIT: u32 = 5;
    pub const LIST: u32 = 6;
    pub const STATUS: u32 = 7;
    pub const OBJECTS: u32 = 8;
    pub const DUMP: u32 = 9;
    pub const RESTORE: u32 = 10;
    pub const NEXT_EVENT: u32 = 11;
    pub const INSTALL_VIEW: u32 = 12;
    pub const REHOME: u32 = 13;
    pub const GET_OF: u32 = 14;
}

/// Label of a good reply; an error's is [`error_label`].
pub const OK: u32 = 0;

/// The label that carries an error.
pub const fn error_label(e: CacheError) -> u32 {
    match e {
        CacheError::Conflict => 1,
        CacheError::Denied => 2,
        CacheError::Invalid => 3,
        CacheError::NoSpace => 4,
        CacheError::Busy => 5,
        CacheError::NoQuorum => 6,
        CacheError::Unknown => 7,
        CacheError::Gone => 8,
    }
}

/// The error of a reply's label; `Ok` for [`OK`], and [`CacheError::Invalid`] for a number that is
/// none's.
pub const fn label_error(label: u32) -> Result<(), CacheError> {
    Err(match label {
        OK => return Ok(()),
        1 => CacheError::Conflict,
        2 => CacheError::Denied,
        4 => CacheError::NoSpace,
        5 => CacheError::Busy,
        6 => CacheError::NoQuorum,
        7 => CacheError::Unknown,
        8 => CacheError::Gone,
        _ => CacheError::Invalid,
    })
}

/// Reads from bytes that may be anything.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], CacheError> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(CacheError::Invalid)?;
        self.0 = rest;
        Ok(head)
    }
    fn u8(&mut self) -> Result<u8, CacheError> {
        Ok(self.take(1)?[0])
    }
    fn u32(&mut self) -> Result<u32, CacheError> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().map_err(|_| CacheError::Invalid)?))
    }
    fn u64(&mut self) -> Result<u64, CacheError> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().map_err(|_| CacheError::Invalid)?))
    }
    fn name(&mut self) -> Result<Name, CacheError> {
        let bytes = self.take(16)?.try_into().map_err(|_| CacheError::Invalid)?;
        Ok(Name(u128::from_le_bytes(bytes)))
    }
    fn end(self) -> Result<(), CacheError> {
        if self.0.is_empty() { Ok(()) } else { Err(CacheError::Invalid) }
    }
}

/// Appends a read of `name` to `out`; returns the label.
pub fn encode_get(name: Name, out: &mut Vec<u8>) -> u32 {
    out.extend_from_slice(&name.0.to_le_bytes());
    label::GET
}

/// Appends a transaction to `out`; returns the label.
pub fn encode_transaction(t: &Transaction, out: &mut Vec<u8>) -> u32 {
    // Counts are at most MAX_OBJECTS in any transaction that will be taken; a longer one is cut
    // to a count that decoding refuses.
    let count = |n: usize| u8::try_from(n).unwrap_or(u8::MAX);
    out.push(count(t.reads.len()));
    out.push(count(t.writes.len()));
    for (name, version) in &t.reads {
        out.extend_from_slice(&name.0.to_le_bytes());
        out.extend_from_slice(&version.0.to_le_bytes());
    }
    for w in &t.writes {
        out.extend_from_slice(&w.name.0.to_le_bytes());
        let (kind, version) = match w.expect {
            Expect::Any => (0u8, 0),
            Expect::Version(v) => (1, v.0),
        };
        out.push(kind | u8::from(w.data.is_some()) << 1);
        out.extend_from_slice(&version.to_le_bytes());
        if let Some(d) = &w.data {
            out.extend_from_slice(&u32::try_from(d.len()).unwrap_or(u32::MAX).to_le_bytes());
            out.extend_from_slice(d);
        }
    }
    label::TRANSACT
}

fn decode_transaction(bytes: &[u8]) -> Result<Transaction, CacheError> {
    let mut r = Reader(bytes);
    let (reads, writes) = (usize::from(r.u8()?), usize::from(r.u8()?));
    if reads + writes > MAX_OBJECTS {
        return Err(CacheError::Invalid);
    }
    let mut t = Transaction::new();
    for _ in 0..reads {
        t.reads.push((r.name()?, Version(r.u64()?)));
    }
    for _ in 0..writes {
        let (name, kind, version) = (r.name()?, r.u8()?, Version(r.u64()?));
        if kind > 3 {
            return Err(CacheError::Invalid);
        }
        let expect = if kind & 1 == 1 { Expect::Version(version) } else { Expect::Any };
        let data = match kind & 2 {
            0 => None,
            _ => {
                let len = r.u32()?;
                Some(r.take(usize::try_from(len).map_err(|_| CacheError::Invalid)?)?.to_vec())
            }
        };
        t.writes.push(Write { name, expect, data });
    }
    r.end()?;
    Ok(t)
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

fn postcard<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CacheError> {
    match postcard::take_from_bytes(bytes) {
        Ok((t, [])) => Ok(t),
        _ => Err(CacheError::Invalid),
    }
}

fn append<T: Serialize>(t: &T, out: &mut Vec<u8>) {
    // Serialising into memory fails only for types whose length is unknown; none here is.
    if let Ok(bytes) = postcard::to_stdvec(t) {
        out.extend_from_slice(&bytes);
    }
}

impl Request {
    /// Appends the request to `out`; returns its label.
    pub fn encode(&self, out: &mut Vec<u8>) -> u32 {
        match self {
            Request::Get { name } => encode_get(*name, out),
            Request::GetOf { node, name } => {
                append(&(node, name), out);
                label::GET_OF
            }
            Request::Transact(t) => encode_transaction(t, out),
            Request::Grab { name } => {
                encode_get(*name, out);
                label::GRAB
            }
            Request::Release { name } => {
                encode_get(*name, out);
                label::RELEASE
            }
            Request::Wait { on, word } => {
                append(&(word, on), out);
                label::WAIT
            }
            Request::List { set, after } => {
                append(&(set, after), out);
                label::LIST
            }
            Request::Status => label::STATUS,
            Request::Objects { set, after } => {
                append(&(set, after), out);
                label::OBJECTS
            }
            Request::Dump { everything, after } => {
                append(&(everything, after), out);
                label::DUMP
            }
            Request::Restore(objects) => {
                append(objects, out);
                label::RESTORE
            }
            Request::Rehome { to, shards } => {
                append(&(to, shards), out);
                label::REHOME
            }
            Request::NextEvent => label::NEXT_EVENT,
            Request::InstallView(view) => {
                append(view, out);
                label::INSTALL_VIEW
            }
        }
    }

    /// Reads a request; anything malformed is [`CacheError::Invalid`].
    pub fn decode(label: u32, bytes: &[u8]) -> Result<Request, CacheError> {
        let name = || -> Result<Name, CacheError> {
            let mut r = Reader(bytes);
            let name = r.name()?;
            r.end()?;
            check_name(name)?;
            Ok(name)
        };
        Ok(match label {
            label::GET => Request::Get { name: name()? },
            label::TRANSACT => {
                let t = decode_transaction(bytes)?;
                check_transaction(&t)?;
                Request::Transact(t)
            }
            label::GRAB => Request::Grab { name: name()? },
            label::RELEASE => Request::Release { name: name()? },
            label::GET_OF => {
                let (node, name): (u8, Name) = postcard(bytes)?;
                let volatile = check_name(name)?.durability == Durability::Volatile;
                if usize::from(node) >= MAX_NODES || !volatile {
                    return Err(CacheError::Invalid);
                }
                Request::GetOf { node, name }
            }
            label::WAIT => {
                let (word, on): (u32, Vec<(Name, Version)>) = postcard(bytes)?;
                if on.is_empty() || on.len() > MAX_WAITS {
                    return Err(CacheError::Invalid);
                }
                for (n, _) in &on {
                    if !check_name(*n)?.waitable {
                        return Err(CacheError::Invalid);
                    }
                }
                Request::Wait { on, word }
            }
            label::LIST => {
                let (set, after) = postcard(bytes)?;
                set::descriptor(set).ok_or(CacheError::Invalid)?;
                Request::List { set, after }
            }
            label::STATUS => Request::Status,
            label::OBJECTS => {
                let (set, after) = postcard(bytes)?;
                Request::Objects { set, after }
            }
            label::DUMP => {
                let (everything, after) = postcard(bytes)?;
                Request::Dump { everything, after }
            }
            label::RESTORE => {
                let objects: Vec<Dumped> = postcard(bytes)?;
                for o in &objects {
                    let d = check_name(o.name)?;
                    if o.data.is_empty() || o.data.len() > d.capacity as usize {
                        return Err(CacheError::Invalid);
                    }
                }
                Request::Restore(objects)
            }
            label::REHOME => {
                let (to, shards): (u8, Vec<u16>) = postcard(bytes)?;
                let known = |s: &u16| *s < SHARDS;
                if usize::from(to) >= MAX_NODES
                    || shards.is_empty()
                    || shards.len() > usize::from(SHARDS)
                    || !shards.iter().all(known)
                {
                    return Err(CacheError::Invalid);
                }
                Request::Rehome { to, shards }
            }
            label::NEXT_EVENT => Request::NextEvent,
            label::INSTALL_VIEW => {
                let view: View = postcard(bytes)?;
                if !view.well_formed() {
                    return Err(CacheError::Invalid);
                }
                Request::InstallView(view)
            }
            _ => return Err(CacheError::Invalid),
        })
    }

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
            // Which nodes there are is nothing that whoever reads the nodes' own records may not know.
            Request::Status => may(Rights::MEMBER)
                .or_else(|_| may(Rights::CONTROL))
                .or_else(|_| may(Rights::read(Class::System))),
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

const REPLY_WAITED_QUEUED: u8 = 0;
const REPLY_WAITED_CHANGED: u8 = 1;

impl Reply {
    /// Appends the reply to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Reply::Object(version, data) => {
                out.extend_from_slice(&version.0.to_le_bytes());
                out.extend_from_slice(data);
            }
            Reply::Done => {}
            Reply::Waited(w) => out.push(match w {
                None => REPLY_WAITED_QUEUED,
                Some(_) => REPLY_WAITED_CHANGED,
            }),
            Reply::Names(names) => append(names, out),
            Reply::Status(s) => append(s, out),
            Reply::Objects(o) => append(o, out),
            Reply::Dumped(d) => append(d, out),
            Reply::Event(e) => append(e, out),
            Reply::Rehoming { lacking, moving } => append(&(lacking, moving), out),
        }
    }

    /// The version in an object's reply; its payload is what follows the first eight bytes.
    pub fn object_version(bytes: &[u8]) -> Result<Version, CacheError> {
        Reader(bytes).u64().map(Version)
    }

    /// Whether a wait's reply says that the caller is queued.
    pub fn wait_queued(bytes: &[u8]) -> bool {
        bytes == [REPLY_WAITED_QUEUED]
    }

    /// Reads a postcard reply.
    pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CacheError> {
        postcard(bytes)
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
        for enough in [Rights::MEMBER, Rights::CONTROL, Rights::read(Class::System)] {
            assert_eq!(Request::Status.check(enough), Ok(()));
        }
        assert_eq!(Request::Status.check(Rights::full(Class::Vfs)), Err(CacheError::Denied));
    }
}
