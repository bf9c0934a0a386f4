//! Entry of the multi-call binary.

#![forbid(unsafe_code)]

use clap::Parser;
use clustix::args::{Cli, Command};
use clustix::{cmd, node};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        Command::Node(args) => node::node(&cli.name, args),
        Command::Pd(args) => node::pd(args),
        _ => cmd::run(cli),
    };
    match done {
        Ok(code) => code,
        Err(e) => {
            eprintln!("clustix: {e:#}");
            ExitCode::FAILURE
        }
    }
}
