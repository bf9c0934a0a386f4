//! Bad input: a clear error each, nothing left half-made.

use anyhow::{Context, Result, ensure};
use clustix_tests::{Cluster, Output, cluster::busybox, leftover};
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;

/// It failed with this status and said all of these.
fn fails(out: &Output, status: i32, says: &[&str]) -> Result<()> {
    let text = out.errors();
    ensure!(
        out.status == status,
        "status {} instead of {status}: {text}{}",
        out.status,
        out.text()
    );
    for word in says {
        ensure!(text.contains(word), "{word:?} is not said: {text}");
    }
    Ok(())
}

#[test]
fn wrong_command_lines() -> Result<()> {
    let c = Cluster::new()?;
    for (line, says) in [
        (&["up"][..], "--nodes"),
        (&["up", "--nodes", "0"], "1..=16"),
        (&["up", "--nodes", "three"], "three"),
        (&["up", "--nodes", "3", "--memory", "lots"], "512M"),
        (&["run"], "CMD"),
        (&["run", "--user", "root", "--", "sh"], "1000:1000"),
        (&["dance"], "dance"),
        (&["nodes", "--xml"], "--xml"),
    ] {
        fails(&c.cli(line)?, 2, &[says])?;
    }
    for line in [
        &["nodes"][..],
        &["status"],
        &["ps"],
        &["objects"],
        &["pds"],
        &["metrics"],
        &["run", "--", "sh"],
        &["kill", "5"],
        &["kill-node", "0"],
        &["start-node", "0"],
        &["import", "/etc/passwd", "/etc/passwd"],
        &["export", "/a", "/tmp/clustix-nothing"],
    ] {
        fails(&c.cli(line)?, 1, &["is not up", "clustix up"])?;
    }
    fails(&c.cli(["up", "--nodes", "1", "--name", "a/b"])?, 1, &["a/b", "A-Z"])?;
    fails(&c.cli(["down", "--name", "never"])?, 1, &["never"])?;
    fails(&c.cli(["logs"])?, 1, &["never up"])?;
    leftover::only_what_down_keeps(c.state())
}

#[test]
fn up_twice_and_two_clusters_of_one_name() -> Result<()> {
    let c = Cluster::up(1)?;
    c.sh(None, "echo mine > /a")?.ok()?;
    let running = leftover::processes(c.state());
    fails(&c.cli(["up", "--nodes", "1"])?, 1, &["is up already", "clustix down"])?;
    fails(&c.cli(["up", "--nodes", "3", "--fresh"])?, 1, &["is up already"])?;
    ensure!(leftover::processes(c.state()).is_subset(&running), "the second `up` left something");
    ensure!(c.sh(None, "cat /a")?.ok()?.text() == "mine\n");
    // Another name is another cluster.
    c.cli(["up", "--nodes", "1", "--name", "other"])?.ok()?;
    fails(&c.cli(["run", "--name", "other", "--", "/bin/cat", "/a"])?, 127, &["no such file"])?;
    c.cli(["down", "--name", "other"])?.ok()?;
    ensure!(c.sh(None, "cat /a")?.ok()?.text() == "mine\n");
    c.cli(["down"])?.ok()?;
    leftover::none(c.state())
}

#[test]
fn programs_that_cannot_run() -> Result<()> {
    let c = Cluster::up(1)?;
    let run = |program: &str| c.cli(["run", "--", program]);
    fails(&run("no-such-program")?, 127, &["no-such-program", "no such file"])?;
    fails(&run("/bin")?, 126, &["/bin"])?;
    fails(&run("/bin/no/such")?, 127, &["/bin/no/such"])?;
    let good = fs::read(busybox()?)?;
    let folder = tempfile::tempdir()?;
    let mut damaged: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("text", b"hello\n".to_vec()),
        ("cut-in-header", good[..40].to_vec()),
        ("cut-in-segments", good[..200].to_vec()),
        ("cut-in-code", good[..100_000].to_vec()),
    ];
    let mut change = |name, at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        damaged.push((name, file));
    };
    change("other-machine", 18, &[0x28, 0]);
    change("many-segments", 56, &[0xff, 0xff]);
    change("segments-far-away", 32, &[0xff; 8]);
    change("entry-nowhere", 24, &[0xff; 8]);
    // First PT_LOAD's sizes and address.
    change("huge-segment", 64 + 40, &[0xff; 8]);
    change("segment-over-the-stub", 64 + 16, &0x7e00_0000_0000u64.to_le_bytes());
    for (name, bytes) in damaged {
        let host = folder.path().join(name);
        fs::write(&host, bytes)?;
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&host, fs::Permissions::from_mode(0o755))?;
        let path = format!("/bad/{name}");
        c.cli([host.to_str().map_or("", |_| "import"), host.to_str().unwrap_or(""), &path])?
            .ok()?;
        let out = run(&path)?;
        // A file that can be mapped may be killed by its own code; nothing else may happen.
        ensure!(out.status != 0, "{name} ran: {out:?}");
        println!("{name}: {} {}", out.status, out.errors().trim());
        ensure!(c.sh(None, "echo fine")?.ok()?.text() == "fine\n", "after {name}");
    }
    fails(&c.cli(["kill", "99999"])?, 1, &["99999", "no such process"])?;
    fails(&c.cli(["kill", "1"])?, 1, &["process 1"])?;
    fails(&c.cli(["run", "--node", "7", "--", "sh"])?, 1, &["there is no node 7"])?;
    fails(&c.cli(["objects", "--set", "shoes"])?, 1, &["shoes", "inode"])?;
    fails(&c.cli(["import", "/no/such/file", "/x"])?, 1, &["/no/such/file"])?;
    fails(&c.cli(["import", "/etc/passwd", "relative"])?, 1, &["absolute"])?;
    fails(&c.cli(["export", "/no/such", "/tmp/clustix-nothing"])?, 1, &["no such file"])?;
    ensure!(fs::symlink_metadata("/tmp/clustix-nothing").is_err(), "half an export is left");
    c.cli(["down", "--discard"])?.ok()?;
    Ok(())
}

