//! Processes as their parents and the man pages see them: fork(2), wait(2), kill(2), setpgid(2),
//! setsid(2), job control, and the loss of nodes.

mod common;

use clustix_pd::exec::{self, Either};
use clustix_process::pipe::{self, End};
use clustix_proto::errno;
use clustix_proto::job::{self, Ending, Io, Job, Start};
use clustix_proto::object::{Draft, load};
use clustix_proto::process::{
    Life, MAX_CHILDREN, Pipe, Process, Reply, Request, SignalInfo, State, Target, Which, name,
    status, wait,
};
use common::{Cluster, INCARNATION, LIFE, Random};

const HUP: u8 = 1;
const KILL: u8 = 9;
const TERM: u8 = 15;
const CHLD: u8 = 17;
const CONT: u8 = 18;
const STOP: u8 = 19;
const TSTP: u8 = 20;

/// A program of root's under this personality.
fn program(start: Option<Start>, personality: u64) -> Request {
    let (groups, command) = (vec![], vec![]);
    Request::Spawn { uid: 0, gid: 0, groups, command, tty: None, start, personality }
}

fn run(test: impl AsyncFn(Cluster)) {
    exec::block_on(async { test(Cluster::new().await).await });
}

#[test]
fn of_two_starts_of_a_job_one_comes_true() {
    exec::block_on(async {
        let c = Cluster::new().await;
        let job = 77;
        let start = |starts| program(Some(Start { job, starts }), 1);
        assert_eq!(c.ask(0, start(0)).await, Err(errno::ESTALE), "there is no such job");
        let new = Job {
            pid: 0,
            starts: 0,
            io: Io::Null,
            attendant: None,
            turn: 0,
            ending: None,
            kept: false,
            restarts: 2,
            command: None,
        };
        let mut d = Draft::repeatable(&c.nodes[0]);
        d.store(job::name(job), &new).unwrap();
        assert!(d.commit().await.unwrap());
        let Ok(Reply::Pid(first)) = c.ask(0, start(0)).await else { panic!() };
        assert_eq!(c.ask(1, start(0)).await, Err(errno::ESTALE));
        let Ok(Reply::Pid(second)) = c.ask(1, start(1)).await else { panic!() };
        let (now, _) = load::<_, Job>(&c.nodes[0], job::name(job)).await.unwrap();
        let now = now.unwrap();
        assert_eq!(
            (now.pid, now.starts, now.restarts),
            (second, 2, 1),
            "the first start is none again"
        );
        let mut d = Draft::repeatable(&c.nodes[0]);
        let _: Option<Job> = d.load(job::name(job)).await.unwrap();
        d.store(job::name(job), &Job { ending: Some(Ending::Over), ..now }).unwrap();
        assert!(d.commit().await.unwrap());
        assert_eq!(c.ask(0, start(2)).await, Err(errno::ESTALE), "it is being removed");
        for pid in [first, c.fork(second).await] {
            assert_eq!(c.process(pid).await.unwrap().job, Some(job));
        }
    });
}

#[test]
fn a_child_is_forked_waited_for_and_gone() {
    run(async |c| {
        let sh = c.spawn(1).await;
        let child = c.fork(sh).await;
        let p = c.process(child).await.unwrap();
        assert_eq!((p.ppid, p.pgid, p.sid, p.node, p.incarnation), (sh, sh, sh, 1, INCARNATION));
        assert_eq!(child % 1024 % 3, 1, "the child's shard has its primary on its node");
        assert_eq!(c.wait(sh, Which::Any, 0).await, Ok(None));
        let before = c.inbox(1).await.sequence;
        c.exit(child, status::exited(7)).await;
        assert!(c.pending(sh, CHLD).await);
        assert_eq!(c.inbox(1).await.since(before), Some(&[sh][..]));
        let info = c.process(sh).await.unwrap().infos[0];
        assert_eq!(info, SignalInfo { signal: CHLD, code: 1, pid: child, uid: 0, status: 7 });
        c.check().await;
        let w = c.wait(sh, Which::Any, 0).await.unwrap().unwrap();
        assert_eq!((w.pid, w.status, w.used_us), (child, status::exited(7), (3, 4)));
        assert_eq!(c.process(child).await, None);
        assert_eq!(c.process(sh).await.unwrap().children_us, (3, 4));
        assert_eq!(c.wait(sh, Which::Any, 0).await, Err(errno::ECHILD));
        c.check().await;
    });
}

