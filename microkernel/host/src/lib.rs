//! The Linux back end of the microkernel: what the kernel process of a node does.
//!
//! It makes real what `clustix_kernel_core` decides. Every request of a protection domain becomes an
//! [`clustix_kernel_core::Event`], and only the [`clustix_kernel_core::Action`]s that come out are
//! carried out; nothing here grants anything. On Linux a protection domain is a process, a memory
//! region a sealed memfd, a channel a memfd that two domains map, a death a pidfd that becomes
//! readable.
//!
//! The kernel process has one thread and waits in one place (`epoll_wait`): it never waits on a
//! domain. A domain that does not read what it is sent is killed once its bounded queue is full. No
//! call between domains passes through here: see `clustix_pd::channel`.
//!
//! It may be called by the node launcher alone, once per process, before the process has a second
//! thread.

mod actions;
mod channel;
mod declare;
mod health;
mod host;
mod memory;
mod metrics;
mod pd;
mod process;
mod signals;
mod stub;
pub mod system;
mod zygote;

pub use host::{Config, End, Host, HostError};
pub use system::{
    Access, ChannelDescription, OnDeath, PdDescription, RegionDescription, RegionGrant, Start,
    SystemDescription, SystemError,
};
