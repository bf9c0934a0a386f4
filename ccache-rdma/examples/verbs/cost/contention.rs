//! All nodes put the same few objects.

use super::{Counts, NODES, Work, all, object, write};
use crate::fail;
use crate::meeting::Meeting;
use crate::shell::Shell;
use clustix_ccache::name::Name;
use clustix_ccache::request::Reply;
use std::time::{Duration, Instant};

/// So many, with as many primaries; then a single one.
const FEW: [u16; 2] = [3, 1];
/// For so long each.
const TIME: Duration = Duration::from_secs(6);
/// What a node puts for comparison while the others are idle.
const QUIET: u32 = 30;
/// The longest that a put may take, in median times of one that nobody disturbs.
const BAR: f64 = 20.0;
/// Objects of these have other numbers than those of other measurements.
const FIRST: u32 = 10_000;

fn timed(shell: &mut Shell, name: Name, generation: u64) -> Duration {
    match shell.one(write(name, generation)) {
        (Ok(Reply::Done), took) => took,
        (reply, took) => fail("a put fails", &format_args!("{reply:?} after {took:?}")),
    }
}

fn micros(times: &[Duration]) -> String {
    times.iter().map(|t| t.as_micros().to_string()).collect::<Vec<_>>().join(" ")
}

fn parsed(lines: &[String]) -> Vec<u64> {
    let mut all: Vec<u64> =
        lines.iter().flat_map(|l| l.split(' ')).filter_map(|w| w.parse().ok()).collect();
    all.sort_unstable();
    all
}

fn at(sorted: &[u64], part: f64) -> f64 {
    let index = ((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or(0) as f64 / 1e3
}

/// All nodes take part.
pub(super) fn run(shell: &mut Shell, meeting: &mut Meeting) {
    let me = shell.slot;
    let primary = |shard: u16| (shard % u16::from(NODES)) as u8;
    let few = |i: u16| object(i % FEW[0], FIRST);
    // Undisturbed: each node in turn, of objects that their primaries have made.
    let quiet = |of: u8| {
        (0..QUIET).map(move |i| object(i as u16 % FEW[0], FIRST + 1 + i + QUIET * u32::from(of)))
    };
    for of in 0..NODES {
        all(shell, quiet(of).filter(|n| primary(n.shard().0) == me), Work::Put(1));
    }
    all(shell, (0..FEW[0]).map(few).filter(|n| primary(n.shard().0) == me), Work::Put(1));
    meeting.wait(shell);
    let mut alone = Vec::new();
    for of in 0..NODES {
        if of == me {
            // First what only teaches keys.
            all(shell, (0..FEW[0]).map(few), Work::Put(1));
            for name in quiet(of) {
                alone.push(timed(shell, name, 2));
                shell.quiet();
            }
        }
        meeting.wait(shell);
    }
    let alone = parsed(&meeting.gather(shell, &micros(&alone)));

    let usual = at(&alone, 0.5);
    if me == 0 {
        println!("{:28} {:>8} {:>8} {:>8}  ms", "", "p50", "p99", "worst");
        print("put, not owned, undisturbed", &alone);
    }
    for objects in FEW {
        contend(shell, meeting, objects, usual);
    }
}

fn print(what: &str, times: &[u64]) {
    let [usual, late, worst] = [0.5, 0.99, 1.0].map(|part| at(times, part));
    println!("{what:28} {usual:8.1} {late:8.1} {worst:8.1}");
}

/// All put so many objects.
fn contend(shell: &mut Shell, meeting: &mut Meeting, objects: u16, usual: f64) {
    let me = shell.slot;
    let start = Counts::now(shell);
    let begun = Instant::now();
    let (mut times, mut next) = (Vec::new(), u16::from(me));
    while begun.elapsed() < TIME {
        times.push(timed(shell, object(next % objects, FIRST), u64::from(me)));
        // Not in step with the others: by two now and then.
        next = next.wrapping_add(1 + u16::from(times.len() % 5 == usize::from(me)));
    }
    shell.quiet();
    let lines = meeting.gather(shell, &micros(&times));
    let c = Counts::together(&start, shell, meeting);
    if me != 0 {
        return;
    }
    let contended = parsed(&lines);
    println!(
        "contention: {} puts of {objects} objects by {NODES} nodes in {} s, all answered; {} hand-overs, {} messages",
        contended.len(),
        TIME.as_secs(),
        c.given_back,
        c.handled
    );
    print("all", &contended);
    let mut fewest = usize::MAX;
    for (node, line) in lines.iter().enumerate() {
        let one = parsed(std::slice::from_ref(line));
        fewest = fewest.min(one.len());
        print(&format!("by node {node}, {} puts", one.len()), &one);
    }
    let part = fewest * usize::from(NODES) * 100 / contended.len().max(1);
    println!("contention: the node with the fewest puts has {part} % of an even share");
    let times = at(&contended, 1.0) / usual.max(f64::MIN_POSITIVE);
    let met = if times <= BAR { "met" } else { "missed" };
    println!("contention: worst is {times:.1} times the undisturbed p50; bar {BAR}: {met}");
}