#[test]
fn wait_selects_by_pid_and_group_and_may_keep() {
    run(async |c| {
        let sh = c.spawn(0).await;
        let (a, b) = (c.fork(sh).await, c.fork(sh).await);
        c.ask(0, Request::SetGroup { caller: sh, pid: b, pgid: 0 }).await.unwrap();
        c.exit(a, 0).await;
        c.exit(b, status::killed(KILL)).await;
        assert_eq!(c.wait(sh, Which::Pid(12345), 0).await, Err(errno::ECHILD));
        assert_eq!(c.wait(sh, Which::Group(b), 0).await.unwrap().unwrap().pid, b);
        let keep =
            Request::Wait { parent: sh, which: Which::Pid(a), options: 0, keep: true, request: 0 };
        for _ in 0..2 {
            let Ok(Reply::Waited(Some(w))) = c.ask(0, keep.clone()).await else { panic!() };
            assert_eq!(w.pid, a);
        }
        assert_eq!(c.wait(sh, Which::Pid(a), 0).await.unwrap().unwrap().status, 0);
        assert_eq!(c.wait(sh, Which::Group(sh), 0).await, Err(errno::ECHILD));
        c.check().await;
    });
}

#[test]
fn a_parent_that_sleeps_is_woken_by_any_change_of_a_child() {
    run(async |c| {
        let sh = c.spawn(0).await;
        let child = c.fork(sh).await;
        use clustix_ccache::cache::Cache;
        let sleeping = async {
            let mut seen = Vec::new();
            loop {
                // The order that the protocol asks for: version first, then the question.
                let v = c.cache.get(name::process(sh), &mut Vec::new()).await.unwrap();
                match c.wait(sh, Which::Any, wait::WUNTRACED | wait::WCONTINUED).await {
                    Ok(Some(w)) => seen.push(w.status),
                    Ok(None) => drop(c.cache.wait(&[(name::process(sh), v)], None).await),
                    Err(e) => return (seen, e),
                }
            }
        };
        let acting = async {
            // Nobody waits for the signal's effect here: each step lets the sleeper run.
            let kill = |signal| Request::Kill { sender: 0, target: Target::Process(child), signal };
            c.ask(1, kill(STOP)).await.unwrap();
            c.ask(0, Request::Stop { pid: child, signal: Some(STOP) }).await.unwrap();
            for _ in 0..50 {
                exec::yield_now().await;
            }
            c.ask(2, kill(CONT)).await.unwrap();
            for _ in 0..50 {
                exec::yield_now().await;
            }
            c.exit(child, status::killed(TERM)).await;
            std::future::pending::<()>().await;
        };
        let Either::Left((seen, end)) = exec::select(sleeping, acting).await else { panic!() };
        assert_eq!(seen, [status::stopped(STOP), status::CONTINUED, status::killed(TERM)]);
        assert_eq!(end, errno::ECHILD);
    });
}

#[test]
fn children_of_the_dead_go_to_init_which_reaps() {
    run(async |c| {
        let sh = c.spawn(0).await;
        let mid = c.fork(sh).await;
        let mut grand = Vec::new();
        for _ in 0..30 {
            grand.push(c.fork(mid).await);
        }
        for zombie in &grand[..15] {
            c.exit(*zombie, 0).await;
        }
        c.exit(mid, 0).await;
        c.check().await;
        for gone in &grand[..15] {
            assert_eq!(c.process(*gone).await, None);
        }
        for left in &grand[15..] {
            assert_eq!(c.process(*left).await.unwrap().ppid, 1);
            c.exit(*left, 0).await;
            assert_eq!(c.process(*left).await, None);
        }
        c.check().await;
    });
}

#[test]
fn a_claimed_program_waits_for_whoever_started_it() {
    run(async |c| {
        let p = c.spawn(2).await;
        assert_eq!(c.wait(1, Which::Pid(p), 0).await, Ok(None));
        assert_eq!(c.wait(1, Which::Any, 0).await, Err(errno::ECHILD));
        c.exit(p, status::exited(3)).await;
        // From another node too.
        assert_eq!(c.wait(1, Which::Pid(p), 0).await.unwrap().unwrap().status, status::exited(3));
        assert_eq!(c.process(p).await, None);
        assert_eq!(c.group(p).await, None);
    });
}

