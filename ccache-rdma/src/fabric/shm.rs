//! The fabric of nodes that are processes on one machine and map each other's arenas.
//!
//! One-sided for real: the poster's CPU acts in the target's memory, the target runs nothing.
//! Verbs take effect at once and are reported at the next poll. Memory once mapped cannot be taken
//! away, so every act in a peer's arena passes that arena's gate (rule 33): busy word, fence, gate,
//! a piece of at most 4 KiB, busy word. The other way round, a revoke also ends this node's own use
//! of the peer's arena (rule 34): nothing is read from dead memory.

use super::{Address, Fabric, FabricError, FabricEvent, Outcome, Token, Verb};
use crate::arena::Arena;
use crate::layout::{RegionId, control};
use crate::view::MAX_NODES;
use clustix_pd::exec;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Most bytes acted on under one passage of the gate: bounds what a revoke waits for.
const PIECE: usize = 4096;
/// How long a revoke waits for a live peer to leave, ns, before it says that it is stuck.
const REVOKE_BOUND: u64 = 20_000_000;
/// Bytes of a verb that are asked for ahead: what follows the processor sees for itself.
const ANNOUNCED: usize = 512;
/// Most messages taken from one mailbox at one poll, so that no peer starves the others.
const MESSAGES_PER_POLL: usize = 64;

struct Peer {
    arena: Arena,
}

struct Revoking {
    peer: u8,
    /// When to report that the peer does not leave.
    stuck: Option<u64>,
}

/// One node's end.
pub struct ShmFabric {
    node: u8,
    /// What this node's gate says in its peers' arenas.
    key: u64,
    own: Arena,
    peers: [Option<Peer>; MAX_NODES],
    /// Slots whose ccache is known to be dead: it cannot be inside any more.
    dead: u16,
    /// Slots whose gates are open.
    admitted: u16,
    /// The bell at the last look at all mailboxes; `None`: they are to be looked at whatever it says.
    rung: Option<u32>,
    revoking: Vec<Revoking>,
    done: Vec<FabricEvent>,
    /// Chains have acted since the last fence behind them.
    acted: bool,
}

/// What a gate says that lets `incarnation` in.
const fn key(incarnation: u64) -> u64 {
    incarnation.wrapping_add(1)
}

impl ShmFabric {
    /// For a node's own arena. Every gate is closed at first.
    pub fn new(node: u8, incarnation: u64, own: Arena) -> ShmFabric {
        ShmFabric {
            node,
            key: key(incarnation),
            own,
            peers: Default::default(),
            dead: 0,
            admitted: 0,
            rung: None,
            revoking: Vec::new(),
            done: Vec::new(),
            acted: false,
        }
    }

    /// Lets that incarnation of `peer` into this node's arena, with an empty mailbox.
    pub fn admit(&mut self, peer: u8, incarnation: u64) {
        if usize::from(peer) >= MAX_NODES {
            return;
        }
        self.dead &= !(1 << peer);
        self.admitted |= 1 << peer;
        self.rung = None;
        let mailbox = control::mailbox(peer);
        self.own.set_control(mailbox, 0);
        self.own.set_control(mailbox + 64, 0);
        self.own.set_control(control::busy(peer), 0);
        self.own
            .word(RegionId::Control, control::gate(peer))
            .store(key(incarnation), Ordering::SeqCst);
    }

    /// From now on verbs to `peer` act in its `arena`.
    pub fn connect(&mut self, peer: u8, arena: Arena) {
        if let Some(p) = self.peers.get_mut(usize::from(peer)) {
            *p = Some(Peer { arena });
        }
    }

    /// Whether verbs to `peer` have somewhere to go.
    pub fn connected(&self, peer: u8) -> bool {
        self.peers.get(usize::from(peer)).is_some_and(Option::is_some)
    }

    /// The shell has seen that `peer`'s ccache process has ended: a revoke need not wait for it.
    pub fn dead(&mut self, peer: u8) {
        if usize::from(peer) < MAX_NODES {
            self.dead |= 1 << peer;
        }
    }

