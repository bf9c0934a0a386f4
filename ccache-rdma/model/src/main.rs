//! `cargo xtask model`.
#![forbid(unsafe_code)]
use clap::Parser;
use clustix_model::{check, cluster::Cluster, workloads};
use stateright::Model;
use std::process::ExitCode;

/// Tries every schedule of small workloads.
#[derive(Parser)]
struct Cli {
    /// Only workloads whose names contain this
    #[arg(long)]
    only: Option<String>,
    /// Threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut code = ExitCode::SUCCESS;
    for w in workloads::ALL {
        if cli.only.as_ref().is_some_and(|o| !w.name.contains(o.as_str())) {
            continue;
        }
        let c = Cluster { workload: *w, bug: None };
        let o = check::run(c, cli.threads);
        println!("{:20} {:9} {:9} {:4} {:6.1}", w.name, o.states, o.unique, o.depth, o.took.as_secs_f64());
        if let Some((p, path)) = o.failure {
            code = ExitCode::FAILURE;
            println!("FAILS: {p}");
            let last = path.last_state().clone();
            for a in path.into_actions() {
                println!("  {}", c.format_action(&a));
            }
            println!("{last:#?}");
        }
    }
    code
}
