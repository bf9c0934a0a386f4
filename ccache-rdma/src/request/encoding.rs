//! How requests and replies are written on a ring.

use super::{Dumped, MAX_WAITS, Reply, Request, check_name, check_transaction};
use crate::cache::{CacheError, Expect, MAX_OBJECTS, Transaction, Version, Write};
use crate::name::{Name, SHARDS};
use crate::set::{self, Durability};
use crate::view::{MAX_NODES, View};
use serde::{Deserialize, Serialize};

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
