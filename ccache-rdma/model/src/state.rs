//! The modelled cluster: nodes with their memory, verbs under way, views, and what is remembered of
//! the past to judge the present by.

use crate::history::{Call, History, Told};
use clustix_ccache::view::Slots;
use clustix_ccache::word::{VERSION_BITS, Word};

/// Node slots.
pub const NODES: usize = 3;
/// Objects.
pub const OBJECTS: usize = 2;
/// Views, the first included.
pub const VIEWS: usize = 5;
/// Versions of an object, the initial one included.
pub const VERSIONS: usize = 8;
/// Version 0 in the words: the low bits wrap with the second write.
const BASE: u64 = (1 << VERSION_BITS) - 3;

/// The full version that a model's small one stands for.
pub fn full(version: u8) -> u64 {
    BASE + u64::from(version)
}
/// The small version that a word speaks of.
pub fn version(word: Word) -> u8 {
    (word.version_low().wrapping_sub(BASE) & ((1 << VERSION_BITS) - 1)) as u8
}

/// One half of a slot: version 0 is nothing that is whole.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Half {
    /// Which write.
    pub version: u8,
    /// What it wrote: 0 is a tombstone.
    pub value: u8,
}

/// A published copy that a hit would return. A validity counter only matters as "has it moved since
/// c0 was read": a copy (and a read under way) holds that as a flag, a bump clears it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Entry {
    /// What is hit.
    pub half: Half,
    /// Valid whatever the counter says.
    pub kept: bool,
}

/// A transaction's redo record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Record {
    /// What it writes to each object, version 0: nothing.
    pub halves: [Half; OBJECTS],
}

/// A verb under way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verb {
    /// FETCH-ADD +1 on the own count; shows the word.
    Register(u8),
    /// READ of the word.
    Look(u8),
    /// READ of both halves.
    Halves(u8),
    /// CAS of the word as known to the same, held and in writing. It fails until the word is idle
    /// and then succeeds: tries in between change nothing.
    Take(u8),
    /// FETCH-ADD +W on an owned word; shows it.
    Begin(u8),
    /// WRITE of a half.
    Write(u8, Half),
    /// What of such a WRITE lands before its last bytes: the half of this version is not whole.
    Tear(u8, u8),
    /// The copier's WRITEs of a half, and of nothing over the other one (rule 32).
    Fill(u8, Half),
    /// The same, without the second.
    FillOne(u8, Half),
    /// FETCH-ADD on the validity counter.
    Bump(u8),
    /// WRITE of a redo record.
    Record(u8, Record),
    /// FETCH-ADD on the word, unwaited; in it are these sharer counts to be taken away.
    Add(u8, u64, u32),
}

impl Verb {
    /// Whether the copier posted it.
    pub fn fills(self) -> bool {
        matches!(self, Verb::Fill(..) | Verb::FillOne(..))
    }
    /// Whether the operation (or recovery) that posted it waits for it.
    pub fn is_waited(self) -> bool {
        !matches!(self, Verb::Add(..)) && !self.fills()
    }
}

/// A verb on its way; those of one queue pair are in order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Flight {
    /// From.
    pub src: u8,
    /// To.
    pub dst: u8,
    /// What.
    pub verb: Verb,
}

/// A read under way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Get {
    /// Which object.
    pub object: u8,
    /// The first chain, or a poll, is posted; else it waits for its next.
    pub reading: bool,
    /// The own counter has not moved since c0 was read.
    pub fresh: bool,
    /// This chain adds.
    pub added: bool,
    /// An earlier chain has added.
    pub registered: bool,
    /// The word, when its verb has completed.
    pub word: Option<Word>,
    /// The halves, when theirs has.
    pub halves: [Half; 2],
}

/// Where a write stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Stage {
    /// Nothing posted.
    Start,
    /// The verb for the word of this object is posted.
    Taking(u8),
    /// What was only read is read again.
    Checking,
    /// Everything for the one kept object is posted, but for the counters.
    KeptPosted,
    /// Halves or record and counters are posted.
    Posted,
    /// A transaction's halves are posted.
    Applied,
}

