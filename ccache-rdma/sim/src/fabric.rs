//! The fabric `sim`: one node's end of a [`Net`].

use crate::net::Net;
use clustix_ccache::arena::Arena;
use clustix_ccache::fabric::{Fabric, FabricError, FabricEvent, Token, Verb};
use std::cell::RefCell;
use std::rc::Rc;

/// One node's end. Time passes, and verbs act, only as [`Net::run_one`] is called.
pub struct SimFabric {
    net: Rc<RefCell<Net>>,
    port: usize,
}

impl SimFabric {
    /// For a node's own arena. Every gate is closed at first.
    pub fn new(net: &Rc<RefCell<Net>>, slot: u8, incarnation: u64, own: Arena) -> SimFabric {
        let port = net.borrow_mut().join(slot, incarnation, own);
        SimFabric { net: net.clone(), port }
    }
    /// Number of this end.
    pub fn port(&self) -> usize {
        self.port
    }
    /// Lets that incarnation of `peer` into this node's arena, with an empty mailbox.
    pub fn admit(&mut self, peer: u8, incarnation: u64) {
        self.net.borrow_mut().admit(self.port, peer, incarnation);
    }
    /// From now on verbs to `peer` act in that incarnation's arena.
    pub fn connect(&mut self, peer: u8, incarnation: u64) {
        self.net.borrow_mut().connect(self.port, peer, incarnation);
    }
}

impl Fabric for SimFabric {
    fn post(&mut self, peer: u8, token: Token, chain: &[Verb]) {
        self.net.borrow_mut().post(self.port, peer, token, chain);
    }
    fn send(&mut self, peer: u8, bytes: &[u8]) -> Result<(), FabricError> {
        self.net.borrow_mut().send(self.port, peer, bytes)
    }
    fn poll(&mut self, _now: u64, out: &mut Vec<FabricEvent>) {
        self.net.borrow_mut().poll(self.port, out);
    }
    fn revoke(&mut self, _now: u64, peer: u8) {
        self.net.borrow_mut().revoke(self.port, peer);
    }
}
