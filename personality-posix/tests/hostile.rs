//! What an app can do with the stub: it jumps to the stub's syscall instruction with every number
//! and with arguments of its own, and writes where it should not. Each outcome is listed.

mod common;

use clustix_pd::exec;
use clustix_posix::STUB_IMAGE;
use clustix_posix::call::step;
use clustix_posix::services::Stubs;
use clustix_posix::state::{ProcessContext, ProcessState, Running};
use clustix_posix::window::{
    APP_END, STACK_ADDRESS, STUB_BASE, WINDOW_ADDRESS, WINDOW_LEN, kind, op,
};
use clustix_proto::vfs::Credentials;
use common::HostStubs;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

const CODE: u64 = 0x40_0000;
const STACK: u64 = 0x50_0000;
const SIGSYS: u32 = 31;

/// How an attempt ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Outcome {
    /// The address space was killed with this signal.
    Killed(u32),
    /// It ended with this code.
    Exited(u32),
    /// The host call was made, with this result.
    Returned(i64),
    /// It became a system call of the personality's, as any app's.
    Trapped(u64),
    /// It became an exception in the app.
    Fault(u64),
}
use Outcome::*;

/// Where in the stub a byte pattern stands, in what can be executed.
fn places(pattern: &[u8]) -> Vec<u64> {
    // The first LOAD segment: text and constants.
    let word = |at: usize| u64::from_le_bytes(STUB_IMAGE[at..at + 8].try_into().unwrap());
    let (offset, len) = (word(64 + 8) as usize, word(64 + 32) as usize);
    assert_eq!(word(64 + 16), STUB_BASE);
    STUB_IMAGE[offset..offset + len]
        .windows(pattern.len())
        .enumerate()
        .filter(|(_, w)| *w == pattern)
        .map(|(i, _)| STUB_BASE + i as u64)
        .collect()
}

fn gate() -> u64 {
    // The gate's own section comes first.
    places(&[0x0f, 0x05])[0]
}

/// A stub that waits in a call of its app's, to be forked for each attempt.
struct Template {
    stubs: Arc<HostStubs>,
    parent: ProcessContext,
    running: Arc<Mutex<HashMap<u32, Arc<Running>>>>,
}

fn context(stub: clustix_pd::Stub) -> ProcessContext {
    ProcessContext::new(7, Credentials::ROOT, ProcessState::default(), stub)
}

impl Template {
    fn new() -> Template {
        let stubs = Arc::new(HostStubs::new());
        let parent = context(stubs.spawn().unwrap());
        assert_eq!(exec::block_on(parent.next_request()).unwrap().kind, kind::HELLO);
        let fork = [0xb8, 57, 0, 0, 0, 0x0f, 0x05];
        let steps = [
            step(op::MAP, [CODE, 4096, 7, 0]),
            step(op::MAP, [STACK, 65536, 3, 0]),
            step(op::COPY_OUT, [0, CODE, fork.len() as u64, 0]),
            step(op::LOAD, [CODE, STACK + 32768, 0, 0]),
            step(op::RETURN, [0, 1, 0, 0]),
        ];
        parent.order(&fork, &steps).unwrap();
        assert_eq!(exec::block_on(parent.next_request()).unwrap().nr, 57);
        let running: Arc<Mutex<HashMap<u32, Arc<Running>>>> = Arc::default();
        let (deaths, whose) = (stubs.clone(), running.clone());
        std::thread::spawn(move || {
            while let Some(d) = deaths.next_death() {
                if let Some(r) = whose.lock().unwrap().get(&d.id) {
                    r.death.store(d.status as u32 & 0xffff | 1 << 31, Ordering::Release);
                    r.nudge();
                }
            }
        });
        Template { stubs, parent, running }
    }

