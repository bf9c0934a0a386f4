//! `cargo xtask demo`: unmodified programs on three nodes, one of which dies.

use crate::cluster::Cluster;
use crate::{data, setup};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Bytes of text imported.
const TEXT: u64 = 20 << 20;

/// The job, on the host and in the cluster: busybox programs alone. `$1` is the folder that holds
/// `tree`; results go beside it, into `$2`.
const JOB: &str = r#"
set -e -o pipefail
cd "$1/tree"
out="$1/$2"
mkdir "$out"
find . -type f | sort > "$out/list"
xargs sha256sum < "$out/list" > "$out/sums"
sed 's/.*\///; s/.*\./ /' < "$out/list" | sort | uniq -c | sort -k1,1rn -k2 > "$out/kinds"
head -n 60 "$out/list" | xargs cat | tr -cs 'A-Za-z' '\n' | sort | uniq -c | sort -k1,1rn -k2 > "$out/words"
tar -c -f "$out/tree.tar" $(cat "$out/list")
gzip -c < "$out/tree.tar" > "$out/tree.tar.gz"
sha256sum < "$out/tree.tar.gz" > "$out/tar.sum"
rm "$out/tree.tar"
"#;

/// What the job leaves.
const RESULTS: &[&str] = &["list", "sums", "kinds", "words", "tree.tar.gz", "tar.sum"];

struct Steps {
    start: Instant,
    last: Instant,
}

impl Steps {
    fn done(&mut self, text: &str) {
        let ms = self.last.elapsed().as_millis();
        println!("[{:6.1} s] {text} ({ms} ms)", self.start.elapsed().as_secs_f64());
        self.last = Instant::now();
    }
}

/// Runs it. Exit 0 only if every step did what it says.
pub fn run() -> Result<()> {
    setup::packages()?;
    let program = setup::build()?;
    let work = setup::target().join("demo");
    if work.exists() {
        crate::cluster::end_left(&program, &work.join("s"))?;
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(&work)?;
    let result = steps(&program, &work);
    match &result {
        Ok(()) => fs::remove_dir_all(&work)?,
        Err(_) => eprintln!("what the demo made is left in {}", work.display()),
    }
    result
}

fn steps(program: &Path, work: &Path) -> Result<()> {
    let mut steps = Steps { start: Instant::now(), last: Instant::now() };

    let (files, bytes) = data::collect(&work.join("tree"), TEXT)?;
    fs::write(work.join("job.sh"), JOB)?;
    steps.done(&format!("collected {files} text files of this machine, {bytes} bytes"));

    host_job(work)?;
    steps.done("ran the job on the host, as the reference");

    let cluster = Cluster::up(program, &work.join("s"), 3, &[])?;
    steps.done("started a cluster of 3 nodes");
    if let Err(e) = on_cluster(&mut steps, &cluster, work, files, bytes) {
        cluster.tell();
        return Err(e);
    }
    cluster.down()?;
    steps.done("took the cluster down");
    println!("demo: every step did what it says, in {:.1} s", steps.start.elapsed().as_secs_f64());
    Ok(())
}

fn on_cluster(
    steps: &mut Steps,
    cluster: &Cluster,
    work: &Path,
    files: usize,
    bytes: u64,
) -> Result<()> {
    cluster.ok(&["import", "/bin/busybox", "/bin/busybox"])?;
    cluster.run(0, &["/bin/busybox", "--install", "-s", "/bin"])?;
    for etc in ["/etc/passwd", "/etc/group"] {
        cluster.ok(&["import", etc, etc])?;
    }
    cluster.ok(&["import", path(&work.join("job.sh"))?, "/job.sh"])?;
    steps.done("imported busybox and installed its programs");

    let t = Instant::now();
    cluster.ok(&["import", path(&work.join("tree"))?, "/work/tree"])?;
    let rate = bytes as f64 / t.elapsed().as_secs_f64() / (1 << 20) as f64;
    steps.done(&format!("imported the tree: {files} files, {rate:.1} MiB/s"));

    cluster.run(0, &["sh", "/job.sh", "/work", "first"])?;
    steps.done("ran the job on node 0: find, sort, uniq, sha256sum, tar, gzip");
    compare(cluster, work, "first")?;
    steps.done("its results equal the host's, byte for byte");

    let probe = ["run", "--node", "1", "--", "sh", "-c", "echo served > /probe && cat /probe"];
    let before = cluster.until_ok(&probe, Duration::from_secs(5))?;
    cluster.until_ok(&["status"], Duration::from_secs(60))?;
    steps.done(&format!("a request to node 1 takes {} ms with all nodes up", before.as_millis()));

    let killed = Instant::now();
    cluster.ok(&["kill-node", "0"])?;
    cluster.until_ok(&probe, Duration::from_secs(30))?;
    let served = killed.elapsed().as_millis();
    steps.done(&format!(
        "killed node 0 with SIGKILL; {served} ms from the kill to a served request"
    ));

    cluster.ok(&["export", "/work/tree", path(&work.join("back"))?])?;
    data::same_tree(&work.join("tree"), &work.join("back"))?;
    steps.done(&format!("read all {files} files from the survivors: nothing is lost"));
    compare(cluster, work, "first")?;
    steps.done("the first job's results are there too");

    cluster.run(1, &["sh", "/job.sh", "/work", "second"])?;
    compare(cluster, work, "second")?;
    steps.done("ran the job again on node 1: the same results");

    cluster.ok(&["start-node", "0"])?;
    cluster.until_ok(&["status"], Duration::from_secs(60))?;
    steps.done("node 0 rejoined and the lost copies are rebuilt: a node can be lost again");
    let listed = cluster.run(0, &["sh", "-c", "cd /work/tree && sha256sum -c ../first/sums"])?;
    let good = listed.split(|b| *b == b'\n').filter(|l| l.ends_with(b": OK")).count();
    if good != files {
        bail!("node 0 checks {good} of {files} files as good");
    }
    steps.done("node 0 reads every file again");
    Ok(())
}

fn path(p: &Path) -> Result<&str> {
    p.to_str().with_context(|| format!("{} is not UTF-8", p.display()))
}

fn host_job(work: &Path) -> Result<()> {
    let out = Command::new("/bin/busybox")
        .args(["sh", "job.sh", path(work)?, "host"])
        .current_dir(work)
        .env_clear()
        .env("PATH", "/nonexistent")
        .output()
        .context("cannot run /bin/busybox")?;
    if !out.status.success() {
        bail!("the job failed on the host: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(())
}

/// Fetches the results of a job in the cluster and holds them against the host's.
fn compare(cluster: &Cluster, work: &Path, name: &str) -> Result<()> {
    let fetched = work.join(format!("fetched-{name}"));
    if fetched.exists() {
        fs::remove_dir_all(&fetched)?;
    }
    cluster.ok(&["export", &format!("/work/{name}"), path(&fetched)?])?;
    for result in RESULTS {
        if fs::read(work.join("host").join(result))? != fs::read(fetched.join(result))? {
            bail!("{result} of the job {name:?} differs from the host's (both in {})", path(work)?);
        }
    }
    Ok(())
}
