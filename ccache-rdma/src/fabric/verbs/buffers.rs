//! A connection's own memory: a word for credits, a ring for what is under way, buffers for messages.
//!
//! One region, two registrations: the peer may write the credit word's page, nothing else.

use super::device::Device;
use super::memory::{Access, Registration};
use super::queue_pair::Local;
use super::wire::HEAD;
use crate::layout::control;
use clustix_pd::Region;
use std::io;
use std::rc::Rc;
use std::sync::atomic::Ordering;

/// Buffers for messages that a peer may have sent and this node not have taken.
pub(super) const RECEIVES: u64 = 64;
/// Length of a message with its head.
pub(super) const MESSAGE: usize = HEAD + control::MAX_MESSAGE;

/// The credit word's page.
const CREDIT: u64 = 4096;
/// Bytes of the ring: a few of the longest pieces (a chunk) at once.
const RING: u64 = 512 * 1024;
/// From one buffer to the next.
const STRIDE: u64 = MESSAGE.next_multiple_of(64) as u64;
const LEN: u64 = CREDIT + RING + STRIDE * RECEIVES;

/// Bytes of the ring, in use from the time a request is prepared until it is complete.
#[derive(Clone, Copy, Debug)]
pub(super) struct Staged {
    offset: u64,
    /// Bytes.
    pub len: u32,
    /// What the ring's tail becomes when it is free again.
    end: u64,
}

/// See the module. Only for as long as its queue pair.
pub(super) struct Buffers {
    own: Registration,
    credit: Registration,
    region: Region,
    head: u64,
    tail: u64,
}

impl Buffers {
    /// Without room for messages, which nobody sends over loopback, if `loopback`.
    ///
    /// # Errors
    /// The memory cannot be had or not be registered.
    pub(super) fn new(device: &Rc<Device>, loopback: bool) -> io::Result<Buffers> {
        let len = if loopback { CREDIT + RING } else { LEN };
        let region = Region::anonymous(len.next_multiple_of(4096) as usize)?;
        let own = Registration::new(device, &region, CREDIT, len - CREDIT, Access::Own)?;
        let credit = Registration::new(device, &region, 0, CREDIT, Access::Remote)?;
        Ok(Buffers { own, credit, region, head: 0, tail: 0 })
    }

    /// With it the peer writes the credit word, which stands at offset 0.
    pub(super) fn credit_key(&self) -> u32 {
        self.credit.remote_key()
    }

    /// The credit word. The peer's, and only as good as what it writes.
    pub(super) fn credit(&self) -> u64 {
        self.region.words()[0].load(Ordering::Acquire)
    }

    /// Room in the ring, if there is any now.
    pub(super) fn stage(&mut self, len: u32) -> Option<Staged> {
        let wanted = u64::from(len).next_multiple_of(8);
        let at = self.head % RING;
        // What does not fit before the end goes to the beginning.
        let skip = if at + wanted > RING { RING - at } else { 0 };
        if self.head + skip + wanted - self.tail > RING {
            return None;
        }
        let offset = CREDIT + (self.head + skip) % RING;
        self.head += skip + wanted;
        Some(Staged { offset, len, end: self.head })
    }

    /// Gives back `staged` and all before it.
    pub(super) fn release(&mut self, staged: Staged) {
        self.tail = self.tail.max(staged.end);
    }

    /// For a work request.
    pub(super) fn local(&self, staged: Staged) -> Local {
        self.own.local(staged.offset, staged.len)
    }

    pub(super) fn write(&self, staged: Staged, bytes: &[u8]) {
        let inside = self.region.write(staged.offset as usize, bytes);
        debug_assert!(inside && bytes.len() == staged.len as usize);
    }

    pub(super) fn read(&self, staged: Staged, into: &mut [u8]) {
        let inside = self.region.read(staged.offset as usize, into);
        debug_assert!(inside && into.len() == staged.len as usize);
    }

    pub(super) fn read_word(&self, staged: Staged) -> u64 {
        let word = self.region.words().get(staged.offset as usize / 8);
        word.map_or(0, |w| w.load(Ordering::Acquire))
    }

    /// The buffer for a message.
    pub(super) fn receive(&self, index: u64) -> Local {
        self.own.local(CREDIT + RING + index * STRIDE, MESSAGE as u32)
    }

    /// What came into a buffer.
    pub(super) fn received(&self, index: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len.min(MESSAGE)];
        let at = CREDIT + RING + index * STRIDE;
        let inside = self.region.read(at as usize, &mut bytes);
        debug_assert!(inside);
        bytes
    }
}
