//! What runs inside a protection domain: the futex executor, channel ends (rings, bells and
//! windows) and the client of the kernel's slow path.
//!
//! Everything a server, the personality or ccache needs to talk to the rest of its node comes
//! from here; nothing here knows of the cluster-cache. A domain's life:
//!
//! 1. [`boot::Boot::from_kernel`] reads the boot message from descriptor 3 and maps what it names;
//! 2. [`boot::Boot::enter_sandbox`] closes the door behind it;
//! 3. it serves ([`channel::serve`]) and calls ([`channel::Client::call`]) over channels in shared
//!    memory, which cost the kernel process nothing, and asks the kernel ([`kernel::Kernel`]) for
//!    what concerns capabilities, objects and other domains.
//!
//! What another domain can write is hostile: it is copied once, then checked, then used.

pub mod boot;
pub mod channel;
pub mod exec;
pub mod fault;
pub mod kernel;
pub mod metrics;
pub mod processor;
pub mod region;
pub mod sandbox;
pub mod socket;
pub mod urgency;
pub mod wire;

pub use boot::{Boot, BootError};
pub use channel::{Call, CallError, ChannelId, Client, Server, WaitWord, rpc, serve};
pub use kernel::{Kernel, KernelError, PdEvent, PdInfo, Stub, StubEvent, StubWindow};
pub use region::Region;
