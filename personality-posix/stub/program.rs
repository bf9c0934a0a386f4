//! Requests to the personality and the programs that it answers with.

use crate::asm::{stub_copy, stub_probe, stub_string, stub_zero};
use crate::filter::{FORK_FLAGS, KERNEL_SOCKET, MAP_IMAGE, MAP_ZEROES, MSG_CMSG_CLOEXEC};
use crate::frame::{FXSAVE, Frame, UContext, fp_len, fp_reset};
use crate::signatures::{Kind, NUMBERS, SIGNATURES};
use crate::window::*;
use crate::{die_with_parent, exit, hello, host, host3, map_window, word};
use core::sync::atomic::{AtomicI32, Ordering};

mod nr {
    pub const CLOSE: u64 = 3;
    pub const MMAP: u64 = 9;
    pub const MPROTECT: u64 = 10;
    pub const MUNMAP: u64 = 11;
    pub const MADVISE: u64 = 28;
    pub const DUP2: u64 = 33;
    pub const RECVMSG: u64 = 47;
    pub const CLONE: u64 = 56;
    pub const ARCH_PRCTL: u64 = 158;
    pub const CLOCK_GETTIME: u64 = 228;
}

const EFAULT: i64 = -14;
const EINVAL: i64 = -22;
const E2BIG: i64 = -7;
const ENAMETOOLONG: i64 = -36;
const EBADF: i64 = -9;

/// Longest path with its NUL.
const PATH_MAX: u64 = 4096;
/// Most iovec elements that are gathered ahead.
const GATHER_MAX: u64 = 64;

fn data(offset: u64) -> u64 {
    WINDOW_ADDRESS + at::DATA as u64 + offset
}

/// Whether a range is the app's: what stands above [`APP_END`] is not memory to its calls.
fn is_app(at: u64, len: u64) -> bool {
    at <= APP_END && len <= APP_END - at
}

/// Copies from the app's memory to the stub's; `None` on a fault.
fn copy_in(to: u64, from: u64, len: u64) -> Option<()> {
    // SAFETY: `to` is the window or a local, bounds checked by the caller; a fault is caught.
    (is_app(from, len) && unsafe { stub_copy(to, from, len) } == 0).then_some(())
}

/// Copies from the stub's memory to the app's; `None` on a fault.
fn copy_out(to: u64, from: u64, len: u64) -> Option<()> {
    // SAFETY: `from` is the window or a local, bounds checked by the caller; a fault is caught.
    (is_app(to, len) && unsafe { stub_copy(to, from, len) } == 0).then_some(())
}

/// Copies a string of the app's; as `stub_string`.
fn string_in(to: u64, from: u64, max: u64) -> i64 {
    if from >= APP_END {
        return -1;
    }
    let most = max.min(APP_END - from);
    // SAFETY: `max` bytes of the window are there, by the caller; a fault is caught.
    match unsafe { stub_string(to, from, most) } {
        // Ran off the end of what is the app's.
        n if n as u64 > most && most < max => -1,
        n => n,
    }
}

/// What is copied ahead for the arguments of one call.
struct Ahead {
    used: u64,
}

impl Ahead {
    fn space(&self) -> u64 {
        DATA_LEN as u64 - self.used
    }
    fn take(&mut self, len: u64) -> u64 {
        let described = self.used | len << 32;
        self.used += (len + 7) & !7;
        described
    }
    fn bytes(&mut self, from: u64, len: u64) -> u64 {
        let len = len.min(self.space());
        match copy_in(data(self.used), from, len) {
            Some(()) => self.take(len),
            None => FAULTED,
        }
    }
    /// As [`Ahead::bytes`], but what stands before a bad address counts, if anything does: write(2)
    /// writes that much.
    fn prefix(&mut self, from: u64, len: u64) -> u64 {
        let len = len.min(self.space()).min(APP_END.saturating_sub(from));
        if from >= APP_END {
            return FAULTED;
        }
        // SAFETY: the window has `len` bytes left there; a fault is caught.
        match unsafe { stub_copy(data(self.used), from, len) } {
            missing if missing == len && len > 0 => FAULTED,
            missing => self.take(len - missing),
        }
    }
    fn path(&mut self, from: u64) -> u64 {
        if from == 0 || self.space() < PATH_MAX {
            return FAULTED;
        }
        match string_in(data(self.used), from, PATH_MAX) {
            -1 => FAULTED,
            // Too long: PATH_MAX + 1 bytes are reported, which no path may have.
            n if n as u64 > PATH_MAX => self.used | (PATH_MAX + 1) << 32,
            n => self.take(n as u64),
        }
    }
    fn gather(&mut self, from: u64, count: u64) -> u64 {
        if count > GATHER_MAX {
            return 0;
        }
        let start = self.used;
        if self.bytes(from, count * 16) == FAULTED {
            return FAULTED;
        }
        for i in 0..count {
            // SAFETY: the array was just copied to the window, 16 bytes each, 8-aligned.
            let [base, len] =
                unsafe { core::ptr::read_volatile(data(start + i * 16) as *const [u64; 2]) };
            let len = len.min(self.space());
            if copy_in(data(self.used), base, len).is_none() {
                return FAULTED;
            }
            self.used += len;
        }
        let all = self.used - start;
        self.used = (self.used + 7) & !7;
        start | all << 32
    }
}