#[test]
fn a_full_queue_says_so_and_noise_is_hung_up_on() -> Result<()> {
    let c = Cluster::up(1)?;
    let socket = c.state().join("default/node-0/control.sock");
    // Noise: a length that is too long, a frame that is none, half a frame.
    for noise in
        [&u32::MAX.to_le_bytes()[..], b"\x04\x00\x00\x00\xff\xff\xff\xff", b"\x10\x00\x00\x00x"]
    {
        let mut peer = UnixStream::connect(&socket)?;
        peer.write_all(noise)?;
        peer.shutdown(std::net::Shutdown::Write)?;
        let mut answer = Vec::new();
        std::io::Read::read_to_end(&mut peer, &mut answer)?;
        ensure!(!answer.is_empty(), "no error is told for {noise:?}");
    }
    ensure!(c.sh(None, "echo fine")?.ok()?.text() == "fine\n");
    // All places taken by peers that say nothing.
    let idle: Vec<UnixStream> =
        (0..64).map(|_| UnixStream::connect(&socket)).collect::<Result<_, _>>()?;
    fails(&c.cli(["ps"])?, 1, &["too many connections"])?;
    drop(idle);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while c.cli(["ps"])?.status != 0 {
        ensure!(std::time::Instant::now() < until, "the places are not given back");
    }
    c.cli(["down", "--discard"])?.ok()?;
    Ok(())
}

#[test]
fn no_space_is_said_and_survived() -> Result<()> {
    let c = Cluster::new()?;
    c.cli(["up", "--nodes", "1", "--memory", "32M"])?.ok()?;
    c.install_busybox()?;
    let out = c.sh(None, "dd if=/dev/zero of=/big bs=64k count=2000 2>&1; echo status=$?")?.ok()?;
    ensure!(out.text().contains("No space left on device"), "{}", out.text());
    ensure!(out.text().contains("status=1"), "{}", out.text());
    ensure!(c.sh(None, "rm /big && echo fine > /small && cat /small")?.ok()?.text() == "fine\n");
    // An import that does not fit.
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("f"), vec![7; 64 << 20])?;
    let host = folder.path().join("f");
    fails(&c.cli(["import", host.to_str().unwrap_or(""), "/f"])?, 1, &["no space"])?;
    ensure!(c.sh(None, "rm -f /f; cat /small")?.ok()?.text() == "fine\n");
    // Small files fill it too; programs and their pipes still work, and say so.
    let fill = "mkdir /m; i=0; while true > /m/f$i; do i=$((i+1)); done; echo $i | cat";
    let out = c.sh(None, fill)?;
    ensure!(out.errors().contains("No space left on device"), "{out:?}");
    let made: usize = out.text().trim().parse().context("how many")?;
    let listed = c.sh(None, "ls /m | wc -l")?.ok()?.text();
    ensure!(listed.trim().parse::<usize>()? >= made, "{made} files made, {listed} listed");
    ensure!(c.sh_with(None, "cat | wc -c", &[b'x'; 100_000])?.ok()?.text().trim() == "100000");
    ensure!(c.sh(None, "rm -r /m && echo more > /more && cat /more")?.ok()?.text() == "more\n");
    c.cli(["down"])?.ok()?;
    Ok(())
}
