//! The executable specification: the same kernel said as plainly as possible. Capabilities are a
//! map, derivation is a search for ancestors, queues are one list in order of arrival, channels
//! and budgets are counted anew each time. Slow, and short enough to be checked by reading.

use clustix_abi::{
    Error, Fault, GuardData, Hosted, Invocation as Label, MessageInfo, ObjectType, Rights, Syscall,
};
use clustix_kernel_core::event::MESSAGE_WORDS;
use clustix_kernel_core::limits::{
    CHANNELS_PER_PD, MADE_PER_PD, REGION_LENGTH, RETYPE_OBJECTS, WAITS_PER_PD,
};
use clustix_kernel_core::{Invocation, State};
use std::collections::{BTreeMap, BTreeSet};

/// An object's number in the model.
pub type Id = u32;

/// A slot: a PD's number and an index, or the kernel's own.
pub type Place = (usize, u64);

const KERNEL: usize = usize::MAX;

#[derive(Clone, PartialEq, Debug)]
pub enum Kind {
    Untyped(usize),
    CNode(usize),
    Pd(usize),
    StubPool,
    RegionPool,
    Metrics,
    Endpoint { server: Option<usize> },
    Notification { signalled: Option<u64> },
    Reply,
    Region { sealed: bool },
    Stub { owner: usize, dead: Option<i32> },
}

impl Kind {
    fn badged(&self) -> bool {
        matches!(self, Kind::Endpoint { .. } | Kind::Notification { .. })
    }

    fn mortal(&self) -> bool {
        self.badged() || matches!(self, Kind::Reply | Kind::Region { .. } | Kind::Stub { .. })
    }
}

pub struct Object {
    pub kind: Kind,
    payer: Option<usize>,
}

#[derive(Clone, Debug)]
pub struct Cap {
    uid: u64,
    pub object: Id,
    pub rights: Rights,
    pub data: u64,
    original: bool,
    parent: Option<u64>,
}

#[derive(Clone)]
pub struct Grant {
    pub slot: u64,
    pub object: Id,
    pub rights: Rights,
    pub badge: u64,
}

pub struct Pd {
    pub radix: u32,
    pub guard: GuardData,
    pub budget: u32,
    pub keeps_stubs: bool,
    pub state: State,
    pub incarnation: u32,
    pub status: i32,
    pub grants: Vec<Grant>,
    pub fault: Option<(Id, u64)>,
    pub stub_fault: Option<(Id, u64)>,
}

#[derive(Clone, PartialEq, Debug)]
struct Sent {
    label: u64,
    words: Vec<u64>,
    caps: Vec<u64>,
}

#[derive(Clone, PartialEq, Debug)]
enum What {
    Send { endpoint: Id, badge: u64, grant: bool, call: bool, sent: Sent },
    Answer { reply: Id, grant: bool },
    Receive { endpoint: Id, reply: Option<Id>, grant: bool },
    Signal { notification: Id },
    PdDeath { endpoint: Id, pd: usize },
    StubDeath { endpoint: Id, stub: Id },
}

#[derive(Clone, PartialEq, Debug)]
struct Waiting {
    /// PD and request; none for a death.
    to: Option<(usize, u64)>,
    what: What,
    receive: u64,
}

/// A message as delivered.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Delivered {
    pub badge: u64,
    pub label: u64,
    pub unwrapped: u64,
    pub caps: Vec<u64>,
    pub words: Vec<u64>,
}

/// An action, as text that does not depend on either side's numbering.
pub fn answer(pd: usize, request: u64, result: &Result<Delivered, Error>) -> String {
    format!("answer {pd}/{request} {result:?}")
}

type Outcome = Result<Option<Delivered>, Error>;

#[derive(Default)]
pub struct Model {
    pub pds: Vec<Pd>,
    pub objects: BTreeMap<Id, Object>,
    pub caps: BTreeMap<Place, Cap>,
    waiting: Vec<Waiting>,
    next_object: Id,
    next_uid: u64,
    open: BTreeSet<(usize, Id, u64)>,
    actions: Vec<String>,
}

fn done() -> Outcome {
    Ok(Some(Delivered::default()))
}

fn need(has: Rights, wants: Rights) -> Result<(), Error> {
    if has.contains(wants) { Ok(()) } else { Err(Error::InvalidCapability) }
}

impl Model {
    // Declaration.

    pub fn object(&mut self, kind: Kind, payer: Option<usize>) -> Id {
        self.next_object += 1;
        self.objects.insert(self.next_object, Object { kind, payer });
        self.next_object
    }

    /// A declared object: the kernel holds its first capability.
    pub fn declare(&mut self, kind: Kind) -> Id {
        let id = self.object(kind, None);
        self.put((KERNEL, u64::from(id)), id, Rights::ALL, 0, true, None);
        id
    }

    pub fn declare_pd(&mut self, radix: u32, guard: GuardData, budget: u32) -> usize {
        let n = self.pds.len();
        self.pds.push(Pd {
            radix,
            guard,
            budget,
            keeps_stubs: false,
            state: State::Ready,
            incarnation: 0,
            status: 0,
            grants: Vec::new(),
            fault: None,
            stub_fault: None,
        });
        for kind in [Kind::Untyped(n), Kind::CNode(n), Kind::Pd(n)] {
            self.declare(kind);
        }
        n
    }

    pub fn find(&self, kind: &Kind) -> Id {
        *self.objects.iter().find(|(_, o)| o.kind == *kind).unwrap().0
    }

    fn kernels(&self, object: Id) -> u64 {
        self.caps[&(KERNEL, u64::from(object))].uid
    }

    // Capabilities.

