//! What random sequences do not reach: the kernel's bounds, its largest steps, and raw garbage.

use clustix_abi::{
    Error, Fault, Hosted, Invocation as Label, MessageInfo, ObjectType, Rights, Syscall, slot,
};
use clustix_kernel_core::event::MESSAGE_CAPS;
use clustix_kernel_core::limits::{
    ACTIONS, CHANNELS_PER_PD, MADE_PER_PD, REGIONS, STUBS, WAITS_PER_PD,
};
use clustix_kernel_core::{
    Action, Delivery, EndpointId, Event, Grant, Invocation, Kernel, Message, Object, PdDeclaration,
    PdId, RegionId, Request, StubId,
};
use proptest::prelude::*;
use std::sync::{Mutex, MutexGuard};

static KERNEL: Mutex<Kernel> = Mutex::new(Kernel::new());

fn kernel() -> MutexGuard<'static, Kernel> {
    let mut kernel = KERNEL.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    kernel.reset();
    kernel
}

fn call(pd: PdId, cptr: u64, label: u64, words: &[u64], caps: &[u64]) -> Invocation {
    let mut message =
        Message { info: MessageInfo::new(label, 0, caps.len(), words.len()), ..Message::default() };
    message.words[..words.len()].copy_from_slice(words);
    let mut passed = [0; MESSAGE_CAPS];
    passed[..caps.len()].copy_from_slice(caps);
    Invocation {
        pd,
        request: 0,
        syscall: Syscall::Call,
        cptr,
        send: 0,
        reply: 0,
        message,
        caps: passed,
        receive: 0,
    }
}

/// The answer that a step gave to request 0 of a PD.
fn own(actions: &[Action], pd: PdId) -> Option<Result<Delivery, Error>> {
    actions.iter().find_map(|a| match a {
        Action::Answer { to: Request { pd: p, request: 0 }, result } if *p == pd => Some(*result),
        _ => None,
    })
}

fn mint(pd: PdId, from: u64, to: u64, badge: u64) -> Invocation {
    let words = [to, 64, from, 64, Rights::ALL.bits(), badge];
    call(pd, slot::CNODE, Label::CNodeMint.number(), &words, &[slot::CNODE])
}

fn delete(pd: PdId, at: u64) -> Invocation {
    call(pd, slot::CNODE, Label::CNodeDelete.number(), &[at, 64], &[])
}

/// A server, PD 0, and a client, PD 1, that holds the unbadged capability in slot 16.
fn server_and_client(k: &mut Kernel) -> (PdId, PdId, EndpointId) {
    let server = k.declare_pd(PdDeclaration { budget: 32, ..PdDeclaration::new(8) }).unwrap();
    let client = k.declare_pd(PdDeclaration { budget: 4, ..PdDeclaration::new(8) }).unwrap();
    let endpoint = k.declare_endpoint(Some(server)).unwrap();
    let object = Object::Endpoint(endpoint);
    for (pd, rights) in [(server, Rights::READ), (client, Rights::ALL)] {
        k.declare_grant(Grant { pd, slot: 16, object, rights, badge: 0 }).unwrap();
    }
    (server, client, endpoint)
}

#[test]
fn a_call_is_held_and_answered() {
    let mut k = kernel();
    let (server, client, _) = server_and_client(&mut k);
    k.handle(Event::Start { pd: server });
    k.handle(Event::Start { pd: client });
    let words = [ObjectType::ReplyObject.number(), 0, 0, 0, 20, 1];
    let label = Label::UntypedRetype.number();
    let made = k.handle(Event::Invoke(call(server, slot::UNTYPED, label, &words, &[slot::CNODE])));
    assert!(own(made, server).unwrap().is_ok());
    // The client calls; nobody is there yet.
    assert_eq!(k.handle(Event::Invoke(call(client, 16, 5, &[1, 2], &[]))), []);
    // The server receives with reply object 20, then answers and receives again.
    let receive = Invocation { syscall: Syscall::Recv, reply: 20, ..call(server, 16, 0, &[], &[]) };
    let got = own(k.handle(Event::Invoke(receive)), server).unwrap().unwrap();
    assert_eq!((got.message.info.label(), got.message.words[..2].to_vec()), (5, vec![1, 2]));
    let answer =
        Invocation { syscall: Syscall::ReplyRecv, reply: 20, ..call(server, 16, 6, &[3], &[]) };
    let actions = k.handle(Event::Invoke(answer)).to_vec();
    let [Action::Answer { to, result: Ok(d) }] = actions[..] else { panic!("{actions:?}") };
    assert_eq!((to.pd, d.message.info.label(), d.message.words[0]), (client, 6, 3));
    // Now the server waits; a call goes straight through, and its death ends it.
    let actions = k.handle(Event::Invoke(call(client, 16, 7, &[], &[]))).to_vec();
    assert_eq!(own(&actions, server).unwrap().unwrap().message.info.label(), 7);
    assert_eq!(own(&actions, client), None);
    let actions = k.handle(Event::PdDied { pd: server, incarnation: 1, status: 9 }).to_vec();
    assert_eq!(own(&actions, client), Some(Err(Error::Gone)));
    assert_eq!(k.check(), Ok(()));
}

