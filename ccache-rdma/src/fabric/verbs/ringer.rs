//! Rings the bell of a ccache that sleeps: ccache waits on futex words, devices tell by descriptors.
//!
//! A thread of its own sleeps on the completion channel's and the connection manager's descriptors,
//! edge-triggered: it says *that* there is something and never takes it, so that verbs are called by
//! one thread only. It ends with its owner.

use clustix_pd::exec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;

const COMPLETIONS: u64 = 1;
const CONNECTIONS: u64 = 2;
const END: u64 = 3;

#[derive(Default)]
struct Shared {
    bell: AtomicU32,
    completions: AtomicBool,
    connections: AtomicBool,
}

/// The thread, and what it has seen.
pub(super) struct Ringer {
    shared: Arc<Shared>,
    end: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Ringer {
    /// Starts it. The descriptors must stay open until this is dropped.
    pub(super) fn start(
        completions: BorrowedFd<'_>,
        connections: BorrowedFd<'_>,
    ) -> io::Result<Ringer> {
        let news = epoll::create(CreateFlags::CLOEXEC)?;
        let end = eventfd(0, EventfdFlags::CLOEXEC)?;
        let edge = EventFlags::IN | EventFlags::ET;
        epoll::add(&news, completions, EventData::new_u64(COMPLETIONS), edge)?;
        epoll::add(&news, connections, EventData::new_u64(CONNECTIONS), edge)?;
        epoll::add(&news, &end, EventData::new_u64(END), EventFlags::IN)?;
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("ringer".into())
            .spawn(move || ring(&news, &of_thread))?;
        Ok(Ringer { shared, end, thread: Some(thread) })
    }

    /// The word that is rung.
    pub(super) fn bell(&self) -> &AtomicU32 {
        &self.shared.bell
    }

    /// Whether the completion channel has had an event since the last call.
    pub(super) fn take_completions(&self) -> bool {
        self.shared.completions.load(Ordering::Relaxed)
            && self.shared.completions.swap(false, Ordering::SeqCst)
    }

    /// Whether there may be events of connections.
    pub(super) fn take_connections(&self) -> bool {
        self.shared.connections.load(Ordering::Relaxed)
            && self.shared.connections.swap(false, Ordering::SeqCst)
    }
}

fn ring(news: &OwnedFd, shared: &Shared) {
    let mut events = Vec::with_capacity(4);
    loop {
        events.clear();
        match epoll::wait(news, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            // Nothing can be waited for any more; ccache's own timers still look.
            Err(_) => return,
        }
        for event in &events {
            match event.data.u64() {
                COMPLETIONS => shared.completions.store(true, Ordering::SeqCst),
                CONNECTIONS => shared.connections.store(true, Ordering::SeqCst),
                _ => return,
            }
        }
        shared.bell.fetch_add(1, Ordering::SeqCst);
        exec::wake_all(&shared.bell);
    }
}

impl Drop for Ringer {
    fn drop(&mut self) {
        let told = rustix::io::write(&self.end, &1u64.to_ne_bytes());
        if let (Ok(_), Some(thread)) = (told, self.thread.take()) {
            // It has nothing to fail at.
            let _ = thread.join();
        }
    }
}
