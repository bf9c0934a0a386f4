//! Writing: puts, kept puts, removals and transactions (rules 7–12, 17, 19–21).

use crate::bugs::Bug;
use crate::cluster::Cluster;
use crate::history::{Call, Told};
use crate::state::{
    Copier, Entry, Half, Item, OBJECTS, Op, Record, Stage, State, Verb, Write, Wrong, full, version,
};
use clustix_ccache::view::Slots;
use clustix_ccache::word::Word;

/// The objects that a write is about, in the order of their names.
fn objects(w: &Write) -> impl Iterator<Item = u8> + use<> {
    let items = w.items;
    (0..OBJECTS as u8).filter(move |o| items[usize::from(*o)].is_some())
}

/// What an item's end takes away: exactly what was observed.
fn observed(item: &Item) -> u64 {
    item.taken.map_or(0, Word::counts)
}

impl Cluster {
    /// A program asks for a write of `value` to these objects.
    pub fn begin_write(&self, s: &mut State, node: u8, call: Call, value: u8, keep: bool) -> bool {
        let item = Some(Item {
            taken: None,
            owned: false,
            half: Half { version: 0, value },
            settled: false,
        });
        let mut items = [None; OBJECTS];
        let mut read = None;
        match call {
            Call::Put(o, _) => items[usize::from(o)] = item,
            Call::Both(_) => items = [item; OBJECTS],
            // What the program read before, by a hit: it copies that, if it is still so.
            Call::Copy => {
                let Some(copy) = s.node(node).copy[0].filter(|_| s.node(node).lease) else {
                    return false;
                };
                read = Some(copy.half);
                items[1] = item;
            }
            Call::Get(_) => return false,
        }
        s.invoke(node, call);
        let w = Write { stage: Stage::Start, items, keep, read, again: None };
        s.node_mut(node).op = Op::Write(w);
        self.start_write(s, node, w);
        true
    }

    fn start_write(&self, s: &mut State, node: u8, w: Write) {
        let first = objects(&w).next().unwrap_or(0);
        let alone = objects(&w).count() == 1 && w.read.is_none();
        match s.node(node).kept[usize::from(first)] {
            Some(version) if alone => self.post_kept(s, node, w, first, version),
            _ => self.take(s, node, w, first),
        }
    }

    /// Rule 7 (9 for what is kept), for one object.
    fn take(&self, s: &mut State, node: u8, mut w: Write, o: u8) {
        w.stage = Stage::Taking(o);
        let owned = s.node(node).kept[usize::from(o)].is_some();
        if let Some(item) = &mut w.items[usize::from(o)] {
            item.owned = owned;
        }
        s.node_mut(node).op = Op::Write(w);
        let verb = if owned { Verb::Begin(o) } else { Verb::Take(o) };
        s.post(node, s.primary(node, o), verb);
    }

    /// Rule 9.
    fn post_kept(&self, s: &mut State, node: u8, mut w: Write, o: u8, version: u8) {
        if !self.serves(s, node) {
            return self.gives_up(s, node, w);
        }
        w.stage = Stage::KeptPosted;
        if let Some(item) = &mut w.items[usize::from(o)] {
            item.owned = true;
            item.half.version = version + 1;
        }
        s.node_mut(node).op = Op::Write(w);
        let primary = s.primary(node, o);
        // Without the begin, the word is looked at all the same.
        let begin = !self.has(Bug::NoBegin);
        s.post(node, primary, if begin { Verb::Begin(o) } else { Verb::Look(o) });
        self.post_halves(s, node, &w);
    }

    fn post_halves(&self, s: &mut State, node: u8, w: &Write) {
        for o in objects(w) {
            let Some(item) = w.items[usize::from(o)].filter(|i| !i.settled) else { continue };
            self.post_half(s, node, s.view_of(node).all(), o, item.half);
        }
    }

    fn post_bumps(&self, s: &mut State, node: u8, w: &Write) {
        for o in objects(w) {
            let word = w.items[usize::from(o)].and_then(|i| i.taken).unwrap_or_default();
            let live = s.view_of(node).members.without(node);
            for peer in self.counts().sharers(word).intersection(live).iter() {
                s.post(node, peer, Verb::Bump(o));
            }
        }
    }

