//! Medians of verbs, through the fabric and without it.

use crate::fail;
use crate::three::{TOKEN, Three, config};
use clustix_ccache::fabric::conformance::Nodes;
use clustix_ccache::fabric::verbs::bare::{Bare, Pair};
use clustix_ccache::fabric::{Address, Fabric, FabricEvent, Token, Verb};
use clustix_ccache::layout::{RegionId, control};
use clustix_ccache::network::Network;
use clustix_ccache::network::verbs::VerbsNetwork;
use clustix_pd::exec;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// In µs.
pub fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, |t| t.as_secs_f64() * 1e6)
}

/// Waits for one event of an end; by its bell, as ccache does, or by yielding.
pub fn one(end: &mut VerbsNetwork, by_bell: bool) -> FabricEvent {
    let mut out = Vec::new();
    loop {
        let bell = end.bell().map_or(0, |b| b.load(Ordering::SeqCst));
        end.poll(exec::now_ns(), &mut out);
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
            if let Some(word) = end.bell() {
                exec::register(word, bell);
            }
            exec::deadline(exec::now_ns() + 1_000_000_000);
            std::task::Poll::Pending
        }));
    }
}

/// A verb or chain, its name, and the same without a fabric.
type Case = (&'static str, Vec<Verb>, Vec<Bare>);

/// What is measured; an empty chain: a message.
pub fn cases() -> Vec<Case> {
    let word = Address { region: RegionId::Control, offset: control::COUNTERS };
    let page = Address { region: RegionId::Control, offset: control::REDO };
    let data = Arc::new(vec![1; 4096]);
    let read = |at, len| Verb::Read { at, len };
    let add = Verb::FetchAdd { at: word, add: 1 };
    let swap = Verb::CompareSwap { at: word, expect: 0, new: 0 };
    vec![
        ("READ 8 B", vec![read(word, 8)], vec![Bare::Read(8)]),
        ("READ 4 KiB", vec![read(page, 4096)], vec![Bare::Read(4096)]),
        (
            "WRITE 4 KiB",
            vec![Verb::Write { at: page, data, from: 0, len: 4096 }],
            vec![Bare::Write(4096)],
        ),
        ("CAS", vec![swap], vec![Bare::CompareSwap]),
        ("FAA", vec![add.clone()], vec![Bare::FetchAdd]),
        ("FAA, READ 4 KiB", vec![add, read(page, 4096)], vec![Bare::FetchAdd, Bare::Read(4096)]),
        ("message of 64 B", vec![], vec![Bare::Send(64)]),
    ]
}

/// Prints them all.
pub fn all(ip: IpAddr, rounds: usize) {
    let mut three = Three::new(ip);
    let mut bare = Pair::new(&config(ip, TOKEN)).unwrap_or_else(|e| fail("no queue pairs", &e));
    let cases = cases();
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
                    let FabricEvent::Message { .. } = one(three.end(1), by_bell) else {
                        fail("a message does not come", &i)
                    };
                } else {
                    three.end(0).post(to, Token(i as u64), &chain);
                    let FabricEvent::Completed { result: Ok(_), .. } = one(three.end(0), by_bell)
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
        let FabricEvent::Revoked { .. } = one(three.end(1), false) else {
            fail("a revoke is not told", &"")
        };
        revoked.push(begun.elapsed());
    }
    println!("three ends, connected: {:.0} µs; a revoke: {:.0} µs", median(made), median(revoked));
}
