//! What outlives programs survives `down` and `up` exactly; a snapshot that was cut short or altered is
//! refused by name, and nothing is left half-made.

use anyhow::{Context, Result, ensure};
use clustix_tests::random::Random;
use clustix_tests::{Cluster, data, leftover};
use std::fs;

/// A tree with one of everything.
const MAKE: &str = r#"
set -e
mkdir -p /t/d1/d2 /t/empty
i=0; while [ $i -lt 300 ]; do echo $i > /t/d1/file-$i; i=$((i+1)); done
dd if=/dev/urandom of=/t/big bs=64k count=40 2>/dev/null
dd if=/dev/zero of=/t/sparse bs=1 count=1 seek=1000000 2>/dev/null
: > /t/zero
ln /t/big /t/hard; ln -s d1/d2 /t/soft; ln -s /nowhere /t/dangling
mkfifo /t/fifo
chmod 600 /t/zero; chmod 1777 /t/empty; chown 12:34 /t/d1
touch -d '2001-02-03 04:05:06' /t/zero
"#;

/// What `ls` and the checksums say of it.
const LOOK: &str =
    "cd /t && find . | sort | xargs ls -ldn --full-time && find . -type f | sort | xargs sha256sum";

#[test]
fn files_outlive_a_stop_exactly() -> Result<()> {
    let c = Cluster::up(3)?;
    c.sh(None, MAKE)?.ok()?;
    let look = c.sh(None, LOOK)?.ok()?.text();
    ensure!(look.contains("file-299") && look.contains("/nowhere"), "{look}");
    let folder = tempfile::tempdir()?;
    let first = folder.path().join("first");
    c.cli(["export", "/t", first.to_str().context("path")?])?.ok()?;
    // Another number of nodes, twice: what is kept does not depend on where it was.
    for nodes in ["1", "2"] {
        c.cli(["down"])?.ok()?;
        leftover::none(c.state())?;
        leftover::only_what_down_keeps(c.state())?;
        c.cli(["up", "--nodes", nodes])?.ok()?;
        ensure!(c.sh(None, LOOK)?.ok()?.text() == look, "with {nodes} nodes");
        let again = folder.path().join(nodes);
        c.cli(["export", "/t", again.to_str().context("path")?])?.ok()?;
        ensure!(data::contents(&first)? == data::contents(&again)?, "with {nodes} nodes");
    }
    // `--fresh` starts empty and takes the snapshot away.
    c.cli(["down"])?.ok()?;
    c.cli(["up", "--nodes", "1", "--fresh"])?.ok()?;
    ensure!(!c.state().join("default/snapshot").exists());
    c.install_busybox()?;
    ensure!(c.sh(None, "test -e /t")?.status == 1);
    c.cli(["down"])?.ok()?;
    leftover::none(c.state())
}

#[test]
fn a_damaged_snapshot_is_refused_by_name() -> Result<()> {
    let mut random = Random::seeded("snapshot");
    let c = Cluster::up(1)?;
    c.sh(None, "echo kept > /a")?.ok()?;
    c.cli(["down"])?.ok()?;
    let path = c.state().join("default/snapshot");
    let good = fs::read(&path)?;
    let refused = |bytes: &[u8], says: &str| -> Result<()> {
        fs::write(&path, bytes)?;
        let out = c.cli(["up", "--nodes", "1"])?;
        let text = out.errors();
        ensure!(out.status == 1, "accepted: {}", out.text());
        for word in ["default/snapshot", "byte", says] {
            ensure!(text.contains(word), "{word:?} is not said: {text}");
        }
        leftover::none(c.state())?;
        leftover::only_what_down_keeps(c.state())
    };
    for _ in 0..8 {
        let cut = random.below(good.len() as u64) as usize;
        refused(&good[..cut], "cut short")?;
    }
    for _ in 0..8 {
        let mut altered = good.clone();
        let at = 32 + random.below(good.len() as u64 - 32) as usize;
        altered[at] ^= 1 << random.below(8);
        refused(&altered, "")?;
    }
    let mut other = good.clone();
    other[16] = 99;
    refused(&other, "version 99")?;
    refused(b"not a snapshot at all", "not a snapshot")?;
    let mut longer = good.clone();
    longer.push(0);
    refused(&longer, "follows")?;
    // The good one is as good as ever.
    fs::write(&path, &good)?;
    c.cli(["up", "--nodes", "1"])?.ok()?;
    ensure!(c.sh(None, "cat /a")?.ok()?.text() == "kept\n");
    c.cli(["down"])?.ok()?;
    leftover::none(c.state())
}
