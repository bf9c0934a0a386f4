//! The `clustix` program.
//!
//! One multi-call binary: the command line that people use; `clustix node`, the kernel process of
//! a node; `clustix pd ROLE`, any protection domain of a node, among them *control*, which serves the
//! command line over a Unix socket ([`wire`]). It may use every other crate; none uses it.
//!
//! The command line keeps what it must remember between two commands in a [`state`] folder, and
//! never trusts a process number that it finds there without its start time.

#![forbid(unsafe_code)]

pub mod args;
pub mod cmd;
pub mod connection;
pub mod control;
pub mod hosts;
pub mod interrupt;
pub mod launch;
pub mod node;
pub mod procfs;
pub mod snapshot;
pub mod state;
pub mod wire;

use clap::Parser;
use std::process::ExitCode;

/// The whole program: what both binaries do.
pub fn run() -> ExitCode {
    let cli = args::Cli::parse();
    let done = match &cli.command {
        args::Command::Node(args) => node::node(&cli.name, args),
        args::Command::Pd(args) => node::pd(args),
        args::Command::Log => node::log(),
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
