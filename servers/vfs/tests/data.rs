//! File contents: what writes cost, and what truncation never shows.

mod common;

use clustix_ccache::cache::Cache;
use clustix_ccache::set;
use clustix_pd::channel::Task;
use clustix_pd::exec::{self, Either};
use clustix_proto::errno::*;
use clustix_proto::vfs::{Credentials, MAX_FILE_SIZE, ROOT, Request, SetAttr};
use clustix_vfs::{read, stat, write};
use common::{Awkward, assert_sound, create, fresh, run, seed, unlink};
use std::cell::Cell;

const ROOT_USER: Credentials = Credentials::ROOT;

fn size(ino: u64, size: u64) -> Request {
    let attr = SetAttr { size: Some(size), ..SetAttr::default() };
    Request::SetAttr { cred: ROOT_USER, ino, attr }
}

async fn pages<C: Cache>(cache: &C) -> usize {
    let (mut n, mut after) = (0, None);
    loop {
        let page = cache.list(set::PAGE, after).await.unwrap();
        let Some((last, _)) = page.last() else { return n };
        after = Some(*last);
        n += page.len();
    }
}

#[test]
fn a_page_aligned_write_is_one_transaction_and_one_read() {
    let c = Awkward::new(fresh(), 1, 0, false);
    exec::block_on(async {
        let ino = clustix_vfs::handle(&c, create(ROOT, "f")).await.unwrap();
        let cost = |gets: u64, transactions: u64| {
            assert_eq!((c.gets.take(), c.transactions.take()), (gets, transactions));
        };
        cost(c.gets.get(), c.transactions.get());
        let page = [7; 4096];
        for (offset, append) in [(0, false), (0, false), (8192, false), (0, true)] {
            write(&c, &ROOT_USER, ino, offset, &page, append).await.unwrap();
            cost(1, 1);
        }
        // The last page of a new file, however short, is not read either.
        write(&c, &ROOT_USER, ino, 0, &page[..10], true).await.unwrap();
        cost(1, 1);
        write(&c, &ROOT_USER, ino, 0, &page[..10], true).await.unwrap();
        cost(2, 1);
        write(&c, &ROOT_USER, ino, 0, &[1; 65_536], false).await.unwrap();
        cost(1, 1);
        write(&c, &ROOT_USER, ino, 1, &[1; 65_536], false).await.unwrap();
        cost(3, 2);
        let mut out = [0; 4096];
        read(&c, ino, 4096, &mut out).await.unwrap();
        cost(2, 0);
        clustix_vfs::walk(&c, &ROOT_USER, ROOT, b"/dev/null", true).await.unwrap();
        cost(5, 0);
        // A hole costs no look-up of what is not there.
        run(&c, size(ino, 1 << 30)).await.unwrap();
        cost(c.gets.get(), 1);
        read(&c, ino, 1 << 29, &mut out).await.unwrap();
        cost(1, 0);
        assert_eq!(out, [0; 4096]);
    });
    assert_sound(&c);
}

#[test]
fn limits_are_answered() {
    let cache = fresh();
    exec::block_on(async {
        let ino = run(&*cache, create(ROOT, "f")).await.unwrap();
        assert_eq!(run(&*cache, size(ino, MAX_FILE_SIZE + 1)).await, Err(EFBIG));
        run(&*cache, size(ino, MAX_FILE_SIZE)).await.unwrap();
        let end = MAX_FILE_SIZE - 3;
        let w = write(&*cache, &ROOT_USER, ino, end, b"hello", false).await.unwrap();
        assert_eq!(w.len, 3);
        assert_eq!(write(&*cache, &ROOT_USER, ino, MAX_FILE_SIZE, b"x", false).await, Err(EFBIG));
        assert_eq!(write(&*cache, &ROOT_USER, ino, u64::MAX, b"x", false).await, Err(EFBIG));
        assert_eq!(write(&*cache, &ROOT_USER, ino, 0, b"x", true).await, Err(EFBIG));
        assert_eq!(write(&*cache, &ROOT_USER, ROOT, 0, b"x", true).await, Err(EISDIR));
        assert_eq!(read(&*cache, ROOT, 0, &mut [0; 5]).await, Err(EISDIR));
        let mut out = [0; 10];
        assert_eq!(read(&*cache, ino, end, &mut out).await, Ok(3));
        assert_eq!(&out[..3], b"hel");
        assert_eq!(read(&*cache, ino, u64::MAX, &mut out).await, Ok(0));
        // Scattered over too many far places.
        let mut r = Ok(clustix_vfs::Written { offset: 0, len: 0 });
        for i in 1..20 {
            r = write(&*cache, &ROOT_USER, ino, i << 35, b"x", false).await;
        }
        assert_eq!(r, Err(ENOSPC));
        // What is a terabyte with a dozen pages is removed as quickly as a dozen pages.
        run(&*cache, unlink(ROOT, "f")).await.unwrap();
        assert_eq!(pages(&*cache).await, 0);
    });
    assert_sound(&*cache);
}

