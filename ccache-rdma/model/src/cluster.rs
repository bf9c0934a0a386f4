//! The model: which steps are possible in a state, and what each does.

use crate::bugs::Bug;
use crate::counts::Counts;
use crate::history::{Call, History, Store};
use crate::properties;
use crate::state::{
    Copier, Entry, Flight, Half, NODES, Node, OBJECTS, Op, Phase, State, VERSIONS, VIEWS, View,
};
use crate::workloads::{Task, Workload};
use clustix_ccache::view::Slots;
use clustix_ccache::word::Word;
use stateright::{Model, Property};

/// What the objects are at first.
const INITIAL: [u8; OBJECTS] = [100, 101];

/// A workload, and the known bug that is put back for it.
#[derive(Clone, Copy, Debug)]
pub struct Cluster {
    /// Who does what.
    pub workload: Workload,
    /// What is broken.
    pub bug: Option<Bug>,
}

/// One step of one part.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// A verb lands.
    Land(Flight),
    /// A node's program asks, or its operation goes on.
    Go(u8),
    /// A node gives a kept word back.
    GiveBack(u8, u8),
    /// Another object's write moves a node's counter.
    Collide(u8, u8),
    /// A node's CPU stops for ever.
    Crash(u8),
    /// A majority decides on a view without it, dead or not.
    Evict(u8),
    /// The lease of an evicted node is over.
    LeaseEnds(u8),
    /// A member hears of the next view.
    Install(u8),
    /// A member's next step in changing to it.
    Recover(u8),
    /// A view gives an object another primary, and nothing else.
    Rehome(u8, u8),
    /// A slot's next incarnation joins.
    Join(u8),
    /// A primary's copier goes on.
    Copy(u8),
    /// A view says that what the copiers have filled is complete.
    Complete,
}

impl Step {
    /// In words, with what it led to.
    pub fn told(&self, after: &State) -> String {
        let name = |d: u8| format!("node {d}");
        match *self {
            Step::Land(Flight { src, dst, verb }) => {
                format!("{src} → {dst}: {verb:?} lands; words there {:?}", after.node(dst).word)
            }
            Step::Go(d) => match after.node(d).op {
                Op::Idle => format!("{} has its answer; copies {:?}", name(d), after.node(d).copy),
                Op::Get(g) if g.reading => format!("{} reads object {}", name(d), g.object),
                Op::Get(g) => format!("{} may not have object {} yet", name(d), g.object),
                Op::Write(w) => format!("{} writes: {:?}", name(d), w.stage),
                Op::Stuck => format!("{} waits for what never lands", name(d)),
                Op::Over => format!("{} is refused", name(d)),
            },
            Step::GiveBack(d, o) => format!("{} gives back the word of object {o}", name(d)),
            Step::Collide(d, o) => format!("{}'s counter of object {o} moves", name(d)),
            Step::Crash(d) => format!("{} dies", name(d)),
            Step::Evict(d) => format!("view {}: without {}", after.epoch, name(d)),
            Step::LeaseEnds(d) => format!("{}'s lease is over", name(d)),
            Step::Install(d) => format!("{} hears of view {}", name(d), after.node(d).epoch),
            Step::Recover(d) => format!("{} in view change: {:?}", name(d), after.node(d).phase),
            Step::Rehome(o, d) => format!("view {}: object {o} moves to {}", after.epoch, name(d)),
            Step::Join(d) => format!("view {}: with a new {}", after.epoch, name(d)),
            Step::Copy(d) => format!("{}'s copier: {:?}", name(d), after.node(d).copier),
            Step::Complete => format!("view {}: all copies complete", after.epoch),
        }
    }
}

