//! What clients ask, and what their answers mean.

use super::{Asked, Client, Run};
use crate::check::transactions_are_atomic;
use crate::cluster::Answer;
use crate::history::{Act, Record};
use crate::work::{Seen, Value, Work, accounts, flags, twins};
use clustix_ccache::arena::published::lookup;
use clustix_ccache::cache::{CacheError, Transaction, Version};
use clustix_ccache::layout::{self, RegionId};
use clustix_ccache::name::Name;
use clustix_ccache::request::{Reply, Request};

impl Run {
    pub(super) fn ask(&mut self, i: usize, request: Request, floor: u64, writes: Vec<(Seen, Act)>) {
        let (node, client) = (self.clients[i].node, self.clients[i].id);
        let begin = self.c.next_order();
        if let Some(id) = self.c.ask(node, client, request) {
            self.clients[i].asked = Some(Asked { id, begin, floor, writes });
        }
    }

    pub(super) fn get(&mut self, i: usize, name: Name) {
        let floor = self.ledger.floor(name);
        self.ask(i, Request::Get { name }, floor, Vec::new());
    }

    /// Asks for a write of `number` over what was read.
    pub(super) fn put(&mut self, i: usize, changes: &[(Seen, Option<i64>)]) {
        let mut t = Transaction::new();
        let mut writes = Vec::new();
        for (seen, number) in changes {
            let Seen { name, version, value } = *seen;
            let act = match number {
                Some(number) => {
                    let new = self.value(*number);
                    let data = new.payload(name, self.plan.payload);
                    t = if version.exists() {
                        t.put(name, version, data)
                    } else {
                        t.create(name, data)
                    };
                    Act::Swap(value.tag, new.tag)
                }
                None => {
                    t = t.remove(name, version);
                    Act::Swap(value.tag, 0)
                }
            };
            writes.push((*seen, act));
        }
        self.ask(i, Request::Transact(t), 0, writes);
    }

    /// What a client does next, after what it has read.
    pub(super) fn go_on(&mut self, i: usize) {
        let Some(work) = self.clients[i].work else { return };
        let read = self.clients[i].read.clone();
        match (work, read.as_slice()) {
            (Work::Grab(name), []) => {
                let floor = self.ledger.floor(name);
                self.ask(i, Request::Grab { name }, floor, Vec::new());
            }
            (
                Work::Increment(name) | Work::Flip(name) | Work::Wait(name) | Work::Look(name),
                [],
            ) => {
                self.get(i, name);
            }
            (Work::Increment(_) | Work::Grab(_), [seen, ..]) => {
                self.put(i, &[(*seen, Some(seen.value.number + 1))]);
            }
            (Work::Transfer(a, ..), []) => self.get(i, a),
            (Work::Transfer(_, b, _), [_]) => self.get(i, b),
            (Work::Transfer(_, _, amount), [a, b, ..]) => {
                let (from, to) = (a.value.number - amount, b.value.number + amount);
                self.put(i, &[(*a, Some(from)), (*b, Some(to))]);
            }
            (Work::Sum, read) => match accounts().get(read.len()) {
                Some(n) => self.get(i, *n),
                None => {
                    let t = read.iter().fold(Transaction::new(), |t, s| t.read(s.name, s.version));
                    self.ask(i, Request::Transact(t), 0, Vec::new());
                }
            },
            (Work::Flip(_), [seen, ..]) => {
                let exists = seen.version.exists();
                let number = (!exists).then(|| self.random.below(1000) as i64);
                self.put(i, &[(*seen, number)]);
            }
            (Work::Wait(name), [seen, ..]) => {
                let on = vec![(name, seen.version)];
                self.ask(i, Request::Wait { on, word: 0 }, 0, Vec::new());
            }
            (Work::Set(name), _) => {
                let new = self.value(0);
                let data = new.payload(name, self.plan.payload);
                let t = Transaction::new().set(name, data);
                let version = Version::ABSENT;
                let seen = Seen { name, version, value: Value::default() };
                self.ask(i, Request::Transact(t), 0, vec![(seen, Act::Set(new.tag))]);
            }
            (Work::Look(_), [..]) => self.finish(i),
        }
    }

    pub(super) fn finish(&mut self, i: usize) {
        let think = if self.random.chance(4) { 20_000 } else { 1_500 };
        let at = self.c.now() + self.random.time(0, think);
        let client = &mut self.clients[i];
        client.work = None;
        client.read.clear();
        client.waits = false;
        client.at = at;
    }

    pub(super) fn record(&mut self, name: Name, act: Act, begin: u64, end: Option<u64>) {
        self.ledger.record(name, Record { act, begin, end });
    }

