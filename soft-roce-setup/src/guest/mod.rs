//! What runs inside a machine: [`INIT`] makes it ready, [`agent`] carries out what the host asks.

pub mod agent;

/// Process 1: a busybox script. It ends in the agent, or says on the console what it could not do and turns
/// the machine off, which the host notices at once.
pub const INIT: &str = include_str!("init.sh");

/// Prints the index and value of the GID that carries the machine's IPv4 address.
pub const GID: &str = include_str!("rxe-gid.sh");

/// Sessions that one machine serves at a time; each has a virtio-serial port.
pub const SESSIONS: usize = 8;

/// The name of session `n`'s port, and of its socket on the host.
pub fn port(n: usize) -> String {
    format!("run.{n}")
}
