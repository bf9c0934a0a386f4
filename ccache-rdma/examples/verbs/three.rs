//! Three ends in one process, which find each other through one address.

use crate::fail;
use clustix_ccache::arena::Arena;
use clustix_ccache::fabric::conformance::{self, Nodes};
use clustix_ccache::fabric::{Address, Fabric, Token, Verb};
use clustix_ccache::layout::{RegionId, control};
use clustix_ccache::network::Network;
use clustix_ccache::network::verbs::{VerbsConfig, VerbsNetwork};
use clustix_pd::{exec, metrics};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// The cluster's.
pub const TOKEN: u64 = 0x5eed;
/// Of every end.
pub const INCARNATION: u64 = 7;
/// For ends to find each other; emulated machines are slow.
pub const BOUND: Duration = Duration::from_secs(30);

/// See the module.
pub struct Three {
    ends: Vec<Option<VerbsNetwork>>,
    arenas: Vec<Arena>,
}

/// An end's, with the rest as usual.
pub fn config(ip: IpAddr, token: u64) -> VerbsConfig {
    VerbsConfig::new(SocketAddr::new(ip, 0), token)
}

impl Three {
    /// Makes them, open to each other.
    pub fn new(ip: IpAddr) -> Three {
        let arenas: Vec<Arena> =
            (0..3).map(|_| Arena::anonymous().unwrap_or_else(|e| fail("no memory", &e))).collect();
        let ends = (0..3u8).map(|slot| {
            let own = arenas[usize::from(slot)].clone();
            let made = VerbsNetwork::new(config(ip, TOKEN), slot, INCARNATION, own);
            Some(made.unwrap_or_else(|e| fail("no fabric", &e)))
        });
        let mut three = Three { ends: ends.collect(), arenas };
        three.open();
        three.learn();
        three
    }

    /// Opens all ways.
    fn open(&mut self) {
        let begun = Instant::now();
        let paths: Vec<String> = (0..3).map(|n| self.end(n).address().to_string()).collect();
        for (node, peer) in pairs() {
            self.end(node).admit(peer, INCARNATION);
        }
        loop {
            let mut open = true;
            for (node, peer) in pairs() {
                let end = self.end(node);
                end.open(exec::now_ns(), peer, INCARNATION, &paths[usize::from(peer)]);
                end.look(exec::now_ns(), &mut Vec::new());
                open &= end.is_open(peer, INCARNATION);
            }
            if open {
                return;
            }
            if begun.elapsed() > BOUND {
                fail("the ends do not find each other", &"time is up");
            }
            self.pass_time();
        }
    }

    /// Lets everyone know the keys that the suite needs, so that what it does is on its way at once.
    fn learn(&mut self) {
        let at = Address { region: RegionId::Control, offset: control::REDO };
        for node in 0..3 {
            for peer in 0..3 {
                self.end(node).post(peer, Token(0), &[Verb::Read { at, len: 8 }]);
            }
        }
        let mut left = 9;
        let begun = Instant::now();
        while left > 0 {
            for node in 0..3 {
                let mut out = Vec::new();
                self.end(node).poll(0, &mut out);
                left -= out.len();
            }
            self.pass_time();
            if begun.elapsed() > BOUND {
                fail("keys are not learnt", &"time is up");
            }
        }
    }
}

fn pairs() -> impl Iterator<Item = (u8, u8)> {
    (0..3).flat_map(|a| (0..3).filter(move |b| *b != a).map(move |b| (a, b)))
}

impl conformance::Nodes for Three {
    type End = VerbsNetwork;
    fn end(&mut self, node: u8) -> &mut VerbsNetwork {
        match &mut self.ends[usize::from(node)] {
            Some(end) => end,
            None => fail("that end is dead", &node),
        }
    }
    fn arena(&self, node: u8) -> Arena {
        self.arenas[usize::from(node)].clone()
    }
    fn pass_time(&mut self) {
        std::thread::sleep(Duration::from_micros(20));
    }
    fn kill(&mut self, node: u8) {
        self.ends[usize::from(node)] = None;
        for (peer, end) in self.ends.iter_mut().enumerate() {
            if let Some(end) = end.as_mut().filter(|_| peer != usize::from(node)) {
                end.dead(node);
            }
        }
    }
}

/// Another cluster's token, another incarnation, one whom no view names: none of them gets a way.
pub fn strangers_are_not_let_in(ip: IpAddr) {
    let end = |slot, token, incarnation| {
        let arena = Arena::anonymous().unwrap_or_else(|e| fail("no memory", &e));
        VerbsNetwork::new(config(ip, token), slot, incarnation, arena)
            .unwrap_or_else(|e| fail("no fabric", &e))
    };
    // Whose token, in which incarnation, which one of the other it means, and whether it is named.
    for (token, incarnation, meant, named) in [
        (TOKEN + 1, INCARNATION, INCARNATION, true),
        (TOKEN, INCARNATION + 1, INCARNATION, true),
        (TOKEN, INCARNATION, INCARNATION + 1, true),
        (TOKEN, INCARNATION, INCARNATION, false),
    ] {
        let (mut a, mut b) = (end(0, token, incarnation), end(1, TOKEN, INCARNATION));
        let path = b.address().to_string();
        a.admit(1, meant);
        if named {
            b.admit(0, INCARNATION);
        }
        let before = metrics::get("clustix_verbs_rejected_total");
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            a.open(exec::now_ns(), 1, meant, &path);
            a.look(exec::now_ns(), &mut Vec::new());
            b.look(exec::now_ns(), &mut Vec::new());
            assert!(!a.is_open(1, meant) && !b.is_open(0, incarnation));
            std::thread::sleep(Duration::from_millis(1));
        }
        let wrong = token != TOKEN || meant != INCARNATION;
        let rejected = metrics::get("clustix_verbs_rejected_total") > before;
        assert_eq!(rejected, wrong, "who may be named later is kept waiting, others are not");
        if !named {
            // The view comes, and with it the way, without another request.
            b.admit(0, INCARNATION);
            let until = Instant::now() + BOUND;
            while !(a.is_open(1, meant) && b.is_open(0, incarnation)) {
                a.look(exec::now_ns(), &mut Vec::new());
                b.look(exec::now_ns(), &mut Vec::new());
                assert!(Instant::now() < until, "who was kept waiting is let in");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
