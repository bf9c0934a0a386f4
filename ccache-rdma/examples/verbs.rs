//! The fabric of RDMA devices, tried on a real device: `verbs test ADDRESS` runs the suite that every
//! fabric passes, with three ends in this process that connect through ADDRESS; `verbs measure ADDRESS`
//! times verbs through the fabric, and beside it on queue pairs with nothing above them.
//!
//! `cargo xtask test --only verbs` runs both in a machine with soft-RoCE.

use clustix_ccache::arena::Arena;
use clustix_ccache::fabric::verbs::bare::{Bare, Pair};
use clustix_ccache::fabric::{Address, Fabric, FabricEvent, Token, Verb, conformance};
use clustix_ccache::layout::{RegionId, control};
use clustix_ccache::network::Network;
use clustix_ccache::network::verbs::{VerbsConfig, VerbsNetwork};
use clustix_pd::{exec, metrics};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const TOKEN: u64 = 0x5eed;
const INCARNATION: u64 = 7;
/// For ends to find each other; emulated machines are slow.
const BOUND: Duration = Duration::from_secs(30);

struct Three {
    ends: Vec<Option<VerbsNetwork>>,
    arenas: Vec<Arena>,
}

fn config(ip: IpAddr, token: u64) -> VerbsConfig {
    VerbsConfig::new(SocketAddr::new(ip, 0), token)
}

fn fail(what: &str, e: &dyn std::fmt::Display) -> ! {
    eprintln!("verbs: {what}: {e}");
    std::process::exit(1)
}

impl Three {
    fn new(ip: IpAddr) -> Three {
        let arenas: Vec<Arena> =
            (0..3).map(|_| Arena::anonymous().unwrap_or_else(|e| fail("no memory", &e))).collect();
        let ends = (0..3u8).map(|slot| {
            let own = arenas[usize::from(slot)].clone();
            let made = VerbsNetwork::new(config(ip, TOKEN), slot, INCARNATION, own);
            Some(made.unwrap_or_else(|e| fail("no fabric", &e)))
        });
        let mut three = Three { ends: ends.collect(), arenas };
        three.open();
        three.learn();
        three
    }

    /// Opens all ways.
    fn open(&mut self) {
        let begun = Instant::now();
        let paths: Vec<String> = (0..3).map(|n| self.end(n).address().to_string()).collect();
        for (node, peer) in pairs() {
            self.end(node).admit(peer, INCARNATION);
        }
        loop {
            let mut open = true;
            for (node, peer) in pairs() {
                let end = self.end(node);
                end.open(exec::now_ns(), peer, INCARNATION, &paths[usize::from(peer)]);
                end.look(exec::now_ns(), &mut Vec::new());
                open &= end.is_open(peer, INCARNATION);
            }
            if open {
                return;
            }
            if begun.elapsed() > BOUND {
                fail("the ends do not find each other", &"time is up");
            }
            self.pass_time();
        }
    }

    /// Lets everyone know the keys that the suite needs, so that what it does is on its way at once.
    fn learn(&mut self) {
        let at = Address { region: RegionId::Control, offset: control::REDO };
        for node in 0..3 {
            for peer in 0..3 {
                self.end(node).post(peer, Token(0), &[Verb::Read { at, len: 8 }]);
            }
        }
        let mut left = 9;
        let begun = Instant::now();
        while left > 0 {
            for node in 0..3 {
                let mut out = Vec::new();
                self.end(node).poll(0, &mut out);
                left -= out.len();
            }
            self.pass_time();
            if begun.elapsed() > BOUND {
                fail("keys are not learnt", &"time is up");
            }
        }
    }
}

fn pairs() -> impl Iterator<Item = (u8, u8)> {
    (0..3).flat_map(|a| (0..3).filter(move |b| *b != a).map(move |b| (a, b)))
}

impl conformance::Nodes for Three {
    type End = VerbsNetwork;
    fn end(&mut self, node: u8) -> &mut VerbsNetwork {
        match &mut self.ends[usize::from(node)] {
            Some(end) => end,
            None => fail("that end is dead", &node),
        }
    }
    fn arena(&self, node: u8) -> Arena {
        self.arenas[usize::from(node)].clone()
    }
    fn pass_time(&mut self) {
        std::thread::sleep(Duration::from_micros(20));
    }
    fn kill(&mut self, node: u8) {
        self.ends[usize::from(node)] = None;
        for (peer, end) in self.ends.iter_mut().enumerate() {
            if let Some(end) = end.as_mut().filter(|_| peer != usize::from(node)) {
                end.dead(node);
            }
        }
    }
}

use conformance::Nodes;

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, |t| t.as_secs_f64() * 1e6)
}

