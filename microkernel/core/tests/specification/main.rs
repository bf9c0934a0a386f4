//! Random sequences of events, in the kernel and in its executable specification: after each one
//! both must have ordered the same, hold the same capabilities and charge the same, and every
//! invariant of the kernel must hold. A failing sequence is printed, shortened, with its seed, and
//! kept in `tests/proptest-regressions`.

mod model;

use clustix_abi::{
    Fault, GuardData, Hosted, Invocation as Label, MessageInfo, ObjectType, Rights, Syscall,
};
use clustix_kernel_core::event::{MESSAGE_CAPS, MESSAGE_WORDS};
use clustix_kernel_core::{
    Action, ChannelId, Delivery, Event, Grant, Invocation, Kernel, Message, Object, PdDeclaration,
    PdId, RegionId, Request, StubId,
};
use model::{Delivered, Id, Kind, Model, Step};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

/// One kernel for all: it is too large for a stack.
static KERNEL: Mutex<Kernel> = Mutex::new(Kernel::new());

const PDS: usize = 4;

/// A slot, chosen when its event comes: the `choice`th of those that hold what is wanted.
#[derive(Clone, Copy, Debug)]
struct Slot {
    choice: usize,
    /// Instead: this one, whatever it holds.
    index: Option<u64>,
}

/// What an operation wants its slot to hold.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Want {
    Any,
    Empty,
    /// An endpoint that can be sent to.
    Send,
    /// An endpoint that can be received from.
    Receive,
    Ipc,
    Reply,
    CNode,
    Untyped,
    Pd,
    StubPool,
    Stub,
    RegionPool,
    Region,
    Metrics,
}

fn fits(want: Want, kind: &Kind, rights: Rights) -> bool {
    match kind {
        Kind::Untyped(_) => matches!(want, Want::Any | Want::Untyped),
        Kind::CNode(_) => matches!(want, Want::Any | Want::CNode),
        Kind::Pd(_) => matches!(want, Want::Any | Want::Pd),
        Kind::StubPool => matches!(want, Want::Any | Want::StubPool),
        Kind::RegionPool => matches!(want, Want::Any | Want::RegionPool),
        Kind::Metrics => matches!(want, Want::Any | Want::Metrics),
        Kind::Endpoint { .. } => match want {
            Want::Any | Want::Ipc => true,
            Want::Send => rights.contains(Rights::WRITE),
            Want::Receive => rights.contains(Rights::READ),
            _ => false,
        },
        Kind::Notification { .. } => matches!(want, Want::Any | Want::Ipc),
        Kind::Reply => matches!(want, Want::Any | Want::Reply),
        Kind::Region { .. } => matches!(want, Want::Any | Want::Region),
        Kind::Stub { .. } => matches!(want, Want::Any | Want::Stub),
    }
}

/// Something that happens, in small numbers that mean something in any state.
#[derive(Clone, Debug)]
enum Op {
    Start(usize),
    Die { pd: usize, stale: bool, status: i32 },
    StubDied(usize, i32),
    StubsForgotten(usize),
    StubFailed(usize),
    RegionFailed(usize),
    SealFailed(usize),
    Cancel(usize),
    CNode(CNodeOp),
    Retype { pd: usize, untyped: Slot, root: Slot, kind: usize, offset: u64, count: u64, odd: u8 },
    Ipc(IpcOp),
    Hosted { pd: usize, label: usize, slot: Slot, argument: u64, cap: Slot, odd: u8 },
}

#[derive(Clone, Debug)]
struct CNodeOp {
    pd: usize,
    label: usize,
    service: Slot,
    to: Slot,
    root: Slot,
    from: Slot,
    pivot: Slot,
    rights: u64,
    data: u64,
    odd: u8,
}

#[derive(Clone, Debug)]
struct IpcOp {
    pd: usize,
    syscall: usize,
    slot: Slot,
    send: Slot,
    reply: Option<Slot>,
    receive: Slot,
    caps: Vec<Slot>,
    words: usize,
    label: u64,
    second: u64,
}

fn slot() -> impl Strategy<Value = Slot> {
    let index = prop_oneof![11 => Just(None), 1 => (0u64..64).prop_map(Some)];
    (0usize..12, index).prop_map(|(choice, index)| Slot { choice, index })
}

fn pd() -> impl Strategy<Value = usize> {
    0..PDS
}

/// Zero almost always; else the way in which an operation is malformed.
fn odd() -> impl Strategy<Value = u8> {
    prop_oneof![24 => Just(0u8), 1 => 1u8..6]
}