    fn put(
        &mut self,
        at: Place,
        object: Id,
        rights: Rights,
        data: u64,
        original: bool,
        parent: Option<u64>,
    ) {
        self.next_uid += 1;
        let cap = Cap { uid: self.next_uid, object, rights, data, original, parent };
        assert!(self.caps.insert(at, cap).is_none());
    }

    fn delete(&mut self, at: Place) {
        let Some(cap) = self.caps.remove(&at) else { return };
        for c in self.caps.values_mut().filter(|c| c.parent == Some(cap.uid)) {
            c.parent = cap.parent;
        }
        let last = !self.caps.values().any(|c| c.object == cap.object);
        if !last || !self.objects[&cap.object].kind.mortal() {
            return;
        }
        let id = cap.object;
        let ended: Vec<Waiting> = self
            .waiting
            .iter()
            .filter(|w| match &w.what {
                What::Send { endpoint, .. } | What::PdDeath { endpoint, .. } => *endpoint == id,
                What::Answer { reply, .. } => *reply == id,
                What::Receive { endpoint, reply, .. } => *endpoint == id || *reply == Some(id),
                What::Signal { notification } => *notification == id,
                What::StubDeath { endpoint, stub } => *endpoint == id || *stub == id,
            })
            .cloned()
            .collect();
        for w in ended {
            self.end(&w, Err(Error::Gone));
        }
        match self.objects.remove(&id).unwrap().kind {
            Kind::Region { .. } => self.actions.push(format!("region-destroy {id}")),
            Kind::Stub { .. } => self.actions.push(format!("stub-destroy {id}")),
            _ => {}
        }
    }

    fn descends(&self, cap: &Cap, from: u64) -> bool {
        let mut at = cap.parent;
        while let Some(uid) = at {
            if uid == from {
                return true;
            }
            at = self.caps.values().find(|c| c.uid == uid).unwrap().parent;
        }
        false
    }

    pub fn descendants(&self, from: Place) -> BTreeSet<Place> {
        let Some(cap) = self.caps.get(&from) else { return BTreeSet::new() };
        self.caps.iter().filter(|(_, c)| self.descends(c, cap.uid)).map(|(p, _)| *p).collect()
    }

    fn revoke(&mut self, from: Place) {
        for at in self.descendants(from) {
            self.delete(at);
        }
    }

    /// CSpace addressing on a string of bits.
    fn resolve(&self, root: &Cap, cptr: u64, depth: u64) -> Option<(Place, usize)> {
        let text = format!("{cptr:064b}");
        let mut bits = &text[64 - depth as usize..];
        let mut cap = root.clone();
        loop {
            let Kind::CNode(pd) = self.objects[&cap.object].kind else { return None };
            let guard = GuardData::from_word(cap.data).unwrap();
            let size = usize::from(guard.size);
            let prefix = if size == 0 { String::new() } else { format!("{:0size$b}", guard.bits) };
            bits = bits.strip_prefix(prefix.as_str())?;
            let radix = self.pds[pd].radix as usize;
            let index = u64::from_str_radix(bits.get(..radix)?, 2).unwrap();
            bits = &bits[radix..];
            let at = (pd, index);
            match self.caps.get(&at) {
                Some(next)
                    if !bits.is_empty()
                        && matches!(self.objects[&next.object].kind, Kind::CNode(_)) =>
                {
                    cap = next.clone();
                }
                _ => return Some((at, bits.len())),
            }
        }
    }

    fn root(&self, pd: usize) -> Cap {
        Cap {
            uid: 0,
            object: self.find(&Kind::CNode(pd)),
            rights: Rights::ALL,
            data: self.pds[pd].guard.word(),
            original: false,
            parent: None,
        }
    }

    fn lookup(&self, pd: usize, cptr: u64) -> Result<(Place, Cap), Error> {
        let (at, _) = self.resolve(&self.root(pd), cptr, 64).ok_or(Error::FailedLookup)?;
        Ok((at, self.caps.get(&at).cloned().ok_or(Error::FailedLookup)?))
    }

    fn target(&self, root: &Cap, index: u64, depth: u64) -> Result<Place, Error> {
        if !(1..=64).contains(&depth) {
            return Err(Error::RangeError);
        }
        match self.resolve(root, index, depth) {
            Some((at, 0)) => Ok(at),
            _ => Err(Error::FailedLookup),
        }
    }

    // Channels and budgets: counted, never kept.

    fn channel(&self, object: Id, rights: Rights) -> Option<usize> {
        match self.objects[&object].kind {
            Kind::Endpoint { server: Some(s) } if rights.contains(Rights::CLIENT) => Some(s),
            _ => None,
        }
    }

    fn channels(&self, pd: usize) -> BTreeSet<(Id, u64)> {
        self.caps
            .iter()
            .filter(|((p, _), c)| *p == pd && self.channel(c.object, c.rights).is_some())
            .map(|(_, c)| (c.object, c.data))
            .collect()
    }

    fn may_place(&self, at: Place, cap: &Cap) -> Result<(), Error> {
        if self.pds[at.0].state != State::Running {
            return Err(Error::IllegalOperation);
        }
        let held = self.channels(at.0);
        let more = self.channel(cap.object, cap.rights).is_some()
            && !held.contains(&(cap.object, cap.data));
        if more && held.len() >= CHANNELS_PER_PD { Err(Error::NotEnoughMemory) } else { Ok(()) }
    }

    pub fn used(&self, pd: usize) -> u32 {
        self.objects.values().filter(|o| o.payer == Some(pd)).count() as u32
    }

    fn charge(&self, pd: usize, count: u64) -> Result<(), Error> {
        let fits = u64::from(self.used(pd)) + count <= u64::from(self.pds[pd].budget);
        if fits { Ok(()) } else { Err(Error::NotEnoughMemory) }
    }

