//! Reading an object: rules 1–6.

use super::op::{Flow, Op};
use super::{Bug, Engine, SlotKey};
use crate::arena::published::{self, Fact, Payload};
use crate::cache::{CacheError, Version};
use crate::fabric::{Address, Outcome, Verb};
use crate::half::{Head, Header};
use crate::layout::{self, RegionId, SetLayout, control, header};
use crate::name::Name;
use crate::request::Reply;
use crate::word::Word;

/// Payload capacity up to which both halves are read along with the word.
const READ_BOTH: u32 = 4096;
/// How long a read polls an object that is being written, ns, before it says "busy".
pub(crate) const PATIENCE: u64 = 10_000_000_000;
/// How often a name is looked up again when its slot turns out to be another's.
const RELOCATIONS: u32 = 64;

enum Stage {
    Queued,
    Start,
    Locating,
    Post,
    Reading,
    Payload,
}

/// A read under way.
pub(crate) struct Get {
    name: Name,
    set: &'static SetLayout,
    stage: Stage,
    candidates: Vec<u32>,
    slot: u32,
    /// Whether `slot` is remembered, not looked up.
    remembered: bool,
    relocations: u32,
    c0: u64,
    epoch: u64,
    added: bool,
    /// Registered in an attempt before: polls only READ.
    registered: bool,
    own_count: u8,
    head: Option<Head>,
    /// Low bits of the version that the first look at the slot showed.
    first: Option<u64>,
    /// What is being read has a next write in progress.
    passing: bool,
}

impl Get {
    pub(crate) fn new(name: Name, set: &'static SetLayout) -> Get {
        Get {
            name,
            set,
            stage: Stage::Queued,
            candidates: Vec::new(),
            slot: 0,
            remembered: false,
            relocations: 0,
            c0: 0,
            epoch: 0,
            added: false,
            registered: false,
            own_count: 0,
            head: None,
            first: None,
            passing: false,
        }
    }
    fn key(&self) -> SlotKey {
        SlotKey::of(self.name, self.slot)
    }
    fn at(&self, offset: u64) -> Address {
        Address { region: self.set.region(), offset }
    }
}

/// The slots whose tag in the directory windows read is the name's, and whether deeper levels are
/// in use: then those must be read too, before anything is concluded.
pub(crate) fn candidates(name: Name, set: &SetLayout, outcomes: &[Outcome]) -> (Vec<u32>, bool) {
    let tag = (layout::hash(name) >> 32) as u32;
    let mut found = Vec::new();
    let mut deeper = false;
    for outcome in outcomes {
        let bytes = as_bytes(Some(outcome));
        if bytes.len() == 8 {
            deeper |= bytes != [0; 8];
            continue;
        }
        found.extend(bytes.chunks_exact(8).filter_map(|w| {
            let w = u64::from_le_bytes(w.try_into().ok()?);
            let slot = (w as u32).checked_sub(1)?;
            ((w >> 32) as u32 == tag && slot < set.slots()).then_some(slot)
        }));
    }
    (found, deeper)
}

/// The first outcome as a word, whether read or fetched.
pub(crate) fn as_word(outcome: Option<&Outcome>) -> Option<Word> {
    match outcome? {
        Outcome::Word(w) => Some(Word(*w)),
        Outcome::Bytes(b) => Some(Word(u64::from_le_bytes(b.get(..8)?.try_into().ok()?))),
        Outcome::Done => None,
    }
}

/// An outcome's bytes.
pub(crate) fn as_bytes(outcome: Option<&Outcome>) -> &[u8] {
    match outcome {
        Some(Outcome::Bytes(b)) => b,
        _ => &[],
    }
}

