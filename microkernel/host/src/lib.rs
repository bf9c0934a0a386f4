//! clustix-kernel-host.
