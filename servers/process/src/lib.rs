//! clustix-process.
