//! What a survivor does while all are frozen: replays the redo records in its memory (rule 22),
//! makes new words for the shards that it has become primary of (16), resolves what the dead held
//! in shards that it was primary of before (15).

use super::get::{as_bytes, as_word};
use super::op::{Flow, Op, Part};
use super::{Bug, Engine, redo};
use crate::fabric::{Address, Verb};
use crate::half::{self, HEAD, Head, Header};
use crate::layout::{self, RegionId, SetLayout, control, header};
use crate::name::{Name, SHARDS, Shard};
use crate::view::{MAX_NODES, Slots};
use crate::word::Word;
use std::collections::VecDeque;
use std::sync::Arc;

/// Slots whose headers are compared at once.
const BATCH: u32 = 32;

/// A slot of some shard.
#[derive(Clone, Copy)]
struct Place {
    set: &'static SetLayout,
    shard: Shard,
    slot: u32,
}

impl Place {
    fn header(&self) -> Address {
        Address { region: self.set.region(), offset: self.set.header(self.shard, self.slot) }
    }
}

/// Making one slot's copies equal: the highest half that is whole goes everywhere.
struct Repair {
    place: Place,
    /// Whose word it is to resolve afterwards, with W set (rule 15); else its word is made anew.
    held: Option<Word>,
    /// Heads seen, the highest last, with the node that has them.
    found: Vec<(Head, u8)>,
    /// What was chosen; `None`: the slot was never written.
    chosen: Option<Head>,
    stage: RepairStage,
}

enum RepairStage {
    Take,
    Taking,
    Look,
    Looking,
    Try,
    Trying(Head),
    Writing,
    Finish,
    Finishing(Word),
}

/// A stretch of slots of one set in one shard.
struct Stretch {
    set: &'static SetLayout,
    shard: Shard,
    next: u32,
    mark: u32,
}

/// How far the replay of a record is.
enum ReplayStage {
    Look,
    Copy,
    Apply,
}

enum Work {
    Gather,
    Replay { left: VecDeque<redo::Record>, stage: ReplayStage },
    Survey,
    Takeover { stretches: VecDeque<Stretch>, headers: Vec<(u8, Vec<u8>)>, posted: bool },
    Held,
}

/// The recovery's work in one step of a change of view.
pub(crate) struct Recovery {
    work: Work,
    repairs: VecDeque<Repair>,
    /// Takeover's words to write, slot by slot, when the repairs of the batch are done.
    finished: Vec<(Place, Option<Head>)>,
}

impl Recovery {
    pub(crate) fn replay() -> Recovery {
        Recovery { work: Work::Gather, repairs: VecDeque::new(), finished: Vec::new() }
    }
    pub(crate) fn resolve() -> Recovery {
        Recovery { work: Work::Survey, repairs: VecDeque::new(), finished: Vec::new() }
    }
}

impl Engine {
    pub(crate) fn step_recovery(&mut self, op: &mut Op, r: &mut Recovery) -> Flow {
        loop {
            if op.failed {
                // A member is unreachable: the next view will say so and start over.
                return Flow::Waits;
            }
            if let Some(mut repair) = r.repairs.pop_front() {
                match self.repair(op, &mut repair) {
                    Flow::Waits => {
                        r.repairs.push_front(repair);
                        return Flow::Waits;
                    }
                    Flow::Done => {
                        if repair.held.is_none() {
                            r.finished.push((repair.place, repair.chosen));
                        }
                        continue;
                    }
                }
            }
            match &mut r.work {
                Work::Gather => {
                    let left = self.gather_records();
                    r.work = Work::Replay { left, stage: ReplayStage::Look };
                }
                Work::Replay { left, stage } => {
                    if self.replay(op, left, stage) == Flow::Waits {
                        return Flow::Waits;
                    }
                    break;
                }
                Work::Survey => {
                    let stretches = self.survey();
                    r.work = Work::Takeover { stretches, headers: Vec::new(), posted: false };
                }
                Work::Takeover { .. } => match self.takeover(op, r) {
                    Some(Flow::Waits) => return Flow::Waits,
                    Some(Flow::Done) => {
                        r.repairs = self.held_by_the_gone();
                        r.work = Work::Held;
                    }
                    None => {}
                },
                Work::Held => break,
            }
        }
        self.work_done(op.id);
        Flow::Done
    }

