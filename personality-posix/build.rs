//! Builds the stub, a freestanding image of its own, with the same compiler.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    for entry in std::fs::read_dir(dir.join("stub")).expect("the stub's sources").flatten() {
        println!("cargo:rerun-if-changed={}", entry.path().display());
    }
    println!("cargo:rerun-if-changed=build.rs");
    image(&dir.join("stub/main.rs"), &dir.join("stub/stub.ld"), &out.join("stub"));
}

/// Compiles one `no_std` source to a static image at the script's addresses.
fn image(source: &Path, script: &Path, to: &Path) {
    let rustc = env::var_os("RUSTC").expect("set by cargo");
    let status = Command::new(rustc)
        .args(["--edition", "2024", "--crate-name", "clustix_stub", "--crate-type", "bin"])
        .args(["--target", "x86_64-unknown-linux-gnu", "--cap-lints", "warn"])
        .args(["-C", "panic=abort", "-C", "opt-level=2", "-C", "relocation-model=pic"])
        .args(["-C", "strip=symbols", "-C", "codegen-units=1"])
        .args(["-C", "link-arg=-nostdlib", "-C", "link-arg=-nostartfiles"])
        .args(["-C", "link-arg=-static", "-C", "link-arg=-no-pie"])
        .args(["-C", "link-arg=-Wl,--build-id=none"])
        .arg("-C")
        .arg(format!("link-arg=-Wl,-T,{}", script.display()))
        .arg("-o")
        .arg(to)
        .arg(source)
        // Flags meant for the host's programs (sanitizers, other CPUs) are not the stub's.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .expect("rustc starts");
    assert!(status.success(), "the stub does not build: {status}");
}
