//! What an operation costs beside the verbs that it needs, over the same queue pairs, in turn.

use super::{BYTES, NODES, Work, all, object, write};
use crate::fail;
use crate::measure::median;
use crate::meeting::Meeting;
use crate::shell::{FAR, Round, Shell};
use clustix_ccache::fabric::{Address, Verb};
use clustix_ccache::layout::{self, RegionId, SetLayout, control, header};
use clustix_ccache::name::{Name, Shard};
use clustix_ccache::request::{Reply, Request};
use clustix_ccache::set::INODE;
use std::sync::Arc;
use std::time::Duration;

/// Interleaved runs.
const RUNS: u32 = 5;
/// Operations of each kind in a run.
const OPERATIONS: u32 = 40;
/// Whose primary is node 1; node 0 measures.
const SHARD: u16 = 1;
const PRIMARY: u8 = 1;
const ME: u8 = 0;
/// Objects of these have other numbers than those of other measurements.
const FIRST: u32 = 20_000;
/// A slot that no object ever gets: verbs act there without the engine.
const SLOT: u32 = 60_000;

/// Verbs on a slot, as the engine posts them.
struct Verbs {
    shard: u16,
    set: &'static SetLayout,
    data: Arc<Vec<u8>>,
}

impl Verbs {
    fn new(shard: u16) -> Verbs {
        let set = layout::set(INODE).unwrap_or_else(|| fail("no such set", &INODE));
        Verbs { shard, set, data: Arc::new(vec![7; BYTES]) }
    }
    fn at(&self, offset: u64) -> Address {
        Address { region: self.set.region(), offset }
    }
    fn word(&self) -> Address {
        self.at(self.set.header(Shard(self.shard), SLOT))
    }
    fn add(&self) -> Verb {
        Verb::FetchAdd { at: self.word(), add: 0 }
    }
    fn swap(&self) -> Verb {
        Verb::CompareSwap { at: self.word(), expect: 0, new: 0 }
    }
    fn header(&self) -> Verb {
        Verb::Read { at: self.word(), len: header::LEN as u32 }
    }
    fn halves(&self) -> Verb {
        let at = self.at(self.set.payload(Shard(self.shard), SLOT, 0));
        Verb::Read { at, len: 2 * self.set.stride as u32 }
    }
    /// A half: payload, then head.
    fn half(&self) -> Vec<Verb> {
        let write = |offset, len| Verb::Write {
            at: self.at(offset),
            data: self.data.clone(),
            from: 0,
            len,
        };
        let head = self.set.header(Shard(self.shard), SLOT) + header::head(0);
        let payload = self.set.payload(Shard(self.shard), SLOT, 0);
        vec![write(payload, BYTES as u32), write(head, header::HEAD_LEN as u32)]
    }
    /// The half on all replicas; at the primary after `first`.
    fn halves_everywhere(&self, first: Vec<Verb>) -> Round {
        let mut first = Some(first);
        (0..NODES)
            .map(|peer| {
                let mut chain =
                    if peer == PRIMARY { first.take().unwrap_or_default() } else { vec![] };
                chain.extend(self.half());
                (peer, chain)
            })
            .collect()
    }
    fn count_up() -> Verb {
        // Nobody's: adds nothing.
        let at = Address { region: RegionId::Control, offset: control::COUNTERS };
        Verb::FetchAdd { at, add: 0 }
    }
    /// The counters of the two others, alone.
    fn counters() -> Round {
        (1..NODES).map(|peer| (peer, vec![Verbs::count_up()])).collect()
    }
}

/// A kind of operation: what is printed, the bar, the verbs it needs.
struct Row {
    what: &'static str,
    bar: f64,
    needs: Vec<Round>,
    /// Medians of the runs: of the operation, of the verbs, µs.
    medians: Vec<(f64, f64)>,
}

fn rows() -> [Row; 6] {
    let (near, far) = (Verbs::new(SHARD), Verbs::new(FAR));
    let row = |what, bar, needs| Row { what, bar, needs, medians: Vec::new() };
    let mut told = near.halves_everywhere(vec![]);
    for (peer, chain) in &mut told {
        if *peer != ME {
            chain.push(Verbs::count_up());
        }
    }
    let take = || vec![(PRIMARY, vec![near.swap(), near.header()])];
    [
        row("miss on a replica", 1.15, vec![vec![(PRIMARY, vec![near.add(), near.header()])]]),
        row(
            "miss elsewhere",
            1.15,
            vec![vec![(PRIMARY, vec![far.add(), far.header(), far.halves()])]],
        ),
        row("put, kept", 1.25, vec![near.halves_everywhere(vec![near.add()])]),
        row("put, not owned, word known", 1.25, vec![take(), near.halves_everywhere(vec![])]),
        row(
            "put, kept, two sharers",
            1.25,
            vec![near.halves_everywhere(vec![near.add()]), Verbs::counters()],
        ),
        row("put, not owned, two sharers", 1.25, vec![take(), take(), told]),
    ]
}