    /// The word that peers ring for a message.
    pub fn bell(&self) -> Option<&std::sync::atomic::AtomicU32> {
        self.own.region(RegionId::Control).word32(control::BELL as usize)
    }

    /// The arena to act in, and whether through a gate.
    fn target(&self, peer: u8) -> Result<(&Arena, bool), FabricError> {
        if peer == self.node {
            return Ok((&self.own, false));
        }
        match self.peers.get(usize::from(peer)) {
            Some(Some(p)) => Ok((&p.arena, true)),
            _ => Err(FabricError::Unreachable),
        }
    }

    /// Rule 33: one piece in a peer's arena.
    fn through<R>(
        &self,
        arena: &Arena,
        gated: bool,
        act: impl FnOnce() -> R,
    ) -> Result<R, FabricError> {
        if !gated {
            return Ok(act());
        }
        let busy = arena.word(RegionId::Control, control::busy(self.node));
        let gate = arena.word(RegionId::Control, control::gate(self.node));
        // The fence, and the one between gate and busy word in a revoke, order the two words for both
        // sides: one of them sees the other's.
        busy.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if gate.load(Ordering::SeqCst) != self.key {
            busy.store(0, Ordering::Release);
            return Err(FabricError::Unreachable);
        }
        let r = act();
        busy.store(0, Ordering::Release);
        Ok(r)
    }

    fn word<'a>(&self, arena: &'a Arena, at: Address) -> Result<&'a AtomicU64, FabricError> {
        let word = usize::try_from(at.offset).ok().and_then(|o| {
            if o % 8 != 0 { None } else { arena.region(at.region).words().get(o / 8) }
        });
        word.ok_or(FabricError::Range)
    }

    /// A whole chain; a short one is one piece, for each passage of the gate costs a fence.
    fn act_all(&self, peer: u8, chain: &[Verb]) -> Result<Vec<Outcome>, FabricError> {
        let (arena, gated) = self.target(peer)?;
        let bytes: usize = chain.iter().map(bytes).sum();
        let whole = bytes <= PIECE;
        if !gated && self.acted {
            // The order of chains to one node; where there is a gate, its fence keeps it.
            fence(Ordering::SeqCst);
        }
        let all = || {
            let mut outcomes = Vec::with_capacity(chain.len());
            for verb in chain {
                outcomes.push(self.act(arena, gated && !whole, verb)?);
            }
            Ok(outcomes)
        };
        if whole { self.through(arena, gated, all)? } else { all() }
    }

    fn act(&self, arena: &Arena, gated: bool, verb: &Verb) -> Result<Outcome, FabricError> {
        match verb {
            Verb::Read { at, len } => {
                let len = *len as usize;
                if len == 8 {
                    let word = self.word(arena, *at)?;
                    let w = self.through(arena, gated, || word.load(Ordering::SeqCst))?;
                    return Ok(Outcome::Bytes(w.to_le_bytes().to_vec()));
                }
                check(arena, *at, len)?;
                let mut bytes = vec![0; len];
                let region = arena.region(at.region);
                for (i, piece) in bytes.chunks_mut(PIECE).enumerate() {
                    let offset = at.offset as usize + i * PIECE;
                    self.through(arena, gated, || region.read(offset, piece))?;
                }
                fence(Ordering::Acquire);
                Ok(Outcome::Bytes(bytes))
            }
            Verb::Write { at, data, from, len } => {
                let (from, len) = (*from as usize, *len as usize);
                let bytes = from
                    .checked_add(len)
                    .and_then(|end| data.get(from..end))
                    .ok_or(FabricError::Range)?;
                check(arena, *at, len)?;
                let region = arena.region(at.region);
                fence(Ordering::Release);
                for (i, piece) in bytes.chunks(PIECE).enumerate() {
                    let offset = at.offset as usize + i * PIECE;
                    if !self.through(arena, gated, || region.write(offset, piece))? {
                        return Err(FabricError::Range);
                    }
                }
                Ok(Outcome::Done)
            }
            Verb::WriteWord { at, word: value } => {
                let word = self.word(arena, *at)?;
                self.through(arena, gated, || word.store(*value, Ordering::SeqCst))?;
                Ok(Outcome::Done)
            }
            Verb::CompareSwap { at, expect, new } => {
                let word = self.word(arena, *at)?;
                let swap = || {
                    word.compare_exchange(*expect, *new, Ordering::SeqCst, Ordering::SeqCst)
                        .unwrap_or_else(|w| w)
                };
                self.through(arena, gated, swap).map(Outcome::Word)
            }
            Verb::FetchAdd { at, add } => {
                let word = self.word(arena, *at)?;
                self.through(arena, gated, || word.fetch_add(*add, Ordering::SeqCst))
                    .map(Outcome::Word)
            }
        }
    }

    /// Takes messages from a mailbox; whether that were all.
    fn receive(&mut self, from: u8) -> bool {
        let ring = control::mailbox(from) + 4096;
        for _ in 0..MESSAGES_PER_POLL {
            let tail = self.own.control(control::mailbox(from));
            let head = self.own.control(control::mailbox(from) + 64);
            if tail == head {
                return true;
            }
            let mut message = None;
            let mut next = tail;
            // Only what a well-behaved sender can have written is read; else the ring is skipped.
            if tail.wrapping_sub(head) <= control::MAILBOX_RING
                && head.is_multiple_of(8)
                && tail.is_multiple_of(8)
            {
                let len = self.own.control(ring + head % control::MAILBOX_RING) as usize;
                let step = 8 + len.div_ceil(8) as u64 * 8;
                if len <= control::MAX_MESSAGE && step <= tail.wrapping_sub(head) {
                    let mut bytes = vec![0; len];
                    let at = (head + 8) % control::MAILBOX_RING;
                    let first = len.min((control::MAILBOX_RING - at) as usize);
                    let region = self.own.region(RegionId::Control);
                    let (a, b) = bytes.split_at_mut(first);
                    if region.read((ring + at) as usize, a) && region.read(ring as usize, b) {
                        message = Some(bytes);
                    }
                    next = head + step;
                }
            }
            self.own.set_control(control::mailbox(from) + 64, next);
            if let Some(bytes) = message {
                self.done.push(FabricEvent::Message { from, bytes });
            }
        }
        false
    }
}