fn cnode_op() -> impl Strategy<Value = CNodeOp> {
    let data = prop_oneof![
        4 => Just(0u64),
        4 => 1u64..4,
        // Guards that are the PDs' own, that make CNodes nest, and that cannot be.
        1 => Just(GuardData { bits: 0, size: 58 }.word()),
        1 => Just(GuardData { bits: 1, size: 2 }.word()),
        1 => Just(GuardData { bits: 0, size: 60 }.word()),
        1 => any::<u64>(),
    ];
    ((pd(), 0usize..9, slot(), slot(), slot()), (slot(), slot(), 0u64..16, data, odd())).prop_map(
        |((pd, label, service, to, root), (from, pivot, rights, data, odd))| CNodeOp {
            pd,
            label,
            service,
            to,
            root,
            from,
            pivot,
            rights,
            data,
            odd,
        },
    )
}

fn ipc_op() -> impl Strategy<Value = IpcOp> {
    let reply = prop_oneof![1 => Just(None), 6 => slot().prop_map(Some)];
    // Call, ReplyRecv, Recv and Reply, and now and then any.
    let syscall = prop_oneof![
        4 => Just(0),
        2 => Just(1),
        4 => Just(4),
        2 => Just(5),
        6 => 0..Syscall::ALL.len(),
    ];
    let words = prop_oneof![20 => 0..=MESSAGE_WORDS, 1 => MESSAGE_WORDS + 1..=127];
    (
        (pd(), syscall, slot(), slot(), reply),
        (slot(), prop::collection::vec(slot(), 0..=MESSAGE_CAPS), words, 0u64..8, 0u64..256),
    )
        .prop_map(
            |((pd, syscall, slot, send, reply), (receive, caps, words, label, second))| IpcOp {
                pd,
                syscall,
                slot,
                send,
                reply,
                receive,
                caps,
                words,
                label,
                second,
            },
        )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => pd().prop_map(Op::Start),
        2 => (pd(), prop::bool::weighted(0.2), any::<i32>())
            .prop_map(|(pd, stale, status)| Op::Die { pd, stale, status }),
        2 => (any::<usize>(), any::<i32>()).prop_map(|(k, s)| Op::StubDied(k, s)),
        // Mostly of the one that makes stubs.
        2 => prop_oneof![3 => Just(2), 1 => pd()].prop_map(Op::StubsForgotten),
        1 => any::<usize>().prop_map(Op::StubFailed),
        1 => any::<usize>().prop_map(Op::RegionFailed),
        1 => any::<usize>().prop_map(Op::SealFailed),
        1 => any::<usize>().prop_map(Op::Cancel),
        24 => cnode_op().prop_map(Op::CNode),
        8 => (pd(), slot(),
              slot(),
              0usize..14, 0u64..66, 0u64..4, odd())
            .prop_map(|(pd, untyped, root, kind, offset, count, odd)| Op::Retype {
                pd, untyped, root, kind, offset, count, odd,
            }),
        40 => ipc_op().prop_map(Op::Ipc),
        20 => (pd(), 0..Hosted::ALL.len(), slot(), 0u64..3, slot(), odd())
            .prop_map(|(pd, label, slot, argument, cap, odd)| Op::Hosted {
                pd, label, slot, argument, cap, odd,
            }),
    ]
}

struct Both<'a> {
    kernel: &'a mut Kernel,
    model: Model,
    /// The model's number of each object of the kernel.
    known: HashMap<Object, Id>,
    channels: BTreeMap<ChannelId, String>,
    /// Everything there ever was, for words about what is gone.
    stubs: Vec<(StubId, Id)>,
    regions: Vec<(RegionId, Id)>,
    request: u64,
    /// How often each thing happened, to see that the sequences reach it.
    seen: BTreeMap<String, usize>,
}

