//! This node's side of "who has this inode open": [`clustix_vfs::open::Openers`] shared by the
//! personality's threads, and the calls that it asks for.

use crate::services::Services;
use clustix_pd::exec;
use clustix_proto::Answer;
use clustix_proto::vfs::Request;
use clustix_vfs::open::{Openers as Table, Opening};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};

/// How often inodes that were closed here are looked at for a lost last name, ns.
const SWEEP_NS: u64 = 200_000_000;

/// See the module. Holds nothing that could not be counted again from the slab.
#[derive(Default)]
pub struct Openers {
    table: Mutex<Table>,
    /// Bumped when a change that others may wait for is over, and when something lingers.
    changes: AtomicU32,
}

impl Openers {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
        exec::wake_all(&self.changes);
    }

    /// Counts one more open file description of `ino`; `noted`: the inode, as just read, has this
    /// node's bit set. ENOENT: it was removed since it was found.
    pub async fn open<S: Services>(&self, services: &S, ino: u64, noted: bool) -> Answer<()> {
        loop {
            let seen = self.changes.load(Ordering::Acquire);
            let opening = self.table().open(ino, noted);
            match opening {
                Opening::Noted => return Ok(()),
                Opening::Wait => {
                    exec::changed(&self.changes, seen).await;
                }
                Opening::Tell => {
                    // The library, not the server: one wake-up instead of two.
                    let answer = clustix_vfs::open::opened(services.cache(), ino).await;
                    match answer {
                        Ok(_) => self.table().noted(ino),
                        Err(_) => {
                            self.table().close(ino, false);
                        }
                    }
                    self.changed();
                    return answer.map(|_| ());
                }
            }
        }
    }

    /// Counts one open file description fewer.
    pub async fn close<S: Services>(&self, services: &S, ino: u64) {
        let nameless = match clustix_vfs::stat(services.cache(), ino).await {
            Ok(found) => found.inode.nlink == 0,
            Err(_) => true,
        };
        let tell = self.table().close(ino, nameless);
        if let Some(ino) = tell {
            self.tell_closed(services, ino).await;
        }
    }

    async fn tell_closed<S: Services>(&self, services: &S, ino: u64) {
        if let Err(e) = services.vfs(&Request::Closed { ino }).await {
            // The bit stays set until this node opens and closes the inode again, or leaves.
            tracing::warn!("inode {ino} stays marked as open here: {e}");
        }
        self.table().gone(ino);
        self.changed();
    }

    /// After an unlink or rename that left inode `ino` without names but marked as open: lets it go
    /// now if this node does not use it.
    pub async fn nameless<S: Services>(&self, services: &S, ino: u64) {
        let tell = {
            let mut table = self.table();
            match table.unnamed(ino) {
                Some(ino) => Some(ino),
                // Marked before this personality counted: nobody here has it open.
                None if table.count(ino) == 0 && table.open(ino, true) == Opening::Noted => {
                    table.close(ino, true)
                }
                None => None,
            }
        };
        if let Some(ino) = tell {
            self.tell_closed(services, ino).await;
        }
    }

    /// A task's loop: lets go of inodes that linger here and lost their last name elsewhere.
    pub async fn run<S: Services>(&self, services: &S) {
        loop {
            exec::sleep_until(exec::now_ns() + SWEEP_NS).await;
            let lingering: Vec<u64> = self.table().lingering().collect();
            for ino in lingering {
                let found = clustix_vfs::stat(services.cache(), ino).await;
                if found.is_ok_and(|f| f.inode.nlink > 0) {
                    continue;
                }
                let tell = self.table().unnamed(ino);
                if let Some(ino) = tell {
                    self.tell_closed(services, ino).await;
                }
            }
        }
    }
}
