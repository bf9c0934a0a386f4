//! Processes of this machine, held by pidfd so that a reused number is never mistaken for them.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

/// What `/proc/PID/stat` says of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Number.
    pub pid: u32,
    /// Parent.
    pub ppid: u32,
    /// One letter; `Z` is a zombie, which has ended.
    pub state: char,
    /// Start, in clock ticks since the machine started: with the number it names a process for ever.
    pub start: u64,
}

/// Parses a line of `/proc/PID/stat` (proc_pid_stat(5)); the command may hold any character.
pub fn parse_stat(line: &str) -> Option<Stat> {
    let pid = line.split(' ').next()?.parse().ok()?;
    let rest = &line[line.rfind(')')? + 1..];
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    Some(Stat {
        pid,
        state: fields.first()?.chars().next()?,
        ppid: fields.get(1)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
    })
}

/// Reads a process's line; `None` if there is none.
pub fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The processes below `pid`, children before grandchildren.
pub fn descendants(pid: u32) -> Vec<Stat> {
    let mut children: HashMap<u32, Vec<Stat>> = HashMap::new();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for entry in entries {
        let number = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok());
        if let Some(s) = number.and_then(stat) {
            children.entry(s.ppid).or_default().push(s);
        }
    }
    let mut found = Vec::new();
    let mut from = vec![pid];
    while let Some(parent) = from.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            from.push(child.pid);
            found.push(child);
        }
    }
    found
}

/// A process that may be signalled and waited for, whatever becomes of its number.
#[derive(Debug)]
pub struct Process {
    /// Number, for messages.
    pub pid: u32,
    fd: OwnedFd,
}

impl Process {
    /// Opens `pid` if it is still the process that started at `start`.
    pub fn open(pid: u32, start: u64) -> Option<Process> {
        let number = Pid::from_raw(i32::try_from(pid).ok()?)?;
        let fd = pidfd_open(number, PidfdFlags::empty()).ok()?;
        // Looked at after the pidfd is held: the number cannot change hands any more.
        (stat(pid)?.start == start).then_some(Process { pid, fd })
    }

    /// The descriptor, readable once the process has ended.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Sends a signal; a process that has ended is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether it has ended.
    pub fn ended(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Waits until it has ended, at most `bound`; says whether it has.
    pub fn wait(&self, bound: Duration) -> bool {
        let until = Instant::now() + bound;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            match poll(&mut fds, Some(&timespec(left))) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return stat(self.pid).is_none(),
            }
        }
    }
}

/// A duration for poll(2).
pub fn timespec(d: Duration) -> rustix::event::Timespec {
    rustix::event::Timespec {
        tv_sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: d.subsec_nanos().into(),
    }
}

/// Kills a process and all below it with SIGKILL and waits for their end.
///
/// The root dies first; those below are expected to follow by themselves (they ask the kernel
/// for SIGKILL at their parent's death); what has not after two seconds is killed too. Returns
/// how many processes there were and how many had to be killed one by one.
///
/// # Errors
/// The first process that would not die within ten seconds.
pub fn kill_tree(root: &Process) -> io::Result<(usize, usize)> {
    let below: Vec<Process> =
        descendants(root.pid).iter().filter_map(|s| Process::open(s.pid, s.start)).collect();
    root.signal(Signal::KILL)?;
    let follow = Instant::now() + Duration::from_secs(2);
    let mut stragglers = 0;
    for process in &below {
        if !process.wait(follow.saturating_duration_since(Instant::now())) {
            stragglers += 1;
            process.signal(Signal::KILL)?;
        }
    }
    let bound = Instant::now() + Duration::from_secs(10);
    for process in below.iter().chain([root]) {
        if !process.wait(bound.saturating_duration_since(Instant::now())) {
            return Err(io::Error::other(format!(
                "process {} did not end within 10 s of SIGKILL",
                process.pid
            )));
        }
    }
    Ok((below.len() + 1, stragglers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_command_with_parentheses_and_spaces_parses() {
        let line = "12 (a) b (c) S 7 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 2 3";
        assert_eq!(parse_stat(line), Some(Stat { pid: 12, ppid: 7, state: 'S', start: 4711 }));
        assert_eq!(parse_stat(""), None);
        assert_eq!(parse_stat("12 (x"), None);
        assert_eq!(parse_stat("12 (x) S 1"), None);
    }

    #[test]
    fn a_number_with_another_start_is_not_the_process() {
        let me = stat(std::process::id()).unwrap();
        assert!(Process::open(me.pid, me.start).is_some());
        assert!(Process::open(me.pid, me.start + 1).is_none());
    }

    #[test]
    fn a_tree_dies_with_its_root() {
        let mut sh =
            Command::new("sh").args(["-c", "sh -c 'sleep 100 & wait' & wait"]).spawn().unwrap();
        let pid = sh.id();
        let tree = Process::open(pid, stat(pid).unwrap().start).unwrap();
        while descendants(pid).len() < 2 {
            std::thread::yield_now();
        }
        let (n, stragglers) = kill_tree(&tree).unwrap();
        assert!(n >= 3, "{n}");
        assert!(stragglers >= 1, "{stragglers}: no one told sleep to die with its parent");
        assert!(descendants(pid).is_empty());
        sh.wait().unwrap();
    }
}
