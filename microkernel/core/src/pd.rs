//! Protection domains: declared once, started and dying many times.

use crate::action::{Action, Delivery};
use crate::cap::{Cap, Object};
use crate::declare::Grant;
use crate::derivation::SlotId;
use crate::event::Message;
use crate::id::{EndpointId, PdId};
use crate::kernel::Kernel;
use crate::queue::{Item, Place};
use clustix_abi::{Badge, Fault, MessageInfo, Rights, slot};

/// Where a PD is in its life. The numbers are those of Pd_Status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Declared, never started.
    Ready = 0,
    /// Its process runs, or is being started or killed.
    Running = 1,
    /// Its process ended.
    Dead = 2,
}

/// A PD.
#[derive(Clone, Copy, Debug)]
pub struct Pd {
    /// Its root CNode, as its lookups start from it.
    pub root: Cap,
    /// Where it is in its life.
    pub state: State,
    /// Its starts so far.
    pub incarnation: u32,
    /// Wait status of its last death.
    pub status: i32,
    /// Most objects it may have, and how many it has.
    pub budget: u32,
    /// Whether its living stubs outlive it.
    pub keeps_stubs: bool,
    /// How many it has.
    pub used: u32,
    /// Operations of its that wait.
    pub waits: u8,
    /// The kernel's own capability to its budget: parent of all it makes.
    pub untyped: SlotId,
    /// The kernel's own capability to it.
    pub own: SlotId,
    /// The kernel's own capability to its root CNode.
    pub cnode: SlotId,
    /// Where its death is told.
    pub fault: Option<(EndpointId, Badge)>,
    /// Where its stubs' deaths are told.
    pub stub_fault: Option<(EndpointId, Badge)>,
    /// Its death's place in the queue there, while it is untold.
    pub untold: Option<Place>,
}

/// A declared capability with the kernel's own one that it is minted from.
#[derive(Clone, Copy, Debug)]
pub struct Declared {
    pub grant: Grant,
    pub source: SlotId,
}

impl Kernel {
    /// Starts a PD that does not run, with exactly what is declared for it; `false` if it runs.
    pub(crate) fn start(&mut self, pd: PdId) -> bool {
        let Some(p) = self.pds.get_mut(usize::from(pd.0)) else { return false };
        if p.state == State::Running {
            return false;
        }
        p.state = State::Running;
        p.incarnation = p.incarnation.wrapping_add(1);
        let p = *p;
        self.first_caps(pd, &p);
        for i in 0..self.grants.len() {
            let Some(Declared { grant, source }) = self.grants.get(i).copied() else { break };
            if grant.pd == pd {
                self.install(&grant, source);
            }
        }
        self.channels_of_server_open(pd);
        self.emit(Action::PdStart { pd, incarnation: p.incarnation });
        true
    }

    /// The capabilities that every PD has.
    fn first_caps(&mut self, pd: PdId, p: &Pd) {
        let first = [
            (slot::PD, Object::Pd(pd), Rights::READ, 0, p.own),
            (slot::CNODE, p.root.object, Rights::ALL, p.root.data, p.cnode),
            (slot::UNTYPED, Object::Untyped(pd), Rights::ALL, 0, p.untyped),
        ];
        for (index, object, rights, data, parent) in first {
            // What a PD makes by Retype is derived from its untyped, and goes when it revokes that.
            let original = matches!(object, Object::Untyped(_));
            if let Some(slot) = self.slot_of(pd, index) {
                self.place(slot, Cap { object, rights, data }, original, Some(parent));
            }
        }
    }

    fn install(&mut self, grant: &Grant, source: SlotId) {
        let (Some(slot), Some(kernels)) =
            (self.slot_of(grant.pd, grant.slot), self.slots.cap(source))
        else {
            return;
        };
        let badge = (grant.badge != 0).then_some(grant.badge);
        let Ok((cap, original)) = self.derived(kernels, grant.rights, badge) else { return };
        self.place(slot, cap, original, Some(source));
        if let Object::Region(region) = cap.object {
            let writable = cap.rights.contains(Rights::WRITE);
            self.emit(Action::RegionMap { region, pd: grant.pd, writable, to: None });
        }
    }

