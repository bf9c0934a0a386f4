//! Operations under way: their table, what they wait for, the queue of each object.

use super::ask::{Ask, Published};
use super::get::{Get, PATIENCE};
use super::grab::Grabbing;
use super::kept::{Asked, Kept, Reluctance};
use super::list::Page;
use super::message::Ticket;
use super::primary::{Free, Mark};
use super::rebuild::Rebuild;
use super::recovery::Recovery;
use super::restore::Restore;
use super::turn::Turn;
use super::wait::Wait;
use super::write::Write;
use super::{Action, ClientId, Engine, RequestId};
use crate::cache::CacheError;
use crate::fabric::{FabricError, Outcome, Token, Verb};
use crate::name::Name;
use crate::request::Reply;
use crate::word::Word;
use std::collections::VecDeque;

/// An operation's number: generation above index. Fits a token above 16 bits of part.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct OpId(pub(crate) u64);

const INDEX_BITS: u32 = 24;
const GENERATIONS: u64 = 1 << 23;
/// Most operations under way at once; more are refused as busy.
pub(crate) const MAX_OPS: usize = 1 << 16;
/// Most operations of one node that wait for one object.
const MAX_QUEUE: usize = 1024;
/// How long a caller waits at most, ns; longer than any operation polls by itself.
const OVERDUE: u64 = PATIENCE + PATIENCE / 2;
/// How often that is looked after, ns.
const OVERDUE_CHECK: u64 = 1_000_000_000;
/// The index in tokens of chains that nobody waits for.
const UNWAITED: u64 = (1 << INDEX_BITS) - 1;

impl OpId {
    fn index(self) -> usize {
        (self.0 & ((1 << INDEX_BITS) - 1)) as usize
    }
    fn token(self, part: u16) -> Token {
        Token(self.0 << 16 | u64::from(part))
    }
    pub(crate) fn of(token: Token) -> (OpId, u16) {
        (OpId(token.0 >> 16), token.0 as u16)
    }
}

/// What a part of an operation gave.
#[derive(Debug)]
pub(crate) enum Part {
    /// A chain completed.
    Verbs(Vec<Outcome>),
    /// A primary answered with a slot.
    Slot(Result<u32, CacheError>),
    /// A primary has taken a watch.
    Watching,
    /// Another node's slab holds this.
    Published(Published),
    /// An inner read gave this version.
    Version(Result<u64, CacheError>),
}

/// Whom an operation answers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Caller {
    /// A domain's request.
    Request(RequestId, ClientId),
    /// Part of another operation.
    Inner(Ticket),
    /// Nobody.
    Own,
}

/// What an operation does.
pub(crate) enum Kind {
    Get(Get),
    Grab(Grabbing),
    Write(Write),
    Wait(Wait),
    Restore(Restore),
    Page(Page),
    Mark(Mark),
    Free(Free),
    Rebuild(Rebuild),
    Recovery(Recovery),
    Ask(Ask),
}

/// One operation.
pub(crate) struct Op {
    pub(crate) id: OpId,
    pub(crate) caller: Caller,
    /// When it began, ns.
    pub(crate) began: u64,
    /// Goes up when it starts over, so that late answers are known for what they are.
    pub(crate) attempt: u32,
    /// Chains and messages posted and not answered.
    pub(crate) pending: u32,
    /// A chain failed: nothing goes on before a view says who is gone.
    pub(crate) failed: bool,
    /// What the answered parts gave.
    pub(crate) results: Vec<(u16, Part)>,
    /// Waits for its timer alone.
    pub(crate) asleep: bool,
    /// How often it polled in a row.
    pub(crate) polls: u32,
    /// Whom it has asked for words that others keep.
    pub(crate) asked: Asked,
    /// Its caller has been told that it failed.
    pub(crate) abandoned: bool,
    /// Whether it writes objects, and so must not pass another's grab.
    pub(crate) writes: bool,
    pub(crate) kind: Kind,
}

impl Op {
    /// Takes the results so far, in the order of their parts.
    pub(crate) fn take(&mut self) -> Vec<(u16, Part)> {
        let mut r = std::mem::take(&mut self.results);
        r.sort_by_key(|(part, _)| *part);
        r
    }
    /// Takes the outcomes of the only chain.
    pub(crate) fn take_one(&mut self) -> Vec<Outcome> {
        match self.take().into_iter().next() {
            Some((_, Part::Verbs(o))) => o,
            _ => Vec::new(),
        }
    }
    pub(crate) fn ticket(&self, part: u16) -> Ticket {
        Ticket { op: self.id.0, attempt: self.attempt, part }
    }
}

