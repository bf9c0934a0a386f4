//! clustix-posix.
