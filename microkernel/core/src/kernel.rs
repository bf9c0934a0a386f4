//! The kernel's state and its step.

use crate::action::{Action, Delivery, Request};
use crate::cap::{Cap, Object};
use crate::channel::Channel;
use crate::cnode::{CNode, WORD_BITS};
use crate::declare::{Grant, PdDeclaration};
use crate::derivation::{SlotId, Slots};
use crate::endpoint::Endpoint;
use crate::event::{Event, Invocation};
use crate::id::{EndpointId, NotificationId, PdId, RegionId};
use crate::limits;
use crate::notification::Notification;
use crate::pd::{Declared, Pd, State};
use crate::queue::Nodes;
use crate::region::Region;
use crate::reply::Reply;
use crate::stub::Stub;
use crate::table::Table;
use crate::wait::Wait;
use clustix_abi::{Badge, Error, Rights, slot};
use heapless::Vec;

/// How a system call went: an answer now, none yet (it waits, or the host will answer), or refused.
pub(crate) type Outcome = Result<Option<Delivery>, Error>;

/// The kernel. Large (about 4 MiB, mostly untouched): keep it in a `static` (`Kernel::new` is `const` and all zero
/// bytes, so it takes no room in the program's file), not on a stack.
pub struct Kernel {
    pub(crate) slots: Slots,
    /// The root CNode of each PD, by the PD's number.
    pub(crate) cnodes: Vec<CNode, { limits::PDS }>,
    pub(crate) pds: Vec<Pd, { limits::PDS }>,
    pub(crate) endpoints: Table<Endpoint, { limits::ENDPOINTS }>,
    pub(crate) notifications: Table<Notification, { limits::NOTIFICATIONS }>,
    pub(crate) replies: Table<Reply, { limits::REPLIES }>,
    pub(crate) regions: Table<Region, { limits::REGIONS }>,
    pub(crate) stubs: Table<Stub, { limits::STUBS }>,
    pub(crate) waits: Table<Wait, { limits::WAITS }>,
    pub(crate) nodes: Nodes,
    pub(crate) channels: Vec<Channel, { limits::CHANNELS }>,
    pub(crate) next_channel: u64,
    pub(crate) grants: Vec<Declared, { limits::GRANTS }>,
    kernel_slots: usize,
    /// Always empty between steps: where one of two exchanged capabilities stays meanwhile.
    pub(crate) scratch: Option<SlotId>,
    actions: Vec<Action, { limits::ACTIONS }>,
}

impl Kernel {
    /// A kernel with nothing declared.
    pub const fn new() -> Self {
        Kernel {
            slots: Slots::new(),
            cnodes: Vec::new(),
            pds: Vec::new(),
            endpoints: Table::new(),
            notifications: Table::new(),
            replies: Table::new(),
            regions: Table::new(),
            stubs: Table::new(),
            waits: Table::new(),
            nodes: Nodes::new(),
            channels: Vec::new(),
            next_channel: 0,
            grants: Vec::new(),
            kernel_slots: 0,
            scratch: None,
            actions: Vec::new(),
        }
    }

    /// Back to the state of [`Kernel::new`], in place.
    pub fn reset(&mut self) {
        self.slots.clear();
        self.cnodes.clear();
        self.pds.clear();
        self.endpoints.clear();
        self.notifications.clear();
        self.replies.clear();
        self.regions.clear();
        self.stubs.clear();
        self.waits.clear();
        self.nodes.clear();
        self.channels.clear();
        self.next_channel = 0;
        self.grants.clear();
        self.kernel_slots = 0;
        self.scratch = None;
        self.actions.clear();
    }

    /// Makes the kernel's own capability to a declared object.
    fn own_cap(&mut self, object: Object, data: u64) -> Result<SlotId, Error> {
        if self.scratch.is_none() {
            self.scratch = self.slots.extend(None, 1);
            self.kernel_slots += 1;
        }
        if self.kernel_slots == limits::KERNEL_SLOTS {
            return Err(Error::NotEnoughMemory);
        }
        let slot = self.slots.extend(None, 1).ok_or(Error::NotEnoughMemory)?;
        self.kernel_slots += 1;
        self.place(slot, Cap { object, rights: Rights::ALL, data }, true, None);
        Ok(slot)
    }

