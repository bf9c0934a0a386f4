//! Waiting until an object changes (rule 30), by message through the object's primary.
//!
//! A waiting node has its interest noted with the primary, and only then reads the objects; it
//! sleeps if all are still as its caller saw them. Whoever commits a write of a waitable object
//! tells the primary, which tells the nodes noted. A writer may die in between and a message may
//! be lost with a node, so all of it is done again on a bounded timer and after each view.

use super::get::Get;
use super::message::{Message, Ticket};
use super::op::{Caller, Flow, Kind, Op, OpId, Part};
use super::{Action, ClientId, Engine, RequestId};
use crate::cache::{Version, Waited};
use crate::layout;
use crate::name::Name;
use crate::request::Reply;
use crate::view::Slots;

/// How long a waiter sleeps before it looks again by itself, with a lease of 250 ms, ns.
const LOOK_AGAIN: u64 = 250_000_000;
/// Most objects watched at one primary; beyond it watchers rely on their timers.
const MAX_WATCHED: usize = 1 << 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Watch,
    Watching,
    Reading,
    Asleep,
}

/// A wait under way.
pub(crate) struct Wait {
    on: Vec<(Name, Version)>,
    stage: Stage,
    /// What a queued waiter is called; it has been told that it is queued.
    queued: Option<RequestId>,
    client: Option<ClientId>,
    changed: bool,
}

impl Wait {
    /// Stands in where an operation's kind is taken out for a moment.
    pub(crate) const fn none() -> Wait {
        Wait { on: Vec::new(), stage: Stage::Asleep, queued: None, client: None, changed: false }
    }
    pub(crate) fn new(on: Vec<(Name, Version)>, client: ClientId) -> Wait {
        Wait { on, stage: Stage::Watch, queued: None, client: Some(client), changed: false }
    }
    pub(crate) fn client(&self) -> Option<ClientId> {
        self.client
    }
}

impl Engine {
    pub(crate) fn step_wait(&mut self, op: &mut Op, w: &mut Wait) -> Flow {
        if w.changed {
            return self.wake(op, w);
        }
        loop {
            match w.stage {
                Stage::Watch => {
                    w.stage = Stage::Watching;
                    for (i, (name, _)) in w.on.iter().enumerate() {
                        let names = self.waiting.entry(*name).or_default();
                        if !names.contains(&op.id) {
                            names.push(op.id);
                        }
                        match self.view.primary(name.shard()) {
                            Some(p) if p == self.config.node => self.watch(*name, p),
                            Some(p) => {
                                op.pending += 1;
                                let ticket = op.ticket(i as u16);
                                self.send(p, &Message::Watch { ticket, name: *name });
                            }
                            None => {}
                        }
                    }
                    if op.pending > 0 {
                        return Flow::Waits;
                    }
                }
                Stage::Watching => {
                    op.take();
                    w.stage = Stage::Reading;
                    for (i, (name, _)) in w.on.iter().enumerate() {
                        let Some(set) = layout::set(name.set()) else { continue };
                        let caller = Caller::Inner(op.ticket(i as u16));
                        op.pending += 1;
                        if self.spawn(caller, Kind::Get(Get::new(*name, set))).is_none() {
                            op.pending -= 1;
                        }
                    }
                    if op.pending > 0 {
                        return Flow::Waits;
                    }
                }
                Stage::Reading => {
                    for (part, result) in op.take() {
                        let Some((_, seen)) = w.on.get(usize::from(part)) else { continue };
                        // What could not be read may have changed: the caller finds out.
                        if !matches!(result, Part::Version(Ok(v)) if v == seen.0) {
                            w.changed = true;
                        }
                    }
                    if w.changed || op.abandoned {
                        return self.wake(op, w);
                    }
                    if let Caller::Request(id, _) = op.caller {
                        w.queued = Some(id);
                        self.queued_waits.insert(id, op.id);
                        self.reply(op, Ok(Reply::Waited(None)));
                    }
                    w.stage = Stage::Asleep;
                    return self.sleep_until(op, self.now + self.config.timing.scaled(LOOK_AGAIN));
                }
                Stage::Asleep => w.stage = Stage::Watch,
            }
        }
    }

    fn wake(&mut self, op: &mut Op, w: &mut Wait) -> Flow {
        self.forget_wait(op.id, w);
        match w.queued.take() {
            Some(id) => self.out.push(Action::Changed { id }),
            None => self.reply(op, Ok(Reply::Waited(Some(Waited::Changed)))),
        }
        Flow::Done
    }

    fn forget_wait(&mut self, id: OpId, w: &Wait) {
        for (name, _) in &w.on {
            if let Some(ids) = self.waiting.get_mut(name) {
                ids.retain(|i| *i != id);
                if ids.is_empty() {
                    self.waiting.remove(name);
                }
            }
        }
        if let Some(request) = w.queued {
            self.queued_waits.remove(&request);
        }
    }

    /// Ends a wait without a word.
    pub(crate) fn cancel_wait(&mut self, id: OpId) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let kind = std::mem::replace(&mut op.kind, Kind::Wait(Wait::none()));
        if let Kind::Wait(w) = &kind {
            self.forget_wait(id, w);
        }
        self.cancel(id);
    }

    /// Notes, as primary, that a node wants to hear of an object's next change.
    pub(crate) fn watch(&mut self, name: Name, node: u8) {
        if self.watched.len() < MAX_WATCHED || self.watched.contains_key(&name) {
            let nodes = self.watched.entry(name).or_insert(Slots::NONE);
            *nodes = nodes.with(node);
        }
    }

    pub(crate) fn watch_asked(&mut self, from: u8, ticket: Ticket, name: Name) {
        self.watch(name, from);
        self.send(from, &Message::Watching { ticket });
    }

    /// A write of this node's has been committed.
    pub(crate) fn tell_changed(&mut self, name: Name) {
        self.changed_here(name);
        match self.view.primary(name.shard()) {
            Some(p) if p == self.config.node => self.notify(name),
            Some(p) => self.send(p, &Message::Changed { name }),
            None => {}
        }
    }

    /// As primary: tells whoever watches.
    pub(crate) fn notify(&mut self, name: Name) {
        let nodes = self.watched.remove(&name).unwrap_or(Slots::NONE);
        for node in nodes.iter() {
            if node == self.config.node {
                self.changed_here(name);
            } else {
                self.send(node, &Message::Notify { name });
            }
        }
    }

    /// Wakes this node's waiters on an object.
    pub(crate) fn changed_here(&mut self, name: Name) {
        for id in self.waiting.get(&name).cloned().unwrap_or_default() {
            let Some(op) = self.ops.get_mut(id) else { continue };
            if let Kind::Wait(w) = &mut op.kind {
                w.changed = true;
                op.asleep = false;
                // Answers still under way are for nobody.
                op.attempt = op.attempt.wrapping_add(1);
                op.pending = 0;
                self.ready.push_back(id);
            }
        }
    }

    pub(crate) fn resume_wait(&mut self, op: &mut Op, w: &mut Wait) -> bool {
        self.start_over(op);
        w.stage = Stage::Watch;
        true
    }
}
