//! The network of nodes on one machine: [`ShmFabric`] over the arenas that [`Links`] bring.

use super::{Broken, Network};
use crate::arena::Arena;
use crate::fabric::shm::ShmFabric;
use crate::fabric::{Fabric, FabricError, FabricEvent, Token, Verb};
use crate::layout::control;
use crate::links::{LinkEvent, Links};
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU32;

/// One node's.
pub struct ShmNetwork {
    slot: u8,
    /// What its gate in a peer's arena says once the peer has let it in.
    key: u64,
    fabric: ShmFabric,
    links: Links,
}

impl ShmNetwork {
    /// For the node `slot` with the arena `own`; as [`Links::new`].
    pub fn new(
        slot: u8,
        incarnation: u64,
        owner: u32,
        listener: Option<OwnedFd>,
        own: Arena,
    ) -> ShmNetwork {
        ShmNetwork {
            slot,
            key: incarnation.wrapping_add(1),
            fabric: ShmFabric::new(slot, incarnation, own.clone()),
            links: Links::new(slot, incarnation, owner, listener, own),
        }
    }
}

impl Fabric for ShmNetwork {
    fn announce(&self, peer: u8, chain: &[Verb]) {
        self.fabric.announce(peer, chain);
    }
    fn post(&mut self, peer: u8, token: Token, chain: &[Verb]) {
        self.fabric.post(peer, token, chain);
    }
    fn send(&mut self, peer: u8, bytes: &[u8]) -> Result<(), FabricError> {
        self.fabric.send(peer, bytes)
    }
    fn poll(&mut self, now: u64, out: &mut Vec<FabricEvent>) {
        self.fabric.poll(now, out);
    }
    fn revoke(&mut self, now: u64, peer: u8) {
        self.fabric.revoke(now, peer);
    }
}

impl Network for ShmNetwork {
    fn admit(&mut self, peer: u8, incarnation: u64) {
        self.fabric.admit(peer, incarnation);
    }

    fn open(&mut self, now: u64, peer: u8, incarnation: u64, path: &str) {
        self.links.dial(now, peer, incarnation, path);
    }

    fn is_open(&mut self, peer: u8, incarnation: u64) -> bool {
        let Some(arena) = self.links.arena(peer, incarnation) else { return false };
        if !self.fabric.connected(peer) {
            self.fabric.connect(peer, arena.clone());
        }
        // Its gate opens when the peer has the view too.
        arena.control(control::gate(self.slot)) == self.key
    }

    fn look(&mut self, now: u64, broken: &mut Vec<Broken>) {
        let mut news = Vec::new();
        self.links.poll(now, &mut news);
        broken.extend(news.into_iter().filter_map(|event| match event {
            LinkEvent::Up(..) => None,
            LinkEvent::Broken(slot, incarnation) => {
                Some(Broken { slot, incarnation, ended: false })
            }
            LinkEvent::Ended(slot, incarnation) => Some(Broken { slot, incarnation, ended: true }),
        }));
    }

    fn is_opening(&self) -> bool {
        self.links.busy()
    }

    fn dead(&mut self, peer: u8) {
        self.fabric.dead(peer);
    }

    fn kill(&mut self, peer: u8) {
        self.links.kill(peer);
    }

    fn bell(&self) -> Option<&AtomicU32> {
        self.fabric.bell()
    }
}