impl<'a> Both<'a> {
    /// Four PDs: a supervisor, a server, and two clients, one of whose CSpaces has room for a
    /// second level.
    fn declare(kernel: &'a mut Kernel, keeps_stubs: bool) -> Self {
        kernel.reset();
        let mut both = Both {
            kernel,
            model: Model::default(),
            known: HashMap::new(),
            channels: BTreeMap::new(),
            stubs: Vec::new(),
            regions: Vec::new(),
            request: 0,
            seen: BTreeMap::new(),
        };
        let guards = [(0, 58), (0, 58), (5, 58), (3, 50)];
        for ((bits, size), budget) in guards.into_iter().zip([3, 6, 7, 5]) {
            let guard = GuardData { bits, size };
            let radix = 6;
            // Both kinds of what a death leaves are met: one run's PDs keep their stubs, another's do not.
            let declaration = PdDeclaration { radix, guard, budget, keeps_stubs };
            let pd = both.kernel.declare_pd(declaration).unwrap();
            let n = both.model.declare_pd(u32::from(radix), guard, budget);
            both.model.pds[n].keeps_stubs = keeps_stubs;
            assert_eq!(usize::from(pd.0), n);
            both.know(Object::Untyped(pd), Kind::Untyped(n));
            both.know(Object::CNode(pd.0), Kind::CNode(n));
            both.know(Object::Pd(pd), Kind::Pd(n));
        }
        let endpoints = [0, 1, 2].map(|n| {
            let id = both.kernel.declare_endpoint(Some(PdId(n))).unwrap();
            let theirs = both.model.declare(Kind::Endpoint { server: Some(usize::from(n)) });
            both.known.insert(Object::Endpoint(id), theirs);
            id
        });
        let [supervisor, server, stubs] = endpoints.map(Object::Endpoint);
        let note = Object::Notification(both.kernel.declare_notification().unwrap());
        let theirs = both.model.declare(Kind::Notification { signalled: None });
        both.known.insert(note, theirs);
        let region = both.kernel.declare_region(4096).unwrap();
        let theirs = both.model.declare(Kind::Region { sealed: false });
        both.known.insert(Object::Region(region), theirs);
        both.regions.push((region, theirs));
        let (all, client) = (Rights::ALL, Rights::CLIENT);
        let (write, read) = (Rights::WRITE, Rights::READ);
        let grants = [
            (0, 16, Object::Pd(PdId(1)), all, 0),
            (0, 17, Object::Pd(PdId(2)), write, 0),
            (0, 18, supervisor, read | Rights::GRANT, 0),
            (0, 19, Object::CNode(1), all, 0),
            (0, 20, server, client, 1),
            (1, 16, server, read | Rights::GRANT, 0),
            (1, 17, note, read, 0),
            (1, 18, Object::CNode(3), all, 0),
            (1, 19, server, all, 0),
            (1, 20, server, read, 0),
            (2, 16, server, client, 7),
            (2, 17, server, write | Rights::GRANT_REPLY, 2),
            (2, 18, note, write, 1),
            (2, 19, Object::StubPool, all, 0),
            (2, 20, Object::RegionPool, all, 0),
            (2, 21, Object::Metrics, all, 0),
            (2, 22, stubs, all, 0),
            (3, 16, server, all, 0),
            (3, 17, note, all, 0),
            (3, 18, Object::Region(region), read | write, 0),
            (3, 19, Object::CNode(2), all, 0),
            (3, 20, Object::StubPool, read, 0),
            (3, 21, Object::Untyped(PdId(2)), all, 0),
            (3, 22, supervisor, client, 3),
        ];
        for (pd, slot, object, rights, badge) in grants {
            let grant = Grant { pd: PdId(pd), slot, object, rights, badge };
            both.kernel.declare_grant(grant).unwrap();
            let theirs = both.known.get(&object).copied().unwrap_or_else(|| {
                let kind = match object {
                    Object::StubPool => Kind::StubPool,
                    Object::RegionPool => Kind::RegionPool,
                    _ => Kind::Metrics,
                };
                let id = both.model.declare(kind);
                both.known.insert(object, id);
                id
            });
            // Of these the rights are always all; CNodes have their guard as data.
            let fixed = matches!(object, Object::CNode(_) | Object::Untyped(_));
            let rights = if fixed { all } else { rights };
            let data = match object {
                Object::CNode(n) => both.model.pds[usize::from(n)].guard.word(),
                _ => badge,
            };
            let grant = model::Grant { slot, object: theirs, rights, badge: data };
            both.model.pds[usize::from(pd)].grants.push(grant);
        }
        for n in 1..PDS as u16 {
            both.kernel.declare_fault(PdId(n), endpoints[0], 100 + u64::from(n)).unwrap();
            let theirs = both.known[&supervisor];
            both.model.pds[usize::from(n)].fault = Some((theirs, 100 + u64::from(n)));
        }
        both.kernel.declare_stub_fault(PdId(2), endpoints[2], 55).unwrap();
        both.model.pds[2].stub_fault = Some((both.known[&stubs], 55));
        both
    }

    fn know(&mut self, object: Object, kind: Kind) {
        let id = self.model.find(&kind);
        self.known.insert(object, id);
    }