    fn free_index(&self, pd: usize) -> Result<u64, Error> {
        (16..1 << self.pds[pd].radix)
            .find(|i| !self.caps.contains_key(&(pd, *i)))
            .ok_or(Error::NotEnoughMemory)
    }

    // Waiting.

    fn end(&mut self, w: &Waiting, result: Result<Delivered, Error>) {
        let at = self.waiting.iter().position(|x| x == w).unwrap();
        self.waiting.remove(at);
        if let Some((pd, request)) = w.to {
            self.actions.push(answer(pd, request, &result));
        }
    }

    fn may_wait(&self, pd: usize) -> Result<(), Error> {
        let waits = self.waiting.iter().filter(|w| w.to.is_some_and(|t| t.0 == pd)).count();
        if waits < WAITS_PER_PD { Ok(()) } else { Err(Error::Busy) }
    }

    fn wait(&mut self, inv: &Invocation, what: What, receive: u64) -> Outcome {
        self.may_wait(usize::from(inv.pd.0))?;
        let to = Some((usize::from(inv.pd.0), inv.request));
        self.waiting.push(Waiting { to, what, receive });
        Ok(None)
    }

    fn receiver(&self, id: Id) -> Option<Waiting> {
        self.waiting
            .iter()
            .find(|w| matches!(w.what, What::Receive { endpoint, .. } if endpoint == id))
            .cloned()
    }

    fn sender(&self, id: Id) -> Option<Waiting> {
        self.waiting
            .iter()
            .find(|w| match w.what {
                What::Send { endpoint, .. }
                | What::PdDeath { endpoint, .. }
                | What::StubDeath { endpoint, .. } => endpoint == id,
                _ => false,
            })
            .cloned()
    }

    fn held_by(&self, id: Id) -> Option<Waiting> {
        self.waiting
            .iter()
            .find(|w| match w.what {
                What::Answer { reply, .. } => reply == id,
                What::Receive { reply, .. } => reply == Some(id),
                _ => false,
            })
            .cloned()
    }

    // Messages.

    fn sent(&self, inv: &Invocation) -> Result<Sent, Error> {
        let info = inv.message.info;
        let caps = inv.caps[..info.extra_caps()].to_vec();
        for c in &caps {
            self.lookup(usize::from(inv.pd.0), *c)?;
        }
        let words = inv.message.words[..info.length()].to_vec();
        Ok(Sent { label: info.label(), words, caps })
    }

    fn transfer(
        &mut self,
        from: usize,
        sent: &Sent,
        through: Option<Id>,
        badge: u64,
        grant: bool,
        to: (usize, u64),
    ) -> Delivered {
        let mut d =
            Delivered { badge, label: sent.label, words: sent.words.clone(), ..Default::default() };
        let mut slot = if to.1 == 0 { None } else { self.resolve(&self.root(to.0), to.1, 64) };
        if slot.is_some_and(|(at, _)| self.caps.contains_key(&at)) {
            slot = None;
        }
        for c in sent.caps.iter().filter(|_| grant) {
            let Ok((at, cap)) = self.lookup(from, *c) else { break };
            if through == Some(cap.object) {
                d.unwrapped |= 1 << d.caps.len();
                d.caps.push(cap.data);
                continue;
            }
            let Some((into, _)) = slot.take() else { break };
            if self.may_place(into, &cap).is_err() {
                break;
            }
            let parent = self.child_of(at);
            self.put(into, cap.object, cap.rights, cap.data, false, parent);
            d.caps.push(to.1);
        }
        d
    }

    fn child_of(&self, at: Place) -> Option<u64> {
        let source = &self.caps[&at];
        if source.original { Some(source.uid) } else { source.parent }
    }

    fn send(&mut self, inv: &Invocation, id: Id, cap: &Cap, call: bool, blocking: bool) -> Outcome {
        need(cap.rights, Rights::WRITE)?;
        let answerable = Rights::GRANT | Rights::GRANT_REPLY;
        if call && !cap.rights.intersects(answerable) {
            return Err(Error::InvalidCapability);
        }
        let sent = self.sent(inv)?;
        let pd = usize::from(inv.pd.0);
        let grant = cap.rights.contains(Rights::GRANT);
        let Some(receiver) = self.receiver(id) else {
            if !blocking {
                return done();
            }
            let what = What::Send { endpoint: id, badge: cap.data, grant, call, sent };
            return self.wait(inv, what, inv.receive);
        };
        if call {
            self.may_wait(pd)?;
        }
        let to = (receiver.to.unwrap().0, receiver.receive);
        let delivered = self.transfer(pd, &sent, Some(id), cap.data, grant, to);
        self.end(&receiver, Ok(delivered));
        if !call {
            return done();
        }
        match receiver.what {
            What::Receive { reply: Some(reply), grant, .. } => {
                self.wait(inv, What::Answer { reply, grant }, inv.receive)
            }
            _ => Err(Error::Gone),
        }
    }

    fn evict(&mut self, reply: Option<Id>) {
        if let Some(w) = reply.and_then(|r| self.held_by(r)) {
            self.end(&w, Err(Error::Gone));
        }
    }

