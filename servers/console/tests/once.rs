//! A step on a terminal is taken once, whenever the console server is killed; no signal that it brought about
//! is lost, and none is sent twice unless the server died between sending it and saying so.

#![expect(
    clippy::arc_with_non_send_sync,
    reason = "one thread; the cluster-cache is shared by Arc"
)]

use clustix_ccache::local::LocalCache;
use clustix_ccache::set;
use clustix_console::{Server, Signals};
use clustix_pd::exec;
use clustix_proto::console::{Request, Response, Tty, tty};
use clustix_proto::object::load;
use clustix_proto::once::{Client, Lane, Once, Operation, Record, Repeat};
use clustix_proto::process::Target;
use clustix_testbed::faulty::{self, Fault, Faulty};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

#[derive(Clone, Default)]
struct Sent(Rc<RefCell<Vec<(Target, u8)>>>);

impl Signals for Sent {
    async fn kill(&self, target: Target, signal: u8) -> bool {
        exec::yield_now().await;
        self.0.borrow_mut().push((target, signal));
        true
    }
}

fn once(number: u64, again: bool) -> Once {
    Once { lane: Lane { index: 0, shard: 5 }, number, again }
}

/// What a server answers; `None`: it was killed before.
fn serve(cache: &Arc<Faulty>, sent: &Sent, once: Once, request: &Request) -> Option<Response> {
    let record = Record::new(set::TTYANSWER, Client::new(0, 1, "posix").unwrap(), once);
    let server = Server::new(cache.clone(), sent.clone());
    cache.run(server.handle_once(Some(&record), request.clone()))
}

/// A terminal, 0, of session 7, with a line to be read.
fn fresh() -> Arc<LocalCache> {
    let cache = Arc::new(LocalCache::new());
    let server = Server::new(cache.clone(), Sent::default());
    for request in [
        Request::New { winsize: [24, 80, 0, 0], job: 0 },
        Request::SetSession { tty: 0, session: 7 },
        Request::Input { tty: 0, at: None, bytes: b"ls\r".to_vec() },
    ] {
        exec::block_on(server.handle(request)).unwrap();
    }
    cache
}

/// The first two terminals; the count of signals sent is the server's own.
fn terminals(cache: &LocalCache) -> [Option<Tty>; 2] {
    [0, 1].map(|number| {
        let found: Option<Tty> = exec::block_on(load(cache, tty(number))).unwrap().0;
        if let Some(t) = &found {
            assert_eq!(t.owed, []);
        }
        found.map(|t| Tty { owed_from: 0, ..t })
    })
}

fn cases() -> Vec<Request> {
    vec![
        Request::New { winsize: [1; 4], job: 0 },
        Request::Input { tty: 0, at: None, bytes: b"more\r".to_vec() },
        Request::Input { tty: 0, at: None, bytes: b"\x03".to_vec() },
        Request::Output { tty: 0, bytes: b"hello\n".to_vec() },
        Request::Read { tty: 0, max: 100 },
        Request::SetWinsize { tty: 0, winsize: [2; 4] },
        Request::Flush { tty: 0, input: true, output: true },
        Request::Flow { tty: 0, stop: true },
        Request::SetForeground { tty: 0, session: 7, pgid: 9 },
        Request::Release { tty: 0, session: 7 },
        Request::Hangup { tty: 0, job: 0 },
    ]
}

#[test]
fn a_killed_servers_step_is_taken_once_and_its_signals_are_sent() {
    let (mut faults, mut doubled) = (0, 0);
    for request in cases() {
        assert_eq!(request.repeat(), Repeat::ByNumber, "{request:?}");
        let expected = {
            let (cache, sent) = (fresh(), Sent::default());
            let answer =
                exec::block_on(Server::new(cache.clone(), sent.clone()).handle(request.clone()));
            (answer, terminals(&cache), sent.0.take())
        };
        for fault in Fault::ALL {
            for at in 0.. {
                let (cache, sent) = (fresh(), Sent::default());
                let case = format!("{request:?}: {fault:?} at transaction {at}");
                let asked = |c: &_, again| serve(c, &sent, once(9, again), &request);
                let Some(answer) = faulty::answer(&cache, (at, fault), asked) else { break };
                faults += 1;
                let mut signals = sent.0.take();
                // The second transaction says that they are sent.
                if at == 1 && signals.len() > expected.2.len() {
                    assert_eq!(signals.split_off(expected.2.len()), expected.2, "{case}");
                    doubled += 1;
                }
                assert_eq!((answer, terminals(&cache), signals), expected, "{case}");
            }
        }
    }
    assert!(faults >= (11 + 4) * Fault::ALL.len(), "{faults}");
    assert!(doubled > 0, "the case of a server that dies before it says what it sent");
}

#[test]
fn a_repeat_does_not_take_the_step_again() {
    for request in cases() {
        let (cache, sent) = (fresh(), Sent::default());
        let quiet = || Arc::new(Faulty::new(&cache, None));
        let first = serve(&quiet(), &sent, once(9, false), &request);
        let server = Server::new(cache.clone(), sent.clone());
        for since in [
            Request::Input { tty: 0, at: None, bytes: b"x\r".to_vec() },
            Request::SetWinsize { tty: 0, winsize: [7; 4] },
            Request::Flow { tty: 0, stop: false },
        ] {
            let _ = exec::block_on(server.handle(since));
        }
        sent.0.take();
        let before = terminals(&cache);
        assert_eq!(serve(&quiet(), &sent, once(9, true), &request), first, "{request:?}");
        assert_eq!((terminals(&cache), sent.0.take()), (before, Vec::new()), "{request:?}");
    }
}
