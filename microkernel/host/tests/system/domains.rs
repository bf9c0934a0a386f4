//! What the protection domains of the scenarios do.

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Instant;

use clustix_abi::{Error, Hosted, Rights, slot};
use clustix_pd::channel::Task;
use clustix_pd::exec::{self, block_on};
use clustix_pd::wire::Exit;
use clustix_pd::{Boot, BootError, CallError, Client, KernelError, StubEvent, metrics, serve};

use crate::nuisance;

/// Labels of the `echo` server.
pub(crate) const ECHO: u32 = 0;
const DIE: u32 = 1;
const BADGE: u32 = 2;
const SCRIBBLE: u32 = 3;
const PARK: u32 = 4;
const WAKE: u32 = 5;

pub(crate) fn run(role: &str) -> ExitCode {
    let boot = Boot::from_kernel().expect("a boot message");
    assert_eq!((boot.role.as_str(), boot.node, boot.incarnation), (role, 2, 7));
    assert_eq!(boot.cluster, "test");
    boot.enter_sandbox(None).expect("a sandbox");
    match role {
        "tester" => tester(&boot),
        "echo" => echo(&boot),
        "naughty" => naughty(&boot),
        "nuisance" => nuisance::run(&boot),
        _ => return ExitCode::FAILURE,
    }
    ExitCode::SUCCESS
}

fn echo(boot: &Boot) {
    let shared = boot.region("shared").expect("granted");
    let wake = std::sync::atomic::AtomicU32::new(0);
    let task = || -> Task<'_> {
        Box::pin(serve(&boot.server, async |call| match call.label {
            DIE => std::process::exit(9),
            BADGE => (0, call.badge.to_le_bytes().to_vec()),
            SCRIBBLE => {
                let n = shared.words()[1000].fetch_add(1, Ordering::SeqCst) + 1;
                metrics::add("echo_scribbles_total", 1);
                (0, n.to_le_bytes().to_vec())
            }
            PARK => {
                exec::changed(&wake, 0).await;
                boot.server.signal(call.channel, u32::from(call.request[0]));
                (0, Vec::new())
            }
            WAKE => {
                wake.store(1, Ordering::SeqCst);
                (0, Vec::new())
            }
            label => (label, call.request.clone()),
        }))
    };
    exec::run((0..16).map(|_| task()));
}

/// Does what its sandbox forbids, as told by the label.
fn naughty(boot: &Boot) {
    let shared = boot.region("shared").expect("granted");
    block_on(serve(&boot.server, async |call| {
        match call.label {
            0 => drop(std::fs::File::open("/etc/passwd")),
            1 => drop(std::net::TcpListener::bind("127.0.0.1:0")),
            2 => drop(std::os::unix::net::UnixDatagram::unbound()),
            3 => drop(std::process::Command::new("/bin/true").status()),
            // SAFETY: numbers and null pointers only; each is refused before it acts.
            4 => unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    4096,
                    libc::PROT_READ | libc::PROT_EXEC,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                );
            },
            // SAFETY: as above.
            5 => unsafe {
                // (To ask for a pid is forbidden too.)
                libc::kill(1, 0);
            },
            // SAFETY: as above.
            6 => unsafe {
                libc::syscall(libc::SYS_process_vm_readv, 1, 0, 0, 0, 0, 0);
            },
            // SAFETY: as above: a process, not a thread.
            7 => unsafe {
                libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
            },
            // SAFETY: as above.
            8 => unsafe {
                libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            },
            // Another process's affinity, though its own thread's it may set.
            // SAFETY: as above.
            9 => unsafe {
                libc::syscall(libc::SYS_sched_setaffinity, 1, 0, 0);
            },
            SEGV => {
                shared.words()[0].store(1, Ordering::SeqCst);
            }
            MPROTECT => {
                let page = shared.words().as_ptr().cast_mut().cast();
                // SAFETY: asks for more rights on a page that is mapped; it is refused, and would
                // break nothing if it were not.
                let refused =
                    unsafe { libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_WRITE) };
                return (refused as u32, Vec::new());
            }
            FUZZ => fuzz(&call.request),
            GARBAGE => {
                let garbage = [0xff; 64];
                clustix_pd::socket::send(kernel_socket(), &garbage, &[], false).expect("sent");
                // The kernel kills who sends such things.
                std::thread::park();
            }
            _ => {}
        }
        (1, Vec::new())
    }));
}

