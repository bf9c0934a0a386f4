//! The freeze rule: at a freeze everything is objects. All of them are taken out of a cluster of three
//! whole cluster-caches whose programs are held, and written to bytes; another cluster is made of the
//! bytes alone and compared; and in it the calls that were blocked are completed from their data.

mod common;

use clustix_ccache::cache::Cache;
use clustix_ccache::client::CacheClient;
use clustix_ccache::name::Name;
use clustix_ccache::request::Dumped;
use clustix_ccache::set::{self, Durability, SETS};
use clustix_pd::exec::{self, block_on, now_ns};
use clustix_posix::fd::{self, Kind};
use clustix_posix::freeze::{self, Blocked, Completed};
use clustix_posix::node::Node;
use clustix_posix::service::serve;
use clustix_posix::services::Services;
use clustix_posix::state::ProcessState;
use clustix_posix::tty;
use clustix_process::pipe::{self, End};
use clustix_proto::console;
use clustix_proto::errno::{EBUSY, EEXIST, EINVAL};
use clustix_proto::posix::{Request, Stdio};
use clustix_proto::process::{self, Pid, Process, name};
use clustix_proto::vfs::ROOT;
use clustix_testbed::{Cluster, dump};
use common::local::{self, Local, Program, launch, launch_with};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const READ: u64 = 0;
const WRITE: u64 = 1;
const WAIT4: u64 = 61;

const NODES: u8 = 3;
/// More than a pipe holds, in one write(2).
const LONG: usize = 100_000;

/// Longest that anything here may take.
const BOUND_NS: u64 = 20_000_000_000;

type Personality = Node<Local<CacheClient>>;
/// What each node gave, page by page.
type Dumps = BTreeMap<u8, Vec<Vec<Dumped>>>;
/// Payloads, by the node that is primary of the object or has it in its slab: numbers of open files
/// are a node's own.
type Objects = BTreeMap<(u8, Name), Vec<u8>>;

fn dumps(cluster: &Cluster) -> Dumps {
    (0..NODES).map(|slot| (slot, dump(cluster.client(slot), true))).collect()
}

fn objects(dumps: &Dumps) -> Objects {
    let mut all = Objects::new();
    for (slot, page) in dumps.iter().flat_map(|(slot, pages)| pages.iter().map(move |p| (slot, p)))
    {
        for d in page {
            assert!(all.insert((*slot, d.name), d.data.clone()).is_none(), "{} twice", d.name);
        }
    }
    all
}

/// The same without a dump: every object by its name, as whoever uses the cache reads it.
fn read(cluster: &Cluster) -> Objects {
    let mut all = Objects::new();
    for (slot, set) in (0..NODES).flat_map(|slot| SETS.iter().map(move |set| (slot, set))) {
        let cache = cluster.client(slot);
        let mut after = None;
        loop {
            let page = block_on(cache.list(set.id, after)).unwrap();
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            for (name, _) in page {
                let mut data = Vec::new();
                assert!(block_on(cache.get(name, &mut data)).unwrap().exists());
                all.insert((slot, name), data);
            }
        }
    }
    all
}

/// Name by name and byte by byte.
fn same(what: &str, one: &Objects, other: &Objects) {
    let names: BTreeSet<_> = one.keys().chain(other.keys()).collect();
    let differ: Vec<String> = names
        .into_iter()
        .filter(|n| one.get(n) != other.get(n))
        .map(|n| {
            let len = |all: &Objects| all.get(n).map(Vec::len);
            format!("node {}, {}: {:?} and {:?} bytes", n.0, n.1, len(one), len(other))
        })
        .collect();
    assert!(differ.is_empty(), "{what}:\n{}", differ.join("\n"));
}

fn volatile(name: Name) -> bool {
    set::descriptor(name.set()).unwrap().durability == Durability::Volatile
}

/// Puts what was dumped in an empty cluster: replicated objects through any node's cache, volatile ones
/// through the personality of the node that gave them.
fn restore(cluster: &Cluster, nodes: &[Arc<Personality>], dumps: Dumps) {
    for (slot, page) in
        dumps.into_iter().flat_map(|(s, pages)| pages.into_iter().map(move |p| (s, p)))
    {
        let (own, shared): (Vec<Dumped>, _) = page.into_iter().partition(|d| volatile(d.name));
        block_on(cluster.client((slot + 1) % NODES).restore(shared)).unwrap();
        let objects: Vec<_> = own.into_iter().map(|d| (d.name, d.data)).collect();
        let order = Request::Restore { objects };
        block_on(serve(&nodes[usize::from(slot)], order.clone())).unwrap();
        block_on(serve(&nodes[usize::from(slot)], order)).unwrap();
    }
}

