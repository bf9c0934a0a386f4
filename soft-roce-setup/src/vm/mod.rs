//! Machines of one's own, with RDMA between them: `vm up`, `run`, `ping`, `kill`, `pause`, `cut`, `down`.
//!
//! Each is a QEMU process; a VDE switch joins them; the state folder ([`state`]) says what belongs together. The
//! commands are functions of that folder: no process of ours stays behind to watch the machines.

pub mod cluster;
pub mod machine;
pub mod ping;
pub mod run;
pub mod state;
pub mod switch;

use crate::image::{self, Image};
use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use run::{Bounds, Ending};
use rustix::process::Signal;
use state::{Lock, Machines, Role, State};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Most machines at a time.
pub const MOST_NODES: u8 = 16;

/// Where things are.
#[derive(Clone, Debug)]
pub struct Places {
    /// The state folder; nothing of it is left after `down`.
    pub state: PathBuf,
    /// The image cache, which stays.
    pub cache: PathBuf,
    /// The `soft-roce-setup` program: the machines' agent.
    pub agent: PathBuf,
    /// The `clustix` program to put into the machines, if any.
    pub clustix: Option<PathBuf>,
}

/// `$CLUSTIX_VM_STATE`, else `usual`.
pub fn state_folder(usual: PathBuf) -> PathBuf {
    std::env::var_os("CLUSTIX_VM_STATE").map_or(usual, PathBuf::from)
}

/// `$CLUSTIX_VM_CACHE`, else `usual`.
pub fn cache_folder(usual: PathBuf) -> PathBuf {
    std::env::var_os("CLUSTIX_VM_CACHE").map_or(usual, PathBuf::from)
}

/// What can be done with machines. Nodes are counted from 1; node K is 10.77.0.K and `nodeK`, its RDMA device rxe0.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Start machines and a cluster of them; return once it serves
    ///
    /// Makes the image first if need be: Debian's 6.12 kernel, busybox, rdma-core, `clustix`. The folder
    /// `share` of the state folder is /share in all of them. Node K of the cluster is in machine K, and
    /// every `clustix` command works there.
    #[command(
        after_long_help = "Examples:\n  vm up --nodes 3\n  vm run --node 2 -- clustix status\n  vm run --node 2 -- ibv_devinfo\n  vm down"
    )]
    Up {
        /// How many, 1 to 16
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_NODES)))]
        nodes: u8,
        /// Memory of each, MiB
        #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(256..))]
        memory: u32,
        /// QEMU's accelerator: tcg works everywhere, kvm is faster where /dev/kvm boots a Debian kernel
        #[arg(long, default_value = "tcg", value_parser = ["tcg", "kvm"])]
        accel: String,
        /// The `clustix` to put into them, /bin/clustix there [default: the release build]
        #[arg(long, value_name = "FILE")]
        program: Option<PathBuf>,
        /// Only machines, no cluster in them
        #[arg(long)]
        bare: bool,
        /// Seconds they may take to come up
        #[arg(long, default_value_t = 180, value_name = "SECONDS")]
        timeout: u64,
    },
    /// End all machines and remove the state folder, also what a killed `up` left
    Down,
    /// Which machines live, and whether they are joined; exit status 0 if all are, else 3
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a program in a machine, with this command's standard input, output and error
    ///
    /// Ends as it ends: 128+N for signal N, 127 if there is no such program, 137 and "lost with node K" if the machine
    /// ended first, 124 if the time was up. If this command ends first, the program is killed.
    #[command(
        after_long_help = "Examples:\n  vm run -- rdma link\n  vm run --node 2 -- sh -c 'ping -c 1 node1 && cat /proc/net/arp'\n  tar c tests | vm run -- tar x -C /tmp"
    )]
    Run {
        /// Where
        #[arg(long, default_value_t = 1)]
        node: u8,
        /// Seconds after which it is killed
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
        /// The program and its arguments
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Check RDMA between all pairs of machines, or between two: READ and WRITE, then time SEND per round
    ///
    /// Connects through rdma_cm and lets rping verify what it READs and WRITEs, then times ibv_rc_pingpong.
    Ping {
        /// Only between these two
        #[arg(num_args = 2, value_names = ["FROM", "TO"])]
        nodes: Vec<u8>,
        /// Rounds to time
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// Seconds after which a pair counts as cut
        #[arg(long, default_value_t = 60, value_name = "SECONDS")]
        timeout: u64,
    },
    /// Kill a machine: SIGKILL of its QEMU. Its memory is lost
    Kill {
        /// Which
        node: u8,
    },
    /// Start a machine again that was killed, or ended; return once its node serves
    Start {
        /// Which
        node: u8,
        /// Seconds it may take
        #[arg(long, default_value_t = 180, value_name = "SECONDS")]
        timeout: u64,
    },
    /// Stop a machine in its tracks: SIGSTOP of its QEMU. To the others it is silent, but not dead
    Pause {
        /// Which
        node: u8,
    },
    /// Let a paused machine go on
    Resume {
        /// Which
        node: u8,
    },
    /// Cut machines off the network. Several that are cut together still reach each other
    Cut {
        /// Which
        #[arg(required = true)]
        nodes: Vec<u8>,
    },
    /// Join machines to the network again
    Heal {
        /// Which; all if none is named
        nodes: Vec<u8>,
    },
    /// Print the console of a machine, or of all
    Logs {
        /// Which
        node: Option<u8>,
    },
}

