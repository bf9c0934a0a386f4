//! What must be true in every state.

use crate::cluster::{Cluster, Step};
use crate::state::{NODES, OBJECTS, Op, Phase, State, Wrong, version};
use stateright::{Model, Property};

/// All of them.
pub fn all() -> Vec<Property<Cluster>> {
    vec![
        Property::always("a version has one writer", |_, s: &State| {
            s.wrong != Some(Wrong::TwoCommits)
        }),
        Property::always("counts neither overflow nor underflow", |_, s: &State| {
            s.wrong != Some(Wrong::Carry)
        }),
        Property::always("a word's version has its half", |_, s: &State| {
            s.wrong != Some(Wrong::NoHalf)
        }),
        Property::always("no stale hit", |_, s: &State| no_stale_hit(s)),
        Property::always("an acknowledged write is on every replica", |_, s: &State| durable(s)),
        Property::always("linearizable", |_, s: &State| s.history.linearizable),
        Property::always("at rest replicas agree", |c, s| !c.is_at_rest(s) || agree(s)),
        Property::always("what stands at rest is linearizable", |c, s| {
            !c.is_at_rest(s) || s.history.explains(standing(s))
        }),
        Property::always("there is a way on", |c, s| c.is_at_rest(s) || c.has_a_way_on(s)),
        Property::sometimes("all is done", |c, s| c.is_at_rest(s)),
    ]
}

/// Whatever a hit would return anywhere is at least as new as what any writer or reader was told. (So
/// hits need not be steps of the model.)
fn no_stale_hit(s: &State) -> bool {
    s.nodes
        .iter()
        .filter(|n| n.up && n.lease)
        .all(|n| (0..OBJECTS).all(|o| n.copy[o].is_none_or(|c| c.half.version >= s.seen[o])))
}

/// So it survives all of them but one.
fn durable(s: &State) -> bool {
    s.view()
        .complete
        .iter()
        .filter(|n| s.node(*n).up)
        .all(|n| (0..OBJECTS).all(|o| s.node(n).best(o as u8).version >= s.acked[o]))
}

/// The words and complete copies of all objects.
fn agree(s: &State) -> bool {
    let view = s.view();
    (0..OBJECTS).all(|o| {
        let primary = s.node(view.primary[o]);
        let word = primary.word[o];
        let half = primary.half[o][usize::from(version(word) & 1)];
        let held = match word.holder() {
            None => true,
            Some(h) => view.members.contains(h) && s.node(h).kept[o] == Some(half.version),
        };
        !word.writing()
            && held
            && half.version == version(word)
            && view.complete.iter().all(|n| s.node(n).best(o as u8) == half)
    })
}

fn standing(s: &State) -> [u8; OBJECTS] {
    let primary = s.view().primary;
    std::array::from_fn(|o| s.node(primary[o]).best(o as u8).value)
}

impl Cluster {
    /// Nothing is under way, and all who can have done what they are to do.
    pub fn is_at_rest(&self, s: &State) -> bool {
        let member = |n: u8| s.view().members.contains(n);
        s.net.iter().all(|f| !member(f.src))
            && s.view().filling.is_empty()
            && (0..NODES as u8).filter(|n| member(*n)).all(|node| {
                let n = s.node(node);
                let done = usize::from(n.begun) == self.tasks(n, node).len();
                let over = n.op == Op::Over || (n.op == Op::Idle && done);
                n.up && n.epoch == s.epoch && n.phase == Phase::Settled && over
            })
    }

    /// Some step that is no fault is possible.
    fn has_a_way_on(&self, s: &State) -> bool {
        if s.wrong.is_some() {
            return true;
        }
        // What lands is a way on, but for tries to take a word.
        let mut lands = false;
        self.landable(s, |_| lands = true);
        if lands {
            return true;
        }
        let mut steps = Vec::new();
        self.progress(s, &mut steps);
        let possible = |step: &Step| self.next_state(s, *step).is_some();
        steps.iter().any(possible)
    }
}
