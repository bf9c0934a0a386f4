//! Slots, and the derivation tree over the capabilities in them: seL4's "mapping database" (MDB).
//!
//! seL4 keeps an ordered list and infers parenthood from it; here each capability has its parent,
//! which is the same relation stated directly. An *original* capability (made by Retype, or minted
//! with a new badge) is the parent of what is derived from it; a plain copy is not, so what is
//! derived from a copy is the copy's sibling, and revoking a copy removes nothing.

use crate::cap::Cap;
use crate::id::PdId;
use crate::limits::SLOTS;
use heapless::Vec;

/// A slot's place among all slots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotId(pub u16);

/// What a full slot holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    cap: Cap,
    /// seL4's mdbRevocable: whether what is derived from it becomes its child.
    original: bool,
    /// Slot + 1; 0 for none.
    parent: u16,
    first_child: u16,
    next: u16,
    prev: u16,
}

#[derive(Debug)]
struct Slot {
    /// The PD whose root CNode the slot is part of; `None`: the kernel's own.
    owner: Option<PdId>,
    held: Option<Held>,
}

/// All slots of the kernel.
#[derive(Debug)]
pub struct Slots {
    slots: Vec<Slot, SLOTS>,
}

impl Slots {
    pub const fn new() -> Self {
        Slots { slots: Vec::new() }
    }

    pub fn clear(&mut self) {
        self.slots.clear();
    }

    /// Slots so far.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Adds `count` empty slots in a row; `None` if there are not so many left.
    pub fn extend(&mut self, owner: Option<PdId>, count: usize) -> Option<SlotId> {
        let first = self.slots.len();
        if SLOTS - first < count {
            return None;
        }
        for _ in 0..count {
            self.slots.push(Slot { owner, held: None }).ok()?;
        }
        Some(SlotId(first as u16))
    }

    fn held(&self, slot: SlotId) -> Option<&Held> {
        self.slots.get(usize::from(slot.0))?.held.as_ref()
    }

    fn link(&mut self, link: u16) -> Option<&mut Held> {
        self.slots.get_mut(usize::from(link.checked_sub(1)?))?.held.as_mut()
    }

    /// The capability in a slot.
    pub fn cap(&self, slot: SlotId) -> Option<Cap> {
        self.held(slot).map(|h| h.cap)
    }

    /// Whether the capability in a slot is an original.
    pub fn is_original(&self, slot: SlotId) -> bool {
        self.held(slot).is_some_and(|h| h.original)
    }

    /// The PD that a slot belongs to.
    pub fn owner(&self, slot: SlotId) -> Option<PdId> {
        self.slots.get(usize::from(slot.0))?.owner
    }

    /// What was derived to make this capability.
    pub fn parent(&self, slot: SlotId) -> Option<SlotId> {
        self.held(slot)?.parent.checked_sub(1).map(SlotId)
    }

    /// The parent of what is derived from `source`: itself if it is an original, else its parent.
    pub fn derived_parent(&self, source: SlotId) -> Option<SlotId> {
        if self.is_original(source) { Some(source) } else { self.parent(source) }
    }

    /// Whether the capability in a slot is derived, in however many steps, from that in another.
    pub fn is_derived(&self, slot: SlotId, from: SlotId) -> bool {
        let mut up = self.parent(slot);
        // As deep as the tree at most, which has no cycle: `check` walks it.
        while let Some(parent) = up.filter(|p| *p != from) {
            up = self.parent(parent);
        }
        up.is_some()
    }

    /// A capability derived from this one from which nothing is derived itself.
    pub fn last_descendant(&self, slot: SlotId) -> Option<SlotId> {
        let mut link = self.held(slot)?.first_child;
        // As deep as the tree at most, which has no cycle: `check` walks it.
        while let Some(h) = link.checked_sub(1).and_then(|i| self.held(SlotId(i))) {
            if h.first_child == 0 {
                return Some(SlotId(link - 1));
            }
            link = h.first_child;
        }
        None
    }

