//! Every operation of the vfs has its effect once, and its caller the right answer, whenever its server is
//! killed: before each transaction, after it, with the transaction still under way when the successor has
//! begun, or with an outcome that nobody can tell.

mod common;

use clustix_ccache::cache::{Cache, CacheError};
use clustix_ccache::local::LocalCache;
use clustix_ccache::set;
use clustix_pd::exec;
use clustix_proto::errno::*;
use clustix_proto::once::{Client, Lane, Once, Operation, Record, Repeat, forget};
use clustix_proto::vfs::{Credentials, PAGE_SIZE, ROOT, Request, SetAttr, mode};
use clustix_proto::{Answer, Errno};
use clustix_testbed::faulty::{self, Fault, Faulty};
use common::{assert_sound, create, fresh, mkdir, rename, rmdir, unlink};
use std::collections::BTreeMap;
use std::sync::Arc;

fn once(number: u64, again: bool) -> Once {
    Once { lane: Lane { index: 3, shard: 7 }, number, again }
}

/// What a server answers; `None`: it was killed before.
fn serve(cache: &Faulty, once: Once, request: &Request) -> Option<Answer<u64>> {
    let record = Record::new(set::VFSANSWER, Client::new(0, 1, "posix").unwrap(), once);
    cache.run(clustix_vfs::handle_once(cache, Some(&record), request.clone()))
}

fn plain(cache: &LocalCache, request: Request) -> Answer<u64> {
    exec::block_on(clustix_vfs::handle(cache, request))
}

/// A name of which a block has room for only so many.
fn long(n: usize) -> String {
    format!("full/{n:0250}")
}

/// The tree that every operation starts from.
fn tree() -> Arc<LocalCache> {
    let cache = fresh();
    let c = &*cache;
    for dir in ["a", "a/empty", "a/other", "a/other/deep", "full"] {
        plain(c, mkdir(ROOT, dir)).unwrap();
    }
    for (file, pages) in [("a/f", 1), ("a/g", 2), ("a/big", 40)] {
        let ino = plain(c, create(ROOT, file)).unwrap();
        for page in 0..pages {
            let bytes = vec![page as u8; PAGE_SIZE];
            let at = (page * PAGE_SIZE) as u64;
            let cred = Credentials::ROOT;
            exec::block_on(clustix_vfs::write(c, &cred, ino, at, &bytes, false)).unwrap();
        }
        plain(c, Request::Closed { ino }).unwrap();
    }
    // Full to the last name but one.
    for n in 0..60 {
        let ino = plain(c, create(ROOT, &long(n))).unwrap();
        plain(c, Request::Closed { ino }).unwrap();
    }
    cache
}

fn set_attr(cache: &LocalCache, path: &str, attr: SetAttr) -> Request {
    let cred = Credentials::ROOT;
    let ino = exec::block_on(clustix_vfs::walk(cache, &cred, ROOT, path.as_bytes(), true)).unwrap();
    Request::SetAttr { cred, ino: ino.ino, attr }
}

fn size(size: u64) -> SetAttr {
    SetAttr { size: Some(size), ..SetAttr::default() }
}

fn chmod(mode: u32) -> SetAttr {
    SetAttr { mode: Some(mode), ..SetAttr::default() }
}

fn rename_as(old: &str, new: &str, no_replace: bool, exchange: bool) -> Request {
    let (old, new) = (old.into(), new.into());
    let cred = Credentials::ROOT;
    Request::Rename { cred, old_dir: ROOT, old, new_dir: ROOT, new, no_replace, exchange }
}

fn link(old: &str, new: &str) -> Request {
    let (old, new) = (old.into(), new.into());
    Request::Link { cred: Credentials::ROOT, old_dir: ROOT, old, new_dir: ROOT, new, follow: false }
}

fn exclusive(path: &str) -> Request {
    Request::Create {
        cred: Credentials::ROOT,
        dir: ROOT,
        path: path.into(),
        mode: 0o600,
        exclusive: true,
    }
}

