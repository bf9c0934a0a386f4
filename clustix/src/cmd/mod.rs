//! The commands, one file for each family.

mod attended;
pub mod chaos;
pub mod down;
pub mod fsck;
pub mod list;
pub mod node;
pub mod run;
pub mod tree;
pub mod up;

use crate::args::{Cli, Command};
use crate::state::Folder;
use anyhow::Result;
use std::process::ExitCode;

/// Runs a command of the command line.
///
/// # Errors
/// What was attempted, on what, why it failed and what to do.
pub fn run(cli: Cli) -> Result<ExitCode> {
    let folder = Folder::named(&cli.name)?;
    match cli.command {
        Command::Up(args) => up::up(&folder, &args),
        Command::Down(args) => down::down(&folder, &args),
        Command::Nodes(args) => list::nodes(&folder, args.json),
        Command::Status(args) => list::status(&folder, args.json),
        Command::Run(args) => run::run(&folder, args),
        Command::Attach(args) => run::attach(&folder, &args),
        Command::Ps(args) => list::ps(&folder, args.json),
        Command::Kill(args) => node::signal(&folder, &args),
        Command::Import(args) => tree::import(&folder, &args.host, &args.cluster),
        Command::Export(args) => tree::export(&folder, &args.cluster, &args.host),
        Command::Objects(args) => list::objects(&folder, &args),
        Command::Fsck => fsck::fsck(&folder),
        Command::Pds(args) => list::pds(&folder, args.json),
        Command::KillNode(args) => node::kill_node(&folder, args.node),
        Command::StartNode(args) => node::start_node(&folder, args.node),
        Command::Chaos(args) => chaos::chaos(&folder, &args),
        Command::Rehome(args) => node::rehome(&folder, &args),
        Command::Logs(args) => list::logs(&folder, &args),
        Command::Metrics(args) => list::metrics(&folder, &args),
        Command::Node(_) | Command::Pd(_) | Command::Log => unreachable!("dispatched by main"),
    }
}
