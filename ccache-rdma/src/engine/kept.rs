//! Ownership that a node keeps after a write (rules 9, 11 and 12): the next write of the same node needs no
//! CAS and no look at the header, and the node's copy needs no count. Another node that wants to write asks
//! for it back, by message; the holder gives it back unless it has begun to write.

use super::Engine;
use super::message::Message;
use super::op::{Object, Op};
use super::write::Write;
use crate::fabric::{Address, Verb};
use crate::layout::{self, control};
use crate::name::Name;
use crate::word::Word;

/// Most words that one node keeps: what survivors must resolve one by one when it dies.
const MAX_KEPT: usize = 4_096;
/// Writes after which a node keeps an object that another one has asked for.
const ASKED: u8 = 8;
/// A waiting node asks again after so many polls: the message may be lost with a view.
const ASK_AGAIN: u32 = 16;

/// A word that this node holds with W = 0, or writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept {
    /// The object's full version.
    pub(crate) version: u64,
    /// A write has set W, or is about to: it ends first.
    pub(crate) writing: bool,
    /// Another node wants it.
    pub(crate) wanted: bool,
}

/// Whom an operation has asked for words.
#[derive(Default, Debug)]
pub(crate) struct Asked {
    /// Polls until all are asked again.
    polls: u32,
    /// Of which object, whom, and at which version: the same node may give it back and keep it again.
    of: Vec<(Name, Option<u8>, u64, bool)>,
}

impl Asked {
    /// Whether a word's holder has not been asked for this version of it yet; from here on it has.
    pub(crate) fn once(&mut self, name: Name, word: Word) -> bool {
        let holder = (name, word.holder(), word.version_low(), word.writing());
        let new = !self.of.contains(&holder);
        if new {
            self.of.retain(|(n, ..)| *n != name);
            self.of.push(holder);
        }
        new
    }
}

/// How many more writes of an object do not keep its word: most objects are written once, and those that
/// several nodes write by turns are better given back at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reluctance(u8);

impl Default for Reluctance {
    fn default() -> Reluctance {
        Reluctance(1)
    }
}

impl Reluctance {
    /// Whether other nodes have asked for the object lately, and may be waiting for it still.
    pub(crate) fn was_asked(self) -> bool {
        self.0 > Reluctance::default().0
    }
}

impl Engine {
    /// Whether a write that is being committed keeps its word.
    pub(crate) fn keeps(&mut self, name: Name) -> bool {
        let Some(o) = self.objects.get_mut(&name) else { return false };
        if o.turn.owes() || o.kept.is_some_and(|k| k.wanted) {
            return false;
        }
        let reluctance = o.reluctance.0;
        o.reluctance.0 = reluctance.saturating_sub(1);
        reluctance == 0
    }

    /// A write has ended and kept the word.
    pub(crate) fn keep(&mut self, name: Name, version: u64) {
        let now = self.now;
        let Some(o) = self.objects.get_mut(&name) else { return };
        o.turn.end(version, now);
        let had = o.kept.replace(Kept { version, writing: false, wanted: false }).is_some();
        o.guess = None;
        o.grab = None;
        if had {
            return;
        }
        self.kept.push_back(name);
        if self.kept.len() > MAX_KEPT
            && let Some(oldest) = self.kept.pop_front()
        {
            self.give_back(oldest);
        }
    }

    /// Gives an object's word back, if this node keeps it and has not begun to write; else it is
    /// given back at the end of that write.
    pub(crate) fn give_back(&mut self, name: Name) {
        let Some(o) = self.objects.get_mut(&name) else { return };
        let (Some(kept), Some(slot)) = (&mut o.kept, o.slot) else { return };
        if kept.writing {
            kept.wanted = true;
            return;
        }
        o.kept = None;
        let (Some(set), Some(primary)) = (layout::set(name.set()), self.view.primary(name.shard()))
        else {
            return;
        };
        let me = self.config.node;
        // The copy stays valid by its counter as of now, if the count has room for it.
        let add = if self.share_ended(super::SlotKey::of(name, slot), 0, true) {
            let c0 = self.arena.control(control::counter(layout::hash(name)));
            self.publisher.share(name, c0);
            Word::give_back(me)
        } else {
            self.publisher.void(name);
            Word::drop_grab(me)
        };
        let at = Address { region: set.region(), offset: set.header(name.shard(), slot) };
        self.post_unwaited(primary, vec![Verb::FetchAdd { at, add }]);
    }

    /// Another node wants an object that this one may keep, or writes.
    pub(crate) fn give_back_asked(&mut self, name: Name, from: u8) {
        let Some(o) = self.objects.get_mut(&name) else {
            return self.send(from, &Message::Ended { name });
        };
        o.turn.ask(from);
        o.reluctance = Reluctance(ASKED);
        let writes = o.turn.writes;
        if o.kept.is_some() {
            self.stats.given_back += 1;
            self.give_back(name);
        }
        if !writes {
            self.send(from, &Message::Ended { name });
        }
    }

    /// Words that `op` wants are not idle: the holders of those that are not being written are asked
    /// for them, at once and then now and again.
    pub(crate) fn ask_back(&mut self, op: &mut Op, words: &[(Name, Word)]) {
        if words.iter().all(|(_, word)| word.writing()) {
            return;
        }
        let again = op.asked.polls == 0;
        op.asked.polls = if again { ASK_AGAIN } else { op.asked.polls - 1 };
        if again {
            op.asked.of.clear();
        }
        for (name, word) in words.iter().filter(|(_, word)| !word.writing()) {
            // Whoever keeps it since has not heard of it yet.
            let kept = (*name, word.holder(), word.version_low(), word.writing());
            if !op.asked.of.contains(&kept) {
                op.asked.of.push(kept);
                // The answer comes soon.
                op.polls = 0;
                self.ask_one(*name, *word);
            }
        }
    }

    pub(super) fn ask_one(&mut self, name: Name, word: Word) {
        match word.holder() {
            Some(h) if h == self.config.node => self.give_back(name),
            Some(h) if self.view.member(h).is_some() => {
                self.send(h, &Message::GiveBack { name });
            }
            _ => {}
        }
    }

    /// A write that set W on words that it kept has changed nothing: they stay kept.
    pub(crate) fn still_kept(&mut self, name: Name) {
        let Some(Object { kept: Some(kept), turn, .. }) = self.objects.get_mut(&name) else {
            return;
        };
        (kept.writing, turn.writes) = (false, false);
        if kept.wanted {
            self.give_back(name);
        }
        self.tell_waiters(name);
    }

    /// Whether this node holds the word of an object that a write wants, with W = 0; from here on W is
    /// as good as set.
    pub(crate) fn begin_kept(&mut self, name: Name) -> bool {
        let now = self.now;
        let Some(Object { kept: Some(kept), turn, .. }) = self.objects.get_mut(&name) else {
            return false;
        };
        kept.writing = true;
        turn.begin(now);
        true
    }

    /// The version of an object that this node keeps, for a write of it alone.
    pub(crate) fn kept_version(&self, w: &Write) -> Option<u64> {
        let name = w.alone()?;
        self.objects.get(&name).filter(|o| o.slot.is_some()).and_then(|o| o.kept).map(|k| k.version)
    }
}
