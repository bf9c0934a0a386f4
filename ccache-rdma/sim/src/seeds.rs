//! Many seeds, on all cores.

use crate::cluster::Totals;
use crate::plan::Plan;
use crate::run::{Report, run};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// A seed whose run found something.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// The checker's name and what it saw, or a panic's message.
    pub what: String,
}

/// Runs one seed; a panic of the engine's is a failure like any other.
pub fn one(seed: u64, plan: impl Fn(u64) -> Plan, trace: bool) -> Result<Report, Failure> {
    let found = catch_unwind(AssertUnwindSafe(|| run(seed, plan(seed), trace)));
    let found = found.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied());
        Err(format!("panic: {}", text.unwrap_or("?")))
    });
    found.map_err(|what| Failure { seed, what })
}

/// What many seeds came to.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    /// Seeds run.
    pub seeds: u64,
    /// What has been done in all of them.
    pub totals: Totals,
    /// The failure with the lowest seed.
    pub failure: Option<Failure>,
}

/// Runs seeds on `threads` threads until one fails.
pub fn many(seeds: Range<u64>, threads: usize, plan: impl Fn(u64) -> Plan + Sync) -> Sum {
    let next = AtomicU64::new(seeds.start);
    let sum = Mutex::new(Sum::default());
    std::thread::scope(|s| {
        for _ in 0..threads.max(1) {
            s.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let found = one(seed, &plan, false);
                    let mut sum = sum.lock().unwrap_or_else(|e| e.into_inner());
                    sum.seeds += 1;
                    match found {
                        Ok(report) => sum.totals.add(&report.totals),
                        Err(f) => {
                            // Lower seeds may still be running; none above need be begun.
                            next.store(seeds.end, Ordering::Relaxed);
                            if sum.failure.as_ref().is_none_or(|g| f.seed < g.seed) {
                                sum.failure = Some(f);
                            }
                        }
                    }
                }
            });
        }
    });
    sum.into_inner().unwrap_or_else(|e| e.into_inner())
}
