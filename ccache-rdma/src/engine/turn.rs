//! Turns (rule 44): who has just written an object that other nodes wait for lets each of them write once
//! before it writes again. What it goes by is the object's version, which every write moves; a waiter that
//! never writes, for it died or gave up, is waited for no longer than a bound.

use super::message::Message;
use super::op::{Object, Op};
use super::{Bug, Engine};
use crate::name::Name;
use crate::view::Slots;
use crate::word::{VERSION_BITS, Word};

/// The longest pause of a waiter between two of its polls, ns.
const POLL: u64 = 1_024_000;
/// So many times as long as this node's last write took, each waiter may take for its own.
const WRITES: u64 = 4;

/// The longest wait for word of a write's end, which is lost with its writer, ns.
const LONGEST: u64 = 64 * POLL;

/// What a node owes those who wait for an object.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Turn {
    /// The version that this node's last write made.
    ended: u64,
    /// When that write had its word, and how long it then took, ns.
    took: u64,
    lasted: u64,
    /// Who has asked since.
    asked: Slots,
    /// A write of this node's has the word.
    pub(crate) writes: bool,
    /// Until when it lets them come first; 0: not begun.
    until: u64,
}

impl Turn {
    /// A node waits for the object.
    pub(crate) fn ask(&mut self, node: u8) {
        self.asked = self.asked.with(node);
    }

    /// A write has the word. Who asked before has had its turn, or asks again.
    pub(crate) fn take(&mut self, now: u64) {
        *self = Turn { took: now, writes: true, ended: self.ended, ..Turn::default() };
    }

    /// A write of the word that this node kept begins.
    pub(crate) fn begin(&mut self, now: u64) {
        (self.took, self.writes) = (now, true);
    }

    /// It has ended.
    pub(crate) fn end(&mut self, version: u64, now: u64) {
        (self.ended, self.lasted) = (version, now.saturating_sub(self.took));
        self.writes = false;
    }

    /// Whether others have asked since this node's last write.
    pub(crate) fn owes(&self) -> bool {
        !self.asked.is_empty()
    }
}

/// How many writes lie between a version and what an idle word says.
fn writes_since(version: u64, word: Word) -> u64 {
    word.version_low().wrapping_sub(version) & ((1 << VERSION_BITS) - 1)
}

impl Engine {
    /// A write has ended: who waits for its object looks at once, and not when its pause is over. Whoever is
    /// next hears of all who wait for it only so.
    pub(crate) fn tell_waiters(&mut self, name: Name) {
        let asked = self.objects.get(&name).map_or(Slots::NONE, |o| o.turn.asked);
        for node in asked.iter() {
            self.send(node, &Message::Ended { name });
        }
    }

    /// The object that an operation here waits for has been written.
    pub(crate) fn look_now(&mut self, name: Name) {
        let running = self.objects.get(&name).and_then(|o| o.running);
        if let Some(op) = running.and_then(|id| self.ops.get_mut(id))
            && op.asleep
        {
            (op.polls, op.asleep) = (0, false);
            self.ready.push_back(op.id);
        }
    }

    /// Whether a write leaves the word alone when it will be idle like this: others come first.
    pub(crate) fn lets_come_first(&mut self, name: Name, idle: Word) -> bool {
        let (members, me, now) = (self.view.slots(), self.config.node, self.now);
        if self.bug(Bug::NoTurns) {
            return false;
        }
        let Some(Object { turn, .. }) = self.objects.get_mut(&name) else { return false };
        let owed = turn.asked.intersection(members.without(me)).len() as u64;
        if writes_since(turn.ended, idle) >= owed {
            return false;
        }
        if turn.until == 0 {
            turn.until = now + owed * (POLL + WRITES * turn.lasted).min(LONGEST);
        }
        now < turn.until
    }

    /// What a poll of a word expects to take, when it may: an idle word's or what a held one becomes.
    pub(crate) fn expected(&mut self, name: Name, word: Word) -> Option<Word> {
        let idle = if word.is_idle() { Some(word) } else { word.next_idle() };
        idle.filter(|idle| !self.lets_come_first(name, *idle))
    }

    /// Tells whoever writes an object that this node waits for it, once for each version; how long it may
    /// then wait to be told of the end, ns: polls would only hold the writer up.
    pub(crate) fn ask_writer(&mut self, op: &mut Op, name: Name, word: Word) -> Option<u64> {
        // A write of this node's own (the copier, freeing a slot) ends soon, and tells nobody.
        let own = word.holder() == Some(self.config.node);
        if !word.writing() || own || !op.asked.once(name, word) || self.bug(Bug::NoTurns) {
            return None;
        }
        op.polls = 0;
        self.ask_one(name, word);
        let lasted = self.objects.get(&name).map_or(0, |o| o.turn.lasted);
        Some((WRITES * lasted).clamp(POLL, LONGEST))
    }
}
