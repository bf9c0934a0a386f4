//! What the host may read of the kernel's state. Nothing here changes anything.

use crate::cap::Cap;
use crate::id::{PdId, RegionId, StubId};
use crate::kernel::Kernel;
use crate::pd::State;

impl Kernel {
    /// Where a PD is in its life; `None` if it is not declared.
    pub fn pd_state(&self, pd: PdId) -> Option<State> {
        self.pds.get(usize::from(pd.0)).map(|p| p.state)
    }

    /// How often a PD was started.
    pub fn pd_incarnation(&self, pd: PdId) -> Option<u32> {
        self.pds.get(usize::from(pd.0)).map(|p| p.incarnation)
    }

    /// How many objects a PD has, and how many it may have.
    pub fn pd_budget(&self, pd: PdId) -> Option<(u32, u32)> {
        self.pds.get(usize::from(pd.0)).map(|p| (p.used, p.budget))
    }

    /// The capabilities in a PD's root CNode, each with its slot's index.
    pub fn caps(&self, pd: PdId) -> impl Iterator<Item = (u64, Cap)> + '_ {
        let slots = self.cnodes.get(usize::from(pd.0)).map_or(0, |c| 1u64 << c.radix);
        (0..slots).filter_map(move |i| Some((i, self.slots.cap(self.slot_of(pd, i)?)?)))
    }

    /// Length in bytes of a region, and whether it is sealed.
    pub fn region(&self, region: RegionId) -> Option<(u64, bool)> {
        self.regions.get(region).map(|r| (r.length, r.sealed))
    }

    /// Who made a stub, and whether it is dead.
    pub fn stub(&self, stub: StubId) -> Option<(PdId, bool)> {
        self.stubs.get(stub).map(|s| (s.owner, s.dead.is_some()))
    }
}