/// Fills in a request for the system call in `context`.
pub fn describe_call(context: &mut UContext, request: &mut Request) {
    let c = context;
    request.kind = kind::CALL;
    request.nr = c.ax;
    request.args = [c.di, c.si, c.dx, c.r10, c.r8, c.r9];
    const RT_SIGRETURN: u64 = 15;
    if c.ax == RT_SIGRETURN {
        request.copied = [0; 6];
        match take_frame(c) {
            Some((mask, stack)) => request.args = [mask, stack[0], stack[1], stack[2], 0, 0],
            None => request.copied[0] = FAULTED,
        }
        return;
    }
    if c.ax as usize >= NUMBERS {
        return;
    }
    let mut ahead = Ahead { used: 0 };
    for (i, kind) in SIGNATURES[c.ax as usize].args.iter().enumerate() {
        let value = request.args[i];
        request.copied[i] = match *kind {
            Kind::Value => continue,
            Kind::Path => ahead.path(value),
            Kind::Struct(_) if value == 0 => continue,
            Kind::Struct(len) => ahead.bytes(value, u64::from(len)),
            Kind::In(n, scale) => {
                let len = request.args[n as usize % 6].saturating_mul(u64::from(scale));
                if scale == 1 { ahead.prefix(value, len) } else { ahead.bytes(value, len) }
            }
            Kind::Out(n) if request.args[n as usize % 6] == 0 => continue,
            // SAFETY: a fault is caught, and the byte stays what it is.
            Kind::Out(_) if is_app(value, 1) && unsafe { stub_probe(value) } == 0 => continue,
            Kind::Out(_) => FAULTED,
            Kind::Gather(n) => ahead.gather(value, request.args[n as usize % 6]),
        };
    }
}

/// Asks, and carries out programs until one ends with RETURN.
pub fn converse(context: &mut UContext, mut request: Request) {
    // The descriptor that the latest RECEIVE got.
    let mut held: i32 = -1;
    loop {
        crate::ask(&request);
        let steps = (word(at::STEPS).load(Ordering::Relaxed) as usize).min(MAX_STEPS);
        let mut done = Request { kind: kind::DONE, ..Request::default() };
        for i in 0..steps {
            let place =
                (WINDOW_ADDRESS as usize + at::PROGRAM + i * size_of::<Step>()) as *mut Step;
            // SAFETY: in the window, aligned; the personality has written it before the reply.
            let step = unsafe { core::ptr::read_volatile(place) };
            if step.op == op::RETURN {
                if step.b != 1 {
                    context.ax = step.a;
                }
                return;
            }
            let result = carry_out(context, &step, &mut held);
            // SAFETY: as above. (After FORK, in the child, this is the child's own window.)
            unsafe { core::ptr::write_volatile(&raw mut (*place).result, result) };
            if result < 0 {
                done.failed = result;
                break;
            }
            done.steps += 1;
        }
        if FORKED.swap(0, Ordering::Relaxed) == 1 {
            done = Request { kind: kind::HELLO, ..Request::default() };
        }
        done.ip = context.ip;
        done.sp = context.sp;
        done.cpu = crate::cpu();
        request = done;
    }
}

/// 1 in a child that has not said hello to the personality yet.
static FORKED: AtomicI32 = AtomicI32::new(0);