    /// Declares a PD; [`Error::NotEnoughMemory`] beyond 64 or when the slots are used up,
    /// [`Error::RangeError`] on a bad radix or guard.
    pub fn declare_pd(&mut self, declaration: PdDeclaration) -> Result<PdId, Error> {
        let PdDeclaration { radix, guard, budget, keeps_stubs } = declaration;
        let fits = guard.size < 64 && u32::from(guard.size) + u32::from(radix) <= WORD_BITS;
        if !limits::RADIX.contains(&radix) || !fits || guard.bits >> guard.size != 0 {
            return Err(Error::RangeError);
        }
        if self.pds.is_full() {
            return Err(Error::NotEnoughMemory);
        }
        let number = self.pds.len() as u16;
        let pd = PdId(number);
        let room = limits::SLOTS - limits::KERNEL_SLOTS + self.kernel_slots - self.slots.len();
        if room < 1 << radix || limits::KERNEL_SLOTS - self.kernel_slots < 3 {
            return Err(Error::NotEnoughMemory);
        }
        let first = self.slots.extend(Some(pd), 1 << radix).ok_or(Error::NotEnoughMemory)?;
        let object = Object::CNode(number);
        let root = Cap { object, rights: Rights::ALL, data: guard.word() };
        let pd_entry = Pd {
            root,
            state: State::Ready,
            incarnation: 0,
            status: 0,
            budget,
            keeps_stubs,
            used: 0,
            waits: 0,
            untyped: self.own_cap(Object::Untyped(pd), 0)?,
            own: self.own_cap(Object::Pd(pd), 0)?,
            cnode: self.own_cap(object, guard.word())?,
            fault: None,
            stub_fault: None,
            untold: None,
        };
        let cnode = CNode { owner: pd, first, radix, free_hint: 0 };
        self.cnodes.push(cnode).map_err(|_| Error::NotEnoughMemory)?;
        self.pds.push(pd_entry).map_err(|_| Error::NotEnoughMemory)?;
        Ok(pd)
    }

    /// Declares an endpoint. With a `server`, every PD that holds a capability to it with
    /// [`Rights::CLIENT`] has a channel to that server. [`Error::NotEnoughMemory`] when there is no
    /// room.
    pub fn declare_endpoint(&mut self, server: Option<PdId>) -> Result<EndpointId, Error> {
        if server.is_some_and(|s| self.pd_state(s).is_none()) {
            return Err(Error::InvalidArgument);
        }
        let declared = self.endpoints.iter::<EndpointId>().filter(|(_, e)| e.payer.is_none());
        if declared.count() == limits::DECLARED {
            return Err(Error::NotEnoughMemory);
        }
        let id =
            self.endpoints.insert(Endpoint::new(None, server)).ok_or(Error::NotEnoughMemory)?;
        self.own_cap(Object::Endpoint(id), 0)?;
        Ok(id)
    }

    /// Declares a notification. [`Error::NotEnoughMemory`] when there is no room.
    pub fn declare_notification(&mut self) -> Result<NotificationId, Error> {
        let declared = self.notifications.iter::<NotificationId>();
        if declared.filter(|(_, n)| n.payer.is_none()).count() == limits::DECLARED {
            return Err(Error::NotEnoughMemory);
        }
        let id =
            self.notifications.insert(Notification::new(None)).ok_or(Error::NotEnoughMemory)?;
        self.own_cap(Object::Notification(id), 0)?;
        Ok(id)
    }

    /// Declares a memory region of `length` bytes. [`Error::NotEnoughMemory`] when there is no
    /// room, [`Error::RangeError`] unless 1 to 2^43 bytes.
    pub fn declare_region(&mut self, length: u64) -> Result<RegionId, Error> {
        if !(1..=limits::REGION_LENGTH).contains(&length) {
            return Err(Error::RangeError);
        }
        let region = Region { length, sealed: false, payer: None, refs: 0 };
        let id = self.regions.insert(region).ok_or(Error::NotEnoughMemory)?;
        self.own_cap(Object::Region(id), 0)?;
        Ok(id)
    }

