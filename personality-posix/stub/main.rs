//! The stub: the part of the personality that lives in each app's address space.
//!
//! A freestanding static image at [`window::STUB_BASE`]. It owns the host's signals: every system
//! call of the app traps into [`handler`] (seccomp), as do processor exceptions and the kernel's
//! preemption signal. The handler describes what happened in the window, rings, and carries out the
//! program that the personality answers with. It decides nothing and guards nothing but its own
//! life: whatever it can do, the app can do too, and the filter is the limit of both.

#![no_std]
#![no_main]
#![allow(missing_docs)]

mod asm;
mod filter;
mod frame;
mod program;
mod signatures;
mod window;

use asm::stub_syscall;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use filter::{KERNEL_SOCKET, filter};
use frame::{SigInfo, UContext};
use window::*;

/// Numbers of the host calls that the stub makes.
mod nr {
    pub const MMAP: u64 = 9;
    pub const MUNMAP: u64 = 11;
    pub const RT_SIGACTION: u64 = 13;
    pub const RT_SIGPROCMASK: u64 = 14;
    pub const CLOSE: u64 = 3;
    pub const SCHED_YIELD: u64 = 24;
    pub const SIGALTSTACK: u64 = 131;
    pub const PRCTL: u64 = 157;
    pub const FUTEX: u64 = 202;
    pub const CLOCK_GETTIME: u64 = 228;
    pub const EXIT_GROUP: u64 = 231;
    pub const SECCOMP: u64 = 317;
}

/// Makes a host call. Returns its result, or a negative error number.
pub fn host(nr: u64, a: [u64; 6]) -> i64 {
    // SAFETY: the stub's callers pass either addresses of the stub's own memory, valid for the
    // call, or the app's, which the app alone depends on; the filter refuses anything that would
    // change the stub's own mappings.
    unsafe { stub_syscall(nr, a[0], a[1], a[2], a[3], a[4], a[5]) }
}

pub fn host3(nr: u64, a: u64, b: u64, c: u64) -> i64 {
    host(nr, [a, b, c, 0, 0, 0])
}

/// Ends the address space; `code` tells a person who reads the log where.
pub fn exit(code: u64) -> ! {
    loop {
        host3(nr::EXIT_GROUP, code, 0, 0);
    }
}

fn must(result: i64, code: u64) {
    if result < 0 {
        exit(code);
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(120)
}

/// A 32-bit word of the window.
pub fn word(offset: usize) -> &'static AtomicU32 {
    // SAFETY: the window is mapped for the stub's life at WINDOW_ADDRESS; offsets are this crate's
    // constants, aligned, inside it.
    unsafe { &*((WINDOW_ADDRESS as usize + offset) as *const AtomicU32) }
}

fn bells() -> &'static AtomicU64 {
    // SAFETY: as `word`.
    unsafe { &*((WINDOW_ADDRESS as usize + at::BELLS) as *const AtomicU64) }
}

/// The host CPU this thread runs on, from the segment limit where Linux keeps it.
pub fn cpu() -> u64 {
    let limit: u64;
    // SAFETY: lsl reads the limit of a segment that Linux sets on every CPU; no memory is touched.
    unsafe {
        core::arch::asm!("mov ecx, 0x7b", "xor eax, eax", "lsl rax, rcx", out("rax") limit, out("ecx") _, options(nomem, nostack));
    }
    limit & 0xfff
}

/// Writes a request into the window, rings, and waits for the personality's answer.
pub fn ask(request: &Request) {
    // SAFETY: the window is mapped and large enough; only the app's own thread is in it.
    unsafe {
        core::ptr::write_volatile((WINDOW_ADDRESS as usize + at::REQUEST) as *mut Request, *request)
    };
    let seq = word(at::REQUEST_WORD).load(Ordering::Relaxed).wrapping_add(1);
    word(at::REQUEST_WORD).store(seq, Ordering::Release);
    bells().fetch_add(1, Ordering::Relaxed);
    host3(nr::FUTEX, WINDOW_ADDRESS + at::REQUEST_WORD as u64, 1, i32::MAX as u64);
    loop {
        let reply = word(at::REPLY_WORD).load(Ordering::Acquire);
        if reply == seq {
            return;
        }
        host3(nr::FUTEX, WINDOW_ADDRESS + at::REPLY_WORD as u64, 0, u64::from(reply));
    }
}

const SIGILL: i32 = 4;
const SIGTRAP: i32 = 5;
const SIGBUS: i32 = 7;
const SIGFPE: i32 = 8;
const SIGSEGV: i32 = 11;
const SIGSYS: i32 = 31;

/// Entered by the host kernel, on the signal stack, with the app's registers in `context`.
extern "C" fn handler(signal: i32, info: &SigInfo, context: &mut UContext) {
    let mut request = Request { ip: context.ip, sp: context.sp, cpu: cpu(), ..Request::default() };
    match signal {
        SIGSYS => {
            if answer_here(context) {
                return;
            }
            program::describe_call(context, &mut request);
        }
        PREEMPT_SIGNAL => request.kind = kind::PREEMPTED,
        SIGILL if context.ip == asm::stub_enter as *const () as u64 => request.kind = kind::HELLO,
        _ => {
            if let Some(ip) = asm::fixup(context.ip) {
                context.ip = ip;
                return;
            }
            request.kind = kind::FAULT;
            request.nr = signal as u64;
            request.args = [
                info.code as i64 as u64,
                info.address,
                context.trapno,
                context.err,
                context.cr2,
                0,
            ];
        }
    }
    program::converse(context, request);
}

