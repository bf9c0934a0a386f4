//! The network between the machines: one VDE switch, a Unix socket of the user's own. Node K is its port K.
//! Which nodes hear each other is decided by the VLAN that a port is in: a cut moves ports to another.

use super::state::{Machines, Role, State};
use crate::image::packages::output;
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long the switch may take to answer a command.
const ANSWER: Duration = Duration::from_secs(10);

/// What the switch writes when it is ready for a command.
const PROMPT: &str = "vde$ ";

/// The VLAN of nodes that are not cut off.
pub const WHOLE: u16 = 0;

/// The folder of sockets that QEMU's `-netdev vde` is given.
pub fn sockets(state: &State) -> PathBuf {
    state.switch().join("ctl")
}

/// Starts the switch; once this returns, machines can be plugged in.
///
/// # Errors
/// `vde_switch` is missing or fails.
pub fn start(state: &State) -> Result<()> {
    std::fs::create_dir_all(state.switch())?;
    let mut command = Command::new("vde_switch");
    command.arg("--daemon").arg("--sock").arg(sockets(state)).args(["--mode", "600"]);
    command.arg("--mgmt").arg(state.switch().join("mgmt")).args(["--mgmtmode", "600"]);
    command.arg("--pidfile").arg(state.pid_file(Role::Switch)).stdin(Stdio::null());
    // It listens for machines before its first process ends; for commands a little later.
    output(&mut command).map(drop)
}

/// Moves every node into the segment that the record says. Ports that are not there yet are made.
///
/// # Errors
/// The switch is gone or refuses.
pub fn arrange(state: &State, machines: &Machines) -> Result<()> {
    let mut console = Console::open(state)?;
    for segment in machines.cut.values() {
        console.ask(&format!("vlan/create {segment}"), &["exist"])?;
    }
    for k in 1..=machines.nodes {
        console.ask(&format!("port/create {k}"), &["exist"])?;
        let segment = machines.cut.get(&k).copied().unwrap_or(WHOLE);
        console.ask(&format!("port/setvlan {k} {segment}"), &[])?;
    }
    Ok(())
}

/// The switch's management socket: a prompt, one line to it, lines back that end with a number and a prompt.
struct Console(UnixStream);

impl Console {
    fn open(state: &State) -> Result<Console> {
        let path = state.switch().join("mgmt");
        let stream = UnixStream::connect(&path)
            .with_context(|| format!("cannot reach the switch at {}", path.display()))?;
        stream.set_read_timeout(Some(ANSWER))?;
        let mut console = Console(stream);
        console.answer()?;
        Ok(console)
    }

    fn answer(&mut self) -> Result<String> {
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        while !text.ends_with(PROMPT.as_bytes()) {
            let n = self.0.read(&mut buffer).context("the switch does not answer")?;
            if n == 0 || text.len() > 1 << 20 {
                bail!("the switch has ended: {}", String::from_utf8_lossy(&text));
            }
            text.extend_from_slice(&buffer[..n]);
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Sends a command; a refusal that contains one of `fine` is none.
    fn ask(&mut self, command: &str, fine: &[&str]) -> Result<()> {
        self.0.write_all(format!("{command}\n").as_bytes())?;
        let answer = self.answer()?;
        // "1000 Success", or a number above it and strerror's words.
        let done = answer.lines().any(|l| l.starts_with("1000"));
        if !done && !fine.iter().any(|f| answer.contains(f)) {
            let said =
                answer.lines().find(|l| l.starts_with('1')).unwrap_or("nothing that makes sense");
            bail!("the switch refuses {command:?}: {said}");
        }
        Ok(())
    }
}
