//! Where an app's thread stands, noted in its window so that the next personality can go on with it.
//!
//! A personality that dies leaves its stubs behind ([`clustix_pd::Boot::stubs`]). Of each the next one asks: which
//! request is under way, and can the app be told to make it again? It can ([`op::RESTART`]) as long as the call
//! has changed nothing: for its whole length if it only looks at things ([`only_looks`]), and while it sleeps
//! before its first effect ([`sleeps`]). A program whose call was doing something at that moment ends instead.
//!
//! The notes stand in memory that the app can write. What it may gain by that is the repetition of its own calls.
//!
//! [`op::RESTART`]: crate::window::op::RESTART

use crate::window::{Request, at, kind};
use clustix_pd::StubWindow;
use std::sync::atomic::Ordering;

/// What becomes of the request under way if the personality dies now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// Its program is lost.
    Lost = 0,
    /// The app makes the call again.
    Again = 1,
    /// The request is looked at anew.
    Anew = 2,
}

/// How a thread goes on under the next personality.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// With the next request, or one that nobody has looked at: the one after this number.
    Free {
        /// The latest request that was answered.
        answered: u32,
    },
    /// With the answer to this request, which is written but was not shown.
    Answered {
        /// The request.
        request: u32,
    },
    /// By making its call again; what the stub says next is about that call.
    Again {
        /// The latest request that was answered.
        answered: u32,
        /// The call's number.
        nr: u64,
        /// When it ends at the latest (CLOCK_MONOTONIC, ns); 0: as its arguments say.
        until: u64,
    },
}

/// Calls that change nothing, or nothing more if they are made twice.
pub fn only_looks(nr: u64) -> bool {
    matches!(
        nr,
        // stat and its kin, access, getcwd, readlink, statfs
        4 | 5 | 6 | 21 | 79 | 89 | 137 | 138 | 262 | 267 | 269 | 332 | 439
        // pread, sync
        | 17 | 74 | 75 | 162 | 295 | 306
        // who and what one is
        | 39 | 63 | 97 | 98 | 99 | 100 | 102 | 104 | 107 | 108 | 110 | 111 | 115 | 118 | 120 | 121 | 124 | 186
        // getitimer, sigpending, priorities, affinity, random numbers
        | 36 | 127 | 140 | 204 | 318
    )
}

/// Whether a call that sleeps has changed nothing yet: `done`, what it has moved so far.
fn sleeps(nr: u64, done: u64) -> bool {
    match nr {
        // read, write, readv, writev
        0 | 1 | 19 | 20 => done == 0,
        // poll, select, pause, nanosleep, wait4, sigtimedwait, sigsuspend, futex, clock_nanosleep, waitid, pselect6,
        // ppoll
        7 | 23 | 34 | 35 | 61 | 128 | 130 | 202 | 230 | 247 | 270 | 271 => true,
        _ => false,
    }
}

fn way(window: &StubWindow, way: Way) {
    window.word(at::WAY).store(way as u32, Ordering::Release);
}

/// Request `number` is looked at from now on.
pub fn taken(window: &StubWindow, number: u32, r: &Request) {
    let of = match r.kind {
        kind::CALL if only_looks(r.nr) => Way::Again,
        kind::PREEMPTED => Way::Anew,
        _ => Way::Lost,
    };
    // No note of the call before goes with this one's number.
    way(window, Way::Lost);
    window.word64(at::CALLED).store(r.nr, Ordering::Release);
    window.word64(at::UNTIL).store(0, Ordering::Release);
    way(window, of);
    // Before this the next personality takes the request for unread.
    window.word(at::TAKEN).store(number, Ordering::Release);
}

/// The call under way sleeps, having moved `done` bytes; `until`: when it ends at the latest, or 0.
pub fn asleep(window: &StubWindow, nr: u64, done: u64, until: u64) {
    if sleeps(nr, done) {
        window.word64(at::UNTIL).store(until, Ordering::Relaxed);
        way(window, Way::Again);
    }
}

/// It goes on.
pub fn awake(window: &StubWindow, nr: u64) {
    if !only_looks(nr) {
        way(window, Way::Lost);
    }
}

/// Something is done that cannot be taken back: a signal is delivered.
pub fn acts(window: &StubWindow) {
    way(window, Way::Lost);
}

/// The answer to request `number` stands in the window; it lets the app go on.
pub fn answered(window: &StubWindow, number: u32) {
    window.word(at::RETURNED).store(number, Ordering::Release);
}

/// The call and its deadline that an earlier personality let the app make again, if it has not made it yet.
pub fn unmade(window: &StubWindow) -> Option<(u64, u64)> {
    let until = window.word64(at::UNTIL).load(Ordering::Relaxed);
    let again = window.word(at::WAY).load(Ordering::Acquire) == Way::Again as u32;
    (again && until != 0).then(|| (window.word64(at::CALLED).load(Ordering::Relaxed), until))
}

