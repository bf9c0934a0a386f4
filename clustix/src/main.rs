//! Entry of the multi-call binary.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    clustix::run()
}
