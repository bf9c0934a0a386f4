//! A PD's object budget, and Untyped_Retype on it.
//!
//! Whatever a PD makes is charged to it until the object is gone; all of it is derived from the
//! PD's untyped capability, so that the PD's death, which revokes that, destroys it and refunds the
//! charge to the last object.

use crate::cap::{Cap, Object};
use crate::derivation::SlotId;
use crate::endpoint::Endpoint;
use crate::event::Invocation;
use crate::id::{EndpointId, NotificationId, PdId, ReplyId};
use crate::kernel::Kernel;
use crate::limits::{MADE_PER_PD, RETYPE_OBJECTS};
use crate::notification::Notification;
use crate::pd::State;
use crate::reply::Reply;
use clustix_abi::{Error, ObjectType, Rights};

impl Kernel {
    /// Charges objects to a PD.
    pub(crate) fn charge(&mut self, pd: PdId, count: u32) -> Result<(), Error> {
        let p = self.pds.get_mut(usize::from(pd.0)).ok_or(Error::NotEnoughMemory)?;
        let used = p.used.checked_add(count).filter(|u| *u <= p.budget);
        p.used = used.ok_or(Error::NotEnoughMemory)?;
        Ok(())
    }

    /// Takes the charge for one object back.
    pub(crate) fn refund(&mut self, payer: Option<PdId>) {
        if let Some(p) = payer.and_then(|pd| self.pds.get_mut(usize::from(pd.0))) {
            p.used = p.used.saturating_sub(1);
        }
    }

    /// Puts a new object's first capability into an empty slot, derived from an untyped one.
    pub(crate) fn first_cap(&mut self, slot: SlotId, object: Object, parent: Option<SlotId>) {
        self.place(slot, Cap { object, rights: Rights::ALL, data: 0 }, true, parent);
    }

    /// The kernel's own capability to a PD's budget.
    pub(crate) fn own_untyped(&self, pd: PdId) -> Option<SlotId> {
        self.pds.get(usize::from(pd.0)).map(|p| p.untyped)
    }

    /// Untyped_Retype. Words: type, size_bits, node_index, node_depth, node_offset, num_objects;
    /// capability: root.
    pub(crate) fn retype(
        &mut self,
        payer: PdId,
        untyped: SlotId,
        inv: &Invocation,
    ) -> Result<(), Error> {
        let [kind, _size_bits, index, depth, offset, count] = arguments(inv)?;
        let (_, root) = self.lookup(inv.pd, passed(inv, 0)?)?;
        let kind = ObjectType::from_number(kind).ok_or(Error::InvalidArgument)?;
        if !(1..=RETYPE_OBJECTS).contains(&count) {
            return Err(Error::RangeError);
        }
        let node = if depth == 0 {
            root
        } else {
            let slot = self.target(root, index, depth)?;
            self.slots.cap(slot).ok_or(Error::FailedLookup)?
        };
        let Object::CNode(number) = node.object else { return Err(Error::FailedLookup) };
        let cnode = *self.cnodes.get(usize::from(number)).ok_or(Error::FailedLookup)?;
        // Neither may a PD that does not run come to hold anything, nor be charged for it.
        if [payer, cnode.owner].iter().any(|pd| self.pd_state(*pd) != Some(State::Running)) {
            return Err(Error::IllegalOperation);
        }
        let end = offset.checked_add(count).ok_or(Error::RangeError)?;
        if end > 1 << cnode.radix {
            return Err(Error::RangeError);
        }
        if (offset..end).any(|i| cnode.slot(i).is_none_or(|s| !self.slots.is_empty(s))) {
            return Err(Error::DeleteFirst);
        }
        let by = Some(payer);
        let made = match kind {
            ObjectType::EndpointObject => {
                self.endpoints.iter::<EndpointId>().filter(|(_, o)| o.payer == by).count()
            }
            ObjectType::NotificationObject => {
                self.notifications.iter::<NotificationId>().filter(|(_, o)| o.payer == by).count()
            }
            ObjectType::ReplyObject => {
                self.replies.iter::<ReplyId>().filter(|(_, o)| o.payer == by).count()
            }
            _ => return Err(Error::InvalidArgument),
        };
        if made + count as usize > MADE_PER_PD {
            return Err(Error::NotEnoughMemory);
        }
        self.charge(payer, count as u32)?;
        let parent = self.slots.derived_parent(untyped);
        for slot in (offset..end).filter_map(|i| cnode.slot(i)) {
            let object = match kind {
                ObjectType::EndpointObject => {
                    self.endpoints.insert(Endpoint::new(Some(payer), None)).map(Object::Endpoint)
                }
                ObjectType::NotificationObject => self
                    .notifications
                    .insert(Notification::new(Some(payer)))
                    .map(Object::Notification),
                _ => self.replies.insert(Reply::new(Some(payer))).map(Object::Reply),
            };
            if let Some(object) = object {
                self.first_cap(slot, object, parent);
            }
        }
        Ok(())
    }
}

/// The first `N` words of an invocation.
pub(crate) fn arguments<const N: usize>(inv: &Invocation) -> Result<[u64; N], Error> {
    let words = inv.message.words.get(..inv.message.info.length()).ok_or(Error::RangeError)?;
    words.first_chunk().copied().ok_or(Error::TruncatedMessage)
}

/// The `n`th capability passed with an invocation.
pub(crate) fn passed(inv: &Invocation, n: usize) -> Result<clustix_abi::CPtr, Error> {
    inv.caps
        .get(..inv.message.info.extra_caps())
        .and_then(|c| c.get(n))
        .copied()
        .ok_or(Error::TruncatedMessage)
}
