//! A hostile program: attacks the stub it lives with and the personality behind it, with random
//! numbers from the seed in its second argument. Built by the test that runs it.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

global_asm!(
    ".globl _start",
    "_start:",
    "mov rdi, rsp",
    "and rsp, -16",
    "call begin",
    "ud2",
    ".globl memcpy, memset, rust_eh_personality",
    "memcpy: mov rax, rdi; mov rcx, rdx; rep movsb; ret",
    "memset: mov r8, rdi; mov eax, esi; mov rcx, rdx; rep stosb; mov rax, r8",
    "rust_eh_personality: ret",
);

const STUB: u64 = 0x7e00_0000_0000;
const WINDOW: u64 = STUB + 0x1000_0000;
const STACK: u64 = STUB + 0x2000_0000;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(1)
}

/// A system call as any program makes it.
fn call(nr: u64, a: [u64; 6]) -> i64 {
    let r;
    // SAFETY: none is claimed: this program exists to do what it must not.
    unsafe {
        asm!("syscall", inlateout("rax") nr => r, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
            in("r10") a[3], in("r8") a[4], in("r9") a[5], out("rcx") _, out("r11") _);
    }
    r
}

/// A jump to the stub's own syscall instruction, found by looking for it.
fn gate(nr: u64, a: [u64; 6]) -> i64 {
    let mut at = STUB;
    // SAFETY: as above; the stub's text can be read by whoever lives beside it.
    while unsafe { core::ptr::read_unaligned(at as *const u16) } != 0x050f {
        at += 1;
    }
    let r;
    // SAFETY: as above.
    unsafe {
        asm!("call r12", in("r12") at, inlateout("rax") nr => r, in("rdi") a[0], in("rsi") a[1],
            in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5], out("rcx") _, out("r11") _);
    }
    r
}

fn exit(code: u64) -> ! {
    loop {
        call(231, [code, 0, 0, 0, 0, 0]);
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    /// A number of the kind that breaks things.
    fn odd(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX - self.below(16),
            2 => STUB + self.below(0x3000_0000),
            3 => WINDOW + self.below(0x2_0000),
            4 => 0x40_0000 + self.below(0x4000),
            5 => self.below(70_000),
            6 => 1 << self.below(64),
            _ => self.next(),
        }
    }
}

fn poke(at: u64, value: u64) {
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(at as *mut u64, value) }
}

fn poke32(at: u64, value: u32) {
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(at as *mut u32, value) }
}

/// Calls that would end or stop the attack too soon, or sleep.
fn dull(nr: u64) -> bool {
    matches!(
        nr,
        7 | 15
            | 23
            | 34
            | 35
            | 37
            | 38
            | 57
            | 58
            | 59
            | 60
            | 61
            | 62
            | 128
            | 130
            | 200
            | 202
            | 230
            | 231
            | 234
            | 247
            | 270
            | 271
            | 335
    )
}

/// Calls with odd arguments.
fn arguments(r: &mut Random) {
    for _ in 0..20_000 {
        let nr = r.below(470);
        if nr == 11 || nr == 10 || dull(nr) {
            continue;
        }
        let a = [r.odd(), r.odd(), r.odd(), r.odd(), r.odd(), r.odd()];
        call(nr, a);
    }
}

/// Requests of its own making, rung like the stub's.
fn forge(r: &mut Random) {
    for _ in 0..20_000 {
        poke(WINDOW + 0x40, r.below(7));
        poke(WINDOW + 0x48, if r.below(2) == 0 { r.below(470) } else { r.odd() });
        for word in 2..19 {
            poke(WINDOW + 0x40 + word * 8, r.odd());
        }
        // SAFETY: as above.
        let seq = unsafe { core::ptr::read_volatile(WINDOW as *const u32) };
        poke32(WINDOW, seq.wrapping_add(1));
        gate(202, [WINDOW, 1, 64, 0, 0, 0]);
    }
}

/// Random words everywhere in the window and on the stub's stack, between calls.
fn scribble(r: &mut Random) {
    for _ in 0..20_000 {
        for _ in 0..64 {
            poke(WINDOW + r.below(0x2_0000 / 8) * 8, r.odd());
        }
        poke(STACK + r.below(0x1_0000 / 8) * 8, r.odd());
        call(r.below(3) * 55, [r.odd(), r.odd(), r.odd(), 0, 0, 0]);
    }
}

#[unsafe(no_mangle)]
extern "C" fn begin(sp: *const u64) -> ! {
    // SAFETY: the initial stack: argc, argv, NULL; the test gives two arguments of one letter and
    // one digit.
    let (what, seed) = unsafe { (*(*sp.add(2) as *const u8), *(*sp.add(3) as *const u8)) };
    let mut r = Random(0x9e37_79b9_7f4a_7c15 ^ u64::from(seed) << 32);
    match what {
        b'a' => arguments(&mut r),
        b'f' => forge(&mut r),
        b's' => scribble(&mut r),
        // A fork that nobody ordered, and then another.
        _ => {
            for _ in 0..4 {
                gate(56, [0x8000 | 17, 0, 0, 0, 0, 0]);
            }
        }
    }
    exit(0)
}
