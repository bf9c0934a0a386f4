//! clustix-memory.
