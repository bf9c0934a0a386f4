//! A client's half: its lanes, and how it asks until it has an answer.

use super::{Asked, Lane, Once, Operation, Repeat};
use crate::Answer;
use crate::errno::{E2BIG, EAGAIN, EIO, EUNSETTLED};
use clustix_ccache::cache::Cache;
use clustix_ccache::set::Class;
use clustix_pd::{CallError, Client, exec, rpc};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::{Mutex, PoisonError};

/// A client's lanes and numbers.
#[derive(Debug)]
pub struct Lanes {
    class: Class,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: Vec<Lane>,
    lanes: u32,
    number: u64,
}

impl Lanes {
    /// Those of this domain, for a server of `class`.
    pub fn new(class: Class) -> Lanes {
        // Later than any number of the client before this one, which has used less than one per ns.
        let state = State { free: Vec::new(), lanes: 0, number: exec::now_ns() };
        Lanes { class, state: Mutex::new(state) }
    }

    /// A new request's. As many lanes are made as requests are ever under way at once.
    fn next<C: Cache>(&self, cache: &C) -> Once {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.number += 1;
        let lane = state.free.pop().unwrap_or_else(|| {
            state.lanes += 1;
            let shard = cache.local_shard(self.class, None).0;
            Lane { index: state.lanes - 1, shard }
        });
        Once { lane, number: state.number, again: false }
    }

    /// The request is answered. (The lane of one that was given up is not used again.)
    fn done(&self, lane: Lane) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).free.push(lane);
    }
}

/// How long a server that went away is waited for, ns, from the first error on: longer than a hung one has
/// until it is killed, and init until it has restarted it a few times.
const PATIENCE_NS: u64 = 15_000_000_000;
/// How long one call may go without an answer, ns. A server that hangs is killed long before: what waits longer
/// waits for one that is not started any more.
const UNANSWERED_NS: u64 = 60_000_000_000;
/// Between two tries, ns.
const PAUSE_NS: u64 = 5_000_000;
/// Deaths of a server under one request, after which it is the request that is given up: else it would take the
/// server so often that it is not started any more.
const DEATHS: u32 = 4;

/// Asks a server, again when it was busy, died, or could not settle the outcome. EIO: given up; then the
/// effect may or may not be there.
pub async fn ask<C, Q, R>(lanes: &Lanes, cache: &C, server: &Client, request: &Q) -> Answer<R>
where
    C: Cache,
    Q: Operation + Serialize,
    R: DeserializeOwned,
{
    let once = (request.repeat() == Repeat::ByNumber).then(|| lanes.next(cache));
    let mut asked = Asked { once, request };
    let answer = repeat(server, &mut asked).await;
    if let (Some(once), Some(_)) = (once, &answer) {
        lanes.done(once.lane);
    }
    answer.unwrap_or(Err(EIO))
}

/// `None`: given up with the outcome unknown.
async fn repeat<Q: Serialize, R: DeserializeOwned>(
    server: &Client,
    asked: &mut Asked<&Q>,
) -> Option<Answer<R>> {
    let mut until = None;
    let mut deaths = 0;
    loop {
        let bound = exec::sleep_until(exec::now_ns() + UNANSWERED_NS);
        let called = match exec::select(rpc::<_, Answer<R>>(server, asked), bound).await {
            exec::Either::Left(called) => called,
            exec::Either::Right(()) => return None,
        };
        let busy = match called {
            Ok(Err(EUNSETTLED)) => false,
            Err(CallError::Gone | CallError::Malformed) => {
                deaths += 1;
                if deaths >= DEATHS {
                    return None;
                }
                false
            }
            Ok(answer) => return Some(answer),
            Err(CallError::Busy) => true,
            Err(CallError::TooLarge) => return Some(Err(E2BIG)),
            Err(CallError::Revoked) => return None,
        };
        if let Some(once) = &mut asked.once {
            once.again |= !busy;
        }
        let now = exec::now_ns();
        if now >= *until.get_or_insert(now + PATIENCE_NS) {
            let unsent = busy && asked.once.is_none_or(|o| !o.again);
            return unsent.then_some(Err(EAGAIN));
        }
        exec::sleep_until(now + PAUSE_NS).await;
    }
}
