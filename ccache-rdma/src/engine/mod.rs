//! The protocol's engine: one node's coherence, transactions and recovery, as a step function.
//!
//! [`Engine::handle`] takes an event and the time and appends actions. The shell (ccache's
//! service) carries out actions on the fabric and the rings and feeds back what happened; a
//! simulator or model checker can do the same. No clock, no I/O, no thread in here. Beside events
//! the engine reads its own arena with the CPU, and writes there what the protocol lets a CPU
//! write: published entries, copies, epochs, directories.
//!
//! What the shell owes the engine:
//! - every [`Action::Post`] ends in one [`Event::Completed`], chains to one peer in order;
//! - [`Action::Revoke`] ends in [`Event::Revoked`], after which the fabric holds to rules 33 and 34;
//! - [`Event::Tick`] at or soon after [`Engine::deadline`];
//! - [`Event::Lease`] whenever the lease is renewed; the same end of lease stands in the control
//!   region's lease word, written before the event is handled;
//! - views in the order of their epochs, each one committed by a majority.

mod ask;
mod bugs;
mod check;
mod commit;
mod get;
mod grab;
mod kept;
mod list;
mod message;
mod op;
mod primary;
mod rebuild;
mod recovery;
mod redo;
mod replay;
mod resolve;
mod restore;
mod slots;
mod turn;
mod wait;
mod write;

use crate::arena::Arena;
use crate::arena::published::Publisher;
use crate::cache::CacheError;
use crate::fabric::{FabricError, Outcome, Token, Verb};
use crate::layout::{self, control};
use crate::lease::Timing;
use crate::name::{Map, Name, Names};
use crate::request::{Reply, Request};
use crate::view::{MAX_NODES, Slots, View};
pub use ask::Published;
#[cfg(feature = "put-back-bugs")]
pub use bugs::Bug;
#[cfg(not(feature = "put-back-bugs"))]
use bugs::Bug;
pub use message::Ticket;
use message::{Message, ShardSet};
use op::{Caller, Kind, Object, OpId, Ops, Part};
use primary::{Asker, Primary};
use recovery::Change;
pub use recovery::Times;
pub(crate) use slots::SlotKey;
use slots::SlotShare;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Names a request; chosen by the shell, unique among those under way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub u64);

/// Names the domain that asks (its channel), for what it grabbed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientId(pub u64);

/// What this node is.
#[derive(Clone, Debug)]
pub struct Config {
    /// Slot, 0 to 15.
    pub node: u8,
    /// Start of the kernel process.
    pub incarnation: u64,
    /// Whether this slot never had a node before (rule 6).
    pub first_incarnation: bool,
    /// Lease times.
    pub timing: Timing,
    /// Memory budget for replicas, bytes.
    pub budget_bytes: u64,
    /// Slots copied per millisecond when a shard is rebuilt.
    pub rebuild_rate: u32,
    /// Objects, and as many slots, of which something is remembered that could be found out again: [`KNOWN`].
    pub known: usize,
}

/// As much as is remembered of objects that nobody uses: what it takes to go through all of it, to forget, holds
/// everything else up (a million took half a second), and so does making room for more.
pub const KNOWN: usize = 1 << 17;

