//! Giving out PIDs: a cursor steps through those whose shard has its primary on this node, so that
//! a new process's objects live where it runs.

use clustix_ccache::cache::Cache;
use clustix_ccache::name::{SHARDS, Shard};
use clustix_ccache::set::Class;
use clustix_proto::process::Pid;
use std::sync::atomic::{AtomicU32, Ordering};

/// First PID that is given out; 1 is init.
pub const FIRST: Pid = 2;
/// One past the last: Linux's PID_MAX_LIMIT.
pub const END: Pid = 1 << 22;

/// Where the search goes on. A hint and no state: that a PID is free is settled by its create.
pub struct Cursor(AtomicU32);

impl Cursor {
    /// Starts at a place that differs from one start of the server to the next, so that PIDs just
    /// freed are not given out again at once.
    pub fn new(seed: u64) -> Cursor {
        Cursor(AtomicU32::new((seed % u64::from(END - FIRST)) as u32 + FIRST))
    }

    /// The next candidate.
    pub fn next<C: Cache>(&self, cache: &C) -> Pid {
        let step = |p: u32| if p + 1 >= END { FIRST } else { p + 1 };
        let last = self.0.load(Ordering::Relaxed).clamp(FIRST, END - 1);
        let mut pid = step(last);
        let shard = cache.local_shard(Class::Process, Some(Shard::of(pid.into()))).0 % SHARDS;
        while Shard::of(pid.into()).0 != shard {
            pid = step(pid);
        }
        self.0.store(pid, Ordering::Relaxed);
        pid
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clustix_ccache::local::LocalCache;

    #[test]
    fn candidates_stay_in_range_and_wrap() {
        let cache = LocalCache::new();
        let cursor = Cursor::new(u64::from(END - FIRST) - 3);
        let pids: Vec<_> = (0..6).map(|_| cursor.next(&cache)).collect();
        assert_eq!(pids, [END - 2, END - 1, 2, 3, 4, 5]);
    }
}
