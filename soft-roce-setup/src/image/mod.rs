//! What the machines boot: Debian's kernel and an initial root file system, kept in a cache.
//!
//! An image is named by a hash of what it is made of. Its *base* (kernel, modules, tools, libraries) is named by the
//! packages' versions and the recipe, and is made once per kernel; the rest (scripts, agent, `clustix`) is an
//! archive of its own behind it, named by its content, and made in a second.

pub mod cpio;
pub mod modules;
pub mod packages;

use crate::guest;
use anyhow::{Context, Result, ensure};
use cpio::Archive;
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use xxhash_rust::xxh3::Xxh3;

/// Counted up when what [`base`] does with the same packages changes.
const RECIPE: &str = "1";

/// Programs taken from the packages.
const TOOLS: [&str; 10] = [
    "bin/busybox",
    "usr/bin/rdma",
    "usr/bin/ibv_devices",
    "usr/bin/ibv_devinfo",
    "usr/bin/ibv_rc_pingpong",
    "usr/bin/ibv_asyncwatch",
    "usr/bin/rping",
    "usr/bin/ucmatose",
    "usr/bin/udaddy",
    "usr/bin/rcopy",
];

/// Libraries that are opened by name, or that a program built here may need.
const LIBRARIES: [&str; 6] = [
    "libibverbs/librxe-rdmav34.so",
    "libm.so.6",
    "libgcc_s.so.1",
    "libibverbs.so.1",
    "librdmacm.so.1",
    "libnss_files.so.2",
];

/// Where Debian keeps libraries, and where the machines do.
const LIB: &str = "usr/lib/x86_64-linux-gnu";
/// The dynamic loader's name in every program.
const LOADER: &str = "lib64/ld-linux-x86-64.so.2";

/// What one boots.
#[derive(Clone, Debug)]
pub struct Image {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial root file system.
    pub initrd: PathBuf,
}

/// The image with `agent` and, if any, `clustix` in it; made if the cache does not have it.
/// What takes long is announced on standard output.
///
/// # Errors
/// A package cannot be had, a program needs a library that the packages lack, the disk is full.
pub fn make(cache: &Path, agent: &Path, clustix: Option<&Path>) -> Result<Image> {
    fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let lock = File::open(cache)?;
    // Whoever holds it is making an image, and lets go when it ends, however that is.
    flock(&lock, FlockOperation::LockExclusive).context("cannot lock the image cache")?;
    let base = base(cache)?;
    let programs: Vec<(&str, Vec<u8>)> = [("agent", Some(agent)), ("clustix", clustix)]
        .into_iter()
        .filter_map(|(name, file)| file.map(|f| (name, f)))
        .map(|(name, file)| {
            resolves(&base, file)?;
            Ok((name, fs::read(file).with_context(|| format!("cannot read {}", file.display()))?))
        })
        .collect::<Result<_>>()?;
    let mut hash = Xxh3::new();
    hash.update(base.as_os_str().as_encoded_bytes());
    for part in [guest::INIT, guest::GID] {
        hash.update(part.as_bytes());
    }
    for (name, bytes) in &programs {
        hash.update(name.as_bytes());
        hash.update(bytes);
    }
    let initrd = cache.join(format!("initrd-{:016x}", hash.digest()));
    if !initrd.exists() {
        let mut archive = Archive::default();
        archive.file("init", 0o755, guest::INIT.as_bytes());
        archive.file("bin/rxe-gid", 0o755, guest::GID.as_bytes());
        for (name, bytes) in &programs {
            archive.file(&format!("bin/{name}"), 0o755, bytes);
        }
        let mut bytes = fs::read(base.join("initrd"))?;
        bytes.extend(archive.finish());
        whole(&initrd, &bytes)?;
        prune(cache, &[&initrd, &base]);
    }
    Ok(Image { kernel: base.join("vmlinuz"), initrd })
}