    fn receive(
        &mut self,
        inv: &Invocation,
        id: Id,
        cap: &Cap,
        reply: Option<Id>,
        blocking: bool,
    ) -> Outcome {
        need(cap.rights, Rights::READ)?;
        let my_grant = cap.rights.contains(Rights::GRANT);
        let Some(sender) = self.sender(id) else {
            if !blocking {
                return done();
            }
            self.may_wait(usize::from(inv.pd.0))?;
            self.evict(reply);
            let what = What::Receive { endpoint: id, reply, grant: my_grant };
            return self.wait(inv, what, inv.receive);
        };
        self.evict(reply);
        match sender.what.clone() {
            What::Send { badge, grant, call, sent, .. } => {
                let to = (usize::from(inv.pd.0), inv.receive);
                let (from, request) = sender.to.unwrap();
                let delivered = self.transfer(from, &sent, Some(id), badge, grant, to);
                match (call, reply) {
                    (true, Some(reply)) => {
                        let at = self.waiting.iter().position(|w| *w == sender).unwrap();
                        let mut w = self.waiting.remove(at);
                        w.what = What::Answer { reply, grant: my_grant };
                        self.waiting.push(w);
                    }
                    (true, None) => self.end(&sender, Err(Error::Gone)),
                    (false, _) => self.end(&sender, Ok(Delivered::default())),
                }
                let _ = request;
                Ok(Some(delivered))
            }
            What::PdDeath { pd, .. } => {
                self.end(&sender, Err(Error::Gone));
                Ok(Some(self.pd_death(pd)))
            }
            What::StubDeath { stub, .. } => {
                self.end(&sender, Err(Error::Gone));
                Ok(Some(self.stub_death(stub)))
            }
            _ => unreachable!(),
        }
    }

    fn reply(&mut self, inv: &Invocation, id: Id) -> Outcome {
        let sent = self.sent(inv)?;
        if let Some(w) = self.held_by(id)
            && let What::Answer { grant, .. } = w.what
        {
            let to = (w.to.unwrap().0, w.receive);
            let delivered = self.transfer(usize::from(inv.pd.0), &sent, None, 0, grant, to);
            self.end(&w, Ok(delivered));
        }
        done()
    }

    fn signal(&mut self, id: Id, cap: &Cap) -> Outcome {
        need(cap.rights, Rights::WRITE)?;
        let waiter =
            self.waiting.iter().find(|w| w.what == What::Signal { notification: id }).cloned();
        if let Some(w) = waiter {
            self.end(&w, Ok(Delivered { badge: cap.data, ..Default::default() }));
        } else if let Kind::Notification { signalled } =
            &mut self.objects.get_mut(&id).unwrap().kind
        {
            *signalled = Some(signalled.unwrap_or(0) | cap.data);
        }
        done()
    }

    fn wait_signal(&mut self, inv: &Invocation, id: Id, cap: &Cap, blocking: bool) -> Outcome {
        need(cap.rights, Rights::READ)?;
        let Kind::Notification { signalled } = &mut self.objects.get_mut(&id).unwrap().kind else {
            unreachable!()
        };
        match signalled.take() {
            Some(badge) => Ok(Some(Delivered { badge, ..Default::default() })),
            None if blocking => self.wait(inv, What::Signal { notification: id }, 0),
            None => done(),
        }
    }

    // System calls.

    fn reply_object(&self, inv: &Invocation) -> Result<Option<Id>, Error> {
        if inv.reply == 0 {
            return Ok(None);
        }
        let (_, cap) = self.lookup(usize::from(inv.pd.0), inv.reply)?;
        match self.objects[&cap.object].kind {
            Kind::Reply => Ok(Some(cap.object)),
            _ => Err(Error::InvalidCapability),
        }
    }

    fn may_receive(&self, inv: &Invocation) -> Result<(), Error> {
        let (_, cap) = self.lookup(usize::from(inv.pd.0), inv.cptr)?;
        if !self.objects[&cap.object].kind.badged() {
            return Err(Error::InvalidCapability);
        }
        need(cap.rights, Rights::READ)?;
        self.may_wait(usize::from(inv.pd.0))
    }

    fn take(&mut self, inv: &Invocation, reply: Option<Id>, blocking: bool) -> Outcome {
        let (_, cap) = self.lookup(usize::from(inv.pd.0), inv.cptr)?;
        match self.objects[&cap.object].kind {
            Kind::Endpoint { .. } => self.receive(inv, cap.object, &cap, reply, blocking),
            Kind::Notification { .. } => self.wait_signal(inv, cap.object, &cap, blocking),
            _ => Err(Error::InvalidCapability),
        }
    }

    fn syscall(&mut self, inv: &Invocation) -> Outcome {
        if inv.message.info.length() > MESSAGE_WORDS {
            return Err(Error::RangeError);
        }
        match inv.syscall {
            Syscall::Call => self.invoke(inv, inv.cptr, true, true),
            Syscall::Send => self.invoke(inv, inv.cptr, false, true),
            Syscall::NBSend => self.invoke(inv, inv.cptr, false, false),
            Syscall::Reply => {
                let reply = self.reply_object(inv)?.ok_or(Error::FailedLookup)?;
                self.reply(inv, reply)
            }
            Syscall::ReplyRecv => {
                let reply = self.reply_object(inv)?.ok_or(Error::FailedLookup)?;
                self.may_receive(inv)?;
                self.reply(inv, reply)?;
                self.take(inv, Some(reply), true)
            }
            Syscall::Recv | Syscall::NBRecv => {
                let reply = self.reply_object(inv)?;
                self.take(inv, reply, inv.syscall == Syscall::Recv)
            }
            Syscall::Wait => self.take(inv, None, true),
            Syscall::NBWait => self.take(inv, None, false),
            Syscall::NBSendRecv | Syscall::NBSendWait => {
                let reply = match inv.syscall {
                    Syscall::NBSendRecv => self.reply_object(inv)?,
                    _ => None,
                };
                self.may_receive(inv)?;
                self.invoke(inv, inv.send, false, false)?;
                self.take(inv, reply, true)
            }
            Syscall::Yield => done(),
        }
    }

