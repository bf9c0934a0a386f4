//! Signals to a command, as a descriptor that can be polled.

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use tokio::signal::unix::{SignalKind, signal};

/// Signals caught since [`Interrupts::new`].
#[derive(Debug)]
pub struct Interrupts {
    event: Arc<OwnedFd>,
    first: Arc<AtomicI32>,
}

impl Interrupts {
    /// Catches INT, TERM and HUP from now on: none of them ends the command by itself any more.
    ///
    /// # Errors
    /// Those of making the thread that catches.
    pub fn new() -> std::io::Result<Interrupts> {
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let first = Arc::new(AtomicI32::new(0));
        let (e, f) = (event.clone(), first.clone());
        catch(&[2, 15, 1], move |number| {
            let _ = f.compare_exchange(0, number, Ordering::AcqRel, Ordering::Acquire);
            let _ = rustix::io::write(&*e, &1u64.to_ne_bytes());
        })?;
        Ok(Interrupts { event, first })
    }

    /// Readable once a signal was caught.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// The first signal caught, if any.
    pub fn caught(&self) -> Option<i32> {
        Some(self.first.load(Ordering::Acquire)).filter(|n| *n != 0)
    }
}

/// Calls `on` with each of these signals, on a thread of its own, from now on.
///
/// # Errors
/// Those of making the thread and of taking the signals over.
pub fn catch(numbers: &[i32], on: impl Fn(i32) + Send + Sync + 'static) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let streams = {
        let _inside = runtime.enter();
        numbers
            .iter()
            .map(|n| signal(SignalKind::from_raw(*n)).map(|s| (*n, s)))
            .collect::<std::io::Result<Vec<_>>>()?
    };
    let on = Arc::new(on);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let set = tokio::task::LocalSet::new();
        for (number, mut stream) in streams {
            let on = on.clone();
            set.spawn_local(async move {
                while stream.recv().await.is_some() {
                    on(number);
                }
            });
        }
        runtime.block_on(set);
    })?;
    Ok(())
}