/// The blocked call of a process, as data.
fn blocked(cache: &CacheClient, pid: Pid) -> Option<Blocked> {
    block_on(fd::load(cache, name::thread(pid))).unwrap()
}

/// The descriptor that a call is about, as the personality finds it in its node's slab.
fn described(node: &Personality, pid: Pid, call: &Blocked) -> Option<fd::OpenFile> {
    let cache = node.services.cache();
    let entry = block_on(fd::table(cache, pid)).unwrap().get(call.args[0] as i32).unwrap();
    Some(block_on(node.files.get(cache, entry.file)).unwrap())
}

/// Completes a call on `node` while `event`, which it waits for, happens.
fn complete(
    node: &Personality,
    pid: Pid,
    call: &Blocked,
    memory: &[u8],
    event: impl FnOnce(),
) -> Completed {
    let made = || {
        let done = freeze::complete(&node.services, pid, call, memory);
        match block_on(exec::select(done, exec::sleep_until(now_ns() + BOUND_NS))) {
            exec::Either::Left(done) => done.expect("a call that can be made from its data"),
            exec::Either::Right(()) => panic!("what it waits for does not end {call:?}"),
        }
    };
    std::thread::scope(|threads| {
        let call = threads.spawn(made);
        event();
        call.join().unwrap()
    })
}

/// Exactly `len` bytes of a pipe.
fn take(cache: &CacheClient, number: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    while out.len() < len {
        match block_on(pipe::read(cache, number, len - out.len(), &mut out)).unwrap() {
            pipe::Step::Done(n) => assert!(n > 0, "the pipe ends after {} bytes", out.len()),
            pipe::Step::WouldBlock(name, version) => {
                block_on(cache.wait(&[(name, version)], None)).unwrap();
            }
        }
    }
    out
}

/// A user's keystrokes.
fn type_in(node: &Personality, tty: u32, keys: &[u8]) {
    let input = console::Request::Input { tty, at: None, bytes: keys.to_vec() };
    assert_eq!(block_on(node.services.console(&input)).unwrap().value, keys.len() as u64);
}

/// Programs that come to block in four ways, on three nodes.
struct Programs {
    /// Waits for [`Programs::reader`].
    shell: Program<CacheClient>,
    /// Reads from a pipe.
    reader: Pid,
    /// Reads from a terminal.
    typist: Program<CacheClient>,
    tty: u32,
    /// Writes to a pipe that is full before the write is done.
    writer: Program<CacheClient>,
}

impl Programs {
    fn launch(nodes: &[Arc<Personality>], long: &[u8]) -> Programs {
        let shell = launch(&nodes[0], &["sh", "-c", "echo kept >&2; cat; echo status $?"]);
        let new = console::Request::New { winsize: [24, 80, 0, 0], job: 0 };
        let tty = block_on(nodes[1].services.console(&new)).unwrap().value as u32;
        let pid = launch_with(&nodes[1], &["cat"], Stdio::Tty(tty));
        let typist = Program { node: nodes[1].clone(), pid, pipes: [0; 3] };
        block_on(local::put(&nodes[2], "/tmp/long", long, 0o644));
        let size = format!("bs={LONG}");
        let writer = launch(&nodes[2], &["busybox", "dd", "if=/tmp/long", &size]);
        let mut p = Programs { shell, reader: 0, typist, tty, writer };
        p.pass_a_line(b"one\n");
        let cache = nodes[0].services.cache();
        let shell: Process =
            block_on(fd::load(cache, name::process(p.shell.pid))).unwrap().unwrap();
        p.reader = shell.children[0];
        loop {
            let pipe = block_on(pipe::poll(cache, p.writer.pipes[1], End::Write)).unwrap();
            if !pipe.writable {
                return p;
            }
            block_on(cache.wait(&[pipe.on], None)).unwrap();
        }
    }

