//! clustix-abi.
