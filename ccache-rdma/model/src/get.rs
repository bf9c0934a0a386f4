//! Reading (rules 1–6).

use crate::bugs::Bug;
use crate::cluster::Cluster;
use crate::history::{Call, Told};
use crate::state::{Entry, Get, Half, Op, State, Verb, version};

impl Cluster {
    /// A program asks for an object: a hit, or the first chain. `false`: neither, for now.
    pub fn begin_get(&self, s: &mut State, node: u8, o: u8, frozen: bool) -> bool {
        let n = *s.node(node);
        if let Some(entry) = n.copy[usize::from(o)].filter(|_| n.lease) {
            s.invoke(node, Call::Get(o));
            self.answer_get(s, node, o, entry.half);
            return true;
        }
        if frozen {
            return false;
        }
        s.invoke(node, Call::Get(o));
        self.post_get(
            s,
            node,
            Get {
                object: o,
                reading: false,
                fresh: true,
                added: false,
                registered: false,
                word: None,
                halves: [Half::default(); 2],
            },
        );
        true
    }

    fn answer_get(&self, s: &mut State, node: u8, o: u8, half: Half) {
        let seen = &mut s.seen[usize::from(o)];
        *seen = half.version.max(*seen);
        s.told(node, Told::Value(half.value));
        s.node_mut(node).op = Op::Idle;
    }

    /// Rule 2, and 5: c0 is the counter as it is now.
    fn post_get(&self, s: &mut State, node: u8, get: Get) {
        let o = get.object;
        let primary = s.primary(node, o);
        let replica = s.view_of(node).complete.contains(node);
        let n = s.node_mut(node);
        let ub = &mut n.ub[usize::from(o)];
        let room = *ub < 3 || self.has(Bug::UnboundedCounts);
        let added = !get.registered && room;
        if added {
            *ub = ub.saturating_add(1);
        }
        n.op = Op::Get(Get { reading: true, fresh: true, added, word: None, ..get });
        s.post(node, primary, if added { Verb::Register(o) } else { Verb::Look(o) });
        if !replica {
            s.post(node, primary, Verb::Halves(o));
        }
    }

    /// A read's next step.
    pub fn step_get(&self, s: &mut State, node: u8, mut g: Get) -> bool {
        let (o, i) = (g.object, usize::from(g.object));
        if !g.reading {
            // A poll that would see W again is left out, and one posted while W is set that lands
            // afterwards: its c0 is older, and what it publishes valid in fewer states.
            let primary = s.primary(node, o);
            if s.node(primary).word[i].writing() {
                return false;
            }
            self.post_get(s, node, g);
            return true;
        }
        if !s.is_answered(node) {
            return false;
        }
        let Some(word) = g.word else {
            // Its target is shut out.
            return false;
        };
        if self.has(Bug::CounterAfterPosting) {
            g.fresh = true;
        }
        let replica = s.view_of(node).complete.contains(node);
        let n = s.node_mut(node);
        let own = self.counts().of(word, node) + u8::from(g.added);
        n.ub[i] = own;
        g.registered |= g.added;
        g.reading = false;
        n.op = Op::Get(g);
        if word.writing() && !self.has(Bug::ReadWhileWriting) {
            return true;
        }
        let v = version(word);
        let halves = if replica { n.half[i] } else { g.halves };
        let half = halves[usize::from(v & 1)];
        if half.version != v {
            return true;
        }
        // Rule 4.
        if !n.lease && !self.has(Bug::LeaseOnHitsOnly) {
            n.op = Op::Over;
            return true;
        }
        // Absence is not published.
        if own >= 1 && g.fresh && half.value != 0 {
            n.copy[i] = Some(Entry { half, kept: false });
        }
        self.answer_get(s, node, o, half);
        true
    }

    /// Rule 17: again from 2.
    pub fn resume_get(&self, s: &mut State, node: u8, g: Get) {
        let n = s.node_mut(node);
        if let (Some(word), true) = (g.word, g.reading) {
            n.ub[usize::from(g.object)] = self.counts().of(word, node) + u8::from(g.added);
        }
        n.op = Op::Get(Get { reading: false, added: false, registered: false, word: None, ..g });
    }
}
