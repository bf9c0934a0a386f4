//! One end of several, each a process of its own, on machines of their own or not: everyone acts on
//! everyone, what was added up must be there, then all write heartbeats until they are ended. Who sees
//! a peer break says how long after its last sign of life, and how long revoking it took.

use crate::fail;
use crate::measure::{cases, median, one};
use crate::three::{BOUND, INCARNATION, TOKEN};
use clustix_ccache::arena::Arena;
use clustix_ccache::fabric::{Address, Fabric, FabricEvent, Outcome, Token, Verb};
use clustix_ccache::layout::{RegionId, control};
use clustix_ccache::network::Network;
use clustix_ccache::network::verbs::{VerbsConfig, VerbsNetwork};
use clustix_pd::exec;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Chains and messages from each to each.
const ROUNDS: u64 = 100;
/// Between two heartbeats.
const BEAT: Duration = Duration::from_millis(10);
const TALLY: Address = Address { region: RegionId::Control, offset: control::COUNTERS };
const ARRIVED: Address = Address { region: RegionId::Control, offset: control::COUNTERS + 8 };

/// See the module.
pub fn run(slot: u8, at: &[SocketAddr]) {
    let nodes = at.len() as u8;
    let arena = Arena::anonymous().unwrap_or_else(|e| fail("no memory", &e));
    let config = VerbsConfig::new(at[usize::from(slot)], TOKEN);
    let mut end = VerbsNetwork::new(config, slot, INCARNATION, arena.clone())
        .unwrap_or_else(|e| fail("no fabric", &e));
    let peers: Vec<u8> = (0..nodes).filter(|p| *p != slot).collect();
    let begun = Instant::now();
    peers.iter().for_each(|p| end.admit(*p, INCARNATION));
    while !peers.iter().all(|p| end.is_open(*p, INCARNATION)) {
        for p in &peers {
            end.open(exec::now_ns(), *p, INCARNATION, &at[usize::from(*p)].to_string());
        }
        end.look(exec::now_ns(), &mut Vec::new());
        std::thread::sleep(Duration::from_millis(1));
        if begun.elapsed() > BOUND {
            fail("the others are not found", &"time is up");
        }
    }
    println!("node {slot}: all ways open, after {:.0} ms", begun.elapsed().as_secs_f64() * 1e3);
    exchange(&mut end, slot, nodes, &arena);
    // Everyone has arrived at the end of that once this word of node 0's says so.
    act(&mut end, 0, &[Verb::FetchAdd { at: ARRIVED, add: 1 }]);
    while act(&mut end, 0, &[Verb::Read { at: ARRIVED, len: 8 }])
        != [Outcome::Bytes(u64::from(nodes).to_le_bytes().to_vec())]
    {
        std::thread::sleep(Duration::from_millis(1));
    }
    let tally = arena.control(TALLY.offset);
    if tally != ROUNDS * u64::from(nodes) {
        fail("additions were lost", &tally);
    }
    println!(
        "node {slot}: chains and messages of all are there, after {:.0} ms",
        begun.elapsed().as_secs_f64() * 1e3
    );
    if slot == 0 {
        for (name, chain, _) in cases().into_iter().filter(|c| !c.1.is_empty()) {
            let times = (0..200).map(|_| {
                let begun = Instant::now();
                act(&mut end, 1, &chain);
                begun.elapsed()
            });
            println!("{name:16} {:10.1} µs", median(times.collect()));
        }
    }
    beat(&mut end, slot, &peers);
}

/// One chain, from its posting to its end, asleep in between. Messages that come are passed over.
fn act(end: &mut VerbsNetwork, peer: u8, chain: &[Verb]) -> Vec<Outcome> {
    end.post(peer, Token(1), chain);
    loop {
        match one(end, true) {
            FabricEvent::Completed { result: Ok(outcomes), .. } => return outcomes,
            FabricEvent::Completed { result: Err(e), .. } => fail("a chain fails", &e),
            _ => {}
        }
    }
}

