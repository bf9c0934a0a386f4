//! The fabric of RDMA devices, tried on a real device: `verbs test ADDRESS` runs the suite that every
//! fabric passes, with three ends in this process that connect through ADDRESS; `verbs measure ADDRESS`
//! times verbs through the fabric, and beside it on queue pairs with nothing above them; `verbs node
//! SLOT ADDRESS:PORT…` is one end of several that are processes of their own; `verbs cost SLOT
//! ADDRESS:PORT…` is one of three nodes of a cluster-cache, without anything above it, which measure it.
//!
//! `cargo xtask test --only verbs` runs all but the last in machines with soft-RoCE, the suite `rxe-cost` that one.

mod cost;
mod measure;
mod meeting;
mod node;
mod shell;
mod three;

use clustix_ccache::fabric::conformance;
use clustix_pd::metrics;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Instant;
use three::Three;

/// Says what is wrong, and ends.
fn fail(what: &str, e: &dyn std::fmt::Display) -> ! {
    eprintln!("verbs: {what}: {e}");
    std::process::exit(1)
}

fn usage() -> ExitCode {
    eprintln!(
        "usage: verbs test|measure ADDRESS [ROUNDS]\n       verbs node|cost SLOT ADDRESS:PORT…"
    );
    ExitCode::from(2)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let ip = args.get(1).and_then(|a| a.parse::<IpAddr>().ok());
    match (args.first().map(String::as_str), ip) {
        (Some("test"), Some(ip)) => {
            let begun = Instant::now();
            conformance::conformance(|| Three::new(ip));
            three::strangers_are_not_let_in(ip);
            println!("verbs conforms, after {:.1} s", begun.elapsed().as_secs_f32());
        }
        (Some("measure"), Some(ip)) => {
            measure::all(ip, args.get(2).and_then(|r| r.parse().ok()).unwrap_or(300));
        }
        (Some(what @ ("node" | "cost")), _) => {
            let slot = args.get(1).and_then(|s| s.parse::<u8>().ok());
            let at: Option<Vec<SocketAddr>> = args.iter().skip(2).map(|a| a.parse().ok()).collect();
            let (Some(slot), Some(at)) = (slot, at) else { return usage() };
            if usize::from(slot) >= at.len() {
                return usage();
            }
            match what {
                "node" => node::run(slot, &at),
                _ if at.len() != 3 => return usage(),
                _ => cost::run(slot, &at),
            }
        }
        _ => return usage(),
    }
    for name in ["registrations_total", "own_messages_total", "rejected_total", "broken_total"] {
        let name = format!("clustix_verbs_{name}");
        println!("{name} {}", metrics::get(&name));
    }
    ExitCode::SUCCESS
}