    /// The slot with this index in a PD's root CNode.
    pub(crate) fn slot_of(&self, pd: PdId, index: u64) -> Option<SlotId> {
        self.cnodes.get(usize::from(pd.0))?.slot(index)
    }

    /// A PD's process ended: nothing of it stays but the word of its death, and living stubs where it keeps
    /// those.
    pub(crate) fn died(&mut self, pd: PdId, incarnation: u32, status: i32) {
        let Some(p) = self.pds.get_mut(usize::from(pd.0)) else { return };
        if p.state != State::Running || p.incarnation != incarnation {
            return;
        }
        p.state = State::Dead;
        p.status = status;
        let (untyped, keeps_stubs) = (p.untyped, p.keeps_stubs);
        self.channels_of_server_close(pd);
        self.forget_waits(pd);
        if keeps_stubs {
            // Where a capability goes, what was derived from it stays derived: one pass meets everything.
            for n in 0..self.slots.len() {
                let slot = SlotId(n as u16);
                if self.slots.is_derived(slot, untyped) && !self.outlives(pd, slot) {
                    self.delete(slot);
                }
            }
        } else {
            self.revoke(untyped);
        }
        let slots = self.cnodes.get(usize::from(pd.0)).map_or(0, |c| 1u64 << c.radix);
        for index in 0..slots {
            if let Some(slot) = self.slot_of(pd, index).filter(|s| !self.outlives(pd, *s)) {
                self.delete(slot);
            }
        }
        self.cancel_sends_to(pd);
        self.tell_pd_fault(pd);
    }

    /// Ends what is queued, and not yet received, for a dead server.
    fn cancel_sends_to(&mut self, server: PdId) {
        let next = |k: &Kernel| {
            k.endpoints.iter::<EndpointId>().find_map(|(id, e)| {
                let waiting = e.server == Some(server)
                    && !e.receivers
                    && k.nodes.iter(&e.queue).any(|(_, i)| matches!(i, Item::Wait(_)));
                waiting.then_some(id)
            })
        };
        while let Some(endpoint) = next(self) {
            self.cancel_sends(endpoint, None);
        }
    }

    fn pd_fault(&self, pd: PdId) -> Delivery {
        let Some(p) = self.pds.get(usize::from(pd.0)) else { return Delivery::default() };
        let words = [u64::from(pd.0), p.status as u32 as u64, u64::from(p.incarnation)];
        let badge = p.fault.map_or(0, |(_, badge)| badge);
        fault_message(Fault::PdDeath, badge, &words)
    }

    fn tell_pd_fault(&mut self, pd: PdId) {
        let Some(p) = self.pds.get(usize::from(pd.0)) else { return };
        let (Some((endpoint, _)), None) = (p.fault, p.untold) else { return };
        if self.tell(endpoint, self.pd_fault(pd)) {
            return;
        }
        let Some(e) = self.endpoints.get_mut(endpoint) else { return };
        e.receivers = false;
        let place = self.nodes.push(&mut e.queue, Item::Pd(pd));
        if let Some(p) = self.pds.get_mut(usize::from(pd.0)) {
            p.untold = place;
        }
    }

    /// Takes a PD's death out of its queue to tell it.
    pub(crate) fn take_pd_fault(&mut self, pd: PdId) -> Delivery {
        self.drop_pd_fault(pd);
        self.pd_fault(pd)
    }

    /// Takes a PD's death out of its queue.
    pub(crate) fn drop_pd_fault(&mut self, pd: PdId) {
        let Some(p) = self.pds.get_mut(usize::from(pd.0)) else { return };
        let (Some(place), Some((endpoint, _))) = (p.untold.take(), p.fault) else { return };
        if let Some(e) = self.endpoints.get_mut(endpoint) {
            self.nodes.remove(&mut e.queue, place);
        }
    }
}

/// The message that tells a fault.
pub(crate) fn fault_message(fault: Fault, badge: Badge, words: &[u64]) -> Delivery {
    let mut delivery = Delivery::of(words);
    delivery.badge = badge;
    let Message { info, .. } = delivery.message;
    delivery.message.info = MessageInfo::new(fault.number(), 0, 0, info.length());
    delivery
}
