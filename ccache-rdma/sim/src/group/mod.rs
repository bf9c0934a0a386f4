//! The variant of the word for more than 16 nodes, 128 here (docs/protocol.md, "Beyond 16 nodes"): its counts are those
//! of *groups* of eight, registrations are compare-and-swaps that stop at a full count, a writer tells every
//! member of the groups that are counted, and who of a group holds the word stands beside it.
//!
//! A model of gets and puts only, without deaths: small nodes ([`node`]) whose verbs land in any order across
//! queue pairs, each in one step. The word is the product's ([`Word`]), with groups in place of nodes.
//!
//! [`Word`]: clustix_ccache::word::Word

pub mod node;

use crate::history::{self, Record};
use crate::random::Random;
use node::{Action, Node, Outcome, Verb};
use std::collections::{BTreeMap, VecDeque};

pub use crate::history::Act;

/// Nodes.
pub const NODES: u8 = 128;
/// Nodes of a group: as many groups as a word has counts.
pub const GROUP: u8 = 8;
/// Copies of an object.
pub const REPLICAS: u8 = 3;
/// Objects.
pub const OBJECTS: usize = 3;

/// A rule that the nodes do not keep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mistake {
    /// B2: a full count is added to, which carries into the next group's.
    Overflow,
    /// B2: registered, and accepted, while W = 1.
    RegisterWhileWriting,
    /// B3: the first of a group is told, not all.
    OneOfTheGroup,
}

/// The group of a node.
pub const fn group_of(node: u8) -> u8 {
    node / GROUP
}

/// The primary of an object.
pub const fn primary(object: usize) -> u8 {
    (object as u8 * 37) % NODES
}

/// All that have a copy.
pub fn replicas(object: usize) -> impl Iterator<Item = u8> {
    (0..REPLICAS).map(move |k| (primary(object) + k * 11) % NODES)
}

/// A node's memory but its counters.
#[derive(Clone, Copy, Default)]
struct Memory {
    word: [u64; OBJECTS],
    index: [u8; OBJECTS],
    halves: [[(u64, u64); 2]; OBJECTS],
}

struct Chain {
    object: usize,
    verbs: VecDeque<Verb>,
    outcomes: Vec<Outcome>,
    waits: bool,
}

/// What was sent to other nodes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Sent {
    /// Round trips before the answer.
    pub trips: u64,
    /// Verbs.
    pub verbs: u64,
    /// Their bytes, objects of 256 B: words of 8 B twice for an atomic, headers of 128 B with both halves.
    pub bytes: u64,
}

/// All nodes and what is between them.
pub struct World {
    nodes: Vec<Node>,
    memory: Vec<Memory>,
    /// By poster and target.
    queues: BTreeMap<(u8, u8), VecDeque<Chain>>,
    /// Completions and asks on their way: to whom.
    arriving: Vec<(u8, Arriving)>,
    random: Random,
    clock: u64,
    asked: BTreeMap<u8, (usize, Option<u64>, u64)>,
    history: Vec<Vec<Record>>,
    sent: Sent,
}

enum Arriving {
    Outcomes(Vec<Outcome>),
    Asked(usize),
}