/// What happened.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// A domain of this node asks; rights and shape are checked already. [`Request::NextEvent`]
    /// and [`Request::InstallView`] are the shell's and refused here.
    Request {
        /// Name for the reply.
        id: RequestId,
        /// Who.
        client: ClientId,
        /// What.
        request: Request,
    },
    /// A queued wait is not wanted any more; unknown ids are ignored.
    Cancel {
        /// The wait.
        id: RequestId,
    },
    /// A domain died: its grabs and waits end.
    ClientGone {
        /// Which.
        client: ClientId,
    },
    /// A posted chain ended.
    Completed {
        /// The node it went to.
        peer: u8,
        /// Its name.
        token: Token,
        /// One outcome per verb, or an error.
        result: Result<Vec<Outcome>, FabricError>,
    },
    /// A message from another node's engine.
    Message {
        /// Its slot.
        from: u8,
        /// Its bytes: checked in here.
        bytes: Vec<u8>,
    },
    /// A revoke is done.
    Revoked {
        /// The peer.
        peer: u8,
    },
    /// What [`Action::Connect`] asked for is done: chains and messages reach that member.
    Connected {
        /// Its slot.
        peer: u8,
        /// Its incarnation.
        incarnation: u64,
    },
    /// That incarnation's process has ended, for certain: it has renewed its lease for the last time.
    Ended {
        /// Its slot.
        peer: u8,
        /// Its incarnation.
        incarnation: u64,
    },
    /// What [`Action::Publish`] asked for.
    Published {
        /// Who asks.
        peer: u8,
        /// What for.
        ticket: Ticket,
        /// What the slab holds.
        published: Published,
    },
    /// A view is in force.
    View(View),
    /// The lease now runs until this time, ns.
    Lease {
        /// Its end.
        until: u64,
    },
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Post this chain; `peer` may be this node itself.
    Post {
        /// To whom.
        peer: u8,
        /// Its name.
        token: Token,
        /// The verbs.
        chain: Vec<Verb>,
    },
    /// Send a message. When the peer's mailbox is full, keep it and retry in order.
    Send {
        /// To whom; never this node itself.
        peer: u8,
        /// At most [`crate::layout::control::MAX_MESSAGE`] bytes.
        bytes: Vec<u8>,
    },
    /// Answer a request. A wait is answered once with `Waited`; if that said "queued" there is
    /// one [`Action::Changed`] later.
    Reply {
        /// Which.
        id: RequestId,
        /// The answer.
        reply: Result<Reply, CacheError>,
    },
    /// A queued wait is over: something has, or may have, changed. It is forgotten.
    Changed {
        /// The wait.
        id: RequestId,
    },
    /// Revoke the peer; rule 13 and 33–34.
    Revoke {
        /// Which.
        peer: u8,
    },
    /// A member with a new incarnation: let it into this node's arena and (re)connect to it, for
    /// as long as that takes; then [`Event::Connected`]. Never asked for before the revoke of an
    /// earlier incarnation is done.
    Connect {
        /// Slot.
        peer: u8,
        /// Incarnation.
        incarnation: u64,
    },
    /// Another node asks what the node's slab holds of an object: [`Event::Published`] answers.
    Publish {
        /// Who asks.
        peer: u8,
        /// What for.
        ticket: Ticket,
        /// The object, of a volatile set.
        name: Name,
    },
    /// The copier has passed: these shards are whole on `slot`. For membership.
    Rebuilt {
        /// Whose copies.
        slot: u8,
        /// Epoch of the view in which they were copied.
        epoch: u64,
        /// Shard numbers.
        shards: Vec<u16>,
    },
}

/// Counts since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Reads answered here from a valid copy.
    pub hits: u64,
    /// Reads that went to a primary.
    pub misses: u64,
    /// Writes posted.
    pub writes: u64,
    /// Writes of objects whose words this node had kept.
    pub kept_writes: u64,
    /// Kept words that other nodes asked for.
    pub given_back: u64,
    /// Verbs posted, loopback included.
    pub verbs_posted: u64,
    /// Messages sent to other engines.
    pub messages_sent: u64,
    /// Messages of other engines handled: 0 per operation in steady state.
    pub messages_handled: u64,
    /// Changes of view completed.
    pub changes: u64,
    /// The last of them.
    pub last_change: Times,
}

/// One node's protocol engine. See the module.
pub struct Engine {
    config: Config,
    arena: Arena,
    publisher: Publisher,
    now: u64,
    out: Vec<Action>,
    stats: Stats,
    lease_until: u64,
    /// The view in force, or being changed to.
    view: View,
    /// The change of view under way.
    change: Option<Change>,
    /// What peers have confirmed: epoch and step.
    confirms: [recovery::Confirmed; MAX_NODES],
    /// Epoch of the view in which this node last settled; 0: in none yet.
    settled_in: u64,
    /// Nothing but the recovery posts.
    frozen: bool,
    /// Shards whose primary changed in the last change of view.
    affected: ShardSet,
    /// By slot: the incarnation asked for, and whether it is connected.
    connected: [Option<(u64, bool)>; MAX_NODES],
    /// By slot: the last incarnation that is known to have ended, and when this node knew, ns.
    ended: [Option<(u64, u64)>; MAX_NODES],
    ops: Ops,
    ready: VecDeque<OpId>,
    timers: BinaryHeap<Reverse<(u64, OpId)>>,
    /// Chains posted and not completed.
    outstanding: u32,
    objects: Names<Object>,
    shares: Map<SlotKey, SlotShare>,
    /// At how many of each it is looked for what may be forgotten.
    objects_crowded: usize,
    shares_crowded: usize,
    primary: Primary,
    /// Allocations of this node's own operations, until they are back in the table.
    local_allocations: Vec<(Name, u32, Asker)>,
    redo_free: Vec<u64>,
    redo_waiting: VecDeque<OpId>,
    lease_waiting: Vec<OpId>,
    /// Objects whose words this node keeps, those kept longest first; some may be kept no more.
    kept: VecDeque<Name>,
    /// Objects that this node's clients have grabbed, with the end of each.
    grabs: Vec<(u64, Name)>,
    /// As primary: who wants to hear of changes.
    watched: Names<Slots>,
    /// This node's waits, by object.
    waiting: Names<Vec<OpId>>,
    queued_waits: Map<RequestId, OpId>,
    /// Slots found removed by a recovery, to be freed when all go on.
    free_later: Vec<(Name, u32)>,
    /// When to look next for callers who have waited too long.
    overdue_check: u64,
    /// What came while a view was changing.
    deferred: Vec<Event>,
    #[cfg(feature = "put-back-bugs")]
    bug: Option<Bug>,
}

