//! Stubs: the address spaces of POSIX programs, as their owner's kernel objects.

use crate::action::{Action, Delivery, Request};
use crate::cap::{Cap, Object};
use crate::derivation::SlotId;
use crate::event::Invocation;
use crate::id::{PdId, StubId};
use crate::kernel::{Kernel, Outcome};
use crate::pd::{State, fault_message};
use crate::queue::{Item, Place};
use clustix_abi::{Error, Fault, Hosted, Rights, slot as places};

/// A stub. Its owner is who made it, is charged for it, and is told of its death.
#[derive(Clone, Copy, Debug)]
pub struct Stub {
    /// Who made it.
    pub owner: PdId,
    /// Wait status once it is dead.
    pub dead: Option<i32>,
    /// Its death's place in the queue of its owner's fault endpoint, while it is untold.
    pub untold: Option<Place>,
    /// Capabilities that name it.
    pub refs: u32,
}

impl Kernel {
    /// The stub pool's one invocation.
    pub(crate) fn invoke_stub_pool(&mut self, inv: &Invocation, cap: Cap) -> Outcome {
        if inv.message.info.label() != Hosted::StubSpawn.number() {
            return Err(Error::IllegalOperation);
        }
        if !cap.rights.contains(Rights::WRITE) {
            return Err(Error::InvalidCapability);
        }
        let (stub, slot) = self.make_stub(inv.pd)?;
        self.emit(Action::StubSpawn { stub, slot, to: Request::of(inv) });
        Ok(None)
    }

    fn make_stub(&mut self, owner: PdId) -> Result<(StubId, u64), Error> {
        let (slot, cptr) = self.free_slot(owner)?;
        if self.stubs.room() == 0 {
            return Err(Error::NotEnoughMemory);
        }
        self.charge(owner, 1)?;
        let stub = Stub { owner, dead: None, untold: None, refs: 0 };
        let id: StubId = self.stubs.insert(stub).ok_or(Error::NotEnoughMemory)?;
        let untyped = self.own_untyped(owner);
        self.first_cap(slot, Object::Stub(id), untyped);
        Ok((id, cptr))
    }

    /// Invocations on a stub.
    pub(crate) fn invoke_stub(&mut self, inv: &Invocation, id: StubId, cap: Cap) -> Outcome {
        let label = Hosted::from_number(inv.message.info.label());
        let label = label
            .filter(|l| matches!(l, Hosted::StubFork | Hosted::StubKill | Hosted::StubPreempt))
            .ok_or(Error::IllegalOperation)?;
        if !cap.rights.contains(Rights::WRITE) {
            return Err(Error::InvalidCapability);
        }
        let dead = self.stubs.get(id).is_none_or(|s| s.dead.is_some());
        match label {
            Hosted::StubFork if dead => return Err(Error::IllegalOperation),
            Hosted::StubFork => {
                let (stub, slot) = self.make_stub(inv.pd)?;
                self.emit(Action::StubFork { stub, parent: id, slot, to: Request::of(inv) });
                return Ok(None);
            }
            // The order may cross the word of the death: no error.
            _ if dead => {}
            Hosted::StubKill => self.emit(Action::StubKill { stub: id }),
            _ => self.emit(Action::StubPreempt { stub: id }),
        }
        Ok(Some(Delivery::default()))
    }

    /// A stub's process ended.
    pub(crate) fn stub_died(&mut self, id: StubId, status: i32) {
        let Some(stub) = self.stubs.get_mut(id).filter(|s| s.dead.is_none()) else { return };
        stub.dead = Some(status);
        let owner = stub.owner;
        if self.pd_state(owner) != Some(State::Running) {
            // Its owner's next life hears nothing of it, and does not find it.
            return self.delete_all(Object::Stub(id));
        }
        let Some((endpoint, _)) = self.pds.get(usize::from(owner.0)).and_then(|p| p.stub_fault)
        else {
            return;
        };
        if self.tell(endpoint, self.stub_fault(id)) {
            return;
        }
        let Some(e) = self.endpoints.get_mut(endpoint) else { return };
        e.receivers = false;
        let place = self.nodes.push(&mut e.queue, Item::Stub(id));
        if let Some(s) = self.stubs.get_mut(id) {
            s.untold = place;
        }
    }

    fn stub_fault(&self, id: StubId) -> Delivery {
        let Some(s) = self.stubs.get(id) else { return Delivery::default() };
        let words = [u64::from(id.0), s.dead.unwrap_or(0) as u32 as u64];
        let fault = self.pds.get(usize::from(s.owner.0)).and_then(|p| p.stub_fault);
        fault_message(Fault::StubDeath, fault.map_or(0, |(_, badge)| badge), &words)
    }

    /// Takes a stub's death out of its queue to tell it.
    pub(crate) fn take_stub_fault(&mut self, id: StubId) -> Delivery {
        self.drop_stub_fault(id);
        self.stub_fault(id)
    }

    /// Takes a stub's death out of its queue.
    pub(crate) fn drop_stub_fault(&mut self, id: StubId) {
        let Some(s) = self.stubs.get_mut(id) else { return };
        let Some(place) = s.untold.take() else { return };
        let fault = self.pds.get(usize::from(s.owner.0)).and_then(|p| p.stub_fault);
        if let Some(e) = fault.and_then(|(endpoint, _)| self.endpoints.get_mut(endpoint)) {
            self.nodes.remove(&mut e.queue, place);
        }
    }

    /// Whether the capability in a slot stays when `pd` dies: its own to a living stub of its, if it keeps those,
    /// and not where its next life has another from its start.
    pub(crate) fn outlives(&self, pd: PdId, slot: SlotId) -> bool {
        let Some(Object::Stub(id)) = self.slots.cap(slot).map(|c| c.object) else { return false };
        let declared = |index: u64| {
            index < places::FIRST_DECLARED
                || self.grants.iter().any(|d| d.grant.pd == pd && d.grant.slot == index)
        };
        let first = self.cnodes.get(usize::from(pd.0)).map_or(0, |c| c.first.0);
        self.slots.owner(slot) == Some(pd)
            && !declared(u64::from(slot.0.saturating_sub(first)))
            && self.pds.get(usize::from(pd.0)).is_some_and(|p| p.keeps_stubs)
            && self.stubs.get(id).is_some_and(|s| s.owner == pd && s.dead.is_none())
    }

    /// A PD that is not started again has no stubs any more.
    pub(crate) fn forget_stubs(&mut self, pd: PdId) {
        if self.pd_state(pd) == Some(State::Running) {
            return;
        }
        let of =
            |k: &Kernel| k.stubs.iter::<StubId>().find_map(|(id, s)| (s.owner == pd).then_some(id));
        while let Some(stub) = of(self) {
            self.delete_all(Object::Stub(stub));
        }
    }

    /// The last capability is gone: so is the stub, running or not.
    pub(crate) fn destroy_stub(&mut self, id: StubId) {
        self.drop_stub_fault(id);
        if let Some(s) = self.stubs.remove(id) {
            self.refund(Some(s.owner));
            self.emit(Action::StubDestroy { stub: id });
        }
    }
}