#[test]
fn children_are_reaped_at_once_if_the_parent_says_so() {
    run(async |c| {
        let sh = c.spawn(0).await;
        let policy = Request::ChildPolicy { pid: sh, autoreap: true, no_cldstop: false };
        c.ask(0, policy).await.unwrap();
        let child = c.fork(sh).await;
        c.exit(child, 0).await;
        assert_eq!(c.process(child).await, None);
        assert_eq!(c.wait(sh, Which::Any, 0).await, Err(errno::ECHILD));
        c.check().await;
    });
}

#[test]
fn exit_is_idempotent_and_only_for_ones_own_node() {
    run(async |c| {
        let sh = c.spawn(0).await;
        let child = c.fork(sh).await;
        let exit = Request::Exit { pid: child, status: 256, verdict: None, own_us: (0, 0) };
        assert_eq!(c.ask(1, exit.clone()).await, Err(errno::ESRCH));
        for _ in 0..3 {
            assert_eq!(c.ask(0, exit.clone()).await, Ok(Reply::Done));
        }
        assert_eq!(c.wait(sh, Which::Any, 0).await.unwrap().unwrap().status, 256);
        assert_eq!(c.ask(0, exit).await, Ok(Reply::Done));
    });
}

#[test]
fn a_retried_call_happens_once() {
    run(async |c| {
        let sh = c.spawn(0).await;
        let fork = Request::Fork { parent: sh, exit_signal: CHLD, request: 77 };
        let first = c.ask(0, fork.clone()).await.unwrap();
        assert_eq!(c.ask(0, fork).await.unwrap(), first);
        let Reply::Pid(child) = first else { panic!() };
        assert_eq!(c.process(sh).await.unwrap().children, [child]);
        c.exit(child, 0).await;
        let wait =
            Request::Wait { parent: sh, which: Which::Any, options: 0, keep: false, request: 78 };
        let first = c.ask(0, wait.clone()).await.unwrap();
        assert!(matches!(&first, Reply::Waited(Some(w)) if w.pid == child));
        assert_eq!(c.ask(0, wait).await.unwrap(), first);
    });
}

#[test]
fn too_many_children_are_refused() {
    run(async |c| {
        let sh = c.spawn(0).await;
        for _ in 0..MAX_CHILDREN {
            c.fork(sh).await;
        }
        let fork = Request::Fork { parent: sh, exit_signal: CHLD, request: 0 };
        assert_eq!(c.ask(0, fork).await, Err(errno::EAGAIN));
        assert_eq!(c.wait(sh, Which::Any, 0).await, Ok(None));
        // All of it still fits its objects, and the end of the parent takes them over in steps.
        c.exit(sh, 0).await;
        c.check().await;
    });
}

#[test]
fn kill_follows_the_permission_rules() {
    run(async |c| {
        let root = c.spawn_as(0, 0).await;
        let alice = c.spawn_as(1, 1000).await;
        let bob = c.spawn_as(2, 1001).await;
        let kill = async |sender, pid, signal| {
            c.ask(0, Request::Kill { sender, target: Target::Process(pid), signal }).await.map(drop)
        };
        assert_eq!(kill(root, alice, TERM).await, Ok(()));
        assert_eq!(kill(alice, bob, TERM).await, Err(errno::EPERM));
        assert_eq!(kill(alice, bob, 0).await, Err(errno::EPERM));
        assert_eq!(kill(alice, alice, 0).await, Ok(()));
        assert_eq!(kill(alice, 4_000_000, 0).await, Err(errno::ESRCH));
        assert_eq!(kill(alice, alice, 65).await, Err(errno::EINVAL));
        assert_eq!(kill(root, 1, KILL).await, Ok(()));
        assert!(!c.pending(1, KILL).await, "init is not killed");
        // A set-user-id program: its saved user counts, its effective one does not.
        let ids = Request::SetIds { pid: bob, uid: [1001, 0, 1000], gid: [0; 3], groups: vec![] };
        c.ask(2, ids).await.unwrap();
        assert_eq!(kill(alice, bob, TERM).await, Ok(()));
        let ids = Request::SetIds { pid: bob, uid: [1001, 1000, 0], gid: [0; 3], groups: vec![] };
        c.ask(2, ids).await.unwrap();
        assert_eq!(kill(alice, bob, TERM).await, Err(errno::EPERM));
        // SIGCONT within a session.
        let child = c.fork(bob).await;
        let ids = Request::SetIds { pid: child, uid: [9; 3], gid: [0; 3], groups: vec![] };
        c.ask(2, ids).await.unwrap();
        assert_eq!(kill(child, bob, TERM).await, Err(errno::EPERM));
        assert_eq!(kill(child, bob, CONT).await, Ok(()));
        // Only the operator's domains may send as nobody.
        let by_nobody = Request::Kill { sender: 0, target: Target::Process(bob), signal: TERM };
        assert_eq!(c.servers[0].handle(false, by_nobody).await, Err(errno::EPERM));
        c.check().await;
    });
}

