//! `clustix node`: the kernel process of one node, and `clustix pd`, a protection domain of it.
//!
//! The launcher prepares what the kernel may not: it leaves the session of whoever ran `clustix up`,
//! says in the `pid` file who it is, binds the node's three sockets, and hands the system
//! description with its gaps filled to [`clustix_kernel_host::Host`]. From then on the process is
//! the microkernel and nothing else.

use crate::args::{NodeProcess, PdProcess};
use crate::launch::{self, READY};
use crate::procfs;
use crate::state::{Cluster, Folder, MAX_NODES, Phase, WITNESS, clock_incarnation};
use anyhow::{Context, Result, bail};
use clustix_ccache::layout::RegionId;
use clustix_ccache::lease::Timing;
use clustix_ccache::request::Rights;
use clustix_ccache::service::{self, NetworkConfig, rights};
use clustix_ccache::set::Class;
use clustix_kernel_host::{Config, End, Host, SystemDescription};
use clustix_member::address::{Place, is_path};
use clustix_member::node::Start;
use clustix_pd::Boot;
use clustix_pd::wire::Exit;
use rustix::fd::{AsFd, OwnedFd};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

/// The system description of every node.
const SYSTEM: &str = include_str!("../system.toml");

/// What init starts, in this order.
const ORDER: [&str; 6] = ["process", "vfs", "memory", "console", "posix", "control"];

/// What the badge of a role's channel to ccache allows.
fn rights(role: &str) -> Option<Rights> {
    Some(match role {
        "member" => rights::MEMBER,
        // Makes the first file system and PID 1.
        "init" => rights::INIT.and(Rights::full(Class::Vfs)).and(Rights::full(Class::Process)),
        "process" => rights::PROCESS,
        "vfs" => rights::VFS,
        "memory" => rights::MEMORY,
        "console" => rights::CONSOLE,
        "posix" => rights::POSIX,
        "control" => rights::CONTROL,
        _ => return None,
    })
}

/// The system description with sizes and badges.
///
/// # Errors
/// The description is malformed, or names what has no size or rights.
pub fn system() -> Result<SystemDescription> {
    let mut system: SystemDescription = toml::from_str(SYSTEM).context("system.toml")?;
    for region in &mut system.regions {
        region.size = match region.name.as_str() {
            "slab" => clustix_ccache::slab::BYTES as u64,
            "raft" => clustix_member::RAFT_BYTES as u64,
            name => RegionId::all()
                .find(|id| id.name() == name)
                .map(RegionId::len)
                .with_context(|| format!("system.toml: region {name:?} has no size"))?,
        };
    }
    for channel in system.channels.iter_mut().filter(|c| c.server == "ccache") {
        channel.badge = rights(&channel.client)
            .with_context(|| format!("system.toml: {:?} has no rights at ccache", channel.client))?
            .0;
    }
    system.check().context("system.toml")?;
    Ok(system)
}

/// Runs a node until it is asked to end or cannot go on.
///
/// # Errors
/// It cannot start; the reason goes to its log too.
pub fn node(name: &str, args: &NodeProcess) -> Result<ExitCode> {
    // Out of the terminal's session: its signals are not for the node. Fails only for a process
    // that leads a group already, which then has been detached.
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let mut pid_file = take_stdin()?;
    let me = procfs::stat(std::process::id()).context("/proc does not show this process")?;
    writeln!(pid_file, "{} {}", me.pid, me.start).context("the pid file")?;

    let folder = Folder::at(args.state.clone(), name)?;
    let cluster = folder.cluster()?.context("there is no cluster.json")?;
    if args.slot == WITNESS {
        return witness(&folder, &cluster, args);
    }
    log_to_stderr("warn");
    let home = folder.node(args.slot);
    let places = places(&folder, &cluster)?;
    let own = places
        .iter()
        .find(|p| p.slot == args.slot)
        .with_context(|| format!("there is no node {}", args.slot))?;
    let control = home.join("control.sock").display().to_string();
    // On an RDMA network, where ccache listens by itself, nobody connects to this one.
    let unused = home.join("fabric.sock").display().to_string();
    let fabric = if is_path(&own.fabric) { &own.fabric } else { &unused };
    let mut descriptors = HashMap::new();
    for (role, name, address) in [
        ("control", "control", &control),
        ("ccache", "fabric", fabric),
        ("member", "member", &own.member),
    ] {
        descriptors.insert(role.to_owned(), vec![(name.to_owned(), bind(address)?)]);
    }
    let mut system = system()?;
    if let Some((hosts, _)) = &cluster.hosts {
        // Where leases are longer, machines are slower.
        for pd in &mut system.pds {
            let scaled = hosts.timing().scaled(u64::from(pd.deadline_ms) * 1_000_000) / 1_000_000;
            pd.deadline_ms = u32::try_from(scaled).unwrap_or(u32::MAX);
        }
    }
    let config = Config {
        node: args.slot,
        incarnation: args.incarnation,
        cluster: cluster.name.clone(),
        system,
        args: arguments(&folder, &cluster, args)?,
        descriptors,
        stub_image: clustix_posix::STUB_IMAGE.to_vec(),
        log: Some(domains_log()?),
        program: "/proc/self/exe".into(),
        arguments: vec!["pd".into()],
        trace_sandbox: true,
    };
    ready()?;
    let end = Host::run(config)?;
    eprintln!("node {} (incarnation {}): {end:?}", args.slot, args.incarnation);
    let evicted = Exit::Code(service::EVICTED);
    let evicted = matches!(&end, End::Lost { exit, .. } if *exit == evicted);
    if evicted && cluster.hosts.is_some() {
        return Err(come_back(name, args, pid_file));
    }
    // Held until here: the node's processes are gone.
    drop(pid_file);
    if evicted {
        return Ok(ExitCode::from(launch::EVICTED));
    }
    Ok(ExitCode::from(u8::try_from(end.exit_code()).unwrap_or(70)))
}

