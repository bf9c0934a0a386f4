//! One node of the group variant, as a step function.

use super::{Act, GROUP, Mistake, NODES, OBJECTS, REPLICAS, group_of, primary, replicas};
use clustix_ccache::word::Word;

/// A verb on one object of a node's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    /// The word.
    Read,
    /// The word, if it is this.
    Swap {
        /// What it has to be.
        expect: u64,
        /// What it becomes.
        new: u64,
    },
    /// The word, by so much.
    Add(u64),
    /// Both halves.
    Halves,
    /// The half of a version.
    Half {
        /// Which.
        version: u64,
        /// What.
        value: u64,
    },
    /// Who of the group holds the word.
    Index,
    /// The same, from now on.
    SetIndex(u8),
    /// The validity counter, by one.
    Bump,
}

/// What a verb showed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The word before.
    Word(u64),
    /// Versions and values.
    Halves([(u64, u64); 2]),
    /// A number within the group.
    Index(u8),
    /// Nothing.
    Done,
}

/// What a node asks for.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// A chain to a node; `waits`: its outcome is wanted.
    Post {
        /// To whom, itself too.
        to: u8,
        /// The object.
        object: usize,
        /// The verbs.
        chain: Vec<Verb>,
        /// Whether the operation waits for it.
        waits: bool,
    },
    /// "Give back" of an object.
    Ask {
        /// Whom.
        whom: u8,
        /// What.
        object: usize,
    },
    /// The operation is done: what it did.
    Reply(Act),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Nothing is under way: look again.
    Poll,
    /// A read's chain; whether it registers.
    Reading(bool),
    /// The word is looked at.
    Looking,
    /// The word is taken.
    Taking,
    /// Who holds it is looked up.
    Finding(u8),
    /// A kept word's begin and halves.
    Begun,
    /// Halves and counters.
    Posted,
}

/// An operation under way.
#[derive(Clone, Debug)]
struct Op {
    object: usize,
    /// What is written; `None`: a read.
    value: Option<u64>,
    stage: Stage,
    c0: u64,
    /// Chains waited for.
    pending: usize,
    outcomes: Vec<Outcome>,
    taken: Word,
    version: u64,
    tries: u8,
}

/// What a node knows of an object.
#[derive(Clone, Copy, Default, Debug)]
struct Known {
    /// A copy: value and counter.
    copy: Option<(u64, u64)>,
    /// The word is held: its version.
    kept: Option<u64>,
    wanted: bool,
    guess: Option<Word>,
    written: u8,
}

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    me: u8,
    op: Option<Op>,
    known: [Known; OBJECTS],
    /// Its validity counters, which others add to.
    pub counters: [u64; OBJECTS],
    mistake: Option<Mistake>,
    /// Reads answered from the own copy.
    pub hits: u64,
    /// Registrations that another one was quicker than.
    pub lost_swaps: u64,
}

/// Registrations tried before a read goes without a copy.
const TRIES: u8 = 3;

impl Node {
    /// Node `me`, which knows nothing yet.
    pub fn new(me: u8, mistake: Option<Mistake>) -> Node {
        Node {
            me,
            op: None,
            known: Default::default(),
            counters: [0; OBJECTS],
            mistake,
            hits: 0,
            lost_swaps: 0,
        }
    }

    /// Whether an operation is under way.
    pub fn busy(&self) -> bool {
        self.op.is_some()
    }

    /// Whether it waits for nothing but for time to pass.
    pub fn polls(&self) -> bool {
        self.op.as_ref().is_some_and(|op| op.stage == Stage::Poll)
    }

    /// Starts a read, or a write of `value`.
    pub fn start(&mut self, object: usize, value: Option<u64>, out: &mut Vec<Action>) {
        let known = &mut self.known[object];
        let hit = known.copy.filter(|(_, c0)| known.kept.is_some() || *c0 == self.counters[object]);
        if let (None, Some((seen, _))) = (value, hit) {
            self.hits += 1;
            return out.push(Action::Reply(Act::Read(seen)));
        }
        let op = Op {
            object,
            value,
            stage: Stage::Poll,
            c0: 0,
            pending: 0,
            outcomes: Vec::new(),
            taken: Word(0),
            version: 0,
            tries: 0,
        };
        self.op = Some(op);
        self.poll(out);
    }

