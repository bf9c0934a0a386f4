//! Entry of the same binary with fault points in it, for tests.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    clustix::run()
}