    pub(super) fn answered(&mut self, i: usize, asked: Asked, answer: Answer) {
        let Some(work) = self.clients[i].work else { return };
        let end = Some(answer.order);
        match answer.reply {
            Ok(Reply::Object(version, data)) => {
                let name = match work {
                    Work::Transfer(a, b, _) => [a, b][self.clients[i].read.len().min(1)],
                    Work::Sum => accounts()[self.clients[i].read.len().min(2)],
                    Work::Increment(n)
                    | Work::Flip(n)
                    | Work::Grab(n)
                    | Work::Wait(n)
                    | Work::Look(n)
                    | Work::Set(n) => n,
                };
                match self.ledger.observe("get", name, version, &data, asked.floor) {
                    Ok(value) => {
                        self.record(name, Act::Read(value.tag), asked.begin, end);
                        let stays = !flags().contains(&name) && !twins().contains(&name);
                        if stays && !version.exists() {
                            return self.finish(i);
                        }
                        self.clients[i].read.push(Seen { name, version, value });
                        self.go_on(i);
                    }
                    Err(v) => self.found(Err(v)),
                }
                return;
            }
            Ok(Reply::Done) => {
                for (seen, act) in &asked.writes {
                    self.record(seen.name, *act, asked.begin, end);
                    if let Act::Swap(_, tag) = act {
                        let found = self.ledger.acknowledged(seen, *tag);
                        self.found(found);
                    }
                }
                if let Work::Sum = work {
                    let read = self.clients[i].read.clone();
                    self.found(transactions_are_atomic(&read));
                }
                // Whoever was told may tell all others: what do they see now?
                for (seen, _) in &asked.writes {
                    for at in 0..self.c.nodes.len() {
                        self.hit(at, seen.name);
                    }
                }
            }
            Ok(Reply::Waited(None)) => {
                self.clients[i].waits = true;
                self.clients[i].asked = Some(asked);
                return;
            }
            Err(CacheError::Unknown) => {
                for (seen, act) in &asked.writes {
                    self.record(seen.name, *act, asked.begin, None);
                }
            }
            Ok(_) | Err(CacheError::Conflict | CacheError::NoQuorum | CacheError::Busy) => {
                if let Work::Grab(name) = work {
                    // It may be held still.
                    let (node, client) = (self.clients[i].node, self.clients[i].id);
                    self.c.ask(node, client, Request::Release { name });
                }
            }
            Err(e) => self.found(Err(("answers_make_sense", format!("{work:?}: {e}")))),
        }
        self.finish(i);
    }

    pub(super) fn poll_clients(&mut self) {
        if self.c.replies.is_empty() && self.c.changed.is_empty() {
            return;
        }
        for (node, id) in std::mem::take(&mut self.c.changed) {
            let mine = |c: &Client| {
                c.node == node && c.waits && c.asked.as_ref().is_some_and(|a| a.id == id)
            };
            if let Some(i) = self.clients.iter().position(mine) {
                self.clients[i].asked = None;
                self.finish(i);
            }
        }
        // An answer may lead to a question that is answered at once.
        let mut more = true;
        while std::mem::take(&mut more) && !self.c.replies.is_empty() {
            for i in 0..self.clients.len() {
                let Some(asked) = &self.clients[i].asked else { continue };
                let key = (self.clients[i].node, asked.id);
                if let Some(answer) = self.c.replies.remove(&key)
                    && let Some(asked) = self.clients[i].asked.take()
                {
                    more = true;
                    self.answered(i, asked, answer);
                }
            }
        }
        // What is left is for nobody.
        self.c.replies.clear();
    }

    /// What a domain of a node would hit at this moment, be its ccache stopped or cut off.
    pub(super) fn hit(&mut self, at: usize, name: Name) {
        let node = &self.c.nodes[at];
        let Some(set) = layout::set(name.set()).filter(|_| node.alive) else { return };
        let mut out = Vec::new();
        let (class, own) = (node.arena.region(set.region()), node.arena.region(RegionId::Control));
        let local = node.clock.local(self.c.now());
        let Some(version) = lookup(name, class, own, || local, &mut out) else { return };
        let how = format!("hit on node {}", node.slot);
        self.c.totals.hits += 1;
        let begin = self.c.next_order();
        match self.ledger.observe(&how, name, version, &out, self.ledger.floor(name)) {
            Ok(value) => self.record(name, Act::Read(value.tag), begin, Some(begin)),
            Err(v) => self.found(Err(v)),
        }
    }
}
