//! `clustix run` and `clustix attach`: a program that runs in the cluster, as a local command.

use super::attended::{self, Ended, Lost, size};
use crate::args;
use crate::connection::{self, Connection, PATIENCE};
use crate::procfs::Process;
use crate::state::Folder;
use crate::wire::{self, Attach, Program, Reply, Request, Run, Started, Stdio, Whom};
use anyhow::{Context, Result, anyhow, bail};
use clustix_proto::job::{Command, NUMBERS};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Longest that a start is asked for again when nodes go away meanwhile.
const STARTING: Duration = Duration::from_secs(30);
/// Longest that a node is asked what runs.
const LISTING: Duration = Duration::from_secs(1);
/// Between two tries.
const MOMENT: Duration = Duration::from_millis(50);

/// Runs a program and ends as it ended.
///
/// # Errors
/// It could not be started, or the cluster lost sight of it.
pub fn run(folder: &Folder, args: args::Run) -> Result<ExitCode> {
    if args.tty && !args.detach && !isatty(std::io::stdin()) {
        bail!("-t gives the program this terminal, but standard input is not one; leave -t out");
    }
    let (connection, started) = match start(folder, args.node, program(&args)?) {
        Ok(started) => started,
        Err(e) => {
            let exit = e.downcast_ref::<wire::Failure>().map_or(1, |f| f.exit);
            eprintln!("clustix: {e:#}");
            return Ok(ExitCode::from(exit));
        }
    };
    if args.detach {
        println!("{}", started.pid);
        return Ok(ExitCode::SUCCESS);
    }
    attend(folder, connection, &started, false)
}

/// Attends to a program that runs.
///
/// # Errors
/// There is none, it cannot be attended to, or the cluster lost sight of it.
pub fn attach(folder: &Folder, args: &args::Attach) -> Result<ExitCode> {
    let whom = Whom::Process(args.pid);
    let request = Request::Attach(Attach { whom, tty: isatty(std::io::stdin()), known: None });
    let nodes = connection::candidates(folder, None)?;
    let (connection, started) = ask(folder, &nodes, || request.clone())?;
    if started.terminal {
        eprintln!("clustix: attached to program {}; Ctrl-] detaches", started.pid);
    }
    attend(folder, connection, &started, started.terminal)
}

fn attend(
    folder: &Folder,
    connection: Connection,
    started: &Started,
    keys: bool,
) -> Result<ExitCode> {
    let node = connection.node;
    let process = folder.process(node)?;
    let terminal = if started.terminal { Some(Raw::enter()?) } else { None };
    let ended = attended::attend(folder, connection, started, keys);
    drop(terminal);
    match ended {
        Ok(Ended::Exited(status, verdict)) => {
            if let Some(verdict) = verdict {
                eprintln!("clustix: {verdict}");
            }
            Ok(ExitCode::from(exit_code(status)))
        }
        Ok(Ended::Signalled(signal)) => Ok(ExitCode::from(128 + signal as u8)),
        Ok(Ended::Detached) => {
            eprintln!("clustix: detached; the program goes on");
            Ok(ExitCode::SUCCESS)
        }
        // With the last node the program is lost, and nobody is left to say so.
        Err(e)
            if e.downcast_ref::<Lost>().is_some()
                && folder.live()?.is_empty()
                && process.is_none_or(|p: Process| p.ended()) =>
        {
            eprintln!("clustix: lost with node {node}");
            Ok(ExitCode::from(137))
        }
        Err(e) => Err(e),
    }
}

/// The shell's idea of a wait status.
fn exit_code(status: i32) -> u8 {
    match status & 0x7f {
        0 => (status >> 8) as u8,
        signal => 128 + signal as u8,
    }
}

