//! A cluster over real RDMA verbs, between machines that really die: soft-RoCE in emulated machines, SIGKILL of
//! QEMU, SIGSTOP, cuts of the network. The oracle is here on the host: what a client was told is known as it arrives.

use anyhow::{Context, Result, bail, ensure};
use clustix_tests::machines::{Lines, Machines, UP};
use clustix_tests::random::Random;
use clustix_tests::registers::{self, History};
use clustix_tests::{Output, Program, cluster};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longest that anything in a healthy cluster may take, or a change of view.
const PATIENCE: Duration = Duration::from_secs(90);
const NODES: u8 = 3;
/// Few, so that clients meet.
const REGISTERS: u32 = 12;
/// Commands that a client has said at once.
const BATCH: usize = 16;
/// What the scripts here call.
const APPLETS: [&str; 16] = [
    "cat",
    "find",
    "gunzip",
    "gzip",
    "head",
    "mkdir",
    "mv",
    "od",
    "rm",
    "sh",
    "sha256sum",
    "sort",
    "tr",
    "uniq",
    "wc",
    "xargs",
];

/// The arguments that run a shell script in the cluster, on machine `k`'s node.
fn script(k: u8, script: &str) -> Vec<String> {
    let words = ["run", "--node", &k.to_string(), "--", "clustix", "run", "--", "sh", "-c", script];
    words.map(str::to_owned).to_vec()
}

fn strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

fn sh(m: &Machines, k: u8, text: &str) -> Result<Output> {
    m.run(&strs(&script(k, text)))
}

/// Tries until it succeeds: a view may be changing.
fn sh_ok(m: &Machines, k: u8, text: &str) -> Result<String> {
    let until = Instant::now() + PATIENCE;
    loop {
        let out = sh(m, k, text)?;
        if out.status == 0 {
            return Ok(out.text());
        }
        ensure!(Instant::now() < until, "node {k}: {text}: {}{}", out.text(), out.errors());
    }
}

fn clustix(m: &Machines, k: u8, args: &[&str]) -> Result<Output> {
    let node = k.to_string();
    m.run(&[&["run", "--node", &node, "--", "clustix"], args].concat())
}

/// Waits until machine `k`'s node sees all nodes and says that any can be lost.
fn whole(m: &Machines, k: u8) -> Result<Duration> {
    let begin = Instant::now();
    loop {
        let out = clustix(m, k, &["status"])?;
        if out.status == 0 && out.text().contains("3 of 3") {
            return Ok(begin.elapsed());
        }
        if begin.elapsed() > PATIENCE {
            let logs: Vec<String> = (1..=NODES)
                .map(|k| clustix(m, k, &["logs"]).map_or_else(|e| format!("{e:#}"), |o| o.text()))
                .collect();
            bail!("not whole: {}{}\n{}", out.text(), out.errors(), logs.join("\n"));
        }
    }
}

/// A writer in machine `k` whose lines are acknowledgements; `None` once it has ended.
fn writer(m: &Machines, k: u8, dir: &str) -> Result<Lines> {
    let text = format!(
        "mkdir -p {dir}; n=0; while :; do echo contents of $n > {dir}/.new && mv {dir}/.new {dir}/$n && echo $n || exit 1; n=$((n+1)); done"
    );
    Lines::start(m.command(&strs(&script(k, &text))))
}

/// What a writer acknowledges within `time`, on top of what it did.
fn acknowledged(w: &Lines, last: &mut u64, time: Duration) -> Result<()> {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        let Ok(line) = w.next(left) else { return Ok(()) };
        if let Some(line) = line {
            *last = line.parse().with_context(|| format!("a writer said {line:?}"))?;
        }
    }
    Ok(())
}

/// Every acknowledged file, read on machine `k`'s node.
fn check_files(m: &Machines, k: u8, dir: &str, last: u64) -> Result<()> {
    let text = format!(
        "n=0; while [ $n -le {last} ]; do read -r l < {dir}/$n && [ \"$l\" = \"contents of $n\" ] || {{ echo $n: $l; exit 1; }}; n=$((n+1)); done"
    );
    sh_ok(m, k, &text).map(drop).with_context(|| format!("{dir}, {last} files acknowledged"))
}

