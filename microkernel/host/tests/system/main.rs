//! Boots whole systems for real: a kernel process, protection domains, channels, stubs.
//!
//! This one program is the test runner, the kernel process of each scenario (`host NAME`) and every
//! protection domain of it (`pd ROLE`). A scenario passes when its `tester` domain exits with 0,
//! which ends the node.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

mod domains;
mod nuisance;
mod scenarios;
mod stub_image;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [_, "pd", role] => domains::run(role),
        [_, "host", name] => scenarios::host(name),
        [_, rest @ ..] => run_tests(rest),
        [] => ExitCode::FAILURE,
    }
}

/// One test: a name and what it does.
pub(crate) type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("calls_and_replies_over_a_channel", || passes("calls")),
    ("a_killed_server_is_gone_and_then_back", || passes("gone")),
    ("capabilities_are_checked_by_the_core", || passes("capabilities")),
    ("a_forbidden_system_call_ends_the_domain", || passes("sandbox")),
    ("what_is_read_only_stays_so", || passes("read-only")),
    ("random_system_calls_harm_nobody_else", || passes("fuzz")),
    ("a_channel_minted_at_run_time_can_be_called", || passes("minted")),
    ("stubs_start_fork_map_and_die", || passes("stubs")),
    ("the_kernel_restarts_and_regions_stay", || passes("restart")),
    ("costs", || passes("costs")),
    ("a_nuisance_keeps_nobody_elses_calls", || passes("nuisance")),
    ("a_lost_domain_ends_the_node", a_lost_domain_ends_the_node),
    ("sigterm_ends_the_tree", || tree_ends(libc::SIGTERM, Some(0))),
    ("sigkill_of_the_kernel_ends_the_tree", || tree_ends(libc::SIGKILL, None)),
];

fn run_tests(arguments: &[&str]) -> ExitCode {
    if arguments.contains(&"--list") {
        for (name, _) in TESTS {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<_> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let mut failed = 0;
    for (name, test) in TESTS {
        if !wanted.is_empty() && !wanted.iter().any(|w| name.contains(**w)) {
            continue;
        }
        let start = Instant::now();
        let ok = std::panic::catch_unwind(test).is_ok();
        failed += u32::from(!ok);
        let verdict = if ok { "ok" } else { "FAILED" };
        println!("test {name} ... {verdict} ({} ms)", start.elapsed().as_millis());
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Starts the kernel process of a scenario; its log comes out of the child's standard error.
fn start(name: &str) -> Child {
    Command::new("/proc/self/exe")
        .args(["host", name])
        .stdin(Stdio::null())
        .stdout(Stdio::inherit())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the kernel process starts")
}

/// Waits for a child, at most a minute.
fn wait(child: &mut Child) -> std::process::ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("it can be waited for") {
            return status;
        }
        if start.elapsed() > Duration::from_secs(60) {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the scenario took more than a minute");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn passes(name: &str) {
    let mut child = start(name);
    let mut log = child.stderr.take().expect("piped");
    // The log ends when the last process of the node does, so reading it to the end also checks
    // that nothing is left.
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = log.read_to_string(&mut text);
        text
    });
    let status = wait(&mut child);
    let text = reader.join().expect("the log is read");
    assert!(status.success(), "scenario {name}: {status}\n{text}");
    for figure in text.lines().filter(|l| l.starts_with("call of")) {
        println!("{figure}");
    }
}

fn a_lost_domain_ends_the_node() {
    let mut child = start("lost");
    assert_eq!(wait(&mut child).code(), Some(70));
}

/// Signals the kernel process of a running system; every process of it must go.
fn tree_ends(signal: i32, code: Option<i32>) {
    let mut child = start("idle");
    let log = child.stderr.take().expect("piped");
    let mut pids = Vec::new();
    let mut lines = BufReader::new(log);
    let mut line = String::new();
    while lines.read_line(&mut line).expect("the log is readable") > 0 {
        if let Some(list) = line.trim().strip_prefix("pids ") {
            pids = list.split(' ').map(|p| p.parse::<i32>().expect("a pid")).collect();
            break;
        }
        line.clear();
    }
    assert!(pids.len() >= 4, "tester, echo, zygote's stub…: {pids:?}");
    // SAFETY: a signal to our own child, which is not reaped yet.
    unsafe { libc::kill(child.id() as i32, signal) };
    let status = wait(&mut child);
    assert_eq!(status.code(), code, "{status}");
    // The log's other ends are closed when all processes are gone: an event, not a sleep.
    let mut rest = String::new();
    lines.read_to_string(&mut rest).expect("the log ends");
    let start = Instant::now();
    for pid in pids {
        // Stubs hold no log: they end with the zygote, a moment later.
        while std::path::Path::new(&format!("/proc/{pid}/status")).exists() && !is_zombie(pid) {
            assert!(start.elapsed() < Duration::from_secs(10), "process {pid} is left");
            std::thread::yield_now();
        }
    }
}

/// An orphan that the machine's init has not reaped yet is gone all the same.
fn is_zombie(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|s| s.rsplit(')').next().is_some_and(|t| t.trim().starts_with('Z')))
}

/// Keeps the type of a log's descriptor in one place.
pub(crate) fn log() -> Option<OwnedFd> {
    std::os::fd::AsFd::as_fd(&std::io::stderr()).try_clone_to_owned().ok()
}
