//! The gate that a freeze closes: work that changes the cluster passes through it.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
struct State {
    closed: bool,
    inside: usize,
}

/// Counts sessions that change something; once closed, lets none in.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    left: Condvar,
}

/// A session that has passed; leaves when dropped.
#[derive(Debug)]
pub(crate) struct Pass<'a>(&'a Gate);

impl Gate {
    /// Goes in; `None` while the gate is closed.
    pub fn enter(&self) -> Option<Pass<'_>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return None;
        }
        state.inside += 1;
        Some(Pass(self))
    }

    /// Closes the gate and waits until nobody is inside; `false`: somebody still is after `bound`,
    /// and the gate is open as before.
    pub fn close(&self, bound: Duration) -> bool {
        let until = Instant::now() + bound;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.closed = true;
        while state.inside > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.closed = false;
                return false;
            }
            state = self
                .left
                .wait_timeout(state, left)
                .map_or_else(|e| e.into_inner().0, |(state, _)| state);
        }
        true
    }

    /// Opens it again.
    pub fn open(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = false;
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).inside -= 1;
        self.0.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_lets_none_in_and_waits_for_who_is_inside() {
        let gate = Gate::default();
        let pass = gate.enter().unwrap();
        assert!(!gate.close(Duration::from_millis(1)), "somebody is inside");
        let other = gate.enter();
        assert!(other.is_some(), "and it is open again");
        drop(other);
        std::thread::scope(|s| {
            s.spawn(|| drop(pass));
            assert!(gate.close(Duration::from_secs(10)));
        });
        assert!(gate.enter().is_none());
        gate.open();
        assert!(gate.enter().is_some());
    }
}
