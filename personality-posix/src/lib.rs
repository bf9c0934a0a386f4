//! The POSIX personality: unmodified Linux x86-64 programs on the cluster's servers.
//!
//! Each address space is a *stub* process (`stub/`): a freestanding image with a seccomp filter that
//! traps the app's system calls. The personality's worker thread for that app thread waits on a
//! window shared with the stub ([`window`]), makes the call ([`dispatch`], one file per family) with
//! the cluster-cache and the servers ([`services`]), and answers with a program for the stub.
//!
//! May be called by: nobody; it is a protection domain ([`main`]). It never keeps state of its own
//! that outlives a call: what a process is stands in objects ([`state`]).

#![forbid(unsafe_code)]

#[path = "../stub/signatures.rs"]
pub mod signatures;
#[path = "../stub/window.rs"]
pub mod window;

pub mod call;
pub mod dispatch;
pub mod elf;
pub mod estate;
pub mod exec;
pub mod fd;
pub mod freeze;
pub mod host;
pub mod ids;
pub mod image;
pub mod layouts;
pub mod lifecycle;
pub mod memory;
pub mod misc;
pub mod names;
pub mod node;
pub mod open;
pub mod openers;
pub mod path;
pub mod poll;
pub mod process;
pub mod remote;
pub mod rw;
pub mod service;
pub mod services;
pub mod signal;
pub mod standing;
pub mod stat;
pub mod state;
pub mod thread;
pub mod time;
pub mod tty;
pub mod watch;

pub use service::main;

/// The stub's image, a static ELF file: what the kernel's zygote executes.
pub const STUB_IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/stub"));
