//! The rest of the node, over channels and the kernel's slow path.

use crate::services::{Death, Services, Stubs};
use clustix_ccache::client::CacheClient;
use clustix_pd::wire::Exit;
use clustix_pd::{Boot, BootError, CallError, Client, Kernel, Region, Stub, StubEvent, exec, rpc};
use clustix_proto::errno::*;
use clustix_proto::{Answer, Errno, console, memory, process, vfs};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How long a server that went away is waited for, ns: as long as init may take to restart it.
const PATIENCE_NS: u64 = 5_000_000_000;
/// Between two tries, ns.
const PAUSE_NS: u64 = 5_000_000;

/// See the module.
pub struct Remote {
    cache: CacheClient,
    vfs: Client,
    process: Client,
    memory: Client,
    console: Client,
    stubs: KernelStubs,
    incarnation: u64,
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
            incarnation: boot.incarnation,
        })
    }
}

/// Asks; again when the server was busy, or died and the request may be repeated.
async fn ask<Q: Serialize, R: DeserializeOwned>(
    client: &Client,
    request: &Q,
    repeatable: bool,
) -> Answer<R> {
    let until = exec::now_ns() + PATIENCE_NS;
    loop {
        let error = match rpc::<Q, Answer<R>>(client, request).await {
            Ok(answer) => return answer,
            Err(CallError::Busy) => EAGAIN,
            Err(CallError::Gone) if repeatable => EIO,
            Err(CallError::TooLarge) => return Err(E2BIG),
            Err(CallError::Gone | CallError::Revoked | CallError::Malformed) => return Err(EIO),
        };
        if exec::now_ns() >= until {
            return Err(error);
        }
        exec::sleep_until(exec::now_ns() + PAUSE_NS).await;
    }
}

impl Services for Remote {
    type Cache = CacheClient;
    fn cache(&self) -> &CacheClient {
        &self.cache
    }
    async fn vfs(&self, request: &vfs::Request) -> vfs::Reply {
        use vfs::Request::*;
        let repeatable = match request {
            Create { exclusive, .. } => !exclusive,
            SetAttr { .. } | Opened { .. } | Closed { .. } => true,
            _ => false,
        };
        ask(&self.vfs, request, repeatable).await
    }
    async fn process(&self, request: &process::Request) -> process::Response {
        use process::Request::*;
        let repeatable = match request {
            Spawn { .. } | SetSession { .. } => false,
            Fork { request, .. } | Wait { request, .. } => *request != 0,
            _ => true,
        };
        ask(&self.process, request, repeatable).await
    }
    async fn memory(&self, request: &memory::Request) -> memory::Response {
        use memory::Request::*;
        let repeatable = !matches!(request, Map { .. } | Remap { .. });
        ask(&self.memory, request, repeatable).await
    }
    async fn console(&self, request: &console::Request) -> console::Response {
        use console::Request::*;
        let repeatable =
            !matches!(request, New { .. } | Input { .. } | Output { .. } | Read { .. });
        ask(&self.console, request, repeatable).await
    }
    fn stubs(&self) -> &dyn Stubs {
        &self.stubs
    }
    fn incarnation(&self) -> u64 {
        self.incarnation
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
