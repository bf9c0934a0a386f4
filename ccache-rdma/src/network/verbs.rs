//! The network of nodes with RDMA devices.

use super::{Broken, Network};
use crate::arena::Arena;
use crate::fabric::verbs::VerbsFabric;
use crate::fabric::{Fabric, FabricError, FabricEvent, Token, Verb};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU32;

pub use crate::fabric::verbs::config::{Patience, VerbsConfig};

/// One node's.
pub struct VerbsNetwork(VerbsFabric);

impl VerbsNetwork {
    /// For the node `slot` with the arena `own`. Opens the device and listens: to be called before a
    /// sandbox is entered.
    ///
    /// # Errors
    /// As [`VerbsFabric::new`].
    pub fn new(
        config: VerbsConfig,
        slot: u8,
        incarnation: u64,
        own: Arena,
    ) -> io::Result<VerbsNetwork> {
        VerbsFabric::new(config, slot, incarnation, own).map(VerbsNetwork)
    }

    /// Where peers connect: what the node's member entry is to say.
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// Name of the device, such as `rxe0`.
    pub fn device(&self) -> String {
        self.0.device()
    }
}

impl Fabric for VerbsNetwork {
    fn post(&mut self, peer: u8, token: Token, chain: &[Verb]) {
        self.0.post(peer, token, chain);
    }
    fn send(&mut self, peer: u8, bytes: &[u8]) -> Result<(), FabricError> {
        self.0.send(peer, bytes)
    }
    fn poll(&mut self, now: u64, out: &mut Vec<FabricEvent>) {
        self.0.poll(now, out);
    }
    fn revoke(&mut self, now: u64, peer: u8) {
        self.0.revoke(now, peer);
    }
}

impl Network for VerbsNetwork {
    fn admit(&mut self, peer: u8, incarnation: u64) {
        self.0.admit(peer, incarnation);
    }

    fn open(&mut self, _now: u64, peer: u8, incarnation: u64, path: &str) {
        self.0.dial(peer, incarnation, path);
    }

    fn is_open(&mut self, peer: u8, incarnation: u64) -> bool {
        self.0.is_open(peer, incarnation)
    }

    fn look(&mut self, _now: u64, broken: &mut Vec<Broken>) {
        self.0.look(broken);
    }

    fn is_opening(&self) -> bool {
        self.0.is_opening()
    }

    fn dead(&mut self, peer: u8) {
        self.0.dead(peer);
    }

    /// Nothing: another machine's process cannot be killed from here, and no revoke waits for it.
    fn kill(&mut self, _peer: u8) {}

    fn bell(&self) -> Option<&AtomicU32> {
        Some(self.0.bell())
    }
}