    fn post(&mut self, to: u8, chain: Vec<Verb>, out: &mut Vec<Action>) {
        let Some(op) = &mut self.op else { return };
        op.pending += 1;
        out.push(Action::Post { to, object: op.object, chain, waits: true });
    }

    /// A look, or the first.
    pub fn poll(&mut self, out: &mut Vec<Action>) {
        let Some(object) = self.op.as_ref().map(|op| op.object) else { return };
        let known = self.known[object];
        let register = known.guess.filter(|word| self.may_register(*word));
        let Some(op) = &mut self.op else { return };
        let at = primary(object);
        if let (Some(value), Some(version)) = (op.value, known.kept) {
            (op.stage, op.version) = (Stage::Begun, version + 1);
            for to in replicas(object) {
                let half = Verb::Half { version: version + 1, value };
                let begin = (to == at).then_some(Verb::Add(Word::BEGIN));
                self.post(to, begin.into_iter().chain([half]).collect(), out);
            }
            return;
        }
        // B1: before anything is posted.
        op.c0 = self.counters[object];
        let group = group_of(self.me);
        match (op.value, known.guess) {
            (Some(_), Some(word)) if word.is_idle() => {
                op.stage = Stage::Taking;
                let swap = Verb::Swap { expect: word.0, new: word.taken(group).0 };
                self.post(at, vec![swap, Verb::Halves], out);
            }
            (Some(_), _) => {
                op.stage = Stage::Looking;
                self.post(at, vec![Verb::Read], out);
            }
            (None, _) => {
                op.stage = Stage::Reading(register.is_some());
                let first = match register {
                    Some(word) => {
                        Verb::Swap { expect: word.0, new: word.0.wrapping_add(Word::share(group)) }
                    }
                    None => Verb::Read,
                };
                self.post(at, vec![first, Verb::Halves], out);
            }
        }
    }

    /// B2: with W = 0, and while the count is not full.
    fn may_register(&self, word: Word) -> bool {
        let full = word.count(group_of(self.me)) == 3 && self.mistake != Some(Mistake::Overflow);
        let writing = word.writing() && self.mistake != Some(Mistake::RegisterWhileWriting);
        !full && !writing
    }

    /// A chain that was waited for has ended.
    pub fn completed(&mut self, outcomes: &[Outcome], out: &mut Vec<Action>) {
        let Some(op) = &mut self.op else { return };
        op.pending -= 1;
        op.outcomes.extend_from_slice(outcomes);
        if op.pending > 0 {
            return;
        }
        let outcomes = std::mem::take(&mut op.outcomes);
        let word = outcomes.iter().find_map(|o| match o {
            Outcome::Word(w) => Some(Word(*w)),
            _ => None,
        });
        let halves = outcomes.iter().find_map(|o| match o {
            Outcome::Halves(h) => Some(*h),
            _ => None,
        });
        match (op.stage, word, halves) {
            (Stage::Reading(registers), Some(word), Some(halves)) => {
                self.read(registers, word, halves, out);
            }
            (Stage::Looking, Some(word), _) => self.looked(word, out),
            (Stage::Taking, Some(word), Some(halves)) => self.took(word, halves, out),
            (Stage::Finding(group), ..) => {
                op.stage = Stage::Poll;
                if let Some(Outcome::Index(index)) = outcomes.first() {
                    let (whom, object) = (group * GROUP + index, op.object);
                    out.push(Action::Ask { whom, object });
                }
            }
            (Stage::Begun, Some(word), _) => {
                op.taken = Word(word.0.wrapping_add(Word::BEGIN));
                op.stage = Stage::Posted;
                self.tell(out);
                if self.op.as_ref().is_some_and(|op| op.pending == 0) {
                    self.commit(out);
                }
            }
            (Stage::Posted, ..) => self.commit(out),
            (stage, ..) => unreachable!("{stage:?}: {outcomes:?}"),
        }
    }