/// An object that is written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Item {
    /// The word as it stands since it is taken.
    pub taken: Option<Word>,
    /// The word was kept before.
    pub owned: bool,
    /// The new half.
    pub half: Half,
    /// Recovery has brought it to its end.
    pub settled: bool,
}

/// A write under way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Write {
    /// Where it stands.
    pub stage: Stage,
    /// The objects written.
    pub items: [Option<Item>; OBJECTS],
    /// Words are kept afterwards.
    pub keep: bool,
    /// The version of object 0 that was read, for [`crate::history::Call::Copy`].
    pub read: Option<Half>,
    /// The word of object 0 when it was read again.
    pub again: Option<Word>,
}

impl Write {
    /// Whether anything of it can stand: it is never abandoned from here on.
    pub fn is_posted(&self) -> bool {
        self.stage >= Stage::KeptPosted
    }
}

/// What a node's program does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    /// Nothing.
    Idle,
    /// A read.
    Get(Get),
    /// A write, or a transaction.
    Write(Write),
    /// It waits for what never lands.
    Stuck,
    /// It was refused, and asks nothing more.
    Over,
}

/// Where a node stands in a change of view (rules 13–17). In order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Phase {
    /// Frozen.
    Installed,
    /// It has revoked the gone.
    Revoked,
    /// It has drained, and said so.
    Confirmed,
    /// It looks at the record of this writer next.
    Replay(u8),
    /// That record goes to all others, for the sake of these of its objects.
    Spread(u8, [bool; OBJECTS]),
    /// Its halves go to all.
    Apply(u8),
    /// Through with records, and said so.
    Replayed,
    /// It looks at this object next.
    Resolve(u8),
    /// Its halves and bumps go out.
    Finish(u8),
    /// Through with words, and said so.
    Resolved,
    /// It serves.
    Settled,
}

/// What the copier of a primary does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Copier {
    /// It takes this object's word next; `OBJECTS`: there is nothing (left) to copy.
    Next(u8),
    /// The word is its own, the copy under way.
    Copying(u8),
}

/// A node: its CPU's state and its memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Node {
    /// Its CPU runs.
    pub up: bool,
    /// Its lease is valid.
    pub lease: bool,
    /// No node had this slot before it.
    pub first: bool,
    /// The view that it has installed.
    pub epoch: u8,
    /// The view in which it last settled; none yet, if it has come later.
    pub settled: Option<u8>,
    /// Where it stands in that.
    pub phase: Phase,
    /// Since it settled, by its account, then by all members': whose nodes are gone,
    pub gone: Slots,
    /// and which objects have another primary.
    pub affected: [bool; OBJECTS],
    /// Nodes that may not touch its memory any more.
    pub revoked: Slots,
    /// Words; those that count are the primary's.
    pub word: [Word; OBJECTS],
    /// Halves.
    pub half: [[Half; 2]; OBJECTS],
    /// Redo records by writer.
    pub record: [Option<Record>; NODES],
    /// Published copies that are valid but for the lease.
    pub copy: [Option<Entry>; OBJECTS],
    /// Words that it keeps, at this version.
    pub kept: [Option<u8>; OBJECTS],
    /// Upper bound of its own counts.
    pub ub: [u8; OBJECTS],
    /// Operations of its program that have begun.
    pub begun: u8,
    /// The one under way.
    pub op: Op,
    /// The copier, on a primary in a view with copies to fill.
    pub copier: Copier,
}

impl Node {
    /// The highest half that is whole.
    pub fn best(&self, object: u8) -> Half {
        let [a, b] = self.half[usize::from(object)];
        if a.version > b.version { a } else { b }
    }
}

/// A view.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct View {
    /// Members.
    pub members: Slots,
    /// Those of them that have a complete copy.
    pub complete: Slots,
    /// Those whose copy is being filled: they get every write.
    pub filling: Slots,
    /// Each object's primary.
    pub primary: [u8; OBJECTS],
    /// Each slot's incarnation.
    pub incarnation: [u8; NODES],
}