#[test]
fn a_signal_reaches_a_group_on_all_nodes_and_all_processes() {
    run(async |c| {
        let sh = c.spawn(0).await;
        let (a, b) = (c.fork(sh).await, c.fork(sh).await);
        let other = c.spawn(1).await;
        let third = c.spawn(2).await;
        let group = |signal| Request::Kill { sender: other, target: Target::Group(sh), signal };
        c.ask(1, group(TERM)).await.unwrap();
        for pid in [sh, a, b] {
            assert!(c.pending(pid, TERM).await);
        }
        assert!(!c.pending(other, TERM).await);
        let nobody = Request::Kill { sender: other, target: Target::Group(4_000_000), signal: 0 };
        assert_eq!(c.ask(1, nobody).await, Err(errno::ESRCH));
        // kill(0, …) is one's own group.
        c.ask(2, Request::Kill { sender: third, target: Target::Group(0), signal: HUP })
            .await
            .unwrap();
        assert!(c.pending(third, HUP).await && !c.pending(sh, HUP).await);
        // kill(-1, …): each server does its part when it follows the orders.
        let followers = async {
            let mut followers: Vec<_> = c.servers.iter().map(|s| Box::pin(s.follow())).collect();
            std::future::poll_fn(|cx| {
                for f in &mut followers {
                    assert!(f.as_mut().poll(cx).is_pending());
                }
                std::task::Poll::<()>::Pending
            })
            .await;
        };
        use std::future::Future;
        let acting = async {
            exec::yield_now().await;
            c.ask(0, Request::Kill { sender: sh, target: Target::All, signal: 10 }).await.unwrap();
            loop {
                let mut all = true;
                for pid in [a, b, other, third] {
                    all &= c.pending(pid, 10).await;
                }
                if all {
                    break;
                }
                exec::yield_now().await;
            }
            assert!(!c.pending(sh, 10).await && !c.pending(1, 10).await);
        };
        let deadline = exec::sleep_until(exec::now_ns() + 10_000_000_000);
        let r = exec::select(exec::select(followers, acting), deadline).await;
        assert_eq!(r, Either::Left(Either::Right(())));
        c.check().await;
    });
}