#[test]
fn an_open_file_without_names_lives_until_its_last_node_closes_it() {
    let cache = fresh();
    let one = Awkward::new(cache.clone(), 1, 0, false);
    let mut two = Awkward::new(cache.clone(), 1, 0, false);
    two.node = 1;
    exec::block_on(async {
        let before = cache.len();
        let ino = clustix_vfs::handle(&one, create(ROOT, "f")).await.unwrap();
        assert_eq!(clustix_vfs::handle(&two, create(ROOT, "f")).await, Ok(ino));
        assert_eq!(stat(&one, ino).await.unwrap().inode.openers, 3);
        write(&one, &ROOT_USER, ino, 0, &vec![9; 20 << 20], false).await.unwrap();
        assert_eq!(clustix_vfs::handle(&one, unlink(ROOT, "f")).await, Ok(ino));
        clustix_vfs::handle(&one, Request::Closed { ino }).await.unwrap();
        let mut out = [0; 100];
        assert_eq!(read(&two, ino, 20 << 20, &mut out).await, Ok(0));
        assert_eq!(read(&two, ino, 19 << 20, &mut out).await, Ok(100));
        assert_eq!(out, [9; 100]);
        assert_eq!(pages(&*cache).await, 5 << 10);
        assert_sound_now(&cache).await;
        // Node 1 dies.
        assert_eq!(clustix_vfs::open::orphans(&one, 0b01).await, Ok(1));
        assert_eq!(cache.len(), before);
        assert_eq!(clustix_vfs::handle(&one, Request::Opened { ino }).await, Err(ENOENT));
    });
    assert_sound(&*cache);
}

async fn assert_sound_now<C: Cache>(cache: &C) {
    let problems = clustix_vfs::fsck(cache).await.unwrap();
    assert!(problems.is_empty(), "{problems:#?}");
}

/// Runs `f` for `polls` turns of the executor, then drops it where it stands: a server's death.
async fn cut<F: Future>(f: F, polls: u64) -> bool {
    let some_turns = async {
        for _ in 0..polls {
            exec::yield_now().await;
        }
    };
    matches!(exec::select(some_turns, f).await, Either::Right(_))
}

#[test]
fn what_a_truncation_took_is_never_seen_again_wherever_it_was_cut_short() {
    let seed = seed();
    let c = Awkward::new(fresh(), seed, 20, true);
    exec::block_on(async {
        let ino = run(&c, create(ROOT, "f")).await.unwrap();
        let (mut whole, mut short) = (0, 0);
        for round in 0..150u64 {
            let old = vec![0xaa; 300_000 + c.random() as usize % 100_000];
            write(&c, &ROOT_USER, ino, 0, &old, false).await.unwrap();
            let to = c.random() % 100_000;
            let ended = cut(run(&c, size(ino, to)), c.random() % 60).await;
            (whole, short) = (whole + u32::from(ended), short + u32::from(!ended));
            let now = stat(&c, ino).await.unwrap().inode.size;
            assert!(now == to || now >= old.len() as u64, "round {round}: {now}");
            // Growing again shows zeroes, by write as by truncation.
            if round % 2 == 0 {
                run(&c, size(ino, now + 350_000)).await.unwrap();
            } else {
                write(&c, &ROOT_USER, ino, now + 349_999, b"\0", false).await.unwrap();
            }
            let mut out = vec![1; 350_000];
            assert_eq!(read(&c, ino, now, &mut out).await, Ok(350_000));
            assert!(out.iter().all(|b| *b == 0), "round {round}: old bytes past {now}");
            assert_sound_now(&c).await;
            run(&c, size(ino, 0)).await.unwrap();
        }
        println!("{whole} whole, {short} cut short");
        assert!(whole > 5 && short > 20);
        // The same for removal: what is cut short is finished by the pass for orphans.
        write(&c, &ROOT_USER, ino, 0, &[1; 500_000], false).await.unwrap();
        cut(run(&c, unlink(ROOT, "f")), 30).await;
        if let Err(e) = run(&c, unlink(ROOT, "f")).await {
            assert_eq!(e, ENOENT);
        }
        clustix_vfs::open::orphans(&c, 0xffff).await.unwrap();
        assert_eq!(pages(&c).await, 0);
        assert_sound_now(&c).await;
    });
}

