//! Where a server runs: on the processor of whoever calls it, while one does.
//!
//! A wake-up across processors costs several times one on the same processor, and the host's scheduler
//! leaves a woken thread where it was, or puts it on an idle processor. So a server that sleeps between
//! requests moves to where they come from. A caller's processor is its own word and only a hint: a wrong
//! one costs time. On a machine that has more to run than processors a server that may run on one only
//! waits longer for its turn; so one whose timer was late goes back to where the scheduler puts it.

use crate::exec;
use crate::urgency::{LATE, Patience};
use rustix::thread::CpuSet;

/// Requests in a row from one processor, each of which ended a sleep, after which the server runs there only.
const ENOUGH: u32 = 4;

/// Most moves between two looks, half a second apart: callers that go to and fro are not followed for ever.
const MOVES: u32 = 50;

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
    /// Where it runs only.
    kept: Option<u32>,
    /// The latest requests' processor, and how many of them in a row ended a sleep.
    from: u32,
    streak: u32,
    /// Since the last [`Place::look`]: requests from the server's own processor and from others, and moves.
    beside: u32,
    elsewhere: u32,
    moves: u32,
}

impl Place {
    /// A request from a caller on the processor `from`, seen on `here`; `slept`: it ended a sleep. (A
    /// server that does not come to sleep works beside its callers, which is as well.)
    fn asked(&mut self, from: u32, here: u32, slept: bool) -> Step {
        let count = if from == here { &mut self.beside } else { &mut self.elsewhere };
        *count = count.saturating_add(1);
        if self.from != from {
            (self.from, self.streak) = (from, 0);
        }
        self.streak = self.streak.saturating_add(slept.into());
        if self.streak < ENOUGH || self.kept == Some(from) || self.moves >= MOVES {
            return Step::Stay;
        }
        self.moves += 1;
        self.kept = Some(from);
        Step::Move(from)
    }

    /// From time to time: a server is kept only beside most of its callers.
    fn look(&mut self) -> Step {
        let stays = self.beside > 0 && self.beside >= self.elsewhere;
        (self.streak, self.beside, self.elsewhere, self.moves) = (0, 0, 0, 0);
        if stays { Step::Stay } else { self.release() }
    }

    fn release(&mut self) -> Step {
        self.streak = 0;
        if self.kept.take().is_some() { Step::Release } else { Step::Stay }
    }
}

/// Keeps the calling thread on its callers' processor. For a server's one thread.
pub struct Following {
    place: Place,
    /// Where the thread may run.
    allowed: CpuSet,
    /// Nobody is followed while it lasts.
    patience: Patience,
}

impl Following {
    /// For the calling thread, which never leaves the processors that it may run on now. `None` if those
    /// are fewer than two, or cannot be learned.
    pub fn new() -> Option<Following> {
        let allowed = rustix::thread::sched_getaffinity(None).ok()?;
        (allowed.count() > 1).then(|| Following {
            place: Place::default(),
            allowed,
            patience: Patience::new(),
        })
    }

    /// A request came from a caller that says it is on the processor `from`; `slept`: it ended a sleep.
    pub fn asked(&mut self, from: u32, slept: bool) {
        if self.patience.waits(exec::now_ns) {
            return;
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

    /// The thread's timer was `late` ns late, for want of a processor.
    pub fn ran_late(&mut self, late: u64) {
        if late >= LATE {
            self.patience.late(exec::now_ns());
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

impl Drop for Following {
    fn drop(&mut self) {
        let step = self.place.release();
        self.carry_out(step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests, each of which ended a sleep, until a step that is not "stay"; and how many there were.
    fn until_it_acts(place: &mut Place, from: u32, here: u32) -> (u32, Step) {
        (1..100)
            .map(|n| (n, place.asked(from, here, true)))
            .find(|(_, step)| *step != Step::Stay)
            .unwrap_or((0, Step::Stay))
    }

    #[test]
    fn a_server_moves_to_one_caller_and_not_between_two() {
        let mut place = Place::default();
        assert_eq!(until_it_acts(&mut place, 1, 0), (ENOUGH, Step::Move(1)));
        for i in 0..100 {
            assert_eq!(place.asked(1 - i % 2, 1, true), Step::Stay);
        }
    }

    #[test]
    fn one_request_keeps_it_nowhere() {
        let mut place = Place::default();
        assert_eq!(place.asked(0, 0, true), Step::Stay);
        assert_eq!(until_it_acts(&mut place, 0, 0), (ENOUGH - 1, Step::Move(0)));
    }

    #[test]
    fn a_busy_server_stays() {
        let mut place = Place::default();
        for from in [0, 1] {
            assert!((0..100).all(|_| place.asked(from, 0, false) == Step::Stay));
        }
    }

    #[test]
    fn a_server_is_kept_beside_most_of_its_callers() {
        let mut place = Place::default();
        until_it_acts(&mut place, 0, 0);
        place.look();
        // Whether they ended a sleep or not.
        place.asked(0, 0, false);
        assert_eq!(place.look(), Step::Stay);
        // One that claims its processor does not outweigh the others.
        place.asked(0, 0, true);
        place.asked(1, 0, false);
        place.asked(2, 0, false);
        assert_eq!(place.look(), Step::Release);
        assert_eq!(place.look(), Step::Stay, "nobody called");
        until_it_acts(&mut place, 0, 0);
        place.look();
        assert_eq!(place.look(), Step::Release, "nobody calls any more");
    }

    #[test]
    fn moves_are_bounded() {
        let mut place = Place::default();
        let claims = (0..10_000).map(|i| (i / ENOUGH) % 2);
        let moves = |place: &mut Place| {
            claims
                .clone()
                .filter(|c| matches!(place.asked(*c, 1 - *c, true), Step::Move(_)))
                .count()
        };
        assert_eq!(moves(&mut place), MOVES as usize);
        place.look();
        assert_eq!(moves(&mut place), MOVES as usize);
    }

    #[test]
    fn a_processor_that_is_none_is_not_followed() {
        // With one processor there is nobody to follow.
        let Some(mut following) = Following::new() else { return };
        for from in [CpuSet::MAX_CPU as u32 - 1, CpuSet::MAX_CPU as u32, u32::MAX] {
            (0..2 * ENOUGH).for_each(|_| following.asked(from, true));
        }
        assert_eq!(following.place.kept, None);
    }
}