#[test]
fn stops_and_continues_clear_each_other() {
    run(async |c| {
        let sh = c.spawn(0).await;
        let child = c.fork(sh).await;
        c.ask(0, Request::SetGroup { caller: sh, pid: child, pgid: 0 }).await.unwrap();
        let kill = async |signal| {
            c.ask(1, Request::Kill { sender: 0, target: Target::Process(child), signal })
                .await
                .unwrap();
        };
        let stop = async |signal| {
            c.ask(0, Request::Stop { pid: child, signal: Some(signal) }).await.unwrap();
            c.process(child).await.unwrap().state
        };
        kill(TSTP).await;
        kill(CONT).await;
        assert!(!c.pending(child, TSTP).await && c.pending(child, CONT).await);
        kill(STOP).await;
        assert!(!c.pending(child, CONT).await && c.pending(child, STOP).await);
        assert_eq!(stop(STOP).await, State::Stopped(STOP));
        assert!(!c.pending(child, STOP).await);
        c.take_all(sh).await;
        kill(CONT).await;
        assert_eq!(c.process(child).await.unwrap().state, State::Running);
        let info = c.process(sh).await.unwrap().infos[0];
        assert_eq!((info.signal, info.code, info.pid), (CHLD, 6, child));
        let w = c.wait(sh, Which::Any, wait::WCONTINUED).await.unwrap().unwrap();
        assert_eq!(w.status, status::CONTINUED);
        assert_eq!(c.wait(sh, Which::Any, wait::WCONTINUED | wait::WUNTRACED).await, Ok(None));
        // A SIGCONT that came after the stop signal was taken, before it took effect.
        c.take_all(child).await;
        kill(CONT).await;
        assert_eq!(stop(TSTP).await, State::Running);
        c.take_all(child).await;
        assert_eq!(stop(TSTP).await, State::Stopped(TSTP));
        // Without WUNTRACED nobody is told; with it, once.
        assert_eq!(c.wait(sh, Which::Any, 0).await, Ok(None));
        let w = c.wait(sh, Which::Any, wait::WUNTRACED).await.unwrap().unwrap();
        assert_eq!(w.status, status::stopped(TSTP));
        assert_eq!(c.wait(sh, Which::Any, wait::WUNTRACED).await, Ok(None));
        // SIGKILL ends a stop, SA_NOCLDSTOP keeps SIGCHLD away.
        let policy = Request::ChildPolicy { pid: sh, autoreap: false, no_cldstop: true };
        c.ask(0, policy).await.unwrap();
        c.take_all(sh).await;
        kill(KILL).await;
        assert_eq!(c.process(child).await.unwrap().state, State::Running);
        assert_eq!(stop(STOP).await, State::Running);
        assert!(!c.pending(sh, CHLD).await);
        c.check().await;
    });
}

#[test]
fn setpgid_and_setsid_keep_their_rules() {
    run(async |c| {
        let sh = c.spawn(0).await;
        let (a, b) = (c.fork(sh).await, c.fork(sh).await);
        let grand = c.fork(a).await;
        let set = async |caller, pid, pgid| {
            c.ask(0, Request::SetGroup { caller, pid, pgid }).await.map(drop)
        };
        assert_eq!(set(sh, sh, 0).await, Err(errno::EPERM), "a session's leader");
        assert_eq!(set(sh, grand, 0).await, Err(errno::ESRCH), "not a child");
        assert_eq!(set(sh, a, 0).await, Ok(()));
        assert_eq!(set(sh, b, a).await, Ok(()));
        assert_eq!(set(sh, b, a).await, Ok(()));
        assert_eq!(set(sh, b, 999_999).await, Err(errno::EPERM), "no such group");
        let exec = Request::Exec { pid: b, command: b"cat".to_vec(), euid: 0, egid: 0 };
        c.ask(0, exec).await.unwrap();
        assert_eq!(set(sh, b, sh).await, Err(errno::EACCES), "it has called execve");
        assert_eq!(set(b, 0, 0).await, Ok(()), "itself it may");
        c.check().await;
        let sid = async |pid| c.ask(0, Request::SetSession { pid }).await;
        assert_eq!(sid(b).await, Err(errno::EPERM), "a group's leader");
        let tty = Request::SetTty { pid: grand, tty: Some(4) };
        c.ask(0, tty).await.unwrap();
        assert_eq!(sid(grand).await, Ok(Reply::Pid(grand)));
        let g = c.process(grand).await.unwrap();
        assert_eq!((g.sid, g.pgid, g.tty), (grand, grand, None));
        assert_eq!(set(a, grand, a).await, Err(errno::EPERM), "another session");
        // A group's number stays taken while it has members.
        set(sh, a, sh).await.unwrap();
        assert_eq!(c.group(a).await, None);
        c.check().await;
    });
}

