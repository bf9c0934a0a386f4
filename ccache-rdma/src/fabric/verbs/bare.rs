//! Queue pairs with nothing above them: the reference beside which the fabric is measured.

use super::config::{Patience, VerbsConfig};
use super::connection::Connections;
use super::device::{Completion, Device};
use super::memory::{Access, Registration};
use super::queue_pair::{QueuePair, Remote, Work};
use clustix_pd::Region;
use std::io;
use std::rc::Rc;

/// Bytes that verbs may act on, at either end.
pub const LEN: u64 = 64 * 1024;

/// A verb.
#[derive(Clone, Copy, Debug)]
pub enum Bare {
    /// Reads so many bytes.
    Read(u32),
    /// Writes so many bytes.
    Write(u32),
    /// Compares and swaps a word.
    CompareSwap,
    /// Adds to a word.
    FetchAdd,
    /// Sends so many bytes. The other end has a buffer for each.
    Send(u32),
}

/// Two queue pairs of one device, connected with each other.
pub struct Pair {
    near: QueuePair,
    far: QueuePair,
    own: Registration,
    target: Registration,
    device: Rc<Device>,
}

impl Pair {
    /// On the device that has the address.
    ///
    /// # Errors
    /// As [`super::VerbsFabric::new`].
    pub fn new(config: &VerbsConfig) -> io::Result<Pair> {
        let listener = Connections::new()?.listen(config.listen)?;
        let device = Rc::new(Device::open(listener, config.device.as_deref())?);
        let (near, far) = (QueuePair::new(&device, 1)?, QueuePair::new(&device, 1)?);
        near.join_local(&far, Patience::EMULATED)?;
        far.join_local(&near, Patience::EMULATED)?;
        let own = Region::anonymous(LEN as usize)?;
        let target = Region::anonymous(LEN as usize)?;
        let own = Registration::new(&device, &own, 0, LEN, Access::Own)?;
        let target = Registration::new(&device, &target, 0, LEN, Access::Remote)?;
        Ok(Pair { near, far, own, target, device })
    }

    /// Does a chain, and waits for its last by yielding.
    ///
    /// # Errors
    /// The device refuses, or a request fails.
    pub fn act(&mut self, chain: &[Bare]) -> io::Result<()> {
        let at = Remote { offset: 0, key: self.target.remote_key() };
        let mut wanted = 1;
        for verb in chain {
            let (work, len) = match *verb {
                Bare::Read(len) => (Work::Read(at), len),
                Bare::Write(len) => (Work::Write(at), len),
                Bare::CompareSwap => (Work::CompareSwap(at, 0, 0), 8),
                Bare::FetchAdd => (Work::FetchAdd(at, 1), 8),
                Bare::Send(len) => {
                    self.far.receive(0, self.own.local(LEN / 2, len))?;
                    wanted += 1;
                    (Work::Send, len)
                }
            };
            self.near.add(0, work, self.own.local(0, len), false);
        }
        self.near.post()?;
        let mut found = [Completion { id: 0, ok: false, status: 0, len: 0 }; 4];
        while wanted > 0 {
            let n = self.device.poll(&mut found);
            if let Some(bad) = found[..n].iter().find(|c| !c.ok) {
                return Err(io::Error::other(format!("work completion status {}", bad.status)));
            }
            wanted -= n.min(wanted);
            if n == 0 {
                std::thread::yield_now();
            }
        }
        Ok(())
    }
}
