//! What the personality needs of the rest of its node, as a trait: over channels in a running node,
//! direct calls in tests.

use clustix_ccache::cache::Cache;
use clustix_pd::{Region, Stub};
use clustix_proto::{Errno, console, memory, process, vfs};
use std::future::Future;

/// The cluster-cache and the four servers.
pub trait Services: Send + Sync + 'static {
    /// The cluster-cache.
    type Cache: Cache + Send + Sync;
    /// The cluster-cache.
    fn cache(&self) -> &Self::Cache;
    /// Asks the vfs.
    fn vfs(&self, request: &vfs::Request) -> impl Future<Output = vfs::Reply>;
    /// Asks the process server.
    fn process(&self, request: &process::Request) -> impl Future<Output = process::Response>;
    /// Asks the memory server.
    fn memory(&self, request: &memory::Request) -> impl Future<Output = memory::Response>;
    /// Asks the console server.
    fn console(&self, request: &console::Request) -> impl Future<Output = console::Response>;
    /// Where address spaces come from.
    fn stubs(&self) -> &dyn Stubs;
    /// This life of the node's personality.
    fn life(&self) -> process::Life;
}

/// How a stub ended: a wait status as wait(2) has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Death {
    /// The stub.
    pub id: u32,
    /// Its wait status.
    pub status: i32,
}

/// Address spaces: the kernel's stub calls. All block for a moment, none for long but
/// [`Stubs::next_death`].
pub trait Stubs: Send + Sync {
    /// A new one.
    fn spawn(&self) -> Result<Stub, Errno>;
    /// Window and socket for a child of `parent`, sent to it; ready when this returns.
    fn fork(&self, parent: u32) -> Result<Stub, Errno>;
    /// Ends one.
    fn kill(&self, stub: u32);
    /// Interrupts its user code.
    fn preempt(&self, stub: u32);
    /// The next that ended; `None`: there will be no more.
    fn next_death(&self) -> Option<Death>;
    /// A memory region of `len` bytes, writable here.
    fn region(&self, len: usize) -> Result<Region, Errno>;
    /// No more writes to it, by anyone.
    fn seal(&self, region: &Region) -> Result<(), Errno>;
    /// Sends it to a stub, which takes it with a RECEIVE step.
    fn send(&self, region: &Region, stub: u32) -> Result<(), Errno>;
}