/// The kernel socket, past the library.
fn kernel_socket() -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: descriptor 3 stays open for the domain's whole life.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(clustix_pd::boot::KERNEL_FD) }
}

/// Sends the kernel thousands of well-formed packets with random contents.
fn fuzz(seed: &[u8]) {
    let mut x = u64::from_le_bytes(seed.try_into().expect("eight bytes")) | 1;
    let mut random = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x >> 8
    };
    for _ in 0..5000 {
        let mut small = |n: u64| if random() % 8 == 0 { random() } else { random() % n };
        let caps = (small(4) % 5) as usize;
        let words = (small(9) % 20) as usize;
        let label = match small(4) {
            0 => 0x1_0000 + small(0x40),
            _ => small(52),
        };
        let lengths =
            if small(16) == 0 { (small(8), small(200)) } else { (caps as u64, words as u64) };
        let packet = clustix_pd::wire::Packet {
            sequence: 0x8000_0000 | small(100) as u32,
            syscall: match small(12) {
                n @ 0..8 => -1 - n as i64,
                n => -0x1000 - (n as i64 - 8),
            },
            cptr: small(32),
            send: small(32),
            reply: small(32),
            info: clustix_abi::MessageInfo::new(label, 0, lengths.0 as usize, lengths.1 as usize)
                .word(),
            words: (0..words).map(|_| small(64)).collect(),
            caps: (0..caps).map(|_| small(32)).collect(),
            receive: small(64),
        };
        let bytes = postcard::to_stdvec(&packet).expect("serialisable");
        clustix_pd::socket::send(kernel_socket(), &bytes, &[], false).expect("sent");
    }
}

const SEGV: u32 = 20;
const MPROTECT: u32 = 21;
const FUZZ: u32 = 22;
const GARBAGE: u32 = 23;

/// How many forbidden things `naughty` knows.
const FORBIDDEN: u32 = 10;

fn tester(boot: &Boot) {
    let echo = boot.channel("echo").expect("granted");
    match std::str::from_utf8(&boot.args).expect("the scenario's name") {
        "calls" => calls(boot, &echo),
        "gone" => gone(boot, &echo),
        "capabilities" => capabilities(boot, &echo),
        "sandbox" => sandbox(boot),
        "read-only" => read_only(boot),
        "fuzz" => random_packets(boot, &echo),
        "minted" => minted(boot, &echo),
        "stubs" => stubs(boot),
        "restart" => restart(boot, &echo),
        "costs" => costs(&echo),
        "nuisance" => nuisance::beside_each(boot, &echo),
        "lost" => {
            let _ = call(&echo, DIE, &[]);
            std::thread::park();
        }
        "idle" => idle(boot, &echo),
        other => panic!("no scenario {other}"),
    }
}

pub(crate) fn call(
    client: &Client,
    label: u32,
    request: &[u8],
) -> Result<(u32, Vec<u8>), CallError> {
    let mut reply = Vec::new();
    let label = block_on(client.call(label, request, &mut reply))?;
    Ok((label, reply))
}

fn number(client: &Client, label: u32) -> Result<u64, CallError> {
    let (_, reply) = call(client, label, &[])?;
    Ok(u64::from_le_bytes(reply.try_into().expect("eight bytes")))
}

