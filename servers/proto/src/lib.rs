//! What the servers say to each other and to the personality: the layouts of the objects they
//! keep in the cluster-cache, and one request enum per server.
//!
//! Requests and replies are `postcard` over a channel's window. What a repeat does after a server's death
//! each request declares ([`once::Operation`]).

pub mod console;
pub mod errno;
pub mod job;
pub mod memory;
pub mod object;
pub mod once;
pub mod posix;
pub mod process;
pub mod service;
pub mod vfs;

pub use errno::Errno;

/// Every server's reply.
pub type Answer<T> = Result<T, Errno>;
