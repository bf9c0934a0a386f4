//! Writing: puts (rules 7–11) and transactions (19–22, 29), which share the taking of words.
//!
//! The way of a write: queue for its objects inside the node; find or get their slots; take their
//! words in the order of their names; check what it expects; check what it read
//! ([`super::check`]); post, commit, publish, acknowledge, end ([`super::commit`]). A write of one
//! object posts halves, one of several a redo record.

use super::get::{PATIENCE, as_bytes, as_word, candidates};
use super::kept::Asked;
use super::message::Message;
use super::op::{Flow, Op, Part};
use super::primary::Asker;
use super::{Bug, ClientId, Engine, SlotKey};
use crate::cache::{CacheError, Expect, Transaction, Version};
use crate::fabric::{Address, Verb};
use crate::half::Header;
use crate::layout::{self, SetLayout};
use crate::name::Name;
use crate::request::Reply;
use crate::word::Word;
use std::sync::Arc;

/// How often a write starts over because a slot turned out to be another's.
const RELOCATIONS: u32 = 64;
/// How often a transaction polls a word that it read and that is in writing, before it says
/// "conflict": it holds words itself, and two that wait for each other would wait for ever.
pub(super) const READ_POLLS: u32 = 6;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// Queueing for the objects, in the order of their names.
    Queueing,
    Locate,
    Locating,
    Allocating,
    Take,
    Taking,
    /// The only object is kept: everything at once, the begin too (rule 9).
    KeptPost,
    KeptPosted,
    Check,
    CheckLocating,
    Checking,
    Post,
    Posted,
    Applied,
    Ended,
}

/// How an object's slot was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    /// It was there the last time, or the index of this primary says so.
    Known,
    /// In the directory.
    Window,
    /// The primary has just bound it: nobody may ever have written it.
    Bound,
}

/// An object that is written.
pub(super) struct Item {
    pub(super) name: Name,
    pub(super) set: &'static SetLayout,
    expects: Vec<Expect>,
    pub(super) data: Option<Vec<u8>>,
    pub(super) slot: Option<u32>,
    found: Found,
    candidates: Vec<u32>,
    /// The word as this write's CAS replaced it (or its FETCH-ADD saw it), with holder and W.
    pub(super) taken: Option<Word>,
    guess: Option<Word>,
    /// The word is this node's already: by a grab that this write ends, or kept.
    owned: bool,
    /// It is kept: given up as it was if nothing is written.
    kept: bool,
    /// Its end keeps it.
    pub(super) keep: bool,
    /// The version of the slot before, and the new one.
    pub(super) before: u64,
    pub(super) version: u64,
    pub(super) buffer: Arc<Vec<u8>>,
    /// Recovery has rolled it forward: neither half nor end is this write's to post any more.
    pub(super) settled: bool,
}

/// An object that is only read.
pub(super) struct Read {
    pub(super) name: Name,
    pub(super) set: &'static SetLayout,
    pub(super) version: Version,
    pub(super) slot: Option<u32>,
    pub(super) candidates: Vec<u32>,
    pub(super) remembered: bool,
    pub(super) checked: bool,
}

/// A write under way.
pub(crate) struct Write {
    pub(super) stage: Stage,
    pub(super) items: Vec<Item>,
    pub(super) reads: Vec<Read>,
    client: Option<ClientId>,
    queued: bool,
    turn: usize,
    relocations: u32,
    /// Index of the redo record.
    pub(super) record: Option<u64>,
}

impl Write {
    /// From a transaction whose shape has been checked.
    pub(crate) fn new(t: Transaction, client: Option<ClientId>) -> Result<Write, CacheError> {
        let mut items = Vec::with_capacity(t.writes.len());
        for w in t.writes {
            let set = layout::set(w.name.set()).ok_or(CacheError::Invalid)?;
            if w.data.as_ref().is_some_and(|d| d.is_empty() || d.len() > set.set.capacity as usize)
            {
                return Err(CacheError::Invalid);
            }
            items.push(Item {
                name: w.name,
                set,
                expects: vec![w.expect],
                data: w.data,
                slot: None,
                found: Found::Known,
                candidates: Vec::new(),
                taken: None,
                guess: None,
                owned: false,
                kept: false,
                keep: false,
                before: 0,
                version: 0,
                buffer: Arc::default(),
                settled: false,
            });
        }
        items.sort_by_key(|i| i.name);
        if items.windows(2).any(|w| w[0].name == w[1].name) {
            return Err(CacheError::Invalid);
        }
        let mut reads = Vec::new();
        for (name, version) in t.reads {
            let set = layout::set(name.set()).ok_or(CacheError::Invalid)?;
            match items.iter_mut().find(|i| i.name == name) {
                Some(item) => item.expects.push(Expect::Version(version)),
                None => reads.push(Read {
                    name,
                    set,
                    version,
                    slot: None,
                    candidates: Vec::new(),
                    remembered: false,
                    checked: false,
                }),
            }
        }
        Ok(Write {
            stage: Stage::Queueing,
            items,
            reads,
            client,
            queued: false,
            turn: 0,
            relocations: 0,
            record: None,
        })
    }