fn carry_out(context: &mut UContext, s: &Step, held: &mut i32) -> i64 {
    let fault = |r: Option<()>| if r.is_some() { 0 } else { EFAULT };
    match s.op {
        op::COPY_OUT if inside(s.a, s.c) => fault(copy_out(s.b, data(s.a), s.c)),
        op::COPY_IN if inside(s.b, s.c) => fault(copy_in(data(s.b), s.a, s.c)),
        op::STRING_IN if inside(s.b, s.c) => match string_in(data(s.b), s.a, s.c) {
            -1 => EFAULT,
            n if n as u64 > s.c => ENAMETOOLONG,
            n => n - 1,
        },
        op::STRINGS_IN if inside(s.b, s.c) => strings(s),
        // SAFETY: the app's memory; a fault is caught.
        op::ZERO => fault((is_app(s.a, s.b) && unsafe { stub_zero(s.a, s.b) } == 0).then_some(())),
        op::MOVE if is_app(s.a, s.c) => fault(copy_out(s.b, s.a, s.c)),
        op::MAP => {
            let flags = u64::from(MAP_ZEROES);
            host(nr::MMAP, [s.a, s.b, s.c & 7, flags, u64::MAX, 0]).min(0)
        }
        op::MAP_FILE if *held < 0 => EBADF,
        op::MAP_FILE => {
            let flags = u64::from(MAP_IMAGE);
            host(nr::MMAP, [s.a, s.b, s.c & 7, flags, *held as u64, s.d]).min(0)
        }
        op::UNMAP => host3(nr::MUNMAP, s.a, s.b, 0),
        op::PROTECT => host3(nr::MPROTECT, s.a, s.b, s.c & 7),
        op::DISCARD => host3(nr::MADVISE, s.a, s.b, 4),
        op::RECEIVE => {
            drop_held(held);
            match receive() {
                Ok([fd, extra]) => {
                    if extra >= 0 {
                        host3(nr::CLOSE, extra as u64, 0, 0);
                    }
                    *held = fd;
                    0
                }
                Err(e) => e,
            }
        }
        op::DROP => {
            drop_held(held);
            0
        }
        op::FORK => fork(held),
        op::SET_FS => host3(nr::ARCH_PRCTL, 0x1002, s.a, 0),
        op::GET_FS if inside(s.a, 8) => host3(nr::ARCH_PRCTL, 0x1003, data(s.a), 0),
        op::CLOCK if s.a <= 11 => host3(nr::CLOCK_GETTIME, s.a, data(0), 0),
        op::LOAD => {
            load(context, s.a, s.b);
            0
        }
        op::SET_SP => {
            context.sp = s.a;
            0
        }
        op::RESULT => {
            context.ax = s.a;
            0
        }
        op::RESTART => {
            context.ip -= 2;
            context.ax = s.a;
            0
        }
        op::DELIVER if inside(s.a, size_of::<Delivery>() as u64) => {
            // SAFETY: inside the window; the personality has written it before the reply.
            let d = unsafe { core::ptr::read_unaligned(data(s.a) as *const Delivery) };
            fault(deliver(context, &d))
        }
        op::REGISTERS if inside(s.a, REGISTERS as u64 * 8) => {
            // SAFETY: from the signal stack to the window, bounds checked.
            unsafe { stub_copy(data(s.a), &raw const context.r8 as u64, REGISTERS as u64 * 8) };
            0
        }
        op::EXIT => exit(s.a & 0xff),
        _ => EINVAL,
    }
}

fn inside(offset: u64, len: u64) -> bool {
    offset <= DATA_LEN as u64 && len <= DATA_LEN as u64 - offset
}

fn drop_held(held: &mut i32) {
    if *held >= 0 {
        host3(nr::CLOSE, *held as u64, 0, 0);
        *held = -1;
    }
}

fn strings(s: &Step) -> i64 {
    let (mut count, mut used, mut ended) = (0u64, 0u64, 0u64);
    loop {
        let mut pointer = 0u64;
        let from = s.a.wrapping_add((s.d + count) * 8);
        if copy_in(&raw mut pointer as u64, from, 8).is_none() {
            return EFAULT;
        }
        if pointer == 0 {
            ended = 1;
            break;
        }
        let space = s.c - used;
        match string_in(data(s.b + used), pointer, space) {
            -1 => return EFAULT,
            n if n as u64 > space => {
                if count == 0 {
                    return E2BIG;
                }
                break;
            }
            n => used += n as u64,
        }
        count += 1;
    }
    (count | ended << 31 | used << 32) as i64
}

#[repr(C)]
struct Message {
    name: [u64; 2],
    iov: *mut [u64; 2],
    iov_count: u64,
    control: *mut [u64; 4],
    control_len: u64,
    flags: u64,
}

/// Receives a message of one or two descriptors from the kernel.
fn receive() -> Result<[i32; 2], i64> {
    let mut bytes = [0u8; 16];
    let mut iov = [bytes.as_mut_ptr() as u64, bytes.len() as u64];
    let mut control = [0u64; 4];
    let mut message = Message {
        name: [0; 2],
        iov: &mut iov,
        iov_count: 1,
        control: &mut control,
        control_len: 32,
        flags: 0,
    };
    let address = &raw mut message as u64;
    let n = host3(nr::RECVMSG, KERNEL_SOCKET, address, u64::from(MSG_CMSG_CLOEXEC));
    if n <= 0 {
        return Err(if n < 0 { n } else { EBADF });
    }
    // struct cmsghdr {len: u64, level: i32 = SOL_SOCKET 1, type: i32 = SCM_RIGHTS 1}, then the fds.
    let fds = [control[2] as i32, (control[2] >> 32) as i32];
    match (control[0], control[1]) {
        (20, 0x1_0000_0001) => Ok([fds[0], -1]),
        (24, 0x1_0000_0001) => Ok(fds),
        _ => Err(EBADF),
    }
}

