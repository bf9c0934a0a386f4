//! What the nodes' programs have asked and been told, held against a store in which each operation
//! is one step: stateright's linearizability tester as a history variable.

use crate::state::OBJECTS;
use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// A register for each object.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Store(pub [u8; OBJECTS]);

/// An operation of a program's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Call {
    /// Read one object.
    Get(u8),
    /// Write one object; what it was is not looked at.
    Put(u8, u8),
    /// Write both objects in one transaction.
    Both(u8),
    /// Write the second object what the first one is now, in one transaction.
    Copy,
}

/// What a program was told.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Told {
    /// The object's value.
    Value(u8),
    /// The write stands.
    Done,
}

impl SequentialSpec for Store {
    type Op = Call;
    type Ret = Told;
    fn invoke(&mut self, call: &Call) -> Told {
        match *call {
            Call::Get(o) => return Told::Value(self.0[usize::from(o)]),
            Call::Put(o, value) => self.0[usize::from(o)] = value,
            Call::Both(value) => self.0 = [value; OBJECTS],
            Call::Copy => self.0[1] = self.0[0],
        }
        Told::Done
    }
}

type Tester = LinearizabilityTester<u8, Store>;

/// The history so far. Cloned with every state and changed seldom: shared, with the verdict and the
/// hash made at each change.
#[derive(Clone, Debug)]
pub struct History {
    tester: Arc<Tester>,
    fingerprint: u64,
    /// Whether one order of all calls explains what was told.
    pub linearizable: bool,
}

impl History {
    /// Nothing asked yet.
    pub fn new(initial: Store) -> History {
        let tester = Arc::new(Tester::new(initial));
        History { tester, fingerprint: 0, linearizable: true }
    }

    /// A program on `node` asks; at most one call of it is under way.
    pub fn invoke(&mut self, node: u8, call: Call) {
        let valid = Arc::make_mut(&mut self.tester).on_invoke(node, call).is_ok();
        self.linearizable &= valid;
        self.hash_again();
    }

    /// It is told.
    pub fn told(&mut self, node: u8, told: Told) {
        let valid = Arc::make_mut(&mut self.tester).on_return(node, told).is_ok();
        self.linearizable &= valid && self.tester.is_consistent();
        self.hash_again();
    }

    /// Whether these values, read by somebody after everything else, fit.
    pub fn explains(&self, values: [u8; OBJECTS]) -> bool {
        let mut tester = (*self.tester).clone();
        for (o, value) in values.into_iter().enumerate() {
            if tester.on_invret(u8::MAX, Call::Get(o as u8), Told::Value(value)).is_err() {
                return false;
            }
        }
        tester.is_consistent()
    }

    fn hash_again(&mut self) {
        let mut hasher = std::hash::DefaultHasher::new();
        self.tester.hash(&mut hasher);
        self.fingerprint = hasher.finish();
    }
}

impl PartialEq for History {
    fn eq(&self, other: &History) -> bool {
        self.fingerprint == other.fingerprint && self.tester == other.tester
    }
}
impl Eq for History {}

impl Hash for History {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.fingerprint.hash(state);
    }
}