/// An operation, and what another does right after it that takes its effect back or builds on it.
type Case = (&'static str, fn(&LocalCache) -> Request, fn(&LocalCache) -> Request);

const CASES: &[Case] = &[
    ("create", |_| create(ROOT, "a/new"), |_| unlink(ROOT, "a/new")),
    ("create what is there", |_| create(ROOT, "a/f"), |_| unlink(ROOT, "a/f")),
    ("create exclusively", |_| exclusive("a/new"), |_| rename(ROOT, "a/new", "a/newer")),
    ("create exclusively what is there", |_| exclusive("a/f"), |_| unlink(ROOT, "a/f")),
    ("create in a full directory", |_| create(ROOT, &long(70)), |_| unlink(ROOT, &long(70))),
    ("mkdir", |_| mkdir(ROOT, "a/d"), |_| rmdir(ROOT, "a/d")),
    ("mkdir what is there", |_| mkdir(ROOT, "a/empty"), |_| rmdir(ROOT, "a/empty")),
    (
        "mknod",
        |_| Request::Mknod {
            cred: Credentials::ROOT,
            dir: ROOT,
            path: b"a/fifo".to_vec(),
            mode: mode::S_IFIFO | 0o600,
            rdev: 0,
        },
        |_| unlink(ROOT, "a/fifo"),
    ),
    (
        "symlink",
        |_| Request::Symlink {
            cred: Credentials::ROOT,
            target: b"f".to_vec(),
            dir: ROOT,
            path: b"a/s".to_vec(),
        },
        |_| unlink(ROOT, "a/s"),
    ),
    ("link", |_| link("a/f", "a/l"), |_| unlink(ROOT, "a/l")),
    ("unlink", |_| unlink(ROOT, "a/f"), |_| mkdir(ROOT, "a/f")),
    ("unlink what is not there", |_| unlink(ROOT, "a/none"), |_| mkdir(ROOT, "a/none")),
    ("unlink many pages", |_| unlink(ROOT, "a/big"), |_| link("a/g", "a/big")),
    ("rmdir", |_| rmdir(ROOT, "a/empty"), |_| mkdir(ROOT, "a/empty")),
    ("rename", |_| rename(ROOT, "a/f", "a/h"), |_| rename(ROOT, "a/h", "a/f")),
    ("rename over", |_| rename(ROOT, "a/f", "a/big"), |_| link("a/g", "a/f")),
    ("rename without replacing", |_| rename_as("a/f", "a/h", true, false), |_| unlink(ROOT, "a/h")),
    ("rename of a directory", |_| rename(ROOT, "a/empty", "a/other/e"), |_| mkdir(ROOT, "a/empty")),
    (
        "exchange",
        |_| rename_as("a/f", "a/other", false, true),
        |_| rename_as("a/f", "a/other", false, true),
    ),
    ("chmod", |c| set_attr(c, "a/f", chmod(0o600)), |c| set_attr(c, "a/f", chmod(0o640))),
    ("truncate", |c| set_attr(c, "a/big", size(5000)), |c| set_attr(c, "a/big", size(200_000))),
    ("extend", |c| set_attr(c, "a/f", size(9000)), |c| set_attr(c, "a/f", size(10))),
];

/// Everything that a program can see but for inode numbers and times: path → what stands there.
fn seen(cache: &LocalCache) -> BTreeMap<String, (u32, u32, u64, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut left = vec![(String::new(), ROOT)];
    while let Some((path, dir)) = left.pop() {
        let mut after = 2;
        loop {
            let page = exec::block_on(clustix_vfs::readdir(cache, dir, after, 100)).unwrap();
            let Some(last) = page.last() else { break };
            after = last.next;
            for e in page {
                if e.name == b"." || e.name == b".." {
                    continue;
                }
                let path = format!("{path}/{}", String::from_utf8_lossy(&e.name));
                let inode = exec::block_on(clustix_vfs::stat(cache, e.ino)).unwrap().inode;
                let mut data = Vec::new();
                if inode.is_regular() {
                    data.resize(inode.size as usize, 0);
                    let read = clustix_vfs::read(cache, e.ino, 0, &mut data);
                    assert_eq!(exec::block_on(read), Ok(inode.size as usize));
                }
                all.insert(path.clone(), (inode.mode, inode.nlink, inode.size, data));
                if inode.is_dir() {
                    left.push((path, e.ino));
                }
            }
        }
    }
    all
}

/// Ends what the dead server left, and what the caller has open; then the tree is whole.
fn clean_up(cache: &LocalCache) {
    plain(cache, Request::Orphans { live: 0 }).unwrap();
    assert_sound(cache);
}

/// An answer without inode numbers, which are by chance.
fn shape(answer: Answer<u64>) -> Result<bool, Errno> {
    answer.map(|ino| ino != 0)
}

#[test]
fn a_killed_servers_operation_is_done_once_and_answered_as_if_nothing_had_happened() {
    let mut faults = 0;
    for (what, request, _) in CASES {
        let expected = {
            let cache = tree();
            let answer = plain(&cache, request(&cache));
            clean_up(&cache);
            (shape(answer), seen(&cache))
        };
        for fault in Fault::ALL {
            for at in 0.. {
                let cache = tree();
                let request = request(&cache);
                let case = format!("{what}: {fault:?} at transaction {at}");
                let asked = |c: &Arc<_>, again| serve(c, once(9, again), &request);
                let Some(answer) = faulty::answer(&cache, (at, fault), asked) else {
                    assert!(at > 0 || expected.0.is_err() || *what == "create what is there");
                    break;
                };
                faults += 1;
                if let Ok(ino) = answer
                    && ino != 0
                {
                    exec::block_on(clustix_vfs::stat(&*cache, ino)).expect(&case);
                }
                assert_eq!(shape(answer), expected.0, "{case}");
                clean_up(&cache);
                assert!(seen(&cache) == expected.1, "{case}: another tree");
            }
        }
    }
    println!("{faults} faults");
    assert!(faults > 150, "only {faults} faults");
}

#[test]
fn a_repeat_does_not_do_again_what_another_has_taken_back() {
    for (what, request, other) in CASES {
        let cache = tree();
        let asked = request(&cache);
        let first = serve(&Faulty::new(&cache, None), once(9, false), &asked).unwrap();
        let _ = plain(&cache, other(&cache));
        let before = seen(&cache);
        let again = serve(&Faulty::new(&cache, None), once(9, true), &asked).unwrap();
        // What had no effect has no record, and may be answered as things stand now.
        if first.is_ok() && *what != "create what is there" {
            assert_eq!(again, first, "{what}");
            assert!(seen(&cache) == before, "{what}: done again");
        }
        // The next request on the lane is another.
        plain(&cache, mkdir(ROOT, "next")).unwrap();
        let next = serve(&Faulty::new(&cache, None), once(10, false), &mkdir(ROOT, "next"));
        assert_eq!(next, Some(Err(EEXIST)), "{what}");
        clean_up(&cache);
    }
}

#[test]
fn a_repeats_refusal_is_final() {
    // The dead server's transaction comes after the repeat was refused: in between another took the name.
    let cache = tree();
    let dead = Faulty::new(&cache, Some((0, Fault::Late(0))));
    assert_eq!(serve(&dead, once(9, false), &mkdir(ROOT, "a/d")), None);
    plain(&cache, mkdir(ROOT, "a/d")).unwrap();
    let next = Faulty::new(&cache, None);
    assert_eq!(serve(&next, once(9, true), &mkdir(ROOT, "a/d")), Some(Err(EEXIST)));
    plain(&cache, rmdir(ROOT, "a/d")).unwrap();
    let (_, late) = dead.late.take().unwrap();
    assert_eq!(exec::block_on(cache.transact(late)), Err(CacheError::Conflict));
    assert_eq!(serve(&next, once(9, true), &mkdir(ROOT, "a/d")), Some(Err(EEXIST)));
    assert_sound(&*cache);
}

#[test]
fn records_of_the_dead_are_forgotten() {
    let cache = tree();
    let done = serve(&Faulty::new(&cache, None), once(9, false), &mkdir(ROOT, "a/d"));
    assert!(done.unwrap().is_ok());
    let count =
        |cache: &LocalCache| exec::block_on(cache.list(set::VFSANSWER, None)).unwrap().len();
    assert_eq!(count(&cache), 1);
    let forgotten = |answers: &[&[(u8, u64)]]| {
        let mut answers = answers.iter();
        let members = async || Ok(answers.next().expect("asked too often").to_vec());
        exec::block_on(forget(&*cache, set::VFSANSWER, members)).unwrap()
    };
    assert_eq!(forgotten(&[&[(0, 1), (2, 5)]]), 0);
    // It joins meanwhile.
    assert_eq!(forgotten(&[&[(2, 5)], &[(0, 1), (2, 5)]]), 0);
    assert_eq!((forgotten(&[&[(0, 2)], &[(0, 2), (1, 1)]]), count(&cache)), (1, 0));
}

#[test]
fn what_has_an_effect_is_repeated_by_number() {
    for (what, request, _) in CASES {
        assert_eq!(request(&tree()).repeat(), Repeat::ByNumber, "{what}");
    }
}