    pub(super) fn posted(&self) -> bool {
        matches!(self.stage, Stage::KeptPosted | Stage::Posted | Stage::Applied | Stage::Ended)
    }

    /// The object, if this writes one and reads none.
    pub(super) fn alone(&self) -> Option<Name> {
        match &self.items[..] {
            [item] if self.reads.is_empty() && item.data.is_some() => Some(item.name),
            _ => None,
        }
    }
}

impl Item {
    pub(super) fn word_at(&self) -> Address {
        let offset = self.set.header(self.name.shard(), self.slot.unwrap_or(0));
        Address { region: self.set.region(), offset }
    }
    pub(super) fn key(&self) -> SlotKey {
        SlotKey::of(self.name, self.slot.unwrap_or(0))
    }
    fn fits(&self, now: Version) -> bool {
        self.expects.iter().all(|e| match e {
            Expect::Any => true,
            Expect::Version(v) => *v == now,
        })
    }
    fn must_exist(&self) -> bool {
        self.expects.iter().any(|e| matches!(e, Expect::Version(v) if v.exists()))
    }
}

impl Engine {
    pub(crate) fn step_write(&mut self, op: &mut Op, w: &mut Write) -> Flow {
        loop {
            let next = match w.stage {
                Stage::Queueing => self.queue_objects(op, w),
                Stage::Locate => self.locate(op, w),
                Stage::Locating => self.located(op, w),
                Stage::Allocating => self.have_slots(op, w),
                Stage::Take => self.take_word(op, w),
                Stage::Taking => self.taking(op, w),
                Stage::KeptPost => self.post_kept(op, w),
                Stage::KeptPosted => self.kept_posted(op, w),
                Stage::Check => self.check_reads(op, w),
                Stage::CheckLocating => self.reads_located(op, w),
                Stage::Checking => self.reads_checked(op, w),
                Stage::Post => self.post_write(op, w),
                Stage::Posted => self.commit(op, w),
                Stage::Applied => self.end(op, w),
                Stage::Ended => return self.after_end(op, w),
            };
            if let Some(flow) = next {
                return flow;
            }
        }
    }

    /// One after the other, in the order of the names: no two writes of a node wait for each other.
    fn queue_objects(&mut self, op: &mut Op, w: &mut Write) -> Option<Flow> {
        while let Some(item) = w.items.get(w.turn) {
            if !w.queued {
                w.queued = true;
                match self.lock(item.name, op) {
                    Ok(true) => {}
                    Ok(false) => return Some(Flow::Waits),
                    Err(e) => return Some(self.refuse(op, w, e)),
                }
            }
            if !self.holds(item.name, op.id) {
                return Some(Flow::Waits);
            }
            w.queued = false;
            w.turn += 1;
        }
        w.stage = Stage::Locate;
        None
    }

    /// Gives up with nothing done.
    pub(super) fn refuse(&mut self, op: &mut Op, w: &mut Write, e: CacheError) -> Flow {
        self.release_words(w);
        for item in &w.items {
            // A slot got for an object that is not created after all.
            if let (Some(slot), Found::Bound) = (item.slot, item.found) {
                self.hint_free(item.name, slot);
            }
            self.unlock(item.name, op.id);
        }
        self.reply(op, Err(e));
        Flow::Done
    }

