//! The one source of chance: a schedule follows from its seed alone.

/// A small generator (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// A number from 0 to `n` − 1.
    pub fn below(&mut self, n: usize) -> usize {
        (self.number() % n.max(1) as u64) as usize
    }
    /// True once in `n` times.
    pub fn chance(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
    /// A time from `from` to `to`, ns.
    pub fn time(&mut self, from: u64, to: u64) -> u64 {
        from + self.number() % (to.saturating_sub(from) + 1)
    }
    /// Mostly short, sometimes long: a delay of about `typical` ns.
    pub fn delay(&mut self, typical: u64) -> u64 {
        let factor = if self.chance(16) { 8 } else { 1 };
        self.time(typical / 4, typical * factor)
    }
}
