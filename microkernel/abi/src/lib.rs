//! The numbers of the hosted kernel's interface: what a protection domain (PD) and the kernel
//! must agree on, and nothing else.
//!
//! Names, values and argument orders that seL4 has are seL4's. The reference is the interface
//! description that the locked package `sel4-sys` 0.0.28 carries (seL4 5.0.0), and `tests/xml.rs`
//! compares every shared name, number and argument order with it. The variant is x86_64 with every
//! optional part of the description off (`CONFIG_MAX_NUM_NODES` = 1, no `CONFIG_VTX`, no
//! `CONFIG_HARDWARE_DEBUG_API`, no IOMMU): the hosted kernel offers none of those, and Linux
//! schedules.
//!
//! Where Clustix differs it does so in ranges of its own, far above seL4's:
//! - The description predates seL4's MCS kernel. What MCS adds (explicit reply objects, `Wait`,
//!   `NBWait`, `NBSendRecv`, `NBSendWait`, the *GrantReply* right) has MCS's names and meaning;
//!   system calls that the description does not number are numbered from
//!   [`syscall::OWN_FIRST`] downwards.
//! - A message label has 52 bits, a badge is a whole word and a CNode's guard has up to 58 bits,
//!   as in seL4 since version 9 on 64-bit machines (5.0.0: 20, 28 and 18 bits, at the same
//!   position for the message label).
//! - Objects that only a hosted kernel has ([`hosted`]): PDs, stubs, regions, metrics.
//!
//! Anyone may use this crate. It never does I/O, never allocates and holds no state.
#![no_std]
#![forbid(unsafe_code)]

pub mod cap_data;
pub mod error;
pub mod fault;
pub mod hosted;
pub mod invocation;
pub mod message;
pub mod object;
pub mod rights;
pub mod slot;
pub mod syscall;

pub use cap_data::GuardData;
pub use error::{Error, LookupFailure};
pub use fault::Fault;
pub use hosted::Hosted;
pub use invocation::Invocation;
pub use message::MessageInfo;
pub use object::ObjectType;
pub use rights::Rights;
pub use syscall::Syscall;

/// Where a capability is found in the CSpace of the PD that names it (`seL4_CPtr`).
pub type CPtr = u64;

/// A word that a capability carries and the receiver of its messages sees; 0 is "no badge".
pub type Badge = u64;
