//! Verbs land: one at a time, in order within a queue pair, in any order across. What a verb shows
//! is with its poster at once; that poster looks at it in a step of its own, as late as it likes.
//!
//! A verb that has landed and one whose completion has arrived are told apart by nothing: a
//! completion is lost only with a target that is shut out, whose memory nobody else reads. Verbs of
//! the dead land until they are shut out; verbs to the dead never do.

use crate::bugs::Bug;
use crate::cluster::Cluster;
use crate::state::{Flight, Half, Op, State, Verb, Wrong, version};
use clustix_ccache::view::Slots;
use clustix_ccache::word::Word;

impl Cluster {
    /// The verbs that may land next. One that tries to take a word that it can't get yet is passed
    /// by those behind it: it fails and is posted again.
    pub fn landable(&self, s: &State, mut f: impl FnMut(usize)) {
        let mut pair = None;
        for (i, flight) in s.net.iter().enumerate() {
            let this = (flight.src, flight.dst);
            if pair == Some(this) || !s.node(flight.dst).up {
                continue;
            }
            if self.is_blocked(s, flight) {
                continue;
            }
            pair = Some(this);
            f(i);
        }
    }

    /// Whether this is a CAS that would fail.
    pub fn is_blocked(&self, s: &State, flight: &Flight) -> bool {
        let Verb::Take(o) = flight.verb else { return false };
        let word = s.node(flight.dst).word[usize::from(o)];
        let steals = self.has(Bug::StealKept) && !word.writing();
        !(word.is_idle() || steals)
    }

    /// Lands it.
    pub fn land(&self, s: &mut State, index: usize) {
        let Flight { src, dst, verb } = s.net.remove(index);
        let add = |s: &mut State, o: u8, add: u64| {
            let word = &mut s.node_mut(dst).word[usize::from(o)];
            let before = *word;
            word.0 = word.0.wrapping_add(add);
            before
        };
        match verb {
            Verb::Register(o) => {
                let before = add(s, o, self.counts().share(src));
                if before.count(src) == 3 && !self.has(Bug::SingleBits) {
                    s.fails(Wrong::Carry);
                }
                self.shown(s, src, before);
            }
            Verb::Look(o) => self.shown(s, src, s.node(dst).word[usize::from(o)]),
            Verb::Halves(o) => {
                let halves = s.node(dst).half[usize::from(o)];
                if let Op::Get(g) = &mut s.node_mut(src).op {
                    g.halves = halves;
                }
            }
            Verb::Take(o) => {
                let at = &mut s.node_mut(dst).word[usize::from(o)];
                let holder = at.holder().map_or(0, |h| u64::from(h) + 1) << 32;
                let before = Word(at.0 - holder);
                *at = before.taken(src);
                let v = version(before);
                if s.node(dst).half[usize::from(o)][usize::from(v & 1)].version != v {
                    s.fails(Wrong::NoHalf);
                }
                self.owned(s, src, o, before.taken(src));
            }
            Verb::Begin(o) => {
                let before = add(s, o, Word::BEGIN);
                self.owned(s, src, o, Word(before.0.wrapping_add(Word::BEGIN)));
            }
            Verb::Write(o, half) | Verb::FillOne(o, half) => {
                s.node_mut(dst).half[usize::from(o)][usize::from(half.version & 1)] = half;
            }
            Verb::Tear(o, v) => {
                s.node_mut(dst).half[usize::from(o)][usize::from(v & 1)] = Half::default();
            }
            Verb::Fill(o, half) => {
                let halves = &mut s.node_mut(dst).half[usize::from(o)];
                *halves = [Half::default(); 2];
                halves[usize::from(half.version & 1)] = half;
            }
            Verb::Bump(o) => self.bump(s, dst, o),
            Verb::Record(writer, record) => {
                s.node_mut(dst).record[usize::from(writer)] = Some(record);
            }
            Verb::Add(o, by, observed) => {
                let before = add(s, o, by);
                let lacks = |n| before.count(n) < Word(u64::from(observed)).count(n);
                if (0..16).any(lacks) && !self.has(Bug::SingleBits) {
                    s.fails(Wrong::Carry);
                }
            }
        }
    }

    /// Posts a half to each of these, in two pieces where the workload says so.
    pub fn post_half(&self, s: &mut State, src: u8, to: Slots, o: u8, half: Half) {
        for dst in to.iter() {
            if self.workload.torn {
                s.post(src, dst, Verb::Tear(o, half.version));
            }
            s.post(src, dst, Verb::Write(o, half));
        }
    }

    /// A node's counter moves.
    pub fn bump(&self, s: &mut State, node: u8, o: u8) {
        let n = s.node_mut(node);
        if n.copy[usize::from(o)].is_some_and(|c| !c.kept) {
            n.copy[usize::from(o)] = None;
        }
        if let Op::Get(g) = &mut n.op
            && g.object == o
        {
            g.fresh = false;
        }
    }

    fn shown(&self, s: &mut State, node: u8, word: Word) {
        match &mut s.node_mut(node).op {
            Op::Get(g) => g.word = Some(word),
            Op::Write(w) => w.again = Some(word),
            _ => {}
        }
    }

    /// A node's verb has got it a word.
    fn owned(&self, s: &mut State, node: u8, o: u8, word: Word) {
        if let Op::Write(w) = &mut s.node_mut(node).op
            && let Some(item) = &mut w.items[usize::from(o)]
            && item.taken.is_none()
        {
            item.taken = Some(word);
        }
    }
}
