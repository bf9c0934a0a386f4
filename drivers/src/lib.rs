//! clustix-drivers.