/// Whether an operation goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flow {
    /// It waits for something.
    Waits,
    /// It is over.
    Done,
}

/// All operations.
#[derive(Default)]
pub(crate) struct Ops {
    slots: Vec<(u64, Option<Box<Op>>)>,
    free: Vec<usize>,
}

impl Ops {
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
    fn insert(&mut self, make: impl FnOnce(OpId) -> Op) -> Option<OpId> {
        let index = match self.free.pop() {
            Some(i) => i,
            None if self.slots.len() < MAX_OPS => {
                self.slots.push((0, None));
                self.slots.len() - 1
            }
            None => return None,
        };
        let slot = &mut self.slots[index];
        slot.0 = (slot.0 + 1) % GENERATIONS;
        let id = OpId(slot.0 << INDEX_BITS | index as u64);
        slot.1 = Some(Box::new(make(id)));
        Some(id)
    }
    pub(crate) fn get_mut(&mut self, id: OpId) -> Option<&mut Op> {
        let op = self.slots.get_mut(id.index())?.1.as_deref_mut()?;
        (op.id == id).then_some(op)
    }
    fn take(&mut self, id: OpId) -> Option<Box<Op>> {
        self.get_mut(id)?;
        self.slots[id.index()].1.take()
    }
    fn put_back(&mut self, op: Box<Op>) {
        let index = op.id.index();
        self.slots[index].1 = Some(op);
    }
    fn release(&mut self, id: OpId) {
        self.free.push(id.index());
    }
    pub(crate) fn ids(&self) -> Vec<OpId> {
        let mut ids: Vec<(u64, OpId)> =
            self.slots.iter().filter_map(|(_, op)| op.as_ref().map(|o| (o.began, o.id))).collect();
        ids.sort();
        ids.into_iter().map(|(_, id)| id).collect()
    }
}

/// A grab (rule 28): ownership with W = 0, pinned until a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grab {
    pub(crate) client: ClientId,
    pub(crate) until: u64,
}

/// What this node knows of an object, and who of its own wants it.
#[derive(Default)]
pub(crate) struct Object {
    pub(crate) running: Option<OpId>,
    pub(crate) queue: VecDeque<OpId>,
    /// Where it was seen last; checked at each use.
    pub(crate) slot: Option<u32>,
    /// The word at the end of this node's last write.
    pub(crate) guess: Option<Word>,
    pub(crate) grab: Option<Grab>,
    /// This node holds the word since its last write.
    pub(crate) kept: Option<Kept>,
    /// Whom this node lets come first.
    pub(crate) turn: Turn,
    /// Writes that do not keep the word yet.
    pub(crate) reluctance: Reluctance,
}

impl Object {
    fn is_idle(&self) -> bool {
        let used = self.running.is_some() || self.grab.is_some() || self.kept.is_some();
        !used && self.queue.is_empty()
    }
}

impl Engine {
    /// Starts an operation; it takes its first step before `handle` returns.
    pub(crate) fn spawn(&mut self, caller: Caller, kind: Kind) -> Option<OpId> {
        let began = self.now;
        let id = self.ops.insert(|id| Op {
            id,
            caller,
            began,
            attempt: 0,
            pending: 0,
            failed: false,
            results: Vec::new(),
            asleep: false,
            polls: 0,
            asked: Asked::default(),
            abandoned: false,
            writes: matches!(kind, Kind::Write(_) | Kind::Grab(_)),
            kind,
        })?;
        self.ready.push_back(id);
        Some(id)
    }

    /// Posts a chain for `op`.
    pub(crate) fn post(&mut self, op: &mut Op, part: u16, peer: u8, chain: Vec<Verb>) {
        op.pending += 1;
        self.outstanding += 1;
        self.stats.verbs_posted += chain.len() as u64;
        self.out.push(Action::Post { peer, token: op.id.token(part), chain });
    }

    /// Posts a chain that nobody waits for.
    pub(crate) fn post_unwaited(&mut self, peer: u8, chain: Vec<Verb>) {
        self.outstanding += 1;
        self.stats.verbs_posted += chain.len() as u64;
        self.out.push(Action::Post { peer, token: Token(UNWAITED << 16), chain });
    }