fn calls(boot: &Boot, echo: &Client) {
    assert!(matches!(boot.channel("nobody"), Err(BootError::NotGranted("channel", _))));
    // The badge is the declared one, whatever the client says.
    assert_eq!(number(echo, BADGE), Ok(0xbad9e));
    // All sizes up to a whole window, and one too long.
    for len in [0, 1, 63, 64, 127, 128, 129, 4096, 65536, 256 * 1024] {
        let bytes: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
        assert_eq!(call(echo, 77, &bytes), Ok((77, bytes)));
    }
    assert_eq!(call(echo, 0, &vec![0; 256 * 1024 + 1]), Err(CallError::TooLarge));
    // More calls at once than there are slots, from several threads.
    let before = echo.wakeups();
    std::thread::scope(|s| {
        for t in 0..6u32 {
            s.spawn(move || {
                let task = |k: u32| -> Task<'_> {
                    Box::pin(async move {
                        let mut reply = Vec::new();
                        for i in 0..50u32 {
                            let id = [t, k, i].map(u32::to_le_bytes).concat();
                            let label = echo.call(100 + i, &id, &mut reply).await;
                            assert_eq!((label, &reply), (Ok(100 + i), &id));
                        }
                    })
                };
                exec::run((0..8).map(task));
            });
        }
    });
    // One bell per call, no matter who slept.
    assert_eq!(echo.wakeups() - before, 6 * 8 * 50);
    // A server that keeps the call, and signals a word of this client's.
    let word = echo.wait_word().expect("a word");
    std::thread::scope(|s| {
        let parked = s.spawn(|| call(echo, PARK, &[word.index() as u8]));
        call(echo, WAKE, &[]).expect("served while another call waits");
        block_on(word.signalled());
        parked.join().expect("no panic").expect("answered");
    });
    // Counters: the server's own, and the kernel's sum of bells.
    number(echo, SCRIBBLE).expect("served");
    let all = boot.kernel.metrics_read().expect("granted");
    let find = |pd: &str, name: &str| {
        all.iter().find(|(p, n, _)| p == pd && n == name).map(|(_, _, v)| *v)
    };
    assert_eq!(find("echo", "echo_scribbles_total"), Some(1));
    let name = "clustix_wakeups_total{from=\"tester\",to=\"echo\"}";
    assert_eq!(find("kernel", name), Some(echo.wakeups()));
    // Nothing of all that went through the kernel: the one request is the one under way.
    let name = "clustix_kernel_requests_total{pd=\"tester\"}";
    assert_eq!(find("kernel", name), Some(1));
    assert_eq!(find("kernel", "clustix_kernel_requests_total{pd=\"echo\"}"), Some(0));
}

fn gone(boot: &Boot, echo: &Client) {
    for round in 1..=3 {
        // Some calls are under way in the server, one kills it, one comes after.
        let word = echo.wait_word().expect("a word");
        std::thread::scope(|s| {
            let parked = s.spawn(|| call(echo, PARK, &[word.index() as u8]));
            assert_eq!(call(echo, DIE, &[]), Err(CallError::Gone));
            let event = boot.kernel.pd_events().expect("the supervisor is told");
            assert_eq!((event.role.as_str(), event.status), ("echo", Exit::Code(9)));
            assert_ne!(event.pid, 0);
            let late = s.spawn(|| call(echo, 5555, b"after"));
            boot.kernel.pd_start("echo").expect("it can be started");
            assert_eq!(late.join().expect("no panic"), Ok((5555, b"after".to_vec())));
            // Taken before the death, or served by the next life: never lost.
            let wake = s.spawn(|| {
                let mut first = call(echo, WAKE, &[]);
                while first.is_err() {
                    first = call(echo, WAKE, &[]);
                }
            });
            let parked = parked.join().expect("no panic");
            assert!(matches!(parked, Err(CallError::Gone) | Ok(_)), "{parked:?}");
            wake.join().expect("no panic");
        });
        let pds = boot.kernel.pd_list().expect("granted");
        let info = pds.iter().find(|p| p.role == "echo").expect("listed");
        let last = info.ends.last().map(|(_, exit)| *exit);
        assert_eq!((info.restarts, last), (round, Some(Exit::Code(9))));
    }
    // Killed from outside, in the middle of nothing.
    boot.kernel.pd_kill("echo").expect("it can be killed");
    assert_eq!(boot.kernel.pd_events().expect("told").status, Exit::Signal(libc::SIGKILL));
    // It does not run: the kernel says so.
    let refused = boot.kernel.pd_kill("echo");
    assert_eq!(refused, Err(KernelError::Refused(Error::IllegalOperation)));
}