#[test]
fn a_channel_ends_with_its_server_and_begins_with_its_next_start() {
    let mut k = kernel();
    let (server, client, endpoint) = server_and_client(&mut k);
    let opened = |actions: &[Action]| {
        actions.iter().find_map(|a| match a {
            Action::ChannelOpen { channel, client: c, server: s, endpoint: e, badge: 0 } => {
                assert_eq!((*c, *s, *e), (client, server, endpoint));
                Some(*channel)
            }
            _ => None,
        })
    };
    // Before the server's first start: it will find the channel in its boot message.
    let first = opened(k.handle(Event::Start { pd: client })).unwrap();
    assert_eq!(opened(k.handle(Event::Start { pd: server })), None);
    let died = k.handle(Event::PdDied { pd: server, incarnation: 1, status: 0 }).to_vec();
    assert_eq!(died, [Action::ChannelRevoke { channel: first }]);
    let second = opened(k.handle(Event::Start { pd: server })).unwrap();
    assert_ne!(first, second);
    // A second capability with the same badge is the same channel; a move keeps it.
    assert_eq!(opened(k.handle(Event::Invoke(mint(client, 16, 30, 0)))), None);
    let moved =
        call(client, slot::CNODE, Label::CNodeMove.number(), &[31, 64, 30, 64], &[slot::CNODE]);
    assert_eq!(k.handle(Event::Invoke(moved)).len(), 1);
    assert_eq!(k.handle(Event::Invoke(delete(client, 16))).len(), 1);
    let last = k.handle(Event::Invoke(delete(client, 31))).to_vec();
    assert!(last.contains(&Action::ChannelRevoke { channel: second }));
    assert_eq!(k.check(), Ok(()));
}

#[test]
fn cancelling_badged_sends_ends_those_and_no_others() {
    let mut k = kernel();
    let (_, client, _) = server_and_client(&mut k);
    k.handle(Event::Start { pd: client });
    for badge in [1, 2] {
        k.handle(Event::Invoke(mint(client, 16, 20 + badge, badge)));
    }
    for (request, from) in [(1, 21), (2, 22), (3, 16), (4, 21)] {
        let send =
            Invocation { request, syscall: Syscall::Send, ..call(client, from, 0, &[], &[]) };
        assert_eq!(k.handle(Event::Invoke(send)), []);
    }
    let mut cancel = |at| {
        let label = Label::CNodeCancelBadgedSends.number();
        let inv = call(client, slot::CNODE, label, &[at, 64], &[]);
        let ended = |a: &Action| match a {
            Action::Answer { to, result: Err(Error::Gone) } => Some(to.request),
            _ => None,
        };
        k.handle(Event::Invoke(inv)).iter().filter_map(ended).collect::<Vec<_>>()
    };
    assert_eq!(cancel(16), []);
    assert_eq!(cancel(21), [1, 4]);
    assert_eq!(cancel(22), [2]);
    assert_eq!(k.check(), Ok(()));
}

#[test]
fn waiting_operations_are_bounded_per_pd() {
    let mut k = kernel();
    let (server, client, _) = server_and_client(&mut k);
    k.handle(Event::Start { pd: server });
    k.handle(Event::Start { pd: client });
    for request in 0..WAITS_PER_PD as u64 {
        let inv = Invocation { request, ..call(client, 16, 0, &[], &[]) };
        assert_eq!(k.handle(Event::Invoke(inv)), []);
    }
    let inv = Invocation { request: 99, ..call(client, 16, 0, &[], &[]) };
    let actions = k.handle(Event::Invoke(inv)).to_vec();
    let [Action::Answer { to, result }] = actions[..] else { panic!("{actions:?}") };
    assert_eq!((to.request, result), (99, Err(Error::Busy)));
    // The server is not touched by that; once it took one, the client may send another.
    let wait = Invocation { syscall: Syscall::Wait, ..call(server, 16, 0, &[], &[]) };
    assert_eq!(k.handle(Event::Invoke(wait)).len(), 2);
    assert_eq!(k.handle(Event::Invoke(inv)), []);
    assert_eq!(k.check(), Ok(()));
}