    /// Gives back every word taken, with nothing changed.
    fn release_words(&mut self, w: &mut Write) {
        let me = self.config.node;
        for item in &mut w.items {
            let Some(word) = item.taken.take() else {
                if std::mem::take(&mut item.kept) {
                    self.still_kept(item.name);
                }
                continue;
            };
            let add = if item.kept { Word::DROP_BEGIN } else { Word::drop_taken(me) };
            if let Some(primary) = self.view.primary(item.name.shard()) {
                self.post_unwaited(primary, vec![Verb::FetchAdd { at: item.word_at(), add }]);
            }
            if std::mem::take(&mut item.kept) {
                self.still_kept(item.name);
                continue;
            }
            if let Some(o) = self.objects.get_mut(&item.name) {
                o.guess = Some(Word(word.0.wrapping_add(add)));
                o.grab = None;
                o.turn.writes = false;
            }
            self.tell_waiters(item.name);
        }
    }

    pub(super) fn hint_free(&mut self, name: Name, slot: u32) {
        match self.view.primary(name.shard()) {
            Some(p) if p == self.config.node => self.free_hint(name, slot),
            Some(p) => self.send(p, &Message::Free { name, slot }),
            None => {}
        }
    }

    fn locate(&mut self, op: &mut Op, w: &mut Write) -> Option<Flow> {
        if !self.serving() {
            return Some(self.refuse(op, w, CacheError::NoQuorum));
        }
        if let Some(version) = self.kept_version(w) {
            let item = &mut w.items[0];
            if !item.fits(Version(version)) {
                return Some(self.refuse(op, w, CacheError::Conflict));
            }
            (item.before, item.version) = (version, version + 1);
            item.slot = self.objects.get(&item.name).and_then(|o| o.slot);
            item.found = Found::Known;
            w.stage = Stage::KeptPost;
            return None;
        }
        w.stage = Stage::Locating;
        for i in 0..w.items.len() {
            let item = &mut w.items[i];
            item.candidates.clear();
            item.guess = None;
            item.slot = None;
            let Some(primary) = self.view.primary(item.name.shard()) else {
                return Some(self.refuse(op, w, CacheError::NoQuorum));
            };
            let known = self.objects.get(&item.name);
            if primary == self.config.node {
                item.slot = self.primary.slot(item.name);
            } else {
                item.slot = known.and_then(|o| o.slot);
            }
            item.found = Found::Known;
            if item.slot.is_some() {
                // Who writes again what others wait for looks at it first: they come before it.
                item.guess = known
                    .filter(|o| !o.reluctance.was_asked() && !o.turn.owes())
                    .and_then(|o| o.guess);
            } else if primary != self.config.node {
                let chain = Engine::read_windows(item.name, item.set, false);
                self.post(op, i as u16, primary, chain);
            }
        }
        if op.pending > 0 { Some(Flow::Waits) } else { None }
    }

    fn located(&mut self, op: &mut Op, w: &mut Write) -> Option<Flow> {
        for (part, result) in op.take() {
            let (Some(item), Part::Verbs(o)) = (w.items.get_mut(usize::from(part)), result) else {
                continue;
            };
            let (found, deeper) = candidates(item.name, item.set, &o);
            item.candidates.extend(found);
            item.found = Found::Window;
            if let (true, Some(primary)) = (deeper, self.view.primary(item.name.shard())) {
                let chain = Engine::read_windows(item.name, item.set, true);
                self.post(op, part, primary, chain);
            }
        }
        if op.pending > 0 {
            return Some(Flow::Waits);
        }
        for item in w.items.iter_mut().filter(|i| i.slot.is_none()) {
            item.slot = item.candidates.pop();
        }
        self.get_slots(op, w)
    }

    /// Asks the primaries for the slots of objects that have none.
    fn get_slots(&mut self, op: &mut Op, w: &mut Write) -> Option<Flow> {
        w.stage = Stage::Allocating;
        for i in 0..w.items.len() {
            let item = &w.items[i];
            if item.slot.is_some() {
                continue;
            }
            if item.must_exist() {
                return Some(self.refuse(op, w, CacheError::Conflict));
            }
            if item.data.is_none() && w.items.len() == 1 && w.reads.is_empty() {
                // There is nothing to remove.
                self.unlock(item.name, op.id);
                self.reply(op, Ok(Reply::Done));
                return Some(Flow::Done);
            }
            let (name, len) = (item.name, item.data.as_ref().map_or(0, Vec::len) as u32);
            let ticket = op.ticket(i as u16);
            op.pending += 1;
            match self.view.primary(name.shard()) {
                Some(p) if p == self.config.node => {
                    // The answer may come at once, while this operation is not in the table.
                    self.local_allocations.push((name, len, Asker { node: p, ticket }));
                }
                Some(p) => self.send(p, &Message::Allocate { ticket, name, len }),
                None => return Some(self.refuse(op, w, CacheError::NoQuorum)),
            }
        }
        if op.pending > 0 { Some(Flow::Waits) } else { None }
    }

