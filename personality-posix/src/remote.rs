//! The rest of the node, over channels and the kernel's slow path.

use crate::services::{Death, Services, Stubs};
use clustix_ccache::client::CacheClient;
use clustix_ccache::set::Class;
use clustix_pd::wire::Exit;
use clustix_pd::{Boot, BootError, Client, Kernel, Region, Stub, StubEvent, exec};
use clustix_proto::errno::*;
use clustix_proto::once::{self, Lanes};
use clustix_proto::{Errno, console, memory, process, vfs};

/// See the module.
pub struct Remote {
    cache: CacheClient,
    vfs: Client,
    process: Client,
    memory: Client,
    console: Client,
    stubs: KernelStubs,
    life: process::Life,
    vfs_lanes: Lanes,
    process_lanes: Lanes,
    memory_lanes: Lanes,
    console_lanes: Lanes,
}

impl Remote {
    /// From what this domain was given at its start.
    pub fn new(boot: &Boot) -> Result<Remote, BootError> {
        Ok(Remote {
            cache: CacheClient::new(boot)?,
            vfs: boot.channel("vfs")?,
            process: boot.channel("process")?,
            memory: boot.channel("memory")?,
            console: boot.channel("console")?,
            stubs: KernelStubs(boot.kernel.clone()),
            life: process::Life { incarnation: boot.incarnation, start: exec::now_ns() },
            vfs_lanes: Lanes::new(Class::Vfs),
            process_lanes: Lanes::new(Class::Process),
            memory_lanes: Lanes::new(Class::Memory),
            console_lanes: Lanes::new(Class::Console),
        })
    }
}

impl Services for Remote {
    type Cache = CacheClient;
    fn cache(&self) -> &CacheClient {
        &self.cache
    }
    async fn vfs(&self, request: &vfs::Request) -> vfs::Reply {
        once::ask(&self.vfs_lanes, &self.cache, &self.vfs, request).await
    }
    async fn process(&self, request: &process::Request) -> process::Response {
        once::ask(&self.process_lanes, &self.cache, &self.process, request).await
    }
    async fn memory(&self, request: &memory::Request) -> memory::Response {
        once::ask(&self.memory_lanes, &self.cache, &self.memory, request).await
    }
    async fn console(&self, request: &console::Request) -> console::Response {
        once::ask(&self.console_lanes, &self.cache, &self.console, request).await
    }
    fn stubs(&self) -> &dyn Stubs {
        &self.stubs
    }
    fn life(&self) -> process::Life {
        self.life
    }
}

/// Stubs of the node's kernel.
pub struct KernelStubs(pub Kernel);

impl Stubs for KernelStubs {
    fn spawn(&self) -> Result<Stub, Errno> {
        self.0.stub_spawn().map_err(|_| EAGAIN)
    }
    fn fork(&self, parent: u32) -> Result<Stub, Errno> {
        self.0.stub_fork(parent).map_err(|_| EAGAIN)
    }
    fn kill(&self, stub: u32) {
        // One that is dead already needs no killing.
        let _ = self.0.stub_kill(stub);
    }
    fn preempt(&self, stub: u32) {
        let _ = self.0.stub_preempt(stub);
    }
    fn next_death(&self) -> Option<Death> {
        match self.0.stub_events() {
            Ok(StubEvent::Died { id, status }) => {
                let status = match status {
                    Exit::Code(code) => (code & 0xff) << 8,
                    Exit::Signal(signal) => signal & 0x7f,
                    // No stub is looked at for that; a domain's end by it is SIGKILL.
                    Exit::Hung => 9,
                };
                Some(Death { id, status })
            }
            Err(_) => None,
        }
    }
    fn region(&self, len: usize) -> Result<Region, Errno> {
        self.0.region_create(len).map_err(|_| ENOMEM)
    }
    fn seal(&self, region: &Region) -> Result<(), Errno> {
        self.0.region_seal(region).map_err(|_| EIO)
    }
    fn send(&self, region: &Region, stub: u32) -> Result<(), Errno> {
        self.0.region_send(region, stub).map_err(|_| EAGAIN)
    }
}