    /// Runs machine code in a fork.
    fn run(&self, code: &[u8]) -> Outcome {
        let child = context(self.stubs.fork(self.parent.stub()).unwrap());
        self.running.lock().unwrap().insert(child.stub(), child.running.clone());
        exec::block_on(self.parent.program(&[], &[step(op::FORK, [0; 4])])).unwrap();
        assert_eq!(exec::block_on(child.next_request()).unwrap().kind, kind::HELLO);
        let steps = [
            step(op::COPY_OUT, [0, CODE + 64, code.len() as u64, 0]),
            step(op::LOAD, [CODE + 64, STACK + 32768, 0, 0]),
            step(op::RETURN, [0, 1, 0, 0]),
        ];
        child.order(code, &steps).unwrap();
        let outcome = match exec::block_on(child.next_request()) {
            Ok(r) if r.kind == kind::CALL && r.nr == 110 => Returned(r.args[0] as i64),
            Ok(r) if r.kind == kind::CALL => Trapped(r.nr),
            Ok(r) if r.kind == kind::FAULT => Fault(r.nr),
            Ok(r) => panic!("{r:?}"),
            Err(_) => match child.running.death.load(Ordering::Acquire) & 0xffff {
                s if s & 0x7f != 0 => Killed(s & 0x7f),
                s => Exited(s >> 8),
            },
        };
        self.stubs.kill(child.stub());
        outcome
    }

    /// Calls the stub's syscall instruction at `at`.
    fn jump(&self, at: u64, nr: u64, args: [u64; 6]) -> Outcome {
        let mut code = Vec::new();
        let loads: [[u8; 2]; 8] = [
            [0x48, 0xbf],
            [0x48, 0xbe],
            [0x48, 0xba],
            [0x49, 0xba],
            [0x49, 0xb8],
            [0x49, 0xb9],
            [0x48, 0xb8],
            [0x49, 0xbc],
        ];
        for (load, value) in loads.iter().zip(args.into_iter().chain([nr, at])) {
            code.extend_from_slice(load);
            code.extend_from_slice(&value.to_le_bytes());
        }
        code.extend_from_slice(&[0x41, 0xff, 0xd4]); // call r12
        code.extend_from_slice(&[0x48, 0x89, 0xc7]); // mov rdi, rax
        code.extend_from_slice(&[0xb8, 110, 0, 0, 0, 0x0f, 0x05]);
        self.run(&code)
    }

    fn gate(&self, nr: u64, args: [u64; 6]) -> Outcome {
        self.jump(gate(), nr, args)
    }
}

impl Drop for Template {
    fn drop(&mut self) {
        self.stubs.kill(self.parent.stub());
    }
}

#[test]
fn the_stub_has_one_syscall_instruction() {
    assert_eq!(places(&[0x0f, 0x05]).len(), 1, "{:x?}", places(&[0x0f, 0x05]));
    assert_eq!(places(&[0xcd, 0x80]), []);
    assert_eq!(places(&[0x0f, 0x34]), []);
}

#[test]
fn every_number_from_the_gate() {
    let t = Template::new();
    let mut outcomes: BTreeMap<Outcome, Vec<u64>> = BTreeMap::new();
    for nr in 0..1024 {
        outcomes.entry(t.gate(nr, [0; 6])).or_default().push(nr);
    }
    for (outcome, numbers) in &outcomes {
        println!("{outcome:?}: {} numbers, from {}", numbers.len(), numbers[0]);
    }
    // All that is not death: what the filter allows with zeroes for arguments.
    let mut alive: Vec<(u64, Outcome)> = outcomes
        .iter()
        .filter(|(o, _)| **o != Killed(SIGSYS))
        .flat_map(|(o, n)| n.iter().map(|n| (*n, *o)))
        .collect();
    alive.sort();
    // uretprobe and uprobe: newer hosts let them through any filter. Called by anybody else than
    // their own trampoline they end in SIGILL and ENXIO.
    alive.retain(|a| !matches!(a, (335, Fault(4)) | (336, Returned(-6))));
    assert_eq!(
        alive,
        [
            (3, Returned(-9)),    // close of a descriptor that is not there
            (10, Returned(0)),    // mprotect of nothing
            (11, Returned(-22)),  // munmap of nothing
            (15, Fault(11)),      // rt_sigreturn with a frame of zeroes
            (24, Returned(0)),    // sched_yield
            (131, Returned(0)),   // sigaltstack, asking nothing
            (202, Returned(-14)), // futex wait at address 0
            (228, Returned(-14)), // clock_gettime to address 0
            (231, Exited(0)),     // exit_group
        ]
    );
}

