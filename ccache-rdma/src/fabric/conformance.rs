//! The suite that every fabric passes unchanged: what the trait promises, asked of three nodes.
//!
//! A crate that brings a fabric implements [`Nodes`] for three of its ends and calls
//! [`conformance`]; each case gets nodes of its own. Panics say what was promised.

use super::{Address, Fabric, FabricError, FabricEvent, Outcome, Token, Verb};
use crate::arena::Arena;
use crate::layout::{RegionId, control};
use std::sync::Arc;

/// Three nodes, 0 to 2, connected with each other and let in by each other.
pub trait Nodes {
    /// Their fabric.
    type End: Fabric;
    /// One node's end.
    fn end(&mut self, node: u8) -> &mut Self::End;
    /// One node's memory.
    fn arena(&self, node: u8) -> Arena;
    /// Lets time pass, if the fabric needs it for anything to happen.
    fn pass_time(&mut self);
    /// A node's ccache ends; the others' shells know.
    fn kill(&mut self, node: u8);
}

/// Turns within which anything that is to happen has happened.
const TURNS: usize = 100_000;
/// Turns in which something that must not happen would have.
const LONG: usize = 2_000;

/// No other chain's name.
const ONE: Token = Token(1 << 40);

const WORD: Address = Address { region: RegionId::Control, offset: control::COUNTERS };
const OTHER: Address = Address { region: RegionId::Control, offset: control::COUNTERS + 8 };
const PAGE: Address = Address { region: RegionId::Control, offset: control::REDO };
const WORD_READ: Verb = Verb::Read { at: WORD, len: 8 };

fn add(at: Address, add: u64) -> Verb {
    Verb::FetchAdd { at, add }
}

fn write(at: Address, byte: u8, len: u32) -> Verb {
    Verb::Write { at, data: Arc::new(vec![byte; len as usize]), from: 0, len }
}

fn bytes(word: u64) -> Outcome {
    Outcome::Bytes(word.to_le_bytes().to_vec())
}

/// Runs every case on nodes that `make` gives.
pub fn conformance<N: Nodes>(make: impl Fn() -> N) {
    verbs_do_what_they_say(&mut make());
    chains_to_one_peer_keep_their_order(&mut make());
    atomics_of_several_are_atomic(&mut make());
    a_completion_says_that_it_landed(&mut make());
    loopback_is_a_way_like_any_other(&mut make());
    what_is_out_of_range_is_refused(&make);
    messages_keep_their_order(&mut make());
    a_full_mailbox_is_busy(&mut make());
    after_a_revoke_nothing_lands(&mut make());
    a_revoke_ends_the_own_use_too(&mut make());
    strangers_and_the_dead_end_in_errors(&mut make());
}

/// Polls `node` until `found` takes one of its events.
fn until<N: Nodes, T>(
    n: &mut N,
    node: u8,
    why: &str,
    mut found: impl FnMut(FabricEvent) -> Option<T>,
) -> T {
    for turn in 0..TURNS {
        let mut out = Vec::new();
        n.end(node).poll(turn as u64, &mut out);
        let mut hit = None;
        for event in out {
            match (found(event), &hit) {
                (Some(t), None) => hit = Some(t),
                (Some(_), Some(_)) => panic!("{why}: twice"),
                _ => {}
            }
        }
        if let Some(t) = hit {
            return t;
        }
        n.pass_time();
    }
    panic!("{why}: never");
}

type Ended = Result<Vec<Outcome>, FabricError>;

fn end_of<N: Nodes>(n: &mut N, node: u8, wanted: Token) -> Ended {
    until(n, node, "a chain ends in one completion", |e| match e {
        FabricEvent::Completed { token, result, .. } if token == wanted => Some(result),
        _ => None,
    })
}

fn do_all<N: Nodes>(n: &mut N, node: u8, peer: u8, chain: &[Verb]) -> Ended {
    n.end(node).post(peer, ONE, chain);
    end_of(n, node, ONE)
}

fn revoke<N: Nodes>(n: &mut N, node: u8, whom: u8) {
    n.end(node).revoke(0, whom);
    until(n, node, "a revoke is told", |e| {
        matches!(e, FabricEvent::Revoked { peer } if peer == whom).then_some(())
    });
}