#[test]
fn channels_are_bounded_per_client() {
    let mut k = kernel();
    let (_, client, _) = server_and_client(&mut k);
    k.handle(Event::Start { pd: client });
    let made = |k: &mut Kernel, badge: u64| {
        own(k.handle(Event::Invoke(mint(client, 16, 20 + badge, badge))), client).unwrap()
    };
    for badge in 1..CHANNELS_PER_PD as u64 {
        assert!(made(&mut k, badge).is_ok());
    }
    let one_more = CHANNELS_PER_PD as u64;
    assert_eq!(made(&mut k, one_more), Err(Error::NotEnoughMemory));
    k.handle(Event::Invoke(delete(client, 21)));
    assert!(made(&mut k, one_more).is_ok());
    assert_eq!(k.check(), Ok(()));
}

#[test]
fn what_one_pd_makes_leaves_the_others_their_share() {
    let mut k = kernel();
    let pds: Vec<PdId> = (0..64)
        .map(|_| {
            let pd = PdDeclaration { budget: 256, ..PdDeclaration::new(7) };
            k.declare_pd(pd).unwrap()
        })
        .collect();
    let kinds =
        [ObjectType::EndpointObject, ObjectType::NotificationObject, ObjectType::ReplyObject];
    for kind in kinds {
        for pd in &pds {
            let incarnation = k.pd_incarnation(*pd).unwrap();
            k.handle(Event::PdDied { pd: *pd, incarnation, status: 0 });
            k.handle(Event::Start { pd: *pd });
        }
        for pd in &pds {
            let mut make = |offset, count| {
                let words = [kind.number(), 0, 0, 0, offset, count];
                let label = Label::UntypedRetype.number();
                let inv = call(*pd, slot::UNTYPED, label, &words, &[slot::CNODE]);
                own(k.handle(Event::Invoke(inv)), *pd).unwrap().map(|_| ())
            };
            assert_eq!(make(16, MADE_PER_PD as u64), Ok(()));
            assert_eq!(make(100, 1), Err(Error::NotEnoughMemory));
        }
    }
    for pd in &pds {
        k.handle(Event::PdDied { pd: *pd, incarnation: 3, status: 0 });
        assert_eq!(k.pd_budget(*pd), Some((0, 256)));
    }
    assert_eq!(k.check(), Ok(()));
}

#[test]
fn the_largest_death_fits_one_step() {
    let mut k = kernel();
    let budget = (STUBS + REGIONS) as u32;
    let supervisor = k.declare_pd(PdDeclaration::new(6)).unwrap();
    let posix = k.declare_pd(PdDeclaration { budget, ..PdDeclaration::new(13) }).unwrap();
    let faults = k.declare_endpoint(Some(supervisor)).unwrap();
    let stub_faults = k.declare_endpoint(Some(posix)).unwrap();
    k.declare_fault(posix, faults, 77).unwrap();
    k.declare_stub_fault(posix, stub_faults, 78).unwrap();
    for (slot, object) in [(16, Object::StubPool), (17, Object::RegionPool)] {
        let grant = Grant { pd: posix, slot, object, rights: Rights::ALL, badge: 0 };
        k.declare_grant(grant).unwrap();
    }
    let object = Object::Endpoint(faults);
    let grant = Grant { pd: supervisor, slot: 16, object, rights: Rights::READ, badge: 0 };
    k.declare_grant(grant).unwrap();
    k.handle(Event::Start { pd: supervisor });
    k.handle(Event::Start { pd: posix });
    let spawn = call(posix, 16, Hosted::StubSpawn.number(), &[], &[]);
    let stubs: Vec<StubId> = (0..STUBS)
        .map(|_| match k.handle(Event::Invoke(spawn)) {
            [Action::StubSpawn { stub, .. }] => *stub,
            other => panic!("{other:?}"),
        })
        .collect();
    let full = own(k.handle(Event::Invoke(spawn)), posix);
    assert_eq!(full, Some(Err(Error::NotEnoughMemory)));
    let create = call(posix, 17, Hosted::RegionCreate.number(), &[4096], &[]);
    for _ in 0..REGIONS {
        assert!(matches!(k.handle(Event::Invoke(create)), [Action::RegionCreate { .. }]));
    }
    // Every other stub dies, and its death is not yet told.
    for stub in stubs.iter().step_by(2) {
        assert_eq!(k.handle(Event::StubDied { stub: *stub, status: 9 }), []);
    }
    let actions = k.handle(Event::PdDied { pd: posix, incarnation: 1, status: 11 });
    let count = |of: fn(&Action) -> bool| actions.iter().filter(|a| of(a)).count();
    assert_eq!(count(|a| matches!(a, Action::StubDestroy { .. })), STUBS);
    assert_eq!(count(|a| matches!(a, Action::RegionDestroy { .. })), REGIONS);
    assert_eq!(actions.len(), STUBS + REGIONS);
    assert!(actions.len() <= ACTIONS);
    assert_eq!(k.pd_budget(posix), Some((0, budget)));
    assert_eq!(k.check(), Ok(()));
    // The death is told, with the badge that nobody else's capability has.
    let receive = Invocation { syscall: Syscall::Recv, ..call(supervisor, 16, 0, &[], &[]) };
    let told = own(k.handle(Event::Invoke(receive)), supervisor).unwrap().unwrap();
    assert_eq!((told.badge, told.message.info.label()), (77, Fault::PdDeath.number()));
    assert_eq!(told.message.words[..3], [1, 11, 1]);
    // Numbers of what is gone are not used again: late words are not taken for new ones.
    k.handle(Event::Start { pd: posix });
    let [Action::StubSpawn { stub, .. }] = *k.handle(Event::Invoke(spawn)) else { panic!() };
    assert!(!stubs.contains(&stub));
    for old in &stubs {
        k.handle(Event::StubDied { stub: *old, status: 0 });
    }
    assert_eq!(k.stub(stub), Some((posix, false)));
}

