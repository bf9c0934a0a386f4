//! Linearizability of real runs: clients on all nodes read and write registers (files of eight bytes)
//! as fast as they can while nodes are killed and started again. What every client saw, with the times of
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
    let mut random = Random::seeded("linear");
    let all = std::env::var_os("CLUSTIX_TEST_ALL").is_some();
    let (operations, kills) = if all { (1_000_000, 60) } else { (100_000, 6) };
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
    let killed = disturb(&shared, &threads, &mut random, operations, kills);
    shared.stop.store(true, Ordering::Release);
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
    }
    let killed = killed?;
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
    println!(
        "linear: {operations} operations on {REGISTERS} registers by {CLIENTS} clients fit one order each; {killed} nodes killed, {} clients lost with them, {unknown} writes of unknown outcome; checked in {:.1} s",
        shared.lost.load(Ordering::Acquire),
        checking.elapsed().as_secs_f32()
    );
    Ok(())
}

/// Kills and starts nodes until there were enough kills and operations.
fn disturb<T>(
    s: &Shared,
    threads: &[std::thread::JoinHandle<T>],
    random: &mut Random,
    operations: u64,
    kills: u64,
) -> Result<u64> {
    let until = Instant::now() + Duration::from_secs(60 + kills * 20 + operations / 1_000);
    let mut killed = 0;
    loop {
        ensure!(threads.iter().all(|t| !t.is_finished()), "a client has given up");
        ensure!(Instant::now() < until, "the time is up after {killed} kills");
        let done = s.operations.load(Ordering::Acquire);
        if done >= operations && killed >= kills {
            return Ok(killed);
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
