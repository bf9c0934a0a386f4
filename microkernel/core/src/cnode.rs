//! CNodes, and how a CPtr is resolved: guard, then radix, level by level (manual, "CSpace
//! Addressing").

use crate::cap::{Cap, Object};
use crate::derivation::SlotId;
use crate::id::PdId;
use crate::kernel::Kernel;
use clustix_abi::{CPtr, Error, LookupFailure};

/// A CNode: `2^radix` slots in a row.
#[derive(Clone, Copy, Debug)]
pub struct CNode {
    /// The PD whose root CNode it is.
    pub owner: PdId,
    /// Its first slot.
    pub first: SlotId,
    /// Logarithm of its number of slots.
    pub radix: u8,
    /// No slot below this index is empty, except perhaps slots that the kernel does not choose.
    pub free_hint: u16,
}

impl CNode {
    /// The slot at an index; `None` beyond the CNode's end.
    pub fn slot(&self, index: u64) -> Option<SlotId> {
        (index < 1 << self.radix).then(|| SlotId(self.first.0 + index as u16))
    }
}

/// Bits of a CPtr.
pub const WORD_BITS: u32 = 64;

impl Kernel {
    /// Resolves the low `bits` bits of `cptr` from a CNode capability. Gives the slot, and how many
    /// bits were left when the resolution came to something that is no CNode.
    pub(crate) fn resolve(
        &self,
        root: Cap,
        cptr: CPtr,
        bits: u32,
    ) -> Result<(SlotId, u32), LookupFailure> {
        let mut cap = root;
        let mut left = bits;
        loop {
            let Object::CNode(number) = cap.object else { return Err(LookupFailure::InvalidRoot) };
            let cnode = self.cnodes.get(usize::from(number)).ok_or(LookupFailure::InvalidRoot)?;
            let guard = cap.guard();
            let (size, radix) = (u32::from(guard.size), u32::from(cnode.radix));
            let field = |shift: u32, width: u32| {
                cptr.checked_shr(shift).unwrap_or(0) & ((1u64 << width) - 1)
            };
            if size > left || field(left - size, size) != guard.bits {
                return Err(LookupFailure::GuardMismatch);
            }
            if size + radix > left {
                return Err(LookupFailure::DepthMismatch);
            }
            left -= size + radix;
            let slot = cnode.slot(field(left, radix)).ok_or(LookupFailure::DepthMismatch)?;
            match self.slots.cap(slot) {
                Some(next @ Cap { object: Object::CNode(_), .. }) if left > 0 => cap = next,
                _ => return Ok((slot, left)),
            }
        }
    }

    /// The capability to a PD's own root CNode, as the kernel uses it for the PD's lookups.
    pub(crate) fn root(&self, pd: PdId) -> Result<Cap, Error> {
        self.pds.get(usize::from(pd.0)).map(|p| p.root).ok_or(Error::FailedLookup)
    }

    /// A capability of a PD, and where it is. As in seL4, bits left over are not looked at.
    pub(crate) fn lookup(&self, pd: PdId, cptr: CPtr) -> Result<(SlotId, Cap), Error> {
        let (slot, _) =
            self.resolve(self.root(pd)?, cptr, WORD_BITS).map_err(|_| Error::FailedLookup)?;
        self.slots.cap(slot).map(|cap| (slot, cap)).ok_or(Error::FailedLookup)
    }

    /// A slot, full or empty, that an invocation names: all of `depth` bits must be used.
    pub(crate) fn target(&self, root: Cap, index: CPtr, depth: u64) -> Result<SlotId, Error> {
        if !(1..=u64::from(WORD_BITS)).contains(&depth) {
            return Err(Error::RangeError);
        }
        match self.resolve(root, index, depth as u32) {
            Ok((slot, 0)) => Ok(slot),
            Ok(_) | Err(_) => Err(Error::FailedLookup),
        }
    }

    /// The empty slot with the lowest index, from the first declarable one, of a PD's root CNode,
    /// and its CPtr.
    pub(crate) fn free_slot(&mut self, pd: PdId) -> Result<(SlotId, CPtr), Error> {
        let root = self.root(pd)?;
        let Object::CNode(number) = root.object else { return Err(Error::FailedLookup) };
        let Some(cnode) = self.cnodes.get_mut(usize::from(number)) else {
            return Err(Error::FailedLookup);
        };
        let start = u64::from(cnode.free_hint).max(clustix_abi::slot::FIRST_DECLARED);
        let found = (start..1 << cnode.radix)
            .find_map(|i| cnode.slot(i).filter(|s| self.slots.is_empty(*s)).map(|s| (s, i)));
        cnode.free_hint = found.map_or(1 << cnode.radix, |(_, i)| i as u16);
        let (slot, index) = found.ok_or(Error::NotEnoughMemory)?;
        let guard = root.guard();
        let low = u32::from(cnode.radix);
        let used = low + u32::from(guard.size);
        // The guard, then the index, in the CPtr's high bits; bits that are not resolved are 0.
        let cptr = (guard.bits << low | index) << (WORD_BITS - used);
        Ok((slot, cptr))
    }

    /// Notes that a slot became empty.
    pub(crate) fn slot_freed(&mut self, slot: SlotId) {
        let Some(pd) = self.slots.owner(slot) else { return };
        if let Some(c) = self.cnodes.get_mut(usize::from(pd.0)) {
            c.free_hint = c.free_hint.min(slot.0.saturating_sub(c.first.0));
        }
    }
}
