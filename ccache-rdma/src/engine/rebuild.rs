//! Filling the copies that a view lists as rebuilding (rules 18 and 32), by the shard's primary, at
//! a bounded rate. New writes reach those copies already; what stood before is copied slot by slot
//! under the slot's word, so no write is overtaken by an older one.

use super::get::as_word;
use super::kept::Asked;
use super::op::{Caller, Flow, Kind, Op, Part};
use super::{Action, Bug, Engine};
use crate::fabric::{Address, Verb};
use crate::half::{self, HEAD};
use crate::layout::{self, SetLayout, header};
use crate::name::{Name, SHARDS, Shard};
use crate::view::MAX_NODES;
use crate::word::Word;
use std::collections::VecDeque;
use std::sync::Arc;

/// Slots taken at once.
const BATCH: usize = 16;
/// Shards after which those copied so far are reported.
const REPORT: usize = 256;

enum Stage {
    Next,
    Taking,
    Writing,
}

struct Stretch {
    set: &'static SetLayout,
    shard: Shard,
    /// Slots still to be copied, from the last; those in use by others come again.
    left: Vec<u32>,
}

/// The copier.
pub(crate) struct Rebuild {
    shards: VecDeque<Shard>,
    /// The shard whose stretches these are.
    current: Option<Shard>,
    stretches: VecDeque<Stretch>,
    stage: Stage,
    /// Slots of this batch, with the word before and whether it has been taken.
    batch: Vec<(u32, Word, bool)>,
    copied: Vec<Vec<u16>>,
}

impl Engine {
    /// Starts the copier if a shard of this node's has copies to fill.
    pub(crate) fn start_rebuild(&mut self) {
        let shards: VecDeque<Shard> = (0..SHARDS)
            .map(Shard)
            .filter(|s| {
                let r = self.view.replicas(*s);
                r.primary == Some(self.config.node) && !r.rebuilding.is_empty()
            })
            .collect();
        if !shards.is_empty() {
            let rebuild = Rebuild {
                shards,
                current: None,
                stretches: VecDeque::new(),
                stage: Stage::Next,
                batch: Vec::new(),
                copied: vec![Vec::new(); MAX_NODES],
            };
            self.spawn(Caller::Own, Kind::Rebuild(rebuild));
        }
    }

    fn report(&mut self, r: &mut Rebuild) {
        for (slot, shards) in r.copied.iter_mut().enumerate() {
            if !shards.is_empty() {
                let shards = std::mem::take(shards);
                let epoch = self.view.epoch;
                self.out.push(Action::Rebuilt { slot: slot as u8, epoch, shards });
            }
        }
    }

    pub(crate) fn step_rebuild(&mut self, op: &mut Op, r: &mut Rebuild) -> Flow {
        let me = self.config.node;
        loop {
            match r.stage {
                Stage::Next => {
                    op.take();
                    if r.stretches.front().is_some_and(|s| s.left.is_empty()) {
                        r.stretches.pop_front();
                    }
                    let Some(stretch) = r.stretches.front_mut() else {
                        if let Some(done) = r.current.take() {
                            self.copied(r, done);
                        }
                        match self.begin_shard(op, r) {
                            Some(flow) => return flow,
                            None => continue,
                        }
                    };
                    let (set, shard) = (stretch.set, stretch.shard);
                    r.batch.clear();
                    let mut chain = Vec::new();
                    let mut busy = Vec::new();
                    let mut held = Vec::new();
                    while r.batch.len() < BATCH {
                        let Some(slot) = stretch.left.pop() else { break };
                        let offset = set.header(shard, slot);
                        let word = self.arena.word(set.region(), offset);
                        let word = Word(word.load(std::sync::atomic::Ordering::Acquire));
                        if !word.is_idle() {
                            busy.push(slot);
                            let any = Name::new(set.set.id, shard, 0);
                            held.push((self.own_header(any, set, slot).bound, word));
                            if busy.len() >= BATCH {
                                break;
                            }
                            continue;
                        }
                        let at = Address { region: set.region(), offset };
                        let new = word.taken(me).0;
                        chain.push(Verb::CompareSwap { at, expect: word.0, new });
                        r.batch.push((slot, word, false));
                    }
                    let waits = r.batch.is_empty() && !busy.is_empty();
                    stretch.left.splice(0..0, busy);
                    self.ask_back(op, &held);
                    if waits {
                        return self.back_off(op);
                    }
                    if chain.is_empty() {
                        continue;
                    }
                    (op.polls, op.asked) = (0, Asked::default());
                    r.stage = Stage::Taking;
                    self.post(op, 0, me, chain);
                    return Flow::Waits;
                }
                Stage::Taking => {
                    self.mark_taken(op, r);
                    r.stage = Stage::Writing;
                    let Some(stretch) = r.stretches.front_mut() else { return Flow::Done };
                    let (set, shard) = (stretch.set, stretch.shard);
                    let targets = self.view.replicas(shard).rebuilding;
                    let mut chains: Vec<Verb> = Vec::new();
                    for (slot, word, taken) in &r.batch {
                        if !*taken {
                            stretch.left.insert(0, *slot);
                            continue;
                        }
                        let name = Name::new(set.set.id, shard, 0);
                        let clear = |half| Verb::Write {
                            at: Address {
                                region: set.region(),
                                offset: set.header(shard, *slot) + header::head(half),
                            },
                            data: Arc::new(vec![0; HEAD]),
                            from: 0,
                            len: HEAD as u32,
                        };
                        let head = self.own_header(name, set, *slot).current(*word);
                        let Some(head) = head else {
                            // Never written; but a first write that came to nothing may have
                            // reached the new copy alone.
                            if word.version_low() == 0 && !self.bug(Bug::LeftoverHalf) {
                                chains.extend([clear(0), clear(1)]);
                            }
                            continue;
                        };
                        let Some(data) = self.own_payload(name, set, *slot, &head) else {
                            // Cannot be: nobody writes what this node has taken.
                            continue;
                        };
                        let buffer = half::buffer(&head, &data);
                        chains.extend(Engine::write_half(set, shard, *slot, head.version, &buffer));
                        // A write that was not rolled forward may have reached the new copy alone;
                        // once the copy counts it would pass for the highest version.
                        if !self.bug(Bug::LeftoverHalf) {
                            chains.push(clear(head.version + 1));
                        }
                    }
                    if !chains.is_empty() {
                        for peer in targets.iter() {
                            self.post(op, u16::from(peer), peer, chains.clone());
                        }
                        return Flow::Waits;
                    }
                }
                Stage::Writing => {
                    op.take();
                    self.give_back_batch(r);
                    r.stage = Stage::Next;
                    let rate = u64::from(self.config.rebuild_rate.max(1));
                    let pause = r.batch.len() as u64 * 1_000_000 / rate;
                    r.batch.clear();
                    if pause > 0 {
                        return self.sleep_until(op, self.now + pause);
                    }
                }
            }
        }
    }