    /// The PD that does something with what is wanted: the one asked for if it has such, else
    /// any that has.
    fn doer(&self, pd: usize, want: Want) -> usize {
        let has = |n: &usize| {
            let caps = self.model.caps.range((*n, 0)..=(*n, u64::MAX));
            caps.into_iter().any(|(_, c)| fits(want, &self.model.objects[&c.object].kind, c.rights))
        };
        (0..PDS).map(|i| (pd + i) % PDS).find(has).unwrap_or(pd)
    }

    /// The index of a chosen slot.
    fn pick(&self, pd: usize, want: Want, slot: Slot) -> u64 {
        if let Some(index) = slot.index {
            return index;
        }
        let found: Vec<u64> = (0..64)
            .filter(|i| match self.model.caps.get(&(pd, *i)) {
                Some(c) => fits(want, &self.model.objects[&c.object].kind, c.rights),
                None => want == Want::Empty && *i >= 16,
            })
            .collect();
        let at = slot.choice.checked_rem(found.len());
        at.map_or(slot.choice as u64 + 16, |at| found[at])
    }

    /// A slot of the CNode that the capability at `service` names.
    fn inside(&self, pd: usize, service: u64, want: Want, slot: Slot) -> u64 {
        let owner = self.model.caps.get(&(pd, service)).and_then(|c| {
            match self.model.objects[&c.object].kind {
                Kind::CNode(n) => Some(n),
                _ => None,
            }
        });
        self.pick(owner.unwrap_or(pd), want, slot)
    }

    /// The CPtr of a slot in a PD's root CNode; `second` fills bits that are left over.
    fn cptr(&self, pd: usize, index: u64, second: u64) -> u64 {
        let p = &self.model.pds[pd];
        let left = 64 - u32::from(p.guard.size) - p.radix;
        let high = p.guard.bits << p.radix | index;
        high << left | (second & ((1u64 << left) - 1))
    }

    /// Index and depth that lead from the CNode capability in a slot to one of its slots.
    fn path(&self, pd: usize, service: u64, index: u64) -> (u64, u64) {
        let guard = match self.model.caps.get(&(pd, service)) {
            Some(c) if matches!(self.model.objects[&c.object].kind, Kind::CNode(_)) => {
                GuardData::from_word(c.data).unwrap()
            }
            _ => GuardData { bits: 0, size: 0 },
        };
        (guard.bits << 6 | index, u64::from(guard.size) + 6)
    }

    fn invocation(
        &mut self,
        pd: usize,
        cptr: u64,
        label: u64,
        words: &[u64],
        caps: &[u64],
    ) -> Invocation {
        self.request += 1;
        let mut message = Message {
            info: MessageInfo::new(label, 0, caps.len(), words.len()),
            ..Default::default()
        };
        message.words.iter_mut().zip(words).for_each(|(to, from)| *to = *from);
        let mut passed = [0; MESSAGE_CAPS];
        passed.iter_mut().zip(caps).for_each(|(to, from)| *to = *from);
        Invocation {
            pd: PdId(pd as u16),
            request: self.request,
            syscall: Syscall::Call,
            cptr,
            send: 0,
            reply: 0,
            message,
            caps: passed,
            receive: 0,
        }
    }

    /// Makes an invocation malformed in one of five ways.
    fn spoil(inv: &mut Invocation, odd: u8) {
        let info = inv.message.info;
        let (label, caps, length) = (info.label(), info.extra_caps(), info.length());
        match odd {
            1 => inv.message.info = MessageInfo::new(label, 0, caps, length.saturating_sub(1)),
            2 => inv.message.info = MessageInfo::new(label, 0, 0, length),
            3 => inv.message.words[1] = 65,
            4 => inv.message.words[1] = inv.message.words[1].wrapping_sub(1),
            5 => inv.message.words[0] ^= 1 << 20,
            _ => {}
        }
    }

