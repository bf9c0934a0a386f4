//! clustix-console.
