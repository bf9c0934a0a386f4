//! A domain that makes a nuisance of itself, and what another's calls cost beside it.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use clustix_abi::Rights;
use clustix_pd::channel::Task;
use clustix_pd::exec::{self, block_on};
use clustix_pd::{Boot, CallError, Client, Kernel, serve};

use crate::domains::{ECHO, call};

/// Labels: as many calls to `echo` as can be under way, for ever.
const FLOOD: u32 = 1;
/// Capabilities until the kernel has no more for this domain, for ever.
const EXHAUST: u32 = 2;
/// No answer.
const HOLD: u32 = 3;
/// Its death instead of an answer.
const DIE: u32 = 4;

/// Calls under way at once.
const FLOODING: usize = 64;
/// Calls that are timed at a time.
const CALLS: usize = 2000;
/// Times that calls with and without are timed in turn.
const TURNS: usize = 3;

pub(crate) fn run(boot: &Boot) {
    let told = AtomicU32::new(0);
    let (echo, kernel) = (boot.channel("echo").expect("granted"), boot.kernel.clone());
    std::thread::scope(|s| {
        s.spawn(|| match block_on(exec::changed(&told, 0)) {
            FLOOD => flood(&echo),
            _ => exhaust(&kernel),
        });
        let task = || -> Task<'_> {
            Box::pin(serve(&boot.server, async |call| {
                match call.label {
                    HOLD => std::future::pending().await,
                    DIE => std::process::exit(9),
                    label => {
                        told.store(label, Ordering::SeqCst);
                        exec::wake_all(&told);
                    }
                }
                (0, Vec::new())
            }))
        };
        exec::run((0..16).map(|_| task()));
    });
}

fn flood(echo: &Client) {
    let task = |_| -> Task<'_> {
        Box::pin(async move {
            let mut reply = Vec::new();
            while echo.call(ECHO, &[7; 64], &mut reply).await.is_ok() {}
        })
    };
    exec::run((0..FLOODING).map(task));
}

fn exhaust(kernel: &Kernel) {
    const FREE: u64 = 100;
    let echo = kernel.capability("echo").expect("a first capability");
    loop {
        let made = (FREE..).take_while(|to| kernel.copy(*to, echo, Rights::CLIENT).is_ok());
        for slot in FREE..FREE + made.count() as u64 {
            kernel.delete(slot).expect("its own");
        }
    }
}

/// The 99th of a hundred calls to `echo`, each answered as it should be.
fn p99(echo: &Client) -> Duration {
    let mut times: Vec<Duration> = (0..CALLS as u32)
        .map(|n| {
            let bytes = n.to_le_bytes();
            let begin = Instant::now();
            assert_eq!(call(echo, 100 + n, &bytes), Ok((100 + n, bytes.to_vec())));
            begin.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[CALLS * 99 / 100]
}

/// Times calls to `echo` alone and beside a nuisance, in turn, and says the medians.
fn beside(what: &str, boot: &Boot, echo: &Client, turn: impl Fn(&Client) -> Duration) {
    let nuisance = boot.channel("nuisance").expect("granted");
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        alone.push(p99(echo));
        boot.kernel.pd_start("nuisance").expect("started");
        beside.push(turn(&nuisance));
        // One that dies is told of where it dies.
        if boot.kernel.pd_kill("nuisance").is_ok() {
            assert_eq!(boot.kernel.pd_events().expect("told").role, "nuisance");
        }
    }
    alone.sort_unstable();
    beside.sort_unstable();
    let (alone, beside) = (alone[TURNS / 2], beside[TURNS / 2]);
    let ratio = beside.as_secs_f64() / alone.as_secs_f64();
    let line = format!(
        "call of 4 bytes beside one that {what}: p99 {beside:?}, alone {alone:?}: {ratio:.1}\n"
    );
    // In one piece: others write to the log, too.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

pub(crate) fn beside_each(boot: &Boot, echo: &Client) {
    let kernel = &boot.kernel;
    beside("floods", boot, echo, |nuisance| {
        call(nuisance, FLOOD, &[]).expect("served");
        p99(echo)
    });
    beside("exhausts its budget", boot, echo, |nuisance| {
        call(nuisance, EXHAUST, &[]).expect("served");
        p99(echo)
    });
    beside("owes replies", boot, echo, |nuisance| {
        std::thread::scope(|s| {
            let task = |_| -> Task<'_> {
                Box::pin(async move {
                    let held = nuisance.call(HOLD, &[], &mut Vec::new()).await;
                    assert_eq!(held, Err(CallError::Gone));
                })
            };
            s.spawn(move || exec::run((0..16).map(task)));
            let p99 = p99(echo);
            kernel.pd_kill("nuisance").expect("it lives");
            assert_eq!(kernel.pd_events().expect("told").role, "nuisance");
            p99
        })
    });
    beside("dies in each call", boot, echo, |nuisance| {
        let done = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    assert_eq!(call(nuisance, DIE, &[]), Err(CallError::Gone));
                    assert_eq!(kernel.pd_events().expect("told").role, "nuisance");
                    kernel.pd_start("nuisance").expect("started");
                }
            });
            let p99 = p99(echo);
            done.store(true, Ordering::SeqCst);
            p99
        })
    });
}