/// Writes a file that is there whole or not at all.
fn whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = path.with_extension("part");
    fs::write(&part, bytes)
        .and_then(|()| fs::rename(&part, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Removes everything of the cache but `keep`. Machines that run have links of their own to what they boot.
fn prune(cache: &Path, keep: &[&Path]) {
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let path = entry.path();
        if !keep.contains(&path.as_path()) {
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

/// The base: a folder with `vmlinuz`, `initrd` and, for [`resolves`], the `root` of loader and libraries.
fn base(cache: &Path) -> Result<PathBuf> {
    let wanted = packages::wanted()?;
    let mut hash = Xxh3::new();
    for p in &wanted {
        hash.update(format!("{}={}\n", p.name, p.version).as_bytes());
    }
    for word in [RECIPE].iter().chain(&TOOLS).chain(&LIBRARIES).chain(&modules::WANTED) {
        hash.update(format!("{word}\n").as_bytes());
    }
    let base = cache.join(format!("base-{:016x}", hash.digest()));
    if base.exists() {
        return Ok(base);
    }
    let part = cache.join("base.part");
    if part.exists() {
        fs::remove_dir_all(&part)?;
    }
    let start = Instant::now();
    println!("image: downloading {} and {} more packages", wanted[0].name, wanted.len() - 1);
    let files = packages::download(&wanted, &part.join("packages"))?;
    println!("image: unpacking, after {:.1} s", start.elapsed().as_secs_f32());
    let kernel = part.join("kernel");
    let tree = part.join("tree");
    for (i, file) in files.iter().enumerate() {
        packages::unpack(file, if i == 0 { &kernel } else { &tree })?;
    }
    let mut archive = Archive::default();
    for folder in ["proc", "sys", "dev", "tmp", "root", "share", "etc", "bin"] {
        archive.folder(folder);
    }
    let release = fs::read_dir(kernel.join("lib/modules"))?
        .next()
        .context("the kernel's package has no lib/modules")??
        .file_name();
    add_modules(&mut archive, &kernel, Path::new(&release))?;
    fs::rename(
        kernel.join("boot").join(format!("vmlinuz-{}", release.display())),
        part.join("vmlinuz"),
    )
    .context("the kernel's package has no kernel")?;
    let root = part.join("root");
    add_programs(&mut archive, &tree, &root)?;
    archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n");
    archive.file("etc/group", 0o644, b"root:x:0:\n");
    whole(&part.join("initrd"), &archive.finish())?;
    for done in ["packages", "kernel", "tree"] {
        fs::remove_dir_all(part.join(done))?;
    }
    fs::rename(&part, &base)?;
    println!("image: base made in {:.1} s", start.elapsed().as_secs_f32());
    Ok(base)
}

fn add_modules(archive: &mut Archive, kernel: &Path, release: &Path) -> Result<()> {
    packages::output(Command::new("depmod").arg("-b").arg(kernel).arg(release))?;
    let folder = kernel.join("lib/modules").join(release);
    let dep =
        fs::read_to_string(folder.join("modules.dep")).context("depmod made no modules.dep")?;
    let mut order = String::new();
    for module in modules::order(&dep, &modules::WANTED)? {
        let file = folder.join(&module);
        let bytes = if file.extension().is_some_and(|e| e == "xz") {
            packages::output(Command::new("xz").arg("-dc").arg(&file))?
        } else {
            fs::read(&file)?
        };
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = name.trim_end_matches(".xz");
        archive.file(&format!("lib/modules/{name}"), 0o644, &bytes);
        order.push_str(name);
        order.push('\n');
    }
    archive.file("lib/modules/order", 0o644, order.as_bytes());
    Ok(())
}

/// Adds the tools, the loader, and every library that they need; the latter two also go below `root`.
fn add_programs(archive: &mut Archive, tree: &Path, root: &Path) -> Result<()> {
    // Packages still name /lib; the machines have one folder of libraries, as the host has.
    let from: Vec<PathBuf> =
        [LIB, "lib/x86_64-linux-gnu"].iter().map(|d| tree.join(d)).filter(|d| d.exists()).collect();
    let library = |name: &str| {
        from.iter().map(|d| d.join(name)).find(|f| f.exists()).with_context(|| {
            format!("library {name} is needed, and none of the image's packages has it")
        })
    };
    // In the package, the loader's own place is a link to the host's.
    let loader = library("ld-linux-x86-64.so.2")?;
    let keep = |archive: &mut Archive, path: &str, file: &Path| -> Result<()> {
        let bytes = fs::read(file)?;
        archive.file(path, 0o755, &bytes);
        let copy = root.join(path);
        fs::create_dir_all(copy.parent().unwrap_or(root))?;
        fs::copy(file, copy)?;
        Ok(())
    };
    keep(archive, LOADER, &loader)?;
    let mut needed: BTreeSet<String> = LIBRARIES.iter().map(|l| (*l).to_owned()).collect();
    for tool in TOOLS {
        let file = tree.join(tool);
        let bytes =
            fs::read(&file).with_context(|| format!("none of the image's packages has {tool}"))?;
        archive.file(&format!("bin/{}", tool.rsplit('/').next().unwrap_or(tool)), 0o755, &bytes);
        needed.extend(libraries(&loader, &from, &file)?);
    }
    for name in LIBRARIES {
        needed.extend(libraries(&loader, &from, &library(name)?)?);
    }
    for name in &needed {
        keep(archive, &format!("{LIB}/{name}"), &library(name)?)?;
    }
    archive.link("bin/sh", "busybox");
    archive.link("lib/x86_64-linux-gnu", "../usr/lib/x86_64-linux-gnu");
    archive.file("etc/libibverbs.d/rxe.driver", 0o644, b"driver rxe\n");
    Ok(())
}

/// Whether an ELF file has a dynamic section (PT_DYNAMIC).
fn dynamic(elf: &[u8]) -> bool {
    let half =
        |at: usize| elf.get(at..at + 2).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])));
    let headers = || -> Option<(usize, usize, usize)> {
        let offset = elf.get(32..40)?.try_into().ok().map(u64::from_le_bytes)?;
        Some((usize::try_from(offset).ok()?, half(54)?, half(56)?))
    };
    let Some((offset, size, count)) = headers().filter(|_| elf.starts_with(b"\x7fELF")) else {
        return false;
    };
    (0..count).any(|i| {
        let start = offset.saturating_add(i * size);
        elf.get(start..start.saturating_add(4)) == Some(&[2, 0, 0, 0])
    })
}

