//! Whole-system tests: what stands here drives real clusters through the `clustix` program, as a
//! person would, and looks at what is left of them from outside. The suites are in `tests/tests/`,
//! one for each promise; `cargo xtask test` runs them on the release build, `cargo xtask demo` uses
//! the same harness.
//!
//! A suite never reaches into a node: what it knows, it knows from the command line, from /proc and from
//! the state folder.

#![forbid(unsafe_code)]

pub mod cluster;
pub mod data;
pub mod domains;
pub mod gap;
pub mod leftover;
pub mod load;
pub mod machines;
pub mod program;
pub mod random;
pub mod registers;
pub mod terminal;
pub mod writer;

pub use cluster::Cluster;
pub use program::{Output, Program};
pub use terminal::Terminal;