    fn others(&self, shard: Shard) -> Slots {
        self.view.replicas(shard).complete().without(self.config.node)
    }

    /// Whole records in this node's memory whose objects nobody else will bring to an end: those in
    /// shards whose words are made anew, whoever wrote them, and those of the gone.
    fn gather_records(&mut self) -> VecDeque<redo::Record> {
        let mut out = VecDeque::new();
        if self.gone().is_empty() && !self.any_affected() {
            return out;
        }
        let region = self.arena.region(RegionId::Control);
        for writer in 0..MAX_NODES as u8 {
            for index in 0..control::REDO_RECORDS {
                let at = control::redo(writer, index) as usize;
                let mut fixed = [0; 24];
                if !region.read(at, &mut fixed) {
                    continue;
                }
                let Some(len) = redo::length(&fixed) else { continue };
                let mut bytes = vec![0; len];
                if !region.read(at, &mut bytes) {
                    continue;
                }
                if !redo::is_whole(&bytes) && !self.bug(Bug::RecordUnchecked) {
                    continue;
                }
                let mut entries = redo::entries(&bytes).unwrap_or_default();
                let Some(first) = entries.first().map(|e| e.head.name) else { continue };
                entries.retain(|e| {
                    let shard = e.head.name.shard();
                    let known = layout::set(e.head.name.set())
                        .is_some_and(|l| e.slot < l.slots() && shard.0 < SHARDS);
                    known && (self.is_affected(shard) || self.gone().contains(writer))
                });
                if !entries.is_empty() {
                    out.push_back(redo::Record { bytes: Arc::new(bytes), first, entries });
                }
            }
        }
        out
    }

    /// Rule 22, for one record after the other. A record whose writer died may stand here alone:
    /// before any of its objects is touched it is put on all replicas of the first one, as a record
    /// of this node's. Else this node could die with one object rolled forward, and nobody left
    /// would know of the others.
    fn replay(
        &mut self,
        op: &mut Op,
        left: &mut VecDeque<redo::Record>,
        stage: &mut ReplayStage,
    ) -> Flow {
        while let Some(record) = left.front_mut() {
            match stage {
                ReplayStage::Look => {
                    op.take();
                    for (i, e) in record.entries.iter().enumerate() {
                        let Some(set) = layout::set(e.head.name.set()) else { continue };
                        let [_, header] = Engine::read_word_and_header(e.head.name, set, e.slot);
                        for peer in self.view.replicas(e.head.name.shard()).complete().iter() {
                            self.post(op, i as u16, peer, vec![header.clone()]);
                        }
                    }
                    *stage = ReplayStage::Copy;
                }
                ReplayStage::Copy => {
                    let mut seen = vec![(0, true); record.entries.len()];
                    for (i, part) in op.take() {
                        let (Some(e), Part::Verbs(outcomes)) =
                            (record.entries.get(usize::from(i)), part)
                        else {
                            continue;
                        };
                        let found = Header::decode(as_bytes(outcomes.first())).highest();
                        let (highest, whole) = &mut seen[usize::from(i)];
                        *highest = found.map_or(0, |h| h.version).max(*highest);
                        *whole &= found.is_some_and(|h| h.version >= e.head.version);
                    }
                    let mut seen = seen.into_iter();
                    let any = self.bug(Bug::ReplayWithoutVersions);
                    record.entries.retain(|e| {
                        let (highest, whole) = seen.next().unwrap_or((0, false));
                        // At the same version a copy may lack it that was cut off in the middle.
                        any || e.head.version > highest || (e.head.version == highest && !whole)
                    });
                    if record.entries.is_empty() {
                        left.pop_front();
                        *stage = ReplayStage::Look;
                        continue;
                    }
                    let offset = control::redo(self.config.node, control::REPLAYED);
                    let at = Address { region: RegionId::Control, offset };
                    let len = record.bytes.len() as u32;
                    let mut all = self.view.replicas(record.first.shard()).all();
                    if self.bug(Bug::ReplayFromOneRecord) {
                        all = Slots::NONE;
                    }
                    for peer in all.iter() {
                        let data = record.bytes.clone();
                        let verb = Verb::Write { at, data, from: 0, len };
                        self.post(op, u16::from(peer), peer, vec![verb]);
                    }
                    *stage = ReplayStage::Apply;
                }
                ReplayStage::Apply => {
                    for e in &record.entries {
                        let (name, version) = (e.head.name, e.head.version);
                        let Some(set) = layout::set(name.set()) else { continue };
                        let buffer = half::buffer(&e.head, &e.data);
                        for peer in self.view.replicas(name.shard()).all().iter() {
                            let chain =
                                Engine::write_half(set, name.shard(), e.slot, version, &buffer);
                            self.post(op, u16::from(peer), peer, chain);
                        }
                    }
                    left.pop_front();
                    *stage = ReplayStage::Look;
                }
            }
            if op.pending > 0 {
                return Flow::Waits;
            }
        }
        Flow::Done
    }

