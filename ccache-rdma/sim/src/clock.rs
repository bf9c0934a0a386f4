//! A node's own clock: apart from the others' by any offset, and drifting within the bound that
//! leases are reckoned with.

use crate::random::Random;
use clustix_ccache::lease::Timing;

/// One node's clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    offset: u64,
    /// Millionths that it runs faster (or slower) than global time.
    ppm: i64,
}

impl Clock {
    /// A clock as wrong as it may be: two of them differ by at most `drift_ns` in a lease.
    pub fn any(random: &mut Random, timing: &Timing) -> Clock {
        // Half of the bound to either side, and a little less: the two errors multiply.
        let bound = timing.drift_ns as i64 * 1_000_000 / timing.lease_ns as i64 / 2 * 95 / 100;
        let ppm = match random.below(3) {
            0 => bound,
            1 => -bound,
            _ => random.time(0, 2 * bound as u64) as i64 - bound,
        };
        Clock { offset: random.time(1_000, 1 << 40), ppm }
    }
    /// What it shows at a global time.
    pub fn local(&self, global: u64) -> u64 {
        let drift = global as i128 * i128::from(self.ppm) / 1_000_000;
        (i128::from(self.offset) + i128::from(global) + drift) as u64
    }
    /// The first global time at which it shows `local` or more; 0 for the past before time began.
    pub fn global(&self, local: u64) -> u64 {
        let since = i128::from(local) - i128::from(self.offset);
        if since <= 0 {
            return 0;
        }
        let mut global = (since * 1_000_000 / i128::from(1_000_000 + self.ppm)) as u64;
        global = global.saturating_sub(2);
        while self.local(global) < local {
            global += 1;
        }
        global
    }
}