/// Receives window and socket of a child, and makes it.
fn fork(held: &mut i32) -> i64 {
    let [window, socket] = match receive() {
        Ok([w, s]) if s >= 0 => [w as u64, s as u64],
        Ok(_) => return EBADF,
        Err(e) => return e,
    };
    let child = host(nr::CLONE, [FORK_FLAGS, 0, 0, 0, 0, 0]);
    if child != 0 {
        host3(nr::CLOSE, window, 0, 0);
        host3(nr::CLOSE, socket, 0, 0);
        return child.min(0);
    }
    // The child. The window is still its parent's until map_window.
    die_with_parent();
    map_window(window);
    drop_held(held);
    if host3(nr::DUP2, socket, KERNEL_SOCKET, 0) < 0 {
        exit(112);
    }
    host3(nr::CLOSE, socket, 0, 0);
    hello();
    FORKED.store(1, Ordering::Relaxed);
    // Ends the program: the parent's steps are not the child's.
    EINVAL
}

/// The registers of a fresh program.
fn load(c: &mut UContext, ip: u64, sp: u64) {
    (c.r8, c.r9, c.r10, c.r11, c.r12, c.r13, c.r14, c.r15) = (0, 0, 0, 0, 0, 0, 0, 0);
    (c.di, c.si, c.bp, c.bx, c.dx, c.ax, c.cx) = (0, 0, 0, 0, 0, 0, 0);
    c.ip = ip;
    c.sp = sp;
    c.eflags = 0x202;
    if c.fpstate != 0 {
        // SAFETY: the host kernel built this frame.
        unsafe { fp_reset(c.fpstate) };
    }
}

/// Builds the frame of a signal handler on the app's stack and enters the handler.
fn deliver(c: &mut UContext, d: &Delivery) -> Option<()> {
    // The red zone of the interrupted function stays untouched.
    let mut sp = c.sp.wrapping_sub(128);
    if d.switch_to != 0 {
        sp = d.switch_to;
    }
    let mut context = *c;
    if c.fpstate != 0 {
        // SAFETY: the host kernel built this frame.
        let len = unsafe { fp_len(c.fpstate) };
        sp = sp.wrapping_sub(len) & !63;
        copy_out(sp, c.fpstate, len)?;
        context.fpstate = sp;
    }
    context.link = 0;
    context.stack = d.stack;
    context.mask = d.mask;
    context.oldmask = d.mask;
    let frame = Frame { restorer: d.restorer, context, info: d.info };
    sp = (sp.wrapping_sub(size_of::<Frame>() as u64) & !15).wrapping_sub(8);
    copy_out(sp, &raw const frame as u64, size_of::<Frame>() as u64)?;
    c.di = d.signal;
    c.si = sp + core::mem::offset_of!(Frame, info) as u64;
    c.dx = sp + core::mem::offset_of!(Frame, context) as u64;
    c.ax = 0;
    c.ip = d.handler;
    c.sp = sp;
    c.eflags &= !0x400 & !0x100; // direction and trap flags
    Some(())
}

/// The app's rt_sigreturn: registers come from the frame at its stack pointer. Returns the mask and
/// the alternate stack to restore, which are the personality's.
fn take_frame(c: &mut UContext) -> Option<(u64, [u64; 3])> {
    let mut theirs = *c;
    let from = c.sp; // the handler's return has popped the restorer's address
    copy_in(&raw mut theirs as u64, from, size_of::<UContext>() as u64)?;
    if c.fpstate != 0 && theirs.fpstate != 0 {
        // SAFETY: the host kernel built this frame.
        let len = unsafe { fp_len(c.fpstate) };
        let mut mark = [0u32; 2];
        copy_in(&raw mut mark as u64, theirs.fpstate.wrapping_add(464), 8)?;
        let ours = c.fpstate;
        if len > FXSAVE && u64::from(mark[1]) == len {
            copy_in(ours, theirs.fpstate, len)?;
        } else {
            copy_in(ours, theirs.fpstate, 464)?;
        }
    }
    let kept = (c.flags, c.segments, c.fpstate, c.mask, c.stack, c.link);
    let (mask, stack) = (theirs.mask, theirs.stack);
    *c = theirs;
    (c.flags, c.segments, c.fpstate, c.mask, c.stack, c.link) = kept;
    Some((mask, stack))
}
