//! What operations cost over shm: one figure per line, its name, a tab, and nanoseconds (or what the
//! name says). `cargo xtask bench cache` runs this in turn with its references.
//!
//! `cargo run --release -p clustix-ccache --example cost -- operations 3`; `hits 2`; `domain any`; `clients 16`;
//! `nodes`, which counts and is a table.

mod cluster;
mod domain;
mod hits;
mod nodes;
mod operations;

/// Prints one.
fn figure(name: &str, value: f64) {
    println!("{name}\t{value:.1}");
}

fn median(mut times: Vec<u64>) -> u64 {
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse().expect("a number");
    match words[..] {
        ["operations", nodes] => operations::run(number(nodes)),
        ["hits", threads] => hits::run(usize::from(number(threads))),
        ["domain", placement] => domain::run(placement),
        ["clients", clients] => domain::clients(usize::from(number(clients))),
        ["nodes"] => nodes::run(),
        _ => {
            eprintln!(
                "usage: cost operations NODES | hits THREADS | domain PLACEMENT | clients N | nodes"
            );
            std::process::exit(2);
        }
    }
}