impl Standing {
    /// Of the thread of a window; `None`: it cannot go on.
    pub fn of(window: &StubWindow) -> Option<Standing> {
        let number = |at| window.word(at).load(Ordering::Acquire);
        let (asked, shown) = (number(at::REQUEST_WORD), number(at::REPLY_WORD));
        let again = || Standing::Again {
            answered: shown,
            nr: window.word64(at::CALLED).load(Ordering::Relaxed),
            until: window.word64(at::UNTIL).load(Ordering::Relaxed),
        };
        let noted = number(at::WAY);
        let is = |way: Way| noted == way as u32;
        let returned = number(at::RETURNED) == asked;
        if asked == 0 {
            // It has not even said hello.
            None
        } else if returned && asked == shown {
            Some(Standing::Free { answered: shown })
        } else if returned {
            Some(Standing::Answered { request: asked })
        } else if asked == shown {
            // A program in the midst of a call.
            is(Way::Again).then(again)
        } else if number(at::TAKEN) == asked {
            match () {
                () if is(Way::Again) => Some(again()),
                () if is(Way::Anew) => Some(Standing::Free { answered: shown }),
                () => None,
            }
        } else {
            match window.word64(at::REQUEST).load(Ordering::Acquire) {
                kind::CALL | kind::FAULT | kind::PREEMPTED => {
                    Some(Standing::Free { answered: shown })
                }
                kind::DONE => is(Way::Again).then(again),
                _ => None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: u64 = 0;
    const WRITE: u64 = 1;
    const STAT: u64 = 4;

    fn window(asked: u32, shown: u32) -> StubWindow {
        let w = StubWindow::anonymous().unwrap();
        w.word(at::REQUEST_WORD).store(asked, Ordering::Relaxed);
        w.word(at::REPLY_WORD).store(shown, Ordering::Relaxed);
        w
    }

    fn request(kind: u64, nr: u64) -> Request {
        Request { kind, nr, ..Request::default() }
    }

    fn ask(w: &StubWindow, number: u32, kind: u64) {
        w.word64(at::REQUEST).store(kind, Ordering::Relaxed);
        w.word(at::REQUEST_WORD).store(number, Ordering::Relaxed);
    }

    #[test]
    fn a_stub_without_a_program_cannot_go_on() {
        assert_eq!(Standing::of(&window(0, 0)), None);
        let w = window(0, 0);
        ask(&w, 1, kind::HELLO);
        assert_eq!(Standing::of(&w), None);
        // Its program is being loaded.
        taken(&w, 1, &request(kind::HELLO, 0));
        w.word(at::REPLY_WORD).store(1, Ordering::Relaxed);
        assert_eq!(Standing::of(&w), None);
    }

    #[test]
    fn a_call_that_looks_can_be_made_again_at_any_moment() {
        let w = window(4, 4);
        answered(&w, 4);
        assert_eq!(Standing::of(&w), Some(Standing::Free { answered: 4 }));
        ask(&w, 5, kind::CALL);
        assert_eq!(Standing::of(&w), Some(Standing::Free { answered: 4 }));
        taken(&w, 5, &request(kind::CALL, STAT));
        let again = |answered| Some(Standing::Again { answered, nr: STAT, until: 0 });
        assert_eq!(Standing::of(&w), again(4));
        // A program of its, and what that came to.
        w.word(at::REPLY_WORD).store(5, Ordering::Relaxed);
        assert_eq!(Standing::of(&w), again(5));
        ask(&w, 6, kind::DONE);
        assert_eq!(Standing::of(&w), again(5));
        answered(&w, 6);
        assert_eq!(Standing::of(&w), Some(Standing::Answered { request: 6 }));
        w.word(at::REPLY_WORD).store(6, Ordering::Relaxed);
        assert_eq!(Standing::of(&w), Some(Standing::Free { answered: 6 }));
    }

    #[test]
    fn a_call_that_acts_can_be_made_again_while_it_sleeps_before_that() {
        let w = window(9, 8);
        taken(&w, 9, &request(kind::CALL, READ));
        assert_eq!(Standing::of(&w), None);
        asleep(&w, READ, 0, 77);
        assert_eq!(Standing::of(&w), Some(Standing::Again { answered: 8, nr: READ, until: 77 }));
        awake(&w, READ);
        assert_eq!(Standing::of(&w), None);
        // Some bytes are in the pipe already.
        taken(&w, 9, &request(kind::CALL, WRITE));
        asleep(&w, WRITE, 10, 0);
        assert_eq!(Standing::of(&w), None);
    }

    #[test]
    fn a_preemption_is_looked_at_anew_unless_a_signal_is_on_its_way() {
        let w = window(3, 2);
        taken(&w, 3, &request(kind::PREEMPTED, 0));
        assert_eq!(Standing::of(&w), Some(Standing::Free { answered: 2 }));
        acts(&w);
        assert_eq!(Standing::of(&w), None);
    }
}
