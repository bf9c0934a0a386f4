//! Linearizability of real runs: clients on all nodes read and write registers (files of eight bytes)
//! as fast as they can while nodes are killed and started again, or shards get other primaries. What every client saw, with the times of
//! one clock, must fit into one order for each register.

use anyhow::{Context, Result, bail, ensure};
use clustix_tests::random::Random;
use clustix_tests::registers::{self, History};
use clustix_tests::{Cluster, Program};
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const NODES: u8 = 3;
const CLIENTS: u64 = 6;
/// Few, so that clients meet.
const REGISTERS: u32 = 24;
/// Operations that a client's program does before another one goes on, perhaps elsewhere.
const RUN: u64 = 4_000;

/// A client's thread.
type Worker = std::thread::JoinHandle<Result<()>>;

struct Shared {
    cluster: Cluster,
    history: Mutex<History>,
    /// Lines that clients have said.
    operations: AtomicU64,
    stop: AtomicBool,
    /// Programs that ended before their time.
    lost: AtomicU64,
    /// Programs: client, number of the first operation, end of the last that was said.
    runs: Mutex<Vec<(u64, u64, u64)>>,
}

fn now() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Runs one program to its end; the number of the next operation.
fn run(s: &Shared, client: u64, first: u64, node: Option<u8>, seed: u64) -> Result<u64> {
    let begun = now();
    let mut args = vec!["run".to_owned()];
    if let Some(node) = node {
        args.extend(["--node".to_owned(), node.to_string()]);
    }
    args.extend(["--", "/register", "drive"].map(str::to_owned));
    args.extend([client, first, RUN, seed, REGISTERS.into()].map(|n| n.to_string()));
    let mut command = s.cluster.command(args);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("clustix run")?;
    let out = child.stdout.take().context("a pipe")?;
    let mut said = 0;
    let mut last = begun;
    let mut lines = BufReader::new(out);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        // A line that its program did not finish says nothing.
        if let Some(whole) = line.strip_suffix('\n') {
            let words: Vec<&str> = whole.split(' ').collect();
            let [begin, end, what, register, value, errno] = words[..] else {
                bail!("client {client} said {whole:?}")
            };
            let (begin, end) = (begin.parse()?, end.parse()?);
            // The cluster's clock is the host's.
            ensure!(begun <= begin && begin <= end && end <= now(), "times: {whole}");
            let write = what == "w";
            let mut history = s.history.lock().unwrap();
            history.add(register.parse()?, write, value.parse()?, (begin, end), errno.parse()?);
            said += 1;
            last = end;
            s.operations.fetch_add(1, Ordering::AcqRel);
        }
        line.clear();
    }
    let ended = child.wait_with_output()?;
    if said < RUN {
        ensure!(!ended.status.success(), "client {client} ended early with status 0");
        s.lost.fetch_add(1, Ordering::AcqRel);
    }
    s.runs.lock().unwrap().push((client, first, last));
    Ok(first + RUN)
}

fn client(s: &Shared, client: u64, mut random: Random) -> Result<()> {
    let mut next = 1;
    while !s.stop.load(Ordering::Acquire) {
        let node = random.below(u64::from(NODES) + 1) as u8;
        // One in four goes wherever there is room; a node that is down refuses.
        let node = (node < NODES).then_some(node);
        next = run(s, client, next, node, random.number())?;
    }
    Ok(())
}

#[test]
fn what_clients_saw_fits_one_order() -> Result<()> {
    let all = std::env::var_os("CLUSTIX_TEST_ALL").is_some();
    let (operations, kills) = if all { (1_000_000, 60) } else { (100_000, 6) };
    let seen = while_clients_work("linear", |s, threads, random| {
        disturb(s, threads, random, operations, kills)
    })?;
    println!("linear: {seen}");
    Ok(())
}

#[test]
fn what_clients_saw_fits_one_order_while_primaries_move() -> Result<()> {
    let seen = while_clients_work("rehome", rehome)?;
    println!("rehome: {seen}");
    Ok(())
}

