//! What a primary's ccache does beside the fabric: allocating slots, binding names to them, taking
//! them back. The word, the halves and the directory are used by other nodes with verbs alone.
//!
//! A slot is free, bound but unborn, born, or removed but still bound. Binding needs nothing but
//! the primary's CPU: a writer that comes with an old name sees another one bound (or none) once it
//! holds the word, and goes back. Unbinding takes the word first, so no writer stands in between.

use super::Engine;
use super::get::as_word;
use super::message::{Message, Ticket};
use super::op::{Caller, Flow, Kind, Op, Part};
use crate::cache::CacheError;
use crate::fabric::{Address, Outcome, Verb};
use crate::half::Header;
use crate::layout::{self, DIRECTORY_WAYS, DIRECTORY_WINDOW, SetLayout, header};
use crate::name::{Name, Shard};
use crate::word::Word;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Slots by which the high-water mark moves at least: one write to the replicas each.
const MARK_STRIDE: u32 = 64;
/// How often freeing a slot is tried while others use it; whoever uses it then says so again.
const FREE_TRIES: u32 = 16;

/// Who wants a slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    pub(crate) node: u8,
    pub(crate) ticket: Ticket,
}

/// One set's slots in one shard.
#[derive(Default)]
pub(crate) struct Slots {
    pub(crate) free: Vec<u32>,
    /// Slots from here on were never used.
    pub(crate) used: u32,
    /// The high-water mark that stands on every replica.
    pub(crate) mark: u32,
    marking: bool,
    waiting: Vec<(Name, u32, Asker)>,
    /// The highest version that any freed slot had.
    pub(crate) floor: u64,
}

/// All that this node is primary of.
#[derive(Default)]
pub(crate) struct Primary {
    index: BTreeMap<Name, u32>,
    pub(crate) slots: HashMap<(u16, u16), Slots>,
    /// Payload bytes bound.
    pub(crate) used_bytes: u64,
}

/// Moves the high-water mark on all replicas.
pub(crate) struct Mark {
    set: &'static SetLayout,
    shard: Shard,
    mark: u32,
    posted: bool,
}

enum FreeStage {
    Read,
    Take,
    Taking,
}

/// Takes a slot back.
pub(crate) struct Free {
    name: Name,
    set: &'static SetLayout,
    slot: u32,
    stage: FreeStage,
    word: Word,
    tries: u32,
}

impl Primary {
    /// The slot that a name is bound to.
    pub(crate) fn slot(&self, name: Name) -> Option<u32> {
        self.index.get(&name).copied()
    }
    /// Bound names of a range, in order.
    pub(crate) fn range(
        &self,
        range: impl std::ops::RangeBounds<Name>,
    ) -> impl Iterator<Item = (Name, u32)> + '_ {
        self.index.range(range).map(|(n, s)| (*n, *s))
    }
    /// Enters a name in the index alone: its directory window is full, so other nodes will ask.
    pub(crate) fn index_only(&mut self, name: Name, slot: u32) {
        self.index.insert(name, slot);
    }
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }
    /// Every name of a shard.
    pub(crate) fn of_shard(&self, shard: Shard) -> Vec<(Name, u32)> {
        let of_set = |l: &SetLayout| {
            let (first, last) =
                (Name::new(l.set.id, shard, 0), Name::new(l.set.id, shard, u128::MAX));
            self.range(first..=last).collect::<Vec<_>>()
        };
        layout::sets().iter().flat_map(of_set).collect()
    }
}

fn charge(set: &SetLayout) -> u64 {
    // Halves of the large sets are rarely full: half of one is what they take on average.
    2 * set.stride.min(8192)
}

impl Engine {
    /// Serves an allocation, now or when the mark has moved.
    pub(crate) fn allocate(&mut self, name: Name, len: u32, asker: Asker) {
        match self.try_allocate(name, len, asker) {
            Ok(None) => {}
            Ok(Some(slot)) => self.allocated(asker, Ok(slot)),
            Err(e) => self.allocated(asker, Err(e)),
        }
    }

    pub(crate) fn allocated(&mut self, asker: Asker, result: Result<u32, CacheError>) {
        if asker.node == self.config.node {
            self.answered(asker.ticket, Part::Slot(result));
        } else {
            self.send(asker.node, &Message::Allocated { ticket: asker.ticket, result });
        }
    }