fn verbs_do_what_they_say<N: Nodes>(n: &mut N) {
    let data = Arc::new((0..=255u8).cycle().take(10_000).collect::<Vec<u8>>());
    let chain = [
        add(WORD, 5),
        Verb::CompareSwap { at: WORD, expect: 5, new: 8 },
        Verb::CompareSwap { at: WORD, expect: 5, new: 9 },
        Verb::Write { at: PAGE, data: data.clone(), from: 8, len: 9_000 },
        Verb::Read { at: PAGE, len: 9_000 },
        Verb::WriteWord { at: WORD, word: u64::MAX },
        add(WORD, 4),
        WORD_READ,
    ];
    let got = do_all(n, 0, 1, &chain).expect("a healthy peer");
    assert_eq!(got[..4], [Outcome::Word(0), Outcome::Word(5), Outcome::Word(8), Outcome::Done]);
    assert_eq!(got[4], Outcome::Bytes(data[8..9_008].to_vec()));
    assert_eq!(got[5..], [Outcome::Done, Outcome::Word(u64::MAX), bytes(3)], "adding wraps");
    assert_eq!(n.arena(1).control(WORD.offset), 3);
    assert_eq!(n.arena(2).control(WORD.offset), 0, "another node's memory");
}

/// Across chains too: a later READ sees every WRITE before it, whole.
fn chains_to_one_peer_keep_their_order<N: Nodes>(n: &mut N) {
    for i in 1..=40u8 {
        let token = Token(u64::from(i));
        n.end(0).post(1, token, &[write(PAGE, i, 6_000), add(WORD, 1)]);
        let token = Token(1_000 + u64::from(i));
        n.end(0).post(1, token, &[WORD_READ, Verb::Read { at: PAGE, len: 6_000 }]);
    }
    let mut next = 0;
    let mut got = Vec::new();
    until(n, 0, "chains end", |e| {
        let FabricEvent::Completed { peer: 1, token, result } = e else { return None };
        got.push((token, result));
        next += 1;
        (next == 80).then_some(())
    });
    for (i, (token, result)) in got.into_iter().enumerate() {
        let number = i as u64 / 2 + 1;
        let reads = i % 2 == 1;
        assert_eq!(token.0, number + 1_000 * u64::from(reads), "completions keep the order");
        let result = result.expect("a healthy peer");
        if reads {
            let page = Outcome::Bytes(vec![number as u8; 6_000]);
            assert_eq!(result, [bytes(number), page], "what was posted before has acted, no more");
        } else {
            assert_eq!(result[1], Outcome::Word(number - 1));
        }
    }
}

fn atomics_of_several_are_atomic<N: Nodes>(n: &mut N) {
    const EACH: u64 = 60;
    for i in 0..EACH {
        for node in 0..3 {
            n.end(node).post(1, Token(i), &[add(WORD, 1), add(OTHER, 1 << (8 * node))]);
        }
    }
    let mut seen = Vec::new();
    for node in 0..3 {
        let mut left = EACH;
        until(n, node, "atomics complete", |e| {
            let FabricEvent::Completed { result, .. } = e else { return None };
            let result = result.expect("a healthy peer");
            let Outcome::Word(before) = result[0] else { panic!("{result:?}") };
            seen.push(before);
            left -= 1;
            (left == 0).then_some(())
        });
    }
    seen.sort_unstable();
    assert!(seen.iter().copied().eq(0..3 * EACH), "each saw another value: {seen:?}");
    let counts = EACH | EACH << 8 | EACH << 16;
    assert_eq!(n.arena(1).control(OTHER.offset), counts, "no addition is lost");
}

fn a_completion_says_that_it_landed<N: Nodes>(n: &mut N) {
    for i in 1..20u8 {
        let at = Address { offset: PAGE.offset + 8 * u64::from(i), ..PAGE };
        do_all(n, 0, 2, &[write(at, i, 8_000)]).expect("a healthy peer");
        let mut page = vec![0; 8_000];
        let arena = n.arena(2);
        assert!(arena.region(at.region).read(at.offset as usize, &mut page));
        assert!(page.iter().all(|b| *b == i), "the target's CPU sees it");
        // And so does anyone whom the poster tells.
        let read = do_all(n, 1, 2, &[Verb::Read { at, len: 8_000 }]);
        assert_eq!(read, Ok(vec![Outcome::Bytes(page)]));
    }
}

