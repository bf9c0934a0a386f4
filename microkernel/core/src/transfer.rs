//! What a message carries from one PD to another: words, and capabilities (manual, "Capability
//! Transfer").

use crate::action::Delivery;
use crate::cap::Object;
use crate::event::{Invocation, MESSAGE_CAPS, MESSAGE_WORDS};
use crate::id::{EndpointId, PdId};
use crate::kernel::Kernel;
use crate::wait::Outgoing;
use clustix_abi::{Badge, CPtr, Error, MessageInfo, Rights};

/// Whose message it is, and by what right it travels.
#[derive(Clone, Copy, Debug)]
pub struct Sender {
    /// The sending PD.
    pub pd: PdId,
    /// The endpoint it was sent through; `None` for an answer.
    pub through: Option<EndpointId>,
    /// Badge the receiver sees.
    pub badge: Badge,
    /// Whether it may pass capabilities.
    pub grant: bool,
}

impl Kernel {
    /// Checks what an invocation sends: its lengths, and that its capabilities are there.
    pub(crate) fn outgoing(&self, inv: &Invocation) -> Result<Outgoing, Error> {
        let info = inv.message.info;
        if info.length() > MESSAGE_WORDS {
            return Err(Error::RangeError);
        }
        for cptr in inv.caps.iter().take(info.extra_caps()) {
            self.lookup(inv.pd, *cptr)?;
        }
        Ok(Outgoing { message: inv.message, caps: inv.caps })
    }

    /// Makes what the receiver gets. At most one capability goes to its receive slot; those that
    /// name the endpoint itself arrive as badges; the first that can do neither ends the transfer.
    pub(crate) fn transfer(
        &mut self,
        sender: Sender,
        outgoing: &Outgoing,
        to: PdId,
        receive: CPtr,
    ) -> Delivery {
        let info = outgoing.message.info;
        let length = info.length().min(MESSAGE_WORDS);
        let mut delivery = Delivery { badge: sender.badge, ..Delivery::default() };
        if let (Some(into), Some(from)) =
            (delivery.message.words.get_mut(..length), outgoing.message.words.get(..length))
        {
            into.copy_from_slice(from);
        }
        let mut arrived = 0;
        let mut unwrapped = 0u64;
        let mut slot = self.receive_slot(to, receive);
        let count = if sender.grant { info.extra_caps().min(MESSAGE_CAPS) } else { 0 };
        for (cptr, out) in outgoing.caps.iter().take(count).zip(delivery.caps.iter_mut()) {
            let Ok((source, cap)) = self.lookup(sender.pd, *cptr) else { break };
            if sender.through.is_some_and(|e| cap.object == Object::Endpoint(e)) {
                *out = cap.badge();
                unwrapped |= 1 << arrived;
            } else {
                let Some(into) = slot.take() else { break };
                let Ok((derived, original)) = self.derived(cap, Rights::ALL, None) else { break };
                if self.may_place(into, derived).is_err() {
                    break;
                }
                let parent = self.slots.derived_parent(source);
                self.place(into, derived, original, parent);
                *out = receive;
            }
            arrived += 1;
        }
        delivery.message.info = MessageInfo::new(info.label(), unwrapped, arrived, length);
        delivery
    }

    /// The slot that a receiver offers, if it is there and empty.
    fn receive_slot(&self, pd: PdId, receive: CPtr) -> Option<crate::derivation::SlotId> {
        if receive == clustix_abi::slot::NULL {
            return None;
        }
        let root = self.root(pd).ok()?;
        let (slot, _) = self.resolve(root, receive, crate::cnode::WORD_BITS).ok()?;
        self.slots.is_empty(slot).then_some(slot)
    }
}