    fn step(&mut self, op: &Op) -> Option<(Event, Step)> {
        Some(match op {
            Op::Start(n) => (Event::Start { pd: PdId(*n as u16) }, Step::Start(*n)),
            Op::Die { pd, stale, status } => {
                let incarnation = self.model.pds[*pd].incarnation.wrapping_sub(u32::from(*stale));
                (
                    Event::PdDied { pd: PdId(*pd as u16), incarnation, status: *status },
                    Step::PdDied(*pd, incarnation, *status),
                )
            }
            Op::StubDied(k, status) => {
                let (stub, id) = *self.stubs.get(k.checked_rem(self.stubs.len())?)?;
                (Event::StubDied { stub, status: *status }, Step::StubDied(id, *status))
            }
            Op::StubsForgotten(n) => {
                (Event::StubsForgotten { pd: PdId(*n as u16) }, Step::StubsForgotten(*n))
            }
            Op::StubFailed(k) => {
                let (stub, id) = *self.stubs.get(k.checked_rem(self.stubs.len())?)?;
                (Event::StubFailed { stub }, Step::StubFailed(id))
            }
            Op::RegionFailed(k) => {
                // Not the declared one: the host has it before anything runs.
                let k = 1 + k.checked_rem(self.regions.len() - 1)?;
                let (region, id) = self.regions[k];
                (Event::RegionFailed { region }, Step::RegionFailed(id))
            }
            Op::SealFailed(k) => {
                let (region, id) = self.regions[k % self.regions.len()];
                (Event::SealFailed { region }, Step::SealFailed(id))
            }
            Op::Cancel(k) => {
                let waiting = self.model.waiting();
                let (n, request) = *waiting.get(k.checked_rem(waiting.len())?)?;
                (Event::Cancel { pd: PdId(n as u16), request }, Step::Cancel(n, request))
            }
            Op::CNode(o) => {
                let label = [
                    Label::CNodeRevoke,
                    Label::CNodeDelete,
                    Label::CNodeCancelBadgedSends,
                    Label::CNodeCopy,
                    Label::CNodeMint,
                    Label::CNodeMove,
                    Label::CNodeMutate,
                    Label::CNodeRotate,
                    Label::CNodeSaveCaller,
                ][o.label];
                let service = self.pick(o.pd, Want::CNode, o.service);
                let root = self.pick(o.pd, Want::CNode, o.root);
                let empty = matches!(o.label, 3..8);
                let want = if empty { Want::Empty } else { Want::Any };
                let to = self.inside(o.pd, service, want, o.to);
                let from = self.inside(o.pd, root, Want::Any, o.from);
                let pivot = self.inside(o.pd, root, Want::Any, o.pivot);
                // Rotate with its source as destination exchanges two.
                let to = if label == Label::CNodeRotate && o.rights < 4 { from } else { to };
                let (to, to_depth) = self.path(o.pd, service, to);
                let (from, from_depth) = self.path(o.pd, root, from);
                let (pivot, pivot_depth) = self.path(o.pd, root, pivot);
                let words = match label {
                    Label::CNodeRotate => {
                        vec![to, to_depth, 0, pivot, pivot_depth, o.data, from, from_depth]
                    }
                    Label::CNodeMutate => vec![to, to_depth, from, from_depth, o.data],
                    _ => vec![to, to_depth, from, from_depth, o.rights, o.data],
                };
                let root = self.cptr(o.pd, root, 0);
                let service = self.cptr(o.pd, service, 0);
                let mut inv = self.invocation(o.pd, service, label.number(), &words, &[root, root]);
                Self::spoil(&mut inv, o.odd);
                (Event::Invoke(inv), Step::Invoke(inv))
            }
            Op::Retype { pd, untyped, root, kind, offset, count, odd } => {
                let kind = match kind {
                    0..4 => ObjectType::EndpointObject,
                    4..6 => ObjectType::NotificationObject,
                    6..12 => ObjectType::ReplyObject,
                    12 => ObjectType::TCBObject,
                    _ => ObjectType::StubObject,
                };
                let untyped = self.pick(*pd, Want::Untyped, *untyped);
                let root = self.pick(*pd, Want::CNode, *root);
                let offset = match offset {
                    60.. => *offset,
                    k => {
                        let slot = Slot { choice: *k as usize, index: None };
                        self.inside(*pd, root, Want::Empty, slot)
                    }
                };
                // Sometimes the CNode is found by a path from itself.
                let words = if *count == 3 {
                    let (index, depth) = self.path(*pd, root, 2);
                    [kind.number(), 0, index, depth, offset, 1]
                } else {
                    [kind.number(), 0, 0, 0, offset, *count]
                };
                let (cptr, root) = (self.cptr(*pd, untyped, 0), self.cptr(*pd, root, 0));
                let label = Label::UntypedRetype.number();
                let mut inv = self.invocation(*pd, cptr, label, &words, &[root]);
                Self::spoil(&mut inv, *odd);
                (Event::Invoke(inv), Step::Invoke(inv))
            }
            Op::Ipc(o) => {
                let syscall = Syscall::ALL[o.syscall];
                let replies = matches!(syscall, Syscall::Reply | Syscall::ReplyRecv);
                let part = match syscall {
                    Syscall::Call | Syscall::Send | Syscall::NBSend => Want::Send,
                    _ => Want::Receive,
                };
                let want = if replies { Want::Reply } else { part };
                let pd = self.doer(o.pd, want);
                let at = |want, slot| self.cptr(pd, self.pick(pd, want, slot), 0);
                let caps: Vec<u64> = o.caps.iter().map(|c| at(Want::Any, *c)).collect();
                // Mostly an endpoint, and then mostly the server's.
                let want = if o.second.is_multiple_of(4) { Want::Any } else { part };
                let cptr = self.cptr(pd, self.pick(pd, want, o.slot), o.second);
                let (send, receive) = (at(Want::Ipc, o.send), at(Want::Empty, o.receive));
                let reply = o.reply.map_or(0, |r| at(Want::Reply, r));
                let words: Vec<u64> =
                    (0..MESSAGE_WORDS as u64).map(|w| w * 1000 + o.label).collect();
                let mut inv = self.invocation(pd, cptr, o.label, &words, &caps);
                inv.message.info = model::info(o.label, caps.len(), o.words);
                inv.syscall = syscall;
                inv.send = send;
                inv.reply = reply;
                inv.receive = receive;
                (Event::Invoke(inv), Step::Invoke(inv))
            }
            Op::Hosted { pd, label, slot, argument, cap, odd } => {
                let hosted = Hosted::ALL[*label];
                let want = match hosted {
                    Hosted::PdStart | Hosted::PdKill | Hosted::PdStatus => Want::Pd,
                    Hosted::StubSpawn => Want::StubPool,
                    Hosted::StubFork | Hosted::StubKill | Hosted::StubPreempt => Want::Stub,
                    Hosted::RegionCreate => Want::RegionPool,
                    Hosted::RegionSeal | Hosted::RegionSend | Hosted::RegionMap => Want::Region,
                    Hosted::MetricsRead | Hosted::MetricsPds => Want::Metrics,
                };
                let pd = &self.doer(*pd, want);
                let cptr = self.cptr(*pd, self.pick(*pd, want, *slot), 0);
                let cap = self.cptr(*pd, self.pick(*pd, Want::Stub, *cap), 0);
                let label = hosted.number();
                let mut inv = self.invocation(*pd, cptr, label, &[*argument, 0], &[cap]);
                Self::spoil(&mut inv, *odd);
                (Event::Invoke(inv), Step::Invoke(inv))
            }
        })
    }

