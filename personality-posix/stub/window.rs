//! The window protocol: what a stub and the personality say to each other.
//!
//! This file is compiled into both. A window is 128 KiB of memory shared by one app thread's stub
//! and the personality: a header, one request, one program, and a data area of 64 KiB. The stub
//! writes a request and rings; the personality answers with a *program*, a list of [`Step`]s that
//! the stub carries out in order in the app's address space. A program that ends with
//! [`op::RETURN`] lets the app go on; any other end (the last step, or the first that failed)
//! is answered by the stub with a request of kind [`kind::DONE`], over the same window.
//!
//! The app can write to the window as it likes. To the personality every byte in it is hostile: it
//! is copied once, then checked, then acted on.

/// First address of the stub; below it everything is the app's.
pub const STUB_BASE: u64 = 0x7e00_0000_0000;
/// End of what an app may map: two units of 64 KiB (the filter's) below the stub.
pub const APP_END: u64 = STUB_BASE - 0x2_0000;
/// Where a stub maps its window.
pub const WINDOW_ADDRESS: u64 = STUB_BASE + 0x1000_0000;
/// Bytes in a window.
pub const WINDOW_LEN: usize = 128 * 1024;
/// Where a stub's signal stack stands; the app's registers are saved there.
pub const STACK_ADDRESS: u64 = STUB_BASE + 0x2000_0000;
/// Bytes in a stub's signal stack: a frame with AVX-512 and AMX state takes 12 KiB, two may nest.
pub const STACK_LEN: usize = 128 * 1024;
/// The signal with which the kernel preempts a stub.
pub const PREEMPT_SIGNAL: i32 = 63;

/// Offsets in the window.
pub mod at {
    /// u32: number of the latest request; the stub rings it.
    pub const REQUEST_WORD: usize = 0x00;
    /// u32: number of the latest answered request; the personality rings it.
    pub const REPLY_WORD: usize = 0x04;
    /// u64: request bells rung, for the wake-up counters.
    pub const BELLS: usize = 0x10;
    /// u32: PID, for the stub's own answer to getpid.
    pub const PID: usize = 0x18;
    /// u32: number of steps in the program.
    pub const STEPS: usize = 0x1c;
    // The personality's notes for its next life, see its `standing`.
    /// u32: number of the request that is looked at.
    pub const TAKEN: usize = 0x20;
    /// u32: what becomes of that request if the personality dies.
    pub const WAY: usize = 0x24;
    /// u32: number of the request whose answer lets the app go on.
    pub const RETURNED: usize = 0x28;
    /// u64: number of the call under way.
    pub const CALLED: usize = 0x30;
    /// u64: its deadline, CLOCK_MONOTONIC, ns; 0: none.
    pub const UNTIL: usize = 0x38;
    /// [`super::Request`].
    pub const REQUEST: usize = 0x40;
    /// Array of [`super::Step`].
    pub const PROGRAM: usize = 0x1000;
    /// Data area.
    pub const DATA: usize = 0x1_0000;
}
/// Bytes in the data area.
pub const DATA_LEN: usize = 0x1_0000;
/// Most steps in a program.
pub const MAX_STEPS: usize = 256;

/// What a request is about.
pub mod kind {
    /// The stub has started, or (after [`super::op::FORK`]) is a child that waits for orders.
    pub const HELLO: u64 = 1;
    /// A system call.
    pub const CALL: u64 = 2;
    /// A program ended without RETURN; results are in its steps.
    pub const DONE: u64 = 3;
    /// A processor exception in the app: `nr` is the signal, args are si_code, si_addr, trapno, err.
    pub const FAULT: u64 = 4;
    /// The kernel's preemption signal arrived while the app ran.
    pub const PREEMPTED: u64 = 5;
}

/// Marks an argument in [`Request::copied`] that could not be read from the app's memory.
pub const FAULTED: u64 = u64::MAX;

/// A request, at [`at::REQUEST`].
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Request {
    /// [`kind`].
    pub kind: u64,
    /// System call number, as the app gave it.
    pub nr: u64,
    /// Arguments. rt_sigreturn: the mask, and the alternate stack's address, flags and size.
    pub args: [u64; 6],
    /// The app's instruction pointer (behind the syscall instruction).
    pub ip: u64,
    /// The app's stack pointer.
    pub sp: u64,
    /// CPU the app thread runs on.
    pub cpu: u64,
    /// What was copied from the app for each argument: offset in the data area in the low half,
    /// bytes in the high half; 0: nothing; [`FAULTED`].
    pub copied: [u64; 6],
    /// DONE: steps carried out, the failed one not counted.
    pub steps: u64,
    /// DONE: 0, or the failed step's Linux error number, negative.
    pub failed: i64,
}

