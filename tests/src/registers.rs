//! Registers in a cluster's files, clients of them (`programs/register.c`), and the check that what
//! all clients saw can be put in one order (linearizability).

use crate::program;
use anyhow::{Result, bail};
use clustix_sim::history::{Act, Record, linearizable};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Compiles the client into `folder`.
///
/// # Errors
/// There is no gcc, or it refuses.
pub fn client(folder: &Path) -> Result<PathBuf> {
    program::compiled(folder, "register")
}

/// Script that makes `count` registers, all 0.
pub fn make(count: u32) -> String {
    format!(
        "mkdir /registers; i=0; while [ $i -lt {count} ]; do \
         printf '\\0\\0\\0\\0\\0\\0\\0\\0' > /registers/$i || exit 1; i=$((i+1)); done"
    )
}

/// What all clients did, by register. Times are of any one clock.
#[derive(Debug, Default)]
pub struct History {
    of: HashMap<u32, Vec<Record>>,
    operations: usize,
    unknown: usize,
}

impl History {
    /// Adds an answered operation: what was read or written, and whether it failed (errno).
    pub fn add(&mut self, register: u32, write: bool, value: u64, times: (u64, u64), errno: i32) {
        let (begin, end) = times;
        self.operations += 1;
        let act = if write { Act::Set(value) } else { Act::Read(value) };
        match (write, errno) {
            // A read that failed saw nothing.
            (false, 1..) => {}
            (true, 1..) => self.may_have(register, value, begin),
            _ => self.of.entry(register).or_default().push(Record { act, begin, end: Some(end) }),
        }
    }

    /// Adds a write whose outcome nobody was told.
    pub fn may_have(&mut self, register: u32, value: u64, begin: u64) {
        self.unknown += 1;
        self.of.entry(register).or_default().push(Record {
            act: Act::Set(value),
            begin,
            end: None,
        });
    }

    /// Values that were read though no write of them is known, with their registers.
    pub fn strange(&self) -> Vec<(u32, u64)> {
        let mut found = HashSet::new();
        for (register, records) in &self.of {
            let written: HashSet<u64> = records
                .iter()
                .filter_map(|r| if let Act::Set(v) = r.act { Some(v) } else { None })
                .collect();
            for r in records {
                if let Act::Read(v) = r.act
                    && v != 0
                    && !written.contains(&v)
                {
                    found.insert((*register, v));
                }
            }
        }
        found.into_iter().collect()
    }

    /// Answered operations, and writes with unknown outcomes.
    pub fn counts(&self) -> (usize, usize) {
        (self.operations, self.unknown)
    }

    /// Checks every register's history.
    ///
    /// # Errors
    /// One has no order that explains it: it is then written to a file, which the error names.
    pub fn check(&self) -> Result<()> {
        for (register, records) in &self.of {
            if let Err(why) = linearizable(0, records) {
                let file = std::env::temp_dir().join(format!("history-of-register-{register}"));
                let lines: Vec<String> = records.iter().map(|r| format!("{r:?}\n")).collect();
                std::fs::write(&file, lines.concat())?;
                bail!("register {register}: {why}; all of it is in {}", file.display());
            }
        }
        Ok(())
    }
}
