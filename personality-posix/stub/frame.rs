//! Linux's x86-64 signal frame, as the host kernel builds it on the stub's signal stack and as the
//! stub builds it on the app's (arch/x86/include/uapi/asm/{sigcontext,ucontext}.h).

/// struct ucontext. The sixteen words from `r8` on are struct sigcontext.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UContext {
    pub flags: u64,
    pub link: u64,
    /// ss_sp, ss_flags, ss_size.
    pub stack: [u64; 3],
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub di: u64,
    pub si: u64,
    pub bp: u64,
    pub bx: u64,
    pub dx: u64,
    pub ax: u64,
    pub cx: u64,
    pub sp: u64,
    pub ip: u64,
    pub eflags: u64,
    pub segments: u64,
    pub err: u64,
    pub trapno: u64,
    pub oldmask: u64,
    pub cr2: u64,
    pub fpstate: u64,
    pub reserved: [u64; 8],
    pub mask: u64,
}

/// The part of siginfo_t that a fault fills in.
#[repr(C)]
pub struct SigInfo {
    pub signal: i32,
    pub errno: i32,
    pub code: i32,
    pub pad: i32,
    pub address: u64,
}

/// struct rt_sigframe.
#[repr(C)]
pub struct Frame {
    pub restorer: u64,
    pub context: UContext,
    pub info: [u64; 16],
}

/// Bytes of the legacy (FXSAVE) area.
pub const FXSAVE: u64 = 512;
/// Where the kernel describes the extended state: magic, total size with its end mark.
const SW_RESERVED: u64 = 464;
const MAGIC1: u32 = 0x4650_5853;

/// Bytes of the floating-point state at `at` (the kernel's own frame): all of it, with end mark.
///
/// # Safety
/// `at` must be the fpstate of a frame that the host kernel built and nobody changed.
pub unsafe fn fp_len(at: u64) -> u64 {
    // SAFETY: the caller's promise.
    let [magic, size] = unsafe { core::ptr::read_unaligned((at + SW_RESERVED) as *const [u32; 2]) };
    if magic == MAGIC1 { u64::from(size) } else { FXSAVE }
}

/// Sets the floating-point state at `at` to what a fresh program starts with.
///
/// # Safety
/// As [`fp_len`].
pub unsafe fn fp_reset(at: u64) {
    // SAFETY: the caller's promise; the state is at least FXSAVE bytes, and where there is extended
    // state its header (XSTATE_BV first) follows the legacy area.
    unsafe {
        core::ptr::write_bytes(at as *mut u8, 0, SW_RESERVED as usize);
        core::ptr::write_unaligned(at as *mut u16, 0x37f); // FCW
        core::ptr::write_unaligned((at + 24) as *mut u32, 0x1f80); // MXCSR
        if fp_len(at) > FXSAVE {
            core::ptr::write_unaligned((at + FXSAVE) as *mut u64, 0);
        }
    }
}