#[test]
fn an_orphaned_group_with_a_stopped_member_is_hung_up() {
    run(async |c| {
        // sh (session leader) → job in its own group, with a stopped child in that group.
        let sh = c.spawn(0).await;
        let job = c.fork(sh).await;
        c.ask(0, Request::SetGroup { caller: sh, pid: job, pgid: 0 }).await.unwrap();
        let worker = c.fork(job).await;
        c.ask(0, Request::Stop { pid: worker, signal: Some(TSTP) }).await.unwrap();
        assert_eq!(c.ask(0, Request::Orphaned { pid: worker }).await, Ok(Reply::Pid(0)));
        // The job's leader ends: its group's link to the session was the leader's parent.
        c.exit(job, 0).await;
        assert_eq!(c.ask(0, Request::Orphaned { pid: worker }).await, Ok(Reply::Pid(1)));
        assert!(c.pending(worker, HUP).await && c.pending(worker, CONT).await);
        assert_eq!(c.process(worker).await.unwrap().state, State::Running);
        // Nobody could continue it: the terminal's stop signals do nothing, SIGSTOP does.
        c.take_all(worker).await;
        c.ask(0, Request::Stop { pid: worker, signal: Some(TSTP) }).await.unwrap();
        assert_eq!(c.process(worker).await.unwrap().state, State::Running);
        c.ask(0, Request::Stop { pid: worker, signal: Some(STOP) }).await.unwrap();
        assert_eq!(c.process(worker).await.unwrap().state, State::Stopped(STOP));
        c.check().await;
    });
}

#[test]
fn a_shells_end_orphans_its_jobs() {
    run(async |c| {
        let top = c.spawn(0).await;
        let sh = c.fork(top).await;
        let job = c.fork(sh).await;
        let running = c.fork(sh).await;
        for pid in [sh, job, running] {
            let caller = if pid == sh { top } else { sh };
            c.ask(0, Request::SetGroup { caller, pid, pgid: 0 }).await.unwrap();
        }
        c.ask(0, Request::Stop { pid: job, signal: Some(TSTP) }).await.unwrap();
        c.exit(sh, 0).await;
        assert!(c.pending(job, HUP).await && c.pending(job, CONT).await);
        assert!(!c.pending(running, HUP).await, "no member is stopped");
        c.check().await;
    });
}

#[test]
fn what_runs_on_a_lost_node_ends_with_a_verdict() {
    run(async |c| {
        let here = c.spawn(0).await;
        let lost: Vec<_> = [c.spawn(2).await, c.spawn(2).await].to_vec();
        let child = c.fork(lost[0]).await;
        // Node 2's shards have their primaries elsewhere now; each survivor acts on its own.
        for survivor in [0, 1, 2] {
            let r = Request::NodeLost { node: 2, incarnation: INCARNATION };
            // (Server 2 stands for whoever took node 2's shards over, as another incarnation.)
            let server = clustix_process::Server::new(c.nodes[survivor].clone(), INCARNATION + 1);
            assert_eq!(server.handle(false, r).await, Ok(Reply::Done));
        }
        for pid in &lost {
            let w = c.wait(1, Which::Pid(*pid), 0).await.unwrap().unwrap();
            assert_eq!(w.status, status::exited(137));
            assert_eq!(w.verdict.as_deref(), Some("lost with node 2"));
        }
        assert_eq!(c.process(child).await, None);
        assert_eq!(c.process(here).await.unwrap().state, State::Running);
        c.check().await;
        // A later incarnation's are not meant.
        let again = clustix_process::Server::new(c.nodes[2].clone(), INCARNATION + 1);
        let Ok(Reply::Pid(new)) = again.handle(false, program(None, 1)).await else { panic!() };
        for survivor in [0, 1] {
            let r = Request::NodeLost { node: 2, incarnation: INCARNATION };
            c.ask(survivor, r).await.unwrap();
        }
        assert_eq!(c.process(new).await.unwrap().state, State::Running);
    });
}

#[test]
fn a_lost_record_is_found_by_a_later_sweep() {
    run(async |c| {
        let late = c.spawn(2).await;
        let hidden = c.process(late).await.unwrap();
        use clustix_ccache::cache::{Cache, Expect, Transaction, Write};
        let gone = Write { name: name::process(late), expect: Expect::Any, data: None };
        c.cache.transact(Transaction { reads: vec![], writes: vec![gone] }).await.unwrap();
        let r = Request::NodeLost { node: 2, incarnation: INCARNATION };
        c.ask(0, r).await.unwrap();
        // Its shard is recovered only now.
        c.cache.put(name::process(late), postcard::to_allocvec(&hidden).unwrap()).await.unwrap();
        let sweeper = clustix_process::Server::new(c.nodes[2].clone(), INCARNATION + 1);
        let found = async {
            while !matches!(c.process(late).await.unwrap().state, State::Zombie(_)) {
                exec::yield_now().await;
            }
        };
        let deadline = exec::sleep_until(exec::now_ns() + 10_000_000_000);
        let r = exec::select(exec::select(sweeper.follow(), found), deadline).await;
        assert_eq!(r, Either::Left(Either::Right(())));
        c.check().await;
    });
}

