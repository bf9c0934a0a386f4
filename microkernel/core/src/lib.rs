//! clustix-kernel-core.
