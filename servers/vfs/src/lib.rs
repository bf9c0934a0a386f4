//! clustix-vfs.