impl Engine {
    /// The READs of a name's window in the directory's first level and of the word that says
    /// whether there is more; or of the windows in all deeper levels.
    pub(crate) fn read_windows(name: Name, set: &SetLayout, deep: bool) -> Vec<Verb> {
        let len = (layout::DIRECTORY_WINDOW * layout::DIRECTORY_WAYS * 8) as u32;
        let read = |offset, len| Verb::Read { at: Address { region: set.region(), offset }, len };
        let window = |level| read(set.directory(name.shard(), layout::hash(name), level), len);
        if deep {
            return (1..set.levels()).map(window).collect();
        }
        let mut chain = vec![window(0)];
        if set.levels() > 1 {
            // After the window: an entry that stood deeper before that was read is not missed.
            chain.push(read(set.levels_in_use(name.shard()), 8));
        }
        chain
    }

    /// The READ of a slot's word, then of its header.
    pub(crate) fn read_word_and_header(name: Name, set: &SetLayout, slot: u32) -> [Verb; 2] {
        let offset = set.header(name.shard(), slot);
        let at = Address { region: set.region(), offset };
        [Verb::Read { at, len: 8 }, Verb::Read { at, len: header::LEN as u32 }]
    }

    /// This node's replica of a slot's header.
    pub(crate) fn own_header(&self, name: Name, set: &SetLayout, slot: u32) -> Header {
        let mut bytes = [0; header::LEN as usize];
        let at = set.header(name.shard(), slot) as usize;
        if !self.arena.region(set.region()).read(at, &mut bytes) {
            bytes.fill(0);
        }
        Header::decode(&bytes)
    }

    /// This node's replica of a half's payload, if it is whole.
    pub(crate) fn own_payload(
        &self,
        name: Name,
        set: &SetLayout,
        slot: u32,
        head: &Head,
    ) -> Option<Vec<u8>> {
        let mut data = vec![0; (head.len as usize).min(set.stride as usize)];
        let at = set.payload(name.shard(), slot, head.version) as usize;
        let read = self.arena.region(set.region()).read(at, &mut data);
        (read && head.matches(&data)).then_some(data)
    }

    /// What a domain would hit.
    pub(crate) fn lookup(&self, name: Name, set: &SetLayout) -> Option<(Version, Vec<u8>)> {
        let mut out = Vec::new();
        let class = self.arena.region(set.region());
        let own = self.arena.region(RegionId::Control);
        let version = published::lookup(name, class, own, || self.now, &mut out)?;
        Some((version, out))
    }

    fn end_get(&mut self, op: &mut Op, g: &Get, reply: Result<Reply, CacheError>) -> Flow {
        self.unlock(g.name, op.id);
        self.reply(op, reply);
        Flow::Done
    }

    fn absent(&mut self, op: &mut Op, g: &Get) -> Flow {
        let reply = if self.serving() {
            Ok(Reply::Object(Version::ABSENT, Vec::new()))
        } else {
            Err(CacheError::NoQuorum)
        };
        self.end_get(op, g, reply)
    }

