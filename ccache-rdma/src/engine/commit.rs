//! From the post of a write on: it is never abandoned. Halves or a redo record and the sharers'
//! counters go out at once; all complete and the lease valid is the commit; then publish,
//! acknowledge, end.

use super::get::as_word;
use super::op::{Flow, Op, Part};
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

/// What tells a sharer that its copy is not the newest any more.
fn count_up(name: crate::name::Name) -> Verb {
    let offset = control::counter(layout::hash(name));
    Verb::FetchAdd { at: Address { region: RegionId::Control, offset }, add: 1 }
}

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
        for item in &w.items {
            for peer in self.to_tell(item).iter() {
                chains[usize::from(peer)].push(count_up(item.name));
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

    /// The observed live sharers of an object but this node.
    fn to_tell(&self, item: &Item) -> Slots {
        let sharers = item.taken.map_or(Slots::NONE, Word::sharers);
        sharers.intersection(self.view.slots().without(self.config.node))
    }

    /// Rule 9: the only object's word is kept. The begin and the halves at once; who shares it, the begin
    /// shows. From here on never abandoned.
    pub(super) fn post_kept(&mut self, op: &mut Op, w: &mut Write) -> Option<Flow> {
        let name = w.items[0].name;
        if !self.lease_valid() || op.abandoned {
            return Some(self.refuse(op, w, CacheError::NoQuorum));
        }
        let Some(primary) = self.view.primary(name.shard()) else {
            return Some(self.refuse(op, w, CacheError::NoQuorum));
        };
        self.begin_kept(name);
        self.stats.writes += 1;
        self.stats.kept_writes += 1;
        let item = &mut w.items[0];
        let data = item.data.as_deref();
        item.buffer = half::buffer(&Head::of(name, item.version, data), data.unwrap_or(&[]));
        for peer in self.view.replicas(name.shard()).all().iter() {
            let slot = item.slot.unwrap_or(0);
            let mut chain =
                Engine::write_half(item.set, name.shard(), slot, item.version, &item.buffer);
            if peer == primary {
                chain.insert(0, Verb::FetchAdd { at: item.word_at(), add: Word::BEGIN });
            }
            self.post(op, u16::from(peer), peer, chain);
        }
        w.stage = Stage::KeptPosted;
        Some(Flow::Waits)
    }

    /// The begin has shown who shares the object: they hear of it, and only then it is committed.
    pub(super) fn kept_posted(&mut self, op: &mut Op, w: &mut Write) -> Option<Flow> {
        let results = op.take();
        let item = &mut w.items[0];
        w.stage = Stage::Posted;
        if item.settled {
            return None;
        }
        let primary = self.view.primary(item.name.shard()).map(u16::from);
        let begin = results.iter().find_map(|(part, result)| match result {
            Part::Verbs(o) if Some(*part) == primary => as_word(o.first()),
            _ => None,
        });
        let Some(word) = begin else {
            // A chain to a member that stays one does not fail; if it did, a view must come first.
            w.stage = Stage::KeptPosted;
            op.failed = true;
            return Some(Flow::Waits);
        };
        debug_assert!(word.holder() == Some(self.config.node) && !word.writing(), "{word:?}");
        item.taken = Some(Word(word.0.wrapping_add(Word::BEGIN)));
        let name = item.name;
        for peer in self.to_tell(&w.items[0]).iter() {
            self.post(op, u16::from(peer), peer, vec![count_up(name)]);
        }
        if op.pending > 0 { Some(Flow::Waits) } else { None }
    }

    /// Rule 10. All completions are in, or excused by the view that is in force.
    pub(super) fn commit(&mut self, op: &mut Op, w: &mut Write) -> Option<Flow> {
        op.take();
        if !self.lease_valid() {
            self.lease_waiting.push(op.id);
            return Some(Flow::Waits);
        }
        if w.items.len() == 1 {
            self.decide_to_keep(w);
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

    fn decide_to_keep(&mut self, w: &mut Write) {
        for item in &mut w.items {
            item.keep = item.data.is_some() && !item.settled && self.keeps(item.name);
        }
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
            kept: item.keep,
        };
        let place = item.set.payload(item.name.shard(), item.slot.unwrap_or(0), item.version);
        let payload = if self.replica_of(item.name) {
            Payload::Own { place, data }
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
            self.decide_to_keep(w);
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
                // Ended already, by a takeover.
                if let Some(o) = self.objects.get_mut(&item.name) {
                    o.turn.writes = false;
                }
                continue;
            }
            let by = item.version.wrapping_sub(item.before);
            let counted = self.share_ended(item.key(), taken.count(me), !item.keep);
            let add = if item.keep {
                self.keep(item.name, item.version);
                Word::end_kept(taken.counts(), by)
            } else {
                if !counted {
                    // Nobody would tell of the next write.
                    self.publisher.void(item.name);
                }
                let add = Word::end(me, taken.counts(), by, counted);
                if let Some(o) = self.objects.get_mut(&item.name) {
                    o.guess = Some(Word(taken.0.wrapping_add(add)));
                    o.grab = None;
                    o.kept = None;
                    o.turn.end(item.version, self.now);
                }
                add
            };
            let chain = vec![Verb::FetchAdd { at: item.word_at(), add }];
            if item.data.is_none() {
                removals = true;
                self.post(op, i as u16, primary, chain);
            } else {
                self.post_unwaited(primary, chain);
            }
            self.tell_waiters(w.items[i].name);
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