/// How many bytes a verb acts on.
fn bytes(verb: &Verb) -> usize {
    match verb {
        Verb::Read { len, .. } | Verb::Write { len, .. } => *len as usize,
        Verb::WriteWord { .. } | Verb::CompareSwap { .. } | Verb::FetchAdd { .. } => 8,
    }
}

fn check(arena: &Arena, at: Address, len: usize) -> Result<(), FabricError> {
    let end = at.offset.checked_add(len as u64).ok_or(FabricError::Range)?;
    let inside = end <= arena.region(at.region).len() as u64;
    if inside && at.offset.is_multiple_of(8) && len.is_multiple_of(8) {
        Ok(())
    } else {
        Err(FabricError::Range)
    }
}

impl Fabric for ShmFabric {
    fn announce(&self, peer: u8, chain: &[Verb]) {
        let Ok((arena, _)) = self.target(peer) else { return };
        for verb in chain {
            let (at, len) = match verb {
                Verb::Read { at, len } | Verb::Write { at, len, .. } => (at, *len as usize),
                Verb::WriteWord { at, .. }
                | Verb::CompareSwap { at, .. }
                | Verb::FetchAdd { at, .. } => (at, 8),
            };
            arena.region(at.region).prefetch(at.offset as usize, len.min(ANNOUNCED));
        }
    }

    fn post(&mut self, peer: u8, token: Token, chain: &[Verb]) {
        let result = self.act_all(peer, chain);
        self.acted = true;
        self.done.push(FabricEvent::Completed { peer, token, result });
    }

