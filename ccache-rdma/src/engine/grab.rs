//! Grab and release (rule 28): ownership with W = 0, pinned against everyone else for a bounded
//! time. Other writers poll meanwhile; readers do not notice.

use super::get::{PATIENCE, as_bytes, as_word, candidates};
use super::op::{Flow, Grab, Op};
use super::{ClientId, Engine};
use crate::cache::{CacheError, Version};
use crate::fabric::{Address, Verb};
use crate::half::{Head, Header};
use crate::layout::SetLayout;
use crate::name::Name;
use crate::request::Reply;
use crate::word::Word;

/// How long a grab lasts at most, ns.
pub(crate) const GRAB_BOUND: u64 = 100_000_000;
const RELOCATIONS: u32 = 64;

enum Stage {
    Queued,
    Start,
    Locating,
    Look,
    Looking,
    Taking,
    Payload,
}

/// A grab under way.
pub(crate) struct Grabbing {
    name: Name,
    set: &'static SetLayout,
    client: ClientId,
    stage: Stage,
    candidates: Vec<u32>,
    slot: u32,
    known: bool,
    relocations: u32,
    word: Word,
    head: Option<Head>,
    /// The word is this node's.
    held: bool,
}

impl Grabbing {
    pub(crate) fn new(name: Name, set: &'static SetLayout, client: ClientId) -> Grabbing {
        Grabbing {
            name,
            set,
            client,
            stage: Stage::Queued,
            candidates: Vec::new(),
            slot: 0,
            known: false,
            relocations: 0,
            word: Word(0),
            head: None,
            held: false,
        }
    }
    fn word_at(&self) -> Address {
        Address { region: self.set.region(), offset: self.set.header(self.name.shard(), self.slot) }
    }
}

impl Engine {
    fn end_grab(&mut self, op: &mut Op, g: &Grabbing, r: Result<Reply, CacheError>) -> Flow {
        if g.held && r.is_err() {
            self.drop_grab(g.name, g.slot, g.set);
        }
        if let (true, Ok(_)) = (g.held, &r) {
            let grab = Grab { client: g.client, until: self.now + GRAB_BOUND };
            if let Some(o) = self.objects.get_mut(&g.name) {
                o.slot = Some(g.slot);
                o.grab = Some(grab);
            }
            self.grabs.push((grab.until, g.name));
        }
        self.unlock(g.name, op.id);
        self.reply(op, r);
        Flow::Done
    }

    fn drop_grab(&mut self, name: Name, slot: u32, set: &'static SetLayout) {
        let me = self.config.node;
        let at = Address { region: set.region(), offset: set.header(name.shard(), slot) };
        if let Some(primary) = self.view.primary(name.shard()) {
            let add = Word::drop_grab(me);
            self.post_unwaited(primary, vec![Verb::FetchAdd { at, add }]);
        }
    }

