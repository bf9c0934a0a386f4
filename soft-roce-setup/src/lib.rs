//! soft-roce-setup.
