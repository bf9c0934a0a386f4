//! The cluster-cache as the other protection domains of a node use it: [`CacheClient`].
//!
//! A hit is made in the caller's own address space, from the entries that ccache publishes in
//! read-only memory; volatile objects are read and written in the node's slab; everything else is
//! a request on the ring to ccache.

use crate::arena::published;
use crate::cache::{Cache, CacheError, Transaction, Version, Waited};
use crate::layout::control;
use crate::name::{Name, SHARDS, Shard};
use crate::request::{
    Dumped, MAX_WAITS, MemberEvent, NodeStatus, ObjectInfo, Reply, Request, check_name,
    check_transaction, encode_get, encode_transaction, label_error,
};
use crate::set::{self, CLASSES, Class, Durability};
use crate::slab::Slab;
use crate::view::View;
use clustix_pd::{Boot, BootError, CallError, Client, Region};
use clustix_pd::{exec, fault};
use serde::Deserialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How long a request is tried again while the cluster takes over from a dead node.
pub const PATIENCE_NS: u64 = 10_000_000_000;
/// A sleeper asks again this often, in case that a wake-up was lost.
const RECHECK_NS: u64 = 1_000_000_000;
/// First and longest pause between two tries.
const PAUSE_NS: u64 = 500_000;
const LONGEST_PAUSE_NS: u64 = 20_000_000;

/// One protection domain's way to its node's cluster-cache. Clones share it.
#[derive(Clone)]
pub struct CacheClient(Arc<Inner>);

struct Inner {
    ring: Client,
    node: u8,
    control: Option<Region>,
    classes: [Option<Region>; CLASSES],
    slab: Option<Slab>,
    next_shard: AtomicUsize,
}

impl From<CallError> for CacheError {
    fn from(e: CallError) -> CacheError {
        match e {
            CallError::Gone => CacheError::Gone,
            CallError::Busy => CacheError::Busy,
            CallError::Revoked => CacheError::Denied,
            CallError::TooLarge | CallError::Malformed => CacheError::Invalid,
        }
    }
}

/// Whether an error of one try may be answered by another, and how often.
struct Patience {
    /// From the first error on, ns.
    until: Option<u64>,
    pause: u64,
}

impl Patience {
    fn new() -> Patience {
        Patience { until: None, pause: PAUSE_NS }
    }

    /// Waits before the next try; the error itself once there should be none. `idempotent`: asking
    /// again after an unknown outcome is harmless.
    async fn again(&mut self, e: CacheError, idempotent: bool) -> Result<(), CacheError> {
        let e = match e {
            // Nothing was done.
            CacheError::NoQuorum | CacheError::Busy => e,
            CacheError::Gone | CacheError::Unknown if idempotent => e,
            CacheError::Gone => return Err(CacheError::Unknown),
            _ => return Err(e),
        };
        let now = exec::now_ns();
        let until = *self.until.get_or_insert(now + PATIENCE_NS);
        if now >= until {
            return Err(e);
        }
        exec::sleep_until(until.min(now + self.pause)).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE_NS);
        Ok(())
    }
}

impl CacheClient {
    /// From what this domain was given at its start: the channel `ccache`, and of the regions
    /// `arena-control`, `arena-<class>` and `slab` those that it has.
    pub fn new(boot: &Boot) -> Result<CacheClient, BootError> {
        let ring = boot.channel("ccache")?;
        let control = boot.region("arena-control").ok();
        let classes = Class::ALL.map(|c| boot.region(&format!("arena-{}", c.name())).ok());
        let slab = boot.region("slab").ok().and_then(|r| Slab::new(r).ok());
        if let Some(slab) = slab.as_ref().filter(|s| s.writable()) {
            slab.recover();
        }
        Ok(CacheClient::from_parts(ring, boot.node, control, classes, slab))
    }

    /// From its parts: the ring to ccache, this node's slot, and the regions there are.
    pub fn from_parts(
        ring: Client,
        node: u8,
        control: Option<Region>,
        classes: [Option<Region>; CLASSES],
        slab: Option<Slab>,
    ) -> CacheClient {
        CacheClient(Arc::new(Inner {
            ring,
            node,
            control,
            classes,
            slab,
            next_shard: AtomicUsize::new(0),
        }))
    }

    /// One try: the reply's bytes are left in `reply`.
    async fn once(
        &self,
        label: u32,
        request: &[u8],
        reply: &mut Vec<u8>,
    ) -> Result<(), CacheError> {
        label_error(self.0.ring.call(label, request, reply).await?)
    }