fn capabilities(boot: &Boot, echo: &Client) {
    let kernel = &boot.kernel;
    let refused = |r: Result<Vec<u64>, KernelError>| match r {
        Err(KernelError::Refused(e)) => e,
        other => panic!("{other:?}"),
    };
    // Empty slots, absurd addresses, wrong types.
    for cptr in [0, 200, 1 << 20, u64::MAX] {
        let e = refused(kernel.invoke(cptr, Hosted::PdKill.number(), &[], &[]));
        assert!(matches!(e, Error::InvalidCapability | Error::FailedLookup), "{e:?}");
    }
    let endpoint = kernel.capability("echo").expect("a first capability");
    let regions = kernel.capability("regions").expect("a first capability");
    let e = refused(kernel.invoke(regions, Hosted::PdKill.number(), &[], &[]));
    assert!(matches!(e, Error::IllegalOperation | Error::InvalidCapability), "{e:?}");
    // Nobody gave it one for killing itself.
    assert_eq!(kernel.pd_kill("tester"), Err(KernelError::NoCapability));
    let e = refused(kernel.invoke(slot::PD, Hosted::PdKill.number(), &[], &[]));
    assert!(matches!(e, Error::IllegalOperation | Error::InvalidCapability), "{e:?}");
    // A region that it may read cannot be mapped writable.
    let shared = kernel.capability("region:shared").expect("a first capability");
    let e = refused(kernel.invoke(shared, Hosted::RegionMap.number(), &[1], &[]));
    assert!(matches!(e, Error::IllegalOperation | Error::InvalidCapability), "{e:?}");
    assert!(!boot.region("shared").expect("granted").writable());
    // Copies, derivation, revocation; a badge cannot be put on a badged capability.
    let free = 100;
    kernel.copy(free, endpoint, Rights::CLIENT).expect("an empty slot");
    kernel.copy(free, endpoint, Rights::CLIENT).expect_err("a full slot");
    kernel.mint(free + 1, endpoint, Rights::CLIENT, 1).expect_err("a second badge");
    kernel.r#move(free + 1, free).expect("an empty slot");
    kernel.delete(free + 1).expect("it is there");
    // The channel lives as long as one capability for it does, and not longer.
    assert_eq!(number(echo, BADGE), Ok(0xbad9e));
    kernel.delete(endpoint).expect("its own");
    assert_eq!(number(echo, BADGE), Err(CallError::Revoked));
}

fn sandbox(boot: &Boot) {
    let naughty = boot.channel("naughty").expect("granted");
    boot.kernel.pd_start("naughty").expect("started");
    for label in 0..FORBIDDEN {
        assert_eq!(call(&naughty, label, &[]), Err(CallError::Gone), "forbidden thing {label}");
        let event = boot.kernel.pd_events().expect("the supervisor is told");
        assert_eq!(event.role, "naughty");
        assert_eq!(event.status, Exit::Signal(libc::SIGSYS), "forbidden thing {label}");
        boot.kernel.pd_start("naughty").expect("started again");
    }
    assert_eq!(call(&naughty, FORBIDDEN, &[]), Ok((1, Vec::new())));
}

fn read_only(boot: &Boot) {
    let naughty = boot.channel("naughty").expect("granted");
    boot.kernel.pd_start("naughty").expect("started");
    assert_eq!(call(&naughty, MPROTECT, &[]), Ok((u32::MAX, Vec::new())));
    assert_eq!(call(&naughty, SEGV, &[]), Err(CallError::Gone));
    assert_eq!(boot.kernel.pd_events().expect("told").status, Exit::Signal(libc::SIGSEGV));
    assert_eq!(boot.region("shared").expect("granted").words()[0].load(Ordering::SeqCst), 0);
}