fn serves(m: &Machines) -> Result<()> {
    let share = m.state().join("share");
    let tree = cluster::busybox_tree()?;
    let from = tree.path().join("bin");
    let out =
        std::process::Command::new("cp").arg("-a").arg(&from).arg(share.join("bin")).output()?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    // A link takes a tenth of a second in an emulated machine.
    for entry in fs::read_dir(share.join("bin"))? {
        let entry = entry?;
        if !["busybox"].iter().chain(&APPLETS).any(|a| entry.file_name() == *a) {
            fs::remove_file(entry.path())?;
        }
    }
    let program = registers::client(&share)?;
    ensure!(program.exists());
    clustix(m, 1, &["import", "/share/bin", "/bin"])?.ok()?;
    clustix(m, 2, &["import", "/share/register", "/register"])?.ok()?;
    Ok(())
}

/// The demo's kind of job on one node: a tree, sums, sorted lists, an archive; the same as on the host.
fn pipeline(m: &Machines) -> Result<()> {
    let share = m.state().join("share");
    let tree = share.join("tree");
    for i in 0..40u32 {
        let dir = tree.join(format!("d{}", i % 5));
        fs::create_dir_all(&dir)?;
        let text = format!("file {i} {}\n", "word ".repeat((i * 37 % 300) as usize));
        fs::write(dir.join(format!("f{i}.txt")), text)?;
    }
    clustix(m, 2, &["import", "/share/tree", "/work"])?.ok()?;
    let job = "find . -type f | sort | xargs sha256sum; find . -type f | sort | xargs cat | tr -cs a-z0-9 '\\n' | sort | uniq -c | sort -k1,1rn -k2 | head -n 20; find . -type f | sort | xargs cat | gzip -c | gunzip -c | wc -c";
    let here = std::process::Command::new(cluster::busybox()?)
        .args(["sh", "-c", job])
        .current_dir(&tree)
        .output()?;
    let there = sh_ok(m, 2, &format!("cd /work && {job}"))?;
    ensure!(String::from_utf8_lossy(&here.stdout) == there, "on the cluster:\n{there}");
    Ok(())
}

/// SIGKILL of a machine under write load on its own node and on another.
fn loses_a_machine(m: &Machines) -> Result<()> {
    let (one, two) = (writer(m, 1, "/one")?, writer(m, 2, "/two")?);
    let (mut of_one, mut of_two) = (0, 0);
    // A start takes seconds on a slow machine.
    let begun = Instant::now();
    while of_one == 0 || of_two == 0 {
        ensure!(begun.elapsed() < PATIENCE, "writers come to nothing: {of_one} {of_two}");
        acknowledged(&one, &mut of_one, Duration::from_secs(1))?;
        acknowledged(&two, &mut of_two, Duration::from_secs(1))?;
    }
    let killed = Instant::now();
    m.ok(&["kill", "1"])?;
    let mut one = one;
    let ended = one.child.wait()?;
    ensure!(ended.code() == Some(137), "a program lost with its machine: {ended}");
    acknowledged(&one, &mut of_one, Duration::from_secs(1))?;
    // The other goes on as soon as the view without the machine serves.
    acknowledged(&two, &mut of_two, Duration::from_millis(500))?;
    let before = of_two;
    while of_two == before {
        ensure!(killed.elapsed() < PATIENCE, "nothing is served after a death");
        acknowledged(&two, &mut of_two, Duration::from_millis(50))?;
    }
    println!(
        "{:6.1} s  from the kill to the next acknowledged write",
        killed.elapsed().as_secs_f32()
    );
    acknowledged(&two, &mut of_two, Duration::from_secs(2))?;
    drop(two);
    check_files(m, 3, "/one", of_one)?;
    check_files(m, 2, "/two", of_two)?;
    let logs = clustix(m, 3, &["logs"])?.text();
    for line in logs.lines().filter(|l| l.contains("serves; ms:")) {
        println!("         {line}");
    }
    println!("         {of_one} and {of_two} acknowledged files are there");
    m.ok(&["start", "1"])?;
    println!("{:6.1} s  until a machine can be lost again", whole(m, 3)?.as_secs_f32());
    check_files(m, 1, "/one", of_one)
}

/// A client that obeys, in machine `k`.
struct Client {
    child: std::process::Child,
    input: std::process::ChildStdin,
    output: BufReader<std::process::ChildStdout>,
}

