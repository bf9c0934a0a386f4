//! The node's counters: those of every domain, and the kernel's own.

use std::collections::BTreeMap;

use clustix_pd::wire::Extra;

/// Most bytes of names and values in one packet of counters.
const PART: usize = 48 * 1024;

/// The domain under which the kernel's own counters stand.
pub(crate) const KERNEL: &str = "kernel";

/// Sums wake-ups by (client role, server role).
#[derive(Clone, Default)]
pub(crate) struct Wakeups(BTreeMap<(String, String), u64>);

impl Wakeups {
    pub(crate) fn add(&mut self, from: &str, to: &str, n: u64) {
        *self.0.entry((from.to_owned(), to.to_owned())).or_default() += n;
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        self.0
            .iter()
            .map(|((f, t), n)| (format!("clustix_wakeups_total{{from=\"{f}\",to=\"{t}\"}}"), *n))
    }
}

/// Cuts counters into packets' parts; at least one.
pub(crate) fn parts(entries: Vec<(String, String, u64)>) -> Vec<Extra> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for e in entries {
        let len = e.0.len() + e.1.len() + 16;
        if bytes + len > PART {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += len;
        if let Some(part) = parts.last_mut() {
            part.push(e);
        }
    }
    let n = parts.len();
    parts
        .into_iter()
        .enumerate()
        .map(|(i, entries)| Extra::Metrics { entries, more: i + 1 < n })
        .collect()
}