impl Engine {
    /// An engine with no view yet: it refuses everything until it has one, and a lease. Stamps the
    /// arena, which must be all zeroes (a new incarnation starts empty).
    pub fn new(config: Config, arena: Arena) -> Engine {
        arena.stamp();
        Engine {
            publisher: Publisher::new(arena.clone()),
            arena,
            now: 0,
            out: Vec::new(),
            stats: Stats::default(),
            lease_until: 0,
            view: View::default(),
            change: None,
            confirms: Default::default(),
            settled_in: 0,
            frozen: true,
            affected: ShardSet::none(),
            connected: [None; MAX_NODES],
            ended: [None; MAX_NODES],
            ops: Ops::default(),
            ready: VecDeque::new(),
            timers: BinaryHeap::new(),
            outstanding: 0,
            // No larger than need be: what is dense is found sooner.
            objects: Map::default(),
            shares: Map::default(),
            objects_crowded: config.known,
            shares_crowded: config.known,
            config,
            primary: Primary::default(),
            local_allocations: Vec::new(),
            redo_free: (0..control::REDO_RECORDS).rev().collect(),
            redo_waiting: VecDeque::new(),
            lease_waiting: Vec::new(),
            kept: VecDeque::new(),
            grabs: Vec::new(),
            watched: Map::default(),
            waiting: Map::default(),
            queued_waits: Map::default(),
            free_later: Vec::new(),
            overdue_check: 0,
            deferred: Vec::new(),
            #[cfg(feature = "put-back-bugs")]
            bug: None,
        }
    }

    /// One step. Never blocks; appends to `actions`, in the order in which they are to be done.
    pub fn handle(&mut self, now: u64, event: Event, actions: &mut Vec<Action>) {
        self.now = self.now.max(now);
        std::mem::swap(&mut self.out, actions);
        self.dispatch(event);
        self.run_timers();
        self.end_grabs(None);
        self.change_timer();
        self.tell_overdue();
        loop {
            self.run_ready();
            if self.local_allocations.is_empty() {
                break;
            }
            for (name, len, asker) in std::mem::take(&mut self.local_allocations) {
                self.allocate(name, len, asker);
            }
        }
        std::mem::swap(&mut self.out, actions);
    }

    /// When [`Event::Tick`] is wanted next, ns.
    pub fn deadline(&self) -> Option<u64> {
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        let grab = self.grabs.iter().map(|(until, _)| *until).min();
        let overdue = (self.ops.len() > 0).then_some(self.overdue_check);
        [timer, grab, self.change_deadline(), overdue].into_iter().flatten().min()
    }

    /// Counts since the start.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The view in force (or being changed to).
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Whether the view in force has been settled: no change is under way.
    pub fn settled(&self) -> bool {
        !self.frozen
    }

    /// Whether all whom the view leaves out have been revoked here: none of them completes anything in this
    /// node's memory any more.
    pub fn has_revoked(&self) -> bool {
        self.change.as_ref().is_none_or(|c| c.revoked())
    }

