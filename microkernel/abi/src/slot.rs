//! The capabilities that every PD starts with, at seL4's places (`seL4_RootCNodeCapSlots`).

use crate::CPtr;

/// Never a capability.
pub const NULL: CPtr = 0;
/// The PD itself, to observe (seL4: the initial thread's TCB).
pub const PD: CPtr = 1;
/// The PD's own root CNode.
pub const CNODE: CPtr = 2;
/// What the PD's objects are made from (Untyped_Retype): its object budget. seL4 lists a task's
/// untypeds in its boot information; here there is exactly one.
pub const UNTYPED: CPtr = 11;
/// The first slot that the system description may fill.
pub const FIRST_DECLARED: CPtr = 16;
