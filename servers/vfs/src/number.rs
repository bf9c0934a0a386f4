//! Numbers that need not be secret, only unlikely to meet: inode numbers, back-off.

use clustix_ccache::name::{SHARDS, Shard};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

static STATE: OnceLock<AtomicU64> = OnceLock::new();

/// 64 bits of SplitMix64, seeded once per process from the host's generator.
pub fn random() -> u64 {
    let state = STATE.get_or_init(|| {
        let mut seed = [0; 8];
        // Uniqueness of what is made from these numbers is checked by create; a poor seed costs
        // retries, so a sandbox without getrandom(2) is served by the clock.
        if clustix_drivers::fill(&mut seed, clustix_drivers::Source::NonBlocking).is_err() {
            seed = clustix_pd::exec::now_ns().to_ne_bytes();
        }
        AtomicU64::new(u64::from_ne_bytes(seed))
    });
    let mut z = state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A new inode number in `shard`: 40 random bits (never 0), then the shard.
pub fn inode(shard: Shard) -> u64 {
    let r = (random() >> 24).max(2);
    r * u64::from(SHARDS) + u64::from(shard.0)
}