    /// Puts a capability into an empty slot; no effect on a full one.
    pub fn insert(&mut self, slot: SlotId, cap: Cap, original: bool, parent: Option<SlotId>) {
        let me = slot.0 + 1;
        let Some(s) = self.slots.get_mut(usize::from(slot.0)) else { return };
        if s.held.is_some() {
            return;
        }
        s.held = Some(Held { cap, original, parent: 0, first_child: 0, next: 0, prev: 0 });
        self.adopt(parent.map_or(0, |p| p.0 + 1), me);
    }

    /// Makes `child` the first child of `parent` (links).
    fn adopt(&mut self, parent: u16, child: u16) {
        let first = match self.link(parent) {
            Some(p) => core::mem::replace(&mut p.first_child, child),
            None => 0,
        };
        if let Some(f) = self.link(first) {
            f.prev = child;
        }
        if let Some(c) = self.link(child) {
            (c.parent, c.next, c.prev) = (parent, first, 0);
        }
    }

    /// Empties a slot. What was derived from its capability now counts as derived from its parent.
    pub fn remove(&mut self, slot: SlotId) -> Option<Cap> {
        let held = self.slots.get_mut(usize::from(slot.0))?.held.take()?;
        match self.link(held.prev) {
            Some(p) => p.next = held.next,
            None => {
                if let Some(p) = self.link(held.parent) {
                    p.first_child = held.next;
                }
            }
        }
        if let Some(n) = self.link(held.next) {
            n.prev = held.prev;
        }
        let mut child = held.first_child;
        while let Some(c) = self.link(child) {
            let next = c.next;
            self.adopt(held.parent, child);
            child = next;
        }
        Some(held.cap)
    }

    /// Moves a capability to an empty slot with its place in the tree, changed to `cap`.
    pub fn relocate(&mut self, from: SlotId, to: SlotId, cap: Cap) {
        let new = to.0 + 1;
        if from == to {
            if let Some(h) = self.link(new) {
                h.cap = cap;
            }
            return;
        }
        if !self.is_empty(to) {
            return;
        }
        let Some(mut held) = self.slots.get_mut(usize::from(from.0)).and_then(|s| s.held.take())
        else {
            return;
        };
        held.cap = cap;
        match self.link(held.prev) {
            Some(p) => p.next = new,
            None => {
                if let Some(p) = self.link(held.parent) {
                    p.first_child = new;
                }
            }
        }
        if let Some(n) = self.link(held.next) {
            n.prev = new;
        }
        let mut child = held.first_child;
        while let Some(c) = self.link(child) {
            c.parent = new;
            child = c.next;
        }
        if let Some(s) = self.slots.get_mut(usize::from(to.0)) {
            s.held = Some(held);
        }
    }

    /// Whether a slot exists and is empty.
    pub fn is_empty(&self, slot: SlotId) -> bool {
        self.slots.get(usize::from(slot.0)).is_some_and(|s| s.held.is_none())
    }

    /// Every full slot.
    pub fn iter(&self) -> impl Iterator<Item = (SlotId, Cap)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(i, s)| s.held.as_ref().map(|h| (SlotId(i as u16), h.cap)))
    }

    /// Whether every link of the tree has its counterpart, and every chain of parents ends.
    pub fn well_formed(&self) -> bool {
        self.iter().all(|(slot, _)| {
            let Some(h) = self.held(slot) else { return false };
            let me = slot.0 + 1;
            let at = |link: u16| link.checked_sub(1).and_then(|i| self.held(SlotId(i)));
            let siblings = match at(h.prev) {
                Some(p) => p.next == me && p.parent == h.parent,
                None => h.prev == 0 && at(h.parent).is_none_or(|p| p.first_child == me),
            };
            let next = match at(h.next) {
                Some(n) => n.prev == me && n.parent == h.parent,
                None => h.next == 0,
            };
            let child = match at(h.first_child) {
                Some(c) => c.parent == me && c.prev == 0,
                None => h.first_child == 0,
            };
            let mut up = slot;
            let ends = (0..8).any(|_| match self.parent(up) {
                Some(p) => {
                    up = p;
                    self.held(p).is_none()
                }
                None => true,
            });
            siblings && next && child && ends && (h.parent == 0 || at(h.parent).is_some())
        })
    }
}
