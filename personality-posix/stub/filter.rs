//! The stub's seccomp filter: the only thing between a hostile app and the host kernel.
//!
//! A call from outside the stub traps. From the stub only its one syscall instruction may call,
//! and there only what the list below says, with the arguments it says: an app that jumps to that
//! instruction with registers of its own gains nothing it may not have. Everything else kills.
//! (Hosts since 6.11 let uretprobe, and since 6.18 uprobe, through any filter; made by anybody but
//! their own trampolines these do nothing.)
//! Compiled into the stub and, for its tests, into the personality.

use crate::window::{APP_END, STUB_BASE, WINDOW_ADDRESS, WINDOW_LEN};

/// An instruction of classic BPF (struct sock_filter).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if the comparison holds.
    pub jt: u8,
    /// And if not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// seccomp's verdicts.
pub const ALLOW: u32 = 0x7fff_0000;
/// The app's thread gets SIGSYS, whose handler is the stub's.
pub const TRAP: u32 = 0x0003_0000;
/// The address space dies.
pub const KILL: u32 = 0x8000_0000;

const LD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const RET: u16 = 0x06;
const ADD_X: u16 = 0x0c;
const OR_X: u16 = 0x4c;
const LSH: u16 = 0x64;
const RSH: u16 = 0x74;
const ST: u16 = 0x02;
const LDX_MEM: u16 = 0x61;

// Offsets in struct seccomp_data.
const NR: u32 = 0;
const ARCH: u32 = 4;
const IP: u32 = 8;
const fn arg(n: u32) -> u32 {
    16 + 8 * n
}
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// Most instructions of the filter.
pub const LONGEST: usize = 320;

/// A filter under construction, then a finished one.
pub struct Filter {
    /// Its instructions.
    pub code: [Instruction; LONGEST],
    /// How many.
    pub len: usize,
}

impl Filter {
    const fn push(&mut self, code: u16, k: u32, jt: u8, jf: u8) {
        self.code[self.len] = Instruction { code, jt, jf, k };
        self.len += 1;
    }
    const fn load(&mut self, offset: u32) {
        self.push(LD, offset, 0, 0);
    }
    const fn verdict(&mut self, v: u32) {
        self.push(RET, v, 0, 0);
    }
    /// Kills unless the word loaded is `k`.
    const fn must_be(&mut self, k: u32) {
        self.push(JEQ, k, 1, 0);
        self.verdict(KILL);
    }
    /// Kills if the word loaded is above `k`.
    const fn at_most(&mut self, k: u32) {
        self.push(JGT, k, 0, 1);
        self.verdict(KILL);
    }
    /// Kills unless argument `n` is `value`, all 64 bits of it.
    const fn arg_is(&mut self, n: u32, value: u64) {
        self.load(arg(n));
        self.must_be(value as u32);
        self.load(arg(n) + 4);
        self.must_be((value >> 32) as u32);
    }
    /// Kills unless argument `n` is at most `value` (32 bits).
    const fn arg_at_most(&mut self, n: u32, value: u32) {
        self.load(arg(n));
        self.at_most(value);
        self.load(arg(n) + 4);
        self.must_be(0);
    }
    /// Kills unless arguments 0 and 1 are a range that ends at or below [`APP_END`]. Counted in
    /// units of 64 KiB, so that sums fit in BPF's 32 bits; rounding up is why APP_END is two units
    /// below the stub.
    const fn range_below_stub(&mut self) {
        assert!(STUB_BASE as u32 == 0);
        let mut n = 0;
        while n < 2 {
            self.load(arg(n) + 4);
            self.at_most((STUB_BASE >> 32) as u32);
            self.push(LSH, 16, 0, 0);
            self.push(ST, n, 0, 0);
            self.load(arg(n));
            self.push(RSH, 16, 0, 0);
            self.push(LDX_MEM, n, 0, 0);
            self.push(OR_X, 0, 0, 0);
            self.push(ST, n, 0, 0);
            n += 1;
        }
        self.push(LDX_MEM, 0, 0, 0);
        self.push(ADD_X, 0, 0, 0);
        self.at_most((APP_END >> 16) as u32);
    }
    /// Opens the block of call `nr`; give the result to [`Filter::end`].
    const fn begin(&mut self, nr: u32) -> usize {
        self.push(JEQ, nr, 0, 0);
        self.len - 1
    }
    /// Ends a block: what came through its checks is allowed.
    const fn end(&mut self, begin: usize) {
        self.verdict(ALLOW);
        self.code[begin].jf = (self.len - begin - 1) as u8;
        self.load(NR);
    }
}

mod nr {
    pub const CLOSE: u32 = 3;
    pub const MMAP: u32 = 9;
    pub const MPROTECT: u32 = 10;
    pub const MUNMAP: u32 = 11;
    pub const RT_SIGRETURN: u32 = 15;
    pub const SCHED_YIELD: u32 = 24;
    pub const MADVISE: u32 = 28;
    pub const DUP2: u32 = 33;
    pub const SENDTO: u32 = 44;
    pub const RECVMSG: u32 = 47;
    pub const CLONE: u32 = 56;
    pub const SIGALTSTACK: u32 = 131;
    pub const PRCTL: u32 = 157;
    pub const ARCH_PRCTL: u32 = 158;
    pub const FUTEX: u32 = 202;
    pub const CLOCK_GETTIME: u32 = 228;
    pub const EXIT_GROUP: u32 = 231;
}

/// MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE
pub const MAP_ZEROES: u32 = 0x2 | 0x20 | 0x4000 | 0x10_0000;
/// MAP_PRIVATE | MAP_FIXED_NOREPLACE
pub const MAP_IMAGE: u32 = 0x2 | 0x10_0000;
/// MAP_SHARED | MAP_FIXED, for the window alone.
pub const MAP_WINDOW: u32 = 0x1 | 0x10;
/// clone(2) flags of a fork: CLONE_PARENT | SIGCHLD. The child is the zygote's, like every stub.
pub const FORK_FLAGS: u64 = 0x8000 | 17;
/// The stub's socket to the kernel.
pub const KERNEL_SOCKET: u64 = 3;

/// The filter of a stub whose one syscall instruction ends at `gate`.
pub const fn filter(gate: u64) -> Filter {
    let mut f = Filter { code: [Instruction { code: 0, jt: 0, jf: 0, k: 0 }; LONGEST], len: 0 };
    // int 0x80 and sysenter come with another architecture, wherever they stand.
    f.load(ARCH);
    f.must_be(AUDIT_ARCH_X86_64);
    f.load(IP + 4);
    f.push(JEQ, (STUB_BASE >> 32) as u32, 1, 0);
    f.verdict(TRAP);
    f.load(IP);
    f.must_be(gate as u32);

    f.load(NR);
    let b = f.begin(nr::FUTEX); // FUTEX_WAIT, FUTEX_WAKE
    f.arg_at_most(1, 1);
    f.end(b);
    let b = f.begin(nr::RT_SIGRETURN);
    f.end(b);
    let b = f.begin(nr::CLOCK_GETTIME); // the fixed clocks: no descriptor's, no other process's
    f.arg_at_most(0, 11);
    f.end(b);
    let b = f.begin(nr::MMAP);
    f.load(arg(3) + 4);
    f.must_be(0);
    f.arg_at_most(2, 7);
    f.load(arg(3));
    f.push(JEQ, MAP_WINDOW, 0, 13);
    f.arg_is(0, WINDOW_ADDRESS);
    f.arg_is(1, WINDOW_LEN as u64);
    f.verdict(ALLOW);
    // (13 instructions skipped when it is not the window.)
    f.push(JEQ, MAP_ZEROES, 2, 0);
    f.push(JEQ, MAP_IMAGE, 1, 0);
    f.verdict(KILL);
    f.range_below_stub();
    f.end(b);
    let b = f.begin(nr::MUNMAP);
    f.range_below_stub();
    f.end(b);
    let b = f.begin(nr::MPROTECT);
    f.range_below_stub();
    f.arg_at_most(2, 7);
    f.end(b);
    let b = f.begin(nr::MADVISE); // MADV_DONTNEED
    f.range_below_stub();
    f.arg_is(2, 4);
    f.end(b);
    let b = f.begin(nr::CLONE); // a fork: no stack, no thread, no namespace
    f.arg_is(0, FORK_FLAGS);
    f.arg_is(1, 0);
    f.end(b);
    let b = f.begin(nr::RECVMSG); // MSG_DONTWAIT is refused: an order is there, or comes
    f.arg_is(0, KERNEL_SOCKET);
    f.arg_is(2, MSG_CMSG_CLOEXEC as u64);
    f.end(b);
    let b = f.begin(nr::SENDTO); // without address
    f.arg_is(0, KERNEL_SOCKET);
    f.arg_at_most(2, 16);
    f.arg_is(3, MSG_NOSIGNAL as u64);
    f.arg_is(4, 0);
    f.end(b);
    let b = f.begin(nr::CLOSE);
    f.arg_at_most(0, 1023);
    f.end(b);
    let b = f.begin(nr::DUP2);
    f.arg_at_most(0, 1023);
    f.arg_is(1, KERNEL_SOCKET);
    f.end(b);
    let b = f.begin(nr::ARCH_PRCTL); // ARCH_SET_FS, ARCH_GET_FS
    f.load(arg(0));
    f.push(JEQ, 0x1002, 2, 0);
    f.push(JEQ, 0x1003, 1, 0);
    f.verdict(KILL);
    f.end(b);
    let b = f.begin(nr::PRCTL); // PR_SET_PDEATHSIG, SIGKILL
    f.arg_is(0, 1);
    f.arg_is(1, 9);
    f.end(b);
    let b = f.begin(nr::SIGALTSTACK);
    f.end(b);
    let b = f.begin(nr::SCHED_YIELD);
    f.end(b);
    let b = f.begin(nr::EXIT_GROUP);
    f.end(b);
    f.verdict(KILL);
    f
}

/// recvmsg(2): received descriptors close on exec.
pub const MSG_CMSG_CLOEXEC: u32 = 0x4000_0000;
/// send(2): no SIGPIPE.
pub const MSG_NOSIGNAL: u32 = 0x4000;