fn loopback_is_a_way_like_any_other<N: Nodes>(n: &mut N) {
    let got = do_all(n, 1, 1, &[add(WORD, 2), write(PAGE, 3, 16), WORD_READ]);
    assert_eq!(got, Ok(vec![Outcome::Word(0), Outcome::Done, bytes(2)]));
    assert_eq!(do_all(n, 0, 1, &[add(WORD, 1)]), Ok(vec![Outcome::Word(2)]));
    assert_eq!(n.arena(1).control(WORD.offset), 3);
}

/// Each on nodes of its own: a fabric may give a connection up after such a thing.
fn what_is_out_of_range_is_refused<N: Nodes>(make: impl Fn() -> N) {
    let at = |offset| Address { offset, ..WORD };
    let short = Arc::new(vec![1; 64]);
    let bad = [
        Verb::Read { at: at(WORD.offset + 3), len: 8 },
        Verb::Read { at: WORD, len: 12 },
        Verb::Read { at: at(control::LEN - 8), len: 16 },
        Verb::Read { at: at(u64::MAX - 7), len: 16 },
        Verb::WriteWord { at: at(WORD.offset + 4), word: 1 },
        Verb::FetchAdd { at: at(control::LEN), add: 1 },
        Verb::FetchAdd { at: at(WORD.offset + 1), add: 1 },
        Verb::CompareSwap { at: at(control::LEN), expect: 0, new: 1 },
        Verb::Write { at: at(control::LEN - 8), data: short.clone(), from: 0, len: 16 },
        Verb::Write { at: WORD, data: short.clone(), from: 60, len: 8 },
        Verb::Write { at: WORD, data: short, from: 0, len: 4 },
    ];
    for verb in bad {
        for peer in [1, 0] {
            let mut n = make();
            // Behind one that is good: any prefix may have acted, nothing after.
            let chain = [add(OTHER, 1), verb.clone(), add(OTHER, 1)];
            let got = do_all(&mut n, 0, peer, &chain);
            assert_eq!(got, Err(FabricError::Range), "{verb:?} to {peer}");
            assert!(n.arena(peer).control(OTHER.offset) <= 1, "{verb:?}");
        }
    }
    let mut n = make();
    let long = vec![0; control::MAX_MESSAGE + 1];
    assert_eq!(n.end(0).send(1, &long), Err(FabricError::Range));
}

fn message(number: u32) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.resize(4 + (number as usize * 131) % 9_000, number as u8);
    bytes
}

fn messages_keep_their_order<N: Nodes>(n: &mut N) {
    const ALL: u32 = 400;
    let (mut sent, mut got) = ([0; 2], [0; 2]);
    while got != [ALL; 2] {
        for from in [0, 2u8] {
            let sent = &mut sent[usize::from(from / 2)];
            if *sent < ALL {
                match n.end(from).send(1, &message(*sent)) {
                    Ok(()) => *sent += 1,
                    Err(FabricError::Busy) => {}
                    Err(e) => panic!("to a healthy peer: {e}"),
                }
            }
        }
        n.pass_time();
        let mut out = Vec::new();
        n.end(1).poll(0, &mut out);
        for event in out {
            let FabricEvent::Message { from, bytes } = event else { panic!("{event:?}") };
            let got = &mut got[usize::from(from / 2)];
            assert_eq!(bytes, message(*got), "in order, whole, once, from {from}");
            *got += 1;
        }
    }
}

fn a_full_mailbox_is_busy<N: Nodes>(n: &mut N) {
    let bytes = vec![7; control::MAX_MESSAGE];
    let mut sent = 0;
    loop {
        match n.end(0).send(1, &bytes) {
            Ok(()) => sent += 1,
            Err(FabricError::Busy) => break,
            Err(e) => panic!("{e}"),
        }
        assert!(sent < 10_000, "a mailbox is bounded");
        n.pass_time();
    }
    assert!(sent > 1);
    assert_eq!(n.end(2).send(1, b"another's room"), Ok(()), "each sender has its own");
    let mut left = sent;
    until(n, 1, "what was sent arrives", |e| {
        let FabricEvent::Message { from: 0, .. } = e else { return None };
        left -= 1;
        (left == 0).then_some(())
    });
    // Where the receiver is far away, the sender learns of it later.
    for turn in 0..TURNS {
        match n.end(0).send(1, &bytes) {
            Ok(()) => return,
            Err(FabricError::Busy) => {}
            Err(e) => panic!("{e}"),
        }
        let mut out = Vec::new();
        for node in 0..2 {
            n.end(node).poll(turn as u64, &mut out);
        }
        assert_eq!(out, [], "all has arrived");
        n.pass_time();
    }
    panic!("there is no room again");
}