    /// Declares a first capability of a PD, which it has from its next start.
    ///
    /// [`Error::DeleteFirst`] if the slot is taken, [`Error::RangeError`] if it is none of the PD's,
    /// [`Error::InvalidArgument`] if the object is not declared or takes no badge,
    /// [`Error::NotEnoughMemory`] if there are too many, or too many channels for the PD.
    pub fn declare_grant(&mut self, grant: Grant) -> Result<(), Error> {
        if grant.slot < slot::FIRST_DECLARED || self.slot_of(grant.pd, grant.slot).is_none() {
            return Err(Error::RangeError);
        }
        let mine = |d: &&Declared| d.grant.pd == grant.pd;
        if self.grants.iter().filter(mine).any(|d| d.grant.slot == grant.slot) {
            return Err(Error::DeleteFirst);
        }
        if self.grants.is_full() {
            return Err(Error::NotEnoughMemory);
        }
        let takes_badge = matches!(grant.object, Object::Endpoint(_) | Object::Notification(_));
        if grant.badge != 0 && !takes_badge {
            return Err(Error::InvalidArgument);
        }
        let cap = Cap { object: grant.object, rights: grant.rights, data: grant.badge };
        if self.channel_of(cap).is_some() {
            let channel = |g: &Grant| {
                let cap = Cap { object: g.object, rights: g.rights, data: g.badge };
                self.channel_of(cap).is_some()
            };
            let held = self.grants.iter().filter(mine).filter(|d| channel(&d.grant)).count();
            if held >= limits::CHANNELS_PER_PD {
                return Err(Error::NotEnoughMemory);
            }
        }
        let known = self
            .slots
            .iter()
            .find(|(s, cap)| self.slots.owner(*s).is_none() && cap.object == grant.object)
            .map(|(s, _)| s);
        let source = match (known, grant.object) {
            (Some(source), _) => source,
            (None, Object::StubPool | Object::RegionPool | Object::Metrics) => {
                self.own_cap(grant.object, 0)?
            }
            (None, _) => return Err(Error::InvalidArgument),
        };
        self.grants.push(Declared { grant, source }).map_err(|_| Error::NotEnoughMemory)
    }

    /// Declares where a PD's death is told: [`clustix_abi::Fault::PdDeath`] messages with this
    /// badge. [`Error::InvalidArgument`] if there is no such PD or endpoint.
    pub fn declare_fault(
        &mut self,
        pd: PdId,
        endpoint: EndpointId,
        badge: Badge,
    ) -> Result<(), Error> {
        self.endpoints.get(endpoint).ok_or(Error::InvalidArgument)?;
        let p = self.pds.get_mut(usize::from(pd.0)).ok_or(Error::InvalidArgument)?;
        p.fault = Some((endpoint, badge));
        Ok(())
    }

    /// Declares where the deaths of a PD's stubs are told: [`clustix_abi::Fault::StubDeath`]
    /// messages with this badge. [`Error::InvalidArgument`] if there is no such PD or endpoint.
    pub fn declare_stub_fault(
        &mut self,
        pd: PdId,
        endpoint: EndpointId,
        badge: Badge,
    ) -> Result<(), Error> {
        self.endpoints.get(endpoint).ok_or(Error::InvalidArgument)?;
        let p = self.pds.get_mut(usize::from(pd.0)).ok_or(Error::InvalidArgument)?;
        p.stub_fault = Some((endpoint, badge));
        Ok(())
    }

    /// One step. The actions are valid until the next one.
    pub fn handle(&mut self, event: Event) -> &[Action] {
        self.actions.clear();
        match event {
            Event::Start { pd } => {
                self.start(pd);
            }
            Event::Invoke(inv) => {
                // A request may cross the word of its asker's death: nobody waits for the answer.
                if self.pd_state(inv.pd) == Some(State::Running) {
                    match self.syscall(&inv) {
                        Ok(Some(delivery)) => self.answer(Request::of(&inv), Ok(delivery)),
                        Ok(None) => {}
                        Err(error) => self.answer(Request::of(&inv), Err(error)),
                    }
                }
            }
            Event::Cancel { pd, request } => self.cancel(Request { pd, request }),
            Event::PdDied { pd, incarnation, status } => self.died(pd, incarnation, status),
            Event::StubDied { stub, status } => self.stub_died(stub, status),
            Event::StubsForgotten { pd } => self.forget_stubs(pd),
            Event::StubFailed { stub } => self.delete_all(Object::Stub(stub)),
            Event::SealFailed { region } => self.seal_failed(region),
            Event::RegionFailed { region } => self.delete_all(Object::Region(region)),
        }
        &self.actions
    }

    pub(crate) fn emit(&mut self, action: Action) {
        let full = self.actions.push(action).is_err();
        debug_assert!(!full, "limits::ACTIONS is the most that one step can order");
    }

    pub(crate) fn answer(&mut self, to: Request, result: Result<Delivery, Error>) {
        self.emit(Action::Answer { to, result });
    }
}

impl Request {
    pub(crate) fn of(inv: &Invocation) -> Self {
        Request { pd: inv.pd, request: inv.request }
    }
}

impl Default for Kernel {
    fn default() -> Self {
        Kernel::new()
    }
}