    fn invoke(&mut self, inv: &Invocation, cptr: u64, call: bool, blocking: bool) -> Outcome {
        let (at, cap) = self.lookup(usize::from(inv.pd.0), cptr)?;
        let id = cap.object;
        let kind = self.objects[&id].kind.clone();
        let combined = matches!(inv.syscall, Syscall::NBSendRecv | Syscall::NBSendWait);
        match kind {
            Kind::Endpoint { .. } => self.send(inv, id, &cap, call, blocking),
            Kind::Notification { .. } => self.signal(id, &cap),
            Kind::Reply => self.reply(inv, id),
            _ if combined => Err(Error::IllegalOperation),
            Kind::CNode(_) => self.cnode(inv, &cap).map(|()| Some(Delivered::default())),
            Kind::Untyped(pd) => self.retype(inv, pd, at).map(|()| Some(Delivered::default())),
            _ => self.hosted(inv, id, &kind, &cap),
        }
    }

    fn arguments<const N: usize>(inv: &Invocation) -> Result<[u64; N], Error> {
        if inv.message.info.length() < N {
            return Err(Error::TruncatedMessage);
        }
        Ok(inv.message.words[..N].try_into().unwrap())
    }

    fn passed(&self, inv: &Invocation, n: usize) -> Result<Cap, Error> {
        if inv.message.info.extra_caps() <= n {
            return Err(Error::TruncatedMessage);
        }
        Ok(self.lookup(usize::from(inv.pd.0), inv.caps[n])?.1)
    }

    fn retype(&mut self, inv: &Invocation, payer: usize, untyped: Place) -> Result<(), Error> {
        if inv.message.info.label() != Label::UntypedRetype.number() {
            return Err(Error::IllegalOperation);
        }
        let [kind, _, index, depth, offset, count] = Self::arguments(inv)?;
        let root = self.passed(inv, 0)?;
        let kind = ObjectType::from_number(kind).ok_or(Error::InvalidArgument)?;
        if count == 0 || count > RETYPE_OBJECTS {
            return Err(Error::RangeError);
        }
        let node = if depth == 0 {
            root
        } else {
            let at = self.target(&root, index, depth)?;
            self.caps.get(&at).cloned().ok_or(Error::FailedLookup)?
        };
        let Kind::CNode(owner) = self.objects[&node.object].kind else {
            return Err(Error::FailedLookup);
        };
        if [payer, owner].iter().any(|p| self.pds[*p].state != State::Running) {
            return Err(Error::IllegalOperation);
        }
        let end = offset.checked_add(count).ok_or(Error::RangeError)?;
        if end > 1 << self.pds[owner].radix {
            return Err(Error::RangeError);
        }
        if (offset..end).any(|i| self.caps.contains_key(&(owner, i))) {
            return Err(Error::DeleteFirst);
        }
        let kind = match kind {
            ObjectType::EndpointObject => Kind::Endpoint { server: None },
            ObjectType::NotificationObject => Kind::Notification { signalled: None },
            ObjectType::ReplyObject => Kind::Reply,
            _ => return Err(Error::InvalidArgument),
        };
        let made = self.objects.values().filter(|o| {
            o.payer == Some(payer)
                && std::mem::discriminant(&o.kind) == std::mem::discriminant(&kind)
        });
        if made.count() as u64 + count > MADE_PER_PD as u64 {
            return Err(Error::NotEnoughMemory);
        }
        self.charge(payer, count)?;
        let parent = self.child_of(untyped);
        for i in offset..end {
            let id = self.object(kind.clone(), Some(payer));
            self.put((owner, i), id, Rights::ALL, 0, true, parent);
        }
        Ok(())
    }

    /// What a capability becomes with new data, or why it cannot.
    fn with_data(&self, cap: &Cap, data: u64, mint: bool) -> Result<u64, Error> {
        match self.objects[&cap.object].kind {
            Kind::Endpoint { .. } | Kind::Notification { .. } => {
                if mint && cap.data == 0 {
                    Ok(data)
                } else {
                    Err(Error::IllegalOperation)
                }
            }
            Kind::CNode(pd) => {
                let guard = GuardData::from_word(data)?;
                if u32::from(guard.size) + self.pds[pd].radix > 64 {
                    return Err(Error::IllegalOperation);
                }
                Ok(data)
            }
            _ => Ok(cap.data),
        }
    }

    /// Takes capabilities out of their slots and puts each into another, changed.
    fn shift(&mut self, moves: &[(Place, Place, u64)]) {
        let taken: Vec<Cap> =
            moves.iter().map(|(from, _, _)| self.caps.remove(from).unwrap()).collect();
        for ((_, to, data), mut cap) in moves.iter().zip(taken) {
            cap.data = *data;
            assert!(self.caps.insert(*to, cap).is_none());
        }
    }