    fn copied(&mut self, r: &mut Rebuild, shard: Shard) {
        for slot in self.view.replicas(shard).rebuilding.iter() {
            if let Some(shards) = r.copied.get_mut(usize::from(slot)) {
                shards.push(shard.0);
            }
        }
        if r.copied.iter().any(|s| s.len() >= REPORT) {
            self.report(r);
        }
    }

    /// The marks first, then every slot below them. `None`: go on; nothing left: done.
    fn begin_shard(&mut self, op: &mut Op, r: &mut Rebuild) -> Option<Flow> {
        while let Some(shard) = r.shards.pop_front() {
            let mut chain = Vec::new();
            for set in layout::sets() {
                let mark = self.own_mark(set, shard);
                if mark == 0 {
                    continue;
                }
                let at = Address { region: set.region(), offset: set.mark(shard) };
                chain.push(Verb::WriteWord { at, word: u64::from(mark) });
                r.stretches.push_back(Stretch { set, shard, left: (0..mark).rev().collect() });
            }
            if r.stretches.is_empty() {
                self.copied(r, shard);
                continue;
            }
            r.current = Some(shard);
            for peer in self.view.replicas(shard).rebuilding.iter() {
                self.post(op, u16::from(peer), peer, chain.clone());
            }
            return Some(Flow::Waits);
        }
        self.report(r);
        Some(Flow::Done)
    }

    fn mark_taken(&mut self, op: &mut Op, r: &mut Rebuild) {
        let ignore = self.bug(Bug::CopierIgnoresSwap);
        for (_, part) in op.take() {
            let Part::Verbs(outcomes) = part else { continue };
            for (i, (_, word, taken)) in r.batch.iter_mut().enumerate() {
                *taken = as_word(outcomes.get(i)) == Some(*word) || ignore;
            }
        }
    }

    fn give_back_batch(&mut self, r: &Rebuild) {
        let me = self.config.node;
        let Some(stretch) = r.stretches.front() else { return };
        let mut chain = Vec::new();
        for (slot, _, taken) in &r.batch {
            if *taken {
                let offset = stretch.set.header(stretch.shard, *slot);
                let at = Address { region: stretch.set.region(), offset };
                chain.push(Verb::FetchAdd { at, add: Word::drop_taken(me) });
            }
        }
        if !chain.is_empty() {
            self.post_unwaited(me, chain);
        }
    }

    /// After the change of view cut it short: gives back what it has taken.
    pub(crate) fn abandon_rebuild(&mut self, op: &mut Op, r: &mut Rebuild) {
        if matches!(r.stage, Stage::Taking) {
            self.mark_taken(op, r);
        }
        if r.stretches.front().is_some_and(|s| !self.was_affected(s.shard)) {
            self.give_back_batch(r);
        }
    }
}
