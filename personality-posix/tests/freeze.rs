//! The freeze rule: at a freeze everything is objects. All of them are taken out of a running node, a
//! new one is made of them and compared, and in it the calls that were blocked are completed from
//! their data alone.

mod common;

use clustix_ccache::cache::{Cache, Transaction};
use clustix_ccache::local::LocalCache;
use clustix_ccache::name::Name;
use clustix_ccache::set::{self, SETS};
use clustix_pd::exec::{block_on, now_ns};
use clustix_posix::fd::{self, Kind};
use clustix_posix::freeze::{self, Blocked};
use clustix_posix::services::Services;
use clustix_process::pipe;
use clustix_proto::process::{self, Request};
use common::local::{Local, launch, node};
use std::collections::BTreeMap;
use std::sync::Arc;

const READ: u64 = 0;
const WAIT4: u64 = 61;

/// Every object there is.
fn objects(cache: &LocalCache) -> BTreeMap<Name, Vec<u8>> {
    let mut all = BTreeMap::new();
    for set in SETS {
        let mut after = None;
        loop {
            let page = block_on(cache.list(set.id, after)).unwrap();
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            for (name, _) in page {
                let mut data = Vec::new();
                assert!(block_on(cache.get(name, &mut data)).unwrap().exists());
                all.insert(name, data);
            }
        }
    }
    all
}

/// The blocked calls among objects, by process.
fn blocked(all: &BTreeMap<Name, Vec<u8>>) -> Vec<(u32, Blocked)> {
    all.iter()
        .filter(|(name, _)| name.set() == set::THREAD)
        .map(|(name, data)| (name.id() as u32, postcard::from_bytes(data).unwrap()))
        .collect()
}

#[test]
fn blocked_calls_are_completed_elsewhere_from_their_data() {
    let old = node();
    // The shell waits for its child; the child reads from a pipe that nobody writes to.
    let shell = launch(&old, &["sh", "-c", "cat; echo status $?"]);
    let until = now_ns() + 20_000_000_000;
    let (all, calls) = loop {
        assert!(now_ns() < until, "shell and child do not come to block");
        block_on(freeze::freeze(&old)).unwrap();
        let all = objects(old.services.cache());
        let calls = blocked(&all);
        let both = [READ, WAIT4].iter().all(|nr| calls.iter().any(|c| c.1.nr == *nr));
        if both {
            break (all, calls);
        }
        freeze::thaw(&old);
        std::thread::yield_now();
    };

    let cache = Arc::new(LocalCache::new());
    for (name, data) in &all {
        block_on(cache.transact(Transaction::new().set(*name, data.clone()))).unwrap();
    }
    assert_eq!(objects(&cache), all, "the new cluster holds what the old one held");
    let new = Local::over(cache);

    // The blocked read: somebody writes to the pipe in the new cluster.
    let (reader, read) = calls.iter().find(|c| c.1.nr == READ).unwrap();
    let Some(Kind::Pipe { pipe: number, .. }) = read.file.map(|f| f.kind) else {
        panic!("{read:?} is not a read of a pipe")
    };
    let step = block_on(pipe::write(new.cache(), number, b"from elsewhere\n")).unwrap();
    assert_eq!(step, pipe::Step::Done(15));
    let done = block_on(freeze::complete(&new, *reader, read, &[])).unwrap();
    assert_eq!((done.result, done.out.as_slice()), (Ok(15), &b"from elsewhere\n"[..]));

    // The blocked wait: the child ends there.
    let (parent, wait) = calls.iter().find(|c| c.1.nr == WAIT4).unwrap();
    let exit = Request::Exit { pid: *reader, status: 3 << 8, verdict: None, own_us: (0, 0) };
    block_on(new.process(&exit)).unwrap();
    let done = block_on(freeze::complete(&new, *parent, wait, &[])).unwrap();
    assert_eq!(done.result, Ok(i64::from(*reader)));
    assert_eq!(done.out, (3i32 << 8).to_le_bytes());

    // A pipe call of a third process: what was written and not read is still in the pipe's objects.
    let step = block_on(pipe::write(new.cache(), number, b"kept")).unwrap();
    assert_eq!(step, pipe::Step::Done(4));
    let mut bytes = Vec::new();
    block_on(pipe::read(new.cache(), number, 64, &mut bytes)).unwrap();
    assert_eq!(bytes, b"kept");

    // The old node goes on as if nothing had been.
    let me: Option<process::Process> =
        block_on(fd::load(old.services.cache(), process::name::process(shell.pid))).unwrap();
    assert!(me.is_some_and(|p| p.children.contains(reader)));
    freeze::thaw(&old);
    shell.input(b"here\n", true);
    let end = shell.outcome();
    assert_eq!((end.status, end.out.as_str()), (0, "here\nstatus 0\n"));
}