    /// A write's next step.
    pub fn step_write(&self, s: &mut State, node: u8, mut w: Write) -> bool {
        // Early: one is missing, whichever.
        let may_lack = usize::from(self.has(Bug::EarlyAcknowledgement) && w.stage == Stage::Posted);
        let may_lack = may_lack.max(if self.ends_early(&w) { usize::MAX } else { 0 });
        if w.stage != Stage::Start && s.waited(node) > may_lack {
            return false;
        }
        match w.stage {
            Stage::Start => self.start_write(s, node, w),
            Stage::Taking(o) => {
                let Some(item) = &mut w.items[usize::from(o)] else { return false };
                // None: its target is shut out.
                let Some(taken) = item.taken else { return false };
                item.half.version = version(taken) + 1;
                match objects(&w).find(|next| *next > o) {
                    Some(next) => self.take(s, node, w, next),
                    None if w.read.is_some() && !self.has(Bug::ReadsUnchecked) => {
                        w.stage = Stage::Checking;
                        s.node_mut(node).op = Op::Write(w);
                        s.post(node, s.primary(node, 0), Verb::Look(0));
                    }
                    None => self.post_write(s, node, w),
                }
            }
            Stage::Checking => {
                let Some(word) = w.again else { return false };
                // Rule 29; else it is a conflict, and the caller may ask again.
                if word.writing() || w.read.is_none_or(|h| h.version != version(word)) {
                    self.gives_up(s, node, w);
                } else {
                    self.post_write(s, node, w);
                }
            }
            Stage::KeptPosted => {
                if let (true, Some(word)) = (self.has(Bug::NoBegin), w.again) {
                    let item = w.items.iter_mut().flatten().next();
                    if let Some(item) = item {
                        item.taken = Some(Word(word.0 + Word::BEGIN));
                    }
                }
                if w.items.iter().flatten().all(|i| i.taken.is_none() && !i.settled) {
                    return false;
                }
                w.stage = Stage::Posted;
                s.node_mut(node).op = Op::Write(w);
                if w.items.iter().flatten().all(|i| !i.settled) {
                    self.post_bumps(s, node, &w);
                }
                if s.is_answered(node) && matches!(s.node(node).op, Op::Write(_)) {
                    return self.step_write(s, node, w);
                }
            }
            Stage::Posted => {
                if !self.serves(s, node) {
                    return false;
                }
                if objects(&w).count() == 1 {
                    self.finish(s, node, w);
                } else {
                    self.commit(s, node, &w);
                    w.stage = Stage::Applied;
                    s.node_mut(node).op = Op::Write(w);
                    if !self.has(Bug::HalvesBeforeRecord) {
                        self.post_halves(s, node, &w);
                    }
                }
            }
            Stage::Applied => self.finish(s, node, w),
        }
        true
    }

    /// Rule 21 broken: the ends go out when the halves are posted.
    fn ends_early(&self, w: &Write) -> bool {
        self.has(Bug::EndsBeforeApplies) && w.stage == Stage::Applied
    }

    /// Rules 8 and 20.
    fn post_write(&self, s: &mut State, node: u8, mut w: Write) {
        if !self.serves(s, node) {
            return self.gives_up(s, node, w);
        }
        if let (Some(read), Some(item)) = (w.read, &mut w.items[1]) {
            item.half.value = read.value;
        }
        w.stage = Stage::Posted;
        s.node_mut(node).op = Op::Write(w);
        if objects(&w).count() == 1 {
            self.post_halves(s, node, &w);
        } else {
            let halves = w.items.map(|i| i.map_or(Half::default(), |i| i.half));
            let mut to = s.view_of(node).all();
            if self.has(Bug::NoRecord) {
                to = Slots::NONE;
            } else if self.has(Bug::OneRecord) {
                to = Slots::one(s.primary(node, 0));
            }
            if self.has(Bug::HalvesBeforeRecord) {
                self.post_halves(s, node, &w);
            }
            for peer in to.iter() {
                s.post(node, peer, Verb::Record(node, Record { halves }));
            }
            // Nobody here may hit one object's old and another's new version.
            s.node_mut(node).copy = [None; OBJECTS];
        }
        self.post_bumps(s, node, &w);
    }

    /// Rule 10: from here on it has happened.
    fn commit(&self, s: &mut State, node: u8, w: &Write) {
        for o in objects(w) {
            let Some(item) = w.items[usize::from(o)] else { continue };
            let by = &mut s.committed[usize::from(o)][usize::from(item.half.version)];
            if *by != 0 && *by != node + 1 {
                s.fails(Wrong::TwoCommits);
            } else {
                *by = node + 1;
            }
        }
    }