#[test]
fn stubs_outlive_who_keeps_them() {
    let mut k = kernel();
    let declaration = PdDeclaration { budget: 8, keeps_stubs: true, ..PdDeclaration::new(6) };
    let posix = k.declare_pd(declaration).unwrap();
    let deaths = k.declare_endpoint(None).unwrap();
    k.declare_stub_fault(posix, deaths, 78).unwrap();
    for (slot, object, rights) in [
        (16, Object::StubPool, Rights::ALL),
        (17, Object::RegionPool, Rights::ALL),
        (18, Object::Endpoint(deaths), Rights::READ),
    ] {
        k.declare_grant(Grant { pd: posix, slot, object, rights, badge: 0 }).unwrap();
    }
    k.handle(Event::Start { pd: posix });
    let spawn = call(posix, 16, Hosted::StubSpawn.number(), &[], &[]);
    let [(lives, place), (ends, _), (later, _)] =
        [(); 3].map(|()| match *k.handle(Event::Invoke(spawn)) {
            [Action::StubSpawn { stub, slot, .. }] => (stub, slot),
            ref other => panic!("{other:?}"),
        });
    k.handle(Event::Invoke(call(posix, 17, Hosted::RegionCreate.number(), &[4096], &[])));
    assert_eq!(k.handle(Event::StubDied { stub: ends, status: 9 }), []);
    // What it held goes, but for the stubs that live; nobody will ask how the dead one ended.
    let actions = k.handle(Event::PdDied { pd: posix, incarnation: 1, status: 9 });
    assert!(actions.contains(&Action::StubDestroy { stub: ends }), "{actions:?}");
    assert!(
        matches!(actions, [_, _] if actions.iter().any(|a| matches!(a, Action::RegionDestroy { .. })))
    );
    assert_eq!((k.pd_budget(posix), k.check()), (Some((2, 8)), Ok(())));
    assert_eq!(
        k.handle(Event::StubDied { stub: later, status: 9 }),
        [Action::StubDestroy { stub: later }]
    );
    assert_eq!(k.stub(lives), Some((posix, false)));
    // The next life has it in the same place, and hears of its end.
    k.handle(Event::Start { pd: posix });
    assert_eq!((k.pd_budget(posix), k.check()), (Some((1, 8)), Ok(())));
    let kill = call(posix, place, Hosted::StubKill.number(), &[], &[]);
    let actions = k.handle(Event::Invoke(kill)).to_vec();
    assert!(actions.contains(&Action::StubKill { stub: lives }), "{actions:?}");
    assert_eq!(k.handle(Event::StubDied { stub: lives, status: 9 }), []);
    let receive = Invocation { syscall: Syscall::Recv, ..call(posix, 18, 0, &[], &[]) };
    let told = own(k.handle(Event::Invoke(receive)), posix).unwrap().unwrap();
    assert_eq!(told.message.words[..2], [u64::from(lives.0), 9]);
    // Who is not started again keeps nothing for ever.
    let [Action::StubSpawn { stub, .. }] = *k.handle(Event::Invoke(spawn)) else { panic!() };
    assert_eq!(k.handle(Event::StubsForgotten { pd: posix }), []);
    k.handle(Event::PdDied { pd: posix, incarnation: 2, status: 9 });
    assert_eq!(k.handle(Event::StubsForgotten { pd: posix }), [Action::StubDestroy { stub }]);
    assert_eq!((k.pd_budget(posix), k.check()), (Some((0, 8)), Ok(())));
}

