//! Where a server runs: on the processor of whoever calls it, while one does.
//!
//! A wake-up across processors costs several times one on the same processor, and the host's scheduler
//! leaves a woken thread where it was, or puts it on an idle processor. So a server that sleeps between
//! requests moves to where they come from. A caller's processor is its own word and only a hint: a wrong
//! one costs time. On a machine that has more to run than processors a server that may run on one only
//! waits longer for its turn; so one whose timer was late goes back to where the scheduler puts it.

use crate::exec;
use rustix::thread::CpuSet;

/// Requests in a row from one other processor, each of which ended a sleep, after which the server moves.
const ENOUGH: u32 = 4;

/// A timer as late as this says that the machine has more to run than processors, ns.
const LATE: u64 = 20_000_000;

/// How long a server whose timer was late does not follow, ns.
const PAUSE: u64 = 10_000_000_000;

/// The processor that the calling thread runs on.
pub fn current() -> u32 {
    rustix::thread::sched_getcpu() as u32
}

/// What to do about the server's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Stay,
    /// Run there and nowhere else.
    Move(u32),
    /// Run wherever the scheduler likes.
    Release,
}

/// The decision: see the module.
#[derive(Default)]
struct Place {
    kept: bool,
    /// A request came from the server's own processor since the last [`Place::look`].
    shared: bool,
    from: u32,
    streak: u32,
}

impl Place {
    /// A request from a caller on the processor `from`, seen on `here`; `slept`: it ended a sleep.
    fn asked(&mut self, from: u32, here: u32, slept: bool) -> Step {
        if from == here {
            self.streak = 0;
            self.shared = true;
            return if std::mem::replace(&mut self.kept, true) {
                Step::Stay
            } else {
                Step::Move(here)
            };
        }
        // A server that does not come to sleep works beside its callers, which is as well.
        if !slept {
            return Step::Stay;
        }
        if self.from != from {
            (self.from, self.streak) = (from, 0);
        }
        self.streak += 1;
        if self.streak < ENOUGH {
            return Step::Stay;
        }
        self.streak = 0;
        (self.kept, self.shared) = (true, true);
        Step::Move(from)
    }

    /// From time to time: a server that nobody beside it calls is not kept there.
    fn look(&mut self) -> Step {
        if std::mem::take(&mut self.shared) { Step::Stay } else { self.release() }
    }

    fn release(&mut self) -> Step {
        self.streak = 0;
        if std::mem::take(&mut self.kept) { Step::Release } else { Step::Stay }
    }
}

/// Keeps the calling thread on its callers' processor. For a server's one thread.
pub struct Following {
    place: Place,
    /// Where the thread may run.
    allowed: CpuSet,
    /// Nobody is followed before this time; 0: now.
    paused_until: u64,
}

impl Following {
    /// For the calling thread, which never leaves the processors that it may run on now. `None` if those
    /// are fewer than two, or cannot be learned.
    pub fn new() -> Option<Following> {
        let allowed = rustix::thread::sched_getaffinity(None).ok()?;
        (allowed.count() > 1).then(|| Following {
            place: Place::default(),
            allowed,
            paused_until: 0,
        })
    }

    /// A request came from a caller on the processor `from`; `slept`: it ended a sleep.
    pub fn asked(&mut self, from: u32, slept: bool) {
        if self.paused_until != 0 {
            if exec::now_ns() < self.paused_until {
                return;
            }
            self.paused_until = 0;
        }
        if (from as usize) < CpuSet::MAX_CPU && self.allowed.is_set(from as usize) {
            let step = self.place.asked(from, current(), slept);
            self.carry_out(step);
        }
    }

    /// To be called from time to time.
    pub fn look(&mut self) {
        let step = self.place.look();
        self.carry_out(step);
    }

    /// The thread's timer was `late` ns late.
    pub fn ran_late(&mut self, late: u64) {
        if late >= LATE {
            self.paused_until = exec::now_ns() + PAUSE;
            let step = self.place.release();
            self.carry_out(step);
        }
    }

    fn carry_out(&self, step: Step) {
        // Linux refuses a processor that went away meanwhile; the server then stays where it is.
        let _ = match step {
            Step::Stay => Ok(()),
            Step::Move(to) => {
                let mut one = CpuSet::new();
                one.set(to as usize);
                rustix::thread::sched_setaffinity(None, &one)
            }
            Step::Release => rustix::thread::sched_setaffinity(None, &self.allowed),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_moves_to_one_caller_and_not_between_two() {
        let mut place = Place::default();
        for _ in 1..ENOUGH {
            assert_eq!(place.asked(1, 0, true), Step::Stay);
        }
        assert_eq!(place.asked(1, 0, true), Step::Move(1));
        for i in 0..100 {
            assert_eq!(place.asked(1 - i % 2, 1, true), Step::Stay);
        }
    }

    #[test]
    fn a_busy_server_stays() {
        let mut place = Place::default();
        for _ in 0..100 {
            assert_eq!(place.asked(1, 0, false), Step::Stay);
        }
    }

    #[test]
    fn a_server_is_kept_while_it_is_called_from_where_it_is() {
        let mut place = Place::default();
        assert_eq!(place.asked(0, 0, false), Step::Move(0));
        assert_eq!(place.asked(0, 0, true), Step::Stay);
        assert_eq!(place.look(), Step::Stay);
        assert_eq!(place.look(), Step::Release);
        assert_eq!(place.look(), Step::Stay);
    }
}
