//! Capabilities in slots: how they come, are derived, and go; an object lives as long as its last
//! capability.

use crate::cap::{Cap, Object};
use crate::derivation::SlotId;
use crate::kernel::Kernel;
use crate::pd::State;
use clustix_abi::{Error, GuardData, Rights};

impl Kernel {
    /// The count of capabilities to an object; `None` for objects that live as long as the kernel.
    fn refs(&mut self, object: Object) -> Option<&mut u32> {
        match object {
            Object::Endpoint(id) => self.endpoints.get_mut(id).map(|o| &mut o.refs),
            Object::Notification(id) => self.notifications.get_mut(id).map(|o| &mut o.refs),
            Object::Reply(id) => self.replies.get_mut(id).map(|o| &mut o.refs),
            Object::Region(id) => self.regions.get_mut(id).map(|o| &mut o.refs),
            Object::Stub(id) => self.stubs.get_mut(id).map(|o| &mut o.refs),
            Object::Untyped(_)
            | Object::CNode(_)
            | Object::Pd(_)
            | Object::StubPool
            | Object::RegionPool
            | Object::Metrics => None,
        }
    }

    /// Whether a slot may take this capability: its PD runs and has room for its channel.
    pub(crate) fn may_place(&self, slot: SlotId, cap: Cap) -> Result<(), Error> {
        let Some(pd) = self.slots.owner(slot) else { return Err(Error::FailedLookup) };
        if self.pd_state(pd) != Some(State::Running) {
            return Err(Error::IllegalOperation);
        }
        self.channel_room(pd, cap)
    }

    /// Puts a capability into an empty slot.
    pub(crate) fn place(&mut self, slot: SlotId, cap: Cap, original: bool, parent: Option<SlotId>) {
        if !self.slots.is_empty(slot) {
            return;
        }
        self.slots.insert(slot, cap, original, parent);
        if let Some(refs) = self.refs(cap.object) {
            *refs += 1;
        }
        if let Some(pd) = self.slots.owner(slot) {
            self.channel_gain(pd, cap);
        }
    }

    /// Empties a slot; the object goes with its last capability.
    pub(crate) fn delete(&mut self, slot: SlotId) {
        let Some(cap) = self.slots.remove(slot) else { return };
        self.slot_freed(slot);
        if let Some(pd) = self.slots.owner(slot) {
            self.channel_lose(pd, cap);
        }
        let Some(refs) = self.refs(cap.object) else { return };
        *refs -= 1;
        if *refs == 0 {
            match cap.object {
                Object::Endpoint(id) => self.destroy_endpoint(id),
                Object::Notification(id) => self.destroy_notification(id),
                Object::Reply(id) => self.destroy_reply(id),
                Object::Region(id) => self.destroy_region(id),
                Object::Stub(id) => self.destroy_stub(id),
                _ => {}
            }
        }
    }

    /// Deletes everything derived from a slot's capability; the capability itself stays.
    pub(crate) fn revoke(&mut self, slot: SlotId) {
        while let Some(descendant) = self.slots.last_descendant(slot) {
            self.delete(descendant);
        }
    }

    /// Deletes every capability to an object.
    pub(crate) fn delete_all(&mut self, object: Object) {
        let next = |k: &Kernel| k.slots.iter().find(|(_, cap)| cap.object == object);
        while let Some((slot, _)) = next(self) {
            self.delete(slot);
        }
    }

    /// Moves a capability to an empty slot, changed to `cap`.
    pub(crate) fn relocate(&mut self, from: SlotId, to: SlotId, cap: Cap) -> Result<(), Error> {
        self.may_place(to, cap)?;
        let old = self.slots.cap(from).ok_or(Error::FailedLookup)?;
        let (source, target) = (self.slots.owner(from), self.slots.owner(to));
        self.slots.relocate(from, to, cap);
        self.slot_freed(from);
        // Gained before lost: a move within one PD must not end and begin its channel.
        if let Some(pd) = target {
            self.channel_gain(pd, cap);
        }
        if let Some(pd) = source {
            self.channel_lose(pd, old);
        }
        Ok(())
    }

    /// Exchanges two capabilities, each changed: `first` gets `new_first`, which was in `second`.
    pub(crate) fn exchange(
        &mut self,
        second: SlotId,
        first: SlotId,
        new_first: Cap,
        new_second: Cap,
    ) -> Result<(), Error> {
        let scratch = self.scratch.ok_or(Error::IllegalOperation)?;
        self.may_place(first, new_first)?;
        self.may_place(second, new_second)?;
        let old = [(first, self.slots.cap(first)), (second, self.slots.cap(second))];
        self.slots.relocate(second, scratch, new_first);
        self.slots.relocate(first, second, new_second);
        self.slots.relocate(scratch, first, new_first);
        for (slot, cap) in [(first, new_first), (second, new_second)] {
            if let Some(pd) = self.slots.owner(slot) {
                self.channel_gain(pd, cap);
            }
        }
        for (slot, cap) in old {
            if let (Some(pd), Some(cap)) = (self.slots.owner(slot), cap) {
                self.channel_lose(pd, cap);
            }
        }
        Ok(())
    }

    /// What copying or minting `cap` gives, and whether that is an original.
    pub(crate) fn derived(
        &self,
        cap: Cap,
        rights: Rights,
        data: Option<u64>,
    ) -> Result<(Cap, bool), Error> {
        let rights = match cap.object {
            Object::CNode(_) | Object::Untyped(_) | Object::Reply(_) => cap.rights,
            _ => cap.rights & rights,
        };
        let badged = matches!(cap.object, Object::Endpoint(_) | Object::Notification(_));
        let data = match data {
            None => cap.data,
            // A badge says who speaks: it can be given once, never changed.
            Some(_) if badged && cap.data != 0 => return Err(Error::IllegalOperation),
            Some(badge) if badged => badge,
            Some(word) => self.guarded(cap, word)?,
        };
        Ok((Cap { object: cap.object, rights, data }, badged && data != cap.data))
    }

    /// What Mutate makes of `cap`.
    pub(crate) fn mutated(&self, cap: Cap, data: u64) -> Result<Cap, Error> {
        if matches!(cap.object, Object::Endpoint(_) | Object::Notification(_)) {
            return Err(Error::IllegalOperation);
        }
        Ok(Cap { data: self.guarded(cap, data)?, ..cap })
    }

    /// A CNode capability's new guard; others keep what they have.
    fn guarded(&self, cap: Cap, word: u64) -> Result<u64, Error> {
        let Object::CNode(number) = cap.object else { return Ok(cap.data) };
        let radix = self.cnodes.get(usize::from(number)).map_or(0, |c| c.radix);
        let guard = GuardData::from_word(word)?;
        if u32::from(guard.size) + u32::from(radix) > crate::cnode::WORD_BITS {
            return Err(Error::IllegalOperation);
        }
        Ok(word)
    }
}