    fn run(&mut self, op: &Op) {
        let Some((event, step)) = self.step(op) else { return };
        let before = self.descendants(&step);
        let theirs = self.model.handle(&step);
        let actions = self.kernel.handle(event).to_vec();
        self.compare_caps();
        let mut ours: Vec<String> = actions.iter().map(|a| self.text(a)).collect();
        ours.sort();
        assert_eq!(ours, theirs, "actions of the kernel, and of the specification, at {event:?}");
        assert_eq!(self.kernel.check(), Ok(()), "after {event:?}");
        for n in 0..PDS {
            let used = self.kernel.pd_budget(PdId(n as u16)).unwrap().0;
            assert_eq!(used, self.model.used(n), "objects charged to PD {n}");
            assert_eq!(self.kernel.pd_state(PdId(n as u16)), Some(self.model.pds[n].state));
        }
        self.count(&step, &actions, before);
        let model = &self.model;
        self.known.retain(|_, id| model.objects.contains_key(id));
    }

    /// For a revocation: how many capabilities it should remove.
    fn descendants(&self, step: &Step) -> usize {
        let Step::Invoke(inv) = step else { return 0 };
        if inv.message.info.label() != Label::CNodeRevoke.number() || inv.cptr & 63 != 2 {
            return 0;
        }
        self.model.descendants((usize::from(inv.pd.0), inv.message.words[0] & 63)).len()
    }

