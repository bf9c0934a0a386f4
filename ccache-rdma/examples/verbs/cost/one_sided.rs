//! Operations that nobody disturbs: no target's CPU handles a message for them.

use super::{Counts, NODES, Work, all, object};
use crate::meeting::Meeting;
use crate::shell::Shell;
use clustix_ccache::name::Name;
use std::time::Instant;

/// Each node is the primary of a third of them.
const SHARDS: u16 = 12;
/// Objects of a shard, those for the warm-up included.
const OBJECTS: u32 = 92;
/// Every so many-th object of a shard is for the warm-up, and the last: wherever a chunk of registered
/// memory begins, one of them is in it.
const WARM: u32 = 16;

/// An object of the mix: its name, its primary, and who writes it again and again.
#[derive(Clone, Copy)]
struct Mixed {
    name: Name,
    primary: u8,
    owner: u8,
    /// Only for the warm-up.
    warm: bool,
}

/// All of them, in the order in which they are made: that of their slots in each shard.
fn objects() -> impl Iterator<Item = Mixed> {
    let nth = (0..OBJECTS).flat_map(|n| (0..SHARDS).map(move |shard| (n, shard)));
    nth.map(|(n, shard)| {
        let primary = (shard % u16::from(NODES)) as u8;
        let owner = (primary + (n % u32::from(NODES)) as u8) % NODES;
        let warm = n % WARM == 0 || n == OBJECTS - 1;
        Mixed { name: object(shard, n + 1), primary, owner, warm }
    })
}

fn names(of: impl Fn(&Mixed) -> bool) -> impl Iterator<Item = Name> {
    objects().filter(of).map(|o| o.name)
}

impl Mixed {
    /// Who puts it in this turn. The first put of a node does not keep the word, its second does: the
    /// primary has put it at its creation, so the owner comes last.
    fn writer(&self, turn: u8) -> u8 {
        match turn {
            0 | 1 => (self.primary + 1 + turn) % NODES,
            _ => self.owner,
        }
    }
}

/// All nodes take part, each with its own objects.
pub(super) fn run(shell: &mut Shell, meeting: &mut Meeting) {
    let me = shell.slot;
    let begun = Instant::now();
    let start = Counts::now(shell);
    all(shell, names(|o| o.primary == me), Work::Put(1));
    meeting.wait(shell);
    // Whoever puts and gets an object learns the keys of all that stands around it.
    for turn in 0..NODES {
        let mine = names(|o| o.warm && (o.primary + 1 + turn) % NODES == me);
        all(shell, mine, Work::Put(2 + u64::from(turn)));
        meeting.wait(shell);
    }
    all(shell, names(|o| o.warm && o.primary != me), Work::Get(4));
    let warm = Counts::together(&start, shell, meeting);
    if me == 0 {
        println!(
            "warm-up: {:.1} s, {} messages handled, {} of the fabric's own for {} registrations",
            begun.elapsed().as_secs_f64(),
            warm.handled,
            warm.keys,
            warm.registrations
        );
    }

    let start = Counts::now(shell);
    let begun = Instant::now();
    let mut count = 0;
    for turn in 0..NODES {
        let mine = names(|o| !o.warm && o.writer(turn) == me);
        count += all(shell, mine, Work::Put(2 + u64::from(turn)));
        meeting.wait(shell);
    }
    count += all(shell, names(|o| !o.warm && o.owner == me), Work::Put(5));
    meeting.wait(shell);
    for round in 0..2 {
        count += all(shell, names(|o| !o.warm && o.owner != me), Work::Get(5 + round));
        meeting.wait(shell);
        // The others share it now.
        count += all(shell, names(|o| !o.warm && o.owner == me), Work::Put(6 + round));
        meeting.wait(shell);
    }
    let asked: u64 = meeting
        .gather(shell, &count.to_string())
        .iter()
        .filter_map(|n| n.parse::<u64>().ok())
        .sum();
    let c = Counts::together(&start, shell, meeting);
    if me == 0 {
        println!(
            "one-sided: {asked} operations in {:.1} s: {} misses, {} puts of kept words, {} of words \
             not owned; {} hits, {:.1} verbs per operation",
            begun.elapsed().as_secs_f64(),
            c.misses,
            c.kept,
            c.writes - c.kept,
            c.hits,
            c.verbs as f64 / asked as f64
        );
        println!("one-sided: messages handled: {}", c.handled);
        println!("one-sided: hand-overs: {}", c.given_back);
        println!("one-sided: messages of the fabric's own: {}", c.keys);
        println!("one-sided: registrations: {}", c.registrations);
    }
}
