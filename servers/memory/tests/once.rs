//! A request to the memory server changes the address space once, and its answer has all steps that the stub
//! must take, whenever the server is killed.

#![expect(
    clippy::arc_with_non_send_sync,
    reason = "one thread; the cluster-cache is shared by Arc"
)]

use clustix_ccache::local::LocalCache;
use clustix_ccache::set;
use clustix_memory::Server;
use clustix_pd::exec;
use clustix_proto::memory::{Area, Areas, Mapped, Request, Response, Source, Step, areas};
use clustix_proto::object::load;
use clustix_proto::once::{Client, Lane, Once, Operation, Record, Repeat};
use clustix_testbed::faulty::{self, Fault, Faulty};
use std::sync::Arc;

const SPACE: u32 = 2048;
const AT: u64 = 0x10_0000;

fn once(number: u64, again: bool) -> Once {
    Once { lane: Lane { index: 0, shard: 5 }, number, again }
}

/// What a server answers; `None`: it was killed before.
fn serve(cache: &Arc<Faulty>, once: Once, request: &Request) -> Option<Response> {
    let record = Record::new(set::MEMANSWER, Client::new(0, 1, "posix").unwrap(), once);
    let server = Server::new(cache.clone());
    cache.run(server.handle_once(Some(&record), request.clone()))
}

fn plain(cache: &Arc<LocalCache>, request: Request) -> Response {
    exec::block_on(Server::new(cache.clone()).handle(request))
}

fn space(cache: &LocalCache) -> Areas {
    exec::block_on(load(cache, areas(SPACE))).unwrap().0.unwrap()
}

/// An address space with an area of four pages and a break.
fn fresh() -> Arc<LocalCache> {
    let cache = Arc::new(LocalCache::new());
    let area = |start, end, source| Area { start, end, prot: 3, source };
    let brk = AT + 0x10_0000;
    let all =
        vec![area(AT, AT + 0x4000, Source::Anonymous), area(brk, brk + 0x2000, Source::Break)];
    let new = Areas { areas: all, brk_start: brk, brk: brk + 0x2000 };
    plain(&cache, Request::Replace { space: SPACE, areas: new }).unwrap();
    cache
}

fn map(hint: u64, fixed: bool) -> Request {
    let source = Source::Anonymous;
    Request::Map { space: SPACE, hint, len: 0x3000, prot: 3, source, fixed, no_replace: false }
}

/// Requests, and what another thread asks right after each.
fn cases() -> Vec<(&'static str, Request, Request)> {
    let brk = AT + 0x10_0000;
    let to = |to| Request::Break { space: SPACE, to };
    let unmap = |start, len| Request::Unmap { space: SPACE, start, len };
    let protect = |prot| Request::Protect { space: SPACE, start: AT, len: 0x2000, prot };
    let remap = |new_len| Request::Remap {
        space: SPACE,
        start: AT,
        old_len: 0x4000,
        new_len,
        may_move: true,
        to: None,
    };
    vec![
        ("map", map(0, false), map(0, false)),
        ("map over something", map(AT, true), unmap(AT, 0x1000)),
        ("unmap", unmap(AT, 0x2000), map(AT, true)),
        ("protect", protect(1), protect(3)),
        ("a larger break", to(brk + 0x5000), to(brk + 0x1000)),
        ("a smaller break", to(brk + 0x1000), to(brk + 0x5000)),
        ("a larger mapping", remap(0x8000), unmap(AT, 0x1000)),
        ("a moved mapping", remap(0x40_0000), map(AT, true)),
        ("a smaller mapping", remap(0x1000), map(AT + 0x2000, true)),
        ("nothing to unmap", unmap(0x9000_0000, 0x1000), map(0x9000_0000, true)),
        ("an impossible break", to(5), to(brk)),
        ("a wrong request", unmap(AT + 1, 5), map(0, false)),
    ]
}

#[test]
fn a_killed_servers_request_is_done_once_and_answered_in_full() {
    let mut faults = 0;
    for (what, request, _) in cases() {
        let expected = {
            let cache = fresh();
            (plain(&cache, request.clone()), space(&cache))
        };
        for fault in Fault::ALL {
            for at in 0.. {
                let cache = fresh();
                let case = format!("{what}: {fault:?} at transaction {at}");
                let asked = |c: &_, again| serve(c, once(9, again), &request);
                let Some(answer) = faulty::answer(&cache, (at, fault), asked) else { break };
                faults += 1;
                assert_eq!((answer, space(&cache)), expected, "{case}");
            }
        }
    }
    assert_eq!(faults, 9 * Fault::ALL.len(), "nine cases of one transaction");
}

#[test]
fn a_repeat_does_not_undo_what_another_thread_did_since() {
    for (what, request, other) in cases() {
        assert_eq!(request.repeat(), Repeat::ByNumber, "{what}");
        let cache = fresh();
        let first = serve(&Arc::new(Faulty::new(&cache, None)), once(9, false), &request).unwrap();
        let changed =
            !matches!(what, "nothing to unmap" | "an impossible break" | "a wrong request");
        plain(&cache, other).unwrap();
        let before = space(&cache);
        let again = serve(&Arc::new(Faulty::new(&cache, None)), once(9, true), &request).unwrap();
        if changed {
            assert_eq!((again, space(&cache)), (first, before), "{what}");
        }
    }
}

#[test]
fn the_longest_answer_fits_its_record() {
    let step = Step::Map(Area {
        start: u64::MAX,
        end: u64::MAX,
        prot: 7,
        source: Source::File { ino: u64::MAX, offset: u64::MAX },
    });
    // mremap(2) of a read-only area over something: seven at most.
    let mapped = Mapped { addr: u64::MAX, steps: vec![step; 7] };
    let record =
        Record::new(set::MEMANSWER, Client::new(0, 1, "posix").unwrap(), once(u64::MAX, false));
    let len = record.encode(Ok(mapped)).unwrap().len();
    assert!(len <= set::descriptor(set::MEMANSWER).unwrap().capacity as usize, "{len}");
}