    /// Publish, acknowledge, end (rule 11).
    fn finish(&self, s: &mut State, node: u8, w: Write) {
        self.commit(s, node, &w);
        for o in objects(&w) {
            let i = usize::from(o);
            let Some(item) = w.items[i] else { continue };
            let tombstone = item.half.value == 0;
            let keep = w.keep && !item.settled && !tombstone;
            s.acked[i] = item.half.version.max(s.acked[i]);
            s.seen[i] = s.acked[i].max(s.seen[i]);
            let primary = s.primary(node, o);
            let n = s.node_mut(node);
            n.copy[i] =
                (!item.settled && !tombstone).then_some(Entry { half: item.half, kept: keep });
            if item.settled {
                continue;
            }
            n.kept[i] = keep.then_some(item.half.version);
            n.ub[i] = u8::from(!keep);
            let seen = observed(&item);
            let mut end = match keep {
                true => Word::end_kept(seen, 1),
                false => self.counts().end(node, seen, 1),
            };
            if self.has(Bug::NoBegin) && item.owned {
                end = end.wrapping_add(Word::BEGIN);
            }
            s.post(node, primary, Verb::Add(o, end, seen as u32));
        }
        s.told(node, Told::Done);
        s.node_mut(node).op = Op::Idle;
    }

    /// Words go back as they were, and the program is told "not done" (which needs no place in its
    /// history: it has done nothing, or it may try again).
    fn gives_up(&self, s: &mut State, node: u8, w: Write) {
        self.release(s, node, &w);
        s.node_mut(node).op = Op::Over;
    }

    fn release(&self, s: &mut State, node: u8, w: &Write) {
        for o in objects(w) {
            let Some(item) = w.items[usize::from(o)].filter(|i| i.taken.is_some()) else {
                continue;
            };
            let add = if item.owned { Word::DROP_BEGIN } else { Word::drop_taken(node) };
            s.post(node, s.primary(node, o), Verb::Add(o, add, 0));
        }
    }

    /// Rule 17: posted writes go on, and leave alone what recovery has brought to its end; others
    /// start again.
    pub fn resume_write(&self, s: &mut State, node: u8, mut w: Write, affected: [bool; OBJECTS]) {
        if w.is_posted() && !self.has(Bug::PostedRunAgain) {
            for o in objects(&w) {
                if let Some(item) = &mut w.items[usize::from(o)] {
                    item.settled |= affected[usize::from(o)];
                }
            }
        } else {
            for o in objects(&w) {
                if let Some(item) = &mut w.items[usize::from(o)]
                    && affected[usize::from(o)]
                {
                    item.taken = None;
                }
            }
            self.release(s, node, &w);
            for item in w.items.iter_mut().flatten() {
                (item.taken, item.owned) = (None, false);
            }
            w.again = None;
            w.stage = Stage::Start;
        }
        s.node_mut(node).op = Op::Write(w);
    }

    /// Rule 12, if another node wants the word and this one has not begun to write.
    pub fn give_back(&self, s: &mut State, node: u8, o: u8) -> bool {
        let i = usize::from(o);
        if !self.may_give_back(s, node, o) {
            return false;
        }
        let primary = s.primary(node, o);
        let n = s.node_mut(node);
        n.kept[i] = None;
        let room = n.ub[i] < 3;
        let late = self.has(Bug::PublishedAfterGiveBack);
        n.copy[i] = n.copy[i].filter(|_| room).map(|c| Entry { kept: late, ..c });
        n.ub[i] += u8::from(room);
        let add = if room { self.counts().give_back(node) } else { Word::drop_grab(node) };
        s.post(node, primary, Verb::Add(o, add, 0));
        true
    }

    /// Whether a node has reason to give a word back, and may.
    pub fn may_give_back(&self, s: &State, node: u8, o: u8) -> bool {
        let n = s.node(node);
        let begun = match n.op {
            Op::Write(w) => w.items[usize::from(o)].is_some_and(|i| i.owned),
            Op::Stuck => true,
            _ => false,
        };
        n.up && n.kept[usize::from(o)].is_some() && !begun && self.wants(s, node, o)
    }

    /// Whether anybody asks `node` for an object's word.
    fn wants(&self, s: &State, node: u8, o: u8) -> bool {
        let primary = s.primary(node, o);
        if s.node(primary).copier == Copier::Next(o) {
            return true;
        }
        let wanted = |f: &crate::state::Flight| f.verb == Verb::Take(o) && f.dst == primary;
        s.net.iter().any(|f| wanted(f) && f.src != node)
    }

    /// The full version of what a word is made to say.
    pub fn idle_word(version: u8) -> Word {
        Word::idle(full(version))
    }
}
