//! Machines with (soft-)RoCE.
//!
//! - [`device`] says what this machine has for RDMA, and what is missing.
//! - [`vm`] makes machines that have it: virtual ones, joined by a switch, each with an rxe device.
//! - [`image`] makes what they boot: a kernel of Debian's, and an initial root file system.
//! - [`guest`] is what runs inside them, [`session`] how it is talked to.
//!
//! `cargo xtask vm` and the program `soft-roce-setup` call it. It needs no privilege, puts nothing on the
//! host's network, and never loads a module of, or makes a device on, the machine that it runs on.

#![forbid(unsafe_code)]

pub mod device;
pub mod guest;
pub mod host;
pub mod image;
pub mod session;
pub mod vm;