    fn try_allocate(
        &mut self,
        name: Name,
        len: u32,
        asker: Asker,
    ) -> Result<Option<u32>, CacheError> {
        let set = layout::set(name.set()).ok_or(CacheError::Invalid)?;
        let shard = name.shard();
        if self.view.primary(shard) != Some(self.config.node) {
            return Err(CacheError::Gone);
        }
        if let Some(slot) = self.primary.slot(name) {
            return Ok(Some(slot));
        }
        // Every node holds about as many copies as its own shards have.
        let copies = self.view.wanted().max(1) as u64;
        // Files, their names too, leave an eighth to everything else: on a full node programs still
        // start, say what is wrong through their pipes, and remove files (which takes a record of the answer).
        let budget = match set.set.class {
            crate::set::Class::Vfs if set.set.id != crate::set::VFSANSWER => {
                self.config.budget_bytes - self.config.budget_bytes / 8
            }
            _ => self.config.budget_bytes,
        };
        if (self.primary.used_bytes + charge(set)) * copies > budget {
            return Err(CacheError::NoSpace);
        }
        let slots = self.primary.slots.entry((shard.0, set.set.id)).or_default();
        let slot = match slots.free.pop() {
            Some(slot) => slot,
            None if slots.used < slots.mark => {
                slots.used += 1;
                slots.used - 1
            }
            None if slots.mark < set.slots() => {
                slots.waiting.push((name, len, asker));
                if !slots.marking {
                    slots.marking = true;
                    let mark = (slots.mark + MARK_STRIDE.max(slots.mark / 4)).min(set.slots());
                    self.spawn(Caller::Own, Kind::Mark(Mark { set, shard, mark, posted: false }));
                }
                return Ok(None);
            }
            None => return Err(CacheError::NoSpace),
        };
        let floor = slots.floor;
        if !self.bind(name, set, slot, floor) {
            if let Some(s) = self.primary.slots.get_mut(&(shard.0, set.set.id)) {
                s.free.push(slot);
            }
            return Err(CacheError::NoSpace);
        }
        Ok(Some(slot))
    }

    /// Binds a name to a slot, in header, directory and index; `false` when the directory's window
    /// is full.
    pub(crate) fn bind(
        &mut self,
        name: Name,
        set: &'static SetLayout,
        slot: u32,
        floor: u64,
    ) -> bool {
        let hash = layout::hash(name);
        let region = set.region();
        let levels = self.arena.word(region, set.levels_in_use(name.shard()));
        let free = (0..set.levels()).find_map(|level| {
            let window = set.directory(name.shard(), hash, level);
            let free = (0..DIRECTORY_WINDOW * DIRECTORY_WAYS)
                .map(|i| self.arena.word(region, window + 8 * i))
                .find(|w| w.load(Ordering::Relaxed) == 0)?;
            // Before the entry is there, readers know that they must look here too.
            levels.fetch_max(level as u64, Ordering::SeqCst);
            Some(free)
        });
        let Some(entry) = free else { return false };
        let at = set.header(name.shard(), slot);
        self.arena.word(region, at + header::FLOOR).store(floor, Ordering::Release);
        self.arena.word(region, at + header::NAME).store(name.0 as u64, Ordering::Release);
        let high = (name.0 >> 64) as u64;
        self.arena.word(region, at + header::NAME + 8).store(high, Ordering::Release);
        entry.store((hash >> 32) << 32 | (u64::from(slot) + 1), Ordering::SeqCst);
        self.primary.index.insert(name, slot);
        self.primary.used_bytes += charge(set);
        true
    }

    /// Undoes [`Engine::bind`].
    pub(crate) fn unbind(&mut self, name: Name, set: &'static SetLayout, slot: u32) {
        let region = set.region();
        let at = set.header(name.shard(), slot);
        self.arena.word(region, at + header::NAME).store(0, Ordering::Release);
        self.arena.word(region, at + header::NAME + 8).store(0, Ordering::Release);
        let hash = layout::hash(name);
        let levels = self.arena.word(region, set.levels_in_use(name.shard()));
        let used = levels.load(Ordering::Relaxed) as usize;
        for level in 0..=used.min(set.levels() - 1) {
            let window = set.directory(name.shard(), hash, level);
            for i in 0..DIRECTORY_WINDOW * DIRECTORY_WAYS {
                let w = self.arena.word(region, window + 8 * i);
                let v = w.load(Ordering::Relaxed);
                if v >> 32 == hash >> 32 && v as u32 == slot + 1 {
                    w.store(0, Ordering::SeqCst);
                }
            }
        }
        if self.primary.index.remove(&name).is_some() {
            self.primary.used_bytes = self.primary.used_bytes.saturating_sub(charge(set));
        }
    }

    /// Forgets a shard that this node is no longer primary of (or is about to rebuild).
    pub(crate) fn forget_primary(&mut self, shard: Shard) {
        for (name, slot) in self.primary.of_shard(shard) {
            if let Some(set) = layout::set(name.set()) {
                self.unbind(name, set, slot);
            }
        }
        for set in layout::sets() {
            if let Some(slots) = self.primary.slots.remove(&(shard.0, set.set.id)) {
                for (_, _, asker) in slots.waiting {
                    self.allocated(asker, Err(CacheError::Gone));
                }
            }
        }
    }

    pub(crate) fn step_mark(&mut self, op: &mut Op, m: &mut Mark) -> Flow {
        if !m.posted {
            m.posted = true;
            let at = Address { region: m.set.region(), offset: m.set.mark(m.shard) };
            for peer in self.view.replicas(m.shard).all().iter() {
                let verb = Verb::WriteWord { at, word: u64::from(m.mark) };
                self.post(op, u16::from(peer), peer, vec![verb]);
            }
            return Flow::Waits;
        }
        let Some(slots) = self.primary.slots.get_mut(&(m.shard.0, m.set.set.id)) else {
            return Flow::Done;
        };
        slots.mark = m.mark;
        slots.marking = false;
        for (name, len, asker) in std::mem::take(&mut slots.waiting) {
            self.allocate(name, len, asker);
        }
        Flow::Done
    }

