//! Many tasks on one tree: whatever the order, the tree stays a tree and nothing is lost or left.

mod common;

use clustix_ccache::set;
use clustix_pd::channel::Task;
use clustix_pd::exec;
use clustix_proto::errno::*;
use clustix_proto::vfs::{Credentials, ROOT, Request, SetAttr};
use common::{Awkward, assert_sound, create, fresh, mkdir, rename, rmdir, run, seed, unlink};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Errors that a race may give; anything else is a bug.
fn check<T>(what: &str, r: Result<T, clustix_proto::Errno>, allowed: &[clustix_proto::Errno]) {
    if let Err(e) = r {
        assert!(allowed.contains(&e), "{what}: {e}");
    }
}

#[test]
fn directories_renamed_into_each_other_never_make_a_cycle() {
    let seed = seed();
    let cache = fresh();
    let boss = Awkward::new(cache.clone(), seed, 0, false);
    for d in ["a", "b", "c", "d", "e", "f"] {
        exec::block_on(run(&boss, mkdir(ROOT, d))).unwrap();
    }
    let moved = Cell::new(0);
    let tasks: Vec<Task<'_>> = (0..8u64)
        .map(|t| {
            let c = Awkward::new(cache.clone(), seed ^ (t + 1) << 32, 8, true);
            let moved = &moved;
            Box::pin(async move {
                for _ in 0..120 {
                    // Any directory, wherever it is, into any other: by inode, so that paths that
                    // other renames have moved do not make most attempts fail.
                    let dirs = directories(&c).await;
                    let pick = |c: &Awkward| c.random() as usize % dirs.len();
                    let (from, to) = (pick(&c), pick(&c));
                    let r = Request::Rename {
                        cred: Credentials::ROOT,
                        old_dir: dirs[from].0,
                        old: dirs[from].1.clone(),
                        new_dir: dirs[to].2,
                        new: dirs[from].1.clone(),
                        no_replace: false,
                        exchange: c.random().is_multiple_of(4),
                    };
                    let r = run(&c, r).await;
                    moved.set(moved.get() + u32::from(r.is_ok()));
                    check("rename", r, &[EINVAL, ENOENT, ENOTEMPTY]);
                }
            }) as Task<'_>
        })
        .collect();
    exec::run(tasks);
    assert!(moved.get() > 50, "only {} renames did anything", moved.get());
    assert_sound(&*cache);
}

/// (parent, name, directory) of all directories below the root, with /dev and the like left out.
async fn directories(c: &Awkward) -> Vec<(u64, Vec<u8>, u64)> {
    let mut out = Vec::new();
    let mut left = vec![ROOT];
    while let Some(ino) = left.pop() {
        // Renames go on meanwhile: what is seen twice or not at all is another attempt's.
        for e in clustix_vfs::readdir(c, ino, 2, 100).await.unwrap_or_default() {
            if e.name.len() == 1 && out.len() < 20 {
                out.push((ino, e.name, e.ino));
                left.push(e.ino);
            }
        }
    }
    if out.is_empty() { vec![(ROOT, b"a".to_vec(), ROOT)] } else { out }
}

#[test]
fn names_and_links_stay_in_order_under_everything_at_once() {
    let seed = seed();
    let cache = fresh();
    let before = {
        exec::block_on(run(&*cache, mkdir(ROOT, "w"))).unwrap();
        cache.len()
    };
    let done = RefCell::new(BTreeMap::<&str, u32>::new());
    let tasks: Vec<Task<'_>> = (0..10u64)
        .map(|t| {
            let c = Awkward::new(cache.clone(), seed ^ (t + 1) << 32, 8, true);
            let done = &done;
            Box::pin(async move {
                for _ in 0..250 {
                    let p = |c: &Awkward| {
                        let name = [b'a' + (c.random() % 4) as u8];
                        let name = std::str::from_utf8(&name).unwrap().to_string();
                        if c.random().is_multiple_of(3) {
                            format!("w/d/{name}")
                        } else {
                            format!("w/{name}")
                        }
                    };
                    let usual = [ELOOP, ENOENT, EEXIST, ENOTDIR, EISDIR, ENOTEMPTY, EINVAL, EPERM];
                    let (what, r) = match c.random() % 9 {
                        0 => ("mkdir", run(&c, mkdir(ROOT, "w/d")).await),
                        1 => ("rmdir", run(&c, rmdir(ROOT, &p(&c))).await),
                        2 => ("unlink", run(&c, unlink(ROOT, &p(&c))).await),
                        3 => ("rename", run(&c, rename(ROOT, &p(&c), &p(&c))).await),
                        4 => {
                            let r = Request::Link {
                                cred: Credentials::ROOT,
                                old_dir: ROOT,
                                old: p(&c).into(),
                                new_dir: ROOT,
                                new: p(&c).into(),
                                follow: false,
                            };
                            ("link", run(&c, r).await)
                        }
                        5 => {
                            let r = Request::Symlink {
                                cred: Credentials::ROOT,
                                target: b"d".to_vec(),
                                dir: ROOT,
                                path: p(&c).into(),
                            };
                            ("symlink", run(&c, r).await)
                        }
                        6 => {
                            let mut r = rename(ROOT, &p(&c), &p(&c));
                            if let Request::Rename { exchange, .. } = &mut r {
                                *exchange = true;
                            }
                            ("exchange", run(&c, r).await)
                        }
                        7 => {
                            let attr =
                                SetAttr { size: Some(c.random() % 200_000), ..SetAttr::default() };
                            let cred = Credentials::ROOT;
                            let found =
                                clustix_vfs::walk(&c, &cred, ROOT, p(&c).as_bytes(), true).await;
                            let r = match found {
                                Ok(w) => run(&c, Request::SetAttr { cred, ino: w.ino, attr }).await,
                                Err(e) => Err(e),
                            };
                            ("truncate", r)
                        }
                        _ => {
                            let r = match clustix_vfs::handle(&c, create(ROOT, &p(&c))).await {
                                Ok(ino) => {
                                    let bytes = vec![7; c.random() as usize % 150_000];
                                    let at = c.random() % 100_000;
                                    let cred = Credentials::ROOT;
                                    // As the file is open here, it cannot vanish: but another task
                                    // of this node may have closed it, all being one node.
                                    clustix_vfs::write(&c, &cred, ino, at, &bytes, false)
                                        .await
                                        .map(|w| w.len as u64)
                                }
                                Err(e) => Err(e),
                            };
                            ("write", r)
                        }
                    };
                    if r.is_ok() {
                        *done.borrow_mut().entry(what).or_default() += 1;
                    }
                    check(what, r, &usual);
                }
            }) as Task<'_>
        })
        .collect();
    exec::run(tasks);
    let done = done.into_inner();
    println!("{done:?}");
    assert!(done.len() >= 8, "{done:?}");
    // Whatever is still noted as open, nobody has open.
    exec::block_on(clustix_vfs::open::orphans(&*cache, 0)).unwrap();
    assert_sound(&*cache);
    // And all of it can be removed.
    exec::block_on(remove_all(&cache, ROOT, "w/d"));
    exec::block_on(remove_all(&cache, ROOT, "w"));
    exec::block_on(run(&*cache, mkdir(ROOT, "w"))).unwrap();
    assert_eq!(cache.len(), before);
    assert_sound(&*cache);
}