    fn send(&mut self, peer: u8, bytes: &[u8]) -> Result<(), FabricError> {
        if bytes.len() > control::MAX_MESSAGE {
            return Err(FabricError::Range);
        }
        let (arena, gated) = self.target(peer)?;
        let mailbox = control::mailbox(self.node);
        let ring = mailbox + 4096;
        let step = 8 + bytes.len().div_ceil(8) as u64 * 8;
        let region = arena.region(RegionId::Control);
        let (tail, head) =
            self.through(arena, gated, || (arena.control(mailbox), arena.control(mailbox + 64)))?;
        if tail.wrapping_sub(head) + step > control::MAILBOX_RING {
            return Err(FabricError::Busy);
        }
        // Nothing is seen before the tail moves, so a message cut off by the gate never was.
        let mut at = (tail + 8) % control::MAILBOX_RING;
        for piece in bytes.chunks(PIECE) {
            let first = piece.len().min((control::MAILBOX_RING - at) as usize);
            self.through(arena, gated, || {
                region.write((ring + at) as usize, &piece[..first])
                    && region.write(ring as usize, &piece[first..])
            })?;
            at = (at + piece.len() as u64) % control::MAILBOX_RING;
        }
        self.through(arena, gated, || {
            arena.set_control(ring + tail % control::MAILBOX_RING, bytes.len() as u64);
            arena.word(RegionId::Control, mailbox).store(tail + step, Ordering::SeqCst);
            if let Some(bell) = region.word32(control::BELL as usize) {
                bell.fetch_add(1, Ordering::SeqCst);
                exec::wake_all(bell);
            }
        })
    }

    fn poll(&mut self, now: u64, out: &mut Vec<FabricEvent>) {
        if std::mem::take(&mut self.acted) {
            // What chains wrote is seen before anything that this node reads once it is told "done": one
            // fence for all of them.
            fence(Ordering::SeqCst);
        }
        if !self.revoking.is_empty() {
            let (own, dead, done) = (&self.own, self.dead, &mut self.done);
            self.revoking.retain_mut(|r| {
                let inside = own.control(control::busy(r.peer)) != 0 && dead & 1 << r.peer == 0;
                if !inside {
                    done.push(FabricEvent::Revoked { peer: r.peer });
                } else if r.stuck.is_some_and(|at| now >= at) {
                    r.stuck = None;
                    done.push(FabricEvent::Stuck { peer: r.peer });
                }
                inside
            });
        }
        // Read before the mailboxes: a message that comes meanwhile rings it again.
        let bell = self.bell().map(|b| b.load(Ordering::SeqCst));
        if bell.is_none() || bell != self.rung {
            let mut all = true;
            let admitted = self.admitted;
            for peer in (0..MAX_NODES as u8).filter(|p| admitted & 1 << p != 0) {
                // What a revoked peer sent before is read no more: it may be from an earlier view.
                all &= peer == self.node || self.receive(peer);
            }
            self.rung = if all { bell } else { None };
        }
        out.append(&mut self.done);
    }