impl Row {
    /// One run: operation and verbs in turn.
    fn run(&mut self, shell: &mut Shell, names: impl Iterator<Item = Name>, work: Work) {
        let (mut ours, mut raw) = (Vec::<Duration>::new(), Vec::new());
        for name in names {
            let request = match work {
                Work::Put(generation) => write(name, generation),
                Work::Get(_) => Request::Get { name },
            };
            let (reply, took) = shell.one(request);
            if !matches!(reply, Ok(Reply::Done | Reply::Object(..))) {
                fail("an operation fails", &format_args!("{reply:?}"));
            }
            // The end of a put is on its way when it is answered.
            shell.quiet();
            ours.push(took);
            raw.push(shell.raw(&self.needs));
        }
        self.medians.push((median(ours), median(raw)));
    }

    fn print(&self) {
        let middle = |f: fn(&(f64, f64)) -> f64| {
            let mut all: Vec<f64> = self.medians.iter().map(f).collect();
            all.sort_by(f64::total_cmp);
            all.get(all.len() / 2).copied().unwrap_or(0.0)
        };
        let (cost, raw) = (middle(|m| m.0), middle(|m| m.1));
        let ratio = cost / raw;
        let met = if ratio <= self.bar { "met" } else { "missed" };
        println!("{:30} {cost:8.0} {raw:8.0} {ratio:6.2} {:6.2} {met}", self.what, self.bar);
    }
}

/// Node 0 measures; the others make objects, share them, and put them so that the next get misses.
pub(super) fn run(shell: &mut Shell, meeting: &mut Meeting) {
    let me = shell.slot;
    let (measures, is_primary) = (me == ME, me == PRIMARY);
    let names = |kind: u32, run: u32| {
        (0..OPERATIONS).map(move |i| object(SHARD, FIRST + 1_000 * kind + OPERATIONS * run + i))
    };
    let owned = |run| names(0, run);
    let shared = |run| names(1, run);
    let read = || names(2, 0);
    let far = || (0..OPERATIONS).map(|i| object(FAR, FIRST + i));
    let mut rows = rows();
    // Made by their primary, put once by who measures: its next put knows the word, and keeps it.
    if is_primary {
        let made = (0..RUNS).flat_map(|r| owned(r).chain(shared(r)));
        all(shell, made, Work::Put(1));
        all(shell, read().chain(far()), Work::Put(1));
    }
    meeting.wait(shell);
    if measures {
        let written = (0..RUNS).flat_map(|r| owned(r).chain(shared(r)));
        all(shell, written, Work::Put(2));
        all(shell, read().chain(far()), Work::Get(1));
        for row in &rows {
            shell.raw(&row.needs);
        }
    }
    meeting.wait(shell);
    for r in 0..RUNS {
        if is_primary {
            all(shell, read().chain(far()), Work::Put(2 + u64::from(r)));
        }
        meeting.wait(shell);
        if measures {
            rows[0].run(shell, read(), Work::Get(0));
            rows[1].run(shell, far(), Work::Get(0));
            rows[3].run(shell, owned(r), Work::Put(3));
            rows[2].run(shell, owned(r), Work::Put(4));
        }
        meeting.wait(shell);
        if !measures {
            all(shell, owned(r), Work::Get(4));
            all(shell, shared(r), Work::Get(2));
        }
        meeting.wait(shell);
        if measures {
            rows[4].run(shell, owned(r), Work::Put(5));
            rows[5].run(shell, shared(r), Work::Put(3));
        }
    }
    if measures {
        println!("medians of {RUNS} runs of {OPERATIONS}, operations and verbs in turn, {BYTES} B");
        println!("{:30} {:>8} {:>8} {:>6} {:>6}  µs", "", "cost", "verbs", "ratio", "bar");
        rows.iter().for_each(Row::print);
    }
    meeting.wait(shell);
}