    pub(crate) fn step_grab(&mut self, op: &mut Op, g: &mut Grabbing) -> Flow {
        let me = self.config.node;
        let primary = self.view.primary(g.name.shard());
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
                    // A client that grabs what it holds already starts afresh.
                    self.release_grab(g.name, g.client);
                    self.give_back(g.name);
                    let Some(primary) = primary.filter(|_| self.serving()) else {
                        return self.end_grab(op, g, Err(CacheError::NoQuorum));
                    };
                    let known = if primary == me {
                        self.primary.slot(g.name)
                    } else {
                        self.objects.get(&g.name).and_then(|o| o.slot)
                    };
                    g.known = known.is_some();
                    match known {
                        Some(slot) => {
                            g.slot = slot;
                            g.stage = Stage::Look;
                        }
                        None if primary == me => return self.nothing_to_grab(op, g),
                        None => {
                            g.stage = Stage::Locating;
                            let chain = Engine::read_windows(g.name, g.set, false);
                            g.candidates.clear();
                            self.post(op, 0, primary, chain);
                            return Flow::Waits;
                        }
                    }
                }
                Stage::Locating => {
                    let outcomes = op.take_one();
                    let (found, deeper) = candidates(g.name, g.set, &outcomes);
                    g.candidates.extend(found);
                    if let (true, Some(primary)) = (deeper, primary) {
                        let chain = Engine::read_windows(g.name, g.set, true);
                        self.post(op, 0, primary, chain);
                        return Flow::Waits;
                    }
                    match g.candidates.pop() {
                        Some(slot) => g.slot = slot,
                        None => return self.nothing_to_grab(op, g),
                    }
                    g.stage = Stage::Look;
                }
                Stage::Look => {
                    let Some(primary) = primary else {
                        return self.end_grab(op, g, Err(CacheError::NoQuorum));
                    };
                    let chain = Engine::read_word_and_header(g.name, g.set, g.slot).to_vec();
                    self.post(op, 0, primary, chain);
                    g.stage = Stage::Looking;
                    return Flow::Waits;
                }
                Stage::Looking => {
                    let outcomes = op.take_one();
                    let Some(word) = as_word(outcomes.first()) else { return Flow::Done };
                    let header = Header::decode(as_bytes(outcomes.get(1)));
                    if header.bound != g.name {
                        match self.elsewhere(op, g) {
                            Some(flow) => return flow,
                            None => continue,
                        }
                    }
                    if !word.is_idle() {
                        self.ask_back(op, &[(g.name, word)]);
                        g.stage = Stage::Look;
                        if self.now.saturating_sub(op.began) > PATIENCE {
                            return self.end_grab(op, g, Err(CacheError::Busy));
                        }
                        return self.back_off(op);
                    }
                    let Some(primary) = primary else {
                        return self.end_grab(op, g, Err(CacheError::NoQuorum));
                    };
                    g.word = word;
                    g.stage = Stage::Taking;
                    let at = g.word_at();
                    let take = Verb::CompareSwap { at, expect: word.0, new: word.grabbed(me).0 };
                    let [_, header] = Engine::read_word_and_header(g.name, g.set, g.slot);
                    self.post(op, 0, primary, vec![take, header]);
                    return Flow::Waits;
                }
                Stage::Taking => {
                    let outcomes = op.take_one();
                    if as_word(outcomes.first()) != Some(g.word) {
                        g.stage = Stage::Look;
                        return self.back_off(op);
                    }
                    g.held = true;
                    let header = Header::decode(as_bytes(outcomes.get(1)));
                    if header.bound != g.name {
                        self.drop_grab(g.name, g.slot, g.set);
                        g.held = false;
                        match self.elsewhere(op, g) {
                            Some(flow) => return flow,
                            None => continue,
                        }
                    }
                    let head = header.current(g.word).filter(|h| h.name == g.name && !h.tombstone);
                    let (Some(head), Some(primary)) = (head, primary) else {
                        self.drop_grab(g.name, g.slot, g.set);
                        g.held = false;
                        return self.nothing_to_grab(op, g);
                    };
                    g.head = Some(head);
                    g.stage = Stage::Payload;
                    let offset = g.set.payload(g.name.shard(), g.slot, head.version);
                    let at = Address { region: g.set.region(), offset };
                    let len = head.len.next_multiple_of(8);
                    self.post(op, 0, primary, vec![Verb::Read { at, len }]);
                    return Flow::Waits;
                }
                Stage::Payload => {
                    let outcomes = op.take_one();
                    let Some(head) = g.head else { return Flow::Done };
                    let bytes = as_bytes(outcomes.first());
                    let data = bytes.get(..head.len as usize).unwrap_or(&[]);
                    let reply = if !self.serving() {
                        Err(CacheError::NoQuorum)
                    } else if head.matches(data) {
                        Ok(Reply::Object(Version(head.version), data.to_vec()))
                    } else {
                        // Nobody writes what this node owns.
                        Err(CacheError::Busy)
                    };
                    return self.end_grab(op, g, reply);
                }
            }
        }
    }

    fn nothing_to_grab(&mut self, op: &mut Op, g: &Grabbing) -> Flow {
        let reply = if self.serving() {
            Ok(Reply::Object(Version::ABSENT, Vec::new()))
        } else {
            Err(CacheError::NoQuorum)
        };
        self.end_grab(op, g, reply)
    }

    fn elsewhere(&mut self, op: &mut Op, g: &mut Grabbing) -> Option<Flow> {
        g.relocations += 1;
        if g.relocations > RELOCATIONS {
            return Some(self.end_grab(op, g, Err(CacheError::Busy)));
        }
        if let Some(o) = self.objects.get_mut(&g.name) {
            o.slot = None;
            o.guess = None;
        }
        match g.candidates.pop() {
            Some(slot) => {
                g.slot = slot;
                g.stage = Stage::Look;
            }
            None if g.known => g.stage = Stage::Start,
            None => return Some(self.nothing_to_grab(op, g)),
        }
        None
    }

    /// Ends a client's grab of an object, if it has one.
    pub(crate) fn release_grab(&mut self, name: Name, client: ClientId) {
        let Some(object) = self.objects.get_mut(&name) else { return };
        let Some(slot) = object.slot else { return };
        if object.grab.is_some_and(|g| g.client == client) {
            object.grab = None;
            object.guess = None;
            if let Some(set) = crate::layout::set(name.set()) {
                self.drop_grab(name, slot, set);
            }
            self.pump(name);
        }
    }

    /// Ends grabs whose time is over, and those of a client that is gone.
    pub(crate) fn end_grabs(&mut self, gone: Option<ClientId>) {
        if self.frozen {
            return;
        }
        let mut over = Vec::new();
        let (now, objects) = (self.now, &self.objects);
        self.grabs.retain(|(until, name)| {
            let grab = objects.get(name).and_then(|o| o.grab);
            match grab {
                Some(g) if g.until == *until => {
                    let end = *until <= now || gone == Some(g.client);
                    if end {
                        over.push((*name, g.client));
                    }
                    !end
                }
                _ => false,
            }
        });
        for (name, client) in over {
            self.release_grab(name, client);
        }
    }

    /// Starts over; what was taken in a shard whose words are new is gone.
    pub(crate) fn resume_grab(&mut self, op: &mut Op, g: &mut Grabbing) -> bool {
        if matches!(g.stage, Stage::Taking) {
            let outcomes = op.take_one();
            g.held |= as_word(outcomes.first()) == Some(g.word);
        }
        if g.held && !self.was_affected(g.name.shard()) {
            self.drop_grab(g.name, g.slot, g.set);
        }
        g.held = false;
        g.candidates.clear();
        if !matches!(g.stage, Stage::Queued) {
            g.stage = Stage::Start;
        }
        self.start_over(op);
        true
    }
}