    fn cnode(&mut self, inv: &Invocation, cnode: &Cap) -> Result<(), Error> {
        let label = Label::from_number(inv.message.info.label());
        let known = [
            Label::CNodeRevoke,
            Label::CNodeDelete,
            Label::CNodeCancelBadgedSends,
            Label::CNodeCopy,
            Label::CNodeMint,
            Label::CNodeMove,
            Label::CNodeMutate,
            Label::CNodeRotate,
        ];
        let label = label.filter(|l| known.contains(l)).ok_or(Error::IllegalOperation)?;
        let [index, depth] = Self::arguments(inv)?;
        let to = self.target(cnode, index, depth)?;
        match label {
            Label::CNodeRevoke => {
                self.revoke(to);
                return Ok(());
            }
            Label::CNodeDelete => {
                self.delete(to);
                return Ok(());
            }
            Label::CNodeCancelBadgedSends => return self.cancel_badged(to),
            Label::CNodeRotate => return self.rotate(inv, to),
            _ => {}
        }
        let [_, _, index, depth] = Self::arguments(inv)?;
        let root = self.passed(inv, 0)?;
        if self.caps.contains_key(&to) {
            return Err(Error::DeleteFirst);
        }
        let from = self.target(&root, index, depth)?;
        let mut cap = self.caps.get(&from).cloned().ok_or(Error::FailedLookup)?;
        if label == Label::CNodeMove || label == Label::CNodeMutate {
            if label == Label::CNodeMutate {
                let [_, _, _, _, data] = Self::arguments(inv)?;
                cap.data = self.with_data(&cap, data, false)?;
            }
            self.may_place(to, &cap)?;
            self.shift(&[(from, to, cap.data)]);
            return Ok(());
        }
        let [_, _, _, _, rights] = Self::arguments(inv)?;
        let kind = self.objects[&cap.object].kind.clone();
        let old = cap.data;
        if label == Label::CNodeMint {
            let [_, _, _, _, _, data] = Self::arguments(inv)?;
            cap.data = self.with_data(&cap, data, true)?;
        }
        if !matches!(kind, Kind::CNode(_) | Kind::Untyped(_) | Kind::Reply) {
            cap.rights &= Rights::from_word(rights);
        }
        self.may_place(to, &cap)?;
        let original = kind.badged() && cap.data != old;
        let parent = self.child_of(from);
        self.put(to, cap.object, cap.rights, cap.data, original, parent);
        Ok(())
    }

    fn cancel_badged(&mut self, at: Place) -> Result<(), Error> {
        let cap = self.caps.get(&at).cloned().ok_or(Error::IllegalOperation)?;
        let endpoint = matches!(self.objects[&cap.object].kind, Kind::Endpoint { .. });
        if !endpoint || !cap.rights.contains(Rights::READ | Rights::WRITE | Rights::GRANT) {
            return Err(Error::IllegalOperation);
        }
        let ended: Vec<_> = self
            .waiting
            .iter()
            .filter(|w| {
                matches!(w.what, What::Send { endpoint, badge, .. }
                    if endpoint == cap.object && badge == cap.data && badge != 0)
            })
            .cloned()
            .collect();
        for w in ended {
            self.end(&w, Err(Error::Gone));
        }
        Ok(())
    }

    fn rotate(&mut self, inv: &Invocation, to: Place) -> Result<(), Error> {
        let [_, _, to_data, pivot, pivot_depth, pivot_data, source, source_depth] =
            Self::arguments(inv)?;
        let (pivot_root, source_root) = (self.passed(inv, 0)?, self.passed(inv, 1)?);
        let from = self.target(&source_root, source, source_depth)?;
        let pivot = self.target(&pivot_root, pivot, pivot_depth)?;
        if pivot == from || pivot == to {
            return Err(Error::IllegalOperation);
        }
        if from != to && self.caps.contains_key(&to) {
            return Err(Error::DeleteFirst);
        }
        let mut source_cap = self.caps.get(&from).cloned().ok_or(Error::FailedLookup)?;
        let mut pivot_cap = self.caps.get(&pivot).cloned().ok_or(Error::FailedLookup)?;
        if to_data != 0 {
            pivot_cap.data = self.with_data(&pivot_cap, to_data, false)?;
        }
        if pivot_data != 0 {
            source_cap.data = self.with_data(&source_cap, pivot_data, false)?;
        }
        self.may_place(pivot, &source_cap).and(self.may_place(to, &pivot_cap))?;
        self.shift(&[(pivot, to, pivot_cap.data), (from, pivot, source_cap.data)]);
        Ok(())
    }

