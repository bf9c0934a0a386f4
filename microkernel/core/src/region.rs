//! Memory regions: what a Frame is in seL4, of any length, and not mapped at a chosen address.

use crate::action::{Action, Request};
use crate::budget::{arguments, passed};
use crate::cap::{Cap, Object};
use crate::event::Invocation;
use crate::id::{PdId, RegionId};
use crate::kernel::{Kernel, Outcome};
use crate::limits::REGION_LENGTH;
use clustix_abi::{Error, Hosted, Rights};

/// A memory region.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// Length in bytes.
    pub length: u64,
    /// Whether nobody can write it any more.
    pub sealed: bool,
    /// Whom it is charged to; `None` for a declared one.
    pub payer: Option<PdId>,
    /// Capabilities that name it.
    pub refs: u32,
}

impl Kernel {
    /// The region pool's one invocation.
    pub(crate) fn invoke_region_pool(&mut self, inv: &Invocation, cap: Cap) -> Outcome {
        if inv.message.info.label() != Hosted::RegionCreate.number() {
            return Err(Error::IllegalOperation);
        }
        if !cap.rights.contains(Rights::WRITE) {
            return Err(Error::InvalidCapability);
        }
        let [length] = arguments(inv)?;
        if !(1..=REGION_LENGTH).contains(&length) {
            return Err(Error::RangeError);
        }
        let (place, slot) = self.free_slot(inv.pd)?;
        if self.regions.room() == 0 {
            return Err(Error::NotEnoughMemory);
        }
        self.charge(inv.pd, 1)?;
        let region = Region { length, sealed: false, payer: Some(inv.pd), refs: 0 };
        let region: RegionId = self.regions.insert(region).ok_or(Error::NotEnoughMemory)?;
        let untyped = self.own_untyped(inv.pd);
        self.first_cap(place, Object::Region(region), untyped);
        self.emit(Action::RegionCreate { region, length, slot, to: Request::of(inv) });
        Ok(None)
    }

    /// Invocations on a region.
    pub(crate) fn invoke_region(&mut self, inv: &Invocation, id: RegionId, cap: Cap) -> Outcome {
        let to = Request::of(inv);
        let may = |rights| {
            if cap.rights.contains(rights) { Ok(()) } else { Err(Error::InvalidCapability) }
        };
        let region = self.regions.get_mut(id).ok_or(Error::Gone)?;
        let action = match Hosted::from_number(inv.message.info.label()) {
            Some(Hosted::RegionSeal) => {
                may(Rights::WRITE)?;
                if core::mem::replace(&mut region.sealed, true) {
                    return Err(Error::IllegalOperation);
                }
                Action::RegionSeal { region: id, to }
            }
            Some(Hosted::RegionSend) => {
                may(Rights::READ)?;
                // A stub's program does as it likes with what the stub is sent.
                if !region.sealed {
                    return Err(Error::IllegalOperation);
                }
                let (_, target) = self.lookup(inv.pd, passed(inv, 0)?)?;
                let Object::Stub(stub) = target.object else {
                    return Err(Error::InvalidCapability);
                };
                if !target.rights.contains(Rights::WRITE) {
                    return Err(Error::InvalidCapability);
                }
                if self.stubs.get(stub).is_none_or(|s| s.dead.is_some()) {
                    return Err(Error::IllegalOperation);
                }
                Action::RegionSend { region: id, stub, to }
            }
            Some(Hosted::RegionMap) => {
                let [writable] = arguments(inv)?;
                if writable > 1 {
                    return Err(Error::InvalidArgument);
                }
                let writable = writable == 1;
                may(if writable { Rights::READ | Rights::WRITE } else { Rights::READ })?;
                if writable && region.sealed {
                    return Err(Error::IllegalOperation);
                }
                Action::RegionMap { region: id, pd: inv.pd, writable, to: Some(to) }
            }
            _ => return Err(Error::IllegalOperation),
        };
        self.emit(action);
        Ok(None)
    }

    /// The host could not seal it.
    pub(crate) fn seal_failed(&mut self, id: RegionId) {
        if let Some(r) = self.regions.get_mut(id) {
            r.sealed = false;
        }
    }

    /// The last capability is gone.
    pub(crate) fn destroy_region(&mut self, id: RegionId) {
        if let Some(r) = self.regions.remove(id) {
            self.refund(r.payer);
            self.emit(Action::RegionDestroy { region: id });
        }
    }
}