    /// The slots in use of the shards that this node has become primary of.
    fn survey(&mut self) -> VecDeque<Stretch> {
        let mut out = VecDeque::new();
        for shard in (0..SHARDS).map(Shard) {
            if self.view.primary(shard) != Some(self.config.node) || !self.is_affected(shard) {
                continue;
            }
            for set in layout::sets() {
                let mark = self.own_mark(set, shard);
                let slots = self.primary.slots.entry((shard.0, set.set.id)).or_default();
                slots.mark = mark;
                slots.used = mark;
                if mark > 0 {
                    out.push_back(Stretch { set, shard, next: 0, mark });
                }
            }
        }
        out
    }

    pub(crate) fn own_mark(&self, set: &SetLayout, shard: Shard) -> u32 {
        let mark = self.arena.word(set.region(), set.mark(shard));
        let mark = mark.load(std::sync::atomic::Ordering::Acquire);
        u32::try_from(mark).unwrap_or(0).min(set.slots())
    }

    /// Rule 16. `None`: go on with the repairs.
    fn takeover(&mut self, op: &mut Op, r: &mut Recovery) -> Option<Flow> {
        let Work::Takeover { stretches, headers, posted } = &mut r.work else {
            return Some(Flow::Done);
        };
        let me = self.config.node;
        if !r.finished.is_empty() {
            // The batch before: every slot of it stands equal on all replicas.
            let done = std::mem::take(&mut r.finished);
            let mut chain = Vec::with_capacity(done.len());
            for (place, head) in &done {
                self.take_slot(*place, *head);
                let word = Word::idle(head.map_or(0, |h| h.version)).0;
                chain.push(Verb::WriteWord { at: place.header(), word });
            }
            self.post(op, u16::MAX, me, chain);
            return Some(Flow::Waits);
        }
        let Some(stretch) = stretches.front_mut() else { return Some(Flow::Done) };
        let count = BATCH.min(stretch.mark - stretch.next);
        if count == 0 {
            stretches.pop_front();
            return None;
        }
        let (set, shard, first) = (stretch.set, stretch.shard, stretch.next);
        if !*posted {
            *posted = true;
            op.take();
            let offset = set.header(shard, first);
            let at = Address { region: set.region(), offset };
            let read = Verb::Read { at, len: count * header::LEN as u32 };
            // Its own as well, by the same way, so that all are compared alike.
            for peer in self.view.replicas(shard).complete().iter() {
                self.post(op, u16::from(peer), peer, vec![read.clone()]);
            }
            return Some(Flow::Waits);
        }
        *posted = false;
        headers.clear();
        for (peer, part) in op.take() {
            if let Part::Verbs(outcomes) = part {
                headers.push((peer as u8, as_bytes(outcomes.first()).to_vec()));
            }
        }
        stretch.next += count;
        for i in 0..count {
            let at = (u64::from(i) * header::LEN) as usize;
            let of = |bytes: &Vec<u8>| Header::decode(bytes.get(at..).unwrap_or(&[]));
            let place = Place { set, shard, slot: first + i };
            let seen: Vec<(u8, Header)> = headers.iter().map(|(p, b)| (*p, of(b))).collect();
            let repair = Repair::compare(place, None, &seen);
            match repair {
                Some(repair) => r.repairs.push_back(repair),
                None => {
                    let head = seen.first().and_then(|(_, h)| h.highest());
                    r.finished.push((place, head));
                }
            }
        }
        None
    }

