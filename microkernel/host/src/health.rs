//! Whether a protection domain still turns its loop, as a step function over looks at its beat: one
//! that hangs is as dead as one that died, and is killed so that what follows a death follows.

/// Between two looks, ns.
pub(crate) const LOOK_NS: u64 = 250_000_000;

/// A look that comes later than this after its time says that the machine did not run this process
/// either: nothing is held against a domain for that time, ns.
const LATE_NS: u64 = 100_000_000;

/// Longest from a domain's start to its first beat, in deadlines.
const FIRST: u64 = 8;

/// What is known of one life of a domain.
#[derive(Debug)]
pub(crate) struct Health {
    /// How long it may go without a beat, ns; 0: for ever.
    deadline: u64,
    beats: u64,
    since: u64,
}

impl Health {
    /// Of a domain that starts now.
    pub(crate) fn new(deadline: u64, now: u64) -> Health {
        Health { deadline, beats: 0, since: now }
    }

    /// A look: the domain has beaten `beats` times; the look was due at `due`. For how long it has
    /// not beaten, if that is longer than it may be.
    pub(crate) fn look(&mut self, now: u64, due: u64, beats: u64) -> Option<u64> {
        let late = now.saturating_sub(due);
        if late > LATE_NS {
            self.since = self.since.saturating_add(late).min(now);
        }
        if beats != self.beats {
            (self.beats, self.since) = (beats, now);
        }
        let factor = if self.beats == 0 { FIRST } else { 1 };
        let silent = now.saturating_sub(self.since);
        (self.deadline != 0 && silent > self.deadline.saturating_mul(factor)).then_some(silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn a_domain_that_stops_beating_is_found() {
        let mut h = Health::new(2 * S, 0);
        assert_eq!(h.look(S, S, 5), None);
        assert_eq!(h.look(3 * S, 3 * S, 5), None);
        assert_eq!(h.look(3 * S + 1, 3 * S + 1, 5), Some(2 * S + 1));
        assert_eq!(h.look(4 * S, 4 * S, 6), None, "it goes on");
    }

    #[test]
    fn a_start_takes_longer_and_not_for_ever() {
        let mut h = Health::new(2 * S, 0);
        assert_eq!(h.look(16 * S, 16 * S, 0), None);
        assert!(h.look(16 * S + 1, 16 * S + 1, 0).is_some());
    }

    #[test]
    fn what_the_machine_did_not_run_is_not_held_against_it() {
        let mut h = Health::new(2 * S, 0);
        assert_eq!(h.look(S, S, 1), None);
        assert_eq!(h.look(60 * S, S + LOOK_NS, 1), None);
        assert_eq!(h.look(62 * S, 62 * S, 1), Some(2 * S + LOOK_NS));
    }

    #[test]
    fn without_a_deadline_nobody_hangs() {
        let mut h = Health::new(0, 0);
        assert_eq!(h.look(1000 * S, 1000 * S, 0), None);
    }
}
