//! Soft-RoCE on this machine itself: an rxe device on one of its network interfaces.

use crate::device::{self, Module};
use anyhow::{Context, Result, bail, ensure};
use std::path::Path;
use std::process::{Command, Stdio};

/// Name of the device that is made on `netdev`; a device's name may have 63 bytes.
fn device_of(netdev: &str) -> String {
    format!("rxe_{netdev}")
}

fn tool(program: &str, args: &[&str], package: &str) -> Result<String> {
    let out = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}; Debian's package {package} has it"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(
        out.status.success(),
        "{program} {} failed ({}): {}",
        args.join(" "),
        out.status,
        said.trim()
    );
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The rxe device that stands on `netdev`, in what `rdma link show` prints.
fn existing(links: &str, netdev: &str) -> Option<String> {
    links.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let on = words.windows(2).any(|w| w == ["netdev", netdev]);
        let name = words.get(1)?.split('/').next()?;
        on.then(|| name.to_owned())
    })
}

/// The first address in what `ip -o addr show` prints.
fn address(text: &str) -> Option<&str> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|w| *w != "inet" && *w != "inet6");
        words.next()?;
        words.next()?.split('/').next()
    })
}

/// Makes an rxe device on `netdev`, unless there is one; says what a cluster's file needs to know.
///
/// # Errors
/// Not root; no such interface, or one without an address; a module or program is missing; what the
/// kernel said.
pub fn set_up(netdev: &str) -> Result<()> {
    let interface = Path::new("/sys/class/net").join(netdev);
    ensure!(
        !netdev.contains('/') && interface.exists(),
        "there is no network interface {netdev:?}; `ip link` lists them"
    );
    ensure!(
        rustix::process::geteuid().is_root(),
        "making an RDMA device needs root: run this with sudo"
    );
    let found = device::look(Path::new("/"));
    for (name, module) in &found.modules {
        match module {
            Module::Present => {}
            Module::Loadable => drop(tool("modprobe", &[name], "kmod")?),
            Module::Missing => bail!(
                "module {name} is not installed for kernel {}; Debian's linux-image-amd64 has it (its cloud flavour has not)",
                found.kernel
            ),
        }
    }
    let text = tool("ip", &["-o", "addr", "show", "dev", netdev, "up"], "iproute2")?;
    let address = address(&text).with_context(|| {
        format!("{netdev} is down or has no address: ip addr add ADDRESS dev {netdev}; ip link set {netdev} up")
    })?;
    let name = match existing(&tool("rdma", &["link", "show"], "iproute2")?, netdev) {
        Some(name) => {
            println!("{name} is there already");
            name
        }
        None => {
            let name = device_of(netdev);
            let add = ["link", "add", &name, "type", "rxe", "netdev", netdev];
            tool("rdma", &add, "iproute2")?;
            name
        }
    };
    let found = device::look(Path::new("/"));
    let port = found.ports.iter().find(|p| p.device == name);
    ensure!(
        port.is_some_and(device::Port::active),
        "{name} is not active: {}",
        port.map_or("it has no port", |p| p.state.as_str())
    );
    ensure!(found.rdma_cm, "/dev/infiniband/rdma_cm is not there: modprobe rdma_ucm");
    println!("{name} is active on {netdev}. In the cluster's file (see README.md):\n");
    println!("    [[node]]\n    slot = K\n    address = \"{address}\"");
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
    if limit.current.is_some() {
        println!(
            "\nUsers other than root must be allowed to lock a node's memory: ulimit -l unlimited\n(/etc/security/limits.conf: memlock)"
        );
    }
    Ok(())
}

/// Removes the rxe device on `netdev`.
///
/// # Errors
/// There is none; not root.
pub fn undo(netdev: &str) -> Result<()> {
    let links = tool("rdma", &["link", "show"], "iproute2")?;
    let name = existing(&links, netdev)
        .with_context(|| format!("there is no RDMA device on {netdev}; `rdma link` lists them"))?;
    tool("rdma", &["link", "delete", &name], "iproute2")?;
    println!("{name} is gone");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_tools_print_is_understood() {
        let links = "link mlx5_0/1 state ACTIVE physical_state LINK_UP netdev eno1\n\
                     link rxe0/1 state ACTIVE physical_state LINK_UP netdev eth0 \n";
        assert_eq!(existing(links, "eth0").as_deref(), Some("rxe0"));
        assert_eq!(existing(links, "eth"), None);
        let addresses = "2: eth0    inet 10.77.0.1/24 scope global eth0\\       valid_lft forever\n\
                         2: eth0    inet6 fe80::1/64 scope link \\       valid_lft forever\n";
        assert_eq!(address(addresses), Some("10.77.0.1"));
        assert_eq!(address(""), None);
    }
}
