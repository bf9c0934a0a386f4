//! clustix-init.
