//! Eight writers and three readers of one cluster (`programs/load.c` and a shell), each now on this node, now on that.
//! The oracle is here on the host: a step counts as acknowledged when its line has come out; of each life of a
//! writer's program the one step after its last line may have been done or not, and no other.

use crate::Cluster;
use crate::program;
use crate::random::Random;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// On no node.
const NOWHERE: u64 = u64::MAX;
const RECORD: usize = 64;
/// Numbers that a pipeline sorts.
const SORTED: u64 = 400;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Append,
    Churn,
    Journal,
    Pipeline,
    Records,
    Names,
}

const WORK: [(Kind, &str); 11] = [
    (Kind::Append, "a"),
    (Kind::Append, "b"),
    (Kind::Append, "c"),
    (Kind::Churn, "d"),
    (Kind::Churn, "e"),
    (Kind::Journal, "f"),
    (Kind::Journal, "g"),
    (Kind::Pipeline, "h"),
    (Kind::Records, "i"),
    (Kind::Records, "j"),
    (Kind::Names, "k"),
];

/// One life of a worker's program.
#[derive(Debug)]
struct Life {
    /// Its first step's number.
    from: u64,
    node: u8,
    /// Acknowledged steps, in order.
    steps: Vec<(char, u64)>,
}

impl Life {
    /// The number after all that it may have used.
    fn next(&self) -> u64 {
        let last = self.steps.iter().map(|(_, n)| n + 1).max().unwrap_or(0);
        last.max(self.from) + 1
    }
}

struct Worker {
    kind: Kind,
    id: &'static str,
    cluster: Arc<Cluster>,
    nodes: u8,
    lives: Mutex<Vec<Life>>,
    /// When the latest step was acknowledged.
    latest: Mutex<Instant>,
    /// Rung at each.
    more: Condvar,
    node: AtomicU64,
    stop: AtomicBool,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Status of a shell that has lost a part of its pipeline.
const PART_LOST: i32 = 99;

/// Whether an end says that a node was not there, or went: the next life is elsewhere.
fn is_loss(status: i32, errors: &str) -> bool {
    let lost = ["lost with node", "lost with the personality"];
    let absent =
        ["is down", "could not reach node", "could not ask", "could not start", "has not answered"];
    // A shell may outlive its personality, and a part of its pipeline not: what that wrote is cut short (EIO).
    let part = ["ended with 137", "Input/output error"];
    (status == PART_LOST && part.iter().any(|p| errors.contains(p)))
        || (status == 137 && lost.iter().any(|l| errors.contains(l)))
        || (status == 1 && absent.iter().any(|a| errors.contains(a)))
}

impl Worker {
    fn command(&self, node: u8, from: u64) -> Command {
        let (id, from) = (self.id, from.to_string());
        let load = match self.kind {
            Kind::Append => vec!["append", "/load/log", id, &from],
            Kind::Churn => vec!["churn", "/load/names", id, &from],
            Kind::Journal => vec!["journal", "/load/pages", id],
            Kind::Records => vec!["records", "/load/log"],
            Kind::Names => vec!["names", "/load/names"],
            Kind::Pipeline => {
                let script = format!(
                    "set -o pipefail; n={from}; while :; do f=/load/sorted/{id}.$n; \
                     seq $n $((n + {SORTED} - 1)) | sort -r > $f.new && \
                     mv $f.new $f && echo p $n || {{ echo ended with $? >&2; exit {PART_LOST}; }}; n=$((n+1)); done"
                );
                return self.cluster.sh_command(Some(node), &script);
            }
        };
        let node = node.to_string();
        let run = ["run", "--node", &node, "--", "/load/load"];
        self.cluster.command(run.into_iter().chain(load))
    }

    /// Works until it is told to stop; goes on elsewhere when its node dies.
    fn run(&self, mut random: Random) -> Result<()> {
        let mut from = 1;
        while !self.stop.load(Ordering::Acquire) {
            let node = random.below(self.nodes.into()) as u8;
            let mut child = self
                .command(node, from)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            let out = child.stdout.take().context("a pipe")?;
            let mut errors = child.stderr.take().context("a pipe")?;
            let errors = std::thread::spawn(move || {
                let mut text = String::new();
                let _ = errors.read_to_string(&mut text);
                text
            });
            lock(&self.lives).push(Life { from, node, steps: Vec::new() });
            self.node.store(node.into(), Ordering::Release);
            for line in BufReader::new(out).lines() {
                let line = line?;
                let step = line
                    .split_once(' ')
                    .and_then(|(op, n)| Some((op.chars().next()?, n.parse::<u64>().ok()?)));
                let step = step.with_context(|| format!("{}: not a step: {line:?}", self.id))?;
                self.took(step)?;
            }
            self.node.store(NOWHERE, Ordering::Release);
            let status = child.wait()?.code().unwrap_or(-1);
            let errors = errors.join().unwrap_or_default();
            ensure!(
                self.stop.load(Ordering::Acquire) || is_loss(status, &errors),
                "{:?} {} on node {node} ended with {status}: {errors}",
                self.kind,
                self.id
            );
            from = lock(&self.lives).last().map_or(from, Life::next);
        }
        Ok(())
    }