    fn revoke(&mut self, now: u64, peer: u8) {
        if peer == self.node || usize::from(peer) >= MAX_NODES {
            return;
        }
        self.peers[usize::from(peer)] = None;
        self.admitted &= !(1 << peer);
        self.own.word(RegionId::Control, control::gate(peer)).store(0, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.revoking.push(Revoking { peer, stuck: Some(now.saturating_add(REVOKE_BOUND)) });
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    const AT: Address = Address { region: RegionId::Control, offset: control::COUNTERS };

    fn pair() -> (ShmFabric, ShmFabric) {
        let (a, b) = (Arena::anonymous().unwrap(), Arena::anonymous().unwrap());
        let mut fa = ShmFabric::new(0, 7, a.clone());
        let mut fb = ShmFabric::new(1, 9, b.clone());
        fa.admit(1, 9);
        fb.admit(0, 7);
        fa.connect(1, b);
        fb.connect(0, a);
        (fa, fb)
    }

    fn one(f: &mut ShmFabric, peer: u8, chain: &[Verb]) -> Result<Vec<Outcome>, FabricError> {
        f.post(peer, Token(1), chain);
        let mut out = Vec::new();
        f.poll(0, &mut out);
        match out.pop() {
            Some(FabricEvent::Completed { result, .. }) => result,
            other => panic!("{other:?}"),
        }
    }

    struct Three(Vec<ShmFabric>);

    impl conformance::Nodes for Three {
        type End = ShmFabric;
        fn end(&mut self, node: u8) -> &mut ShmFabric {
            &mut self.0[usize::from(node)]
        }
        fn arena(&self, node: u8) -> Arena {
            self.0[usize::from(node)].own.clone()
        }
        fn pass_time(&mut self) {}
        fn kill(&mut self, node: u8) {
            for f in &mut self.0 {
                f.dead(node);
            }
        }
    }

    #[test]
    fn it_conforms() {
        conformance::conformance(|| {
            let arenas = [0, 1, 2].map(|_| Arena::anonymous().unwrap());
            let mut ends = Vec::new();
            for (node, own) in arenas.iter().enumerate() {
                let mut f = ShmFabric::new(node as u8, 7, own.clone());
                for (peer, arena) in arenas.iter().enumerate().filter(|(p, _)| *p != node) {
                    f.admit(peer as u8, 7);
                    f.connect(peer as u8, arena.clone());
                }
                ends.push(f);
            }
            Three(ends)
        });
    }

    #[test]
    fn verbs_do_what_they_say() {
        let (mut a, mut b) = pair();
        let data = Arc::new((0..=255u8).cycle().take(10_000).collect::<Vec<u8>>());
        let page = Address { offset: control::REDO, ..AT };
        let chain = [
            Verb::FetchAdd { at: AT, add: 5 },
            Verb::CompareSwap { at: AT, expect: 5, new: 8 },
            Verb::CompareSwap { at: AT, expect: 5, new: 9 },
            Verb::Write { at: page, data: data.clone(), from: 8, len: 9000 },
            Verb::Read { at: page, len: 9000 },
            Verb::WriteWord { at: AT, word: 3 },
            Verb::Read { at: AT, len: 8 },
        ];
        let got = one(&mut a, 1, &chain).unwrap();
        assert_eq!(got[..3], [Outcome::Word(0), Outcome::Word(5), Outcome::Word(8)]);
        assert_eq!(got[4], Outcome::Bytes(data[8..9008].to_vec()));
        assert_eq!(got[6], Outcome::Bytes(3u64.to_le_bytes().to_vec()));
        assert_eq!(b.own.control(AT.offset), 3);
        for bad in [
            Verb::Read { at: Address { offset: 3, ..AT }, len: 8 },
            Verb::Read { at: AT, len: 12 },
            Verb::Read { at: Address { offset: u64::MAX - 7, ..AT }, len: 16 },
            Verb::FetchAdd { at: Address { offset: control::LEN, ..AT }, add: 1 },
            Verb::Write { at: AT, data, from: 9_999, len: 8 },
        ] {
            assert_eq!(one(&mut a, 1, &[bad]), Err(FabricError::Range));
        }
        assert_eq!(one(&mut b, 5, &[Verb::Read { at: AT, len: 8 }]), Err(FabricError::Unreachable));
    }

    #[test]
    fn messages_keep_their_order_round_the_ring() {
        let (mut a, mut b) = pair();
        let mut out = Vec::new();
        let (mut sent, mut got) = (0u32, 0u32);
        while got < 3000 {
            let len = 4 + (sent as usize * 131) % 9000;
            let mut bytes = sent.to_le_bytes().to_vec();
            bytes.resize(len, sent as u8);
            match a.send(1, &bytes) {
                Ok(()) => sent += 1,
                Err(FabricError::Busy) => {
                    b.poll(0, &mut out);
                    for e in out.drain(..) {
                        let FabricEvent::Message { from: 0, bytes } = e else { panic!() };
                        assert_eq!(bytes[..4], got.to_le_bytes());
                        assert!(bytes[4..].iter().all(|x| *x == got as u8));
                        got += 1;
                    }
                }
                Err(e) => panic!("{e}"),
            }
        }
        assert_eq!(a.send(1, &vec![0; control::MAX_MESSAGE + 1]), Err(FabricError::Range));
    }

    #[test]
    fn a_hostile_mailbox_is_skipped() {
        let (_a, mut b) = pair();
        let mailbox = control::mailbox(0);
        for (tail, len) in [(u64::MAX, 1), (8, 9_000_000), (5, 5), (16, 64), (1 << 40, 0)] {
            b.own.set_control(mailbox + 4096, len);
            b.own.set_control(mailbox + 64, 0);
            b.own.set_control(mailbox, tail);
            b.bell().unwrap().fetch_add(1, Ordering::SeqCst);
            let mut out = Vec::new();
            b.poll(0, &mut out);
            assert!(out.len() <= 1, "{tail} {len}");
            assert_eq!(b.own.control(mailbox + 64), b.own.control(mailbox));
        }
    }

    #[test]
    fn after_a_revoke_nothing_lands() {
        // Rule 33, against a peer that writes all the time from another thread.
        for round in 0..20u64 {
            let (mut a, mut b) = pair();
            let own = b.own.clone();
            let stop = AtomicBool::new(false);
            std::thread::scope(|s| {
                s.spawn(|| {
                    let mut n = 0u64;
                    let page = Address { offset: control::REDO, ..AT };
                    while !stop.load(Ordering::Relaxed) {
                        n += 1;
                        let data = Arc::new(n.to_le_bytes().repeat(3000));
                        let chain = [
                            Verb::Write { at: page, data, from: 0, len: 24_000 },
                            Verb::FetchAdd { at: AT, add: 1 },
                        ];
                        a.post(1, Token(n), &chain);
                    }
                });
                while b.own.control(AT.offset) < 20 + round {
                    std::hint::spin_loop();
                }
                b.revoke(0, 0);
                let mut out = Vec::new();
                while !out.contains(&FabricEvent::Revoked { peer: 0 }) {
                    b.poll(0, &mut out);
                }
                let mut before = vec![0; 24_000];
                assert!(own.region(RegionId::Control).read(control::REDO as usize, &mut before));
                let count = own.control(AT.offset);
                for _ in 0..100 {
                    std::thread::yield_now();
                    let mut after = vec![0; 24_000];
                    assert!(own.region(RegionId::Control).read(control::REDO as usize, &mut after));
                    assert!(before == after && own.control(AT.offset) == count);
                }
                stop.store(true, Ordering::Relaxed);
            });
        }
    }

    #[test]
    fn a_revoke_waits_for_who_is_inside_unless_it_is_dead() {
        let (_a, mut b) = pair();
        // The peer was stopped inside.
        b.own.set_control(control::busy(0), 1);
        b.revoke(100, 0);
        let mut out = Vec::new();
        b.poll(200, &mut out);
        assert!(out.is_empty());
        b.poll(100 + REVOKE_BOUND, &mut out);
        assert_eq!(out, [FabricEvent::Stuck { peer: 0 }]);
        out.clear();
        b.poll(200 + REVOKE_BOUND, &mut out);
        assert!(out.is_empty(), "said once");
        b.dead(0);
        b.poll(300 + REVOKE_BOUND, &mut out);
        assert_eq!(out, [FabricEvent::Revoked { peer: 0 }]);
    }

    #[test]
    fn a_revoke_ends_the_own_use_of_the_peers_arena() {
        // Rule 34; and an old incarnation is not let in where the new one is.
        let (mut a, mut b) = pair();
        b.revoke(0, 0);
        let read = [Verb::Read { at: AT, len: 8 }];
        b.post(0, Token(3), &read);
        let mut out = Vec::new();
        b.poll(0, &mut out);
        let error = Err(FabricError::Unreachable);
        assert!(out.contains(&FabricEvent::Completed { peer: 0, token: Token(3), result: error }));
        b.admit(0, 8);
        assert_eq!(one(&mut a, 1, &read), Err(FabricError::Unreachable));
        assert_eq!(a.send(1, b"late"), Err(FabricError::Unreachable));
    }
}