/// Carries out `command`.
///
/// # Errors
/// What was attempted, on which node, and why it did not work.
pub fn execute(command: Command, places: &Places) -> Result<ExitCode> {
    let state = State::new(&places.state)?;
    match command {
        Command::Up { nodes, memory, accel, program, bare, timeout } => {
            not_up(&state)?;
            let program = program.as_deref().or(places.clustix.as_deref());
            let image = image::make(&places.cache, &places.agent, program)?;
            let cluster = program.is_some() && !bare;
            let machines = Machines { nodes, memory, accel, cluster, up: false, cut: [].into() };
            up(&state, machines, &image, Duration::from_secs(timeout))?;
        }
        Command::Down => down(&state)?,
        Command::Status { json } => return status(&state, json),
        Command::Run { node, timeout, command } => {
            return in_machine(&state, node, timeout, &command);
        }
        Command::Ping { nodes, rounds, timeout } => {
            check(&state, &nodes, rounds, Duration::from_secs(timeout))?;
        }
        Command::Kill { node } => {
            let (_lock, _) = change(&state, node)?;
            ensure!(state.kill(|r| r == Role::Node(node))? > 0, "node {node} is not running");
        }
        Command::Start { node, timeout } => start(&state, node, Duration::from_secs(timeout))?,
        Command::Pause { node } => signal(&state, node, Signal::STOP)?,
        Command::Resume { node } => signal(&state, node, Signal::CONT)?,
        Command::Cut { nodes } => cut(&state, &nodes)?,
        Command::Heal { nodes } => heal(&state, &nodes)?,
        Command::Logs { node } => logs(&state, node)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes the lock for a change to node `k`.
fn change(state: &State, k: u8) -> Result<(Lock, Machines)> {
    // Without machines there is no folder, and none is to be made.
    state.running_node(k)?;
    let lock = state.lock()?;
    Ok((lock, state.running_node(k)?))
}

/// The machines' own links to what they boot: the cache may be renewed while they run.
fn own(state: &State) -> Image {
    Image { kernel: state.path().join("vmlinuz"), initrd: state.path().join("initrd") }
}

/// Refuses if there are machines that came up and at least one lives. How many processes there are.
fn not_up(state: &State) -> Result<usize> {
    let live = state.processes()?.len();
    if live > 0 && state.machines().is_ok_and(|m| m.is_some_and(|m| m.up)) {
        bail!("machines of {} are up; end them first: vm down", state.path().display());
    }
    Ok(live)
}

fn up(state: &State, mut machines: Machines, image: &Image, bound: Duration) -> Result<()> {
    let begun = Instant::now();
    let lock = state.lock()?;
    let live = not_up(state)?;
    if live > 0 {
        println!("clearing what an interrupted start left: {live} processes");
    }
    state.empty(&lock)?;
    state.record(&machines)?;
    let started = boot(state, &mut machines, image, begun, begun + bound);
    if started.is_err() {
        // The first reason counts; what cannot be cleared here, the next `up` or `down` clears.
        if let Err(e) = state.clear(&lock) {
            eprintln!("{e:#}");
        }
    }
    started
}

fn boot(
    state: &State,
    machines: &mut Machines,
    image: &Image,
    begun: Instant,
    deadline: Instant,
) -> Result<()> {
    let own = own(state);
    for (from, to) in [(&image.kernel, &own.kernel), (&image.initrd, &own.initrd)] {
        fs::hard_link(from, to)
            .or_else(|_| fs::copy(from, to).map(drop))
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    }
    fs::create_dir_all(state.share())?;
    switch::start(state)?;
    for k in 1..=machines.nodes {
        machine::start(state, machines, &own, k)?;
    }
    for k in 1..=machines.nodes {
        let gid = machine::ready(state, k, deadline)?;
        println!("node {k}: rxe up, GID {gid}, after {:.1} s", begun.elapsed().as_secs_f32());
    }
    if machines.cluster {
        cluster::describe(state, machines)?;
        cluster::start_all(state, machines.nodes, deadline)?;
        println!("the cluster serves, after {:.1} s", begun.elapsed().as_secs_f32());
    }
    machines.up = true;
    state.record(machines)
}

fn down(state: &State) -> Result<()> {
    if !state.path().exists() {
        println!("there are no machines in {}", state.path().display());
        return Ok(());
    }
    let lock = state.lock()?;
    let ended = state.clear(&lock)?;
    println!("ended {ended} processes");
    Ok(())
}

fn start(state: &State, k: u8, bound: Duration) -> Result<()> {
    let (_lock, machines) = change(state, k)?;
    ensure!(state.qemu(k)?.is_none(), "node {k} is running");
    let begun = Instant::now();
    machine::start(state, &machines, &own(state), k)?;
    switch::arrange(state, &machines)?;
    let ready = machine::ready(state, k, begun + bound);
    if ready.is_err() {
        state.kill(|r| r == Role::Node(k))?;
    }
    println!("node {k}: rxe up, GID {}, after {:.1} s", ready?, begun.elapsed().as_secs_f32());
    if machines.cluster {
        // Where it fails the machine is left as it is, for a look at it.
        cluster::start(state, k, begun + bound)?;
    }
    Ok(())
}

fn signal(state: &State, k: u8, signal: Signal) -> Result<()> {
    let (_lock, _) = change(state, k)?;
    let qemu = state.qemu(k)?.with_context(|| format!("node {k} is not running; vm start {k}"))?;
    qemu.signal(signal)
}

fn cut(state: &State, nodes: &[u8]) -> Result<()> {
    for k in nodes {
        state.running_node(*k)?;
    }
    let _lock = state.lock()?;
    let mut machines = state.running()?;
    // The first that no other cut node is in.
    let segment = (101..=100 + u16::from(MOST_NODES))
        .find(|s| !machines.cut.iter().any(|(k, used)| used == s && !nodes.contains(k)))
        .context("no segment is left")?;
    machines.cut.extend(nodes.iter().map(|k| (*k, segment)));
    switch::arrange(state, &machines)?;
    state.record(&machines)
}

fn heal(state: &State, nodes: &[u8]) -> Result<()> {
    for k in nodes {
        state.running_node(*k)?;
    }
    state.running()?;
    let _lock = state.lock()?;
    let mut machines = state.running()?;
    machines.cut.retain(|k, _| !nodes.is_empty() && !nodes.contains(k));
    switch::arrange(state, &machines)?;
    state.record(&machines)
}

/// A node as `vm status` shows it.
#[derive(serde::Serialize)]
struct Shown {
    node: u8,
    address: String,
    state: &'static str,
    network: &'static str,
    pid: Option<u32>,
}

fn status(state: &State, json: bool) -> Result<ExitCode> {
    let machines = state.running()?;
    let processes = state.processes()?;
    let mut shown = Vec::new();
    for k in 1..=machines.nodes {
        let qemu = processes.iter().find(|p| p.role == Role::Node(k));
        shown.push(Shown {
            node: k,
            address: format!("10.77.0.{k}"),
            state: match qemu {
                Some(p) if p.stopped() => "paused",
                Some(_) => "up",
                None => "ended",
            },
            network: if machines.cut.contains_key(&k) { "cut" } else { "joined" },
            pid: qemu.map(|p| p.pid),
        });
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&shown)?);
    } else {
        println!("{:4}  {:11}  {:6}  {:7}  QEMU", "node", "address", "state", "network");
        for s in &shown {
            let pid = s.pid.map_or("-".to_owned(), |p| p.to_string());
            println!("{:4}  {:11}  {:6}  {:7}  {pid}", s.node, s.address, s.state, s.network);
        }
        println!("shared folder: {}", state.share().display());
    }
    let switch = processes.iter().any(|p| p.role == Role::Switch);
    if !switch {
        eprintln!("the switch has ended: no machine reaches another; vm down, vm up");
    }
    let well = switch && shown.iter().all(|s| s.state == "up" && s.network == "joined");
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

/// Says what is wrong with a node that is to run something, before it does.
fn answers(state: &State, k: u8) -> Result<()> {
    state.running_node(k)?;
    match state.qemu(k)? {
        None => bail!("node {k} has ended; vm start {k}"),
        Some(p) if p.stopped() => bail!("node {k} is paused; vm resume {k}"),
        Some(_) => Ok(()),
    }
}

fn in_machine(state: &State, k: u8, timeout: Option<u64>, words: &[String]) -> Result<ExitCode> {
    answers(state, k)?;
    let bounds = Bounds { end: timeout.map(Duration::from_secs), ..Bounds::default() };
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    let input = Box::new(std::io::stdin());
    let ending = run::run(state, k, words, bounds, Some(input), &mut out, &mut err)?;
    let status = match ending {
        Ending::Exited(status) => u8::try_from(status).unwrap_or(255),
        Ending::Refused(errno, why) => {
            eprintln!("{why}");
            if errno == rustix::io::Errno::NOENT.raw_os_error() { 127 } else { 126 }
        }
        Ending::Lost => {
            eprintln!("lost with node {k}");
            137
        }
        Ending::OutOfTime => {
            eprintln!("node {k}: the time was up");
            124
        }
    };
    Ok(ExitCode::from(status))
}

fn check(state: &State, only: &[u8], rounds: u32, bound: Duration) -> Result<()> {
    let machines = state.running()?;
    let pairs: Vec<(u8, u8)> = match only {
        [from, to] => {
            ensure!(from != to, "a pair is two nodes");
            vec![(*from, *to)]
        }
        _ => (1..=machines.nodes)
            .flat_map(|a| (a + 1..=machines.nodes).map(move |b| (a, b)))
            .collect(),
    };
    ensure!(!pairs.is_empty(), "there is only one node: no pair");
    let mut failed = 0;
    for (from, to) in &pairs {
        let done = answers(state, *from)
            .and_then(|()| answers(state, *to))
            .and_then(|()| ping::pair(state, *from, *to, rounds, bound));
        match done {
            Ok(p) => println!(
                "node {from} - node {to}: rping verified, {:.0} µs per round (SEND of 64 B there and back, {} rounds)",
                p.round, p.rounds
            ),
            Err(e) => {
                failed += 1;
                println!("node {from} - node {to}: {e:#}");
            }
        }
    }
    ensure!(failed == 0, "{failed} of {} pairs failed", pairs.len());
    Ok(())
}

fn logs(state: &State, node: Option<u8>) -> Result<()> {
    let machines = match node {
        Some(k) => state.running_node(k)?,
        None => state.running()?,
    };
    for k in (1..=machines.nodes).filter(|k| node.is_none_or(|n| n == *k)) {
        if node.is_none() {
            println!("== node {k}");
        }
        print(&machine::console(state, k))?;
    }
    Ok(())
}

fn print(path: &Path) -> Result<()> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    std::io::Write::write_all(&mut std::io::stdout(), &bytes).context("cannot write")
}
