//! A change of view (rules 13–17), each survivor's steps one by one, and the copier (32).
//!
//! What a survivor says to the others is read off its phase: a message that is late is a survivor
//! that takes its next step late. A survivor compares copies in one step: all others are drained, and
//! only the recovery itself writes halves meanwhile.

use crate::bugs::Bug;
use crate::cluster::Cluster;
use crate::state::{
    Copier, Flight, Half, NODES, Node, OBJECTS, Op, Phase, State, Verb, Wrong, version,
};
use clustix_ccache::view::Slots;
use clustix_ccache::word::Word;

impl Cluster {
    /// A node hears of the next view.
    pub fn install(&self, s: &mut State, node: u8) -> bool {
        let n = s.node(node);
        let next = usize::from(n.epoch) + 1;
        if !n.up || n.epoch == s.epoch || !s.views[next].members.contains(node) {
            return false;
        }
        // Its slot may be another's by then.
        if !s.view().members.contains(node) {
            return false;
        }
        let n = s.node(node);
        let (old, new) = (s.views[next - 1], s.views[next]);
        let stays = |d: &u8| {
            let i = usize::from(*d);
            new.members.contains(*d) && new.incarnation[i] == old.incarnation[i]
        };
        let mut gone: Slots = old.members.iter().filter(|d| !stays(d)).collect();
        let mut affected = std::array::from_fn(|o| old.primary[o] != new.primary[o]);
        if n.phase != Phase::Settled && !self.has(Bug::ChangeForgotten) {
            gone = gone.union(n.gone);
            affected = std::array::from_fn(|o| affected[o] || n.affected[o]);
        }
        let n = s.node_mut(node);
        (n.epoch, n.phase) = (n.epoch + 1, Phase::Installed);
        (n.gone, n.affected) = (gone, affected);
        true
    }

    /// Rule 42: what changed since those who settled last did, by their account, is gone; objects whose
    /// primary changed since any member settled are affected.
    fn unite(&self, s: &State, node: u8) -> (Slots, [bool; OBJECTS]) {
        let (mut gone, mut affected) = (Slots::NONE, [false; OBJECTS]);
        let members = s.view_of(node).members;
        let last = members.iter().map(|m| s.node(m).settled).max().flatten();
        for m in members.iter().map(|m| s.node(m)) {
            if m.settled == last {
                gone = gone.union(m.gone);
            }
            affected = std::array::from_fn(|o| affected[o] || m.affected[o]);
        }
        (gone, affected)
    }

    fn all_said(&self, s: &State, node: u8, phase: Phase) -> bool {
        let epoch = s.node(node).epoch;
        let said = |m: u8| s.node(m).epoch == epoch && s.node(m).phase >= phase;
        s.view_of(node).members.iter().all(said)
    }

    /// A survivor's next step. `false`: it waits.
    pub fn recover(&self, s: &mut State, node: u8) -> bool {
        let next = match s.node(node).phase {
            Phase::Installed => {
                self.revoke(s, node);
                Phase::Revoked
            }
            Phase::Revoked => {
                if !self.drained(s, node) {
                    return false;
                }
                Phase::Confirmed
            }
            Phase::Confirmed => {
                if !self.all_said(s, node, Phase::Confirmed) {
                    return false;
                }
                self.drop_affected(s, node);
                Phase::Replay(0)
            }
            Phase::Replay(w) => {
                let over = s.node(node).gone.iter().all(|d| self.lease_over(s, d));
                if w == 0 && !over && !self.has(Bug::NoLeaseWait) {
                    return false;
                }
                let lacking = self.lacking(s, node, w);
                match s.node(node).record[usize::from(w)] {
                    Some(record) if lacking != [false; OBJECTS] => {
                        let mut others = s.view_of(node).members.without(node);
                        if self.has(Bug::ReplayFromOneRecord) {
                            others = Slots::NONE;
                        }
                        for peer in others.iter() {
                            s.post(node, peer, Verb::Record(w, record));
                        }
                        Phase::Spread(w, lacking)
                    }
                    _ if usize::from(w) + 1 < NODES => Phase::Replay(w + 1),
                    _ => Phase::Replayed,
                }
            }
            Phase::Spread(w, lacking) => {
                if !s.is_answered(node) {
                    return false;
                }
                let halves =
                    s.node(node).record[usize::from(w)].map(|r| r.halves).unwrap_or_default();
                for o in (0..OBJECTS).filter(|o| lacking[*o]) {
                    self.post_half(s, node, s.view_of(node).all(), o as u8, halves[o]);
                }
                Phase::Apply(w)
            }
            Phase::Apply(w) => {
                if !s.is_answered(node) {
                    return false;
                }
                if usize::from(w) + 1 < NODES { Phase::Replay(w + 1) } else { Phase::Replayed }
            }
            Phase::Replayed => {
                if !self.all_said(s, node, Phase::Replayed) {
                    return false;
                }
                Phase::Resolve(0)
            }
            Phase::Resolve(o) if usize::from(o) == OBJECTS => Phase::Resolved,
            Phase::Resolve(o) => self.resolve(s, node, o),
            Phase::Finish(o) => {
                if !s.is_answered(node) {
                    return false;
                }
                self.new_word(s, node, o);
                Phase::Resolve(o + 1)
            }
            Phase::Resolved => {
                if !self.all_said(s, node, Phase::Resolved) {
                    return false;
                }
                self.settle(s, node);
                return true;
            }
            Phase::Settled => return false,
        };
        s.node_mut(node).phase = next;
        true
    }

