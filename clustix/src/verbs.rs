//! Entry of the same binary with the verbs fabric in it, for hosts that have the RDMA libraries.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    clustix::run()
}