#[test]
fn appends_of_many_tasks_are_all_there_and_whole() {
    let seed = seed();
    let cache = fresh();
    let ino = exec::block_on(run(&*cache, create(ROOT, "log"))).unwrap();
    let tasks: Vec<Task<'_>> = (0..6u64)
        .map(|t| {
            let c = Awkward::new(cache.clone(), seed ^ (t + 1) << 32, 8, true);
            Box::pin(async move {
                for i in 0..60 {
                    let line = format!("{t}:{i}:{}\n", "x".repeat(c.random() as usize % 6000));
                    let w = write(&c, &ROOT_USER, ino, 0, line.as_bytes(), true).await.unwrap();
                    assert_eq!(w.len, line.len());
                    let mut back = vec![0; line.len()];
                    read(&c, ino, w.offset, &mut back).await.unwrap();
                    assert_eq!(back, line.as_bytes());
                }
            }) as Task<'_>
        })
        .collect();
    exec::run(tasks);
    exec::block_on(async {
        let len = stat(&*cache, ino).await.unwrap().inode.size as usize;
        let mut all = vec![0; len];
        read(&*cache, ino, 0, &mut all).await.unwrap();
        let all = String::from_utf8(all).unwrap();
        let mut next = [0; 6];
        for line in all.lines() {
            let mut parts = line.splitn(3, ':');
            let t: usize = parts.next().unwrap().parse().unwrap();
            let i: u32 = parts.next().unwrap().parse().unwrap();
            assert!(parts.next().unwrap().bytes().all(|b| b == b'x'));
            assert_eq!(i, next[t]);
            next[t] += 1;
        }
        assert_eq!(next, [60; 6]);
    });
    assert_sound(&*cache);
}

#[test]
fn readers_beside_writers_and_truncations_see_no_byte_that_was_not_there() {
    let seed = seed();
    let cache = fresh();
    let ino = exec::block_on(run(&*cache, create(ROOT, "f"))).unwrap();
    // Byte k of the file is always f(k) or a hole's zero: never another place's, never torn.
    let byte = |k: u64| (k / 4096 % 251 + 1) as u8;
    let left = Cell::new(3);
    let mut tasks: Vec<Task<'_>> = Vec::new();
    for t in 0..3u64 {
        let (c, left) = (Awkward::new(cache.clone(), seed ^ (t + 1) << 32, 8, true), &left);
        tasks.push(Box::pin(async move {
            for _ in 0..80 {
                let at = c.random() % 200_000;
                if c.random().is_multiple_of(3) {
                    run(&c, size(ino, at)).await.unwrap();
                } else {
                    let len = c.random() % 30_000;
                    let bytes: Vec<u8> = (at..at + len).map(byte).collect();
                    write(&c, &ROOT_USER, ino, at, &bytes, false).await.unwrap();
                }
            }
            left.set(left.get() - 1);
        }));
    }
    for t in 0..2u64 {
        let (c, left) = (Awkward::new(cache.clone(), seed ^ (t + 1) << 40, 0, true), &left);
        tasks.push(Box::pin(async move {
            while left.get() > 0 {
                let at = c.random() % 200_000;
                let mut out = vec![0xff; 20_000];
                let n = read(&c, ino, at, &mut out).await.unwrap();
                for (k, b) in (at..).zip(&out[..n]) {
                    assert!(*b == 0 || *b == byte(k), "{b} at {k}");
                }
                exec::yield_now().await;
            }
        }));
    }
    exec::run(tasks);
    assert_sound(&*cache);
}

#[test]
fn a_file_system_is_made_once_by_however_many() {
    let cache = std::sync::Arc::new(clustix_ccache::local::LocalCache::new());
    let tasks: Vec<Task<'_>> = (0..4u64)
        .map(|t| {
            let c = Awkward::new(cache.clone(), t + 1, 100, true);
            Box::pin(async move { clustix_vfs::mkfs(&c).await.unwrap() }) as Task<'_>
        })
        .collect();
    exec::run(tasks);
    let made = cache.len();
    exec::block_on(async {
        clustix_vfs::mkfs(&*cache).await.unwrap();
        let w = clustix_vfs::walk(&*cache, &ROOT_USER, ROOT, b"/dev/urandom", true).await.unwrap();
        let d = clustix_drivers::of_inode(w.inode.mode, w.inode.rdev);
        assert_eq!(d, Some(clustix_drivers::CharDevice::Random));
        for (path, mode) in [("/tmp", 0o41777), ("/proc", 0o40555), ("/dev/pts", 0o40755)] {
            let w = clustix_vfs::walk(&*cache, &ROOT_USER, ROOT, path.as_bytes(), true).await;
            assert_eq!(w.unwrap().inode.mode, mode, "{path}");
        }
    });
    assert_eq!(cache.len(), made);
    assert_sound(&*cache);
}