fn random_packets(boot: &Boot, echo: &Client) {
    let seed = exec::now_ns();
    eprintln!("seed {seed}");
    let naughty = boot.channel("naughty").expect("granted");
    // The first seed once asked so much without reading a reply that the kernel ended the domain.
    for seed in std::iter::once(9_909_151_010_151).chain((0..4).map(|round| seed + round)) {
        boot.kernel.pd_start("naughty").expect("started");
        // It may delete what it has, be refused, wait for ever: it stays its own affair. Who does not
        // read what it is sent is killed: that is the kernel's bound, and may happen here.
        let done = call(&naughty, FUZZ, &seed.to_le_bytes());
        assert_eq!(call(echo, 9, b"still here"), Ok((9, b"still here".to_vec())));
        if done != Err(CallError::Gone) {
            assert_eq!(done, Ok((1, Vec::new())), "seed {seed}");
            assert_eq!(call(&naughty, GARBAGE, &[]), Err(CallError::Gone));
        }
        let event = boot.kernel.pd_events().expect("told");
        assert_eq!((event.role.as_str(), event.status), ("naughty", Exit::Signal(libc::SIGKILL)));
    }
    let pds = boot.kernel.pd_list().expect("granted");
    assert!(pds.iter().all(|p| p.role == "naughty" || p.restarts == 0), "{pds:?}");
}

/// A capability with a badge of its own, made at run time, brings a channel of its own.
fn minted(boot: &Boot, echo: &Client) {
    let kernel = &boot.kernel;
    let open = kernel.capability("echo-unbadged").expect("a first capability");
    kernel.mint(100, open, Rights::CLIENT, 0x77).expect("an empty slot");
    let name = "echo#119";
    let until = exec::now_ns() + 5_000_000_000;
    let minted = loop {
        // The kernel tells of the channel after it answered.
        match boot.channel(name) {
            Ok(channel) => break channel,
            Err(e) => assert!(exec::now_ns() < until, "{e}"),
        }
        std::thread::yield_now();
    };
    assert_eq!(number(&minted, BADGE), Ok(0x77));
    assert_eq!(number(echo, BADGE), Ok(0xbad9e));
    // Revoking it takes what was derived from it, and not itself; without it the channel ends.
    kernel.copy(101, 100, Rights::CLIENT).expect("an empty slot");
    kernel.revoke(100).expect("its own");
    assert_eq!(kernel.delete(101), Ok(()), "an empty slot can be emptied");
    kernel.copy(101, 100, Rights::CLIENT).expect("it was empty");
    kernel.delete(101).expect("its own");
    assert_eq!(number(&minted, BADGE), Ok(0x77));
    kernel.delete(100).expect("its own");
    assert_eq!(number(&minted, BADGE), Err(CallError::Revoked));
    assert_eq!(number(echo, BADGE), Ok(0xbad9e));
}

/// Words of the test stub's window: what it says, what it is told.
const SAYS: usize = 0x100;
const TOLD: usize = 0x104;
const SEEN: usize = 0x108;
const READY: u32 = 0x51ab;

fn await_word(window: &clustix_pd::StubWindow, at: usize, wanted: u32) {
    let until = exec::now_ns() + 10_000_000_000;
    while window.word(at).load(Ordering::SeqCst) != wanted {
        assert!(exec::now_ns() < until, "the stub does not say {wanted:#x}");
        std::thread::yield_now();
    }
}

