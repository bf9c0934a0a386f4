//! System calls, and the invocations that they carry to kernel objects.

use crate::action::{Action, Delivery, Request};
use crate::budget::{arguments, passed};
use crate::cap::{Cap, Object};
use crate::derivation::SlotId;
use crate::endpoint::Sending;
use crate::event::{Invocation as Inv, MESSAGE_WORDS};
use crate::id::{PdId, ReplyId};
use crate::kernel::{Kernel, Outcome};
use crate::pd::State;
use clustix_abi::{CPtr, Error, Hosted, Invocation, Rights, Syscall};

impl Kernel {
    /// A PD's system call.
    pub(crate) fn syscall(&mut self, inv: &Inv) -> Outcome {
        if inv.message.info.length() > MESSAGE_WORDS {
            return Err(Error::RangeError);
        }
        let (send, receive) = (inv.send, inv.cptr);
        match inv.syscall {
            Syscall::Call => self.invoke(inv, inv.cptr, Sending::Call),
            Syscall::Send => self.invoke(inv, inv.cptr, Sending::Wait),
            Syscall::NBSend => self.invoke(inv, inv.cptr, Sending::NonBlocking),
            Syscall::Reply => {
                let reply = self.reply_object(inv.pd, inv.reply)?.ok_or(Error::FailedLookup)?;
                self.reply(inv, reply)
            }
            Syscall::ReplyRecv => {
                let reply = self.reply_object(inv.pd, inv.reply)?.ok_or(Error::FailedLookup)?;
                self.may_receive(inv.pd, receive)?;
                self.reply(inv, reply)?;
                self.take(inv, Some(reply), true)
            }
            Syscall::Recv => {
                let reply = self.reply_object(inv.pd, inv.reply)?;
                self.take(inv, reply, true)
            }
            Syscall::NBRecv => {
                let reply = self.reply_object(inv.pd, inv.reply)?;
                self.take(inv, reply, false)
            }
            Syscall::Wait => self.take(inv, None, true),
            Syscall::NBWait => self.take(inv, None, false),
            Syscall::NBSendRecv => {
                let reply = self.reply_object(inv.pd, inv.reply)?;
                self.may_receive(inv.pd, receive)?;
                self.invoke(inv, send, Sending::NonBlocking)?;
                self.take(inv, reply, true)
            }
            Syscall::NBSendWait => {
                self.may_receive(inv.pd, receive)?;
                self.invoke(inv, send, Sending::NonBlocking)?;
                self.take(inv, None, true)
            }
            Syscall::Yield => Ok(Some(Delivery::default())),
        }
    }

    /// The reply object at a CPtr; 0 is none.
    fn reply_object(&self, pd: PdId, cptr: CPtr) -> Result<Option<ReplyId>, Error> {
        if cptr == clustix_abi::slot::NULL {
            return Ok(None);
        }
        match self.lookup(pd, cptr)?.1.object {
            Object::Reply(id) => Ok(Some(id)),
            _ => Err(Error::InvalidCapability),
        }
    }

    /// Whether the receiving half of a combined call can be done at all: asked before its sending
    /// half, so that the call is refused as a whole or not at all.
    fn may_receive(&self, pd: PdId, cptr: CPtr) -> Result<(), Error> {
        let (_, cap) = self.lookup(pd, cptr)?;
        match cap.object {
            Object::Endpoint(_) | Object::Notification(_) if cap.rights.contains(Rights::READ) => {
                self.may_wait(pd)
            }
            _ => Err(Error::InvalidCapability),
        }
    }

    /// Receives, or takes signals.
    fn take(&mut self, inv: &Inv, reply: Option<ReplyId>, blocking: bool) -> Outcome {
        let (_, cap) = self.lookup(inv.pd, inv.cptr)?;
        match cap.object {
            Object::Endpoint(id) => self.receive(inv, id, cap, reply, blocking),
            Object::Notification(id) => self.wait_signal(inv, id, cap, blocking),
            _ => Err(Error::InvalidCapability),
        }
    }

    /// Sends to whatever a CPtr names.
    fn invoke(&mut self, inv: &Inv, cptr: CPtr, how: Sending) -> Outcome {
        let (slot, cap) = self.lookup(inv.pd, cptr)?;
        match cap.object {
            Object::Endpoint(id) => self.send(inv, id, cap, how),
            Object::Notification(id) => self.signal(id, cap),
            Object::Reply(id) => self.reply(inv, id),
            // A combined call has one answer, and that is its receiving half's.
            _ if matches!(inv.syscall, Syscall::NBSendRecv | Syscall::NBSendWait) => {
                Err(Error::IllegalOperation)
            }
            Object::CNode(_) => self.invoke_cnode(inv, cap).map(|()| Some(Delivery::default())),
            Object::Untyped(payer) => {
                if inv.message.info.label() != Invocation::UntypedRetype.number() {
                    return Err(Error::IllegalOperation);
                }
                self.retype(payer, slot, inv).map(|()| Some(Delivery::default()))
            }
            Object::Pd(pd) => self.invoke_pd(inv, pd, cap),
            Object::StubPool => self.invoke_stub_pool(inv, cap),
            Object::Stub(id) => self.invoke_stub(inv, id, cap),
            Object::RegionPool => self.invoke_region_pool(inv, cap),
            Object::Region(id) => self.invoke_region(inv, id, cap),
            Object::Metrics => self.invoke_metrics(inv, cap),
        }
    }

