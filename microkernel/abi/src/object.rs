//! `seL4_ObjectType`: the types Untyped_Retype takes.

use crate::error::numbered;

/// Where Clustix's own object types start.
pub const OWN_FIRST: u64 = 0x1_0000;

numbered! {
/// Type of a kernel object. Below [`OWN_FIRST`] seL4's (x86_64 without huge pages, IOMMU and VTX).
pub enum ObjectType: u64 {
    /// Where objects are made from.
    UntypedObject = 0,
    /// A thread.
    TCBObject = 1,
    /// Synchronous message passing.
    EndpointObject = 2,
    /// A word of signals.
    NotificationObject = 3,
    /// A CNode: slots of capabilities.
    CapTableObject = 4,
    /// Not offered; named so that the number stays seL4's.
    X86PDPTObject = 5,
    /// Not offered; named so that the number stays seL4's.
    X64PML4Object = 6,
    /// A frame of 4 KiB.
    X864K = 7,
    /// Not offered; named so that the number stays seL4's.
    X86LargePageObject = 8,
    /// Not offered; named so that the number stays seL4's.
    X86PageTableObject = 9,
    /// Not offered; named so that the number stays seL4's.
    X86PageDirectoryObject = 10,
    /// An explicit reply object, as in seL4's MCS kernel; the number is Clustix's.
    ReplyObject = 0x1_0000,
    /// A protection domain.
    PdObject = 0x1_0001,
    /// A stub process: the address space of one POSIX program.
    StubObject = 0x1_0002,
    /// A memory region.
    RegionObject = 0x1_0003,
}
}