async fn remove_all(cache: &Arc<clustix_ccache::local::LocalCache>, dir: u64, path: &str) {
    let cred = Credentials::ROOT;
    let Ok(w) = clustix_vfs::walk(cache, &cred, dir, path.as_bytes(), false).await else { return };
    if w.inode.is_dir() {
        for e in clustix_vfs::readdir(cache, w.ino, 2, usize::MAX).await.unwrap() {
            let below = format!("{path}/{}", String::from_utf8_lossy(&e.name));
            Box::pin(remove_all(cache, dir, &below)).await;
        }
        run(cache, rmdir(dir, path)).await.unwrap();
    } else {
        run(cache, unlink(dir, path)).await.unwrap();
    }
}

#[test]
fn threads_that_make_files_in_one_directory_all_succeed() {
    let cache = fresh();
    let dir = exec::block_on(run(&*cache, mkdir(ROOT, "d"))).unwrap();
    let threads: Vec<_> = (0..4)
        .map(|t| {
            let cache = cache.clone();
            std::thread::spawn(move || {
                exec::block_on(async {
                    for i in 0..100 {
                        run(&*cache, create(dir, &format!("{t}-{i}"))).await.unwrap();
                        run(&*cache, rename(dir, &format!("{t}-{i}"), "last")).await.unwrap();
                        run(&*cache, create(dir, &format!("{t}-{i}"))).await.unwrap();
                    }
                })
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    let names = exec::block_on(clustix_vfs::readdir(&*cache, dir, 2, usize::MAX)).unwrap();
    assert_eq!(names.len(), 401);
    assert_sound(&*cache);
}

#[test]
fn a_rename_over_a_name_leaves_no_moment_without_it() {
    let seed = seed();
    let cache = fresh();
    exec::block_on(async {
        for f in ["f", "g0", "g1", "g2"] {
            run(&*cache, create(ROOT, f)).await.unwrap();
        }
    });
    let left = Cell::new(3);
    let mut tasks: Vec<Task<'_>> = Vec::new();
    for t in 0..3u64 {
        let (c, left) = (Awkward::new(cache.clone(), seed ^ (t + 1) << 32, 8, true), &left);
        tasks.push(Box::pin(async move {
            for _ in 0..100 {
                let g = format!("g{t}");
                run(&c, create(ROOT, &g)).await.unwrap();
                run(&c, rename(ROOT, &g, "f")).await.unwrap();
            }
            left.set(left.get() - 1);
        }));
    }
    for t in 0..3u64 {
        let (c, left) = (Awkward::new(cache.clone(), seed ^ (t + 1) << 40, 0, true), &left);
        tasks.push(Box::pin(async move {
            while left.get() > 0 {
                clustix_vfs::walk(&c, &Credentials::ROOT, ROOT, b"/f", true).await.unwrap();
                exec::yield_now().await;
            }
        }));
    }
    exec::run(tasks);
    assert_sound(&*cache);
    let inodes =
        exec::block_on(clustix_ccache::cache::Cache::list(&*cache, set::INODE, None)).unwrap();
    assert!(inodes.len() < 30, "replaced files are gone");
}