    /// Both programs that copy read a line and write it; then they read again.
    fn pass_a_line(&self, line: &[u8]) {
        let cache = self.shell.node.services.cache();
        self.shell.input(line, false);
        assert_eq!(take(cache, self.shell.pipes[1], line.len()), line);
        let look = || block_on(tty::look(cache, self.tty)).unwrap();
        // The terminal's echo and the program's output, with CR NL for NL.
        let end = look().0.output_end + 2 * (line.len() as u64 + 1);
        type_in(&self.typist.node, self.tty, line);
        loop {
            let (now, version) = look();
            if now.output_end >= end {
                return;
            }
            block_on(cache.wait(&[(console::tty(self.tty), version)], None)).unwrap();
        }
    }

    /// The blocked calls, once all four processes are in theirs.
    fn blocked(&self) -> Option<[(Pid, Blocked); 4]> {
        let cache = self.shell.node.services.cache();
        let expected = [
            (self.shell.pid, WAIT4),
            (self.reader, READ),
            (self.typist.pid, READ),
            (self.writer.pid, WRITE),
        ];
        let calls: Option<Vec<_>> = expected
            .into_iter()
            .map(|(pid, nr)| Some((pid, blocked(cache, pid).filter(|call| call.nr == nr)?)))
            .collect();
        calls?.try_into().ok()
    }
}