/// Waits for one event of `node`; by its bell, as ccache does, or by yielding.
fn one(three: &mut Three, node: u8, by_bell: bool) -> FabricEvent {
    let mut out = Vec::new();
    loop {
        let bell = three.end(node).bell().map_or(0, |b| b.load(Ordering::SeqCst));
        three.end(node).poll(exec::now_ns(), &mut out);
        if let Some(event) = out.pop() {
            return event;
        }
        if !by_bell {
            std::thread::yield_now();
            continue;
        }
        let mut looked = false;
        exec::block_on(std::future::poll_fn(|_| {
            if std::mem::replace(&mut looked, true) {
                return std::task::Poll::Ready(());
            }
            if let Some(word) = three.end(node).bell() {
                exec::register(word, bell);
            }
            exec::deadline(exec::now_ns() + 1_000_000_000);
            std::task::Poll::Pending
        }));
    }
}

fn measure(ip: IpAddr, rounds: usize) {
    let mut three = Three::new(ip);
    let mut bare = Pair::new(&config(ip, TOKEN)).unwrap_or_else(|e| fail("no queue pairs", &e));
    let word = Address { region: RegionId::Control, offset: control::COUNTERS };
    let page = Address { region: RegionId::Control, offset: control::REDO };
    let data = Arc::new(vec![1; 4096]);
    let read = |at, len| Verb::Read { at, len };
    let add = Verb::FetchAdd { at: word, add: 1 };
    let cases: Vec<(&str, Vec<Verb>, Vec<Bare>)> = vec![
        ("READ 8 B", vec![read(word, 8)], vec![Bare::Read(8)]),
        ("READ 4 KiB", vec![read(page, 4096)], vec![Bare::Read(4096)]),
        (
            "WRITE 4 KiB",
            vec![Verb::Write { at: page, data, from: 0, len: 4096 }],
            vec![Bare::Write(4096)],
        ),
        ("CAS", vec![Verb::CompareSwap { at: word, expect: 0, new: 0 }], vec![Bare::CompareSwap]),
        ("FAA", vec![add.clone()], vec![Bare::FetchAdd]),
        ("FAA, READ 4 KiB", vec![add, read(page, 4096)], vec![Bare::FetchAdd, Bare::Read(4096)]),
        ("message of 64 B", vec![], vec![Bare::Send(64)]),
    ];
    println!("medians of {rounds}, µs, on {}", three.end(0).device());
    println!("{:16} {:>10} {:>10} {:>10} {:>10}", "", "fabric", "by bell", "loopback", "bare");
    for (name, chain, verbs) in cases {
        let mut figures = Vec::new();
        for (by_bell, to) in [(false, 1), (true, 1), (false, 0)] {
            let mut times = Vec::new();
            for i in 0..rounds {
                let begun = Instant::now();
                if chain.is_empty() {
                    if let Err(e) = three.end(0).send(1, &[0; 64]) {
                        fail("a message does not go", &e);
                    }
                    let FabricEvent::Message { .. } = one(&mut three, 1, by_bell) else {
                        fail("a message does not come", &i)
                    };
                } else {
                    three.end(0).post(to, Token(i as u64), &chain);
                    let FabricEvent::Completed { result: Ok(_), .. } = one(&mut three, 0, by_bell)
                    else {
                        fail(name, &"failed")
                    };
                }
                times.push(begun.elapsed());
                // What the message leaves: credits.
                three.end(0).poll(0, &mut Vec::new());
            }
            figures.push(median(times));
        }
        let mut times = Vec::new();
        for _ in 0..rounds {
            let begun = Instant::now();
            if let Err(e) = bare.act(&verbs) {
                fail(name, &e);
            }
            times.push(begun.elapsed());
        }
        figures.push(median(times));
        print!("{name:16}");
        figures.iter().for_each(|f| print!(" {f:10.1}"));
        println!();
    }
    times_of_connecting(ip);
}

/// How long it takes to make three ends, and to revoke.
fn times_of_connecting(ip: IpAddr) {
    let (mut made, mut revoked) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let begun = Instant::now();
        let mut three = Three::new(ip);
        made.push(begun.elapsed());
        let begun = Instant::now();
        three.end(1).revoke(0, 0);
        let FabricEvent::Revoked { .. } = one(&mut three, 1, false) else {
            fail("a revoke is not told", &"")
        };
        revoked.push(begun.elapsed());
    }
    println!("three ends, connected: {:.0} µs; a revoke: {:.0} µs", median(made), median(revoked));
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let ip = args.get(1).and_then(|a| a.parse::<IpAddr>().ok());
    let (Some(what), Some(ip)) = (args.first(), ip) else {
        eprintln!("usage: verbs test|measure ADDRESS [ROUNDS]");
        return ExitCode::from(2);
    };
    match what.as_str() {
        "test" => {
            let begun = Instant::now();
            conformance::conformance(|| Three::new(ip));
            println!("verbs conforms, after {:.1} s", begun.elapsed().as_secs_f32());
        }
        "measure" => {
            measure(ip, args.get(2).and_then(|r| r.parse().ok()).unwrap_or(300));
        }
        _ => return ExitCode::from(2),
    }
    for name in ["registrations_total", "own_messages_total", "rejected_total", "broken_total"] {
        let name = format!("clustix_verbs_{name}");
        println!("{name} {}", metrics::get(&name));
    }
    ExitCode::SUCCESS
}