/// Runs the witness: membership alone, without a microkernel and what stands on it.
fn witness(folder: &Folder, cluster: &Cluster, args: &NodeProcess) -> Result<ExitCode> {
    log_to_stderr("info,openraft=error");
    let config = membership(folder, cluster, args, Start::Join)?;
    let listener = bind(config.address(WITNESS))?;
    ready()?;
    let ended = clustix_member::witness(config, listener);
    bail!("the witness (incarnation {}) ended: {ended}", args.incarnation)
}

/// Says that the sockets are there, and lets go of standard output.
fn ready() -> Result<()> {
    let mut ready = std::io::stdout().lock();
    ready
        .write_all(READY)
        .and_then(|()| ready.flush())
        .context("whoever started this went away")?;
    drop(ready);
    let null = File::options().write(true).open("/dev/null").context("/dev/null")?;
    rustix::stdio::dup2_stdout(&null).context("standard output")
}

/// A node of several hosts that was evicted though it lives (it was cut off, or stood still) joins
/// again, empty, as its next incarnation: the same process becomes it, so that whoever holds it by its
/// number holds it still. Answers only why that cannot be.
fn come_back(name: &str, args: &NodeProcess, pid_file: File) -> anyhow::Error {
    let incarnation = clock_incarnation().max(args.incarnation + 1);
    eprintln!("node {}: joins again as incarnation {incarnation}", args.slot);
    let failed = std::process::Command::new("/proc/self/exe")
        .args(["node", "--name", name, "--state"])
        .arg(&args.state)
        .args(["--slot", &args.slot.to_string(), "--incarnation", &incarnation.to_string()])
        .stdin(pid_file)
        .exec();
    anyhow::Error::from(failed).context("could not start again")
}

/// Descriptor 0 is the locked pid file: it moves away, so that no child inherits the lock.
fn take_stdin() -> Result<File> {
    let held =
        rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 10).context("the pid file")?;
    let null = File::open("/dev/null").context("/dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("standard input")?;
    Ok(File::from(held))
}

/// A listening socket. Of a Unix socket's path it is known that no other node has it.
fn bind(address: &str) -> Result<OwnedFd> {
    let bound = if is_path(address) {
        match std::fs::remove_file(address) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
            _ => UnixListener::bind(address).map(OwnedFd::from),
        }
    } else {
        TcpListener::bind(address).map(OwnedFd::from)
    };
    bound.with_context(|| format!("could not listen at {address}"))
}

/// Where the nodes that there may be, and the witness, listen.
fn places(folder: &Folder, cluster: &Cluster) -> Result<Vec<Place>> {
    if let Some((hosts, _)) = &cluster.hosts {
        return Ok(hosts.places());
    }
    let state = folder.path().to_str().context("the state folder's path is not UTF-8")?;
    Ok((0..MAX_NODES).chain([WITNESS]).map(|slot| Place::local(state, slot)).collect())
}

/// What membership is told.
fn membership(
    folder: &Folder,
    cluster: &Cluster,
    args: &NodeProcess,
    start: Start,
) -> Result<clustix_member::Config> {
    let (timing, token) = match &cluster.hosts {
        Some((hosts, _)) => (hosts.timing(), hosts.token()),
        None => (Timing::default(), 0),
    };
    Ok(clustix_member::Config {
        slot: args.slot,
        incarnation: args.incarnation,
        places: places(folder, cluster)?,
        token,
        start,
        timing,
    })
}

