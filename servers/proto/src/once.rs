//! Once, over a server's restart: each request that has an effect carries a number, and its answer is
//! recorded in the transaction of the effect.
//!
//! A client repeats a request whose server died, or could not tell the outcome, under the same number; the
//! server that gets the repeat finds the record and answers with it. Nothing else would do: a transaction
//! that the dead server had handed to the cluster-cache may still take effect, also after the repeat has
//! come. So the record is checked, by its version, in the transaction of the effect: of the dead server's
//! and the repeat's only one is carried out. A repeat's refusal is recorded too, for the same reason.
//!
//! A *lane* is what a record stands for: of its requests one is under way at a time, so that the newest
//! answer is all that is kept. Numbers are compared for equality only, and start anew with each client.

use crate::Answer;
use crate::errno::{self, EAGAIN, EIO, EUNSETTLED};
use crate::object::{Attempts, decode, encode};
use clustix_ccache::cache::{Cache, CacheError, Transaction, Version};
use clustix_ccache::client::CacheClient;
use clustix_ccache::name::{Name, SHARDS, Shard};
use clustix_ccache::set::Class;
use clustix_pd::{CallError, Client, exec, rpc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::future::Future;
use std::sync::{Mutex, PoisonError};

/// What a repeat of a request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repeat {
    /// No more than the request alone did, whatever others did in between.
    Harmless,
    /// It is told by its number, and answered from the record.
    ByNumber,
}

/// A server's request enum: which of its requests may be repeated, and how.
pub trait Operation {
    /// What a repeat of this one does.
    fn repeat(&self) -> Repeat;
}

/// One of a client's lanes. The shard is the client's choice, near itself; it is part of the name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lane {
    /// Which of a node's clients: [`Lanes::new`].
    pub client: u8,
    /// Among that client's.
    pub index: u32,
    /// Where its record stands.
    pub shard: u16,
}

/// Tells a request from every other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Once {
    /// Whose answers these are.
    pub lane: Lane,
    /// Which request.
    pub number: u64,
    /// It has been sent before: its effect may be there, or still come.
    pub again: bool,
}

/// A request as it is sent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Asked<Q> {
    /// `None`: a repeat is harmless.
    pub once: Option<Once>,
    /// What is asked.
    pub request: Q,
}

#[derive(Serialize, Deserialize)]
struct Recorded<R> {
    number: u64,
    answer: Answer<R>,
}

/// Where the answer to one request is recorded: a server's half.
#[derive(Debug)]
pub struct Record {
    name: Name,
    number: u64,
    /// What this request should do may have been done already, or still be done, unseen.
    doubt: Cell<bool>,
    /// The record holds an answer to this request.
    written: Cell<bool>,
}

/// An incarnation takes 48 bits of a record's name.
const INCARNATIONS: u64 = (1 << 48) - 1;

/// A record as it was read.
pub enum Recall<R> {
    /// The request has been answered.
    Answered(Answer<R>),
    /// Not yet; what was read.
    New(Version, Vec<u8>),
}

impl Record {
    /// The record of a request that came from a client of this node, in `set`.
    pub fn new(set: u16, (node, incarnation): (u8, u64), once: Once) -> Record {
        let Lane { client, index, shard } = once.lane;
        let id = u128::from(node) << 88
            | u128::from(incarnation & INCARNATIONS) << 40
            | u128::from(client) << 32
            | u128::from(index);
        Record {
            // The client's word: whatever it says, there is such a shard.
            name: Name::new(set, Shard(shard % SHARDS), id),
            number: once.number,
            doubt: Cell::new(once.again),
            written: Cell::new(false),
        }
    }

    /// Its object.
    pub fn name(&self) -> Name {
        self.name
    }

    /// Whether the effect may be another's: of a server that was killed before it had done all that follows.
    pub fn is_in_doubt(&self) -> bool {
        self.doubt.get()
    }

    /// The node and incarnation whose client's record an object is.
    pub fn owner(name: Name) -> (u8, u64) {
        ((name.id() >> 88) as u8, (name.id() >> 40) as u64 & INCARNATIONS)
    }

    /// Looks whether the request has been answered. To be asked before each attempt at its effect, whose
    /// transaction must find the record unchanged.
    pub async fn recall<C: Cache, R: DeserializeOwned>(
        &self,
        cache: &C,
    ) -> Result<Recall<R>, CacheError> {
        let mut bytes = Vec::new();
        let version = cache.get(self.name, &mut bytes).await?;
        Ok(match self.read(version.exists().then_some(&bytes)) {
            Some(answer) => Recall::Answered(answer),
            None => Recall::New(version, bytes),
        })
    }

    /// The answer to this request, if its record's object holds it.
    pub(crate) fn read<R: DeserializeOwned>(&self, object: Option<&Vec<u8>>) -> Option<Answer<R>> {
        let bytes = object?;
        let (number, _) = postcard::take_from_bytes::<u64>(bytes).ok()?;
        if number != self.number {
            return None;
        }
        self.written.set(true);
        Some(decode::<Recorded<R>>(bytes).map_or_else(Err, |r| r.answer))
    }

    /// The record's bytes, once the request is answered so.
    pub fn encode<R: Serialize>(&self, answer: Answer<R>) -> Answer<Vec<u8>> {
        encode(&Recorded { number: self.number, answer })
    }