    fn took(&self, step: (char, u64)) -> Result<()> {
        let mut lives = lock(&self.lives);
        if step.0 == 'o' {
            // A life of pages begins with what the last one left: its last commit, or the one after.
            let commits =
                lives.iter().flat_map(|l| &l.steps).filter(|(op, _)| matches!(op, 'j' | 'o'));
            let last = commits.map(|(_, n)| *n).next_back().unwrap_or(0);
            let (said, found) = (last, step.1);
            ensure!(
                found == said || found == said + 1,
                "pages {}: commit {said} was acknowledged, and {found} is there",
                self.id
            );
        }
        lives.last_mut().context("a life")?.steps.push(step);
        drop(lives);
        *lock(&self.latest) = Instant::now();
        self.more.notify_all();
        Ok(())
    }

    fn steps(&self) -> usize {
        lock(&self.lives).iter().map(|l| l.steps.len()).sum()
    }
}

/// The load, at work.
pub struct Load {
    all: Vec<Arc<Worker>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

/// What was under way when something was killed.
pub struct Mark {
    at: Instant,
    /// Steps under way there, and elsewhere.
    pub there: usize,
    /// See `there`.
    pub elsewhere: usize,
}

impl Load {
    /// Brings the program in, and starts it on a cluster of `nodes` nodes with busybox.
    ///
    /// # Errors
    /// There is no gcc; the cluster refuses.
    pub fn start(cluster: &Arc<Cluster>, nodes: u8, random: &mut Random) -> Result<Load> {
        let folder = tempfile::tempdir()?;
        let program = program::compiled(folder.path(), "load")?;
        cluster.sh(None, "mkdir /load /load/names /load/pages /load/sorted")?.ok()?;
        cluster.cli(["import", program.to_str().context("path")?, "/load/load"])?.ok()?;
        let worker = |(kind, id)| {
            Arc::new(Worker {
                kind,
                id,
                cluster: cluster.clone(),
                nodes,
                lives: Mutex::default(),
                latest: Mutex::new(Instant::now()),
                more: Condvar::new(),
                node: AtomicU64::new(NOWHERE),
                stop: AtomicBool::new(false),
            })
        };
        let all: Vec<Arc<Worker>> = WORK.into_iter().map(worker).collect();
        let threads = all
            .iter()
            .map(|w| {
                let (w, random) = (w.clone(), random.fork());
                std::thread::spawn(move || w.run(random))
            })
            .collect();
        Ok(Load { all, threads })
    }