/// Has clients work until `disturb` ends, which answers what it did, and checks what they saw.
fn while_clients_work(
    name: &str,
    disturb: impl FnOnce(&Shared, &[Worker], &mut Random) -> Result<String>,
) -> Result<String> {
    let mut random = Random::seeded(name);
    let shared = Arc::new(Shared {
        cluster: Cluster::up(NODES)?,
        history: Mutex::default(),
        operations: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        lost: AtomicU64::new(0),
        runs: Mutex::default(),
    });
    let folder = tempfile::tempdir()?;
    let program = registers::client(folder.path())?;
    let program = program.to_str().context("path")?;
    shared.cluster.cli(["import", program, "/register"])?.ok()?;
    shared.cluster.sh(None, &registers::make(REGISTERS))?.ok()?;
    let threads: Vec<_> = (1..=CLIENTS)
        .map(|c| {
            let shared = shared.clone();
            let mut seed = random.clone();
            for _ in 0..c {
                seed.number();
            }
            std::thread::spawn(move || client(&shared, c, seed))
        })
        .collect();
    let done = disturb(&shared, &threads, &mut random);
    shared.stop.store(true, Ordering::Release);
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
    }
    let done = done?;
    let mut history = shared.history.lock().unwrap();
    // What a program did and did not come to say is known by the values that others read; it was
    // begun after all that the program said.
    let runs = shared.runs.lock().unwrap();
    for (register, value) in history.strange() {
        let (client, number) = (value >> 40, value & ((1 << 40) - 1));
        let of = |(c, first, _): &&(u64, u64, u64)| {
            *c == client && (*first..first + RUN).contains(&number)
        };
        let (.., last) = runs.iter().find(of).with_context(|| {
            format!("register {register} was read as {value:#x}, which nobody wrote")
        })?;
        history.may_have(register, value, *last);
    }
    let checking = Instant::now();
    history.check()?;
    let (operations, unknown) = history.counts();
    // And a client that sees now what was there at first is found out.
    history.add(0, false, 0, (now(), now()), 0);
    ensure!(history.check().is_err(), "a stale read passed the check");
    Ok(format!(
        "{operations} operations on {REGISTERS} registers by {CLIENTS} clients fit one order each; {done}, {} clients lost with them, {unknown} writes of unknown outcome; checked in {:.1} s",
        shared.lost.load(Ordering::Acquire),
        checking.elapsed().as_secs_f32()
    ))
}

/// How many shards each node is primary of.
fn primaries(s: &Shared) -> Result<Vec<u64>> {
    let nodes = s.cluster.json(["nodes"])?;
    let of = |n: &serde_json::Value| n["primaries"].as_u64();
    nodes.as_array().context("nodes")?.iter().map(|n| of(n).context("primaries")).collect()
}

/// Moves primaries back and forth, then kills a node and starts it again: it gets its share, and what
/// cannot be moved is refused.
fn rehome(s: &Shared, threads: &[Worker], random: &mut Random) -> Result<String> {
    const MOVES: u64 = 24;
    let working = || threads.iter().all(|t| !t.is_finished());
    for _ in 0..MOVES {
        ensure!(working(), "a client has given up");
        let to = random.below(NODES.into());
        let first = random.below(1024);
        let last = first + random.below(1024 - first);
        let shards = format!("{first}-{last}");
        let done = s.operations.load(Ordering::Acquire);
        s.cluster.cli(["rehome", &to.to_string(), "--shards", &shards])?.ok()?;
        ensure!(primaries(s)?[to as usize] > last - first, "{shards} did not go to {to}");
        // Clients go on with the primaries as they are now.
        while s.operations.load(Ordering::Acquire) < done + 500 && working() {
            std::thread::yield_now();
        }
    }
    for to in 0..NODES {
        s.cluster.cli(["rehome", &to.to_string()])?.ok()?;
        ensure!(primaries(s)?[usize::from(to)] == 1024, "not all went to node {to}");
    }
    // The one that has them all dies; those left share, and it gets its share when it is back.
    let victim = NODES - 1;
    s.cluster.cli(["kill-node", &victim.to_string()])?.ok()?;
    let until = Instant::now() + Duration::from_secs(60);
    while primaries(s)?[usize::from(victim)] > 0 {
        ensure!(Instant::now() < until && working(), "no view without the dead node");
    }
    let refused = s.cluster.cli(["rehome", &victim.to_string(), "--shards", "7"])?;
    let why = "has no complete copy of 1 of these shards (the first is 7)";
    ensure!(refused.ok().is_err_and(|e| format!("{e:#}").contains(why)), "a dead node took shards");
    s.cluster.cli(["start-node", &victim.to_string()])?.ok()?;
    let until = Instant::now() + Duration::from_secs(60);
    let share = 1024 / u64::from(NODES);
    while primaries(s)?.iter().any(|n| *n < share) {
        ensure!(Instant::now() < until && working(), "uneven: {:?}", primaries(s)?);
    }
    Ok(format!(
        "primaries moved {MOVES} times as asked, 1 node killed, and then {:?}",
        primaries(s)?
    ))
}

/// Kills and starts nodes until there were enough kills and operations.
fn disturb(
    s: &Shared,
    threads: &[Worker],
    random: &mut Random,
    operations: u64,
    kills: u64,
) -> Result<String> {
    let until = Instant::now() + Duration::from_secs(60 + kills * 20 + operations / 1_000);
    let mut killed = 0;
    loop {
        ensure!(threads.iter().all(|t| !t.is_finished()), "a client has given up");
        ensure!(Instant::now() < until, "the time is up after {killed} kills");
        let done = s.operations.load(Ordering::Acquire);
        if done >= operations && killed >= kills {
            return Ok(format!("{killed} nodes killed"));
        }
        s.cluster.settled(Duration::from_secs(60))?;
        // Between two kills clients get a share of the operations done.
        let goal = done + (operations / (kills + 1)).min(operations.saturating_sub(done).max(1));
        while s.operations.load(Ordering::Acquire) < goal && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(random.below(10)));
        }
        if killed < kills {
            let victim = random.below(NODES.into()).to_string();
            s.cluster.cli(["kill-node", &victim])?.ok()?;
            killed += 1;
            let start = s.cluster.command(["start-node", &victim]);
            Program::start(start, b"")?.end()?.ok()?;
        }
    }
}