#[test]
fn declarations_are_checked() {
    let mut k = kernel();
    let pd = k.declare_pd(PdDeclaration::new(6)).unwrap();
    assert_eq!(k.declare_pd(PdDeclaration::new(5)), Err(Error::RangeError));
    assert_eq!(k.declare_pd(PdDeclaration::new(14)), Err(Error::RangeError));
    assert_eq!(k.declare_endpoint(Some(PdId(9))), Err(Error::InvalidArgument));
    assert_eq!(k.declare_region(0), Err(Error::RangeError));
    let endpoint = k.declare_endpoint(None).unwrap();
    let object = Object::Endpoint(endpoint);
    let grant = Grant { pd, slot: 16, object, rights: Rights::ALL, badge: 0 };
    assert_eq!(k.declare_grant(Grant { slot: 2, ..grant }), Err(Error::RangeError));
    assert_eq!(k.declare_grant(Grant { slot: 64, ..grant }), Err(Error::RangeError));
    let nothing = Object::Region(RegionId(3));
    assert_eq!(k.declare_grant(Grant { object: nothing, ..grant }), Err(Error::InvalidArgument));
    let badged = Grant { object: Object::Pd(pd), badge: 1, ..grant };
    assert_eq!(k.declare_grant(badged), Err(Error::InvalidArgument));
    assert_eq!(k.declare_grant(grant), Ok(()));
    assert_eq!(k.declare_grant(grant), Err(Error::DeleteFirst));
    for _ in 1..64 {
        k.declare_pd(PdDeclaration::new(6)).unwrap();
    }
    assert_eq!(k.declare_pd(PdDeclaration::new(6)), Err(Error::NotEnoughMemory));
}

/// Anything a PD can put into a request, mostly near what means something.
fn garbage() -> impl Strategy<Value = Invocation> {
    let cptr = || prop_oneof![4 => 0u64..64, 1 => any::<u64>()];
    let label = prop_oneof![2 => 0u64..64, 2 => 0x1_0000u64..0x1_0040, 1 => any::<u64>()];
    let word = prop_oneof![4 => 0u64..70, 1 => Just(u64::MAX), 1 => any::<u64>()];
    (
        (0u16..66, 0..Syscall::ALL.len(), cptr(), cptr(), cptr()),
        (label, 0usize..128, 0usize..4, prop::collection::vec(word, 16)),
        (prop::collection::vec(cptr(), MESSAGE_CAPS), cptr(), 0u64..4),
    )
        .prop_map(|((pd, syscall, cptr, send, reply), (label, length, count, words), rest)| {
            let (caps, receive, request) = rest;
            let info = MessageInfo::new(label, label, count, length % 24);
            Invocation {
                pd: PdId(pd % 3),
                request,
                syscall: Syscall::ALL[syscall],
                cptr,
                send,
                reply,
                message: Message { info, words: words.try_into().unwrap() },
                caps: caps.try_into().unwrap(),
                receive,
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Whatever PDs send, the kernel answers or lets wait, keeps its invariants, and does the same
    /// again from the same events.
    #[test]
    fn garbage_is_harmless_and_replays(events in prop::collection::vec(garbage(), 1..200)) {
        let mut k = kernel();
        let mut runs = Vec::new();
        for _ in 0..2 {
            k.reset();
            server_and_client(&mut k);
            let mut actions = Vec::new();
            for n in 0..2 {
                actions.extend_from_slice(k.handle(Event::Start { pd: PdId(n) }));
            }
            for inv in &events {
                actions.extend_from_slice(k.handle(Event::Invoke(*inv)));
            }
            prop_assert_eq!(k.check(), Ok(()));
            runs.push(actions);
        }
        prop_assert_eq!(&runs[0], &runs[1]);
    }
}
