//! What is under way between a client and its program: frames, input, output; all bounded.

use crate::wire::{self, CHUNK, CREDIT, Input};
use clustix_pd::exec;
use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

pub(super) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the peer sent and no task has taken yet.
pub(super) struct Inbox {
    queue: Mutex<VecDeque<Input>>,
    /// Rung when there is room again, or nobody takes any more.
    room: Condvar,
    closed: AtomicBool,
    /// Counts the changes; the executor sleeps on it.
    word: AtomicU32,
}

impl Inbox {
    /// Most frames waiting. Bytes of standard input are bounded by their credit besides.
    const BOUND: usize = 4096;

    pub fn new() -> Inbox {
        Inbox {
            queue: Mutex::default(),
            room: Condvar::new(),
            closed: AtomicBool::new(false),
            word: AtomicU32::new(0),
        }
    }

    /// Waits for room; `false`: nobody takes any more.
    fn push(&self, input: Input) -> bool {
        let mut queue = lock(&self.queue);
        while queue.len() >= Self::BOUND && !self.closed.load(Ordering::Acquire) {
            queue = self.room.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if self.closed.load(Ordering::Acquire) {
            return false;
        }
        queue.push_back(input);
        drop(queue);
        self.word.fetch_add(2, Ordering::AcqRel);
        exec::wake_all(&self.word);
        true
    }

    /// Nobody takes any more.
    pub fn close(&self) {
        let _queue = lock(&self.queue);
        self.closed.store(true, Ordering::Release);
        self.room.notify_all();
    }

    /// The peer is gone: bit 0 of the word.
    pub fn end(&self) {
        self.word.fetch_or(1, Ordering::AcqRel);
        exec::wake_all(&self.word);
    }

    /// The next frame; `None`: the peer is gone.
    pub async fn next(&self) -> Option<Input> {
        loop {
            let seen = self.word.load(Ordering::Acquire);
            if let Some(input) = lock(&self.queue).pop_front() {
                self.room.notify_one();
                return Some(input);
            }
            if seen & 1 == 1 {
                return None;
            }
            exec::changed(&self.word, seen).await;
        }
    }
}

/// Reads the peer's frames until it goes. A thread of its own.
pub(super) fn read(mut from: UnixStream, inbox: &Inbox) {
    // A malformed frame ends the connection.
    while let Ok(Some(input)) = wire::receive::<Input>(&mut from) {
        if !inbox.push(input) {
            break;
        }
    }
    inbox.end();
}

/// Standard input on its way: at most the credit's bytes, and its end.
pub(super) struct Words {
    queue: Mutex<VecDeque<Vec<u8>>>,
    more: AtomicU32,
}

impl Words {
    pub fn new() -> Words {
        Words { queue: Mutex::default(), more: AtomicU32::new(0) }
    }

    /// `false`: the peer sent more than its credit.
    pub fn push(&self, bytes: Vec<u8>) -> bool {
        let mut queue = lock(&self.queue);
        queue.push_back(bytes);
        // An entry without bytes counts, too.
        let waiting: usize = queue.iter().map(|bytes| bytes.len().max(1)).sum();
        drop(queue);
        self.more.fetch_add(1, Ordering::AcqRel);
        exec::wake_all(&self.more);
        waiting <= CREDIT as usize + 1
    }

    pub async fn next(&self) -> Vec<u8> {
        loop {
            let seen = self.more.load(Ordering::Acquire);
            if let Some(bytes) = lock(&self.queue).pop_front() {
                return bytes;
            }
            exec::changed(&self.more, seen).await;
        }
    }
}

/// One output: how far it was sent, and how far the peer has taken it. Positions count the bytes of the
/// output's whole life.
pub(super) struct Flow {
    sent: AtomicU64,
    taken: AtomicU64,
    closed: AtomicBool,
    /// Counts what the peer said; the executor sleeps on it.
    bell: AtomicU32,
}

impl Flow {
    /// From this position on.
    pub fn new(at: u64) -> Flow {
        Flow {
            sent: AtomicU64::new(at),
            taken: AtomicU64::new(at),
            closed: AtomicBool::new(false),
            bell: AtomicU32::new(0),
        }
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Acquire)
    }

    /// Nobody reads it any more.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// To be read before what [`Flow::rung`] is to notice.
    pub fn bell(&self) -> u32 {
        self.bell.load(Ordering::Acquire)
    }

    /// Ends when the peer has said something since.
    pub async fn rung(&self, since: u32) {
        exec::changed(&self.bell, since).await;
    }

    /// Bytes that may be sent now.
    pub fn room(&self) -> usize {
        let under_way = self.sent().saturating_sub(self.taken());
        u64::from(CREDIT).saturating_sub(under_way).min(CHUNK as u64) as usize
    }

    /// The task that sends says so: so many bytes from `at` on. Those before it that were not sent are gone.
    pub fn send(&self, at: u64, bytes: usize) {
        let gone = at.saturating_sub(self.sent());
        self.taken.fetch_add(gone, Ordering::AcqRel);
        self.sent.store(at + bytes as u64, Ordering::Release);
    }

    /// The peer's word: what was not sent it cannot have taken.
    pub fn take_upto(&self, position: u64) {
        self.taken.fetch_max(position.min(self.sent()), Ordering::AcqRel);
        self.ring();
    }

    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.ring();
    }

    fn ring(&self) {
        self.bell.fetch_add(1, Ordering::AcqRel);
        exec::wake_all(&self.bell);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_keeps_to_its_credit_and_believes_no_more_than_was_sent() {
        let flow = Flow::new(1000);
        assert_eq!(flow.room(), CHUNK);
        flow.send(1000, CREDIT as usize - 10);
        assert_eq!(flow.room(), 10);
        flow.take_upto(2000);
        assert_eq!((flow.taken(), flow.room()), (2000, 1010));
        flow.take_upto(1500);
        assert_eq!(flow.taken(), 2000, "positions only go on");
        flow.take_upto(u64::MAX);
        assert_eq!(flow.taken(), flow.sent());
        flow.send(flow.sent() + 5, 3);
        assert_eq!(flow.sent() - flow.taken(), 3, "what is gone is not under way");
    }

    #[test]
    fn more_input_than_the_credit_is_noticed() {
        let words = Words::new();
        assert!(words.push(vec![0; CREDIT as usize]));
        assert!(words.push(vec![]), "the end");
        assert!(!words.push(vec![]), "only once");
        assert_eq!(exec::block_on(words.next()).len(), CREDIT as usize);
    }
}