    /// Waits for one more step of each worker.
    ///
    /// # Errors
    /// One does not go on within `bound`, or has failed.
    pub fn more(&self, bound: Duration) -> Result<()> {
        let until = Instant::now() + bound;
        for (w, thread) in self.all.iter().zip(&self.threads) {
            let seen = w.steps();
            let mut latest = lock(&w.latest);
            while w.steps() == seen {
                ensure!(!thread.is_finished(), "{:?} {} has failed", w.kind, w.id);
                let left = until.saturating_duration_since(Instant::now());
                ensure!(
                    !left.is_zero(),
                    "{:?} {} does not go on for {} s; it was last on node {:?}",
                    w.kind,
                    w.id,
                    bound.as_secs(),
                    lock(&w.lives).last().map(|l| l.node)
                );
                let moment = left.min(Duration::from_millis(200));
                latest =
                    w.more.wait_timeout(latest, moment).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        Ok(())
    }

    /// To be called right before something on `node` is killed.
    pub fn mark(&self, node: u8) -> Mark {
        let on = |w: &&Arc<Worker>| w.node.load(Ordering::Acquire) == u64::from(node);
        let there = self.all.iter().filter(on).count();
        let running = |w: &&Arc<Worker>| w.node.load(Ordering::Acquire) != NOWHERE;
        let all = self.all.iter().filter(running).count();
        Mark { at: Instant::now(), there, elsewhere: all.saturating_sub(there) }
    }

    /// Waits until every worker has been served since: from the mark to the last one's first step.
    ///
    /// # Errors
    /// As [`Load::more`].
    pub fn served(&self, mark: &Mark, bound: Duration) -> Result<Duration> {
        self.more(bound)?;
        Ok(mark.at.elapsed())
    }

    /// Ends them all; what they did.
    ///
    /// # Errors
    /// A step failed, or a reader found something that cannot be.
    pub fn stop(self) -> Result<Done> {
        for w in &self.all {
            w.stop.store(true, Ordering::Release);
        }
        // Each client shows all that its program wrote, and ends.
        let cluster = &self.all.first().context("a worker")?.cluster;
        let until = Instant::now() + Duration::from_secs(60);
        while self.threads.iter().any(|t| !t.is_finished()) {
            kill_all(cluster)?;
            ensure!(Instant::now() < until, "programs that do not end");
        }
        let mut first = Ok(());
        for (w, thread) in self.all.iter().zip(self.threads) {
            let ended = thread.join().map_err(|_| anyhow!("{} panicked", w.id)).flatten();
            first = first.and(ended);
        }
        first?;
        Ok(Done(self.all))
    }
}

/// SIGKILL to every program; how many there were.
fn kill_all(cluster: &Cluster) -> Result<usize> {
    let ps = cluster.json(["ps"])?;
    let left = ps.as_array().into_iter().flatten().filter(|p| p["state"] != "Z");
    let pids: Vec<String> = left.map(|p| p["pid"].to_string()).collect();
    for pid in &pids {
        // It may have ended meanwhile.
        cluster.cli(["kill", "-9", pid])?;
    }
    Ok(pids.len())
}

/// What was done.
pub struct Done(Vec<Arc<Worker>>);

/// What the pipeline of number `n` must have printed.
fn sorted(n: u64) -> String {
    let mut lines: Vec<String> = (n..n + SORTED).map(|i| i.to_string()).collect();
    lines.sort_unstable_by(|a, b| b.cmp(a));
    lines.join("\n") + "\n"
}

/// Names that a directory's writer has after so many steps from `from` on.
fn churned(id: &str, from: u64, steps: usize) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut left = steps;
    for n in from.. {
        let name = |end: &str| format!("{id}.{n}{end}");
        for op in ['c', 'w', 'r', 'l', 'u', 'd'] {
            if op == 'd' && n < from + 3 {
                continue;
            }
            if left == 0 {
                return names;
            }
            left -= 1;
            match op {
                'c' => drop(names.insert(name(""))),
                'r' => {
                    names.remove(&name(""));
                    names.insert(name(".r"));
                }
                'l' => drop(names.insert(name(".l"))),
                'u' => drop(names.remove(&name(".r"))),
                'd' => drop(names.remove(&format!("{id}.{}.l", n - 3))),
                _ => {}
            }
        }
    }
    names
}

impl Done {
    /// Steps acknowledged, by all.
    pub fn steps(&self) -> usize {
        self.0.iter().map(|w| w.steps()).sum()
    }

    /// Programs that ended with their node.
    pub fn lives_lost(&self) -> usize {
        self.0.iter().map(|w| lock(&w.lives).len() - 1).sum()
    }