    fn hosted(&mut self, inv: &Invocation, id: Id, kind: &Kind, cap: &Cap) -> Outcome {
        let label = Hosted::from_number(inv.message.info.label()).ok_or(Error::IllegalOperation)?;
        let me = usize::from(inv.pd.0);
        let to = format!("{me}/{}", inv.request);
        let (has, words) = (cap.rights, |w: &[u64]| {
            Ok(Some(Delivered { words: w.to_vec(), ..Default::default() }))
        });
        match (kind, label) {
            (Kind::Pd(n), Hosted::PdStart) => {
                need(has, Rights::WRITE)?;
                if self.pds[*n].state == State::Running {
                    return Err(Error::IllegalOperation);
                }
                self.start(*n);
                words(&[u64::from(self.pds[*n].incarnation)])
            }
            (Kind::Pd(n), Hosted::PdKill) => {
                need(has, Rights::WRITE)?;
                let p = &self.pds[*n];
                if p.state != State::Running {
                    return Err(Error::IllegalOperation);
                }
                self.actions.push(format!("pd-kill {n} {}", p.incarnation));
                done()
            }
            (Kind::Pd(n), Hosted::PdStatus) => {
                need(has, Rights::READ)?;
                let p = &self.pds[*n];
                words(&[p.state as u64, u64::from(p.incarnation), u64::from(p.status as u32)])
            }
            (Kind::StubPool, Hosted::StubSpawn) => {
                need(has, Rights::WRITE)?;
                let (stub, slot) = self.make(me, Kind::Stub { owner: me, dead: None })?;
                self.actions.push(format!("stub-spawn {stub} {slot} {to}"));
                Ok(None)
            }
            (Kind::Stub { dead, .. }, Hosted::StubFork) => {
                need(has, Rights::WRITE)?;
                if dead.is_some() {
                    return Err(Error::IllegalOperation);
                }
                let (stub, slot) = self.make(me, Kind::Stub { owner: me, dead: None })?;
                self.actions.push(format!("stub-fork {stub} {id} {slot} {to}"));
                Ok(None)
            }
            (Kind::Stub { dead, .. }, Hosted::StubKill | Hosted::StubPreempt) => {
                need(has, Rights::WRITE)?;
                if dead.is_none() {
                    let kill = label == Hosted::StubKill;
                    let name = if kill { "stub-kill" } else { "stub-preempt" };
                    self.actions.push(format!("{name} {id}"));
                }
                done()
            }
            (Kind::RegionPool, Hosted::RegionCreate) => {
                need(has, Rights::WRITE)?;
                let [length] = Self::arguments(inv)?;
                if length == 0 || length > REGION_LENGTH {
                    return Err(Error::RangeError);
                }
                let (region, slot) = self.make(me, Kind::Region { sealed: false })?;
                self.actions.push(format!("region-create {region} {length} {slot} {to}"));
                Ok(None)
            }
            (Kind::Region { sealed }, Hosted::RegionSeal) => {
                need(has, Rights::WRITE)?;
                if *sealed {
                    return Err(Error::IllegalOperation);
                }
                self.objects.get_mut(&id).unwrap().kind = Kind::Region { sealed: true };
                self.actions.push(format!("region-seal {id} {to}"));
                Ok(None)
            }
            (Kind::Region { sealed }, Hosted::RegionSend) => {
                need(has, Rights::READ)?;
                if !sealed {
                    return Err(Error::IllegalOperation);
                }
                let target = self.passed(inv, 0)?;
                let Kind::Stub { dead, .. } = self.objects[&target.object].kind else {
                    return Err(Error::InvalidCapability);
                };
                need(target.rights, Rights::WRITE)?;
                if dead.is_some() {
                    return Err(Error::IllegalOperation);
                }
                self.actions.push(format!("region-send {id} {} {to}", target.object));
                Ok(None)
            }
            (Kind::Region { sealed }, Hosted::RegionMap) => {
                let [writable] = Self::arguments(inv)?;
                match writable {
                    0 => need(has, Rights::READ)?,
                    1 => need(has, Rights::READ | Rights::WRITE)?,
                    _ => return Err(Error::InvalidArgument),
                }
                if writable == 1 && *sealed {
                    return Err(Error::IllegalOperation);
                }
                let writable = writable == 1;
                self.actions.push(format!("region-map {id} {me} {writable} {to}"));
                Ok(None)
            }
            (Kind::Metrics, Hosted::MetricsRead | Hosted::MetricsPds) => {
                need(has, Rights::READ)?;
                self.actions.push(format!("{label:?} {to}"));
                Ok(None)
            }
            _ => Err(Error::IllegalOperation),
        }
    }

    /// A new object with its capability in the lowest free slot; gives its CPtr.
    fn make(&mut self, owner: usize, kind: Kind) -> Result<(Id, u64), Error> {
        let index = self.free_index(owner)?;
        self.charge(owner, 1)?;
        let id = self.object(kind, Some(owner));
        let parent = Some(self.kernels(self.find(&Kind::Untyped(owner))));
        self.put((owner, index), id, Rights::ALL, 0, true, parent);
        let p = &self.pds[owner];
        let size = u32::from(p.guard.size);
        Ok((id, (p.guard.bits << p.radix | index) << (64 - size - p.radix)))
    }

    // Life and death.

    fn start(&mut self, n: usize) {
        let p = &mut self.pds[n];
        p.state = State::Running;
        p.incarnation += 1;
        let (incarnation, guard, grants) = (p.incarnation, p.guard.word(), p.grants.clone());
        for (index, kind, rights, data) in [
            (1, Kind::Pd(n), Rights::READ, 0),
            (2, Kind::CNode(n), Rights::ALL, guard),
            (11, Kind::Untyped(n), Rights::ALL, 0),
        ] {
            let id = self.find(&kind);
            let parent = Some(self.kernels(id));
            self.put((n, index), id, rights, data, matches!(kind, Kind::Untyped(_)), parent);
        }
        for g in grants {
            let parent = Some(self.kernels(g.object));
            let original = self.objects[&g.object].kind.badged() && g.badge != 0;
            self.put((n, g.slot), g.object, g.rights, g.badge, original, parent);
            if let Kind::Region { .. } = self.objects[&g.object].kind {
                let writable = g.rights.contains(Rights::WRITE);
                self.actions.push(format!("region-map {} {n} {writable} boot", g.object));
            }
        }
        self.actions.push(format!("pd-start {n} {incarnation}"));
    }

    fn pd_death(&self, n: usize) -> Delivered {
        let p = &self.pds[n];
        Delivered {
            badge: p.fault.unwrap().1,
            label: Fault::PdDeath.number(),
            words: vec![n as u64, u64::from(p.status as u32), u64::from(p.incarnation)],
            ..Default::default()
        }
    }

    fn stub_death(&self, stub: Id) -> Delivered {
        let Kind::Stub { owner, dead } = self.objects[&stub].kind else { unreachable!() };
        Delivered {
            badge: self.pds[owner].stub_fault.unwrap().1,
            label: Fault::StubDeath.number(),
            words: vec![u64::from(stub), u64::from(dead.unwrap() as u32)],
            ..Default::default()
        }
    }

    fn tell(&mut self, endpoint: Id, what: What, message: Delivered) {
        let same = |w: &Waiting| match (&w.what, &what) {
            (What::PdDeath { pd: a, .. }, What::PdDeath { pd: b, .. }) => a == b,
            _ => false,
        };
        if self.waiting.iter().any(same) {
            return;
        }
        match self.receiver(endpoint) {
            Some(w) => self.end(&w, Ok(message)),
            None => self.waiting.push(Waiting { to: None, what, receive: 0 }),
        }
    }