    /// Nothing of the gone lands here any more, and nothing goes to them. A new incarnation is let in.
    fn revoke(&self, s: &mut State, node: u8) {
        let view = *s.view_of(node);
        let lowest = view.members.iter().next();
        let skips = self.has(Bug::PartialRevoke) && lowest == Some(node);
        for peer in 0..NODES as u8 {
            let n = s.node_mut(node);
            if view.members.contains(peer) {
                n.revoked = n.revoked.without(peer);
            } else if !n.revoked.contains(peer) {
                if !skips {
                    n.revoked = n.revoked.with(peer);
                }
                let cut = |f: &Flight| {
                    (f.src, f.dst) == (node, peer) || (!skips && (f.src, f.dst) == (peer, node))
                };
                if s.net.iter().any(|f| cut(f) && f.src == peer && f.verb.is_waited()) {
                    s.node_mut(peer).op = Op::Stuck;
                }
                s.net.retain(|f| !cut(f));
            }
        }
    }

    /// Whether nothing of a node's is under way. A CAS that fails meanwhile is not posted again.
    fn drained(&self, s: &mut State, node: u8) -> bool {
        if self.has(Bug::NoDrain) {
            return true;
        }
        if s.net.iter().any(|f| f.src == node && !self.is_blocked(s, f)) {
            return false;
        }
        s.net.retain(|f| f.src != node);
        true
    }

    /// Rule 40's end of lease. A slot's next incarnation only comes after it.
    fn lease_over(&self, s: &State, d: u8) -> bool {
        s.view().members.contains(d) || !s.node(d).lease
    }

    /// Rule 16: what a survivor forgets.
    fn drop_affected(&self, s: &mut State, node: u8) {
        let (gone, affected) = self.unite(s, node);
        (s.node_mut(node).gone, s.node_mut(node).affected) = (gone, affected);
        if self.has(Bug::CountsCleared) {
            for d in gone.iter() {
                for o in 0..OBJECTS as u8 {
                    if s.primary(node, o) != node {
                        continue;
                    }
                    let word = &mut s.node_mut(node).word[usize::from(o)];
                    word.0 -= u64::from(word.count(d)) * Word::share(d);
                }
            }
        }
        let n = s.node_mut(node);
        for o in (0..OBJECTS).filter(|o| affected[*o]) {
            if !self.has(Bug::CachesKept) {
                n.copy[o] = None;
            }
            n.kept[o] = None;
            n.ub[o] = self.unknown(n);
        }
    }

    /// Rule 6.
    pub fn unknown(&self, n: &Node) -> u8 {
        if n.first || self.has(Bug::CountsForgotten) { 1 } else { 3 }
    }

    /// Rule 22: which halves of a record in this node's memory it must bring to all.
    fn lacking(&self, s: &State, node: u8, writer: u8) -> [bool; OBJECTS] {
        let n = s.node(node);
        let Some(record) = n.record[usize::from(writer)] else { return [false; OBJECTS] };
        let mut lacking = [false; OBJECTS];
        for (o, lacks) in lacking.iter_mut().enumerate() {
            let version = record.halves[o].version;
            let live = n.affected[o] && !self.has(Bug::ReplayOnlyTheDead);
            if version == 0 || !(live || n.gone.contains(writer)) {
                continue;
            }
            let versions = s.view_of(node).complete.iter().map(|p| s.node(p).best(o as u8).version);
            let (low, high) = versions.fold((u8::MAX, 0), |(l, h), v| (v.min(l), v.max(h)));
            *lacks = version > high
                || (version == high && low < high)
                || self.has(Bug::ReplayWithoutVersions);
        }
        lacking
    }

