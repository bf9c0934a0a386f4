//! The simulator's fabric keeps what every fabric promises, on wires of all kinds.

use clustix_ccache::arena::Arena;
use clustix_ccache::fabric::conformance::{Nodes, conformance};
use clustix_sim::fabric::SimFabric;
use clustix_sim::net::{Net, Wire};
use std::cell::RefCell;
use std::rc::Rc;

struct Three {
    net: Rc<RefCell<Net>>,
    ends: Vec<SimFabric>,
    arenas: Vec<Arena>,
}

impl Three {
    fn new(seed: u64, wire: Wire) -> Three {
        let net = Rc::new(RefCell::new(Net::new(seed, wire)));
        let arenas: Vec<Arena> = (0..3).map(|_| Arena::anonymous().unwrap()).collect();
        let end = |(node, own): (usize, &Arena)| SimFabric::new(&net, node as u8, 7, own.clone());
        let mut ends: Vec<SimFabric> = arenas.iter().enumerate().map(end).collect();
        for node in 0..3u8 {
            for peer in (0..3).filter(|p| *p != node) {
                ends[usize::from(node)].admit(peer, 7);
                ends[usize::from(node)].connect(peer, 7);
            }
        }
        Three { net, ends, arenas }
    }
}

impl Nodes for Three {
    type End = SimFabric;
    fn end(&mut self, node: u8) -> &mut SimFabric {
        &mut self.ends[usize::from(node)]
    }
    fn arena(&self, node: u8) -> Arena {
        self.arenas[usize::from(node)].clone()
    }
    fn pass_time(&mut self) {
        self.net.borrow_mut().run_one();
    }
    fn kill(&mut self, node: u8) {
        let port = self.ends[usize::from(node)].port();
        self.net.borrow_mut().kill(port);
    }
}

#[test]
fn it_conforms() {
    for seed in 0..24 {
        println!("seed {seed}");
        let wire = Wire {
            slow_one_in: [0, 20][seed as usize % 2],
            dead_memory_acts: seed % 3 == 0,
            packet: [64, 1024][seed as usize % 2],
            ..Wire::default()
        };
        conformance(|| Three::new(seed, wire.clone()));
    }
}

#[test]
fn a_cut_link_ends_in_errors_and_a_short_cut_in_none() {
    use clustix_ccache::fabric::{Address, Fabric, FabricError, FabricEvent, Token, Verb};
    use clustix_ccache::layout::{RegionId, control};
    let at = Address { region: RegionId::Control, offset: control::COUNTERS };
    for seed in 0..24 {
        println!("seed {seed}");
        let wire = Wire { slow_one_in: 0, ..Wire::default() };
        let retry = wire.retry_ns;
        for (heals, cut_after) in [(true, 0), (false, 0), (false, 1), (false, 2)] {
            let mut n = Three::new(seed, wire.clone());
            n.end(0).post(1, Token(1), &[Verb::FetchAdd { at, add: 1 }]);
            // Before the verb acts, or after it and before anyone is told.
            for _ in 0..cut_after {
                n.pass_time();
            }
            n.net.borrow_mut().cut(0, 1, true);
            if heals {
                n.net.borrow_mut().now += retry / 2;
                n.net.borrow_mut().cut(0, 1, false);
            }
            let mut out = Vec::new();
            n.end(0).poll(0, &mut out);
            while out.is_empty() {
                assert!(n.net.borrow_mut().run_one(), "it ends");
                n.end(0).poll(0, &mut out);
            }
            let [FabricEvent::Completed { result, .. }] = &out[..] else { panic!("{out:?}") };
            let acted = n.arena(1).control(at.offset);
            assert!(acted <= 1);
            match result {
                Ok(_) => assert!(acted == 1 && (heals || cut_after == 2)),
                Err(e) => assert!(*e == FabricError::Unreachable && !heals),
            }
            assert!(heals || n.net.borrow().now >= retry || result.is_ok());
        }
    }
}
