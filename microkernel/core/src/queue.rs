//! First-in, first-out queues of who waits at an endpoint or a notification: linked lists through
//! one shared pool, so that any member leaves its queue in one step when it is cancelled or dies.

use crate::id::{PdId, StubId};
use crate::limits::QUEUE_NODES;
use crate::wait::WaitId;
use heapless::Vec;

/// Who waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Item {
    /// A PD's operation.
    Wait(WaitId),
    /// A dead PD, whose death is to be told.
    Pd(PdId),
    /// A dead stub, whose death is to be told.
    Stub(StubId),
}

/// A place in a queue: index + 1 of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place(u16);

#[derive(Debug)]
struct Node {
    item: Item,
    /// Index + 1, 0 at the ends. `next` links the free list too.
    prev: u16,
    next: u16,
}

/// A queue's ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Queue {
    head: u16,
    tail: u16,
}

impl Queue {
    pub const EMPTY: Queue = Queue { head: 0, tail: 0 };

    pub fn is_empty(&self) -> bool {
        self.head == 0
    }
}

/// The shared pool. Sized so that it cannot be full: see [`QUEUE_NODES`].
#[derive(Debug)]
pub struct Nodes {
    nodes: Vec<Node, QUEUE_NODES>,
    free: u16,
}

impl Nodes {
    pub const fn new() -> Self {
        Nodes { nodes: Vec::new(), free: 0 }
    }

    pub fn clear(&mut self) {
        self.nodes.clear();
        self.free = 0;
    }

    fn at(&mut self, place: u16) -> Option<&mut Node> {
        self.nodes.get_mut(usize::from(place.checked_sub(1)?))
    }

    /// Appends; `None` if the pool is full, which its size rules out.
    pub fn push(&mut self, queue: &mut Queue, item: Item) -> Option<Place> {
        let node = Node { item, prev: queue.tail, next: 0 };
        let place = if self.free == 0 {
            self.nodes.push(node).ok()?;
            self.nodes.len() as u16
        } else {
            let place = self.free;
            let slot = self.at(place)?;
            let next = slot.next;
            *slot = node;
            self.free = next;
            place
        };
        match self.at(queue.tail) {
            Some(last) => last.next = place,
            None => queue.head = place,
        }
        queue.tail = place;
        Some(Place(place))
    }

    /// Takes a member out.
    pub fn remove(&mut self, queue: &mut Queue, place: Place) {
        let free = self.free;
        let Some(node) = self.at(place.0) else { return };
        let (prev, next) = (node.prev, node.next);
        node.next = free;
        self.free = place.0;
        match self.at(prev) {
            Some(n) => n.next = next,
            None => queue.head = next,
        }
        match self.at(next) {
            Some(n) => n.prev = prev,
            None => queue.tail = prev,
        }
    }

    /// The first member.
    pub fn first(&self, queue: &Queue) -> Option<(Place, Item)> {
        self.iter(queue).next()
    }

    /// All members in order.
    pub fn iter(&self, queue: &Queue) -> impl Iterator<Item = (Place, Item)> {
        let mut place = queue.head;
        core::iter::from_fn(move || {
            let node = self.nodes.get(usize::from(place.checked_sub(1)?))?;
            let found = (Place(place), node.item);
            place = node.next;
            Some(found)
        })
    }
}