    /// Rules 15 and 16, for one object.
    fn resolve(&self, s: &mut State, node: u8, o: u8) -> Phase {
        if s.primary(node, o) != node {
            return Phase::Resolve(o + 1);
        }
        let affected = s.node(node).affected[usize::from(o)];
        let word = s.node(node).word[usize::from(o)];
        let gone = s.node(node).gone;
        if !affected && !word.holder().is_some_and(|h| gone.contains(h)) {
            return Phase::Resolve(o + 1);
        }
        let view = *s.view_of(node);
        let best = self.chosen(s, node, o);
        if view.complete.iter().any(|p| s.node(p).best(o) != best) {
            self.post_half(s, node, view.all(), o, best);
        }
        if !affected {
            if !word.writing() {
                s.node_mut(node).word[usize::from(o)].0 += Word::BEGIN;
            }
            for peer in word.sharers().intersection(view.members).iter() {
                s.post(node, peer, Verb::Bump(o));
            }
        }
        Phase::Finish(o)
    }

    /// The highest complete half.
    fn chosen(&self, s: &State, node: u8, o: u8) -> Half {
        let complete = s.view_of(node).complete;
        complete.iter().map(|p| s.node(p).best(o)).max_by_key(|h| h.version).unwrap_or_default()
    }

    fn new_word(&self, s: &mut State, node: u8, o: u8) {
        let affected = s.node(node).affected[usize::from(o)];
        let best = s.node(node).best(o);
        if best.version == 0 {
            s.fails(Wrong::NoHalf);
        }
        let word = &mut s.node_mut(node).word[usize::from(o)];
        let counts = if affected { 0 } else { word.counts() };
        *word = Word(Cluster::idle_word(best.version).0 | counts);
    }

    /// Rule 17.
    fn settle(&self, s: &mut State, node: u8) {
        let affected = s.node(node).affected;
        self.abandon_copy(s, node, affected);
        let filling = !s.view_of(node).filling.is_empty();
        let n = s.node_mut(node);
        n.phase = Phase::Settled;
        n.copier = Copier::Next(if filling { 0 } else { OBJECTS as u8 });
        match n.op {
            Op::Get(g) => self.resume_get(s, node, g),
            Op::Write(w) => self.resume_write(s, node, w, affected),
            _ => {}
        }
        let n = s.node_mut(node);
        n.settled = Some(n.epoch);
        (n.gone, n.affected) = (Slots::NONE, [false; OBJECTS]);
    }

    /// Rule 32: the copier's next step, on the primary.
    pub fn copy(&self, s: &mut State, node: u8) -> bool {
        let n = *s.node(node);
        if !n.up || n.phase != Phase::Settled {
            return false;
        }
        match n.copier {
            Copier::Next(o) if usize::from(o) == OBJECTS => return false,
            Copier::Next(o) if s.primary(node, o) != node => {
                s.node_mut(node).copier = Copier::Next(o + 1);
            }
            Copier::Next(o) => {
                let word = n.word[usize::from(o)];
                if word.is_idle() {
                    s.node_mut(node).word[usize::from(o)] = word.taken(node);
                } else if !self.has(Bug::CopierIgnoresSwap) {
                    return false;
                }
                let v = version(word);
                let half = n.half[usize::from(o)][usize::from(v & 1)];
                for peer in s.view_of(node).filling.iter() {
                    let one = self.has(Bug::LeftoverHalf);
                    let verb = if one { Verb::FillOne(o, half) } else { Verb::Fill(o, half) };
                    s.post(node, peer, verb);
                }
                s.node_mut(node).copier = Copier::Copying(o);
            }
            Copier::Copying(o) => {
                if s.net.iter().any(|f| f.src == node && f.verb.fills()) {
                    return false;
                }
                let word = &mut s.node_mut(node).word[usize::from(o)];
                word.0 = word.0.wrapping_add(Word::drop_taken(node));
                s.node_mut(node).copier = Copier::Next(o + 1);
            }
        }
        true
    }

    /// A change of view has cut the copier short.
    fn abandon_copy(&self, s: &mut State, node: u8, affected: [bool; OBJECTS]) {
        if let Copier::Copying(o) = s.node(node).copier
            && !affected[usize::from(o)]
        {
            let word = &mut s.node_mut(node).word[usize::from(o)];
            word.0 = word.0.wrapping_add(Word::drop_taken(node));
        }
    }
}
