//! The stub alone: programs, copies, faults, forks, and what its filter lets through.

mod common;

use clustix_pd::{Stub, exec};
use clustix_posix::call::step;
use clustix_posix::services::Stubs;
use clustix_posix::state::{ProcessContext, ProcessState};
use clustix_posix::window::{Request, Step, at, kind, op};
use clustix_proto::Errno;
use clustix_proto::errno::EFAULT;
use clustix_proto::vfs::Credentials;
use common::HostStubs;

const CODE: u64 = 0x40_0000;
const STACK: u64 = 0x50_0000;

fn context(stub: Stub) -> ProcessContext {
    ProcessContext::new(7, Credentials::ROOT, ProcessState::default(), stub)
}

fn next(c: &ProcessContext) -> Request {
    exec::block_on(c.next_request()).unwrap()
}

fn go(c: &ProcessContext, data: &[u8], steps: &[Step]) -> Request {
    c.order(data, steps).unwrap();
    next(c)
}

fn ret(value: u64) -> Step {
    step(op::RETURN, [value, 0, 0, 0])
}

/// A stub whose app is this machine code.
fn start(stubs: &HostStubs, code: &[u8]) -> ProcessContext {
    let c = context(stubs.spawn().unwrap());
    assert_eq!(next(&c).kind, kind::HELLO);
    c.window.word(at::PID).store(7, std::sync::atomic::Ordering::Relaxed);
    let steps = [
        step(op::MAP, [CODE, 4096, 7, 0]),
        step(op::MAP, [STACK, 65536, 3, 0]),
        step(op::COPY_OUT, [0, CODE, code.len() as u64, 0]),
        step(op::LOAD, [CODE, STACK + 65536 - 64, 0, 0]),
        step(op::RETURN, [0, 1, 0, 0]),
    ];
    c.order(code, &steps).unwrap();
    c
}

/// mov eax, nr; syscall
fn call(nr: u32) -> Vec<u8> {
    let mut c = vec![0xb8];
    c.extend_from_slice(&nr.to_le_bytes());
    c.extend_from_slice(&[0x0f, 0x05]);
    c
}

/// mov eax, nr; mov rdi, a; mov rsi, b; mov rdx, c; syscall
fn call3(nr: u32, a: u64, b: u64, c: u64) -> Vec<u8> {
    let mut code = Vec::new();
    for (op, v) in [([0x48, 0xbf], a), ([0x48, 0xbe], b), ([0x48, 0xba], c)] {
        code.extend_from_slice(&op);
        code.extend_from_slice(&v.to_le_bytes());
    }
    code.extend(call(nr));
    code
}

#[test]
fn a_call_traps_and_its_result_comes_back() {
    let stubs = HostStubs::new();
    // getppid; then again with rdi = its result; getpid (answered by the stub) and again.
    let mut code = call(110);
    code.extend_from_slice(&[0x48, 0x89, 0xc7]); // mov rdi, rax
    code.extend(call(110));
    code.extend(call(39));
    code.extend_from_slice(&[0x48, 0x89, 0xc7]);
    code.extend(call(110));
    let c = start(&stubs, &code);
    let r = next(&c);
    assert_eq!((r.kind, r.nr, r.ip), (kind::CALL, 110, CODE + 7));
    assert_eq!(r.sp, STACK + 65536 - 64);
    let r = go(&c, &[], &[ret(0x1234_5678_9abc)]);
    assert_eq!((r.nr, r.args[0]), (110, 0x1234_5678_9abc));
    let r = go(&c, &[], &[ret(0)]);
    assert_eq!((r.nr, r.args[0]), (110, 7));
    stubs.kill(c.stub());
    assert_eq!(stubs.next_death().unwrap().status, 9);
}

