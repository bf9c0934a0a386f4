//! Entry of the multi-call binary.

#![forbid(unsafe_code)]

use clap::Parser;
use clustix::args::Cli;
use clustix::cmd;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cmd::run(cli) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("clustix: {e:#}");
            ExitCode::FAILURE
        }
    }
}