    /// How the transaction that carries the record ended; `true`: nobody can tell.
    pub fn ended(&self, outcome: Result<(), CacheError>) -> bool {
        match outcome {
            Ok(()) => self.written.set(true),
            Err(CacheError::Unknown | CacheError::Gone) => self.doubt.set(true),
            Err(_) => return false,
        }
        outcome.is_err()
    }

    /// The answer to be sent, where the request's handler came to `answer`: one that nothing recorded is,
    /// if the request may have had an effect unseen, so that it cannot have one any more.
    async fn settle<C: Cache, R: Serialize + DeserializeOwned>(
        &self,
        cache: &C,
        answer: Answer<R>,
    ) -> Answer<R> {
        if self.written.get() || !self.doubt.get() {
            return answer;
        }
        let bytes = self.encode(answer.as_ref().map_err(|e| *e))?;
        let mut attempts = Attempts::new();
        loop {
            let version = match self.recall(cache).await {
                Ok(Recall::Answered(answer)) => return answer,
                Ok(Recall::New(version, _)) => version,
                Err(_) => return Err(EUNSETTLED),
            };
            let t = Transaction::new().put(self.name, version, bytes.clone());
            match cache.transact(t).await {
                Ok(()) => return answer,
                Err(CacheError::Conflict | CacheError::Busy | CacheError::Unknown) => {}
                Err(_) => return Err(EUNSETTLED),
            }
            if attempts.again().await.is_err() {
                return Err(EUNSETTLED);
            }
        }
    }
}

/// Serves a request whose answer is recorded with its effect: what `handle` does, which looks at the record
/// before each attempt, unless the request has been answered before.
pub async fn serve<C, R>(
    cache: &C,
    record: &Record,
    handle: impl Future<Output = Answer<R>>,
) -> Answer<R>
where
    C: Cache,
    R: Serialize + DeserializeOwned,
{
    // What a repeat names may have changed by the request's own effect.
    let answer = match record.recall(cache).await {
        Ok(Recall::Answered(answer)) => return answer,
        Ok(Recall::New(..)) => handle.await,
        Err(e) => Err(e.into()),
    };
    record.settle(cache, answer).await
}

/// Removes the records of clients whose node is no member any more, of those whose primary is the serving
/// node. How many. `members` is asked again for each owner who is not in its last answer, after the record was
/// seen: a node joins before it asks anything.
pub async fn forget<C: Cache>(
    cache: &C,
    set: u16,
    mut members: impl AsyncFnMut() -> Answer<Vec<(u8, u64)>>,
) -> Answer<u64> {
    let is_of = |members: &[(u8, u64)], owner: (u8, u64)| {
        members.iter().any(|m| (m.0, m.1 & INCARNATIONS) == owner)
    };
    let mut now = members().await?;
    let (mut after, mut removed) = (None, 0);
    loop {
        let page = cache.list(set, after).await?;
        let Some((last, _)) = page.last() else { return Ok(removed) };
        after = Some(*last);
        for (name, version) in page {
            let owner = Record::owner(name);
            if !is_of(&now, owner) {
                now = members().await?;
            }
            if is_of(&now, owner) {
                continue;
            }
            match cache.transact(Transaction::new().remove(name, version)).await {
                Ok(()) => removed += 1,
                // A transaction of the dead has only come now.
                Err(CacheError::Conflict) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// The present members: EAGAIN while that is not settled.
pub async fn members(cache: &CacheClient) -> Answer<Vec<(u8, u64)>> {
    let status = cache.status().await?;
    if status.lease && status.settled { Ok(status.members) } else { Err(EAGAIN) }
}

/// Between two looks at the cluster's members, ns.
const LOOK_NS: u64 = 5_000_000_000;

/// A server's task: forgets the records of nodes that were lost.
pub async fn tend(cache: &CacheClient, set: u16) {
    let mut known = Vec::new();
    loop {
        if let Ok(status) = cache.status().await
            && status.lease
            && status.settled
            && status.members != known
            && forget(cache, set, async || members(cache).await).await.is_ok()
        {
            known = status.members;
        }
        exec::sleep_until(exec::now_ns() + LOOK_NS).await;
    }
}

/// A client's lanes and numbers.
#[derive(Debug)]
pub struct Lanes {
    client: u8,
    class: Class,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: Vec<Lane>,
    lanes: u32,
    number: u64,
}

/// [`Lanes::new`]: the personality.
pub const POSIX: u8 = 0;
/// [`Lanes::new`]: control.
pub const CONTROL: u8 = 1;

impl Lanes {
    /// Those of one of the node's clients, for a server of `class`.
    pub fn new(client: u8, class: Class) -> Lanes {
        // Later than any number of the client before this one, which has used less than one per ns.
        let state = State { free: Vec::new(), lanes: 0, number: exec::now_ns() };
        Lanes { client, class, state: Mutex::new(state) }
    }

    /// A new request's. As many lanes are made as requests are ever under way at once.
    fn next<C: Cache>(&self, cache: &C) -> Once {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.number += 1;
        let lane = state.free.pop().unwrap_or_else(|| {
            state.lanes += 1;
            let shard = cache.local_shard(self.class, None).0;
            Lane { client: self.client, index: state.lanes - 1, shard }
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
        let busy = match rpc::<_, Answer<R>>(server, asked).await {
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
            Err(CallError::TooLarge) => return Some(Err(errno::E2BIG)),
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