    /// Tries until it is answered or patience ends.
    async fn ask(
        &self,
        label: u32,
        request: &[u8],
        idempotent: bool,
        reply: &mut Vec<u8>,
    ) -> Result<(), CacheError> {
        let mut patience = Patience::new();
        loop {
            match self.once(label, request, reply).await {
                Ok(()) => return Ok(()),
                Err(e) => patience.again(e, idempotent).await?,
            }
        }
    }

    /// Asks for something with a `postcard` reply.
    async fn request<T: for<'a> Deserialize<'a>>(&self, r: &Request) -> Result<T, CacheError> {
        let (mut bytes, mut reply) = (Vec::new(), Vec::new());
        let label = r.encode(&mut bytes);
        self.ask(label, &bytes, r.idempotent(), &mut reply).await?;
        Reply::decode(&reply)
    }

    /// Asks for something with no reply but that it is done.
    async fn order(&self, r: &Request) -> Result<(), CacheError> {
        let (mut bytes, mut reply) = (Vec::new(), Vec::new());
        let label = r.encode(&mut bytes);
        self.ask(label, &bytes, r.idempotent(), &mut reply).await
    }

    /// Leaves the object of a get's or grab's reply in `out`.
    fn object(out: &mut Vec<u8>) -> Result<Version, CacheError> {
        let version = Reply::object_version(out)?;
        out.drain(..8);
        Ok(version)
    }

    /// A hit in this address space: no IPC, no system call but the clock's.
    fn hit(&self, name: Name, out: &mut Vec<u8>) -> Option<Version> {
        let class = set::descriptor(name.set())?.class;
        let region = self.0.classes[class as usize].as_ref()?;
        published::lookup(name, region, self.0.control.as_ref()?, exec::now_ns, out)
    }

    /// The primary of a shard, from the table that ccache publishes.
    fn primary(&self, shard: Shard) -> Option<u8> {
        let at = control::primary(shard) as usize / 8;
        let word = self.0.control.as_ref()?.words().get(at)?.load(Ordering::Acquire);
        u8::try_from(word.checked_sub(1)?).ok()
    }

    fn volatile(&self, name: Name) -> Result<Option<&Slab>, CacheError> {
        let d = check_name(name)?;
        Ok(self.0.slab.as_ref().filter(|_| d.durability == Durability::Volatile))
    }

    /// A read of an object whose version is all that is wanted.
    async fn version(&self, name: Name) -> Result<Version, CacheError> {
        self.get(name, &mut Vec::new()).await
    }

    /// Bells rung on the ring to ccache since it was made, by all of this domain.
    pub fn wakeups(&self) -> u64 {
        self.0.ring.wakeups()
    }

    /// Reads a volatile object of a node: what that node's slab holds of it at some moment between the call and
    /// its end. Absent also if the node is no member: it was lost with it. Costs a message there and back.
    pub async fn get_of(
        &self,
        node: u8,
        name: Name,
        out: &mut Vec<u8>,
    ) -> Result<Version, CacheError> {
        let mut request = Vec::new();
        let label = Request::GetOf { node, name }.encode(&mut request);
        self.ask(label, &request, true, out).await?;
        Self::object(out)
    }

    /// What ccache knows of itself. For control and membership.
    pub async fn status(&self) -> Result<NodeStatus, CacheError> {
        self.request(&Request::Status).await
    }

    /// One page of the objects whose primary is this node; an empty one ends. For control.
    pub async fn objects(
        &self,
        set: Option<u16>,
        after: Option<Name>,
    ) -> Result<Vec<ObjectInfo>, CacheError> {
        self.request(&Request::Objects { set, after }).await
    }

    /// One page of a dump of the objects whose primary is this node: those of the sets that
    /// outlive programs, or `everything`, this node's volatile objects included. For control.
    pub async fn dump(
        &self,
        everything: bool,
        after: Option<Name>,
    ) -> Result<Vec<Dumped>, CacheError> {
        self.request(&Request::Dump { everything, after }).await
    }

    /// Creates objects from a dump, at most [`DUMP_BYTES`] of them; those that exist are left
    /// alone. For control. `Denied` if a volatile one is among them: ccache does not write the slab,
    /// so these are for the domain that does to put back, as it would any of its own.
    ///
    /// [`DUMP_BYTES`]: crate::request::DUMP_BYTES
    pub async fn restore(&self, objects: Vec<Dumped>) -> Result<(), CacheError> {
        self.order(&Request::Restore(objects)).await
    }

    /// Asks that `to` become the primary of shards. Answers the shards of which it has no complete
    /// copy; if there are none, how many have another primary as yet. It is to be asked again until
    /// none has. For control.
    pub async fn rehome(&self, to: u8, shards: Vec<u16>) -> Result<(Vec<u16>, u32), CacheError> {
        self.request(&Request::Rehome { to, shards }).await
    }