    /// Enters a slot in the tables of its new primary.
    fn take_slot(&mut self, place: Place, head: Option<Head>) {
        let Place { set, shard, slot } = place;
        let at = set.header(shard, slot) + header::NAME;
        for i in 0..2 {
            let word = self.arena.word(set.region(), at + 8 * i);
            if word.load(std::sync::atomic::Ordering::Relaxed) != 0 {
                word.store(0, std::sync::atomic::Ordering::Release);
            }
        }
        let born =
            head.filter(|h| !h.tombstone && h.name.set() == set.set.id && h.name.shard() == shard);
        match born {
            Some(h) if self.primary.slot(h.name).is_none() => {
                if !self.bind(h.name, set, slot, 0) {
                    self.primary.index_only(h.name, slot);
                }
            }
            _ => {
                let slots = self.primary.slots.entry((shard.0, set.set.id)).or_default();
                slots.free.push(slot);
            }
        }
        if let Some(h) = head {
            let slots = self.primary.slots.entry((shard.0, set.set.id)).or_default();
            slots.floor = slots.floor.max(h.version);
        }
    }

    /// Rule 15: slots that the gone hold in shards that were this node's before.
    fn held_by_the_gone(&mut self) -> VecDeque<Repair> {
        let gone = self.gone();
        let mut out = VecDeque::new();
        if gone.is_empty() {
            return out;
        }
        for shard in (0..SHARDS).map(Shard) {
            if self.view.primary(shard) != Some(self.config.node) || self.is_affected(shard) {
                continue;
            }
            for set in layout::sets() {
                for slot in 0..self.own_mark(set, shard) {
                    let at = set.header(shard, slot);
                    let word = self.arena.word(set.region(), at);
                    let word = Word(word.load(std::sync::atomic::Ordering::Acquire));
                    if word.holder().is_some_and(|h| gone.contains(h)) {
                        let place = Place { set, shard, slot };
                        out.push_back(Repair {
                            place,
                            held: Some(word),
                            found: Vec::new(),
                            chosen: None,
                            stage: RepairStage::Take,
                        });
                    }
                }
            }
        }
        out
    }

