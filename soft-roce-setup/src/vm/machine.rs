//! One machine: a QEMU process.

use super::run::{Bounds, Ending, capture};
use super::state::{Machines, Role, State};
use super::switch;
use crate::guest::{SESSIONS, port};
use crate::image::Image;
use crate::image::packages::output;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Lines of a console that an error shows.
const TAIL: usize = 15;

/// A path as QEMU's options take it: a comma is written twice.
fn quoted(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// Starts node `k`'s QEMU; once this returns its sockets are there, and it boots.
///
/// The machine is a `pc`: `microvm` boots a second sooner, but under emulation it has no clock to measure the
/// time-stamp counter by, and its time goes in steps of 4 ms.
///
/// # Errors
/// QEMU is missing, or does not start; says what it said.
pub fn start(state: &State, machines: &Machines, image: &Image, k: u8) -> Result<()> {
    let node = state.node(k);
    std::fs::create_dir_all(&node)?;
    let mut q = Command::new("qemu-system-x86_64");
    q.args(["-name", &format!("node{k}"), "-M", "pc", "-accel", &machines.accel, "-cpu", "max"]);
    q.args(["-smp", "1", "-m", &machines.memory.to_string()]);
    q.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-daemonize"]);
    q.arg("-pidfile").arg(state.pid_file(Role::Node(k))).arg("-D").arg(node.join("qemu.log"));
    q.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initrd);
    let nodes = machines.nodes;
    q.args(["-append", &format!("console=ttyS0 quiet panic=-1 NODE={k} NODES={nodes}")]);
    q.args(["-serial", &format!("file:{}", quoted(&console(state, k)))]);
    let sockets = quoted(&switch::sockets(state));
    q.args(["-netdev", &format!("vde,id=net,sock={sockets},port={k}")]);
    let mac = format!("52:54:00:77:00:{k:02x}");
    q.args(["-device", &format!("virtio-net-pci,netdev=net,romfile=,mac={mac}")]);
    let share = quoted(&state.share());
    q.args(["-fsdev", &format!("local,id=share,path={share},security_model=none")]);
    q.args(["-device", "virtio-9p-pci,fsdev=share,mount_tag=share"]);
    q.args(["-device", &format!("virtio-serial-pci,max_ports={}", SESSIONS + 1)]);
    for n in 0..SESSIONS {
        let name = port(n);
        let socket = quoted(&node.join(&name));
        q.args(["-chardev", &format!("socket,id=s{n},path={socket},server=on,wait=off")]);
        q.args(["-device", &format!("virtserialport,chardev=s{n},name={name}")]);
    }
    output(q.stdin(Stdio::null())).map(drop).with_context(|| format!("node {k} does not start"))
}

/// The file that node `k`'s console is written to.
pub fn console(state: &State, k: u8) -> std::path::PathBuf {
    state.node(k).join("console.log")
}

/// The end of node `k`'s console.
fn tail(state: &State, k: u8) -> String {
    let log = std::fs::read(console(state, k)).unwrap_or_default();
    let text = String::from_utf8_lossy(&log).replace('\r', "");
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(TAIL)..].join("\n  ");
    let qemu = std::fs::read_to_string(state.node(k).join("qemu.log")).unwrap_or_default();
    format!("its console ends with:\n  {last}\n{}", qemu.trim())
}

/// Waits until node `k`'s agent answers that rxe is up; its GID (index and value). The agent starts once all else
/// is ready, and a machine that cannot get ready turns itself off, so both are noticed at once.
///
/// # Errors
/// The machine ends, or is not up at `deadline`: with the end of its console.
pub fn ready(state: &State, k: u8, deadline: Instant) -> Result<String> {
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let bounds = Bounds { start: left, end: Some(left) };
    let answer = capture(state, k, &["rxe-gid"], bounds)?;
    match answer.ending {
        Ending::Exited(0) => Ok(answer.out.trim().to_owned()),
        Ending::Exited(_) | Ending::Refused(..) => {
            bail!("node {k} has no rxe device with its address; {}", tail(state, k))
        }
        Ending::Lost => bail!("node {k} ended while it started; {}", tail(state, k)),
        Ending::OutOfTime => bail!("node {k} is not up in time (--timeout); {}", tail(state, k)),
    }
}
