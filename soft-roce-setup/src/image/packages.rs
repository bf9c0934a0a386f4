//! Debian packages, downloaded and unpacked into a folder; nothing of theirs is installed or run as root.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The package that depends on the newest 6.12 kernel. Debian 12's own `linux-image-amd64` is 6.1, and the
/// cloud flavour has no rxe.
const KERNEL: &str = "linux-image-6.12-amd64";

/// What the machines need besides: the C library (that of the host's release, so that what was built here runs),
/// verbs and their tools, and what those are linked with.
const USERLAND: [&str; 15] = [
    "libc6",
    "libgcc-s1",
    "busybox-static",
    "libibverbs1",
    "librdmacm1",
    "ibverbs-providers",
    "ibverbs-utils",
    "rdmacm-utils",
    "iproute2",
    "libnl-3-200",
    "libnl-route-3-200",
    "libmnl0",
    "libbsd0",
    "libmd0",
    "libcap2",
];

/// A package, and the version of it that apt would install.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// Runs a command; its standard output.
///
/// # Errors
/// It cannot be run, or fails; says what it printed.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = command
        .output()
        .with_context(|| format!("cannot run {name}; on Debian, cargo xtask vm installs it"))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        bail!("{name} failed ({}): {}", out.status, said.trim());
    }
    Ok(out.stdout)
}

/// The kernel's package first, then the rest; asks apt's lists, no network.
///
/// # Errors
/// apt does not know one of them.
pub fn wanted() -> Result<Vec<Package>> {
    let mut command = Command::new("apt-cache");
    command.args(["--no-all-versions", "show", KERNEL]).args(USERLAND).env("LC_ALL", "C");
    let shown =
        command.output().context("cannot run apt-cache: machines are made of Debian packages")?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let kernel = fields(&shown, KERNEL)
        .and_then(|f| field(f, "Depends"))
        .and_then(|d| d.split(',').find_map(|d| d.trim().split(' ').next().filter(|n| n.starts_with("linux-image-"))))
        .with_context(|| {
            format!("apt knows no {KERNEL}: it is in bookworm-security; is that in /etc/apt, and was apt-get update run?")
        })?;
    let mut packages = Vec::new();
    for name in std::iter::once(kernel).chain(USERLAND) {
        // The kernel's own package has the version of the one that depends on it.
        let stanza = if name == kernel { KERNEL } else { name };
        let version = fields(&shown, stanza)
            .and_then(|f| field(f, "Version"))
            .with_context(|| format!("apt knows no package {name}: was apt-get update run?"))?;
        packages.push(Package { name: name.to_owned(), version: version.to_owned() });
    }
    Ok(packages)
}

/// The stanza of package `name` in what `apt-cache show` printed.
fn fields<'a>(shown: &'a str, name: &str) -> Option<&'a str> {
    shown.split("\n\n").find(|s| field(s, "Package") == Some(name))
}

fn field<'a>(stanza: &'a str, name: &str) -> Option<&'a str> {
    stanza.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "))
}

/// Downloads `packages` into the folder `to`, which is made; answers their files, in the same order.
///
/// # Errors
/// apt cannot, for instance because its lists are older than what the mirror has.
pub fn download(packages: &[Package], to: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(to)?;
    let mut apt = Command::new("apt-get");
    apt.args(["download", "-qq", "-o", "APT::Sandbox::User=root"]).current_dir(to);
    apt.args(packages.iter().map(|p| format!("{}={}", p.name, p.version)));
    output(&mut apt).context("cannot download; apt-get update may help")?;
    let mut files = Vec::new();
    for p in packages {
        let start = format!("{}_", p.name);
        let found = std::fs::read_dir(to)?
            .flatten()
            .find(|e| e.file_name().to_string_lossy().starts_with(&start))
            .with_context(|| format!("apt-get downloaded no file of {}", p.name))?;
        files.push(found.path());
    }
    Ok(files)
}

/// Unpacks a package's file into the folder `to`.
///
/// # Errors
/// `dpkg-deb` fails.
pub fn unpack(file: &Path, to: &Path) -> Result<()> {
    output(Command::new("dpkg-deb").arg("--extract").arg(file).arg(to)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stanzas_are_told_apart() {
        let shown = "Package: a\nVersion: 1\nDepends: x, linux-image-6.12.1-amd64 (= 2)\n\nPackage: ab\nVersion: 3";
        assert_eq!(fields(shown, "ab").and_then(|f| field(f, "Version")), Some("3"));
        assert_eq!(fields(shown, "a").and_then(|f| field(f, "Version")), Some("1"));
        assert!(fields(shown, "b").is_none());
    }
}