    fn repair(&mut self, op: &mut Op, f: &mut Repair) -> Flow {
        let me = self.config.node;
        let (set, shard, slot) = (f.place.set, f.place.shard, f.place.slot);
        loop {
            match f.stage {
                RepairStage::Take => {
                    let word = f.held.unwrap_or_default();
                    if word.writing() {
                        f.stage = RepairStage::Look;
                        continue;
                    }
                    // Even if idle: a late begin of the gone must not pass for one of the living.
                    let new = word.0 + Word::BEGIN;
                    let at = f.place.header();
                    self.post(op, 0, me, vec![Verb::CompareSwap { at, expect: word.0, new }]);
                    f.stage = RepairStage::Taking;
                    return Flow::Waits;
                }
                RepairStage::Taking => {
                    let outcomes = op.take_one();
                    let seen = as_word(outcomes.first()).unwrap_or_default();
                    f.stage = RepairStage::Look;
                    if Some(seen) == f.held {
                        f.held = Some(Word(seen.0 + Word::BEGIN));
                    } else {
                        f.held = Some(seen);
                        f.stage = RepairStage::Take;
                    }
                }
                RepairStage::Look => {
                    op.take();
                    let at = f.place.header();
                    let read = Verb::Read { at, len: header::LEN as u32 };
                    for peer in self.others(shard).with(me).iter() {
                        self.post(op, u16::from(peer), peer, vec![read.clone()]);
                    }
                    f.stage = RepairStage::Looking;
                    return Flow::Waits;
                }
                RepairStage::Looking => {
                    let mut seen = Vec::new();
                    for (peer, part) in op.take() {
                        if let Part::Verbs(o) = part {
                            seen.push((peer as u8, Header::decode(as_bytes(o.first()))));
                        }
                    }
                    match Repair::compare(f.place, f.held, &seen) {
                        Some(repair) => *f = repair,
                        None => {
                            f.chosen = seen.first().and_then(|(_, h)| h.highest());
                            f.stage = RepairStage::Finish;
                        }
                    }
                }
                RepairStage::Try => {
                    op.take();
                    let Some((head, peer)) = f.found.pop() else {
                        f.stage = RepairStage::Finish;
                        continue;
                    };
                    f.stage = RepairStage::Trying(head);
                    let offset = set.payload(shard, slot, head.version);
                    let at = Address { region: set.region(), offset };
                    let len = head.len.next_multiple_of(8).min(set.stride as u32);
                    self.post(op, 0, peer, vec![Verb::Read { at, len }]);
                    return Flow::Waits;
                }
                RepairStage::Trying(head) => {
                    let outcomes = op.take_one();
                    let bytes = as_bytes(outcomes.first());
                    let data = bytes.get(..head.len as usize).unwrap_or(&[]);
                    if !head.matches(data) {
                        f.stage = RepairStage::Try;
                        continue;
                    }
                    f.chosen = Some(head);
                    let buffer = half::buffer(&head, data);
                    debug_assert!(buffer.len() >= HEAD);
                    for peer in self.view.replicas(shard).all().iter() {
                        let chain = Engine::write_half(set, shard, slot, head.version, &buffer);
                        self.post(op, u16::from(peer), peer, chain);
                    }
                    f.stage = RepairStage::Writing;
                    return Flow::Waits;
                }
                RepairStage::Writing => {
                    op.take();
                    f.stage = RepairStage::Finish;
                }
                RepairStage::Finish => {
                    let Some(word) = f.held else { return Flow::Done };
                    // What is served from now on may be new: the listed sharers hear of it.
                    let name = f.chosen.map_or(Name(0), |h| h.name);
                    let offset = control::counter(layout::hash(name));
                    let at = Address { region: RegionId::Control, offset };
                    let live = self.view.slots();
                    for peer in word.sharers().intersection(live).iter() {
                        self.post(op, u16::from(peer), peer, vec![Verb::FetchAdd { at, add: 1 }]);
                    }
                    f.stage = RepairStage::Finishing(word);
                    if op.pending > 0 {
                        return Flow::Waits;
                    }
                }
                RepairStage::Finishing(word) => {
                    let results = op.take();
                    let last = match results.last() {
                        Some((u16::MAX, Part::Verbs(o))) => as_word(o.first()),
                        _ => None,
                    };
                    if last == Some(word) {
                        if let Some(h) = f.chosen.filter(|h| h.tombstone) {
                            self.free_later.push((h.name, slot));
                        }
                        return Flow::Done;
                    }
                    // Counts may have gone up meanwhile; nothing else can have changed.
                    let expect = last.unwrap_or(word);
                    let version = f.chosen.map_or(word.version_low(), |h| h.version);
                    let new = Word::idle(version).0 | expect.counts();
                    let at = f.place.header();
                    let swap = Verb::CompareSwap { at, expect: expect.0, new };
                    self.post(op, u16::MAX, me, vec![swap]);
                    f.stage = RepairStage::Finishing(expect);
                    return Flow::Waits;
                }
            }
        }
    }
}

impl Repair {
    /// What is to be done for a slot whose headers on the complete replicas are these; `None`: all
    /// agree on the highest version.
    fn compare(place: Place, held: Option<Word>, seen: &[(u8, Header)]) -> Option<Repair> {
        let highest = seen.iter().filter_map(|(_, h)| h.highest()).max_by_key(|h| h.version);
        if seen.iter().all(|(_, h)| h.highest() == highest) {
            return None;
        }
        let mut found: Vec<(Head, u8)> = seen
            .iter()
            .flat_map(|(peer, h)| h.heads.iter().flatten().map(|head| (*head, *peer)))
            .collect();
        found.sort_by_key(|(h, _)| h.version);
        Some(Repair { place, held, found, chosen: None, stage: RepairStage::Try })
    }
}