    pub(crate) fn step_get(&mut self, op: &mut Op, g: &mut Get) -> Flow {
        loop {
            match g.stage {
                Stage::Queued => {
                    g.stage = Stage::Start;
                    match self.lock(g.name, op) {
                        Ok(true) => {}
                        Ok(false) => return Flow::Waits,
                        Err(e) => {
                            self.reply(op, Err(e));
                            return Flow::Done;
                        }
                    }
                }
                Stage::Start => {
                    if !self.holds(g.name, op.id) {
                        return Flow::Waits;
                    }
                    if let Some((version, data)) = self.lookup(g.name, g.set) {
                        self.stats.hits += 1;
                        return self.end_get(op, g, Ok(Reply::Object(version, data)));
                    }
                    if !self.serving() {
                        return self.end_get(op, g, Err(CacheError::NoQuorum));
                    }
                    self.stats.misses += 1;
                    let Some(primary) = self.view.primary(g.name.shard()) else {
                        return self.end_get(op, g, Err(CacheError::NoQuorum));
                    };
                    let known = self.objects.get(&g.name).and_then(|o| o.slot);
                    if primary == self.config.node {
                        match self.primary.slot(g.name) {
                            Some(slot) => g.slot = slot,
                            None => return self.absent(op, g),
                        }
                        g.stage = Stage::Post;
                    } else if let Some(slot) = known {
                        g.slot = slot;
                        g.remembered = true;
                        g.stage = Stage::Post;
                    } else {
                        g.stage = Stage::Locating;
                        let chain = Engine::read_windows(g.name, g.set, false);
                        g.candidates.clear();
                        self.post(op, 0, primary, chain);
                        return Flow::Waits;
                    }
                }
                Stage::Locating => {
                    let outcomes = op.take_one();
                    let (found, deeper) = candidates(g.name, g.set, &outcomes);
                    g.candidates.extend(found);
                    if let (true, Some(primary)) = (deeper, self.view.primary(g.name.shard())) {
                        let chain = Engine::read_windows(g.name, g.set, true);
                        self.post(op, 0, primary, chain);
                        return Flow::Waits;
                    }
                    g.remembered = false;
                    match g.candidates.pop() {
                        Some(slot) => g.slot = slot,
                        None => return self.absent(op, g),
                    }
                    g.stage = Stage::Post;
                }
                Stage::Post => {
                    let Some(primary) = self.view.primary(g.name.shard()) else {
                        return self.end_get(op, g, Err(CacheError::NoQuorum));
                    };
                    // Rule 2: the counter, and the epoch, before anything is posted.
                    g.c0 = self.arena.control(control::counter(layout::hash(g.name)));
                    g.epoch = self.arena.control(control::shard_epoch(g.name.shard()));
                    let room = self.has_room(g.key()) || self.bug(Bug::UnboundedCounts);
                    g.added = !g.registered && room;
                    self.share_posted(g.key(), g.added);
                    let [word, heads] = Engine::read_word_and_header(g.name, g.set, g.slot);
                    let Verb::Read { at, .. } = word else { return Flow::Done };
                    let mut chain = Vec::with_capacity(3);
                    if g.added {
                        chain.push(Verb::FetchAdd { at, add: Word::share(self.config.node) });
                    } else {
                        chain.push(word);
                    }
                    chain.push(heads);
                    if !self.replica_of(g.name) && g.set.set.capacity <= READ_BOTH {
                        let offset = g.set.payload(g.name.shard(), g.slot, 0);
                        chain.push(Verb::Read { at: g.at(offset), len: 2 * g.set.stride as u32 });
                    }
                    self.post(op, 0, primary, chain);
                    g.stage = Stage::Reading;
                    return Flow::Waits;
                }
                Stage::Reading => match self.evaluate(op, g) {
                    Some(flow) => return flow,
                    None => continue,
                },
                Stage::Payload => {
                    let outcomes = op.take_one();
                    let bytes = as_bytes(outcomes.first());
                    let Some(head) = g.head else { return Flow::Done };
                    let data = bytes.get(..head.len as usize).unwrap_or(&[]);
                    if head.matches(data) {
                        let data = data.to_vec();
                        return self.accept(op, g, head, data);
                    }
                    g.stage = Stage::Post;
                    return self.poll_again(op, g);
                }
            }
        }
    }

