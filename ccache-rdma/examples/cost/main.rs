//! What operations cost over shm: one figure per line, its name, a tab, and nanoseconds (or what the
//! name says). `cargo xtask bench cache` runs this in turn with its references.
//!
//! `cargo run --release -p clustix-ccache --example cost -- operations 3`; `hits 2`; `domain any`; `clients 16`;
//! `nodes`, which counts and is a table. What is measured in rounds takes the program that measures a round
//! (`xtask/bench/posix.c`) as a last argument, and runs it between its parts.

mod beside;
mod cluster;
mod domain;
mod hits;
mod nodes;
mod operations;

use beside::Beside;

/// Prints one.
fn figure(name: &str, value: f64) {
    println!("{name}\t{value:.1}");
}

fn median(mut times: Vec<u64>) -> u64 {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Keeps the calling thread on one processor, and what it starts from then on.
fn stay_on(processor: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(processor);
    rustix::thread::sched_setaffinity(None, &set).unwrap();
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse().expect("a number");
    match words[..] {
        ["operations", nodes] => operations::run(number(nodes), &Beside::nothing()),
        ["operations", nodes, program] => operations::run(number(nodes), &Beside::program(program)),
        ["hits", threads] => hits::run(usize::from(number(threads))),
        ["domain", placement] => domain::run(placement, &Beside::nothing()),
        ["domain", placement, program] => domain::run(placement, &Beside::program(program)),
        ["clients", clients] => domain::clients(usize::from(number(clients))),
        ["nodes"] => nodes::run(),
        _ => {
            eprintln!(
                "usage: cost operations NODES [ROUND] | hits THREADS | domain PLACEMENT [ROUND] | clients N | nodes"
            );
            std::process::exit(2);
        }
    }
}
