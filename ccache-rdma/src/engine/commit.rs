//! From the post of a write on: it is never abandoned. Halves or a redo record and the sharers'
//! counters go out at once; all complete and the lease valid is the commit; then publish,
//! acknowledge, end.

use super::op::{Flow, Op};
use super::write::{Item, Stage, Write};
use super::{Bug, Engine};
use crate::arena::published::{Fact, Payload};
use crate::cache::CacheError;
use crate::fabric::{Address, Verb};
use crate::half::{self, Head};
use crate::layout::{self, RegionId, control};
use crate::request::Reply;
use crate::view::Slots;
use crate::word::Word;
use std::sync::Arc;

impl Engine {
    /// Rules 8 and 20: everything at once, from here on never abandoned.
    pub(super) fn post_write(&mut self, op: &mut Op, w: &mut Write) -> Option<Flow> {
        if !self.lease_valid() || op.abandoned {
            return Some(self.refuse(op, w, CacheError::NoQuorum));
        }
        let me = self.config.node;
        if w.items.is_empty() {
            // Only reads: all were as they had been at one moment.
            self.reply(op, Ok(Reply::Done));
            return Some(Flow::Done);
        }
        let single = w.items.len() == 1;
        if !single && w.record.is_none() {
            match self.redo_free.pop() {
                Some(index) => w.record = Some(index),
                None => {
                    self.redo_waiting.push_back(op.id);
                    return Some(Flow::Waits);
                }
            }
        }
        let mut chains: [Vec<Verb>; 16] = Default::default();
        for item in &mut w.items {
            let data = item.data.as_deref();
            let head = Head::of(item.name, item.version, data);
            item.buffer = half::buffer(&head, data.unwrap_or(&[]));
            // Between the post and the commit nobody here may hit one object's old and another's
            // new version; a single object's old one is right until the commit.
            if !single {
                self.publisher.void(item.name);
            }
        }
        self.stats.writes += 1;
        if single {
            let item = &w.items[0];
            let shard = item.name.shard();
            for peer in self.view.replicas(shard).all().iter() {
                let slot = item.slot.unwrap_or(0);
                let chain = Engine::write_half(item.set, shard, slot, item.version, &item.buffer);
                chains[usize::from(peer)].extend(chain);
            }
        } else {
            let record = super::redo::encode(
                w.items.iter().map(|i| (i.name, i.slot.unwrap_or(0), &i.buffer)),
            );
            let at = Address {
                region: RegionId::Control,
                offset: control::redo(me, w.record.unwrap_or(0)),
            };
            let len = record.len() as u32;
            let data = Arc::new(record);
            for peer in self.view.replicas(w.items[0].name.shard()).all().iter() {
                let verb = Verb::Write { at, data: data.clone(), from: 0, len };
                chains[usize::from(peer)].push(verb);
            }
        }
        let live = self.view.slots().without(me);
        for item in &w.items {
            let sharers = item.taken.map_or(Slots::NONE, Word::sharers);
            let offset = control::counter(layout::hash(item.name));
            let at = Address { region: RegionId::Control, offset };
            for peer in sharers.intersection(live).iter() {
                chains[usize::from(peer)].push(Verb::FetchAdd { at, add: 1 });
            }
        }
        for (peer, chain) in chains.into_iter().enumerate() {
            if !chain.is_empty() {
                self.post(op, peer as u16, peer as u8, chain);
            }
        }
        w.stage = Stage::Posted;
        Some(Flow::Waits)
    }

    /// Rule 10. All completions are in, or excused by the view that is in force.
    pub(super) fn commit(&mut self, op: &mut Op, w: &mut Write) -> Option<Flow> {
        op.take();
        if !self.lease_valid() {
            self.lease_waiting.push(op.id);
            return Some(Flow::Waits);
        }
        if w.items.len() == 1 {
            self.publish_written(&w.items[0]);
            self.reply(op, Ok(Reply::Done));
            w.stage = Stage::Applied;
            return None;
        }
        // Rule 21: now the halves. The answer waits for them, so that whoever gets it hits what it
        // wrote: entries of several objects are published only when their halves stand.
        for i in 0..w.items.len() {
            let item = &w.items[i];
            if item.settled {
                continue;
            }
            let shard = item.name.shard();
            for peer in self.view.replicas(shard).all().iter() {
                let slot = item.slot.unwrap_or(0);
                let chain = Engine::write_half(item.set, shard, slot, item.version, &item.buffer);
                self.post(op, i as u16, peer, chain);
            }
        }
        w.stage = Stage::Applied;
        let wait = op.pending > 0 && !self.bug(Bug::EndsBeforeApplies);
        if wait { Some(Flow::Waits) } else { None }
    }

    /// Rule 26: what this node's domains hit from now on.
    fn publish_written(&mut self, item: &Item) {
        let Some(data) = item.data.as_deref().filter(|_| !item.settled) else {
            self.publisher.withdraw(item.name);
            return;
        };
        let fact = Fact {
            version: item.version,
            c0: self.arena.control(control::counter(layout::hash(item.name))),
            epoch: self.arena.control(control::shard_epoch(item.name.shard())),
        };
        let place = item.set.payload(item.name.shard(), item.slot.unwrap_or(0), item.version);
        let payload = if self.replica_of(item.name) {
            Payload::Own { place, len: data.len() as u32 }
        } else {
            Payload::Copy { set: item.set, data }
        };
        self.publisher.publish(item.set, item.name, fact, payload);
    }

    /// Rule 11, for every object; then the node's other operations may go on with them.
    pub(super) fn end(&mut self, op: &mut Op, w: &mut Write) -> Option<Flow> {
        op.take();
        let me = self.config.node;
        let several = w.items.len() > 1;
        let mut removals = false;
        if several {
            for item in &w.items {
                self.publish_written(item);
            }
            self.reply(op, Ok(Reply::Done));
        }
        for i in 0..w.items.len() {
            let item = &w.items[i];
            let (Some(taken), Some(primary)) = (item.taken, self.view.primary(item.name.shard()))
            else {
                continue;
            };
            if item.settled {
                continue;
            }
            let add = Word::end(me, taken.counts(), item.version.wrapping_sub(item.before));
            let chain = vec![Verb::FetchAdd { at: item.word_at(), add }];
            self.ub_ended(item.key());
            if let Some(o) = self.objects.get_mut(&item.name) {
                o.guess = Some(Word(taken.0.wrapping_add(add)));
                o.grab = None;
            }
            if item.data.is_none() {
                removals = true;
                self.post(op, i as u16, primary, chain);
            } else {
                self.post_unwaited(primary, chain);
            }
        }
        if let Some(index) = w.record.take() {
            self.free_record(index);
        }
        for item in &w.items {
            if item.set.set.waitable {
                self.tell_changed(item.name);
            }
            // A removed object's slot is given back only after the end.
            if item.data.is_some() || item.settled {
                self.unlock(item.name, op.id);
            }
        }
        w.stage = Stage::Ended;
        Some(if removals { Flow::Waits } else { Flow::Done })
    }

    pub(super) fn after_end(&mut self, op: &mut Op, w: &mut Write) -> Flow {
        op.take();
        for item in &w.items {
            if let (None, false, Some(slot)) = (&item.data, item.settled, item.slot) {
                self.hint_free(item.name, slot);
            }
            self.unlock(item.name, op.id);
        }
        Flow::Done
    }

    pub(super) fn free_record(&mut self, index: u64) {
        self.redo_free.push(index);
        if let Some(id) = self.redo_waiting.pop_front() {
            self.ready.push_back(id);
        }
    }
}
