//! The system description's side: PDs, endpoints, notifications, regions and first capabilities,
//! made by the host before anything runs.
//!
//! Declared objects live as long as the kernel; their first capabilities are the kernel's own. A
//! PD's declared capabilities are minted anew at each of its starts.

use crate::cap::Object;
use crate::id::PdId;
use clustix_abi::{Badge, CPtr, GuardData, Rights};

/// One PD of the system description.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PdDeclaration {
    /// Its root CNode has `2^radix` slots, 6 to 13.
    pub radix: u8,
    /// Guard of its root CNode; [`PdDeclaration::new`] gives the one with which a CPtr is simply a
    /// slot's index.
    pub guard: GuardData,
    /// Most objects it may have at a time: reply objects, notifications, endpoints, stubs, regions.
    pub budget: u32,
    /// Whether its living stubs, and its capabilities to them, outlive its death, for its next start.
    pub keeps_stubs: bool,
}

impl PdDeclaration {
    /// A PD with a flat CSpace, no budget and no supervisor.
    pub const fn new(radix: u8) -> Self {
        PdDeclaration {
            radix,
            guard: GuardData { bits: 0, size: 64 - radix },
            budget: 0,
            keeps_stubs: false,
        }
    }
}

/// A capability that a PD has from its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grant {
    /// Who has it.
    pub pd: PdId,
    /// Where: [`clustix_abi::slot::FIRST_DECLARED`] or above, below `2^radix`.
    pub slot: CPtr,
    /// What it names.
    pub object: Object,
    /// What it allows.
    pub rights: Rights,
    /// Its badge; endpoints and notifications only.
    pub badge: Badge,
}
