//! A server's half: where the answer to a request is recorded, and for how long.

use super::{Lane, Once};
use crate::Answer;
use crate::errno::{EAGAIN, EUNSETTLED};
use crate::object::{Attempts, decode, encode};
use clustix_ccache::cache::{Cache, CacheError, Transaction, Version};
use clustix_ccache::client::CacheClient;
use clustix_ccache::name::{Name, SHARDS, Shard};
use clustix_pd::exec;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::future::Future;

#[derive(Serialize, Deserialize)]
struct Recorded<R> {
    number: u64,
    answer: Answer<R>,
}

/// Who asks, by the kernel's word: no client reaches the records of another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Client {
    /// The node, which is the server's.
    pub node: u8,
    /// Its incarnation.
    pub incarnation: u64,
    role: u8,
}

impl Client {
    /// Those roles whose requests are told by numbers.
    const ROLES: [&str; 2] = ["posix", "control"];

    /// A client of a node's servers; `None`: none of this role repeats anything by number.
    pub fn new(node: u8, incarnation: u64, role: &str) -> Option<Client> {
        let role = Self::ROLES.iter().position(|known| *known == role)? as u8;
        Some(Client { node, incarnation, role })
    }
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
    /// The record of a request that came from `client`, in `set`.
    pub fn new(set: u16, client: Client, once: Once) -> Record {
        let Lane { index, shard } = once.lane;
        let id = u128::from(client.node) << 88
            | u128::from(client.incarnation & INCARNATIONS) << 40
            | u128::from(client.role) << 32
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
/// before each attempt, unless the request has been answered before. Without a record, what `handle` does.
pub async fn serve<C, R>(
    cache: &C,
    record: Option<&Record>,
    handle: impl Future<Output = Answer<R>>,
) -> Answer<R>
where
    C: Cache,
    R: Serialize + DeserializeOwned,
{
    let Some(record) = record else { return handle.await };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_records_of_its_own() {
        let name = |node, incarnation, role, lane| {
            let client = Client::new(node, incarnation, role).unwrap();
            Record::new(6, client, Once { lane, number: 1, again: false }).name()
        };
        let lane = |index, shard| Lane { index, shard };
        let all = [
            name(0, 1, "posix", lane(0, 3)),
            name(0, 1, "control", lane(0, 3)),
            name(1, 1, "posix", lane(0, 3)),
            name(0, 2, "posix", lane(0, 3)),
            name(0, 1, "posix", lane(1, 3)),
            name(0, 1, "posix", lane(0, 4)),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|other| other != one), "{i}");
        }
        assert_eq!(Record::owner(all[3]), (0, 2));
        assert_eq!(name(15, INCARNATIONS, "control", lane(u32::MAX, u16::MAX)).set(), 6);
        assert_eq!(Client::new(0, 1, "console"), None);
    }
}