#[test]
fn checked_arguments_from_the_gate() {
    let t = Template::new();
    let page = 4096;
    let fixed = 0x10_0022 | 0x4000; // PRIVATE | ANONYMOUS | NORESERVE | FIXED_NOREPLACE
    let none = u64::MAX;
    let window = [WINDOW_ADDRESS, WINDOW_LEN as u64];
    let killed: &[(u64, [u64; 6])] = &[
        // The stub's own mappings: text, window, signal stack; by start, end and overflow.
        (10, [STUB_BASE, page, 7, 0, 0, 0]),
        (10, [STACK_ADDRESS, page, 7, 0, 0, 0]),
        (10, [APP_END, page * 64, 7, 0, 0, 0]),
        (10, [CODE, STUB_BASE, 7, 0, 0, 0]),
        (10, [CODE, page, 0x0100_0007, 0, 0, 0]),
        (11, [STUB_BASE, page, 0, 0, 0, 0]),
        (11, [0, STUB_BASE, 0, 0, 0, 0]),
        (11, [0, u64::MAX, 0, 0, 0, 0]),
        (11, [page, u64::MAX - page + 1, 0, 0, 0, 0]),
        (11, [u64::MAX - page, page, 0, 0, 0, 0]),
        (11, [0x7fff_0000_0000, page, 0, 0, 0, 0]),
        (28, [WINDOW_ADDRESS, page, 4, 0, 0, 0]),
        (28, [CODE, page, 9, 0, 0, 0]),
        (28, [CODE, page, 1 << 32 | 4, 0, 0, 0]),
        (9, [STUB_BASE, page, 7, fixed, none, 0]),
        (9, [STUB_BASE - page, 2 * page, 7, fixed, none, 0]),
        (9, [0, page, 7, 0x22, none, 0]),
        (9, [CODE, page, 7, 0x32, none, 0]),
        (9, [CODE, page, 7, 0x11, 3, 0]),
        (9, [CODE, page, 7, 0x1 | 0x10_0000, 3, 0]),
        (9, [CODE, page, 7, 1 << 32 | fixed, none, 0]),
        (9, [window[0], page, 3, 0x11, 3, 0]),
        (9, [window[0] + page, window[1], 3, 0x11, 3, 0]),
        // Threads, namespaces, vfork, another's child; a stack of its own.
        (56, [17, 0, 0, 0, 0, 0]),
        (56, [0x8000 | 17 | 0x100, 0, 0, 0, 0, 0]),
        (56, [0x8000 | 17 | 0x1000_0000, 0, 0, 0, 0, 0]),
        (56, [0x8000 | 17, STACK, 0, 0, 0, 0]),
        (56, [1 << 40 | 0x8000 | 17, 0, 0, 0, 0, 0]),
        // Signals, descriptors, the kernel's socket.
        (157, [1, 0, 0, 0, 0, 0]),
        (157, [38, 1, 0, 0, 0, 0]),
        (33, [3, 4, 0, 0, 0, 0]),
        (3, [1024, 0, 0, 0, 0, 0]),
        (44, [3, CODE, 17, 0x4000, 0, 0]),
        (44, [3, CODE, 16, 0x4000, CODE, 16]),
        (44, [3, CODE, 16, 0, 0, 0]),
        (44, [4, CODE, 16, 0x4000, 0, 0]),
        (46, [3, CODE, 0, 0, 0, 0]),
        (47, [4, STACK, 0x4000_0000, 0, 0, 0]),
        (47, [3, STACK, 0, 0, 0, 0]),
        (158, [0x1012, 0, 0, 0, 0, 0]),
        (158, [0x1001, 0, 0, 0, 0, 0]),
        (228, [12, STACK, 0, 0, 0, 0]),
        (228, [(!2u64) << 3, STACK, 0, 0, 0, 0]),
        (202, [STACK, 3, 0, 0, 0, 0]),
        (202, [STACK, 6, 0, 0, 0, 0]),
        // Numbers with a bit of another interface.
        (1 << 32 | 39, [0; 6]),
        (0x4000_0000 | 39, [0; 6]),
        (0x4000_0000 | 11, [CODE, page, 0, 0, 0, 0]),
    ];
    for (nr, args) in killed {
        assert_eq!(t.gate(*nr, *args), Killed(SIGSYS), "{nr} {args:x?}");
    }
    let allowed: &[(u64, [u64; 6], i64)] = &[
        (9, [0x10_0000_0000, page, 3, fixed, none, 0], 0x10_0000_0000),
        // What is there stays.
        (9, [CODE, page, 3, fixed, none, 0], -17),
        // A descriptor of its own that cannot be mapped: the socket.
        (9, [0x10_0000_0000, page, 3, 0x10_0002, 3, 0], -19),
        (10, [CODE, page, 7, 0, 0, 0], 0),
        (11, [0x10_0000_0000, page, 0, 0, 0, 0], 0),
        (28, [STACK, page, 4, 0, 0, 0], 0),
        (157, [1, 9, 0, 0, 0, 0], 0),
        (158, [0x1002, CODE, 0, 0, 0, 0], 0),
        (44, [3, CODE, 16, 0x4000, 0, 0], 16),
        (228, [1, STACK, 0, 0, 0, 0], 0),
    ];
    for (nr, args, result) in allowed {
        assert_eq!(t.gate(*nr, *args), Returned(*result), "{nr} {args:x?}");
    }
}

