//! Writers whose every acknowledged file is known here on the host: a file counts as acknowledged when the
//! writer's line about it has come out.

use crate::Cluster;
use crate::random::Random;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Their names, and those of the directories that they write in.
const NAMES: [&str; 2] = ["w1", "w2"];
/// On no node.
const NOWHERE: u64 = u64::MAX;

/// A writer: makes files one after the other, says each one's number once it is written.
struct Writer {
    name: &'static str,
    cluster: Arc<Cluster>,
    nodes: u8,
    /// Acknowledged: number → node that acknowledged it.
    done: Mutex<BTreeMap<u64, u8>>,
    /// Rung at each.
    more: Condvar,
    /// Next number nobody has used.
    next: AtomicU64,
    node: AtomicU64,
    stop: AtomicBool,
    lost: AtomicU64,
}

/// Contents of file `n`: what a reader must find.
fn contents(name: &str, n: u64) -> String {
    format!("{name} wrote {n}; {}", "x".repeat((n % 977) as usize))
}

impl Writer {
    fn done(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, u8>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes on some live node until it is told to stop; goes on elsewhere when that node dies.
    fn run(&self, mut random: Random) -> Result<()> {
        while !self.stop.load(Ordering::Acquire) {
            let node = random.below(self.nodes.into()) as u8;
            let from = self.next.load(Ordering::Acquire);
            // Written under another name first: a file whose line was not seen may be half there,
            // one whose line was seen is whole. (A name of this program's own: one whose control went away
            // runs on, beside the next.)
            let script = format!(
                "n={from}; pad=$(cat /pad); while :; do \
                 k=$((n % 977)); printf '%s wrote %s; %.*s' {name} $n $k \"$pad\" > /{name}/.{from} && \
                 mv /{name}/.{from} /{name}/$n && echo $n || exit 1; n=$((n+1)); done",
                name = self.name
            );
            let mut command = self.cluster.sh_command(Some(node), &script);
            let mut child = command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            let out = child.stdout.take().context("a pipe")?;
            self.node.store(node.into(), Ordering::Release);
            for line in BufReader::new(out).lines() {
                let Ok(n) = line?.parse::<u64>() else { bail!("{}: not a number", self.name) };
                self.done().insert(n, node);
                self.more.notify_all();
                self.next.store(n + 1, Ordering::Release);
                if self.stop.load(Ordering::Acquire) {
                    break;
                }
            }
            self.node.store(NOWHERE, Ordering::Release);
            if self.stop.load(Ordering::Acquire) {
                let _ = child.kill();
            }
            let out = child.wait_with_output()?;
            if out.status.code() == Some(137) {
                self.lost.fetch_add(1, Ordering::AcqRel);
            }
            // The file under way when the node died may or may not be there: its number is not used
            // again, so that it cannot be mistaken for the next writer's.
            self.next.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }
}

/// Two writers at work, each now on this node, now on that.
pub struct Writers {
    all: Vec<Arc<Writer>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Writers {
    /// Starts them on a cluster of `nodes` nodes.
    ///
    /// # Errors
    /// Their directories cannot be made.
    pub fn start(cluster: &Arc<Cluster>, nodes: u8, random: &mut Random) -> Result<Writers> {
        let pad = "i=0; while [ $i -lt 1000 ]; do printf x; i=$((i+1)); done > /pad";
        cluster.sh(None, &format!("mkdir /{} /{}; {pad}", NAMES[0], NAMES[1]))?.ok()?;
        let writer = |name| {
            Arc::new(Writer {
                name,
                cluster: cluster.clone(),
                nodes,
                done: Mutex::default(),
                more: Condvar::new(),
                next: AtomicU64::new(1),
                node: AtomicU64::new(NOWHERE),
                stop: AtomicBool::new(false),
                lost: AtomicU64::new(0),
            })
        };
        let all: Vec<Arc<Writer>> = NAMES.into_iter().map(writer).collect();
        let threads = all
            .iter()
            .map(|w| {
                let (w, random) = (w.clone(), random.fork());
                std::thread::spawn(move || w.run(random))
            })
            .collect();
        Ok(Writers { all, threads })
    }

    /// Waits for one more file of each.
    ///
    /// # Errors
    /// One does not go on within `bound`.
    pub fn more(&self, bound: Duration) -> Result<()> {
        for w in &self.all {
            let until = Instant::now() + bound;
            let mut done = w.done();
            let seen = done.len();
            while done.len() == seen {
                let left = until.saturating_duration_since(Instant::now());
                ensure!(!left.is_zero(), "{} does not go on", w.name);
                let (next, _) =
                    w.more.wait_timeout(done, left).unwrap_or_else(PoisonError::into_inner);
                done = next;
            }
        }
        Ok(())
    }

    /// How many are on that node.
    pub fn on(&self, node: u8) -> usize {
        self.all.iter().filter(|w| w.node.load(Ordering::Acquire) == u64::from(node)).count()
    }

    /// Ends them.
    ///
    /// # Errors
    /// One could not start its program, or read what it said.
    pub fn stop(self) -> Result<Written> {
        for w in &self.all {
            w.stop.store(true, Ordering::Release);
        }
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("a writer panicked"))??;
        }
        Ok(Written(self.all))
    }
}

/// What they have written.
pub struct Written(Vec<Arc<Writer>>);

impl Written {
    /// Programs that ended with their node.
    pub fn lost(&self) -> u64 {
        self.0.iter().map(|w| w.lost.load(Ordering::Acquire)).sum()
    }

    /// Reads every acknowledged file, from a node of the cluster's choice; how many there are.
    ///
    /// # Errors
    /// One is lost or damaged.
    pub fn check(&self, cluster: &Cluster) -> Result<usize> {
        let back = tempfile::tempdir()?;
        let mut checked = 0;
        for w in &self.0 {
            let to = back.path().join(w.name);
            let dir = format!("/{}", w.name);
            cluster.cli(["export", &dir, to.to_str().context("path")?])?.ok()?;
            for (n, node) in w.done().iter() {
                let found = std::fs::read(to.join(n.to_string()))
                    .with_context(|| format!("{dir}/{n}, acknowledged on node {node}, is lost"))?;
                ensure!(
                    found == contents(w.name, *n).into_bytes(),
                    "{dir}/{n}, acknowledged on node {node}, is damaged: {:?}",
                    String::from_utf8_lossy(&found)
                );
                checked += 1;
            }
        }
        Ok(checked)
    }
}