#[test]
fn arguments_come_along_and_bad_addresses_fault() {
    let stubs = HostStubs::new();
    let mut code = call3(1, 1, CODE, 16); // write(1, CODE, 16)
    code.extend(call3(1, 1, 8, 16));
    code.extend(call3(2, CODE + 4095, 0, 0)); // open of a string that runs off its page
    let c = start(&stubs, &code);
    let r = next(&c);
    assert_eq!(r.copied[1] >> 32, 16);
    let mut bytes = [0; 16];
    assert!(c.window.read(at::DATA + r.copied[1] as u32 as usize, &mut bytes));
    assert_eq!(bytes, code[..16]);
    assert_eq!(go(&c, &[], &[ret(16)]).copied[1], u64::MAX);
    // Steps that fault say so, and the stub lives on.
    let r = go(&c, &[], &[step(op::COPY_OUT, [0, 0x10, 8, 0]), ret(0)]);
    assert_eq!((r.kind, r.failed, r.steps), (kind::DONE, -14, 0));
    let r = go(&c, &[], &[step(op::ZERO, [STACK, 65537, 0, 0])]);
    assert_eq!((r.kind, r.failed), (kind::DONE, -14));
    let e = exec::block_on(c.program(&[], &[step(op::STRING_IN, [0xdead_0000, 0, 100, 0])]));
    assert_eq!(e, Err(EFAULT));
    let e = exec::block_on(c.program(&[], &[step(op::COPY_IN, [CODE, 65530, 7, 0])]));
    assert_eq!(e, Err(Errno(22)));
    let r = go(&c, &[], &[ret(0)]);
    // The page ends in zeroes: an empty string there is one byte long.
    assert_eq!((r.nr, r.copied[0] >> 32), (2, 1));
    stubs.kill(c.stub());
}

#[test]
fn a_fork_is_a_second_stub() {
    let stubs = HostStubs::new();
    let mut code = call(57);
    code.extend_from_slice(&[0x48, 0x89, 0xc7]);
    code.extend(call(110));
    let parent = start(&stubs, &code);
    assert_eq!(next(&parent).nr, 57);
    let child = context(stubs.fork(parent.stub()).unwrap());
    let r = go(&parent, &[], &[step(op::FORK, [0; 4]), ret(55)]);
    assert_eq!((r.kind, r.nr, r.args[0]), (kind::CALL, 110, 55));
    assert_eq!(next(&child).kind, kind::HELLO);
    let r = go(&child, &[], &[ret(0)]);
    assert_eq!((r.kind, r.nr, r.args[0]), (kind::CALL, 110, 0));
    // Their memory is apart.
    exec::block_on(child.program(&[9], &[step(op::COPY_OUT, [0, STACK, 1, 0])])).unwrap();
    exec::block_on(parent.program(&[], &[step(op::COPY_IN, [STACK, 0, 1, 0])])).unwrap();
    let mut byte = [1];
    assert!(parent.window.read(at::DATA, &mut byte));
    assert_eq!(byte, [0]);
    stubs.kill(parent.stub());
    stubs.kill(child.stub());
}

#[test]
fn preemption_and_exceptions_are_requests() {
    let stubs = HostStubs::new();
    let c = start(&stubs, &[0xeb, 0xfe]); // jmp .
    while stubs.pid(c.stub()).is_none() {
        std::thread::yield_now();
    }
    stubs.preempt(c.stub());
    let r = next(&c);
    assert_eq!((r.kind, r.ip), (kind::PREEMPTED, CODE));
    // mov al, [0x1234]: a fault at 0x1234
    let fault = [0x8a, 0x04, 0x25, 0x34, 0x12, 0, 0];
    let r = go(
        &c,
        &fault,
        &[
            step(op::COPY_OUT, [0, CODE + 16, 7, 0]),
            step(op::LOAD, [CODE + 16, STACK + 64, 0, 0]),
            step(op::RETURN, [0, 1, 0, 0]),
        ],
    );
    assert_eq!((r.kind, r.nr, r.args[1], r.ip), (kind::FAULT, 11, 0x1234, CODE + 16));
    stubs.kill(c.stub());
}