/// Operations of a step. `a` to `d` are its operands; offsets count from the data area's start.
pub mod op {
    /// The app goes on: the call's result is `a`, unless `b` is 1 (registers as they are).
    pub const RETURN: u64 = 1;
    /// Copies `c` bytes at offset `a` to address `b`.
    pub const COPY_OUT: u64 = 2;
    /// Copies `c` bytes at address `a` to offset `b`.
    pub const COPY_IN: u64 = 3;
    /// Copies the string at address `a` to offset `b`, at most `c` bytes with its NUL; result: its
    /// length without the NUL; ENAMETOOLONG.
    pub const STRING_IN: u64 = 4;
    /// Copies the strings of the NULL-terminated array of pointers at `a`, from index `d` on, to
    /// offset `b`, NULs included, at most `c` bytes; result: how many, | 1 << 31 if the array's end
    /// was reached, | bytes << 32. A string longer than the space: E2BIG.
    pub const STRINGS_IN: u64 = 5;
    /// Zeroes `b` bytes at `a`.
    pub const ZERO: u64 = 6;
    /// Copies `c` bytes from address `a` to address `b`.
    pub const MOVE: u64 = 7;
    /// Maps `b` bytes of zeroes at `a`, protection `c`. Nothing may be there.
    pub const MAP: u64 = 8;
    /// As MAP, a private copy of the held descriptor's file from byte `d` on.
    pub const MAP_FILE: u64 = 9;
    /// Unmaps `b` bytes at `a`.
    pub const UNMAP: u64 = 10;
    /// mprotect: `b` bytes at `a`, protection `c`.
    pub const PROTECT: u64 = 11;
    /// MADV_DONTNEED: `b` bytes at `a`.
    pub const DISCARD: u64 = 12;
    /// Receives a descriptor from the kernel and holds it.
    pub const RECEIVE: u64 = 13;
    /// Closes the held descriptor.
    pub const DROP: u64 = 14;
    /// Receives window and socket of a child from the kernel and forks; result: 0.
    pub const FORK: u64 = 15;
    /// FS base := `a`.
    pub const SET_FS: u64 = 16;
    /// A fresh program's registers: instruction pointer `a`, stack pointer `b`, the rest zero.
    pub const LOAD: u64 = 17;
    /// The call's result := `a`; the program goes on.
    pub const RESULT: u64 = 18;
    /// The app will make the call again: back before its syscall instruction, number `a`.
    pub const RESTART: u64 = 19;
    /// Builds a signal frame as the [`super::Delivery`] at offset `a` says, and enters the handler.
    pub const DELIVER: u64 = 20;
    /// Copies the app's general registers ([`super::REGISTERS`] words, mcontext's order) to offset `a`.
    pub const REGISTERS: u64 = 21;
    /// exit_group(`a`) of the stub.
    pub const EXIT: u64 = 22;
    /// The app's stack pointer := `a`.
    pub const SET_SP: u64 = 25;
    /// Writes what clock `a` shows to the start of the data area, as struct timespec.
    pub const CLOCK: u64 = 24;
    /// Writes the FS base to offset `a`.
    pub const GET_FS: u64 = 23;
}

/// Words that [`op::REGISTERS`] copies: r8–r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags.
pub const REGISTERS: usize = 18;

/// A step of a program, at [`at::PROGRAM`].
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Step {
    /// [`op`].
    pub op: u64,
    /// Operand.
    pub a: u64,
    /// Operand.
    pub b: u64,
    /// Operand.
    pub c: u64,
    /// Operand.
    pub d: u64,
    /// Written by the stub.
    pub result: i64,
}

/// Everything the stub needs to deliver a signal.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Delivery {
    /// Signal number.
    pub signal: u64,
    /// Handler.
    pub handler: u64,
    /// Restorer (sa_restorer): where the handler returns to.
    pub restorer: u64,
    /// The mask to restore when the handler returns.
    pub mask: u64,
    /// The app's alternate stack: address, flags, size, as sigaltstack(2) reports them.
    pub stack: [u64; 3],
    /// Top of the stack to switch to; 0: stay on the current one.
    pub switch_to: u64,
    /// siginfo_t.
    pub info: [u64; 16],
}

// What follows is used by one side only, or by tests.
#[allow(dead_code)]
const _: () = {
    assert!(core::mem::size_of::<Request>() + at::REQUEST <= at::PROGRAM);
    assert!(MAX_STEPS * core::mem::size_of::<Step>() + at::PROGRAM <= at::DATA);
    assert!(at::DATA + DATA_LEN == WINDOW_LEN);
};
