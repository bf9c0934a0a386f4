//! clustix-tests.
