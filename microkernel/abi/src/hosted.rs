//! Invocations that only a hosted kernel has. Their labels start at [`FIRST`], far above seL4's.
//!
//! Words are listed as they stand in the message; "caps" are the capabilities passed with it.

use crate::error::numbered;

/// The first label of Clustix's own invocations.
pub const FIRST: u64 = 0x1_0000;

numbered! {
/// A Clustix invocation.
pub enum Hosted: u64 {
    /// On a PD (write): start it, or start it again after it died. Error IllegalOperation while it
    /// runs.
    PdStart = 0x1_0000,
    /// On a PD (write): kill it. Its death is told as any other. Error IllegalOperation when it
    /// does not run.
    PdKill = 0x1_0001,
    /// On a PD (read). Answer: state (0 never started, 1 running, 2 dead), incarnation, last wait
    /// status.
    PdStatus = 0x1_0002,
    /// On the stub pool (write): start an empty stub. Answer: stub number, CPtr of its capability
    /// in the caller's CSpace, host pid; its window travels with the answer.
    StubSpawn = 0x1_0010,
    /// On a stub (write): make the address-space copy that this stub is about to create with
    /// clone(2) into a stub of its own. Answer as StubSpawn's.
    StubFork = 0x1_0011,
    /// On a stub (write): kill it. Its death is told as any other.
    StubKill = 0x1_0012,
    /// On a stub (write): interrupt its user code with the preemption signal.
    StubPreempt = 0x1_0013,
    /// On the region pool (write). Words: length in bytes, 1 to 2^43. Answer: region number, CPtr
    /// of its capability in the caller's CSpace; the memory travels with the answer, writable.
    RegionCreate = 0x1_0020,
    /// On a region (write): nobody can write it or change its length from now on. Error
    /// IllegalOperation if it is sealed already.
    RegionSeal = 0x1_0021,
    /// On a region (read). Caps: a stub (write). The stub is sent the memory. Error
    /// IllegalOperation unless it is sealed.
    RegionSend = 0x1_0022,
    /// On a region (read; write too if mapped writable). Words: 1 to map it writable, 0 read-only.
    /// The memory travels with the answer.
    RegionMap = 0x1_0023,
    /// On the metrics (read): every PD's counters.
    MetricsRead = 0x1_0030,
    /// On the metrics (read): every PD's role, host pid, restarts, start time and last exit.
    MetricsPds = 0x1_0031,
}
}