/// Rule 33, with WRITEs of the revoked at every stage of their way.
fn after_a_revoke_nothing_lands<N: Nodes>(n: &mut N) {
    for i in 0..200u64 {
        n.end(0).post(1, Token(i), &[write(PAGE, i as u8, 20_000), add(WORD, 1)]);
        if i % 4 == 0 {
            n.pass_time();
        }
    }
    let _ = n.end(0).send(1, b"on its way");
    revoke(n, 1, 0);
    let arena = n.arena(1);
    let look = || {
        let mut page = vec![0; 20_000];
        assert!(arena.region(PAGE.region).read(PAGE.offset as usize, &mut page));
        (arena.control(WORD.offset), page)
    };
    let before = look();
    let mut out = Vec::new();
    for i in 0..LONG as u64 {
        if i % 64 == 0 {
            n.end(0).post(1, Token(10_000 + i), &[write(PAGE, 0xee, 64), add(WORD, 1)]);
            let _ = n.end(0).send(1, b"late");
        }
        n.pass_time();
        n.end(1).poll(0, &mut out);
    }
    assert!(before == look(), "nothing of the revoked lands");
    assert!(out.is_empty(), "no message of the revoked is read: {out:?}");
    let got = do_all(n, 0, 1, &[WORD_READ]);
    assert_eq!(got, Err(FabricError::Unreachable));
    assert_eq!(
        do_all(n, 2, 1, &[add(WORD, 0)]),
        Ok(vec![Outcome::Word(before.0)]),
        "the others go on"
    );
}

/// Rule 34: nothing is read from a memory that one has revoked.
fn a_revoke_ends_the_own_use_too<N: Nodes>(n: &mut N) {
    for i in 0..50 {
        n.end(1).post(0, Token(i), &[add(WORD, 1)]);
    }
    n.end(1).revoke(0, 0);
    let mut ended = 0;
    let mut revoked = false;
    let mut last = 0;
    until(n, 1, "what was posted to the revoked ends, and the revoke", |e| {
        match e {
            FabricEvent::Completed { result, .. } => {
                ended += 1;
                if result.is_ok() {
                    last += 1;
                }
            }
            FabricEvent::Revoked { peer: 0 } => revoked = true,
            other => panic!("{other:?}"),
        }
        (ended == 50 && revoked).then_some(())
    });
    let acted = n.arena(0).control(WORD.offset);
    assert!(acted >= last, "what is said to have landed did");
    for _ in 0..LONG {
        n.pass_time();
    }
    assert_eq!(n.arena(0).control(WORD.offset), acted, "nothing acts there any more");
    assert_eq!(do_all(n, 1, 0, &[WORD_READ]), Err(FabricError::Unreachable));
    assert_eq!(n.end(1).send(0, b"x"), Err(FabricError::Unreachable));
}

fn strangers_and_the_dead_end_in_errors<N: Nodes>(n: &mut N) {
    let got = do_all(n, 0, 9, &[WORD_READ]);
    assert_eq!(got, Err(FabricError::Unreachable), "a slot without a node");
    assert_eq!(n.end(0).send(9, b"x"), Err(FabricError::Unreachable));
    n.end(0).post(2, Token(1), &[add(WORD, 1)]);
    n.kill(2);
    // While nobody has revoked it, it may end either way; but it ends, and says what is so.
    let got = end_of(n, 0, Token(1));
    if got.is_ok() {
        assert_eq!(n.arena(2).control(WORD.offset), 1);
    }
    revoke(n, 0, 2);
    revoke(n, 1, 2);
    assert_eq!(do_all(n, 0, 2, &[WORD_READ]), Err(FabricError::Unreachable));
    assert_eq!(do_all(n, 0, 1, &[add(WORD, 1)]), Ok(vec![Outcome::Word(0)]), "the others go on");
}
