//! `soft-roce-setup check`.

#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};
use std::path::Path;
use std::process::ExitCode;

/// Says whether this machine can run nodes over RoCE, InfiniBand or soft-RoCE (rxe)
#[derive(Parser)]
#[command(
    name = "soft-roce-setup",
    version,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List RDMA devices and what rxe needs; exit status 0 if verbs can be used now, else 1
    Check {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let Command::Check { json } = Cli::parse().command;
    let found = soft_roce_setup::look(Path::new("/"));
    if json {
        match serde_json::to_string_pretty(&found) {
            Ok(text) => println!("{text}"),
            Err(e) => eprintln!("soft-roce-setup: {e}"),
        }
    } else {
        for p in &found.ports {
            println!("device {} port {}: {} ({})", p.device, p.port, p.state, p.link);
        }
        for (name, module) in &found.modules {
            println!("module {name}: {module:?}");
        }
        for words in found.advice() {
            println!("{words}");
        }
    }
    if found.usable() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