    /// The next event for membership; waits for it.
    pub async fn next_event(&self) -> Result<MemberEvent, CacheError> {
        self.request(&Request::NextEvent).await
    }

    /// Puts a committed view in force here. For membership.
    pub async fn install_view(&self, view: View) -> Result<(), CacheError> {
        self.order(&Request::InstallView(view)).await
    }
}

impl Cache for CacheClient {
    async fn get(&self, name: Name, out: &mut Vec<u8>) -> Result<Version, CacheError> {
        if let Some(slab) = self.volatile(name)? {
            return slab.get(name, out);
        }
        if let Some(version) = self.hit(name, out) {
            return Ok(version);
        }
        let mut request = Vec::with_capacity(16);
        let label = encode_get(name, &mut request);
        self.ask(label, &request, true, out).await?;
        Self::object(out)
    }

    async fn transact(&self, mut t: Transaction) -> Result<(), CacheError> {
        check_transaction(&t)?;
        if let [w] = &t.writes[..]
            && let Some(slab) = self.volatile(w.name)?
        {
            for (name, version) in &t.reads {
                if self.version(*name).await? != *version {
                    return Err(CacheError::Conflict);
                }
            }
            return slab.put(w.name, w.expect, w.data.as_deref()).map(|_| ());
        }
        // Volatile objects that were only read are this domain's own: nobody else changes them.
        let mut i = 0;
        while let Some((name, version)) = t.reads.get(i) {
            match self.volatile(*name)? {
                Some(slab) if slab.version(*name)? != *version => return Err(CacheError::Conflict),
                Some(_) => drop(t.reads.remove(i)),
                None => i += 1,
            }
        }
        if t.writes.is_empty() && t.reads.is_empty() {
            return Ok(());
        }
        let (mut request, mut reply) = (Vec::new(), Vec::new());
        let label = encode_transaction(&t, &mut request);
        fault::around(self.ask(label, &request, false, &mut reply)).await
    }

    async fn grab(&self, name: Name, out: &mut Vec<u8>) -> Result<Version, CacheError> {
        if let Some(slab) = self.volatile(name)? {
            return slab.get(name, out);
        }
        let mut request = Vec::new();
        let label = Request::Grab { name }.encode(&mut request);
        self.ask(label, &request, true, out).await?;
        Self::object(out)
    }

    async fn release(&self, name: Name) -> Result<(), CacheError> {
        if self.volatile(name)?.is_some() {
            return Ok(());
        }
        self.order(&Request::Release { name }).await
    }

    async fn wait(
        &self,
        on: &[(Name, Version)],
        deadline: Option<u64>,
    ) -> Result<Waited, CacheError> {
        if on.is_empty() || on.len() > MAX_WAITS {
            return Err(CacheError::Invalid);
        }
        let word = self.0.ring.wait_word()?;
        let wait = Request::Wait { on: on.to_vec(), word: word.index() };
        let (mut request, mut reply) = (Vec::new(), Vec::new());
        let label = wait.encode(&mut request);
        loop {
            word.arm();
            self.ask(label, &request, true, &mut reply).await?;
            if !Reply::wait_queued(&reply) {
                return Ok(Waited::Changed);
            }
            let recheck = exec::now_ns() + RECHECK_NS;
            let until = deadline.map_or(recheck, |d| d.min(recheck));
            match exec::select(word.signalled(), exec::sleep_until(until)).await {
                exec::Either::Left(()) => return Ok(Waited::Changed),
                exec::Either::Right(()) => {}
            }
            if deadline.is_some_and(|d| exec::now_ns() >= d) {
                return Ok(Waited::TimedOut);
            }
        }
    }

    fn local_shard(&self, _: Class, near: Option<Shard>) -> Shard {
        let here = |s: &Shard| self.primary(*s) == Some(self.0.node);
        if let Some(near) = near.filter(here) {
            return near;
        }
        // Shards are taken in turn, from a start that differs per node, so that what is created
        // here spreads over all that are primary here.
        let start = self.0.next_shard.fetch_add(1, Ordering::Relaxed);
        let shards = usize::from(SHARDS);
        (0..shards)
            .map(|i| Shard(((start + i) % shards) as u16))
            .find(here)
            .or(near)
            .unwrap_or(Shard((start % shards) as u16))
    }

    fn node(&self) -> u8 {
        self.0.node
    }

    async fn list(
        &self,
        set: u16,
        after: Option<Name>,
    ) -> Result<Vec<(Name, Version)>, CacheError> {
        let d = set::descriptor(set).ok_or(CacheError::Invalid)?;
        if let Some(slab) = self.0.slab.as_ref().filter(|_| d.durability == Durability::Volatile) {
            return slab.list(set, after, crate::request::PAGE);
        }
        self.request(&Request::List { set, after }).await
    }
}