/// Calls that need nobody else. Whether this was one.
fn answer_here(context: &mut UContext) -> bool {
    let mut time = [0u64; 2];
    let now = |clock: u64, time: &mut [u64; 2]| {
        host3(nr::CLOCK_GETTIME, clock, time.as_mut_ptr() as u64, 0)
    };
    let out = |to: u64, from: *const u64, len: u64| {
        // SAFETY: `from` is this frame's; a fault at `to` is caught.
        if unsafe { asm::stub_copy(to, from as u64, len) } == 0 { 0 } else { -14 }
    };
    let result = match context.ax {
        39 => i64::from(word(at::PID).load(Ordering::Relaxed)),
        24 => host3(nr::SCHED_YIELD, 0, 0, 0),
        // clock_gettime; a clock that the filter refuses is not one of ours.
        228 if context.di > 11 => -22,
        228 => match now(context.di, &mut time) {
            0 => out(context.si, time.as_ptr(), 16),
            e => e,
        },
        229 if context.di > 11 => -22,
        229 if context.si == 0 => 0,
        229 => out(context.si, [0u64, 1].as_ptr(), 16),
        96 => {
            now(0, &mut time);
            time[1] /= 1000;
            let mut r = if context.di == 0 { 0 } else { out(context.di, time.as_ptr(), 16) };
            if context.si != 0 && r == 0 {
                r = out(context.si, [0u64].as_ptr(), 8);
            }
            r
        }
        201 => {
            now(0, &mut time);
            let seconds = time[0] as i64;
            if context.di == 0 || out(context.di, time.as_ptr(), 8) == 0 { seconds } else { -14 }
        }
        309 => {
            let place = cpu();
            let mut r = 0;
            if context.di != 0 {
                r = out(context.di, [place].as_ptr(), 4);
            }
            if context.si != 0 && r == 0 {
                r = out(context.si, [0u64].as_ptr(), 4);
            }
            r
        }
        _ => return false,
    };
    context.ax = result as u64;
    true
}

#[repr(C)]
struct Action {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}

/// Maps the window in descriptor `fd` and closes it.
pub fn map_window(fd: u64) {
    const READ_WRITE: u64 = 3;
    let at = host(
        nr::MMAP,
        [WINDOW_ADDRESS, WINDOW_LEN as u64, READ_WRITE, filter::MAP_WINDOW as u64, fd, 0],
    );
    must(at, 101);
    must(host3(nr::CLOSE, fd, 0, 0), 102);
}

/// Dies with the zygote, which dies with the kernel process.
pub fn die_with_parent() {
    must(host3(nr::PRCTL, 1, 9, 0), 103);
}

/// The image's entry, on its own stack, with descriptors 3 (kernel) and 4 (window).
#[unsafe(no_mangle)]
extern "C" fn stub_boot() -> ! {
    die_with_parent();
    map_window(4);
    let stack = host(nr::MMAP, [STACK_ADDRESS, STACK_LEN as u64, 3, 0x32, u64::MAX, 0]);
    must(stack, 104);
    // Everything of the host's goes: its stack with arguments and auxiliary vector, vDSO, vvar.
    const HOST_END: u64 = 0x7fff_ffff_f000;
    let image_end = asm::image_end();
    let window_end = WINDOW_ADDRESS + WINDOW_LEN as u64;
    let stack_end = STACK_ADDRESS + STACK_LEN as u64;
    for (start, end) in [
        (0, STUB_BASE),
        (image_end, WINDOW_ADDRESS),
        (window_end, STACK_ADDRESS),
        (stack_end, HOST_END),
    ] {
        must(host3(nr::MUNMAP, start, end - start, 0), 105);
    }
    let stack = [STACK_ADDRESS, 0, STACK_LEN as u64];
    must(host3(nr::SIGALTSTACK, stack.as_ptr() as u64, 0, 0), 106);
    for signal in [SIGSYS, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, PREEMPT_SIGNAL] {
        let action = Action {
            handler: handler as *const () as u64,
            // SA_SIGINFO | SA_RESTORER | SA_ONSTACK | SA_NODEFER
            flags: 0x4 | 0x0400_0000 | 0x0800_0000 | 0x4000_0000,
            restorer: asm::stub_restorer as *const () as u64,
            // While a handler runs, preemption waits; a fault in its copies must not.
            mask: 1 << (PREEMPT_SIGNAL - 1),
        };
        let r = host(nr::RT_SIGACTION, [signal as u64, &raw const action as u64, 0, 8, 0, 0]);
        must(r, 107);
    }
    let none = 0u64;
    must(host(nr::RT_SIGPROCMASK, [2, &raw const none as u64, 0, 8, 0, 0]), 108);
    let filter = filter(asm::gate());
    let program = [filter.len as u64, filter.code.as_ptr() as u64];
    must(host(nr::PRCTL, [38, 1, 0, 0, 0, 0]), 109); // PR_SET_NO_NEW_PRIVS
    must(host3(nr::SECCOMP, 1, 0, program.as_ptr() as u64), 110); // SECCOMP_SET_MODE_FILTER
    hello();
    // SAFETY: enters `handler` through the host's signal; never comes back here.
    unsafe { asm::stub_enter() }
}

/// Tells the kernel who we are: it takes the sender's pid from the message's credentials.
pub fn hello() {
    let byte = b"h";
    const SENDTO: u64 = 44;
    let flags = u64::from(filter::MSG_NOSIGNAL);
    must(host(SENDTO, [KERNEL_SOCKET, byte.as_ptr() as u64, 1, flags, 0, 0]), 111);
}