    /// Holds what the cluster has against what was acknowledged, and every invariant of the file tree. Waits
    /// for the programs' ends first.
    ///
    /// # Errors
    /// Something is lost, doubled, out of order, or there though nobody can have made it.
    pub fn check(&self, cluster: &Cluster) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(60);
        while kill_all(cluster)? > 0 {
            ensure!(Instant::now() < until, "programs that do not end");
        }
        for w in self.0.iter().filter(|w| w.kind == Kind::Journal) {
            let said =
                cluster.cli(["run", "--", "/load/load", "open", "/load/pages", w.id])?.ok()?;
            let text = said.text();
            let found = text.trim().strip_prefix("o ").and_then(|n| n.parse().ok());
            w.took(('o', found.with_context(|| format!("{text:?}"))?))?;
        }
        let back = tempfile::tempdir()?;
        let to = back.path().join("load");
        cluster.cli(["export", "/load", to.to_str().context("path")?])?.ok()?;
        let log = fs::read(to.join("log"))?;
        for w in &self.0 {
            match w.kind {
                Kind::Append => w.check_log(&log)?,
                Kind::Churn => w.check_names(&to.join("names"))?,
                Kind::Pipeline => w.check_sorted(&to.join("sorted"))?,
                Kind::Journal | Kind::Records | Kind::Names => {}
            }
        }
        // What a dead node had open goes once the others have noticed.
        loop {
            let fsck = cluster.cli(["fsck"])?;
            if fsck.status == 0 {
                return Ok(());
            }
            ensure!(Instant::now() < until, "fsck: {}{}", fsck.text(), fsck.errors());
        }
    }
}

impl Worker {
    fn check_log(&self, log: &[u8]) -> Result<()> {
        ensure!(log.len().is_multiple_of(RECORD), "the log has {} bytes", log.len());
        let mut there = Vec::new();
        for (i, r) in log.chunks(RECORD).enumerate() {
            let text = std::str::from_utf8(r).with_context(|| format!("record {i}"))?;
            let mut words = text.split(' ');
            let (id, n) = (words.next(), words.next().and_then(|n| n.parse::<u64>().ok()));
            let n = n.with_context(|| format!("record {i}: {text:?}"))?;
            if id == Some(self.id) {
                there.push(n);
            }
        }
        ensure!(
            there.is_sorted_by(|a, b| a < b),
            "{}: a record is doubled or out of order",
            self.id
        );
        let there: BTreeSet<u64> = there.into_iter().collect();
        let lives = lock(&self.lives);
        let mut known = BTreeSet::new();
        for life in lives.iter() {
            for (_, n) in &life.steps {
                ensure!(
                    there.contains(n),
                    "{} {n}, acknowledged on node {}, is lost",
                    self.id,
                    life.node
                );
                known.insert(*n);
            }
            known.insert(life.next() - 1);
        }
        if let Some(n) = there.difference(&known).next() {
            bail!("{} {n} is there, and nobody can have appended it", self.id);
        }
        Ok(())
    }

    fn check_names(&self, dir: &Path) -> Result<()> {
        let mut found: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
        let lives = lock(&self.lives);
        for entry in fs::read_dir(dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let mut parts = name.split('.');
            if parts.next() != Some(self.id) {
                continue;
            }
            let n: u64 = parts.next().and_then(|n| n.parse().ok()).context("a number")?;
            if name.ends_with(".l") || name.ends_with(".r") {
                let text = fs::read(dir.join(&name))?;
                let whole = text.len() == RECORD
                    && text.starts_with(format!("{} {n} ", self.id).as_bytes());
                ensure!(whole, "{name} is damaged: {:?}", String::from_utf8_lossy(&text));
            }
            let from = lives.iter().map(|l| l.from).filter(|from| *from <= n).max();
            found.entry(from.context("a life")?).or_default().insert(name);
        }
        for life in lives.iter() {
            let there = found.remove(&life.from).unwrap_or_default();
            let done = life.steps.len();
            let maybe = [churned(self.id, life.from, done), churned(self.id, life.from, done + 1)];
            ensure!(
                maybe.contains(&there),
                "after {done} steps from {} on node {} there should be {maybe:?}; there is {there:?}",
                life.from,
                life.node
            );
        }
        Ok(())
    }

    fn check_sorted(&self, dir: &Path) -> Result<()> {
        for life in lock(&self.lives).iter() {
            for (_, n) in &life.steps {
                let name = format!("{}.{n}", self.id);
                let text = fs::read_to_string(dir.join(&name)).with_context(|| {
                    format!("{name}, acknowledged on node {}, is lost", life.node)
                })?;
                ensure!(text == sorted(*n), "{name}: {text:?}, not {:?}", sorted(*n));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_after_each_step() {
        let names = |steps| churned("d", 5, steps).into_iter().collect::<Vec<_>>();
        assert_eq!(names(0), [""; 0]);
        assert_eq!(names(2), ["d.5"]);
        assert_eq!(names(3), ["d.5.r"]);
        assert_eq!(names(4), ["d.5.l", "d.5.r"]);
        assert_eq!(names(5), ["d.5.l"]);
        assert_eq!(names(20), ["d.5.l", "d.6.l", "d.7.l", "d.8.l"]);
        assert_eq!(names(21), ["d.6.l", "d.7.l", "d.8.l"]);
    }

    #[test]
    fn a_life_uses_no_number_of_another() {
        let life = |steps: &[(char, u64)]| Life { from: 7, node: 0, steps: steps.to_vec() };
        assert_eq!(life(&[]).next(), 8);
        assert_eq!(life(&[('a', 7), ('a', 8)]).next(), 10);
        assert_eq!(life(&[('c', 7), ('w', 7)]).next(), 9);
    }
}
