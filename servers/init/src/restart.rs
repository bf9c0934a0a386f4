//! The restart policy, as a step function: (policy, event, now) → what to do.

use std::collections::VecDeque;

/// Pause before the restart of one that died again; the first is at once.
pub const FIRST_PAUSE_NS: u64 = 10_000_000;
/// Longest pause; it doubles with each death up to here.
pub const LONGEST_PAUSE_NS: u64 = 2_000_000_000;
/// A domain that has lived this long is started again at once.
pub const STABLE_NS: u64 = 10_000_000_000;
/// More deaths than this within [`WINDOW_NS`], and a domain is not started any more.
pub const MOST_DEATHS: usize = 10;
/// See [`MOST_DEATHS`].
pub const WINDOW_NS: u64 = 60_000_000_000;

#[derive(Clone, Debug)]
struct Domain {
    role: String,
    /// When it is to be started; `None`: it runs, or was given up.
    due: Option<u64>,
    started: u64,
    pause: u64,
    deaths: VecDeque<u64>,
    given_up: bool,
}

/// What a death leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// It is started again at this time.
    Restart {
        /// `CLOCK_MONOTONIC`, ns.
        at: u64,
    },
    /// It dies too often and is left alone: so many deaths within [`WINDOW_NS`].
    GiveUp {
        /// Deaths.
        deaths: usize,
    },
    /// It is not one of init's, or was given up before.
    Nothing,
}

/// Which domains there are and how they have fared. Times are `CLOCK_MONOTONIC`, ns.
#[derive(Clone, Debug)]
pub struct Policy {
    domains: Vec<Domain>,
}

impl Policy {
    /// All of `roles` are due now, in this order.
    pub fn new(roles: Vec<String>, now: u64) -> Policy {
        let domain = |role| Domain {
            role,
            due: Some(now),
            started: now,
            pause: 0,
            deaths: VecDeque::new(),
            given_up: false,
        };
        Policy { domains: roles.into_iter().map(domain).collect() }
    }

    /// The next domain that is due, which the caller starts now.
    pub fn next_due(&mut self, now: u64) -> Option<String> {
        let d = self.domains.iter_mut().find(|d| d.due.is_some_and(|at| at <= now))?;
        d.due = None;
        d.started = now;
        Some(d.role.clone())
    }

    /// When a domain is due next.
    pub fn next_time(&self) -> Option<u64> {
        self.domains.iter().filter_map(|d| d.due).min()
    }

    /// A domain died, or could not be started.
    pub fn died(&mut self, role: &str, now: u64) -> Decision {
        let Some(d) = self.domains.iter_mut().find(|d| d.role == role) else {
            return Decision::Nothing;
        };
        if d.given_up || d.due.is_some() {
            return Decision::Nothing;
        }
        d.deaths.push_back(now);
        while d.deaths.front().is_some_and(|at| now.saturating_sub(*at) > WINDOW_NS) {
            d.deaths.pop_front();
        }
        if d.deaths.len() > MOST_DEATHS {
            d.given_up = true;
            return Decision::GiveUp { deaths: d.deaths.len() };
        }
        if now.saturating_sub(d.started) >= STABLE_NS {
            d.pause = 0;
        }
        let at = now + d.pause;
        d.due = Some(at);
        d.pause = (d.pause * 2).clamp(FIRST_PAUSE_NS, LONGEST_PAUSE_NS);
        Decision::Restart { at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn policy() -> Policy {
        Policy::new(vec!["process".into(), "vfs".into()], 0)
    }

    #[test]
    fn all_start_in_order_once() {
        let mut p = policy();
        assert_eq!(p.next_due(0).as_deref(), Some("process"));
        assert_eq!(p.next_due(0).as_deref(), Some("vfs"));
        assert_eq!((p.next_due(0), p.next_time()), (None, None));
    }

    #[test]
    fn the_first_is_at_once_and_then_the_pause_doubles_up_to_the_longest() {
        let mut p = policy();
        let mut now = 1_000 * MS;
        let mut pauses = Vec::new();
        for _ in 0..MOST_DEATHS {
            while p.next_due(now).is_some() {}
            let Decision::Restart { at } = p.died("vfs", now) else { panic!() };
            assert_eq!(p.next_due(at - 1), None);
            pauses.push((at - now) / MS);
            now = at;
        }
        assert_eq!(pauses, [0, 10, 20, 40, 80, 160, 320, 640, 1280, 2000]);
    }

    #[test]
    fn what_dies_too_often_is_given_up_and_the_rest_is_not() {
        let mut p = policy();
        let mut now = 0;
        for _ in 0..MOST_DEATHS {
            while p.next_due(now).is_some() {}
            let Decision::Restart { at } = p.died("vfs", now) else { panic!() };
            now = at;
        }
        while p.next_due(now).is_some() {}
        assert_eq!(p.died("vfs", now), Decision::GiveUp { deaths: MOST_DEATHS + 1 });
        assert_eq!(p.died("vfs", now), Decision::Nothing);
        assert_eq!(p.next_time(), None);
        assert_eq!(p.died("process", now), Decision::Restart { at: now });
    }

    #[test]
    fn a_long_life_forgives() {
        let mut p = policy();
        let mut now = 0;
        // One death every 7 seconds is at most 9 in a minute.
        for _ in 0..100 {
            while p.next_due(now).is_some() {}
            assert!(matches!(p.died("vfs", now + 7_000 * MS), Decision::Restart { .. }));
            now = p.next_time().unwrap();
        }
        while p.next_due(now).is_some() {}
        let died = now + STABLE_NS;
        assert_eq!(p.died("vfs", died), Decision::Restart { at: died });
    }

    #[test]
    fn a_death_told_twice_counts_once() {
        let mut p = policy();
        while p.next_due(0).is_some() {}
        assert_eq!(p.died("vfs", 5), Decision::Restart { at: 5 });
        assert_eq!(p.died("vfs", 6), Decision::Nothing);
        assert_eq!(p.died("stranger", 6), Decision::Nothing);
    }
}
