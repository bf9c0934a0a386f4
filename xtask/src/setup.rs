//! What the machine must have, and the build.

use anyhow::{Context, Result, bail};
use soft_roce_setup::vm;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A Debian package, and a file by which to tell that it is there.
type Package = (&'static str, &'static str);

/// What every command needs.
const PACKAGES: &[Package] = &[
    ("busybox-static", "/bin/busybox"),
    ("gcc", "/usr/bin/gcc"),
    ("libc6-dev", "/usr/lib/x86_64-linux-gnu/libc.a"),
    ("procps", "/bin/kill"),
];

/// What machines with soft-RoCE need besides. What runs *in* them is downloaded and unpacked, not installed.
const VM_PACKAGES: &[Package] = &[
    ("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
    ("vde2", "/usr/bin/vde_switch"),
    ("kmod", "/sbin/depmod"),
    ("xz-utils", "/usr/bin/xz"),
];

/// What a build with the verbs fabric needs.
const VERBS_PACKAGES: &[Package] = &[
    ("libclang1-14", "/usr/lib/llvm-14/lib/libclang.so.1"),
    ("libclang-common-14-dev", "/usr/lib/llvm-14/lib/clang/14.0.6/include/stddef.h"),
    ("libibverbs-dev", "/usr/include/infiniband/verbs.h"),
    ("librdmacm-dev", "/usr/include/rdma/rdma_cma.h"),
    ("pkg-config", "/usr/bin/pkg-config"),
];

/// What the cluster-cache is measured beside.
const RIVAL_PACKAGES: &[Package] = &[
    ("redis-server", "/usr/bin/redis-server"),
    ("etcd-server", "/usr/bin/etcd"),
    ("etcd-client", "/usr/bin/etcdctl"),
];

fn root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

/// Installs what is missing, as root or with sudo; says what before. Silent when nothing is.
pub fn packages() -> Result<()> {
    install(PACKAGES)
}

/// As [`packages`], for `cargo xtask vm` and the suite "vm".
pub fn vm_packages() -> Result<()> {
    install(VM_PACKAGES)
}

/// As [`packages`], for `cargo xtask bench cache`.
pub fn rival_packages() -> Result<()> {
    install(RIVAL_PACKAGES)
}

fn install(packages: &[Package]) -> Result<()> {
    let missing: Vec<&str> =
        packages.iter().filter(|(_, file)| !Path::new(file).exists()).map(|p| p.0).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("setup: installing Debian packages: {}", missing.join(" "));
    let apt = |args: &[&str]| -> Result<()> {
        let mut command = if root() {
            Command::new("apt-get")
        } else {
            let mut sudo = Command::new("sudo");
            sudo.arg("apt-get");
            sudo
        };
        let status = command
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            // No service of a package is started: what is needed of them is started here.
            .env("RUNLEVEL", "1")
            .status()
            .context("cannot run apt-get: this needs Debian, and root or sudo")?;
        if !status.success() {
            bail!("apt-get {} failed ({status}); install {missing:?} by hand", args.join(" "));
        }
        Ok(())
    };
    apt(&["update", "-q"])?;
    let mut install = vec!["install", "-y", "-q", "--no-install-recommends"];
    install.extend(&missing);
    apt(&install)
}

/// The workspace's root.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Runs cargo on the workspace.
pub fn cargo(args: &[&str]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(args)
        .current_dir(workspace())
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo {} failed ({status})", args.join(" "));
    }
    Ok(())
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// Builds the release `clustix` and answers its path.
pub fn build() -> Result<PathBuf> {
    cargo(&["build", "--release", "--package", "clustix"])?;
    Ok(target().join("release/clustix"))
}

/// Builds the release `clustix` with the verbs fabric, and answers its path.
pub fn build_verbs() -> Result<PathBuf> {
    install(VERBS_PACKAGES)?;
    let what = ["--package", "clustix", "--features", "verbs", "--bin", "clustix-verbs"];
    cargo(&[&["build", "--release"][..], &what].concat())?;
    Ok(target().join("release/clustix-verbs"))
}

/// Builds the release example that tries the verbs fabric, and answers its path.
pub fn build_verbs_example() -> Result<PathBuf> {
    install(VERBS_PACKAGES)?;
    let what = ["--package", "clustix-ccache", "--features", "verbs,conformance"];
    let example = ["--example", "verbs"];
    cargo(&[&["build", "--release", "--locked"][..], &what, &example].concat())?;
    Ok(target().join("release/examples/verbs"))
}

/// Builds the release `soft-roce-setup` and answers its path.
pub fn build_soft_roce() -> Result<PathBuf> {
    cargo(&["build", "--release", "--package", "soft-roce-setup"])?;
    Ok(target().join("release/soft-roce-setup"))
}

/// Where the images of machines are kept.
pub fn vm_cache() -> PathBuf {
    vm::cache_folder(target().join("vm-image"))
}

/// Compiles a C file statically into `out`.
pub fn compile_c(source: &Path, out: &Path) -> Result<()> {
    let status = Command::new("gcc")
        .args(["-O2", "-static", "-Wall", "-Werror", "-o"])
        .arg(out)
        .arg(source)
        .status()
        .context("cannot run gcc")?;
    if !status.success() {
        bail!("gcc {} failed ({status})", source.display());
    }
    Ok(())
}