    fn have_slots(&mut self, op: &mut Op, w: &mut Write) -> Option<Flow> {
        for (part, result) in op.take() {
            match (w.items.get_mut(usize::from(part)), result) {
                (Some(item), Part::Slot(Ok(slot))) if slot < item.set.slots() => {
                    item.slot = Some(slot);
                    item.found = Found::Bound;
                }
                (Some(_), Part::Slot(Err(CacheError::Gone))) => {
                    // That node is not (or not yet) the primary.
                    w.stage = Stage::Locate;
                    w.relocations += 1;
                    if w.relocations > RELOCATIONS {
                        return Some(self.refuse(op, w, CacheError::Busy));
                    }
                    return Some(self.back_off(op));
                }
                (Some(_), Part::Slot(Err(e))) => return Some(self.refuse(op, w, e)),
                _ => return Some(self.refuse(op, w, CacheError::Busy)),
            }
        }
        w.turn = 0;
        w.stage = Stage::Take;
        None
    }

    /// Rule 7, for the next object.
    fn take_word(&mut self, op: &mut Op, w: &mut Write) -> Option<Flow> {
        if w.turn == w.items.len() {
            w.stage = Stage::Check;
            op.polls = 0;
            return None;
        }
        let grabbed = self.grabbed_by(w.items[w.turn].name, w.client);
        let kept = !grabbed && self.begin_kept(w.items[w.turn].name);
        let item = &mut w.items[w.turn];
        let Some(primary) = self.view.primary(item.name.shard()) else {
            return Some(self.refuse(op, w, CacheError::NoQuorum));
        };
        let Some(slot) = item.slot else {
            return Some(self.refuse(op, w, CacheError::Busy));
        };
        let [word, header] = Engine::read_word_and_header(item.name, item.set, slot);
        let at = item.word_at();
        (item.owned, item.kept) = (grabbed || kept, kept);
        let first = match item.guess {
            // Rule 9: it is this node's already.
            _ if item.owned => Verb::FetchAdd { at, add: Word::BEGIN },
            Some(g) => Verb::CompareSwap { at, expect: g.0, new: self.taken_from(g).0 },
            None => word,
        };
        if grabbed && let Some(o) = self.objects.get_mut(&item.name) {
            o.grab = None;
        }
        self.post(op, 0, primary, vec![first, header]);
        w.stage = Stage::Taking;
        Some(Flow::Waits)
    }

    /// What a CAS that takes a word makes of it.
    fn taken_from(&self, word: Word) -> Word {
        let me = self.config.node;
        match word.holder().filter(|_| self.steals(word)) {
            Some(h) => Word(word.0.wrapping_add(Word::drop_grab(h))).taken(me),
            None => word.taken(me),
        }
    }

    /// Never, but for [`Bug::StealKept`].
    fn steals(&self, word: Word) -> bool {
        let others = word.holder().is_some_and(|h| h != self.config.node);
        self.bug(Bug::StealKept) && others && !word.writing()
    }