    fn count(&mut self, step: &Step, actions: &[Action], descendants: usize) {
        let mut seen = |what: String| *self.seen.entry(what).or_default() += 1;
        match step {
            Step::PdDied(n, ..) if self.model.pds[*n].state == clustix_kernel_core::State::Dead => {
                let kept = self.model.used(*n);
                (0..kept).for_each(|_| seen("stub kept".to_owned()));
            }
            Step::StubsForgotten(_) if !actions.is_empty() => seen("stubs forgotten".to_owned()),
            _ => {}
        }
        for action in actions {
            let name = format!("{action:?}");
            seen(name.split([' ', '{']).next().unwrap().to_owned());
            let Action::Answer { to, result } = action else { continue };
            let own = match step {
                Step::Invoke(inv) => (inv.pd == to.pd && inv.request == to.request).then_some(inv),
                _ => None,
            };
            match (result, own) {
                (Err(e), own) => {
                    seen(format!("{e:?}{}", if own.is_none() { " later" } else { "" }))
                }
                (Ok(d), own) => {
                    let info = d.message.info;
                    if info.caps_unwrapped() != 0 {
                        seen("capability unwrapped".to_owned());
                    }
                    if info.extra_caps() > info.caps_unwrapped().count_ones() as usize {
                        seen("capability received".to_owned());
                    }
                    match Fault::from_number(info.label()) {
                        Some(fault) if d.badge >= 55 && info.length() >= 2 => {
                            seen(format!("{fault:?} told"));
                        }
                        _ => {}
                    }
                    let Some(inv) = own else {
                        seen("answered later".to_owned());
                        let answer = match step {
                            Step::Invoke(i) => {
                                matches!(i.syscall, Syscall::Reply | Syscall::ReplyRecv)
                                    && i.message.info.extra_caps() > 0
                            }
                            _ => false,
                        };
                        if answer {
                            let passed = info.extra_caps() > 0;
                            seen(format!("answer with a capability, passed: {passed}"));
                        }
                        continue;
                    };
                    if inv.syscall == Syscall::Call {
                        let label = Label::from_number(inv.message.info.label());
                        seen(format!("call done {label:?}"));
                    } else {
                        seen(format!("{:?} done", inv.syscall));
                    }
                }
            }
        }
        if descendants > 1 && matches!(actions, [.., Action::Answer { result: Ok(_), .. }]) {
            seen("revoked more than one".to_owned());
        }
    }

    /// Both hold the same capabilities in the same slots; objects seen for the first time are the
    /// same from now on.
    fn compare_caps(&mut self) {
        for n in 0..PDS {
            let ours: BTreeMap<u64, _> = self.kernel.caps(PdId(n as u16)).collect();
            let theirs: BTreeMap<u64, _> =
                self.model.caps.range((n, 0)..=(n, u64::MAX)).map(|((_, i), c)| (*i, c)).collect();
            assert_eq!(
                ours.keys().collect::<Vec<_>>(),
                theirs.keys().collect::<Vec<_>>(),
                "full slots of PD {n}"
            );
            for (index, cap) in ours {
                let spec = theirs[&index];
                if !self.known.contains_key(&cap.object) {
                    assert!(!self.known.values().any(|id| *id == spec.object));
                    self.known.insert(cap.object, spec.object);
                    match cap.object {
                        Object::Stub(id) => self.stubs.push((id, spec.object)),
                        Object::Region(id) => self.regions.push((id, spec.object)),
                        _ => {}
                    }
                }
                let ours = (self.known[&cap.object], cap.rights, cap.data);
                assert_eq!(ours, (spec.object, spec.rights, spec.data), "slot {index} of PD {n}");
            }
        }
    }

    fn delivered(&self, d: &Delivery) -> Delivered {
        let info = d.message.info;
        let (words, rest) = d.message.words.split_at(info.length());
        let (caps, no_caps) = d.caps.split_at(info.extra_caps());
        assert!(rest.iter().chain(no_caps).all(|w| *w == 0), "nothing beyond the message");
        let mut words = words.to_vec();
        let fault = d.badge == 55 && info.label() == Fault::StubDeath.number();
        if fault {
            let stub = self.stubs.iter().find(|(s, _)| u64::from(s.0) == words[0]);
            words[0] = u64::from(stub.unwrap().1);
        }
        Delivered {
            badge: d.badge,
            label: info.label(),
            unwrapped: info.caps_unwrapped(),
            caps: caps.to_vec(),
            words,
        }
    }

    fn stub(&self, stub: StubId) -> Id {
        self.known[&Object::Stub(stub)]
    }

    fn region(&self, region: RegionId) -> Id {
        self.known[&Object::Region(region)]
    }