impl World {
    /// All objects have version 0 and value 0.
    pub fn new(seed: u64, mistake: Option<Mistake>) -> World {
        World {
            nodes: (0..NODES).map(|n| Node::new(n, mistake)).collect(),
            memory: vec![Memory::default(); usize::from(NODES)],
            queues: BTreeMap::new(),
            arriving: Vec::new(),
            random: Random(seed),
            clock: 0,
            asked: BTreeMap::new(),
            history: vec![Vec::new(); OBJECTS],
            sent: Sent::default(),
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn carry_out(&mut self, me: u8, actions: Vec<Action>) {
        if actions.iter().any(|a| matches!(a, Action::Post { waits: true, .. })) {
            self.sent.trips += 1;
        }
        for action in actions {
            match action {
                Action::Post { to, object, chain, waits } => {
                    if to != me {
                        self.sent.verbs += chain.len() as u64;
                        self.sent.bytes += chain.iter().map(bytes).sum::<u64>();
                    }
                    let (verbs, outcomes) = (chain.into(), Vec::new());
                    let chain = Chain { object, verbs, outcomes, waits };
                    self.queues.entry((me, to)).or_default().push_back(chain);
                }
                Action::Ask { whom, object } => {
                    self.arriving.push((whom, Arriving::Asked(object)));
                }
                Action::Reply(act) => {
                    let end = self.tick();
                    if let Some((object, _, begin)) = self.asked.remove(&me) {
                        self.history[object].push(Record { act, begin, end: Some(end) });
                    }
                }
            }
        }
    }

    /// A node reads an object, or writes a value.
    pub fn ask(&mut self, node: u8, object: usize, value: Option<u64>) {
        let begin = self.tick();
        self.asked.insert(node, (object, value, begin));
        let mut actions = Vec::new();
        self.nodes[usize::from(node)].start(object, value, &mut actions);
        self.carry_out(node, actions);
    }

    fn act(&mut self, to: u8, object: usize, verb: Verb) -> Outcome {
        let m = &mut self.memory[usize::from(to)];
        match verb {
            Verb::Read => Outcome::Word(m.word[object]),
            Verb::Swap { expect, new } => {
                let was = m.word[object];
                if was == expect {
                    m.word[object] = new;
                }
                Outcome::Word(was)
            }
            Verb::Add(add) => {
                let was = m.word[object];
                m.word[object] = was.wrapping_add(add);
                Outcome::Word(was)
            }
            Verb::Halves => Outcome::Halves(m.halves[object]),
            Verb::Half { version, value } => {
                m.halves[object][version as usize & 1] = (version, value);
                Outcome::Done
            }
            Verb::Index => Outcome::Index(m.index[object]),
            Verb::SetIndex(index) => {
                m.index[object] = index;
                Outcome::Done
            }
            Verb::Bump => {
                self.nodes[usize::from(to)].counters[object] += 1;
                Outcome::Done
            }
        }
    }

    /// One thing that can happen next happens; `false`: nothing can.
    pub fn step(&mut self) -> bool {
        let polling: Vec<u8> = (0..NODES).filter(|n| self.nodes[usize::from(*n)].polls()).collect();
        let (q, a) = (self.queues.len(), self.arriving.len());
        // Polls are rarer than what they wait for.
        let polls = polling.len().div_ceil(4);
        if q + a + polls == 0 {
            return false;
        }
        let pick = self.random.below(q + a + polls);
        let mut actions = Vec::new();
        if let Some(key) = self.queues.keys().nth(pick).copied().filter(|_| pick < q) {
            let (me, to) = key;
            let (object, verb) = {
                let chain = self.queues.get_mut(&key).and_then(VecDeque::front_mut);
                let Some(chain) = chain else { return true };
                (chain.object, chain.verbs.pop_front())
            };
            let outcome = verb.map(|v| self.act(to, object, v));
            let Some(queue) = self.queues.get_mut(&key) else { return true };
            if let Some(chain) = queue.front_mut() {
                chain.outcomes.extend(outcome);
                if chain.verbs.is_empty() {
                    if chain.waits {
                        let outcomes = std::mem::take(&mut chain.outcomes);
                        self.arriving.push((me, Arriving::Outcomes(outcomes)));
                    }
                    queue.pop_front();
                }
            }
            if queue.is_empty() {
                self.queues.remove(&key);
            }
            return true;
        }
        let node = if pick < q + a {
            let (to, what) = self.arriving.swap_remove(pick - q);
            let n = &mut self.nodes[usize::from(to)];
            match what {
                Arriving::Outcomes(outcomes) => n.completed(&outcomes, &mut actions),
                Arriving::Asked(object) => n.asked(object, &mut actions),
            }
            to
        } else {
            let node = polling[self.random.below(polling.len())];
            self.nodes[usize::from(node)].poll(&mut actions);
            node
        };
        self.carry_out(node, actions);
        true
    }

    /// What one operation sends when nothing else is under way.
    pub fn count(&mut self, node: u8, object: usize, value: Option<u64>) -> Sent {
        self.sent = Sent::default();
        self.ask(node, object, value);
        let mut trips = None;
        loop {
            if trips.is_none() && !self.nodes[usize::from(node)].busy() {
                trips = Some(self.sent.trips);
            }
            if !self.step() {
                return Sent { trips: trips.unwrap_or(0), ..self.sent };
            }
        }
    }
}

fn bytes(verb: &Verb) -> u64 {
    match verb {
        Verb::Read | Verb::Index | Verb::SetIndex(_) => 8,
        Verb::Swap { .. } | Verb::Add(_) | Verb::Bump => 16,
        Verb::Halves => 128 + 2 * 256,
        Verb::Half { .. } => 48 + 256,
    }
}

/// What a life came to.
#[derive(Clone, Copy, Default, Debug)]
pub struct Report {
    /// Operations.
    pub operations: u64,
    /// Reads answered from the own copy.
    pub hits: u64,
    /// Registrations that another one was quicker than.
    pub lost_swaps: u64,
}

/// A life of all nodes, which read and write a few objects at once; then every object's history is explained.
///
/// # Errors
/// The history of an object that no order explains, or nodes that never end.
pub fn live(seed: u64, operations: u64, mistake: Option<Mistake>) -> Result<Report, String> {
    let mut w = World::new(seed, mistake);
    // Few write: a write of a widely shared object tells all nodes.
    let (busy, writes) = (4 + w.random.below(40), 3 + w.random.below(12));
    let (mut started, mut steps) = (0, 0u64);
    loop {
        if started < operations && w.asked.len() < busy {
            let node = w.random.below(usize::from(NODES)) as u8;
            if !w.nodes[usize::from(node)].busy() {
                started += 1;
                let object = w.random.below(OBJECTS);
                let value = w.random.chance(writes).then_some(started);
                w.ask(node, object, value);
                continue;
            }
        }
        steps += 1;
        if !w.step() && started == operations {
            break;
        }
        if steps > 4_000 * operations {
            return Err(format!("operations that never end: {:?}", w.asked));
        }
    }
    for (object, records) in w.history.iter().enumerate() {
        history::linearizable(0, records).map_err(|e| format!("object {object}: {e}"))?;
    }
    let sum = |of: fn(&Node) -> u64| w.nodes.iter().map(of).sum();
    Ok(Report { operations, hits: sum(|n| n.hits), lost_swaps: sum(|n| n.lost_swaps) })
}

/// What operations send, nothing else being under way: what, and how much.
pub fn costs() -> Vec<(String, Sent)> {
    let mut w = World::new(0, None);
    let mut rows = Vec::new();
    // Neither a replica nor in a group with one.
    let far = 127;
    let mut row = |what: &str, sent: Sent| rows.push((what.to_owned(), sent));
    row("miss", w.count(far, 0, None));
    row("hit", w.count(far, 0, None));
    row("put, not owned, no word known", w.count(far, 1, Some(2)));
    w.count(far, 1, Some(3));
    row("put, kept", w.count(far, 1, Some(4)));
    w.count(20, 1, None);
    row("put, kept, one sharer", w.count(far, 1, Some(5)));
    for node in 24..32 {
        w.count(node, 1, None);
    }
    row("put, kept, a group of sharers", w.count(far, 1, Some(6)));
    for node in 0..NODES {
        w.count(node, 1, None);
    }
    row("put, kept, all others share it", w.count(far, 1, Some(7)));
    rows
}
