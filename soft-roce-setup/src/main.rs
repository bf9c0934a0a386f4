//! `soft-roce-setup check`, `host`, `vm …`, and the agent that runs inside the machines.

#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use soft_roce_setup::vm::{self, Places};
use soft_roce_setup::{device, guest, host};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Virtual machines with soft-RoCE (rxe), and what this machine has for RDMA
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
    /// Make an rxe device on an interface of this machine, for nodes on real hosts (needs root)
    #[command(
        after_long_help = "Examples:\n  soft-roce-setup host --netdev eth0\n  soft-roce-setup host --netdev eth0 --undo"
    )]
    Host {
        /// The network interface, such as eth0
        #[arg(long, value_name = "IF")]
        netdev: String,
        /// Remove it again
        #[arg(long)]
        undo: bool,
    },
    /// Machines of one's own with RDMA between them: QEMU, a VDE switch, rxe
    Vm {
        #[command(subcommand)]
        command: vm::Command,
    },
    /// Runs inside a machine and carries out what `vm run` asks
    #[command(hide = true)]
    GuestAgent,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Check { json } => return check(json),
        Command::Host { netdev, undo } => {
            let done = if undo { host::undo(&netdev) } else { host::set_up(&netdev) };
            done.map(|()| ExitCode::SUCCESS)
        }
        Command::Vm { command } => places().and_then(|p| vm::execute(command, &p)),
        Command::GuestAgent => guest::agent::serve().map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|e| {
        eprintln!("soft-roce-setup: {e:#}");
        ExitCode::FAILURE
    })
}

/// The user's own folders; the `clustix` that stands beside this program.
fn places() -> Result<Places> {
    let home = || std::env::var_os("HOME").map(PathBuf::from);
    let of = |variable: &str, below: &str| {
        std::env::var_os(variable)
            .map(PathBuf::from)
            .or_else(|| Some(home()?.join(below)))
            .context("neither HOME nor XDG_STATE_HOME and XDG_CACHE_HOME are set")
    };
    let agent = std::env::current_exe().context("cannot find this program's own file")?;
    let beside = agent.with_file_name("clustix");
    Ok(Places {
        state: vm::state_folder(of("XDG_STATE_HOME", ".local/state")?.join("clustix-vm")),
        cache: vm::cache_folder(of("XDG_CACHE_HOME", ".cache")?.join("clustix-vm")),
        clustix: beside.exists().then_some(beside),
        agent,
    })
}

fn check(json: bool) -> ExitCode {
    let found = device::look(Path::new("/"));
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