fn stubs(boot: &Boot) {
    let kernel = &boot.kernel;
    let first = kernel.stub_spawn().expect("a stub");
    let second = kernel.stub_spawn().expect("another");
    assert!(first.pid > 1 && first.id != second.id);
    await_word(&first.window, SAYS, READY);
    await_word(&second.window, SAYS, READY);
    // A region: written here, sealed, sent, seen there.
    let region = kernel.region_create(8192).expect("a region");
    assert!(region.write(0, &0x1122_3344_5566_7788u64.to_le_bytes()));
    kernel.region_send(&region, first.id).expect_err("not sealed yet");
    kernel.region_seal(&region).expect("sealed");
    assert!(!region.writable() && !region.write(0, &[0]));
    kernel.region_send(&region, first.id).expect("sent");
    first.window.word(TOLD).store(3, Ordering::SeqCst);
    await_word(&first.window, SAYS, 3);
    assert_eq!(first.window.word64(SEEN).load(Ordering::SeqCst), 0x1122_3344_5566_7788);
    drop(region);
    // A fork: the child has a window of its own and is a stub like any other.
    let child = kernel.stub_fork(first.id).expect("a fork is prepared");
    first.window.word(TOLD).store(2, Ordering::SeqCst);
    await_word(&child.window, SAYS, READY);
    await_word(&first.window, SAYS, 2);
    child.window.word64(0x10).fetch_add(5, Ordering::SeqCst);
    child.window.word(TOLD).store(1, Ordering::SeqCst);
    let died = |id, status| StubEvent::Died { id, status };
    assert_eq!(kernel.stub_events(), Ok(died(child.id, Exit::Code(7))));
    kernel.stub_kill(second.id).expect("it lives");
    assert_eq!(kernel.stub_events(), Ok(died(second.id, Exit::Signal(libc::SIGKILL))));
    kernel.stub_preempt(first.id).expect("it lives");
    assert_eq!(kernel.stub_events(), Ok(died(first.id, Exit::Signal(63))));
    assert_eq!(kernel.stub_kill(first.id), Err(KernelError::Refused(Error::Gone)));
    let all = kernel.metrics_read().expect("granted");
    let name = "clustix_wakeups_total{from=\"app\",to=\"posix\"}";
    assert!(all.iter().any(|(_, n, v)| n == name && *v == 5), "{all:?}");
    // The budget bounds them, and what is gone makes room again.
    for round in 0..3 {
        let mut many = Vec::new();
        loop {
            match kernel.stub_spawn() {
                Ok(stub) => many.push(stub),
                Err(e) => {
                    assert_eq!(e, KernelError::Refused(Error::NotEnoughMemory));
                    break;
                }
            }
        }
        assert!(many.len() >= 60, "round {round}: {}", many.len());
        for stub in &many {
            kernel.stub_kill(stub.id).expect("it lives");
        }
        let mut left: std::collections::HashSet<_> = many.iter().map(|s| s.id).collect();
        while !left.is_empty() {
            let StubEvent::Died { id, .. } = kernel.stub_events().expect("told");
            assert!(left.remove(&id));
        }
    }
}

fn restart(boot: &Boot, echo: &Client) {
    let shared = boot.region("shared").expect("granted");
    for n in 1..=3 {
        assert_eq!(number(echo, SCRIBBLE), Ok(n));
        assert_eq!(shared.words()[1000].load(Ordering::SeqCst), n);
        assert_eq!(call(echo, DIE, &[]), Err(CallError::Gone));
    }
    assert_eq!(call(echo, ECHO, b"x"), Ok((ECHO, b"x".to_vec())));
    let all = boot.kernel.metrics_read().expect("granted");
    // Counters outlive the lives of a domain.
    assert!(all.contains(&("echo".into(), "echo_scribbles_total".into(), 3)), "{all:?}");
}

fn costs(echo: &Client) {
    let mut reply = Vec::new();
    for len in [16, 4096] {
        let bytes = vec![1; len];
        let mut times = Vec::new();
        for _ in 0..2000 {
            let start = Instant::now();
            block_on(echo.call(ECHO, &bytes, &mut reply)).expect("served");
            times.push(start.elapsed());
        }
        times.sort();
        eprintln!("call of {len} bytes between two domains: median {:?}", times[times.len() / 2]);
    }
}

fn idle(boot: &Boot, echo: &Client) {
    boot.kernel.pd_start("naughty").expect("started");
    call(&boot.channel("naughty").expect("granted"), FORBIDDEN, &[]).expect("served");
    call(echo, ECHO, &[]).expect("served");
    let stub = boot.kernel.stub_spawn().expect("a stub");
    await_word(&stub.window, SAYS, READY);
    let pds = boot.kernel.pd_list().expect("granted");
    let mut pids: Vec<String> = pds.iter().map(|p| p.pid.to_string()).collect();
    pids.push(stub.pid.to_string());
    eprintln!("pids {}", pids.join(" "));
    loop {
        std::thread::park();
    }
}
