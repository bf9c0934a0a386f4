//! The cluster-cache at its own interface, on nodes that are processes of their own: `verbs cost SLOT
//! ADDRESS:PORT…` is one of three. Counts the messages of uncontended operations, lets all put the same few
//! objects, and times operations beside the verbs that each needs.

mod against_raw;
mod contention;
mod one_sided;

use crate::meeting::Meeting;
use crate::shell::{Shell, put};
use clustix_ccache::engine::Stats;
use clustix_ccache::name::{Name, Shard};
use clustix_ccache::request::{Reply, Request};
use clustix_ccache::set::INODE;
use clustix_pd::metrics;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

/// Nodes, each a replica of everything, but for one shard.
const NODES: u8 = 3;
/// Bytes of an object: all that one of its set may have.
const BYTES: usize = 256;
/// Operations that a node has under way when their number alone matters.
const WINDOW: usize = 8;
/// Of measured operations, for those who do not look at them.
const PAUSE: Duration = Duration::from_millis(5);

/// Runs node `slot`.
pub fn run(slot: u8, at: &[SocketAddr]) {
    let mut shell = Shell::new(slot, at);
    let mut meeting = Meeting::new(slot, at);
    meeting.wait(&mut shell);
    shell.install(at);
    meeting.wait(&mut shell);
    one_sided::run(&mut shell, &mut meeting);
    contention::run(&mut shell, &mut meeting);
    against_raw::run(&mut shell, &mut meeting);
    if slot == 0 {
        println!("done");
    }
    // Nobody ends while another is still at work.
    meeting.wait(&mut shell);
}

/// Object `id` of a shard; of a set that nobody can wait for.
fn object(shard: u16, id: u32) -> Name {
    Name::new(INODE, Shard(shard), u128::from(id))
}

/// Its contents in a generation.
fn contents(name: Name, generation: u64) -> Vec<u8> {
    let word = generation << 32 | name.id() as u64;
    word.to_le_bytes().repeat(BYTES / 8)
}

fn write(name: Name, generation: u64) -> Request {
    put(name, contents(name, generation))
}

/// Puts or, without a generation to write, gets all of these, some at once. What is read is checked
/// against `expect`.
fn all(shell: &mut Shell, names: impl IntoIterator<Item = Name>, work: Work) -> u64 {
    let mut under_way: VecDeque<(u64, Name)> = VecDeque::new();
    let (mut names, mut count) = (names.into_iter().fuse(), 0);
    loop {
        while under_way.len() < WINDOW
            && let Some(name) = names.next()
        {
            let id = shell.ask(match work {
                Work::Put(generation) => write(name, generation),
                Work::Get(_) => Request::Get { name },
            });
            under_way.push_back((id, name));
            count += 1;
        }
        let Some((id, name)) = under_way.pop_front() else { break };
        let reply = loop {
            match shell.answer(id) {
                Some((reply, _)) => break reply,
                None => shell.turn_or_sleep(PAUSE),
            }
        };
        match (work, reply) {
            (Work::Put(_), Ok(Reply::Done)) => {}
            (Work::Get(g), Ok(Reply::Object(_, data))) if data == contents(name, g) => {}
            (_, reply) => crate::fail("another answer than expected", &format_args!("{reply:?}")),
        }
    }
    shell.quiet();
    count
}

/// What [`all`] does.
#[derive(Clone, Copy)]
enum Work {
    /// Puts this generation.
    Put(u64),
    /// Gets, and finds this generation.
    Get(u64),
}

/// Counts of one node, since its start or over a time.
#[derive(Clone, Copy, Default)]
struct Counts {
    misses: u64,
    hits: u64,
    writes: u64,
    kept: u64,
    verbs: u64,
    handled: u64,
    given_back: u64,
    /// The fabric's own messages, for keys.
    keys: u64,
    registrations: u64,
}

impl Counts {
    fn now(shell: &Shell) -> Counts {
        let Stats {
            hits,
            misses,
            writes,
            kept_writes,
            given_back,
            verbs_posted,
            messages_handled,
            ..
        } = shell.engine.stats();
        Counts {
            misses,
            hits,
            writes,
            kept: kept_writes,
            verbs: verbs_posted,
            handled: messages_handled,
            given_back,
            keys: metrics::get("clustix_verbs_own_messages_total"),
            registrations: metrics::get("clustix_verbs_registrations_total"),
        }
    }

    fn words(&self) -> [u64; 9] {
        let Counts { misses, hits, writes, kept, verbs, handled, given_back, keys, registrations } =
            *self;
        [misses, hits, writes, kept, verbs, handled, given_back, keys, registrations]
    }

    fn of(words: [u64; 9]) -> Counts {
        let [misses, hits, writes, kept, verbs, handled, given_back, keys, registrations] = words;
        Counts { misses, hits, writes, kept, verbs, handled, given_back, keys, registrations }
    }

    /// All nodes' together, since `before`.
    fn together(before: &Counts, shell: &mut Shell, meeting: &mut Meeting) -> Counts {
        let now = Counts::now(shell).words();
        let since: Vec<String> =
            now.iter().zip(before.words()).map(|(n, b)| (n - b).to_string()).collect();
        let mut sum = [0; 9];
        for line in meeting.gather(shell, &since.join(" ")) {
            for (sum, word) in sum.iter_mut().zip(line.split(' ')) {
                *sum += word.parse::<u64>().unwrap_or(0);
            }
        }
        Counts::of(sum)
    }
}