/// The names of the libraries that a program or library needs, by the dynamic loader's own answer.
fn libraries(loader: &Path, from: &[PathBuf], file: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    if !dynamic(&bytes) {
        return Ok(Vec::new());
    }
    let path: Vec<&str> = from.iter().filter_map(|d| d.to_str()).collect();
    let mut command = Command::new(loader);
    command
        .arg("--library-path")
        .arg(path.join(":"))
        .arg("--inhibit-cache")
        .arg("--list")
        .arg(file);
    let listed = packages::output(command.env_remove("LD_PRELOAD"))
        .with_context(|| format!("cannot tell what {} needs", file.display()))?;
    let mut names = Vec::new();
    for line in String::from_utf8_lossy(&listed).lines() {
        let Some((name, found)) = line.trim().split_once(" => ") else { continue };
        if name.starts_with('/') {
            continue;
        }
        // The loader also looks where the host keeps libraries.
        ensure!(
            from.iter().any(|d| Path::new(found).starts_with(d)),
            "{} needs {name}, and none of the image's packages has it",
            file.display()
        );
        names.push(name.to_owned());
    }
    Ok(names)
}

/// Whether a program that was built here will find its libraries in a machine.
fn resolves(base: &Path, program: &Path) -> Result<()> {
    let root = base.join("root");
    libraries(&root.join(LOADER), &[root.join(LIB)], program).map(drop)
}