    /// Operations under way.
    pub fn under_way(&self) -> usize {
        self.ops.len()
    }

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::Request { id, client, request } => self.request(id, client, request),
            Event::Cancel { id } => {
                if let Some(op) = self.queued_waits.remove(&id) {
                    self.cancel_wait(op);
                }
            }
            Event::ClientGone { client } => {
                if self.frozen {
                    self.deferred.push(Event::ClientGone { client });
                    return;
                }
                self.end_grabs(Some(client));
                // In order: a schedule replayed from its seed must be the same again.
                let mut waits: Vec<OpId> = self.queued_waits.values().copied().collect();
                waits.sort();
                for id in waits {
                    let of_client = matches!(
                        self.ops.get_mut(id).map(|o| &o.kind),
                        Some(Kind::Wait(w)) if w.client() == Some(client)
                    );
                    if of_client {
                        self.cancel_wait(id);
                    }
                }
            }
            Event::Completed { token, result, .. } => self.completed(token, result),
            Event::Message { from, bytes } => self.message(from, bytes),
            Event::Revoked { peer } => self.revoked(peer),
            Event::Connected { peer, incarnation } => self.peer_connected(peer, incarnation),
            Event::Ended { peer, incarnation } => self.peer_ended(peer, incarnation),
            Event::Published { peer, ticket, published } => {
                self.published(peer, ticket, published);
            }
            Event::View(view) => self.install(view),
            Event::Lease { until } => {
                self.lease_until = self.lease_until.max(until);
                for id in std::mem::take(&mut self.lease_waiting) {
                    self.ready.push_back(id);
                }
            }
            Event::Tick => {}
        }
    }

    fn request(&mut self, id: RequestId, client: ClientId, request: Request) {
        let caller = Caller::Request(id, client);
        let set = |name: Name| layout::set(name.set()).ok_or(CacheError::Invalid);
        let started = match request {
            Request::Get { name } => set(name).map(|s| Kind::Get(get::Get::new(name, s))),
            Request::Transact(t) => write::Write::new(t, Some(client)).map(Kind::Write),
            Request::GetOf { node, name } => Ok(ask::Ask::kind(node, name)),
            Request::Grab { name } => {
                set(name).map(|s| Kind::Grab(grab::Grabbing::new(name, s, client)))
            }
            Request::Wait { on, .. } => Ok(Kind::Wait(wait::Wait::new(on, client))),
            Request::Release { name } => {
                if self.frozen {
                    let request = Request::Release { name };
                    self.deferred.push(Event::Request { id, client, request });
                } else {
                    self.release_grab(name, client);
                    self.out.push(Action::Reply { id, reply: Ok(Reply::Done) });
                }
                return;
            }
            Request::Restore(objects) => Ok(Kind::Restore(restore::Restore::new(objects))),
            Request::List { set, after } => Ok(Kind::Page(list::Page::Names { set, after })),
            Request::Objects { set, after } => Ok(Kind::Page(list::Page::Objects { set, after })),
            Request::Dump { after, everything } => {
                Ok(Kind::Page(list::Page::Dump { everything, after }))
            }
            Request::Status => {
                let reply = Ok(Reply::Status(Box::new(self.status())));
                self.out.push(Action::Reply { id, reply });
                return;
            }
            Request::NextEvent | Request::InstallView(_) | Request::Rehome { .. } => {
                Err(CacheError::Invalid)
            }
        };
        let refused = match started {
            Ok(kind) if self.known_outside() => {
                self.spawn(caller, kind).is_none().then_some(CacheError::Busy)
            }
            Ok(_) => Some(CacheError::NoQuorum),
            Err(e) => Some(e),
        };
        if let Some(e) = refused {
            self.out.push(Action::Reply { id, reply: Err(e) });
        }
    }

    /// Whether there is any use in starting an operation: this node is a member of some view, and
    /// has a lease or is in the middle of a change of view that may give it one.
    fn known_outside(&self) -> bool {
        self.view.member(self.config.node).is_some() && (self.frozen || self.lease_valid())
    }

    fn message(&mut self, from: u8, bytes: Vec<u8>) {
        let Some(message) = Message::decode(&bytes) else { return };
        self.stats.messages_handled += 1;
        if let Message::Confirm { epoch, step, affected, gone, settled } = message {
            self.confirmed(from, epoch, step, affected, gone, settled);
            return;
        }
        if self.view.member(from).is_none() {
            return;
        }
        match message {
            // Answers go to their operations whatever happens; those know what they wait for.
            Message::Allocated { ticket, result } => {
                if !self.frozen {
                    self.answered(ticket, Part::Slot(result));
                }
            }
            Message::Watching { ticket } => self.answered(ticket, Part::Watching),
            Message::Told { ticket, published } => {
                self.answered(ticket, Part::Published(published));
            }
            Message::Notify { name } => self.changed_here(name),
            _ if self.frozen => {
                if self.deferred.len() < op::MAX_OPS {
                    self.deferred.push(Event::Message { from, bytes });
                }
            }
            Message::Allocate { ticket, name, len } => {
                self.allocate(name, len, Asker { node: from, ticket });
            }
            Message::Free { name, slot } => self.free_hint(name, slot),
            Message::GiveBack { name } => self.give_back_asked(name, from),
            Message::Ended { name } => self.look_now(name),
            Message::Ask { ticket, name } => self.asked(from, ticket, name),
            Message::Watch { ticket, name } => self.watch_asked(from, ticket, name),
            Message::Changed { name } => self.notify(name),
            Message::Confirm { .. } => {}
        }
    }

    fn send(&mut self, peer: u8, message: &Message) {
        self.stats.messages_sent += 1;
        self.out.push(Action::Send { peer, bytes: message.encode() });
    }

    fn lease_valid(&self) -> bool {
        self.now < self.lease_until || self.bug(Bug::LeaseOnHitsOnly)
    }

    /// Whether this node may answer from what it sees.
    fn serving(&self) -> bool {
        !self.frozen && self.lease_valid()
    }

    /// Whether this node holds a complete copy of an object's shard.
    fn replica_of(&self, name: Name) -> bool {
        self.view.replicas(name.shard()).complete().contains(self.config.node)
    }

    fn was_affected(&self, shard: crate::name::Shard) -> bool {
        self.affected.contains(shard.0)
    }
}