impl View {
    /// Every node that a write goes to.
    pub fn all(&self) -> Slots {
        self.complete.union(self.filling)
    }
}

/// What has gone wrong beyond repair, seen by the step that did it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Wrong {
    /// Two writes committed the same version.
    TwoCommits,
    /// A sharer count went above 3 or below 0.
    Carry,
    /// A word was taken, or made, whose version has no half.
    NoHalf,
}

/// Everything.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    /// The nodes.
    pub nodes: [Node; NODES],
    /// Verbs under way: sorted by queue pair, each in order.
    pub net: Vec<Flight>,
    /// Views decided so far; those after `epoch` are like it.
    pub views: [View; VIEWS],
    /// The latest.
    pub epoch: u8,
    /// Deaths and false evictions that may still happen.
    pub faults: u8,
    /// Nodes that may still come back.
    pub returns: u8,
    /// How often a live object's primary may still change.
    pub rehomes: u8,
    /// Counters that may still be moved for another object's sake.
    pub collisions: u8,
    /// By object: the highest version acknowledged to its writer.
    pub acked: [u8; OBJECTS],
    /// By object: the highest version acknowledged, or returned to a reader.
    pub seen: [u8; OBJECTS],
    /// By object and version: the node (+ 1) whose write committed it.
    pub committed: [[u8; VERSIONS]; OBJECTS],
    /// What went wrong.
    pub wrong: Option<Wrong>,
    /// What programs asked and were told.
    pub history: History,
}

impl State {
    /// A node.
    pub fn node(&self, node: u8) -> &Node {
        &self.nodes[usize::from(node)]
    }
    /// A node, to change it.
    pub fn node_mut(&mut self, node: u8) -> &mut Node {
        &mut self.nodes[usize::from(node)]
    }
    /// The view that a node has installed.
    pub fn view_of(&self, node: u8) -> &View {
        &self.views[usize::from(self.node(node).epoch)]
    }
    /// The latest view.
    pub fn view(&self) -> &View {
        &self.views[usize::from(self.epoch)]
    }
    /// Whom a node takes for an object's primary.
    pub fn primary(&self, node: u8, object: u8) -> u8 {
        self.view_of(node).primary[usize::from(object)]
    }
    /// Whether `dst` lets `src` touch its memory.
    pub fn admits(&self, dst: u8, src: u8) -> bool {
        !self.node(dst).revoked.contains(src) && !self.node(src).revoked.contains(dst)
    }
    /// Whether nothing that a node waits for is under way.
    pub fn is_answered(&self, node: u8) -> bool {
        self.waited(node) == 0
    }
    /// Verbs under way that a node waits for.
    pub fn waited(&self, node: u8) -> usize {
        self.net.iter().filter(|f| f.src == node && f.verb.is_waited()).count()
    }
    /// Posts a verb behind those of the same queue pair. One to or from a node that is shut out
    /// never lands: who waits for it waits for ever.
    pub fn post(&mut self, src: u8, dst: u8, verb: Verb) {
        if !self.admits(dst, src) {
            if verb.is_waited() {
                self.node_mut(src).op = Op::Stuck;
            }
            return;
        }
        let at = self.net.partition_point(|f| (f.src, f.dst) <= (src, dst));
        self.net.insert(at, Flight { src, dst, verb });
    }
    /// A program's thread in the history: an incarnation's calls are not the next one's.
    fn thread(&self, node: u8) -> u8 {
        let incarnation = self.views.iter().map(|v| v.incarnation[usize::from(node)]).max();
        node + NODES as u8 * incarnation.unwrap_or(0)
    }
    /// A node's program asks.
    pub fn invoke(&mut self, node: u8, call: Call) {
        self.history.invoke(self.thread(node), call);
    }
    /// A node's program is told.
    pub fn told(&mut self, node: u8, told: Told) {
        self.history.told(self.thread(node), told);
    }
    /// Notes what went wrong first.
    pub fn fails(&mut self, wrong: Wrong) {
        self.wrong.get_or_insert(wrong);
    }
}