impl Cluster {
    /// Whether this bug has been put back.
    pub fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }
    /// The layout of sharer counts.
    pub fn counts(&self) -> Counts {
        if self.has(Bug::SingleBits) { Counts::OneBit } else { Counts::TwoBits }
    }
    /// Whether a node may commit.
    pub fn serves(&self, s: &State, node: u8) -> bool {
        s.node(node).lease || self.has(Bug::LeaseOnHitsOnly)
    }
    /// What a node's program does, all of it.
    pub fn tasks(&self, n: &Node, node: u8) -> &'static [Task] {
        if n.first { self.workload.tasks[usize::from(node)] } else { self.workload.back }
    }

    /// A program asks, or an operation goes on.
    fn go(&self, s: &mut State, node: u8) -> bool {
        let n = *s.node(node);
        let frozen = n.phase != Phase::Settled;
        match n.op {
            Op::Idle => {
                let Some(task) = self.tasks(&n, node).get(usize::from(n.begun)) else {
                    return false;
                };
                let began = match *task {
                    Task::Get(o) => self.begin_get(s, node, o, frozen),
                    _ if frozen => false,
                    Task::Put(o) => self.put(s, node, o, false),
                    Task::Keep(o) => self.put(s, node, o, true),
                    Task::Remove(o) => self.begin_write(s, node, Call::Put(o, 0), 0, false),
                    Task::Both | Task::KeepBoth => {
                        let value = s.value(node);
                        let keep = *task == Task::KeepBoth;
                        self.begin_write(s, node, Call::Both(value), value, keep)
                    }
                    // Nothing was read: nothing is written.
                    Task::CopyFirst => {
                        self.begin_write(s, node, Call::Copy, 0, false);
                        true
                    }
                };
                s.node_mut(node).begun += u8::from(began);
                began
            }
            Op::Get(g) if !frozen => self.step_get(s, node, g),
            Op::Write(w) if !frozen => self.step_write(s, node, w),
            _ => false,
        }
    }

    fn put(&self, s: &mut State, node: u8, o: u8, keep: bool) -> bool {
        let value = s.value(node);
        self.begin_write(s, node, Call::Put(o, value), value, keep)
    }

    fn decide(&self, s: &mut State, view: View) {
        s.epoch += 1;
        for v in &mut s.views[usize::from(s.epoch)..] {
            *v = view;
        }
    }

    fn may_evict(&self, s: &State, d: u8) -> bool {
        let view = s.view();
        let falsely = s.node(d).up;
        view.members.contains(d)
            && usize::from(s.epoch) + 1 < VIEWS
            && !view.complete.without(d).is_empty()
            && (!falsely || (s.faults > 0 && self.workload.suspects.contains(d)))
    }

    fn evict(&self, s: &mut State, d: u8) {
        let mut view = *s.view();
        view.members = view.members.without(d);
        view.complete = view.complete.without(d);
        view.filling = view.filling.without(d);
        for primary in view.primary.iter_mut().filter(|p| **p == d) {
            *primary = view.complete.iter().next().unwrap_or(d);
        }
        s.faults -= u8::from(s.node(d).up);
        self.decide(s, view);
    }

    fn crash(&self, s: &mut State, d: u8) {
        s.faults -= 1;
        let n = s.node_mut(d);
        (n.up, n.lease, n.op) = (false, false, Op::Idle);
        // Nobody reads what a dead node knew; its memory may still be written, to no effect.
        (n.copy, n.kept, n.ub) = ([None; OBJECTS], [None; OBJECTS], [0; OBJECTS]);
        s.net.retain(|f| f.src != d || f.dst != d);
    }

    /// A slot's next incarnation comes when nothing of the one before can land any more.
    fn may_join(&self, s: &State, d: u8) -> bool {
        let view = s.view();
        let out = |m: u8| s.node(m).revoked.contains(d);
        s.returns > 0
            && !view.members.contains(d)
            && !s.node(d).lease
            && usize::from(s.epoch) + 1 < VIEWS
            && view.members.iter().all(out)
    }

    fn join(&self, s: &mut State, d: u8) {
        s.returns -= 1;
        let mut view = *s.view();
        view.members = view.members.with(d);
        view.filling = view.filling.with(d);
        view.incarnation[usize::from(d)] += 1;
        self.decide(s, view);
        // What the slot's last node was sent fails with it.
        for src in 0..NODES as u8 {
            if s.net.iter().any(|f| f.dst == d && f.src == src && f.verb.is_waited()) {
                s.node_mut(src).op = Op::Stuck;
            }
        }
        s.net.retain(|f| f.src != d && f.dst != d);
        *s.node_mut(d) = Node {
            first: false,
            revoked: (0..NODES as u8).filter(|n| !view.members.contains(*n)).collect(),
            epoch: s.epoch,
            settled: None,
            phase: Phase::Installed,
            ..self.node(false)
        };
        let n = *s.node(d);
        s.node_mut(d).ub = [self.unknown(&n); OBJECTS];
    }

    fn may_complete(&self, s: &State) -> bool {
        let view = s.view();
        let through = |o: u8| {
            let p = s.node(view.primary[usize::from(o)]);
            let passed = matches!(p.copier, Copier::Next(next) if next > o);
            p.epoch == s.epoch && p.phase == Phase::Settled && passed
        };
        !view.filling.is_empty()
            && usize::from(s.epoch) + 1 < VIEWS
            && (0..OBJECTS as u8).all(through)
    }

    fn complete(&self, s: &mut State) {
        let mut view = *s.view();
        view.complete = view.all();
        view.filling = Slots::NONE;
        self.decide(s, view);
    }

    fn may_crash(&self, s: &State, d: u8) -> bool {
        s.faults > 0
            && s.node(d).up
            && s.view().members.contains(d)
            && self.workload.mortals.contains(d)
            && !s.view().complete.without(d).is_empty()
    }

    fn node(&self, replica: bool) -> Node {
        let half = |o: usize| match replica {
            true => [Half::default(), Half { version: 1, value: INITIAL[o] }],
            false => [Half::default(); 2],
        };
        Node {
            up: true,
            lease: true,
            first: true,
            epoch: 0,
            settled: Some(0),
            phase: Phase::Settled,
            gone: Slots::NONE,
            affected: [false; OBJECTS],
            revoked: Slots::NONE,
            word: [Word(0); OBJECTS],
            half: std::array::from_fn(half),
            record: [None; NODES],
            copy: [None; OBJECTS],
            kept: [None; OBJECTS],
            ub: [0; OBJECTS],
            begun: 0,
            op: Op::Idle,
            copier: Copier::Next(OBJECTS as u8),
        }
    }

    /// Every step that is not a fault.
    pub fn progress(&self, s: &State, steps: &mut Vec<Step>) {
        self.landable(s, |i| steps.push(Step::Land(s.net[i])));
        for node in 0..NODES as u8 {
            let n = s.node(node);
            let member = s.view().members.contains(node);
            if !n.up {
                if member && self.may_evict(s, node) {
                    steps.push(Step::Evict(node));
                }
                if self.may_join(s, node) {
                    steps.push(Step::Join(node));
                }
                continue;
            }
            if !member && n.lease {
                steps.push(Step::LeaseEnds(node));
            } else if self.may_join(s, node) {
                steps.push(Step::Join(node));
            }
            steps.push(Step::Go(node));
            if n.phase == Phase::Settled {
                for o in (0..OBJECTS as u8).filter(|o| self.may_give_back(s, node, *o)) {
                    steps.push(Step::GiveBack(node, o));
                }
                if n.copier != Copier::Next(OBJECTS as u8) {
                    steps.push(Step::Copy(node));
                }
            } else {
                steps.push(Step::Recover(node));
            }
            if n.epoch < s.epoch {
                steps.push(Step::Install(node));
            }
        }
        if self.may_complete(s) {
            steps.push(Step::Complete);
        }
    }
}

