//! Labels of seL4's invocations, and the order of their arguments.
//!
//! Numbers are counted as seL4's own generator does: 1 for the first method of `sel4.xml`, one more
//! for each further method there, then in the two x86 files; conditional methods are left out (see
//! the crate's documentation). The hosted kernel carries out those on Untyped (Retype) and CNode;
//! the others answer IllegalOperation, and are listed so that no number is ever used for anything
//! else.

use crate::error::numbered;

numbered! {
/// An invocation of seL4: the label of a message to the kernel. The names are the description's
/// method ids.
pub enum Invocation: u64 {
    /// `seL4_Untyped_Retype`.
    UntypedRetype = 1,
    /// `seL4_TCB_ReadRegisters`.
    TCBReadRegisters = 2,
    /// `seL4_TCB_WriteRegisters`.
    TCBWriteRegisters = 3,
    /// `seL4_TCB_CopyRegisters`.
    TCBCopyRegisters = 4,
    /// `seL4_TCB_Configure`.
    TCBConfigure = 5,
    /// `seL4_TCB_SetPriority`.
    TCBSetPriority = 6,
    /// `seL4_TCB_SetMCPriority`.
    TCBSetMCPriority = 7,
    /// `seL4_TCB_SetIPCBuffer`.
    TCBSetIPCBuffer = 8,
    /// `seL4_TCB_SetSpace`.
    TCBSetSpace = 9,
    /// `seL4_TCB_Suspend`.
    TCBSuspend = 10,
    /// `seL4_TCB_Resume`.
    TCBResume = 11,
    /// `seL4_TCB_BindNotification`.
    TCBBindNotification = 12,
    /// `seL4_TCB_UnbindNotification`.
    TCBUnbindNotification = 13,
    /// `seL4_CNode_Revoke`.
    CNodeRevoke = 14,
    /// `seL4_CNode_Delete`.
    CNodeDelete = 15,
    /// `seL4_CNode_CancelBadgedSends`.
    CNodeCancelBadgedSends = 16,
    /// `seL4_CNode_Copy`.
    CNodeCopy = 17,
    /// `seL4_CNode_Mint`.
    CNodeMint = 18,
    /// `seL4_CNode_Move`.
    CNodeMove = 19,
    /// `seL4_CNode_Mutate`.
    CNodeMutate = 20,
    /// `seL4_CNode_Rotate`.
    CNodeRotate = 21,
    /// `seL4_CNode_SaveCaller`.
    CNodeSaveCaller = 22,
    /// `seL4_IRQControl_Get`.
    IRQIssueIRQHandler = 23,
    /// `seL4_IRQHandler_Ack`.
    IRQAckIRQ = 24,
    /// `seL4_IRQHandler_SetNotification`.
    IRQSetIRQHandler = 25,
    /// `seL4_IRQHandler_Clear`.
    IRQClearIRQHandler = 26,
    /// `seL4_DomainSet_Set`.
    DomainSetSet = 27,
    /// `seL4_X86_PDPT_Map`.
    X86PDPTMap = 28,
    /// `seL4_X86_PDPT_Unmap`.
    X86PDPTUnmap = 29,
    /// `seL4_X86_PageDirectory_Map`.
    X86PageDirectoryMap = 30,
    /// `seL4_X86_PageDirectory_Unmap`.
    X86PageDirectoryUnmap = 31,
    /// `seL4_X86_PageDirectory_GetStatusBits`.
    X86PageDirectoryGetStatusBits = 32,
    /// `seL4_X86_PageTable_Map`.
    X86PageTableMap = 33,
    /// `seL4_X86_PageTable_Unmap`.
    X86PageTableUnmap = 34,
    /// `seL4_X86_IOPageTable_Map`.
    X86IOPageTableMap = 35,
    /// `seL4_X86_IOPageTable_Unmap`.
    X86IOPageTableUnmap = 36,
    /// `seL4_X86_Page_Map`.
    X86PageMap = 37,
    /// `seL4_X86_Page_Remap`.
    X86PageRemap = 38,
    /// `seL4_X86_Page_Unmap`.
    X86PageUnmap = 39,
    /// `seL4_X86_Page_MapIO`.
    X86PageMapIO = 40,
    /// `seL4_X86_Page_GetAddress`.
    X86PageGetAddress = 41,
    /// `seL4_X86_ASIDControl_MakePool`.
    X86ASIDControlMakePool = 42,
    /// `seL4_X86_ASIDPool_Assign`.
    X86ASIDPoolAssign = 43,
    /// `seL4_X86_IOPort_In8`.
    X86IOPortIn8 = 44,
    /// `seL4_X86_IOPort_In16`.
    X86IOPortIn16 = 45,
    /// `seL4_X86_IOPort_In32`.
    X86IOPortIn32 = 46,
    /// `seL4_X86_IOPort_Out8`.
    X86IOPortOut8 = 47,
    /// `seL4_X86_IOPort_Out16`.
    X86IOPortOut16 = 48,
    /// `seL4_X86_IOPort_Out32`.
    X86IOPortOut32 = 49,
    /// `seL4_IRQControl_GetIOAPIC`.
    X86IRQIssueIRQHandlerIOAPIC = 50,
    /// `seL4_IRQControl_GetMSI`.
    X86IRQIssueIRQHandlerMSI = 51,
}
}