    fn taking(&mut self, op: &mut Op, w: &mut Write) -> Option<Flow> {
        let outcomes = op.take_one();
        let item = &mut w.items[w.turn];
        let Some(word) = as_word(outcomes.first()) else {
            return Some(self.refuse(op, w, CacheError::Busy));
        };
        if item.owned {
            item.taken = Some(Word(word.0.wrapping_add(Word::BEGIN)));
        } else if item.guess == Some(word) {
            item.taken = Some(self.taken_from(word));
        } else {
            w.stage = Stage::Take;
            let name = item.name;
            item.guess = self.expected(name, word);
            if self.steals(word) {
                item.guess = Some(word);
            }
            if item.guess == Some(word) {
                return None;
            }
            if Header::decode(as_bytes(outcomes.get(1))).bound != item.name {
                // Another's by now, who may keep it for long.
                return Some(self.relocate(op, w));
            }
            // Polled by a CAS from what it will be: who waits is not overtaken between look and CAS.
            let pause = self.ask_writer(op, name, word);
            self.ask_back(op, &[(name, word)]);
            if self.now.saturating_sub(op.began) > PATIENCE {
                return Some(self.refuse(op, w, CacheError::Busy));
            }
            return Some(match pause {
                Some(pause) => self.sleep_until(op, self.now + pause),
                None => self.back_off(op),
            });
        }
        (op.polls, op.asked) = (0, Asked::default());
        let header = Header::decode(as_bytes(outcomes.get(1)));
        if header.bound != item.name {
            return Some(self.relocate(op, w));
        }
        let name = item.name;
        self.share_observed(item.key(), word.count(self.config.node));
        if let Some(o) = self.objects.get_mut(&name) {
            o.slot = item.slot;
            o.guess = None;
            if !item.kept {
                o.turn.take(self.now);
            }
        }
        let head = header.current(word);
        let exists = head.is_some_and(|h| h.name == name && !h.tombstone);
        item.before = head.map_or(0, |h| h.version);
        item.version = item.before + 1;
        if !exists && header.floor >= item.version {
            // Beyond what the name may have had elsewhere; the other half, as any next version.
            item.version = header.floor + 1;
            item.version += u64::from((item.version ^ item.before) & 1 == 0);
        }
        let version = if exists { Version(item.before) } else { Version::ABSENT };
        let fits = item.fits(version);
        if exists {
            // Whatever happens now, the slot is in use.
            item.found = Found::Known;
        }
        if !fits {
            return Some(self.refuse(op, w, CacheError::Conflict));
        }
        w.turn += 1;
        w.stage = Stage::Take;
        None
    }

    /// A slot turned out to be another's: gives everything back and looks again.
    fn relocate(&mut self, op: &mut Op, w: &mut Write) -> Flow {
        self.release_words(w);
        w.relocations += 1;
        if w.relocations > RELOCATIONS {
            return self.refuse(op, w, CacheError::Busy);
        }
        let item = &mut w.items[w.turn];
        if let Some(o) = self.objects.get_mut(&item.name) {
            o.slot = None;
            o.guess = None;
        }
        w.turn = 0;
        match (item.candidates.pop(), item.found) {
            // Another slot whose tag is the same.
            (Some(slot), Found::Window) => {
                item.slot = Some(slot);
                w.stage = Stage::Take;
            }
            // The window held only others: it is absent, and the primary may bind it.
            (None, Found::Window) => {
                item.slot = None;
                w.stage = Stage::Locating;
            }
            _ => w.stage = Stage::Locate,
        }
        for item in &mut w.items {
            item.guess = None;
        }
        self.back_off(op)
    }

    /// Whether `client` holds a grab of the object.
    pub(crate) fn grabbed_by(&self, name: Name, client: Option<ClientId>) -> bool {
        self.objects
            .get(&name)
            .and_then(|o| o.grab)
            .is_some_and(|g| Some(g.client) == client && self.now < g.until)
    }

    /// Rule 17. Words taken in shards whose words were made anew are gone; what was posted there
    /// has been rolled forward.
    pub(crate) fn resume_write(&mut self, op: &mut Op, w: &mut Write) -> bool {
        if w.posted() {
            for item in &mut w.items {
                item.settled |= self.was_affected(item.name.shard());
            }
            return true;
        }
        if w.stage == Stage::Queueing {
            return true;
        }
        // A word may have been taken by a chain whose outcome has not been looked at yet.
        if w.stage == Stage::Taking {
            let outcomes = op.take_one();
            let item = &mut w.items[w.turn];
            match as_word(outcomes.first()) {
                Some(word) if item.owned => {
                    item.taken = Some(Word(word.0.wrapping_add(Word::BEGIN)));
                }
                Some(word) if item.guess == Some(word) => item.taken = Some(self.taken_from(word)),
                _ => {}
            }
        }
        for item in &mut w.items {
            if self.was_affected(item.name.shard()) {
                item.taken = None;
                item.kept = false;
                if let Some(o) = self.objects.get_mut(&item.name) {
                    o.turn.writes = false;
                }
            }
        }
        self.release_words(w);
        if let Some(index) = w.record.take() {
            self.free_record(index);
        }
        self.redo_waiting.retain(|id| *id != op.id);
        self.start_over(op);
        w.turn = w.items.len();
        w.stage = Stage::Locate;
        true
    }
}