    /// After a change of view: marks under way are moved again.
    pub(crate) fn resume_marks(&mut self) {
        let mut waiting = Vec::new();
        for slots in self.primary.slots.values_mut() {
            slots.marking = false;
            waiting.append(&mut slots.waiting);
        }
        waiting.sort_by_key(|(name, ..)| *name);
        for (name, len, asker) in waiting {
            // Other nodes ask again themselves; only then are they still interested.
            if asker.node == self.config.node {
                self.allocate(name, len, asker);
            }
        }
    }

    /// A slot may be free now.
    pub(crate) fn free_hint(&mut self, name: Name, slot: u32) {
        let Some(set) = layout::set(name.set()) else { return };
        if self.primary.slot(name) == Some(slot) {
            let stage = FreeStage::Read;
            let free = Free { name, set, slot, stage, word: Word(0), tries: 0 };
            self.spawn(Caller::Own, Kind::Free(free));
        }
    }

    pub(crate) fn step_free(&mut self, op: &mut Op, f: &mut Free) -> Flow {
        let me = self.config.node;
        let [word, heads] = Engine::read_word_and_header(f.name, f.set, f.slot);
        let Verb::Read { at, .. } = word else { return Flow::Done };
        loop {
            match f.stage {
                FreeStage::Read => {
                    f.tries += 1;
                    if self.primary.slot(f.name) != Some(f.slot) || f.tries > FREE_TRIES {
                        return Flow::Done;
                    }
                    f.stage = FreeStage::Take;
                    self.post(op, 0, me, vec![word]);
                    return Flow::Waits;
                }
                FreeStage::Take => {
                    let outcomes = op.take_one();
                    let Some(seen) = as_word(outcomes.first()) else { return Flow::Done };
                    if !seen.is_idle() {
                        self.ask_back(op, &[(f.name, seen)]);
                        f.stage = FreeStage::Read;
                        return self.back_off(op);
                    }
                    f.word = seen;
                    f.stage = FreeStage::Taking;
                    let take = Verb::CompareSwap { at, expect: seen.0, new: seen.taken(me).0 };
                    self.post(op, 0, me, vec![take, heads.clone()]);
                    return Flow::Waits;
                }
                FreeStage::Taking => {
                    let outcomes = op.take_one();
                    if as_word(outcomes.first()) != Some(f.word) {
                        f.stage = FreeStage::Read;
                        continue;
                    }
                    let bytes = match outcomes.get(1) {
                        Some(Outcome::Bytes(b)) => b.as_slice(),
                        _ => &[],
                    };
                    let head = Header::decode(bytes).current(f.word);
                    let born = head.is_some_and(|h| h.name == f.name && !h.tombstone);
                    let bound = self.primary.slot(f.name) == Some(f.slot);
                    if bound && !born {
                        self.unbind(f.name, f.set, f.slot);
                        let key = (f.name.shard().0, f.set.set.id);
                        let slots = self.primary.slots.entry(key).or_default();
                        slots.free.push(f.slot);
                        if let Some(h) = head {
                            slots.floor = slots.floor.max(h.version);
                        }
                        if let Some(o) = self.objects.get_mut(&f.name) {
                            o.slot = None;
                            o.guess = None;
                        }
                    }
                    self.post_unwaited(me, vec![Verb::FetchAdd { at, add: Word::drop_taken(me) }]);
                    return Flow::Done;
                }
            }
        }
    }

    /// After the change of view cut a `Free` short: gives the word back if it was taken.
    pub(crate) fn abandon_free(&mut self, op: &mut Op, f: &Free) {
        if !matches!(f.stage, FreeStage::Taking) {
            return;
        }
        let outcomes = op.take_one();
        if as_word(outcomes.first()) == Some(f.word) && !self.was_affected(f.name.shard()) {
            let [word, _] = Engine::read_word_and_header(f.name, f.set, f.slot);
            if let Verb::Read { at, .. } = word {
                let me = self.config.node;
                self.post_unwaited(me, vec![Verb::FetchAdd { at, add: Word::drop_taken(me) }]);
            }
        }
    }

    /// The WRITEs of a half to one replica: payload, then head.
    pub(crate) fn write_half(
        set: &SetLayout,
        shard: Shard,
        slot: u32,
        version: u64,
        buffer: &Arc<Vec<u8>>,
    ) -> Vec<Verb> {
        let head = crate::half::HEAD as u32;
        let len = buffer.len() as u32 - head;
        let region = set.region();
        let mut chain = Vec::with_capacity(3);
        if len > 0 {
            let at = Address { region, offset: set.payload(shard, slot, version) };
            chain.push(Verb::Write { at, data: buffer.clone(), from: head, len });
        }
        let offset = set.header(shard, slot) + header::head(version);
        let at = Address { region, offset };
        chain.push(Verb::Write { at, data: buffer.clone(), from: 0, len: head });
        chain
    }
}
