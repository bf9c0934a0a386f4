//! `cargo xtask vm …`: machines with soft-RoCE, in the target directory.

use crate::setup;
use anyhow::Result;
use soft_roce_setup::vm::{self, Command, Places};
use std::process::ExitCode;

/// Carries out `command`. Only `up` installs and builds anything.
pub fn run(command: Command) -> Result<ExitCode> {
    let mut places = Places {
        state: vm::state_folder(setup::target().join("vm")),
        cache: setup::vm_cache(),
        agent: setup::target().join("release/soft-roce-setup"),
        clustix: None,
    };
    if let Command::Up { program, bare, .. } = &command {
        setup::packages()?;
        setup::vm_packages()?;
        places.agent = setup::build_soft_roce()?;
        if program.is_none() {
            places.clustix = Some(if *bare { setup::build()? } else { setup::build_verbs()? });
        }
    }
    vm::execute(command, &places)
}