impl Client {
    fn start(m: &Machines, k: u8) -> Result<Client> {
        let (node, count) = (k.to_string(), REGISTERS.to_string());
        let words =
            ["run", "--node", &node, "--", "clustix", "run", "--", "/register", "obey", &count];
        let mut command = m.command(&words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let input = child.stdin.take().context("a pipe")?;
        let output = BufReader::new(child.stdout.take().context("a pipe")?);
        Ok(Client { child, input, output })
    }

    /// Says commands: register, and what is written.
    fn say(&mut self, commands: &[(u32, Option<u64>)]) -> Result<()> {
        let text: String = commands
            .iter()
            .map(|(register, write)| match write {
                Some(value) => format!("w {register} {value}\n"),
                None => format!("r {register}\n"),
            })
            .collect();
        self.input.write_all(text.as_bytes())?;
        Ok(self.input.flush()?)
    }

    /// The next answer: value and errno; `None` when the client has ended.
    fn answer(&mut self) -> Option<(u64, i32)> {
        let mut line = String::new();
        self.output.read_line(&mut line).ok()?;
        let (value, errno) = line.strip_suffix('\n')?.split_once(' ')?;
        Some((value.parse().ok()?, errno.parse().ok()?))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write(c: &mut Client, register: u32, value: u64) -> Result<()> {
    c.say(&[(register, Some(value))])?;
    ensure!(c.answer() == Some((value, 0)), "a write of {value} to register {register} failed");
    Ok(())
}

/// A machine that stands still is evicted; what it has cached is never served as what is.
fn pauses_a_machine(m: &Machines) -> Result<()> {
    let (mut here, mut there) = (Client::start(m, 2)?, Client::start(m, 3)?);
    write(&mut here, 0, 11)?;
    here.say(&[(0, None), (0, None)])?;
    ensure!((here.answer(), here.answer()) == (Some((11, 0)), Some((11, 0))));
    m.ok(&["pause", "2"])?;
    // The write waits for the eviction, and no longer.
    let paused = Instant::now();
    write(&mut there, 0, 12)?;
    println!(
        "{:6.1} s  from the pause to a write of what it shared",
        paused.elapsed().as_secs_f32()
    );
    // It will find these when it wakes: they were asked for after the write was acknowledged.
    // Answers go out four together, the first before the write can end the client.
    here.say(&[(0, None), (0, None), (0, None), (0, None), (0, Some(13)), (0, None)])?;
    write(&mut there, 1, 14)?;
    m.ok(&["resume", "2"])?;
    while let Some((value, errno)) = here.answer() {
        ensure!(errno != 0 || value != 11, "the paused machine served a stale value");
    }
    there.say(&[(0, None), (1, None)])?;
    let (zero, one) = (there.answer(), there.answer());
    ensure!(
        one == Some((14, 0)) && zero == Some((12, 0)),
        "{zero:?} {one:?}: the evicted changed something"
    );
    println!("{:6.1} s  until it is back", whole(m, 3)?.as_secs_f32());
    ensure!(sh_ok(m, 2, "od -An -tu8 /registers/0")?.trim() == "12");
    Ok(())
}

/// A machine without the network refuses; the majority goes on; healed, it joins again.
fn cuts_a_machine(m: &Machines) -> Result<()> {
    m.ok(&["cut", "3"])?;
    let cut = Instant::now();
    sh_ok(m, 1, "echo majority > /cut && cat /cut")?;
    println!("{:6.1} s  from the cut to a write by the majority", cut.elapsed().as_secs_f32());
    let alone = clustix(m, 3, &["status"])?;
    ensure!(alone.status != 0 && alone.text().contains("not serving"), "{alone:?}");
    let refused = m.run(&[
        "run",
        "--node",
        "3",
        "--timeout",
        "20",
        "--",
        "clustix",
        "run",
        "--",
        "sh",
        "-c",
        "echo minority > /cut",
    ])?;
    ensure!(refused.status != 0, "the minority wrote: {refused:?}");
    m.ok(&["heal"])?;
    println!("{:6.1} s  until it is back", whole(m, 1)?.as_secs_f32());
    for k in 1..=NODES {
        ensure!(sh_ok(m, k, "cat /cut")? == "majority\n");
    }
    Ok(())
}

struct Shared {
    history: Mutex<History>,
    operations: AtomicU64,
    lost: AtomicU64,
    stop: AtomicBool,
    begun: Instant,
}

impl Shared {
    fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }
}

/// Drives clients, one after the other, on any machine.
fn drive(m: &Machines, s: &Shared, number: u64, mut random: Random) -> Result<()> {
    let mut next = 1;
    while !s.stop.load(Ordering::Acquire) {
        let k = 1 + random.below(NODES.into()) as u8;
        let Ok(mut client) = Client::start(m, k) else { continue };
        loop {
            let commands: Vec<(u32, Option<u64>)> = (0..BATCH)
                .map(|_| {
                    let register = random.below(REGISTERS.into()) as u32;
                    next += 1;
                    (register, (random.below(3) == 0).then_some(number << 40 | next))
                })
                .collect();
            let begin = s.now();
            let said = client.say(&commands).is_ok();
            let mut begin_of_next = begin;
            let mut answered = 0;
            if said {
                for (register, write) in &commands {
                    let Some((value, errno)) = client.answer() else { break };
                    let end = s.now();
                    let times = (begin_of_next, end);
                    s.history.lock().unwrap().add(*register, write.is_some(), value, times, errno);
                    s.operations.fetch_add(1, Ordering::AcqRel);
                    answered += 1;
                    // One after the other; but the answer may have taken its time to come here.
                    begin_of_next = begin;
                }
            }
            for (register, write) in &commands[answered..] {
                if let Some(value) = write {
                    s.history.lock().unwrap().may_have(*register, *value, begin);
                }
            }
            if answered < commands.len() {
                s.lost.fetch_add(1, Ordering::AcqRel);
                break;
            }
            if s.stop.load(Ordering::Acquire) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Machines killed and started again, one after the other, under clients whose histories are checked.
fn kill_rounds(m: &Machines, random: &mut Random, rounds: u32, operations: u64) -> Result<()> {
    // The registers have histories of their own from here on.
    sh_ok(m, 1, &format!("rm -rf /registers; {}", registers::make(REGISTERS)))?;
    let shared = Arc::new(Shared {
        history: Mutex::default(),
        operations: AtomicU64::new(0),
        lost: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        begun: Instant::now(),
    });
    let went = std::thread::scope(|scope| {
        let clients: Vec<_> = (1..=4)
            .map(|number| {
                let shared = shared.clone();
                let seed = Random::clone(random);
                let mut seed = seed;
                for _ in 0..number {
                    seed.number();
                }
                scope.spawn(move || drive(m, &shared, number, seed))
            })
            .collect();
        let went = (0..rounds).try_for_each(|round| {
            let goal = operations / u64::from(rounds) * u64::from(round + 1);
            let until = Instant::now() + 2 * PATIENCE;
            while shared.operations.load(Ordering::Acquire) < goal {
                ensure!(Instant::now() < until, "clients do not go on");
                std::thread::sleep(Duration::from_millis(20));
            }
            let victim = 1 + random.below(NODES.into()) as u8;
            m.ok(&["kill", &victim.to_string()])?;
            m.ok(&["start", &victim.to_string()])?;
            whole(m, victim).map(drop)
        });
        shared.stop.store(true, Ordering::Release);
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        went
    });
    went?;
    let mut history = shared.history.lock().unwrap();
    ensure!(history.strange().is_empty(), "values nobody wrote: {:?}", history.strange());
    history.check()?;
    let (done, unknown) = history.counts();
    history.add(0, false, 0, (shared.now(), shared.now()), 0);
    ensure!(history.check().is_err(), "a stale read passed the check");
    ensure!(done as u64 >= operations, "only {done} operations");
    println!(
        "{:6.1} s  {rounds} kills under {done} operations whose histories fit one order each; {} clients lost, {unknown} writes of unknown outcome",
        shared.begun.elapsed().as_secs_f32(),
        shared.lost.load(Ordering::Acquire)
    );
    Ok(())
}

#[test]
fn a_cluster_over_rdma() -> Result<()> {
    let mut random = Random::seeded("rxe");
    let all = std::env::var_os("CLUSTIX_TEST_ALL").is_some();
    let begin = Instant::now();
    let m = Machines::new(true)?;
    let up = Program::start(m.up("3"), b"")?.end_within(UP)?.ok()?;
    println!("{:6.1} s  vm up --nodes 3\n{}", up.took.as_secs_f32(), up.text());
    serves(&m)?;
    pipeline(&m)?;
    println!("{:6.1} s  after the pipeline", begin.elapsed().as_secs_f32());
    sh_ok(&m, 1, &registers::make(REGISTERS))?;
    loses_a_machine(&m)?;
    pauses_a_machine(&m)?;
    cuts_a_machine(&m)?;
    kill_rounds(&m, &mut random, if all { 10 } else { 3 }, if all { 20_000 } else { 5_000 })?;
    println!("{:6.1} s  in all", begin.elapsed().as_secs_f32());
    m.ok(&["down"])?;
    ensure!(m.processes()?.is_empty(), "{:?}", m.processes()?);
    Ok(())
}