    /// A chain ended.
    pub(crate) fn completed(&mut self, token: Token, result: Result<Vec<Outcome>, FabricError>) {
        self.outstanding = self.outstanding.saturating_sub(1);
        let (id, part) = OpId::of(token);
        if let Some(op) = self.ops.get_mut(id) {
            op.pending = op.pending.saturating_sub(1);
            match result {
                Ok(outcomes) => op.results.push((part, Part::Verbs(outcomes))),
                Err(_) => op.failed = true,
            }
            if op.pending == 0 {
                self.ready.push_back(id);
            }
            #[cfg(feature = "put-back-bugs")]
            if op.pending == 1
                && self.bug == Some(super::Bug::EarlyAcknowledgement)
                && matches!(&op.kind, Kind::Write(w) if w.posted())
                && let Caller::Request(id, _) = std::mem::replace(&mut op.caller, Caller::Own)
            {
                self.out.push(Action::Reply { id, reply: Ok(Reply::Done) });
            }
        }
        if self.outstanding == 0 {
            self.drained();
        }
    }

    /// Something other than a chain answered a part of an operation.
    pub(crate) fn answered(&mut self, ticket: Ticket, part: Part) {
        let id = OpId(ticket.op);
        if let Some(op) = self.ops.get_mut(id)
            && op.attempt == ticket.attempt
            && op.pending > 0
        {
            op.pending -= 1;
            op.results.push((ticket.part, part));
            if op.pending == 0 {
                self.ready.push_back(id);
            }
        }
    }

    /// Lets every operation that can go on take its next step.
    pub(crate) fn run_ready(&mut self) {
        while let Some(id) = self.ready.pop_front() {
            let Some(mut op) = self.ops.take(id) else { continue };
            let recovery = matches!(op.kind, Kind::Recovery(_));
            // Frozen operations go on at the end of the view change; failed ones too.
            let may = op.pending == 0 && !op.asleep && (recovery || (!self.frozen && !op.failed));
            let flow = if may { self.step(&mut op) } else { Flow::Waits };
            self.ops.put_back(op);
            if flow == Flow::Done
                && let Some(op) = self.ops.take(id)
            {
                drop(op);
                self.ops.release(id);
            }
        }
    }

    fn step(&mut self, op: &mut Op) -> Flow {
        // The kind is moved out for the step, so that it and the operation can both be changed.
        let mut kind = std::mem::replace(&mut op.kind, Kind::Wait(Wait::none()));
        let flow = match &mut kind {
            Kind::Get(k) => self.step_get(op, k),
            Kind::Grab(k) => self.step_grab(op, k),
            Kind::Write(k) => self.step_write(op, k),
            Kind::Wait(k) => self.step_wait(op, k),
            Kind::Restore(k) => self.step_restore(op, k),
            Kind::Page(k) => self.step_page(op, *k),
            Kind::Mark(k) => self.step_mark(op, k),
            Kind::Free(k) => self.step_free(op, k),
            Kind::Rebuild(k) => self.step_rebuild(op, k),
            Kind::Recovery(k) => self.step_recovery(op, k),
            Kind::Ask(k) => self.step_ask(op, *k),
        };
        op.kind = kind;
        flow
    }

    /// Removes an operation at once.
    pub(crate) fn cancel(&mut self, id: OpId) {
        if self.ops.take(id).is_some() {
            self.ops.release(id);
        }
    }

    /// Starts every operation over, or lets it go on, as the change of view demands of it.
    pub(crate) fn resume_all(&mut self) {
        for id in self.ops.ids() {
            let Some(mut op) = self.ops.take(id) else { continue };
            op.failed = false;
            op.asleep = false;
            op.polls = 0;
            op.asked = Asked::default();
            let mut kind = std::mem::replace(&mut op.kind, Kind::Wait(Wait::none()));
            let keep = match &mut kind {
                Kind::Get(k) => self.resume_get(&mut op, k),
                Kind::Grab(k) => self.resume_grab(&mut op, k),
                Kind::Write(k) => self.resume_write(&mut op, k),
                Kind::Wait(k) => self.resume_wait(&mut op, k),
                // The answer may have been lost with a way.
                Kind::Ask(_) => {
                    self.start_over(&mut op);
                    true
                }
                // Its inner writes go on themselves.
                Kind::Restore(_) | Kind::Page(_) => true,
                Kind::Free(k) => {
                    self.abandon_free(&mut op, k);
                    false
                }
                Kind::Rebuild(k) => {
                    self.abandon_rebuild(&mut op, k);
                    false
                }
                // The change of view has done what they were for, or asks anew.
                Kind::Mark(_) | Kind::Recovery(_) => false,
            };
            op.kind = kind;
            self.ops.put_back(op);
            if keep {
                self.ready.push_back(id);
            } else {
                self.cancel(id);
            }
        }
    }