    fn read(
        &mut self,
        registers: bool,
        word: Word,
        halves: [(u64, u64); 2],
        out: &mut Vec<Action>,
    ) {
        let (Some(op), me) = (&mut self.op, group_of(self.me)) else { return };
        let known = &mut self.known[op.object];
        let did = registers && known.guess == Some(word);
        known.guess = (!did).then_some(word);
        op.tries += u8::from(registers && !did);
        self.lost_swaps += u64::from(registers && !did);
        let (version, value) = halves[word.version_low() as usize & 1];
        let again = if self.mistake == Some(Mistake::RegisterWhileWriting) { did } else { false };
        if (word.writing() && !again) || !word.is_version(version) {
            op.stage = Stage::Poll;
            return;
        }
        // A count that is full says "some": whoever reads so is among them.
        let full = word.count(me) == 3 && self.mistake != Some(Mistake::Overflow);
        let counted = did || full;
        if !counted && op.tries < TRIES {
            op.stage = Stage::Poll;
            return self.poll(out);
        }
        if counted {
            known.copy = Some((value, op.c0));
        }
        self.op = None;
        out.push(Action::Reply(Act::Read(value)));
    }

    fn looked(&mut self, word: Word, out: &mut Vec<Action>) {
        let Some(op) = &mut self.op else { return };
        op.stage = Stage::Poll;
        self.known[op.object].guess = Some(word);
        match word.holder() {
            Some(group) if !word.writing() => {
                op.stage = Stage::Finding(group);
                let at = primary(op.object);
                self.post(at, vec![Verb::Index], out);
            }
            None => self.poll(out),
            Some(_) => {}
        }
    }

    fn took(&mut self, word: Word, halves: [(u64, u64); 2], out: &mut Vec<Action>) {
        let Some(op) = &mut self.op else { return };
        let known = &mut self.known[op.object];
        let did = known.guess == Some(word);
        known.guess = (!did).then_some(word);
        if !did {
            op.stage = Stage::Poll;
            return self.looked(word, out);
        }
        let (version, _) = halves[word.version_low() as usize & 1];
        (op.version, op.taken, op.stage) =
            (version + 1, word.taken(group_of(self.me)), Stage::Posted);
        let (object, version) = (op.object, op.version);
        let Some(value) = op.value else { return };
        for to in replicas(object) {
            let index = (to == primary(object)).then_some(Verb::SetIndex(self.me % GROUP));
            let half = Verb::Half { version, value };
            self.post(to, index.into_iter().chain([half]).collect(), out);
        }
        self.tell(out);
    }

    /// B3: every member of every group that is counted.
    fn tell(&mut self, out: &mut Vec<Action>) {
        let Some(op) = &self.op else { return };
        let (taken, me) = (op.taken, self.me);
        let most = if self.mistake == Some(Mistake::OneOfTheGroup) { 1 } else { GROUP };
        for group in (0..NODES / GROUP).filter(|g| taken.count(*g) > 0) {
            for to in (group * GROUP..group * GROUP + most).filter(|to| *to != me) {
                self.post(to, vec![Verb::Bump], out);
            }
        }
    }

    fn commit(&mut self, out: &mut Vec<Action>) {
        let Some(op) = self.op.take() else { return };
        let Some(value) = op.value else { return };
        let known = &mut self.known[op.object];
        // B4: nobody registered since the word was taken, so that this end is exact.
        let counts = op.taken.counts();
        let keep = !known.wanted && known.written > 0;
        known.copy = Some((value, self.counters[op.object]));
        known.written = if std::mem::take(&mut known.wanted) { 0 } else { known.written + 1 };
        let group = group_of(self.me);
        let add = if keep {
            known.kept = Some(op.version);
            Word::end_kept(counts, 1)
        } else {
            known.kept = None;
            let add = Word::end(group, counts, 1, true);
            known.guess = Some(Word(op.taken.0.wrapping_add(add)));
            add
        };
        let object = op.object;
        let chain = vec![Verb::Add(add)];
        out.push(Action::Post { to: primary(object), object, chain, waits: false });
        out.push(Action::Reply(Act::Set(value)));
    }

    /// Another node wants an object.
    pub fn asked(&mut self, object: usize, out: &mut Vec<Action>) {
        let known = &mut self.known[object];
        if known.kept.is_none() {
            return;
        }
        if self.op.as_ref().is_some_and(|op| op.object == object && op.value.is_some()) {
            known.wanted = true;
            return;
        }
        // B5: without a count, for it may be full; so the copy goes.
        *known = Known::default();
        let chain = vec![Verb::Add(Word::drop_grab(group_of(self.me)))];
        out.push(Action::Post { to: primary(object), object, chain, waits: false });
    }
}

const _: () = assert!(REPLICAS <= 3 && NODES / GROUP == 16);
