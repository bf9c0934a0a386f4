//! When a server runs: before others, while the machine has more to run than processors.
//!
//! Others' lives hang on ccache's timers: where one is late by some leases, its node is rightly taken for dead.
//! A real-time thread (SCHED_RR at the lowest priority, sched(7)) is not late, but its wake-ups cost more: a put
//! from a server's domain 0.4 rounds. So a thread is real-time from the first late timer on, until none has
//! been late for a while; and at first, when it is not known yet.

use crate::exec;

/// A timer as late as this says that the machine has more to run than processors, ns.
pub(crate) const LATE: u64 = 20_000_000;

/// How long the answer to a late timer lasts, ns: at first, and at most. It doubles while timers are late soon after it.
const PAUSE: u64 = 10_000_000_000;
const LONGEST_PAUSE: u64 = 320_000_000_000;

/// How long a thread that begins is real-time, ns: where others keep the machine full, it has had no timer to be
/// late, and its first may be late by more than a lease.
const BEGINNING: u64 = 3_000_000_000;

/// For how long something is done otherwise after late timers.
pub(crate) struct Patience {
    /// Before this time; 0: not now.
    until: u64,
    length: u64,
}

impl Patience {
    pub(crate) const fn new() -> Patience {
        Patience { until: 0, length: PAUSE }
    }

    pub(crate) fn waits(&self, now: impl FnOnce() -> u64) -> bool {
        self.until != 0 && now() < self.until
    }

    /// A timer was late at `now`.
    pub(crate) fn late(&mut self, now: u64) {
        // Late again soon after: it was for want of what was done.
        if now >= self.until {
            let again = self.until != 0 && now - self.until < self.length;
            self.length = if again { (self.length * 2).min(LONGEST_PAUSE) } else { PAUSE };
        }
        self.until = now + self.length;
    }
}

/// Makes the calling thread real-time while its timers would be late. For a thread whose sandbox allows
/// sched_setscheduler(2).
pub struct Urgency {
    patience: Patience,
    /// Whether it is real-time now.
    raised: bool,
    /// Linux has refused: neither CAP_SYS_NICE nor RLIMIT_RTPRIO allow it, or its control group has no time for it.
    refused: bool,
}

impl Urgency {
    /// Not real-time yet.
    #[expect(clippy::new_without_default, reason = "a thread has one, which stands for its state")]
    pub const fn new() -> Urgency {
        Urgency { patience: Patience::new(), raised: false, refused: false }
    }

    /// The thread begins: it is real-time for a moment.
    ///
    /// # Errors
    /// As [`Urgency::ran_late`].
    pub fn begin(&mut self) -> std::io::Result<()> {
        self.patience.until = exec::now_ns() + BEGINNING;
        self.raise()
    }

    /// A timer of the thread was `late` ns late, for want of a processor.
    ///
    /// # Errors
    /// The thread cannot be made real-time; told once.
    pub fn ran_late(&mut self, late: u64) -> std::io::Result<()> {
        if late < LATE || self.refused {
            return Ok(());
        }
        self.patience.late(exec::now_ns());
        self.raise()
    }

    fn raise(&mut self) -> std::io::Result<()> {
        if !self.raised {
            self.refused = true;
            schedule(libc::SCHED_RR, 1)?;
            (self.refused, self.raised) = (false, true);
        }
        Ok(())
    }

    /// To be called from time to time.
    pub fn look(&mut self) {
        if self.raised && !self.patience.waits(exec::now_ns) {
            // Whoever may be real-time may cease to be.
            self.raised = schedule(libc::SCHED_OTHER, 0).is_err();
        }
    }

    /// Whether the thread is real-time now.
    pub fn is_raised(&self) -> bool {
        self.raised
    }
}

/// How the calling thread is scheduled, sched_setscheduler(2).
fn schedule(policy: libc::c_int, priority: libc::c_int) -> std::io::Result<()> {
    let parameter = libc::sched_param { sched_priority: priority };
    // SAFETY: the call reads `parameter` only; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_doubles_if_timers_are_late_again_soon() {
        let mut patience = Patience::new();
        assert!(!patience.waits(|| 1));
        patience.late(1);
        assert_eq!((patience.until, patience.length), (1 + PAUSE, PAUSE));
        assert!(patience.waits(|| PAUSE));
        // Late all the same: the machine is full still.
        patience.late(PAUSE);
        assert_eq!((patience.until, patience.length), (2 * PAUSE, PAUSE));
        patience.late(2 * PAUSE + 5);
        assert_eq!((patience.until, patience.length), (4 * PAUSE + 5, 2 * PAUSE));
        (0..10).for_each(|_| patience.late(patience.until));
        assert_eq!(patience.length, LONGEST_PAUSE);
        patience.late(patience.until + LONGEST_PAUSE);
        assert_eq!(patience.length, PAUSE);
    }

    fn policy() -> i32 {
        // SAFETY: the call takes numbers only; 0 is the calling thread.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn a_beginning_is_no_late_timer() {
        let mut urgency = Urgency::new();
        let refused = urgency.begin().is_err();
        assert_eq!((urgency.is_raised(), urgency.patience.length), (!refused, PAUSE));
        urgency.patience.until = 1;
        urgency.look();
        assert!(!urgency.is_raised());
    }

    #[test]
    fn a_late_timer_makes_it_urgent_until_the_pause_is_over() {
        let mut urgency = Urgency::new();
        urgency.ran_late(LATE - 1).unwrap();
        assert!(!urgency.is_raised());
        if urgency.ran_late(LATE).is_err() {
            // Not allowed here; it is not tried again.
            assert!(urgency.ran_late(LATE).is_ok() && !urgency.is_raised());
            return;
        }
        assert_eq!((urgency.is_raised(), policy()), (true, libc::SCHED_RR));
        urgency.look();
        assert!(urgency.is_raised());
        urgency.patience.until = 1;
        urgency.look();
        assert_eq!((urgency.is_raised(), policy()), (false, libc::SCHED_OTHER));
    }
}
