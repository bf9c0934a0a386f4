//! Large directories: names come and go while they are read, blocks split and join.

mod common;

use clustix_ccache::cache::Cache;
use clustix_ccache::set;
use clustix_pd::channel::Task;
use clustix_pd::exec;
use clustix_proto::errno::*;
use clustix_proto::vfs::{Credentials, ROOT};
use common::{Awkward, assert_sound, create, fresh, mkdir, rename, run, seed, unlink};
use std::cell::Cell;
use std::collections::BTreeMap;

const NAMES: usize = 20_000;

async fn blocks<C: Cache>(cache: &C) -> usize {
    let (mut n, mut after) = (0, None);
    loop {
        let page = cache.list(set::DIRBLOCK, after).await.unwrap();
        let Some((last, _)) = page.last() else { return n };
        after = Some(*last);
        n += page.len();
    }
}

#[test]
fn reading_a_large_directory_gives_each_name_that_stays_once() {
    let seed = seed();
    let cache = fresh();
    let dir = exec::block_on(run(&*cache, mkdir(ROOT, "big"))).unwrap();
    let few = exec::block_on(blocks(&*cache));
    let stays = |i: usize| format!("stays-{i}");
    exec::block_on(async {
        for i in 0..NAMES / 2 {
            run(&*cache, create(dir, &stays(i))).await.unwrap();
        }
    });
    let writers = Cell::new(2);
    let passes = Cell::new(0);
    let mut tasks: Vec<Task<'_>> = Vec::new();
    for t in 0..2u64 {
        let (c, writers) = (Awkward::new(cache.clone(), seed ^ (t + 1) << 32, 8, true), &writers);
        tasks.push(Box::pin(async move {
            for i in 0..NAMES / 4 {
                run(&c, create(dir, &format!("new-{t}-{i}"))).await.unwrap();
                if i % 3 == 0 {
                    run(&c, unlink(dir, &format!("new-{t}-{}", i / 3))).await.unwrap();
                }
            }
            writers.set(writers.get() - 1);
        }));
    }
    for t in 0..3u64 {
        let c = Awkward::new(cache.clone(), seed ^ (t + 1) << 40, 0, true);
        let (writers, passes) = (&writers, &passes);
        tasks.push(Box::pin(async move {
            loop {
                let last_pass = writers.get() == 0;
                let mut seen = BTreeMap::new();
                let mut cursor = 0;
                loop {
                    let max = 1 + c.random() as usize % 700;
                    let some = clustix_vfs::readdir(&c, dir, cursor, max).await.unwrap();
                    let Some(last) = some.last() else { break };
                    assert!(some.len() <= max && last.next > cursor && last.next < 1 << 63);
                    cursor = last.next;
                    for e in some {
                        *seen.entry(e.name).or_insert(0) += 1;
                    }
                }
                assert!(seen.values().all(|n| *n == 1), "a name was given twice");
                for i in 0..NAMES / 2 {
                    assert!(seen.contains_key(stays(i).as_bytes()), "{} was left out", stays(i));
                }
                assert!(seen.contains_key(&b"."[..]) && seen.contains_key(&b".."[..]));
                passes.set(passes.get() + 1);
                // Reading all the time would only make the writers late.
                for _ in 0..20_000 {
                    exec::yield_now().await;
                }
                if last_pass {
                    break;
                }
            }
        }));
    }
    exec::run(tasks);
    println!("{} passes", passes.get());
    assert_sound(&*cache);
    let many = exec::block_on(blocks(&*cache));
    assert!(many > 20, "{many} blocks");
    // Emptied, it shrinks; then it can be removed without a trace.
    exec::block_on(async {
        let names = clustix_vfs::readdir(&*cache, dir, 2, usize::MAX).await.unwrap();
        for e in names {
            let name = String::from_utf8(e.name).unwrap();
            run(&*cache, unlink(dir, &name)).await.unwrap();
        }
        let left = blocks(&*cache).await;
        assert!(left < few + 4, "{left} blocks are left of {many}");
        run(&*cache, common::rmdir(ROOT, "big")).await.unwrap();
        assert_eq!(blocks(&*cache).await, few - 1);
    });
    assert_sound(&*cache);
}

#[test]
fn a_removed_directory_with_blocks_left_over_goes_with_all_of_them() {
    let cache = fresh();
    exec::block_on(async {
        let before = cache.len();
        let dir = run(&*cache, mkdir(ROOT, "d")).await.unwrap();
        for i in 0..3000 {
            run(&*cache, create(dir, &format!("{i}"))).await.unwrap();
        }
        // Names leave by rename, and the joins fail on purpose half of the time.
        let c = Awkward::new(cache.clone(), 5, 128, false);
        for i in 0..3000 {
            run(&c, unlink(dir, &format!("{i}"))).await.unwrap();
        }
        clustix_vfs::handle(&*cache, clustix_proto::vfs::Request::Opened { ino: dir })
            .await
            .unwrap();
        let r = clustix_vfs::handle(&*cache, common::rmdir(ROOT, "d")).await;
        assert_eq!(r, Ok(dir), "somebody has it open");
        assert_eq!(clustix_vfs::readdir(&*cache, dir, 0, 10).await, Err(ENOENT));
        assert_eq!(clustix_vfs::path_of(&*cache, dir).await, Err(ENOENT));
        assert_eq!(run(&*cache, create(dir, "x")).await, Err(ENOENT));
        let closed = clustix_proto::vfs::Request::Closed { ino: dir };
        clustix_vfs::handle(&*cache, closed).await.unwrap();
        assert_eq!(cache.len(), before);
    });
    assert_sound(&*cache);
}

#[test]
fn paths_deeper_than_a_transaction_is_wide() {
    let cache = fresh();
    exec::block_on(async {
        let mut at = ROOT;
        let mut dirs = vec![ROOT];
        for i in 0..200 {
            at = run(&*cache, mkdir(at, &format!("d{i}"))).await.unwrap();
            dirs.push(at);
        }
        let path = clustix_vfs::path_of(&*cache, at).await.unwrap();
        let w = clustix_vfs::walk(&*cache, &Credentials::ROOT, ROOT, &path, true).await.unwrap();
        assert_eq!(w.ino, at);
        // A directory near the top into the deepest, and the other way round.
        let up = "../".repeat(198);
        assert_eq!(run(&*cache, rename(at, &format!("{up}d2"), "x")).await, Err(EINVAL));
        run(&*cache, rename(dirs[3], &path_tail(3), "moved")).await.unwrap();
        assert_eq!(clustix_vfs::path_of(&*cache, at).await.unwrap(), b"/d0/d1/d2/moved");
    });
    assert_sound(&*cache);
}

fn path_tail(from: usize) -> String {
    (from..200).map(|i| format!("d{i}")).collect::<Vec<_>>().join("/")
}