    /// Rule 3. `None`: go on with the next stage.
    fn evaluate(&mut self, op: &mut Op, g: &mut Get) -> Option<Flow> {
        let outcomes = op.take_one();
        let Some(word) = as_word(outcomes.first()) else { return Some(Flow::Done) };
        if self.bug(Bug::CounterAfterPosting) {
            g.c0 = self.arena.control(control::counter(layout::hash(g.name)));
        }
        g.own_count = word.count(self.config.node) + u8::from(g.added);
        self.share_seen(g.key(), g.own_count);
        g.registered |= g.added;
        let header = Header::decode(as_bytes(outcomes.get(1)));
        if header.bound != g.name {
            // Another's slot by now, or one whose tag is the same by chance.
            if let (true, Some(o)) = (g.remembered, self.objects.get_mut(&g.name)) {
                o.slot = None;
            }
            g.relocations += 1;
            (g.registered, g.first) = (false, None);
            match g.candidates.pop() {
                Some(slot) if !g.remembered => {
                    g.slot = slot;
                    g.stage = Stage::Post;
                }
                _ if g.remembered => g.stage = Stage::Start,
                _ => return Some(self.absent(op, g)),
            }
            g.remembered = false;
            if g.relocations > RELOCATIONS {
                return Some(self.end_get(op, g, Err(CacheError::Busy)));
            }
            return None;
        }
        if let Some(o) = self.objects.get_mut(&g.name) {
            o.slot = Some(g.slot);
        }
        g.stage = Stage::Post;
        // Rule 45: a version that came since the first look was the newest at some moment of this read.
        let first = *g.first.get_or_insert(word.version_low());
        g.passing = word.writing() && !self.bug(Bug::ReadWhileWriting);
        if g.passing && (first == word.version_low() || self.bug(Bug::NoTurns)) {
            return Some(self.poll_again(op, g));
        }
        let replica = self.replica_of(g.name);
        let heads = if replica { self.own_header(g.name, g.set, g.slot) } else { header };
        let Some(head) = heads.current(word) else {
            // The primary's, not the own: a first write that came to nothing may have reached a copy
            // that was being filled, and such a half never gets current.
            if word.version_low() == 0 && header.heads == [None, None] {
                return Some(self.absent(op, g));
            }
            return Some(self.poll_again(op, g));
        };
        if head.tombstone || head.name != g.name {
            return Some(self.absent(op, g));
        }
        if replica {
            return match self.own_payload(g.name, g.set, g.slot, &head) {
                Some(data) => Some(self.accept(op, g, head, data)),
                None => Some(self.poll_again(op, g)),
            };
        }
        if g.set.set.capacity <= READ_BOTH {
            let start = (head.version & 1) as usize * g.set.stride as usize;
            let both = as_bytes(outcomes.get(2));
            let data = both.get(start..start + head.len as usize).unwrap_or(&[]);
            if head.matches(data) {
                let data = data.to_vec();
                return Some(self.accept(op, g, head, data));
            }
            return Some(self.poll_again(op, g));
        }
        let Some(primary) = self.view.primary(g.name.shard()) else {
            return Some(self.end_get(op, g, Err(CacheError::NoQuorum)));
        };
        g.head = Some(head);
        g.stage = Stage::Payload;
        let at = g.at(g.set.payload(g.name.shard(), g.slot, head.version));
        self.post(op, 0, primary, vec![Verb::Read { at, len: head.len.next_multiple_of(8) }]);
        Some(Flow::Waits)
    }

    /// Rule 5.
    fn poll_again(&mut self, op: &mut Op, g: &Get) -> Flow {
        if self.now.saturating_sub(op.began) > PATIENCE {
            return self.end_get(op, g, Err(CacheError::Busy));
        }
        self.back_off(op)
    }

    /// Rule 4: the lease, now; then the copy is this node's if it is registered.
    fn accept(&mut self, op: &mut Op, g: &Get, head: Head, data: Vec<u8>) -> Flow {
        if !self.serving() {
            return self.end_get(op, g, Err(CacheError::NoQuorum));
        }
        if g.own_count >= 1 && !g.passing {
            let fact = Fact { version: head.version, c0: g.c0, epoch: g.epoch, kept: false };
            let place = g.set.payload(g.name.shard(), g.slot, head.version);
            let payload = if self.replica_of(g.name) {
                Payload::Own { place, data: &data }
            } else {
                Payload::Copy { set: g.set, data: &data }
            };
            self.publisher.publish(g.set, g.name, fact, payload);
        }
        self.end_get(op, g, Ok(Reply::Object(Version(head.version), data)))
    }

    /// Rule 17: again from 2.
    pub(crate) fn resume_get(&mut self, op: &mut Op, g: &mut Get) -> bool {
        if matches!(g.stage, Stage::Reading) {
            // What it showed, if it did not fail, is not looked at: operations are resumed in another order
            // than that in which their chains acted.
            self.share_unseen(g.key());
        }
        if !matches!(g.stage, Stage::Queued) {
            g.stage = Stage::Start;
        }
        g.registered = false;
        g.added = false;
        g.remembered = false;
        g.first = None;
        self.start_over(op);
        true
    }
}
