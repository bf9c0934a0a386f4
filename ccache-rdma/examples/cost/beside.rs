//! A reference measured between the parts of what it is held against.
//!
//! Machines share their cores with others, whose work makes a core slower for milliseconds or seconds, by a half
//! what waits for memory or fills its pipes, by a third a round: only what ran beside an undisturbed reference
//! can be compared with it.

use crate::{figure, median};
use std::path::PathBuf;
use std::process::Command;

/// Parts of a measurement.
pub const PARTS: usize = 10;
/// Rounds in each of the reference's seven batches.
const ROUNDS: &str = "100";

/// The reference: a program that prints what a round takes, ns.
pub struct Beside(Option<PathBuf>);

impl Beside {
    /// Only the cost is wanted.
    pub const fn nothing() -> Beside {
        Beside(None)
    }

    pub fn program(path: &str) -> Beside {
        Beside(Some(path.into()))
    }

    fn round(&self) -> Option<f64> {
        let out = Command::new(self.0.as_ref()?)
            .args(["pingpong", ROUNDS])
            .output()
            .expect("the program that measures a round");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Some(String::from_utf8_lossy(&out.stdout).trim().parse().expect("nanoseconds"))
    }

    /// Prints the median cost of `part`'s operations, each timed by itself (ns): `part(k)` does part `k` of
    /// [`PARTS`]. With a reference a line for each part, and another, `NAME round`, with what a round took right
    /// before and after it, the slower of the two.
    pub fn measure(&self, name: &str, mut part: impl FnMut(usize) -> Vec<u64>) {
        let mut costs = Vec::new();
        let mut before = self.round();
        for k in 0..PARTS {
            let cost = median(part(k));
            let after = self.round();
            match (before, after) {
                (Some(before), Some(after)) => {
                    figure(name, cost as f64);
                    figure(&format!("{name} round"), f64::max(before, after));
                }
                _ => costs.push(cost),
            }
            before = after;
        }
        if !costs.is_empty() {
            figure(name, median(costs) as f64);
        }
    }
}