    fn text(&mut self, action: &Action) -> String {
        let to = |r: &Request| format!("{}/{}", r.pd.0, r.request);
        match action {
            Action::Answer { to, result } => {
                let result = result.map(|d| self.delivered(&d));
                model::answer(usize::from(to.pd.0), to.request, &result)
            }
            Action::PdStart { pd, incarnation } => format!("pd-start {} {incarnation}", pd.0),
            Action::PdKill { pd, incarnation } => format!("pd-kill {} {incarnation}", pd.0),
            Action::ChannelOpen { channel, client, server, endpoint, badge } => {
                let id = self.known[&Object::Endpoint(*endpoint)];
                let kind = &self.model.objects[&id].kind;
                assert_eq!(*kind, Kind::Endpoint { server: Some(usize::from(server.0)) });
                let key = format!("{} {id} {badge}", client.0);
                assert_eq!(self.channels.insert(*channel, key.clone()), None, "used once");
                format!("channel-open {key}")
            }
            Action::ChannelRevoke { channel } => {
                format!("channel-revoke {}", self.channels[channel])
            }
            Action::StubSpawn { stub, slot, to: r } => {
                format!("stub-spawn {} {slot} {}", self.stub(*stub), to(r))
            }
            Action::StubFork { stub, parent, slot, to: r } => {
                let (stub, parent) = (self.stub(*stub), self.stub(*parent));
                format!("stub-fork {stub} {parent} {slot} {}", to(r))
            }
            Action::StubKill { stub } => format!("stub-kill {}", self.stub(*stub)),
            Action::StubDestroy { stub } => format!("stub-destroy {}", self.stub(*stub)),
            Action::StubPreempt { stub } => format!("stub-preempt {}", self.stub(*stub)),
            Action::RegionCreate { region, length, slot, to: r } => {
                format!("region-create {} {length} {slot} {}", self.region(*region), to(r))
            }
            Action::RegionSeal { region, to: r } => {
                format!("region-seal {} {}", self.region(*region), to(r))
            }
            Action::RegionSend { region, stub, to: r } => {
                let (region, stub) = (self.region(*region), self.stub(*stub));
                format!("region-send {region} {stub} {}", to(r))
            }
            Action::RegionMap { region, pd, writable, to: r } => {
                let asker = r.as_ref().map_or("boot".to_owned(), to);
                format!("region-map {} {} {writable} {asker}", self.region(*region), pd.0)
            }
            Action::RegionDestroy { region } => {
                format!("region-destroy {}", self.region(*region))
            }
            Action::MetricsRead { to: r } => format!("MetricsRead {}", to(r)),
            Action::MetricsPds { to: r } => format!("MetricsPds {}", to(r)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn kernel_does_what_the_specification_says(
        keeps_stubs in any::<bool>(),
        ops in prop::collection::vec(op(), 1..300),
    ) {
        let mut kernel = KERNEL.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut both = Both::declare(&mut kernel, keeps_stubs);
        for n in 0..PDS {
            both.run(&Op::Start(n));
        }
        for op in &ops {
            both.run(op);
        }
    }
}

/// What passes because it never happens proves nothing.
#[test]
fn the_sequences_reach_everything() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let sequences = prop::collection::vec(op(), 300);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut kernel = KERNEL.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for turn in 0..100 {
        let ops = sequences.new_tree(&mut runner).unwrap().current();
        let mut both = Both::declare(&mut kernel, turn % 2 == 0);
        for op in (0..PDS).map(Op::Start).collect::<Vec<_>>().iter().chain(&ops) {
            both.run(op);
        }
        for (what, n) in both.seen {
            *seen.entry(what).or_default() += n;
        }
    }
    println!("{seen:#?}");
    let labels = [
        "UntypedRetype",
        "CNodeRevoke",
        "CNodeDelete",
        "CNodeCancelBadgedSends",
        "CNodeCopy",
        "CNodeMint",
        "CNodeMove",
        "CNodeMutate",
        "CNodeRotate",
    ];
    let done = labels.map(|l| format!("call done Some({l})"));
    let syscalls =
        Syscall::ALL.iter().filter(|s| **s != Syscall::Call).map(|s| format!("{s:?} done"));
    let rest = [
        "Answer",
        "PdStart",
        "PdKill",
        "ChannelOpen",
        "ChannelRevoke",
        "StubSpawn",
        "StubFork",
        "StubKill",
        "StubDestroy",
        "StubPreempt",
        "RegionCreate",
        "RegionSeal",
        "RegionSend",
        "RegionMap",
        "RegionDestroy",
        "MetricsRead",
        "MetricsPds",
        "InvalidArgument",
        "InvalidCapability",
        "IllegalOperation",
        "RangeError",
        "FailedLookup",
        "TruncatedMessage",
        "DeleteFirst",
        "NotEnoughMemory",
        "Gone",
        "Gone later",
        "answer with a capability, passed: true",
        "answer with a capability, passed: false",
        "capability unwrapped",
        "capability received",
        "PdDeath told",
        "StubDeath told",
        "answered later",
        "revoked more than one",
        "stub kept",
        "stubs forgotten",
    ]
    .map(str::to_owned);
    let missing: Vec<_> = done
        .into_iter()
        .chain(syscalls)
        .chain(rest)
        .filter(|what| seen.get(what).is_none_or(|n| *n < 3))
        .collect();
    assert!(missing.is_empty(), "hardly or never reached: {missing:?}");
}
