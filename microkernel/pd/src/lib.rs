//! What runs inside a protection domain: the futex executor, channel ends (rings, bells and
//! windows) and the client of the kernel's slow path.
//!
//! Everything a server, the personality or ccache needs to talk to the rest of its node comes
//! from here; nothing here knows of the cluster-cache.

pub mod exec;