#[test]
fn programs_and_pipe_ends_go_with_their_personality_and_no_later_one() {
    run(async |c| {
        let life = |start| Life { incarnation: INCARNATION, start };
        let (a, b) = (c.spawn(1).await, c.spawn(0).await);
        let child = c.fork(a).await;
        // A pipe from its node to another, and one the other way.
        let (here, there) = (&c.nodes[0], &c.nodes[1]);
        let out = pipe::create(there, LIFE).await.unwrap();
        pipe::open(here, out, End::Read, LIFE).await.unwrap();
        pipe::close(there, out, End::Read, LIFE).await.unwrap();
        let back = pipe::create(there, LIFE).await.unwrap();
        pipe::open(here, back, End::Write, LIFE).await.unwrap();
        pipe::close(there, back, End::Write, LIFE).await.unwrap();
        let alone = pipe::create(there, LIFE).await.unwrap();
        // What the next one runs, though it is told late.
        let Ok(Reply::Pid(next)) = c.ask(1, program(None, 9)).await else { panic!() };
        let kept = pipe::create(there, life(9)).await.unwrap();
        for _ in 0..2 {
            c.ask(1, Request::PersonalityLost { life: life(9) }).await.unwrap();
        }
        // The others follow what is noted.
        for node in [0, 2] {
            let follower = clustix_process::Server::new(c.nodes[node].clone(), INCARNATION);
            let lost = async {
                let load = async |pid| c.process(pid).await;
                while !matches!(load(a).await.unwrap().state, State::Zombie(_))
                    || load(child).await.is_some_and(|p| !matches!(p.state, State::Zombie(_)))
                    || clustix_proto::object::load::<_, Pipe>(here, name::pipe(alone))
                        .await
                        .unwrap()
                        .0
                        .is_some()
                {
                    exec::yield_now().await;
                }
            };
            let deadline = exec::sleep_until(exec::now_ns() + 10_000_000_000);
            let ended = exec::select(exec::select(follower.follow(), lost), deadline).await;
            assert_eq!(ended, Either::Left(Either::Right(())));
        }
        let w = c.wait(1, Which::Pid(a), 0).await.unwrap().unwrap();
        assert_eq!(w.verdict.as_deref(), Some("lost with the personality of node 1"));
        assert_eq!(pipe::read(here, out, 1, &mut Vec::new()).await, Err(errno::EIO));
        assert_eq!(pipe::write(here, back, b"x").await, Err(errno::EPIPE));
        for pid in [b, next] {
            assert_eq!(c.process(pid).await.unwrap().state, State::Running);
        }
        let kept = clustix_proto::object::load::<_, Pipe>(here, name::pipe(kept)).await.unwrap().0;
        assert!(kept.is_some_and(|p| !p.readers.is_empty() && !p.writers.is_empty()));
        let other = Life { incarnation: INCARNATION + 1, start: 99 };
        assert_eq!(c.ask(1, Request::PersonalityLost { life: other }).await, Err(errno::EINVAL));
        c.check().await;
    });
}

#[test]
fn hostile_requests_are_refused() {
    run(async |c| {
        let sh = c.spawn(0).await;
        for request in [
            Request::Exit { pid: 1, status: 0, verdict: None, own_us: (0, 0) },
            Request::Fork { parent: 1, exit_signal: CHLD, request: 0 },
            Request::Fork { parent: sh, exit_signal: 255, request: 0 },
            Request::Stop { pid: sh, signal: Some(200) },
            Request::Raise {
                pid: sh,
                info: SignalInfo { signal: 0, code: 0, pid: 0, uid: 0, status: 0 },
            },
            Request::NodeLost { node: 99, incarnation: 0 },
            Request::NodeLost { node: 0, incarnation: INCARNATION },
            Request::SetIds { pid: sh, uid: [0; 3], gid: [0; 3], groups: vec![0; 10_000] },
            Request::SetGroup { caller: sh, pid: sh, pgid: u32::MAX },
        ] {
            assert!(c.ask(0, request.clone()).await.is_err(), "{request:?}");
        }
        let exec = Request::Exec { pid: sh, command: vec![b'x'; 1 << 20], euid: 0, egid: 0 };
        c.ask(0, exec).await.unwrap();
        let exit = Request::Exit {
            pid: sh,
            status: 0,
            verdict: Some("ä".repeat(10_000)),
            own_us: (u64::MAX, u64::MAX),
        };
        c.ask(0, exit).await.unwrap();
        assert!(c.process(sh).await.unwrap().verdict.unwrap().len() <= 128);
    });
}