impl Invocation {
    /// Names of the arguments in the description's order. Capabilities among them travel as the
    /// message's capabilities, the others as its words, each in this order.
    pub const fn arguments(self) -> &'static [&'static str] {
        match self {
            Invocation::UntypedRetype => &[
                "type",
                "size_bits",
                "root",
                "node_index",
                "node_depth",
                "node_offset",
                "num_objects",
            ],
            Invocation::TCBReadRegisters => &["suspend_source", "arch_flags", "count"],
            Invocation::TCBWriteRegisters => &["resume_target", "arch_flags", "count", "regs"],
            Invocation::TCBCopyRegisters => &[
                "source",
                "suspend_source",
                "resume_target",
                "transfer_frame",
                "transfer_integer",
                "arch_flags",
            ],
            Invocation::TCBConfigure => &[
                "fault_ep",
                "priority",
                "cspace_root",
                "cspace_root_data",
                "vspace_root",
                "vspace_root_data",
                "buffer",
                "bufferFrame",
            ],
            Invocation::TCBSetPriority => &["priority"],
            Invocation::TCBSetMCPriority => &["mcp"],
            Invocation::TCBSetIPCBuffer => &["buffer", "bufferFrame"],
            Invocation::TCBSetSpace => {
                &["fault_ep", "cspace_root", "cspace_root_data", "vspace_root", "vspace_root_data"]
            }
            Invocation::TCBSuspend => &[],
            Invocation::TCBResume => &[],
            Invocation::TCBBindNotification => &["notification"],
            Invocation::TCBUnbindNotification => &[],
            Invocation::CNodeRevoke => &["index", "depth"],
            Invocation::CNodeDelete => &["index", "depth"],
            Invocation::CNodeCancelBadgedSends => &["index", "depth"],
            Invocation::CNodeCopy => {
                &["dest_index", "dest_depth", "src_root", "src_index", "src_depth", "rights"]
            }
            Invocation::CNodeMint => &[
                "dest_index",
                "dest_depth",
                "src_root",
                "src_index",
                "src_depth",
                "rights",
                "badge",
            ],
            Invocation::CNodeMove => {
                &["dest_index", "dest_depth", "src_root", "src_index", "src_depth"]
            }
            Invocation::CNodeMutate => {
                &["dest_index", "dest_depth", "src_root", "src_index", "src_depth", "badge"]
            }
            Invocation::CNodeRotate => &[
                "dest_index",
                "dest_depth",
                "dest_badge",
                "pivot_root",
                "pivot_index",
                "pivot_depth",
                "pivot_badge",
                "src_root",
                "src_index",
                "src_depth",
            ],
            Invocation::CNodeSaveCaller => &["index", "depth"],
            Invocation::IRQIssueIRQHandler => &["irq", "root", "index", "depth"],
            Invocation::IRQAckIRQ => &[],
            Invocation::IRQSetIRQHandler => &["notification"],
            Invocation::IRQClearIRQHandler => &[],
            Invocation::DomainSetSet => &["domain", "thread"],
            Invocation::X86PDPTMap => &["pml4", "vaddr", "attr"],
            Invocation::X86PDPTUnmap => &[],
            Invocation::X86PageDirectoryMap => &["vroot", "vaddr", "attr"],
            Invocation::X86PageDirectoryUnmap => &[],
            Invocation::X86PageDirectoryGetStatusBits => &["vaddr"],
            Invocation::X86PageTableMap => &["vroot", "vaddr", "attr"],
            Invocation::X86PageTableUnmap => &[],
            Invocation::X86IOPageTableMap => &["iospace", "ioaddr"],
            Invocation::X86IOPageTableUnmap => &[],
            Invocation::X86PageMap => &["vroot", "vaddr", "rights", "attr"],
            Invocation::X86PageRemap => &["vroot", "rights", "attr"],
            Invocation::X86PageUnmap => &[],
            Invocation::X86PageMapIO => &["iospace", "rights", "ioaddr"],
            Invocation::X86PageGetAddress => &[],
            Invocation::X86ASIDControlMakePool => &["untyped", "root", "index", "depth"],
            Invocation::X86ASIDPoolAssign => &["vroot"],
            Invocation::X86IOPortIn8 => &["port"],
            Invocation::X86IOPortIn16 => &["port"],
            Invocation::X86IOPortIn32 => &["port"],
            Invocation::X86IOPortOut8 => &["port", "data"],
            Invocation::X86IOPortOut16 => &["port", "data"],
            Invocation::X86IOPortOut32 => &["port", "data"],
            Invocation::X86IRQIssueIRQHandlerIOAPIC => {
                &["root", "index", "depth", "ioapic", "pin", "level", "polarity", "vector"]
            }
            Invocation::X86IRQIssueIRQHandlerMSI => {
                &["root", "index", "depth", "pci_bus", "pci_dev", "pci_func", "handle", "vector"]
            }
        }
    }
}