/// What the domains are told, by role.
fn arguments(
    folder: &Folder,
    cluster: &Cluster,
    args: &NodeProcess,
) -> Result<HashMap<String, Vec<u8>>> {
    let first = match cluster.phase {
        Phase::Starting => true,
        Phase::Running => false,
        Phase::Stopping | Phase::Ending | Phase::Stopped => bail!("the cluster is stopped"),
    };
    let (start, network) = match &cluster.hosts {
        Some((hosts, _)) => (Start::Found(cluster.slots()), hosts.network(args.slot)),
        None if first => {
            let all = (0..).zip(cluster.incarnations.iter().copied()).collect();
            (Start::First(all), NetworkConfig::Shm)
        }
        None => (Start::Join, NetworkConfig::Shm),
    };
    let member = membership(folder, cluster, args, start)?;
    let ccache = service::Config {
        timing: member.timing,
        budget_bytes: cluster.memory,
        // Of hosts it is not known how often they were started.
        first_incarnation: first && cluster.hosts.is_none(),
        network,
        ..service::Config::default()
    };
    let init: Vec<String> = ORDER.iter().map(|r| (*r).to_owned()).collect();
    Ok(HashMap::from([
        ("ccache".to_owned(), postcard::to_stdvec(&ccache)?),
        ("member".to_owned(), postcard::to_stdvec(&member)?),
        ("init".to_owned(), postcard::to_stdvec(&init)?),
    ]))
}

/// Bytes of log that wait while the disk does not take them.
const LOG_WAITS: usize = 1 << 20;

/// Where domains write their log: a pipe, from which a process of its own writes the file. A disk can hold a
/// writer up for seconds (a journal that waits for another's transaction), and a ccache that long is evicted.
fn domains_log() -> Result<OwnedFd> {
    let what = "the domains' log";
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context(what)?;
    // Where so much is not allowed, less waits.
    let _ = rustix::pipe::fcntl_setpipe_size(&write, LOG_WAITS);
    // It ends when all who write have ended; the kernel waits for it as for every other child.
    std::process::Command::new("/proc/self/exe")
        .arg("log")
        .stdin(read)
        .stdout(std::io::stderr().as_fd().try_clone_to_owned().context(what)?)
        .process_group(0)
        .spawn()
        .context(what)?;
    Ok(write)
}

/// Writes the log that comes on standard input to standard output, as long as somebody writes it.
///
/// # Errors
/// The file did not take all of it.
pub fn log() -> Result<ExitCode> {
    let (mut input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
    let mut bytes = vec![0; 64 * 1024];
    let mut failed = None;
    loop {
        match input.read(&mut bytes) {
            Ok(0) => break,
            Ok(n) => {
                // What the disk does not take is dropped; what comes later it may take.
                let written = output.write_all(&bytes[..n]).and_then(|()| output.flush());
                failed = written.err().or(failed);
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e).context("the domains' log"),
        }
    }
    match failed {
        None => Ok(ExitCode::SUCCESS),
        Some(e) => Err(e).context("the domains' log could not be written"),
    }
}

fn log_to_stderr(filter: &str) {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        // Raft tells of every vote and heartbeat otherwise.
        .with_env_filter(filter)
        .init();
}

/// Runs a protection domain until it ends.
///
/// # Errors
/// It was not started by a kernel; there is no such role; it cannot go on.
pub fn pd(args: &PdProcess) -> Result<ExitCode> {
    let role = args.role.as_str();
    log_to_stderr("info,openraft=error");
    let boot = Boot::from_kernel().with_context(|| {
        format!("`clustix pd {role}` is started by a node's kernel, not by hand")
    })?;
    if boot.role != role {
        bail!("the kernel started {:?}, the command line says {role:?}", boot.role);
    }
    match role {
        "ccache" => service::main(boot),
        "member" => clustix_member::service::main(boot),
        "init" => clustix_init::main(boot)?,
        "process" => clustix_process::main(boot)?,
        "vfs" => clustix_vfs::main(boot)?,
        "memory" => clustix_memory::main(boot)?,
        "console" => clustix_console::main(boot)?,
        "posix" => clustix_posix::service::main(boot)?,
        "control" => crate::control::main(boot)?,
        other => bail!("there is no protection domain {other:?}"),
    }
    Ok(ExitCode::FAILURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_description_is_complete() {
        let system = system().unwrap();
        for role in ORDER {
            let pd = system.pds.iter().find(|p| p.role == role).expect(role);
            assert_eq!(pd.supervisor.as_deref(), Some("init"), "{role}");
        }
        for region in &system.regions {
            assert!(region.size > 0, "{}", region.name);
        }
        assert_eq!(system.regions.len(), RegionId::all().count() + 2);
    }

    #[test]
    fn a_domain_maps_the_classes_it_has_rights_to_and_no_others() {
        let system = system().unwrap();
        for channel in system.channels.iter().filter(|c| c.server == "ccache") {
            let pd = system.pds.iter().find(|p| p.role == channel.client).unwrap();
            for class in Class::ALL {
                let region = format!("arena-{}", class.name());
                let maps = pd.regions.iter().any(|r| r.name == region);
                let may = Rights(channel.badge).allows(Rights::read(class));
                assert_eq!(maps, may, "{} {region}", pd.role);
            }
        }
    }

    #[test]
    fn only_ccache_writes_the_arena() {
        use clustix_kernel_host::Access;
        for pd in system().unwrap().pds.iter().filter(|p| p.role != "ccache") {
            for grant in pd.regions.iter().filter(|r| r.name.starts_with("arena-")) {
                assert_eq!(grant.access, Access::Read, "{} {}", pd.role, grant.name);
            }
        }
    }
}