/// Everyone acts on everyone, and speaks to everyone.
fn exchange(end: &mut VerbsNetwork, slot: u8, nodes: u8, arena: &Arena) {
    let n = usize::from(nodes);
    let (mut posted, mut ended) = (vec![0; n], vec![0; n]);
    let (mut sent, mut heard) = (vec![0; n], vec![0; n]);
    sent[usize::from(slot)] = ROUNDS;
    heard[usize::from(slot)] = ROUNDS;
    let page = Address { region: RegionId::Control, offset: control::redo(slot, 0) };
    let begun = Instant::now();
    let mut out = Vec::new();
    while [&ended, &heard, &sent].iter().any(|v| v.iter().any(|n| *n < ROUNDS)) {
        for peer in 0..nodes {
            let i = usize::from(peer);
            // A few under way, as ccache has.
            while posted[i] < ROUNDS && posted[i] - ended[i] < 4 {
                let word: u64 = posted[i] * 1_000 + u64::from(slot);
                let data = Arc::new(word.to_le_bytes().repeat(1_000));
                let chain = [
                    Verb::Write { at: page, data, from: 0, len: 8_000 },
                    Verb::FetchAdd { at: TALLY, add: 1 },
                    Verb::Read { at: page, len: 8_000 },
                ];
                end.post(peer, Token(posted[i]), &chain);
                posted[i] += 1;
            }
            if sent[i] < ROUNDS && end.send(peer, &sent[i].to_le_bytes().repeat(100)).is_ok() {
                sent[i] += 1;
            }
        }
        end.poll(exec::now_ns(), &mut out);
        for event in out.drain(..) {
            match event {
                FabricEvent::Completed { peer, token, result: Ok(outcomes) } => {
                    let i = usize::from(peer);
                    let word: u64 = token.0 * 1_000 + u64::from(slot);
                    let right = Outcome::Bytes(word.to_le_bytes().repeat(1_000));
                    if token.0 != ended[i] || outcomes[2] != right {
                        fail("a chain has another end than it should", &token.0);
                    }
                    ended[i] += 1;
                }
                FabricEvent::Message { from, bytes } => {
                    let heard: &mut u64 = &mut heard[usize::from(from)];
                    if bytes != heard.to_le_bytes().repeat(100) {
                        fail("a message is another than it should be", &heard);
                    }
                    *heard += 1;
                }
                other => fail("something goes wrong", &format_args!("{other:?}")),
            }
        }
        if begun.elapsed() > BOUND {
            let so_far = format!("{ended:?} {heard:?} {sent:?} {}", arena.control(TALLY.offset));
            fail("it does not get done", &so_far);
        }
        std::thread::yield_now();
    }
}

/// Heartbeats, until nobody is left.
fn beat(end: &mut VerbsNetwork, slot: u8, peers: &[u8]) {
    let at = Address { region: RegionId::Control, offset: control::heartbeat(slot) };
    let mut alive: Vec<(u8, Instant)> = peers.iter().map(|p| (*p, Instant::now())).collect();
    let (mut out, mut broken) = (Vec::new(), Vec::new());
    let mut word = 0;
    println!("node {slot}: beats");
    while !alive.is_empty() {
        word += 1;
        for (peer, _) in &alive {
            end.post(*peer, Token(Token::SHELL | word), &[Verb::WriteWord { at, word }]);
        }
        let until = Instant::now() + BEAT;
        while Instant::now() < until {
            end.poll(exec::now_ns(), &mut out);
            for event in out.drain(..) {
                if let FabricEvent::Completed { peer, result: Ok(_), .. } = event
                    && let Some(a) = alive.iter_mut().find(|a| a.0 == peer)
                {
                    a.1 = Instant::now();
                }
            }
            end.look(exec::now_ns(), &mut broken);
            for b in broken.drain(..) {
                let Some(i) = alive.iter().position(|a| a.0 == b.slot) else { continue };
                let (peer, last) = alive.swap_remove(i);
                let silent = last.elapsed();
                end.dead(peer);
                let begun = Instant::now();
                end.revoke(exec::now_ns(), peer);
                loop {
                    end.poll(exec::now_ns(), &mut out);
                    if out.contains(&FabricEvent::Revoked { peer }) {
                        break;
                    }
                }
                out.clear();
                println!(
                    "node {slot}: node {peer} is broken, {:.0} ms after its last sign; revoked in {:.1} ms",
                    silent.as_secs_f64() * 1e3,
                    begun.elapsed().as_secs_f64() * 1e3
                );
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
