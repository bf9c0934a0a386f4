//! `cargo xtask model`: the model checker, in release.

use crate::setup;
use anyhow::{Context, Result, bail};
use std::process::Command;

/// Builds the model and runs it with these arguments.
pub fn run(args: &[String]) -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["run", "--release", "--locked", "--quiet", "-p", "clustix-model", "--"]);
    cargo.args(args).current_dir(setup::workspace());
    if !cargo.status().context("cannot run cargo")?.success() {
        bail!("the model does not hold, or does not catch what it is to catch");
    }
    Ok(())
}