#[test]
fn other_ways_into_the_host() {
    let t = Template::new();
    // int 0x80 (another architecture), wherever it stands.
    assert_eq!(t.run(&[0xb8, 20, 0, 0, 0, 0xcd, 0x80]), Killed(SIGSYS));
    // sysenter: the same, or an invalid instruction, by processor.
    let sysenter = t.run(&[0xb8, 20, 0, 0, 0, 0x0f, 0x34]);
    assert!(matches!(sysenter, Killed(_) | Fault(_)), "{sysenter:?}");
    // x32's numbers from the app's own code are the personality's to refuse.
    assert_eq!(t.run(&[0xb8, 39, 0, 0, 0x40, 0x0f, 0x05]), Trapped(0x4000_0027));
    // The middle of the gate, without a number of its own: getppid's is not the stub's to make.
    assert_eq!(t.jump(gate(), 110, [0; 6]), Killed(SIGSYS));
}

#[test]
fn the_stub_cannot_be_written_or_read_past() {
    let t = Template::new();
    let store = |address: u64| {
        let mut code = vec![0x48, 0xb8]; // mov rax, address; mov [rax], al
        code.extend_from_slice(&address.to_le_bytes());
        code.extend_from_slice(&[0x88, 0x00, 0xb8, 110, 0, 0, 0, 0x0f, 0x05]);
        t.run(&code)
    };
    assert_eq!(store(STUB_BASE), Fault(11));
    assert_eq!(store(gate()), Fault(11));
    // Nothing of the host's is left: its stack, vDSO and vvar were where these are.
    for address in [0x7fff_ffff_e000, 0x7fff_f7fc_0000, 0x7f00_0000_0000, 0x7e01_0000_0000] {
        assert_eq!(store(address), Fault(11), "{address:x}");
    }
}

/// Builds the hostile program.
fn program() -> Vec<u8> {
    let to = std::env::temp_dir().join(format!("clustix-hostile-{}", std::process::id()));
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let built = std::process::Command::new(rustc)
        .args(["--edition", "2024", "-C", "panic=abort", "-C", "opt-level=2"])
        .args(["-C", "relocation-model=static", "-C", "link-arg=-nostdlib"])
        .args(["-C", "link-arg=-nostartfiles", "-C", "link-arg=-static", "-o"])
        .arg(&to)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/apps/hostile.rs"))
        .status()
        .unwrap();
    assert!(built.success());
    let bytes = std::fs::read(&to).unwrap();
    std::fs::remove_file(to).unwrap();
    bytes
}

#[test]
fn a_hostile_program_harms_only_itself() {
    use common::local::{complete, launch, node, put};
    let node = node();
    exec::block_on(put(&node, "/bin/hostile", &program(), 0o755));
    for attack in ["arguments", "forge", "scribble"] {
        for seed in ["1", "2", "3"] {
            let p = launch(&node, &["/bin/hostile", attack, seed]);
            p.input(b"", true);
            let deadline = exec::now_ns() + 1_500_000_000;
            let ended = p.wait_until(deadline);
            if ended.is_none() {
                // It hangs in a window that it has spoilt: the operator can still end it.
                p.kill(9);
                p.wait();
            }
            println!("{attack} {seed}: {ended:?}");
            let r = complete(&node, &["echo", "alive"]);
            assert_eq!((r.status, r.out.as_str()), (0, "alive\n"), "after {attack} {seed}");
        }
    }
    assert_eq!(clustix_posix::thread::PANICS.load(Ordering::Relaxed), 0);
}