impl State {
    /// What a node's program writes next: no two writes are the same.
    fn value(&self, node: u8) -> u8 {
        let n = self.node(node);
        1 + 10 * node + 5 * u8::from(!n.first) + n.begun
    }
}

impl Model for Cluster {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let w = &self.workload;
        let all: Slots = (0..NODES as u8).collect();
        let view = View {
            members: all,
            complete: w.replicas,
            filling: Slots::NONE,
            primary: w.primary,
            incarnation: [0; NODES],
        };
        let mut s = State {
            nodes: std::array::from_fn(|n| self.node(w.replicas.contains(n as u8))),
            net: Vec::new(),
            views: [view; VIEWS],
            epoch: 0,
            faults: w.faults,
            returns: w.returns,
            rehomes: w.rehomes,
            collisions: w.collisions,
            acked: [1; OBJECTS],
            seen: [1; OBJECTS],
            committed: [[0; VERSIONS]; OBJECTS],
            wrong: None,
            history: History::new(Store(INITIAL)),
        };
        for o in 0..OBJECTS {
            let word = Cluster::idle_word(1);
            s.node_mut(w.primary[o]).word[o] = word;
            for (node, object) in w.cached.iter().filter(|(_, object)| usize::from(*object) == o) {
                let half = s.node(w.primary[o]).best(*object);
                s.node_mut(*node).copy[o] = Some(Entry { half, kept: false });
                s.node_mut(*node).ub[o] = 1;
                s.node_mut(w.primary[o]).word[o].0 += self.counts().share(*node);
            }
        }
        vec![s]
    }

    fn actions(&self, s: &State, steps: &mut Vec<Step>) {
        if s.wrong.is_some() {
            return;
        }
        self.progress(s, steps);
        let w = &self.workload;
        for node in 0..NODES as u8 {
            if s.node(node).up && self.may_evict(s, node) {
                steps.push(Step::Evict(node));
            }
            if self.may_crash(s, node) {
                steps.push(Step::Crash(node));
            }
            let more = usize::from(s.epoch) + 1 < VIEWS;
            if s.rehomes > 0 && more && s.view().complete.contains(node) {
                let away = |o: &u8| s.view().primary[usize::from(*o)] != node;
                steps.extend((0..w.objects).filter(away).map(|o| Step::Rehome(o, node)));
            }
            if s.collisions > 0 {
                let copies = s.node(node).copy;
                let hit = |o: &u8| copies[usize::from(*o)].is_some_and(|c| !c.kept);
                steps.extend((0..OBJECTS as u8).filter(hit).map(|o| Step::Collide(node, o)));
            }
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut s = last.clone();
        let done = match step {
            Step::Land(flight) => {
                let first = s.net.iter().position(|f| *f == flight)?;
                self.land(&mut s, first);
                true
            }
            Step::Go(node) => self.go(&mut s, node),
            Step::GiveBack(node, o) => self.give_back(&mut s, node, o),
            Step::Collide(node, o) => {
                s.collisions -= 1;
                self.bump(&mut s, node, o);
                true
            }
            Step::Crash(node) => {
                self.crash(&mut s, node);
                true
            }
            Step::Evict(node) => {
                self.evict(&mut s, node);
                true
            }
            Step::LeaseEnds(node) => {
                s.node_mut(node).lease = false;
                true
            }
            Step::Rehome(o, to) => {
                s.rehomes -= 1;
                let mut view = *s.view();
                view.primary[usize::from(o)] = to;
                self.decide(&mut s, view);
                true
            }
            Step::Install(node) => self.install(&mut s, node),
            Step::Recover(node) => self.recover(&mut s, node),
            Step::Join(node) => {
                self.join(&mut s, node);
                true
            }
            Step::Copy(node) => self.copy(&mut s, node),
            Step::Complete => {
                self.complete(&mut s);
                true
            }
        };
        done.then_some(s)
    }

    fn properties(&self) -> Vec<Property<Cluster>> {
        properties::all()
    }
}
