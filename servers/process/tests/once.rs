//! A request of one transaction to the process server has its effect once, whenever the server is killed.

#![expect(
    clippy::arc_with_non_send_sync,
    reason = "one thread; the cluster-cache is shared by Arc"
)]

use clustix_ccache::cache::Cache;
use clustix_ccache::local::LocalCache;
use clustix_ccache::set;
use clustix_pd::exec;
use clustix_process::Server;
use clustix_proto::object::load;
use clustix_proto::once::{Client, Lane, Once, Operation, Record, Repeat};
use clustix_proto::process::{
    Group, Pid, Process, Reply, Request, Response, SignalInfo, State, Target, name,
};
use clustix_testbed::faulty::{self, Fault, Faulty};
use std::sync::Arc;

const SIGUSR1: u8 = 10;
const SIGTSTP: u8 = 20;

fn once(number: u64, again: bool) -> Once {
    Once { lane: Lane { index: 0, shard: 5 }, number, again }
}

/// What a server answers; `None`: it was killed before.
fn serve(cache: &Arc<Faulty>, once: Once, request: &Request) -> Option<Response> {
    let record = Record::new(set::PROCANSWER, Client::new(0, 1, "posix").unwrap(), once);
    let server = Server::new(cache.clone(), 1);
    cache.run(server.handle_once(Some(&record), true, request.clone()))
}

fn plain(cache: &Arc<LocalCache>, request: Request) -> Response {
    exec::block_on(Server::new(cache.clone(), 1).handle(true, request))
}

fn pid(reply: Response) -> Pid {
    match reply {
        Ok(Reply::Pid(pid)) => pid,
        other => panic!("{other:?}"),
    }
}

fn spawn() -> Request {
    Request::Spawn {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        command: b"a".to_vec(),
        tty: None,
        start: None,
        personality: 1,
    }
}

/// A process and a child of it, with a pending signal each.
fn fresh() -> (Arc<LocalCache>, Pid, Pid) {
    let cache = Arc::new(LocalCache::new());
    let parent = pid(plain(&cache, spawn()));
    let child = pid(plain(&cache, Request::Fork { parent, exit_signal: 17, request: 0 }));
    for pid in [parent, child] {
        let info = SignalInfo { signal: SIGTSTP, code: 0, pid: 0, uid: 0, status: 0 };
        plain(&cache, Request::Raise { pid, info }).unwrap();
    }
    (cache, parent, child)
}

/// All processes and groups, without times; PIDs are by chance and given in the order of the tree.
fn all(cache: &LocalCache, known: [Pid; 2]) -> Vec<String> {
    let list = |set| exec::block_on(cache.list(set, None)).unwrap();
    let shown = |pid: Pid| match known.iter().position(|k| *k == pid) {
        Some(i) => format!("p{i}"),
        None if pid <= 1 => pid.to_string(),
        None => "new".to_owned(),
    };
    let mut all: Vec<String> = list(set::PROCESS)
        .iter()
        .map(|(object, _)| {
            let p: Process = exec::block_on(load(cache, *object)).unwrap().0.unwrap();
            let ids = [p.pid, p.ppid, p.pgid, p.sid].map(shown);
            let infos: Vec<u8> = p.infos.iter().map(|i| i.signal).collect();
            format!(
                "{ids:?} {:?} {:x} {infos:?} {:?} {:?} {:?} {}",
                p.state,
                p.pending,
                p.command,
                p.tty,
                p.uid,
                p.unreported.is_some()
            )
        })
        .chain(list(set::GROUP).iter().map(|(object, _)| {
            let g: Group = exec::block_on(load(cache, *object)).unwrap().0.unwrap();
            let mut members: Vec<String> = g.members.into_iter().map(shown).collect();
            members.sort_unstable();
            format!("group of {} {members:?}", shown(g.sid))
        }))
        .collect();
    all.sort_unstable();
    all
}

/// Requests, and what another asks right after each.
fn cases([parent, child]: [Pid; 2]) -> Vec<(Request, Request)> {
    let info = SignalInfo { signal: SIGUSR1, code: 0, pid: 0, uid: 0, status: 0 };
    let raise = || Request::Raise { pid: child, info };
    let take = |signal: u8| Request::Take { pid: child, signals: 1 << (signal - 1) };
    let tstp = || Request::Raise { pid: child, info: SignalInfo { signal: SIGTSTP, ..info } };
    let exec = |c: &[u8]| Request::Exec { pid: child, command: c.to_vec(), euid: 1, egid: 1 };
    vec![
        (spawn(), Request::SetTty { pid: parent, tty: Some(1) }),
        (exec(b"b"), exec(b"c")),
        (raise(), take(SIGUSR1)),
        (take(SIGTSTP), tstp()),
        (
            Request::Stop { pid: child, signal: Some(SIGTSTP) },
            Request::Stop { pid: child, signal: None },
        ),
        (
            Request::SetGroup { caller: parent, pid: child, pgid: child },
            Request::SetGroup { caller: parent, pid: child, pgid: parent },
        ),
        (Request::SetSession { pid: child }, exec(b"c")),
        (Request::SetTty { pid: child, tty: Some(3) }, Request::SetTty { pid: child, tty: None }),
        (
            Request::Kill { sender: 0, target: Target::Process(child), signal: SIGUSR1 },
            take(SIGUSR1),
        ),
    ]
}

fn shape(answer: &Response) -> String {
    match answer {
        Ok(Reply::Pid(_)) => "a PID".to_owned(),
        other => format!("{other:?}"),
    }
}

#[test]
fn a_killed_servers_request_has_its_effect_once() {
    let mut faults = 0;
    for case in 0..cases([0, 0]).len() {
        let pick = |known| cases(known).swap_remove(case).0;
        let expected = {
            let (cache, parent, child) = fresh();
            let answer = plain(&cache, pick([parent, child]));
            (shape(&answer), all(&cache, [parent, child]))
        };
        for fault in Fault::ALL {
            for at in 0.. {
                let (cache, parent, child) = fresh();
                let request = pick([parent, child]);
                assert_eq!(request.repeat(), Repeat::ByNumber);
                let what = format!("{request:?}: {fault:?} at transaction {at}");
                let asked = |c: &_, again| serve(c, once(9, again), &request);
                let Some(answer) = faulty::answer(&cache, (at, fault), asked) else { break };
                faults += 1;
                assert_eq!((shape(&answer), all(&cache, [parent, child])), expected, "{what}");
                if let (Request::Spawn { .. }, Ok(Reply::Pid(new))) = (&request, &answer) {
                    let found: Option<Process> =
                        exec::block_on(load(&*cache, name::process(*new))).unwrap().0;
                    assert_eq!(found.map(|p| p.state), Some(State::Running), "{what}");
                }
            }
        }
    }
    assert_eq!(faults, 9 * Fault::ALL.len(), "nine requests of one transaction");
}

#[test]
fn a_repeat_does_not_undo_what_another_did_since() {
    for case in 0..cases([0, 0]).len() {
        let (cache, parent, child) = fresh();
        let (request, other) = cases([parent, child]).swap_remove(case);
        let quiet = || Arc::new(Faulty::new(&cache, None));
        let first = serve(&quiet(), once(9, false), &request);
        assert!(first.as_ref().is_some_and(Result::is_ok), "{request:?}: {first:?}");
        plain(&cache, other).unwrap();
        let before = all(&cache, [parent, child]);
        assert_eq!(serve(&quiet(), once(9, true), &request), first, "{request:?}");
        assert_eq!(all(&cache, [parent, child]), before, "{request:?}");
    }
}