/// Random calls on three nodes with conflicts and unknown outcomes: the links always agree, and
/// nothing is lost or doubled.
#[test]
fn random_calls_with_faults_keep_every_link() {
    let mut random = Random::seeded();
    run(async |c| {
        let mut r = Random(random.0);
        c.faults.state.set(r.next());
        let mut live = vec![c.spawn(0).await, c.spawn(1).await, c.spawn(2).await];
        c.faults.conflict.set(20);
        c.faults.unknown.set(5);
        let mut request = 0;
        for step in 0..3000 {
            let pick = live[r.below(live.len() as u64) as usize];
            let Some(p): Option<Process> = c.process(pick).await else {
                live.retain(|l| *l != pick);
                continue;
            };
            request += 1;
            match r.below(9) {
                0 | 1 if live.len() < 60 => {
                    let fork = Request::Fork { parent: pick, exit_signal: CHLD, request };
                    match c.ask(p.node, fork).await {
                        Ok(Reply::Pid(pid)) => live.push(pid),
                        other => assert!(other.is_err(), "{other:?}"),
                    }
                }
                2 if live.len() > 6 => {
                    let exit =
                        Request::Exit { pid: pick, status: 256, verdict: None, own_us: (1, 1) };
                    let _ = c.ask(p.node, exit).await;
                }
                3 | 4 => {
                    let children = p.children.len();
                    let wait = Request::Wait {
                        parent: pick,
                        which: Which::Any,
                        options: wait::WUNTRACED | wait::WCONTINUED,
                        keep: false,
                        request,
                    };
                    if let Ok(Reply::Waited(Some(w))) = c.ask(p.node, wait.clone()).await {
                        let after = c.process(pick).await.unwrap().children.len();
                        let ended = w.status != status::CONTINUED && w.status & 0xff != 0x7f;
                        assert_eq!(after, children - usize::from(ended), "step {step}");
                        let again = c.ask(p.node, wait).await.unwrap();
                        assert_eq!(again, Reply::Waited(Some(w)));
                    }
                }
                5 => {
                    let signal = [0, HUP, KILL, CONT, STOP, TSTP][r.below(6) as usize];
                    let target =
                        if r.below(2) == 0 { Target::Process(pick) } else { Target::Group(p.pgid) };
                    let _ =
                        c.ask(r.below(3) as u8, Request::Kill { sender: 0, target, signal }).await;
                }
                6 => {
                    let signal = if r.below(2) == 0 { None } else { Some(STOP) };
                    let _ = c.ask(p.node, Request::Stop { pid: pick, signal }).await;
                }
                7 => {
                    let pgid = if r.below(2) == 0 { 0 } else { live[0] };
                    let set = Request::SetGroup { caller: p.ppid, pid: pick, pgid };
                    let _ = c.ask(p.node, set).await;
                }
                _ => {
                    let _ = c.ask(p.node, Request::SetSession { pid: pick }).await;
                }
            }
            if live.is_empty() {
                break;
            }
            if step % 10 == 0 {
                c.check().await;
            }
        }
        c.faults.conflict.set(0);
        c.faults.unknown.set(0);
        c.check().await;
        // In the end every node is lost, and nothing but init and claimed zombies is left.
        for node in [0, 1, 2] {
            for by in &c.nodes {
                let server = clustix_process::Server::new(by.clone(), INCARNATION + 1);
                let lost = Request::NodeLost { node, incarnation: INCARNATION };
                server.handle(false, lost).await.unwrap();
            }
        }
        c.check().await;
        assert!(c.all().await.iter().all(|p| p.pid == 1 || p.claimed));
    });
    random.next();
}
