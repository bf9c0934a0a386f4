//! Kernel modules, each after those that it needs.

use anyhow::{Context, Result};
use std::collections::BTreeMap;

/// What is asked for. rxe computes its checksums by `crc32_generic`, which nothing depends on by symbol;
/// virtio's PCI transport and its serial ports are built into Debian's kernel.
pub const WANTED: [&str; 6] =
    ["crc32_generic", "virtio_net", "9pnet_virtio", "9p", "rdma_rxe", "rdma_ucm"];

fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

/// The files of the modules `wanted` and of all that they need, in an order in which they can be loaded, by
/// `modules.dep`: one line per module, its dependencies after the colon, the first to be loaded last.
///
/// # Errors
/// A module is not there.
pub fn order(dep: &str, wanted: &[&str]) -> Result<Vec<String>> {
    let known: BTreeMap<String, (&str, &str)> = dep
        .lines()
        .filter_map(|l| l.split_once(':'))
        .map(|(file, needs)| (name(file), (file, needs)))
        .collect();
    let mut order: Vec<String> = Vec::new();
    for module in wanted {
        let (file, needs) = known
            .get(*module)
            .with_context(|| format!("the kernel's package has no module {module}"))?;
        for f in needs.split_whitespace().rev().chain([*file]) {
            if !order.iter().any(|o| o == f) {
                order.push(f.to_owned());
            }
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_first_and_once() {
        let dep = "k/rdma-rxe.ko.xz: k/ib_uverbs.ko.xz k/ib_core.ko.xz\nk/ib_core.ko.xz:\n\
            k/rdma_ucm.ko.xz: k/rdma_cm.ko.xz k/ib_core.ko.xz\n";
        assert_eq!(
            order(dep, &["rdma_rxe", "rdma_ucm"]).unwrap(),
            [
                "k/ib_core.ko.xz",
                "k/ib_uverbs.ko.xz",
                "k/rdma-rxe.ko.xz",
                "k/rdma_cm.ko.xz",
                "k/rdma_ucm.ko.xz"
            ]
        );
        assert!(order(dep, &["9p"]).unwrap_err().to_string().contains("9p"));
    }
}