    fn died(&mut self, n: usize, incarnation: u32, status: i32) {
        let p = &mut self.pds[n];
        if p.state != State::Running || p.incarnation != incarnation {
            return;
        }
        p.state = State::Dead;
        p.status = status;
        self.waiting.retain(|w| w.to.is_none_or(|(pd, _)| pd != n));
        let lives = Kind::Stub { owner: n, dead: None };
        let keeps = self.pds[n].keeps_stubs;
        let kept: BTreeSet<Place> = self
            .caps
            .iter()
            .filter(|(at, c)| keeps && at.0 == n && self.objects[&c.object].kind == lives)
            .filter(|(at, _)| at.1 >= 16 && self.pds[n].grants.iter().all(|g| g.slot != at.1))
            .map(|(at, _)| *at)
            .collect();
        let made = self.descendants((KERNEL, u64::from(self.find(&Kind::Untyped(n)))));
        let held = (0..1 << self.pds[n].radix).map(|index| (n, index));
        for at in made.into_iter().chain(held).filter(|at| !kept.contains(at)) {
            self.delete(at);
        }
        let queued: Vec<_> = self
            .waiting
            .iter()
            .filter(|w| match w.what {
                What::Send { endpoint, .. } => {
                    self.objects[&endpoint].kind == Kind::Endpoint { server: Some(n) }
                }
                _ => false,
            })
            .cloned()
            .collect();
        for w in queued {
            self.end(&w, Err(Error::Gone));
        }
        if let Some((endpoint, _)) = self.pds[n].fault {
            let message = self.pd_death(n);
            self.tell(endpoint, What::PdDeath { endpoint, pd: n }, message);
        }
    }

    fn stub_died(&mut self, stub: Id, status: i32) {
        let Some(Object { kind: Kind::Stub { owner, dead }, .. }) = self.objects.get_mut(&stub)
        else {
            return;
        };
        if dead.is_some() {
            return;
        }
        *dead = Some(status);
        if self.pds[*owner].state != State::Running {
            return self.delete_all(stub);
        }
        if let Some((endpoint, _)) = self.pds[*owner].stub_fault {
            let message = self.stub_death(stub);
            self.tell(endpoint, What::StubDeath { endpoint, stub }, message);
        }
    }

    fn delete_all(&mut self, id: Id) {
        let places: Vec<_> =
            self.caps.iter().filter(|(_, c)| c.object == id).map(|(p, _)| *p).collect();
        for p in places {
            self.delete(p);
        }
    }

    /// One step; the actions as sorted text.
    pub fn handle(&mut self, event: &Step) -> Vec<String> {
        match event {
            Step::Start(n) => {
                if self.pds[*n].state != State::Running {
                    self.start(*n);
                }
            }
            Step::Invoke(inv) => {
                let n = usize::from(inv.pd.0);
                if self.pds[n].state == State::Running {
                    let result = match self.syscall(inv) {
                        Ok(None) => None,
                        Ok(Some(d)) => Some(Ok(d)),
                        Err(e) => Some(Err(e)),
                    };
                    if let Some(r) = result {
                        self.actions.push(answer(n, inv.request, &r));
                    }
                }
            }
            Step::Cancel(n, request) => self.waiting.retain(|w| w.to != Some((*n, *request))),
            Step::PdDied(n, incarnation, status) => self.died(*n, *incarnation, *status),
            Step::StubDied(id, status) => self.stub_died(*id, *status),
            Step::StubsForgotten(n) if self.pds[*n].state == State::Running => {}
            Step::StubsForgotten(n) => {
                let of = |o: &Object| matches!(o.kind, Kind::Stub { owner, .. } if owner == *n);
                let all = self.objects.iter().filter(|(_, o)| of(o)).map(|(id, _)| *id);
                for id in all.collect::<Vec<_>>() {
                    self.delete_all(id);
                }
            }
            Step::StubFailed(id) | Step::RegionFailed(id) => self.delete_all(*id),
            Step::SealFailed(id) => {
                if let Some(o) = self.objects.get_mut(id) {
                    o.kind = Kind::Region { sealed: false };
                }
            }
        }
        let now: BTreeSet<_> = (0..self.pds.len())
            .flat_map(|n| self.channels(n).into_iter().map(move |(e, b)| (n, e, b)))
            .filter(|(_, e, _)| match self.objects[e].kind {
                Kind::Endpoint { server: Some(s) } => self.pds[s].state != State::Dead,
                _ => false,
            })
            .collect();
        for (client, endpoint, badge) in self.open.difference(&now) {
            self.actions.push(format!("channel-revoke {client} {endpoint} {badge}"));
        }
        for (client, endpoint, badge) in now.difference(&self.open) {
            self.actions.push(format!("channel-open {client} {endpoint} {badge}"));
        }
        self.open = now;
        let mut actions = std::mem::take(&mut self.actions);
        actions.sort();
        actions
    }

    /// The requests that wait.
    pub fn waiting(&self) -> Vec<(usize, u64)> {
        self.waiting.iter().filter_map(|w| w.to).collect()
    }
}

/// An event in the model's numbering.
#[derive(Clone, Debug)]
pub enum Step {
    Start(usize),
    Invoke(Invocation),
    Cancel(usize, u64),
    PdDied(usize, u32, i32),
    StubDied(Id, i32),
    StubsForgotten(usize),
    StubFailed(Id),
    RegionFailed(Id),
    SealFailed(Id),
}

/// A message's description.
pub fn info(label: u64, caps: usize, words: usize) -> MessageInfo {
    MessageInfo::new(label, 0, caps, words)
}
