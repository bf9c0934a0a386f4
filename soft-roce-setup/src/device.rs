//! What this machine has for RDMA: devices, the modules that soft-RoCE (rxe) needs, and what is missing.
//!
//! Looks only, at /sys and /proc; it loads nothing and makes nothing.

use serde::Serialize;
use std::fs;
use std::path::Path;

/// Modules without which rxe does not work; `crc32_generic` is easily forgotten.
pub const MODULES: [&str; 3] = ["rdma_rxe", "crc32_generic", "rdma_ucm"];

/// An RDMA device's port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Port {
    /// Device, such as `rxe0`.
    pub device: String,
    /// Port number.
    pub port: String,
    /// As /sys says it, such as `4: ACTIVE`.
    pub state: String,
    /// `Ethernet` or `InfiniBand`.
    pub link: String,
}

impl Port {
    /// Whether it carries traffic now.
    pub fn active(&self) -> bool {
        self.state.ends_with("ACTIVE")
    }
}

/// Where a kernel module is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Module {
    /// Loaded, or built in.
    Present,
    /// Not loaded, but its file is installed for the running kernel.
    Loadable,
    /// Not installed for the running kernel.
    Missing,
}

/// All that [`look`] found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Found {
    /// Running kernel's release.
    pub kernel: String,
    /// Ports of RDMA devices.
    pub ports: Vec<Port>,
    /// The modules of [`MODULES`].
    pub modules: Vec<(String, Module)>,
    /// Whether user programs may open connections (/dev/infiniband/rdma_cm).
    pub rdma_cm: bool,
}

impl Found {
    /// Whether verbs can be used now.
    pub fn usable(&self) -> bool {
        self.rdma_cm && self.ports.iter().any(Port::active)
    }

    /// What to do next, in words.
    pub fn advice(&self) -> Vec<String> {
        let mut words = Vec::new();
        if self.ports.is_empty() {
            words.push("there is no RDMA device".to_owned());
            for (name, module) in &self.modules {
                match module {
                    Module::Present => {}
                    Module::Loadable => words.push(format!("load module {name}: modprobe {name}")),
                    Module::Missing => words.push(format!(
                        "module {name} is not installed for kernel {}; Debian's linux-image-amd64 has it (its cloud flavour has not)",
                        self.kernel
                    )),
                }
            }
            words.push(
                "then make a soft-RoCE device: rdma link add rxe0 type rxe netdev INTERFACE"
                    .to_owned(),
            );
        } else if !self.ports.iter().any(Port::active) {
            words.push("no port is active: is its network interface up?".to_owned());
        }
        if !self.ports.is_empty() && !self.rdma_cm {
            words.push("/dev/infiniband/rdma_cm is not there: modprobe rdma_ucm".to_owned());
        }
        words
    }
}

fn line(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Looks, below `root` (`/` but in tests).
pub fn look(root: &Path) -> Found {
    let kernel = line(&root.join("proc/sys/kernel/osrelease"));
    let class = root.join("sys/class/infiniband");
    let mut ports = Vec::new();
    for device in names(&class) {
        let dir = class.join(&device).join("ports");
        for port in names(&dir) {
            ports.push(Port {
                device: device.clone(),
                state: line(&dir.join(&port).join("state")),
                link: line(&dir.join(&port).join("link_layer")),
                port,
            });
        }
    }
    let loaded = fs::read_to_string(root.join("proc/modules")).unwrap_or_default();
    let folder = root.join("lib/modules").join(&kernel);
    let installed = fs::read_to_string(folder.join("modules.dep")).unwrap_or_default();
    let built_in = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
    let modules = MODULES
        .iter()
        .map(|name| {
            let file = |l: &str| {
                let base = l.split(':').next().unwrap_or("").rsplit('/').next().unwrap_or("");
                base.split('.').next().is_some_and(|b| b.replace('-', "_") == *name)
            };
            let present = loaded.lines().any(|l| l.split(' ').next() == Some(name))
                || built_in.lines().any(file);
            let module = match (present, installed.lines().any(file)) {
                (true, _) => Module::Present,
                (_, true) => Module::Loadable,
                _ => Module::Missing,
            };
            ((*name).to_owned(), module)
        })
        .collect();
    Found { kernel, ports, modules, rdma_cm: root.join("dev/infiniband/rdma_cm").exists() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_machine_without_anything_is_told_what_is_missing() {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), "proc/sys/kernel/osrelease", "6.1-cloud\n");
        let found = look(root.path());
        assert!(!found.usable());
        assert!(found.modules.iter().all(|(_, m)| *m == Module::Missing));
        assert!(found.advice().iter().any(|a| a.contains("cloud")));
    }

    #[test]
    fn modules_are_told_apart() {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), "proc/sys/kernel/osrelease", "6.12\n");
        put(root.path(), "proc/modules", "rdma_rxe 1 0 - Live 0x0\n");
        put(root.path(), "lib/modules/6.12/modules.dep", "kernel/crypto/crc32_generic.ko.xz:\n");
        let found = look(root.path());
        let states: Vec<Module> = found.modules.iter().map(|(_, m)| *m).collect();
        assert_eq!(states, [Module::Present, Module::Loadable, Module::Missing]);
    }

    #[test]
    fn an_active_port_is_usable() {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), "sys/class/infiniband/rxe0/ports/1/state", "4: ACTIVE\n");
        put(root.path(), "sys/class/infiniband/rxe0/ports/1/link_layer", "Ethernet\n");
        assert!(!look(root.path()).usable());
        put(root.path(), "dev/infiniband/rdma_cm", "");
        let found = look(root.path());
        assert!(found.usable() && found.advice().is_empty());
    }
}
