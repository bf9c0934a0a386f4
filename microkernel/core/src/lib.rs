//! The kernel proper: who holds which capability, who waits for whom, and what therefore may
//! happen. A pure step function: the host feeds it [`Event`]s and carries out the [`Action`]s.
//!
//! Called by `clustix-kernel-host` alone. It never does I/O, reads no clock, never allocates and
//! never panics on what a PD sends: the same events give the same actions, so a recorded run
//! replays.
//!
//! Principles, after seL4 (reference manual, MCS variant):
//! 1. Nothing happens without a capability: every check is made here, on the invoking PD's own
//!    CSpace (`cnode`), and the host acts only on an action.
//! 2. Authority only shrinks: a derived capability never has more rights than its source, and
//!    revoking a capability removes all that was derived from it (`derivation`).
//! 3. Everything is bounded: objects are charged to the PD that made them (`budget`), waiting
//!    operations to the PD that waits (`wait`); a full table is an error to the one who asked.
//! 4. Death leaves nothing: a dead PD holds no capability, waits for nothing, owns no object and
//!    has no channel; whoever waited for it is told. Declared exception: living stubs, for the next start.
//!
//! Differences from seL4, all due to the host: scheduling, address spaces and threads are Linux's;
//! a PD may have several operations waiting (its threads are not kernel objects); a destroyed
//! reply object or a dead server ends its caller's call with `Gone` instead of suspending it.
//! Memory is not retyped: an Untyped is a PD's *object budget*, and CNodes are made at boot only.
#![no_std]
#![forbid(unsafe_code)]

pub mod action;
mod budget;
mod cap;
mod channel;
mod check;
mod cnode;
pub mod declare;
mod derivation;
mod endpoint;
pub mod event;
pub mod id;
mod inspect;
mod invoke;
mod kernel;
pub mod limits;
mod notification;
mod object;
mod pd;
mod queue;
mod region;
mod reply;
mod stub;
mod table;
mod transfer;
mod wait;

pub use action::{Action, Delivery, Request};
pub use cap::{Cap, Object};
pub use declare::{Grant, PdDeclaration};
pub use event::{Event, Invocation, Message};
pub use id::{ChannelId, EndpointId, NotificationId, PdId, RegionId, ReplyId, StubId};
pub use kernel::Kernel;
pub use pd::State;