    fn invoke_pd(&mut self, inv: &Inv, pd: PdId, cap: Cap) -> Outcome {
        let p = *self.pds.get(usize::from(pd.0)).ok_or(Error::InvalidCapability)?;
        let may = |rights| {
            if cap.rights.contains(rights) { Ok(()) } else { Err(Error::InvalidCapability) }
        };
        match Hosted::from_number(inv.message.info.label()) {
            Some(Hosted::PdStart) => {
                may(Rights::WRITE)?;
                if !self.start(pd) {
                    return Err(Error::IllegalOperation);
                }
                Ok(Some(Delivery::of(&[u64::from(p.incarnation.wrapping_add(1))])))
            }
            Some(Hosted::PdKill) => {
                may(Rights::WRITE)?;
                if p.state != State::Running {
                    return Err(Error::IllegalOperation);
                }
                self.emit(Action::PdKill { pd, incarnation: p.incarnation });
                Ok(Some(Delivery::default()))
            }
            Some(Hosted::PdStatus) => {
                may(Rights::READ)?;
                let words = [p.state as u64, u64::from(p.incarnation), p.status as u32 as u64];
                Ok(Some(Delivery::of(&words)))
            }
            _ => Err(Error::IllegalOperation),
        }
    }

    fn invoke_metrics(&mut self, inv: &Inv, cap: Cap) -> Outcome {
        let to = Request::of(inv);
        let action = match Hosted::from_number(inv.message.info.label()) {
            Some(Hosted::MetricsRead) => Action::MetricsRead { to },
            Some(Hosted::MetricsPds) => Action::MetricsPds { to },
            _ => return Err(Error::IllegalOperation),
        };
        if !cap.rights.contains(Rights::READ) {
            return Err(Error::InvalidCapability);
        }
        self.emit(action);
        Ok(None)
    }

    fn invoke_cnode(&mut self, inv: &Inv, cnode: Cap) -> Result<(), Error> {
        let label = Invocation::from_number(inv.message.info.label())
            .filter(|l| {
                (Invocation::CNodeRevoke.number()..=Invocation::CNodeRotate.number())
                    .contains(&l.number())
            })
            .ok_or(Error::IllegalOperation)?;
        let [index, depth] = arguments(inv)?;
        let target = self.target(cnode, index, depth)?;
        match label {
            Invocation::CNodeRevoke => self.revoke(target),
            Invocation::CNodeDelete => self.delete(target),
            Invocation::CNodeCancelBadgedSends => return self.cancel_badged_sends(target),
            Invocation::CNodeRotate => return self.rotate(inv, target),
            _ => return self.derive_into(inv, label, target),
        }
        Ok(())
    }

    fn cancel_badged_sends(&mut self, slot: SlotId) -> Result<(), Error> {
        match self.slots.cap(slot) {
            Some(cap @ Cap { object: Object::Endpoint(id), rights, .. })
                if rights.contains(Rights::READ | Rights::WRITE | Rights::GRANT) =>
            {
                if cap.badge() != 0 {
                    self.cancel_sends(id, Some(cap.badge()));
                }
                Ok(())
            }
            _ => Err(Error::IllegalOperation),
        }
    }

    /// Copy, Mint, Move and Mutate.
    fn derive_into(&mut self, inv: &Inv, label: Invocation, to: SlotId) -> Result<(), Error> {
        let [_, _, index, depth] = arguments(inv)?;
        let (_, root) = self.lookup(inv.pd, passed(inv, 0)?)?;
        if !self.slots.is_empty(to) {
            return Err(Error::DeleteFirst);
        }
        let from = self.target(root, index, depth)?;
        let cap = self.slots.cap(from).ok_or(Error::FailedLookup)?;
        let (rights, data) = match label {
            Invocation::CNodeMove => return self.relocate(from, to, cap),
            Invocation::CNodeMutate => {
                let [_, _, _, _, data] = arguments(inv)?;
                let cap = self.mutated(cap, data)?;
                return self.relocate(from, to, cap);
            }
            Invocation::CNodeMint => {
                let [_, _, _, _, rights, data] = arguments(inv)?;
                (rights, Some(data))
            }
            _ => {
                let [_, _, _, _, rights] = arguments(inv)?;
                (rights, None)
            }
        };
        let (derived, original) = self.derived(cap, Rights::from_word(rights), data)?;
        self.may_place(to, derived)?;
        let parent = self.slots.derived_parent(from);
        self.place(to, derived, original, parent);
        Ok(())
    }

    /// Rotate: the pivot's capability goes to `to`, the source's to the pivot, each mutated.
    fn rotate(&mut self, inv: &Inv, to: SlotId) -> Result<(), Error> {
        let [_, _, to_data, pivot, pivot_depth, pivot_data, source, source_depth] = arguments(inv)?;
        let (_, pivot_root) = self.lookup(inv.pd, passed(inv, 0)?)?;
        let (_, source_root) = self.lookup(inv.pd, passed(inv, 1)?)?;
        let from = self.target(source_root, source, source_depth)?;
        let pivot = self.target(pivot_root, pivot, pivot_depth)?;
        if pivot == from || pivot == to {
            return Err(Error::IllegalOperation);
        }
        if from != to && !self.slots.is_empty(to) {
            return Err(Error::DeleteFirst);
        }
        let source_cap = self.slots.cap(from).ok_or(Error::FailedLookup)?;
        let pivot_cap = self.slots.cap(pivot).ok_or(Error::FailedLookup)?;
        // seL4 leaves a capability alone when its new data is 0.
        let change = |cap, data| if data == 0 { Ok(cap) } else { self.mutated(cap, data) };
        let (new_to, new_pivot) = (change(pivot_cap, to_data)?, change(source_cap, pivot_data)?);
        if from == to {
            return self.exchange(pivot, to, new_to, new_pivot);
        }
        self.may_place(pivot, new_pivot)?;
        self.relocate(pivot, to, new_to)?;
        self.relocate(from, pivot, new_pivot)
    }
}
