//! The personality of one node: what its worker threads share.

use crate::fd::OpenFiles;
use crate::image::Images;
use crate::openers::Openers;
use crate::services::Services;
use crate::state::Running;
use clustix_pd::exec;
use clustix_proto::Errno;
use clustix_proto::errno::EIO;
use clustix_proto::process::Pid;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// Shared by all threads of a personality.
pub struct Node<S: Services> {
    this: Weak<Node<S>>,
    /// The rest of the node.
    pub services: S,
    /// Open file descriptions.
    pub files: OpenFiles,
    /// Inodes that this node has open.
    pub openers: Openers,
    /// File images, for exec and private file mappings.
    pub images: Images,
    /// Running processes.
    processes: Mutex<HashMap<Pid, Arc<Running>>>,
    /// Stubs that ended while what another personality has left is taken over, with their wait statuses.
    strays: Mutex<Vec<(u32, i32)>>,
    /// 1 once what another personality has left is taken over: from then on there are new programs.
    pub ready: AtomicU32,
    /// Odd while a freeze holds.
    pub freeze: AtomicU32,
    /// Bumped and woken when a process sets its timer.
    pub timers: AtomicU32,
}

/// Most programs of one node.
pub const MAX_PROCESSES: usize = 1024;

impl<S: Services> Node<S> {
    /// A personality without processes.
    pub fn new(services: S) -> Arc<Node<S>> {
        Arc::new_cyclic(|this| Node {
            this: this.clone(),
            services,
            files: OpenFiles::new(1),
            openers: Openers::default(),
            images: Images::default(),
            processes: Mutex::default(),
            strays: Mutex::default(),
            ready: AtomicU32::new(0),
            freeze: AtomicU32::new(0),
            timers: AtomicU32::new(0),
        })
    }

    /// Stubs that ended, and are no known process's, until there may be new programs.
    pub(crate) fn strays(&self) -> MutexGuard<'_, Vec<(u32, i32)>> {
        self.strays.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// There may be new programs.
    pub fn open(&self) {
        self.ready.store(1, Ordering::Release);
        exec::wake_all(&self.ready);
    }

    /// Ends when there may be new programs.
    pub async fn opened(&self) {
        while self.ready.load(Ordering::Acquire) == 0 {
            exec::changed(&self.ready, 0).await;
        }
    }

    /// For a new thread's sake.
    pub fn shared(&self) -> Result<Arc<Node<S>>, Errno> {
        self.this.upgrade().ok_or(EIO)
    }

    /// The running processes, by PID.
    pub fn processes(&self) -> MutexGuard<'_, HashMap<Pid, Arc<Running>>> {
        self.processes.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A running process of this node.
    pub fn running(&self, pid: Pid) -> Option<Arc<Running>> {
        self.processes().get(&pid).cloned()
    }

    /// Whether a freeze holds, or is asked for.
    pub fn frozen(&self) -> bool {
        self.freeze.load(Ordering::Acquire) % 2 == 1
    }

    /// Ends when a freeze is asked for.
    pub async fn freezing(&self) {
        loop {
            let seen = self.freeze.load(Ordering::Acquire);
            if seen % 2 == 1 {
                return;
            }
            exec::changed(&self.freeze, seen).await;
        }
    }

    /// Ends when no freeze holds.
    pub async fn thawed(&self) {
        loop {
            let seen = self.freeze.load(Ordering::Acquire);
            if seen.is_multiple_of(2) {
                return;
            }
            exec::changed(&self.freeze, seen).await;
        }
    }
}
