//! `cargo xtask sim`: the simulator, in release.

use crate::setup;
use anyhow::{Context, Result, bail};
use std::process::Command;

/// Builds the simulator and runs it with these arguments. Known bugs are compiled in only when one
/// is asked for.
pub fn run(args: &[String]) -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["run", "--release", "--locked", "--quiet", "-p", "clustix-sim"]);
    if args.iter().any(|a| a.starts_with("--bug")) {
        cargo.args(["--features", "put-back-bugs"]);
    }
    cargo.arg("--").args(args).current_dir(setup::workspace());
    if !cargo.status().context("cannot run cargo")?.success() {
        bail!("the simulator did not pass");
    }
    Ok(())
}