#[test]
fn blocked_calls_are_completed_in_another_cluster_from_their_data() {
    let long: Vec<u8> = (0..LONG).map(|i| (i / 7) as u8).collect();
    let old = Cluster::new(NODES);
    let nodes: Vec<_> = (0..NODES).map(|s| local::start(old.client(s).clone())).collect();
    local::populate(&nodes[0]);
    let programs = Programs::launch(&nodes, &long);
    let until = now_ns() + BOUND_NS;
    let calls = loop {
        // A node that is too busy to hold its programs in time says so.
        let held: Vec<_> = nodes.iter().map(|n| block_on(serve(n, Request::Freeze))).collect();
        assert!(held.iter().all(|h| matches!(h, Ok(_) | Err(EBUSY))), "{held:?}");
        let calls = programs.blocked().filter(|_| held.iter().all(Result::is_ok));
        if let Some(calls) = calls {
            break calls;
        }
        assert!(now_ns() < until, "the programs do not come to block");
        // Held on their way there: let them get ahead by one line.
        nodes.iter().for_each(|n| assert!(block_on(serve(n, Request::Thaw)).is_ok()));
        programs.pass_a_line(b"more\n");
    };

    let dumped = dumps(&old);
    let bytes = postcard::to_stdvec(&dumped).unwrap();
    let before = objects(&dumped);
    same("objects of the old cluster, read and dumped", &read(&old), &before);
    for slot in 0..NODES {
        assert!(before.keys().any(|(s, n)| *s == slot && volatile(*n)), "no slab of node {slot}");
    }

    // From here on the bytes are all that there is of the old cluster.
    let new = Cluster::new(NODES);
    let elsewhere: Vec<_> =
        (0..NODES).map(|s| Node::new(Local::over(new.client(s).clone()))).collect();
    elsewhere.iter().for_each(|node| node.open());
    restore(&new, &elsewhere, postcard::from_bytes(&bytes).unwrap());
    same("objects dumped in the old cluster and in the new", &before, &objects(&dumps(&new)));
    same("objects dumped in the old cluster and read in the new", &before, &read(&new));
    what_is_no_volatile_object_of_this_node_is_not_restored(&elsewhere[0], &before);

    let homes = [&elsewhere[0], &elsewhere[0], &elsewhere[1], &elsewhere[2]];
    for ((pid, call), node) in calls.iter().zip(homes) {
        let cache = node.services.cache();
        assert_eq!(blocked(cache, *pid).as_ref(), Some(call));
        let state: Option<ProcessState> = block_on(fd::load(cache, name::pstate(*pid))).unwrap();
        assert_eq!(state.unwrap().cwd, ROOT);
        if call.nr != WAIT4 {
            assert_eq!(described(node, *pid, call), call.file);
        }
    }
    for (slot, node) in elsewhere.iter().enumerate() {
        let cache = node.services.cache();
        let number = block_on(node.files.create(cache, Kind::Dir { ino: ROOT }, 0)).unwrap();
        assert!(!before.contains_key(&(slot as u8, name::ofile(number))), "a number given twice");
    }
    let [(shell, wait), (reader, pipe_read), (typist, tty_read), (writer, pipe_write)] = &calls;

    // The blocked read of a pipe: somebody on another node writes to it.
    let Some(Kind::Pipe { pipe: number, .. }) = pipe_read.file.map(|f| f.kind) else {
        panic!("{pipe_read:?} is not a read of a pipe")
    };
    let done = complete(homes[1], *reader, pipe_read, &[], || {
        let step = block_on(pipe::write(new.client(2), number, b"from elsewhere\n")).unwrap();
        assert_eq!(step, pipe::Step::Done(15));
    });
    assert_eq!((done.result, done.out.as_slice()), (Ok(15), &b"from elsewhere\n"[..]));

    // The blocked read of a terminal: somebody types.
    let done = complete(homes[2], *typist, tty_read, &[], || {
        type_in(&elsewhere[0], programs.tty, b"typed\n");
    });
    assert_eq!((done.result, done.out.as_slice()), (Ok(6), &b"typed\n"[..]));

    // The blocked write: somebody reads what had gone in, and then the rest comes, once. What the
    // program had in its buffer is private memory.
    let pipe = programs.writer.pipes[1];
    let had = block_on(pipe::poll(new.client(0), pipe, End::Read)).unwrap().bytes;
    assert_eq!((pipe_write.progress[0], pipe_write.args[2]), (had, LONG as u64));
    let starved = freeze::complete(&homes[3].services, *writer, pipe_write, &long[..LONG - 1]);
    assert_eq!(block_on(starved), None, "made without the program's memory");
    let mut came = Vec::new();
    let done = complete(homes[3], *writer, pipe_write, &long, || {
        came = take(new.client(0), pipe, LONG);
    });
    assert_eq!(done.result, Ok(LONG as i64));
    assert!(came == long, "other bytes than were written");
    assert_eq!(block_on(pipe::poll(new.client(0), pipe, End::Read)).unwrap().bytes, 0);

    // The blocked wait: the child ends.
    let done = complete(homes[0], *shell, wait, &[], || {
        let exit =
            process::Request::Exit { pid: *reader, status: 3 << 8, verdict: None, own_us: (0, 0) };
        block_on(homes[1].services.process(&exit)).unwrap();
    });
    assert_eq!(done.result, Ok(i64::from(*reader)));
    assert_eq!(done.out, (3i32 << 8).to_le_bytes());

    // What was written and not read at the freeze is still in its pipe.
    assert_eq!(take(new.client(1), programs.shell.pipes[2], 5), b"kept\n");

    // The old cluster goes on as if nothing had been.
    nodes.iter().for_each(|n| assert!(block_on(serve(n, Request::Thaw)).is_ok()));
    programs.shell.input(b"here\n", true);
    let end = programs.shell.outcome();
    assert_eq!((end.status, end.out.as_str(), end.err.as_str()), (0, "here\nstatus 0\n", "kept\n"));
    assert!(take(old.client(0), pipe, LONG) == long, "other bytes than were written");
    assert_eq!(programs.writer.outcome().status, 0);
    type_in(&nodes[0], programs.tty, b"\x04");
    assert_eq!(programs.typist.wait(), 0);
}

/// A restore refuses what belongs to another program here, and what is not the personality's.
fn what_is_no_volatile_object_of_this_node_is_not_restored(node: &Arc<Personality>, all: &Objects) {
    let order = |objects| block_on(serve(node, Request::Restore { objects }));
    let (taken, data) =
        all.iter().find(|((slot, n), _)| *slot == 0 && n.set() == set::OFILE).unwrap();
    let mut other = data.clone();
    other[0] ^= 1;
    assert_eq!(order(vec![(taken.1, other)]), Err(EEXIST));
    let misplaced = Name::new(set::OFILE, clustix_ccache::name::Shard(0), 1);
    for bad in [name::process(7), Name::numbered(999, 1), misplaced] {
        let free = name::fdtable(4_000);
        assert_eq!(order(vec![(free, vec![0]), (bad, vec![0])]), Err(EINVAL));
        assert_eq!(block_on(fd::table(node.services.cache(), 4_000)).unwrap().entries, []);
    }
}
