//! `seL4_Fault`: the labels of the messages that a fault endpoint receives, and their words.
//!
//! A label proves nothing: whoever may send to an endpoint chooses it. A receiver knows a fault by
//! its *badge*, which nobody else's capability to that endpoint may carry.

use crate::error::numbered;

numbered! {
/// What happened to a thread, a stub or a PD. Up to [`Fault::VMFault`] seL4's.
pub enum Fault: u64 {
    /// No fault.
    NullFault = 0,
    /// An invalid capability was used.
    CapFault = 1,
    /// A system call that is not the kernel's: for a stub, every Linux system call.
    UnknownSyscall = 2,
    /// An exception, such as an undefined instruction.
    UserException = 3,
    /// Not raised by the hosted kernel.
    DebugException = 4,
    /// An access that the address space does not allow.
    VMFault = 5,
    /// Clustix's own: a PD died. Words: PD number, wait status (as of waitpid(2)), incarnation.
    PdDeath = 0x1000,
    /// Clustix's own: a stub died. Words: stub number, wait status (as of waitpid(2)).
    StubDeath = 0x1001,
}
}

/// Words of a [`Fault::VMFault`] message, in order.
pub const VM_FAULT_WORDS: [&str; 4] = ["IP", "Addr", "PrefetchFault", "FSR"];
/// Words of a [`Fault::UserException`] message, in order.
pub const USER_EXCEPTION_WORDS: [&str; 5] = ["FaultIP", "SP", "FLAGS", "Number", "Code"];
/// Words of a [`Fault::UnknownSyscall`] message, in order.
pub const UNKNOWN_SYSCALL_WORDS: [&str; 19] = [
    "RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "R8", "R9", "R10", "R11", "R12", "R13", "R14",
    "R15", "FaultIP", "SP", "FLAGS", "Syscall",
];