    /// Tells callers whose operations stand still for too long (no view comes, or no lease) that
    /// they do. What has been posted goes on: its outcome is unknown, not "failed".
    pub(crate) fn tell_overdue(&mut self) {
        if self.now < self.overdue_check {
            return;
        }
        self.overdue_check = self.now + OVERDUE_CHECK;
        for (_, op) in &mut self.ops.slots {
            let Some(op) = op.as_deref_mut() else { continue };
            if self.now.saturating_sub(op.began) < OVERDUE {
                continue;
            }
            let posted = matches!(&op.kind, Kind::Write(w) if w.posted());
            if let Caller::Request(id, _) = op.caller {
                op.caller = Caller::Own;
                // What has not been posted by now never is.
                op.abandoned = !posted;
                let error = if posted { CacheError::Unknown } else { CacheError::NoQuorum };
                self.out.push(Action::Reply { id, reply: Err(error) });
            }
        }
    }

    /// Forgets what an operation waits for by message, so that it can start over.
    pub(crate) fn start_over(&mut self, op: &mut Op) {
        op.attempt = op.attempt.wrapping_add(1);
        op.pending = 0;
        op.results.clear();
    }

    /// Sleeps before the next poll, longer each time: 2 µs to 1 ms.
    pub(crate) fn back_off(&mut self, op: &mut Op) -> Flow {
        op.polls += 1;
        let delay = 2_000u64 << op.polls.min(9);
        self.sleep_until(op, self.now + delay)
    }

    /// Sleeps until a time.
    pub(crate) fn sleep_until(&mut self, op: &mut Op, at: u64) -> Flow {
        op.asleep = true;
        self.timers.push(std::cmp::Reverse((at, op.id)));
        Flow::Waits
    }

    /// Wakes what sleeps no longer than now.
    pub(crate) fn run_timers(&mut self) {
        while let Some(std::cmp::Reverse((at, id))) = self.timers.peek().copied() {
            if at > self.now {
                break;
            }
            self.timers.pop();
            if let Some(op) = self.ops.get_mut(id)
                && op.asleep
            {
                op.asleep = false;
                self.ready.push_back(id);
            }
        }
    }

    /// Queues `op` for an object; whether it may go on at once.
    pub(crate) fn lock(&mut self, name: Name, op: &Op) -> Result<bool, CacheError> {
        if self.objects.len() > self.objects_crowded {
            self.objects.retain(|_, o| !o.is_idle());
            self.objects_crowded = self.config.known.max(2 * self.objects.len());
        }
        let object = self.objects.entry(name).or_default();
        if object.queue.len() >= MAX_QUEUE {
            return Err(CacheError::Busy);
        }
        object.queue.push_back(op.id);
        let mine = self.next_of(name, Some(op)) == Some(op.id);
        Ok(mine)
    }

    /// Gives the object to the next in its queue, if that one may have it; says whom.
    fn next_of(&mut self, name: Name, current: Option<&Op>) -> Option<OpId> {
        let object = self.objects.get_mut(&name)?;
        if object.running.is_some() {
            return None;
        }
        let mut at = 0;
        while let Some(next) = object.queue.get(at).copied() {
            let op = match current {
                Some(op) if op.id == next => op,
                _ => match self.ops.get_mut(next) {
                    Some(op) => op,
                    None => {
                        object.queue.remove(at);
                        continue;
                    }
                },
            };
            if let Some(grab) = object.grab {
                let same = matches!(op.caller, Caller::Request(_, c) if c == grab.client);
                if op.writes && !same && self.now < grab.until {
                    // Others pass: the grab's owner among them.
                    at += 1;
                    continue;
                }
            }
            object.queue.remove(at);
            object.running = Some(next);
            return Some(next);
        }
        None
    }

    /// Ends `op`'s turn with an object.
    pub(crate) fn unlock(&mut self, name: Name, id: OpId) {
        if let Some(object) = self.objects.get_mut(&name)
            && object.running == Some(id)
        {
            object.running = None;
            self.pump(name);
        }
    }

    /// Lets the next in an object's queue go on.
    pub(crate) fn pump(&mut self, name: Name) {
        if let Some(next) = self.next_of(name, None) {
            self.ready.push_back(next);
        }
    }

    /// Whether it is `op`'s turn with an object.
    pub(crate) fn holds(&self, name: Name, id: OpId) -> bool {
        self.objects.get(&name).is_some_and(|o| o.running == Some(id))
    }

    /// Answers whoever asked for `op`.
    pub(crate) fn reply(&mut self, op: &mut Op, reply: Result<Reply, CacheError>) {
        match std::mem::replace(&mut op.caller, Caller::Own) {
            Caller::Request(id, _) => self.out.push(Action::Reply { id, reply }),
            Caller::Inner(ticket) => {
                let version = reply.map(|r| match r {
                    Reply::Object(v, _) => v.0,
                    _ => 0,
                });
                self.answered(ticket, Part::Version(version));
            }
            Caller::Own => {}
        }
    }
}