fn program(args: &args::Run) -> Result<Run> {
    let mut env: Vec<(Vec<u8>, Vec<u8>)> = vec![
        (b"PATH".to_vec(), b"/bin:/usr/bin:/sbin:/usr/sbin".to_vec()),
        (b"HOME".to_vec(), b"/".to_vec()),
    ];
    let mut set = |name: &[u8], value: Vec<u8>| {
        env.retain(|(n, _)| n != name);
        env.push((name.to_vec(), value));
    };
    if args.tty
        && let Some(term) = std::env::var_os("TERM")
    {
        set(b"TERM", term.into_vec());
    }
    for assignment in &args.env {
        match assignment.split_once('=') {
            Some(("", _)) => bail!("--env {assignment:?}: a variable needs a name"),
            Some((name, value)) => set(name.as_bytes(), value.as_bytes().to_vec()),
            None => match std::env::var_os(assignment) {
                Some(value) => set(assignment.as_bytes(), value.into_vec()),
                None => bail!(
                    "--env {assignment}: this shell has no such variable; write --env {assignment}=VALUE"
                ),
            },
        }
    }
    if !args.cwd.starts_with('/') {
        bail!("--cwd {:?}: write an absolute path of the cluster", args.cwd);
    }
    Ok(Run {
        job: fastrand::u64(..NUMBERS),
        turn: 0,
        command: Command {
            argv: args.command.iter().cloned().map(OsStringExt::into_vec).collect(),
            env: env.into_iter().map(|(n, v)| [n, v].join(&b'=')).collect(),
            cwd: args.cwd.clone().into_bytes(),
            uid: args.user.0,
            gid: args.user.1,
        },
        stdio: match (args.detach, args.tty) {
            (_, true) => Stdio::Terminal(size()),
            (true, _) => Stdio::Null,
            _ => Stdio::Pipes,
        },
        kept: args.detach,
        restarts: args.restart.unwrap_or(0),
    })
}

/// Starts it on the node asked for, or on one of those that do the least. Who went away meanwhile may have started
/// it or not: asked again, whoever it is finds the same job.
fn start(folder: &Folder, node: Option<u8>, mut run: Run) -> Result<(Connection, Started)> {
    let until = Instant::now() + STARTING;
    loop {
        let nodes = least_first(folder, connection::candidates(folder, node)?);
        let asked = ask(folder, &nodes, || {
            // A node that was asked before, and answers late, must not take the job from this one.
            run.turn += 1;
            Request::Run(run.clone())
        });
        match asked {
            // Its control may come back in a moment; that of a node that is down does not.
            Err(e)
                if connection::is_elsewhere(&e)
                    && e.downcast_ref::<wire::Failure>().is_none()
                    && Instant::now() < until =>
            {
                std::thread::sleep(MOMENT);
            }
            answer => return answer,
        }
    }
}

/// Asks these nodes in turn until one attends to the job.
fn ask(
    folder: &Folder,
    nodes: &[u8],
    mut request: impl FnMut() -> Request,
) -> Result<(Connection, Started)> {
    let mut last = anyhow!("no node answered");
    for slot in nodes {
        let asked = Connection::open(folder, *slot, request())
            .and_then(|mut c| c.next(Some(PATIENCE)).map(|r| (c, r)));
        match asked {
            Ok((connection, Some(Reply::Started(started)))) => return Ok((connection, started)),
            Ok(_) => bail!("node {slot} gave an unexpected answer"),
            Err(e) if connection::is_elsewhere(&e) => last = e,
            Err(e) => return Err(e),
        }
    }
    Err(last)
}

/// These nodes, those on which the fewest programs run first; the lowest of them, where they run as many.
fn least_first(folder: &Folder, mut nodes: Vec<u8>) -> Vec<u8> {
    if nodes.len() < 2 {
        return nodes;
    }
    let mut running = [0usize; 256];
    for node in &nodes {
        let Ok(programs) = programs(folder, *node) else {
            // Slow, or on its way out: after all others.
            running[usize::from(*node)] = usize::MAX / 2;
            continue;
        };
        for p in programs.iter().filter(|p| p.state != 'Z') {
            running[usize::from(p.node)] += 1;
        }
    }
    nodes.sort_by_key(|node| (running[usize::from(*node)], *node));
    nodes
}

/// The programs that a node lists.
fn programs(folder: &Folder, node: u8) -> Result<Vec<Program>> {
    let mut connection = Connection::open(folder, node, Request::Ps)?;
    let mut all = Vec::new();
    while let Some(reply) = connection.next(Some(LISTING))? {
        if let Reply::Programs(programs) = reply {
            all.extend(programs);
        }
    }
    Ok(all)
}

/// This terminal in raw mode, as it was again when dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Result<Raw> {
        let before =
            tcgetattr(std::io::stdin()).context("could not read this terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)
            .context("could not put this terminal in raw mode")?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses_become_exit_codes() {
        assert_eq!(exit_code(0), 0);
        assert_eq!(exit_code(3 << 8), 3);
        assert_eq!(exit_code(9), 137);
        assert_eq!(exit_code(0x80 | 11), 139);
    }
}
