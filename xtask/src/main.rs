//! `cargo xtask …`: everything that sets up, shows, tests and measures Clustix.
//!
//! Each command is complete by itself: it installs the Debian packages that are missing (and says
//! which, before), builds, and does its job in a state folder of its own under the target directory.

mod bench;
mod bench_cache;
mod bench_vm;
mod cluster;
mod data;
mod demo;
mod model;
mod rivals;
mod setup;
mod sim;
mod suite;
mod vm;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Sets up, shows, tests and measures Clustix.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing (Debian packages, through apt) and stop there
    Setup,
    /// Show the whole thing: import a tree, run a pipeline on three nodes, lose one, go on
    Demo,
    /// Run every test: formatting, lints, crates, then whole-system suites on the release build
    Test {
        /// Full counts, hours instead of minutes
        #[arg(long)]
        all: bool,
        /// Only the whole-system suites whose name contains this
        #[arg(long, value_name = "NAME")]
        only: Option<String>,
    },
    /// Measure, each figure beside its reference in the same run
    Bench {
        /// What: the calls of programs, or the cluster-cache itself
        #[arg(value_enum, default_value_t = Bench::Calls)]
        what: Bench,
        /// The cluster-cache in three machines with soft-RoCE, over RDMA verbs
        #[arg(long)]
        vm: bool,
    },
    /// Run the cluster-cache's protocol in simulated clusters, under schedules that follow from
    /// seeds; exits non-zero at the first seed that finds something
    #[command(disable_help_flag = true)]
    Sim {
        /// `--seeds N`, `--first-seed S`, `--seed S --trace`, `--bug NAME`; `--help` says more
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Try every schedule of small workloads on a model of the cluster-cache's protocol, and show that
    /// it catches known bugs; exits non-zero, with the steps that lead there, when a property fails
    #[command(disable_help_flag = true)]
    Model {
        /// `--only NAME`, `--bug NAME`, `--threads N`; `--help` says more
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Machines of one's own with RDMA between them: QEMU, a VDE switch, soft-RoCE (rxe)
    ///
    /// State is in $CLUSTIX_VM_STATE, else target/vm; images are kept in $CLUSTIX_VM_CACHE, else
    /// target/vm-image.
    Vm {
        #[command(subcommand)]
        command: soft_roce_setup::vm::Command,
    },
}

/// What is measured.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Bench {
    /// Calls of programs, beside the same calls made natively
    Calls,
    /// The cluster-cache, beside a map, a hand-over between processes, Redis and etcd
    Cache,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup => setup::packages(),
        Command::Demo => demo::run(),
        Command::Test { all, only } => suite::run(all, only.as_deref()),
        Command::Bench { vm: true, .. } => bench_vm::run(),
        Command::Bench { what: Bench::Calls, .. } => bench::run(),
        Command::Bench { what: Bench::Cache, .. } => bench_cache::run(),
        Command::Sim { args } => sim::run(&args),
        Command::Model { args } => model::run(&args),
        Command::Vm { command } => match vm::run(command) {
            Ok(status) => return status,
            Err(e) => Err(e),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Without the stack that `RUST_BACKTRACE` would add: the reason is to be the last thing said.
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}
