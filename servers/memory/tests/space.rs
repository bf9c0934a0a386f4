//! Address spaces against a map of single pages, and the steps against a stub that obeys them.

use clustix_ccache::local::LocalCache;
use clustix_memory::Server;
use clustix_memory::space::{self, Ask};
use clustix_pd::exec;
use clustix_proto::errno::{self, Errno};
use clustix_proto::memory::{
    Area, Areas, HIGHEST, LOWEST, MAX_AREAS, Mapped, PAGE, Request, Source, Step, TOP, areas,
};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Where random requests play: a window of this many pages below [`HIGHEST`], so that its end counts.
const PAGES: u64 = 48;
const BASE: u64 = HIGHEST - PAGES * PAGE;

/// What one page is: protection, and its source with the offset of this page.
type Page = (u8, Source);
type Pages = BTreeMap<u64, Page>;

fn page_source(source: Source, by: u64) -> Source {
    match source {
        Source::File { ino, offset } => Source::File { ino, offset: offset + by },
        other => other,
    }
}

fn fill(pages: &mut Pages, start: u64, end: u64, prot: u8, source: Source) {
    for at in (start..end).step_by(PAGE as usize) {
        pages.insert(at, (prot, page_source(source, at - start)));
    }
}

fn clear(pages: &mut Pages, start: u64, end: u64) -> bool {
    let before = pages.len();
    pages.retain(|at, _| !(start..end).contains(at));
    pages.len() != before
}

fn pages_of(space: &Areas) -> Pages {
    let mut pages = Pages::new();
    for a in &space.areas {
        fill(&mut pages, a.start, a.end, a.prot, a.source);
    }
    pages
}

/// The stub: does what it is told, and refuses what the host would refuse.
fn obey(stub: &mut Pages, steps: &[Step]) {
    for step in steps {
        match *step {
            Step::Unmap(start, end) => drop(clear(stub, start, end)),
            Step::Map(a) => {
                assert!(
                    (a.start..a.end).step_by(PAGE as usize).all(|at| !stub.contains_key(&at)),
                    "MAP_FIXED_NOREPLACE over something: {a:?}"
                );
                fill(stub, a.start, a.end, a.prot, a.source);
            }
            Step::Protect(start, end, prot) => {
                for at in (start..end).step_by(PAGE as usize) {
                    stub.get_mut(&at).expect("mprotect of a hole").0 = prot;
                }
            }
            Step::Copy(from, to, len) => {
                for by in (0..len).step_by(PAGE as usize) {
                    assert!(stub[&(from + by)].0 & 1 != 0, "copy from an unreadable page");
                    assert!(stub[&(to + by)].0 & 2 != 0, "copy to an unwritable page");
                }
            }
        }
    }
}

/// What must always hold of an address space.
fn check(space: &Areas) {
    assert!(space.areas.len() <= MAX_AREAS);
    let mut last: Option<&Area> = None;
    for a in &space.areas {
        assert!(a.start < a.end && a.start % PAGE == 0 && a.end % PAGE == 0, "{a:?}");
        assert!(a.start >= LOWEST && a.end <= HIGHEST, "{a:?}");
        if let Some(l) = last {
            assert!(l.end <= a.start, "{l:?} {a:?}");
            let joins = l.end == a.start
                && l.prot == a.prot
                && page_source(l.source, l.end - l.start) == a.source;
            assert!(!joins, "not merged: {l:?} {a:?}");
        }
        last = Some(a);
    }
}

#[derive(Clone, Debug)]
enum Op {
    Map { page: u64, pages: u64, prot: u8, source: Source, fixed: bool, no_replace: bool },
    Unmap { page: u64, pages: u64 },
    Protect { page: u64, pages: u64, prot: u8 },
    Break { to: u64 },
    Remap { page: u64, old: u64, new: u64, may_move: bool, to: Option<u64> },
}

fn ops() -> impl Strategy<Value = Op> {
    let source = prop_oneof![
        3 => Just(Source::Anonymous),
        2 => (0..3u64, 0..20u64).prop_map(|(ino, p)| Source::File { ino, offset: p * PAGE }),
        1 => Just(Source::Stack),
    ];
    let page = 0..PAGES + 2;
    let pages = 1..8u64;
    prop_oneof![
        4 => (page.clone(), pages.clone(), 0..8u8, source, any::<bool>(), any::<bool>()).prop_map(
            |(page, pages, prot, source, fixed, no_replace)| Op::Map {
                page, pages, prot, source, fixed, no_replace
            }
        ),
        3 => (page.clone(), 0..12u64).prop_map(|(page, pages)| Op::Unmap { page, pages }),
        3 => (page.clone(), 0..12u64, 0..9u8)
            .prop_map(|(page, pages, prot)| Op::Protect { page, pages, prot }),
        2 => (0..12 * PAGE).prop_map(|to| Op::Break { to }),
        2 => (page.clone(), 0..6u64, 0..10u64, any::<bool>(), proptest::option::of(page))
            .prop_map(|(page, old, new, may_move, to)| Op::Remap { page, old, new, may_move, to }),
    ]
}

/// The specification, page by page. `chosen`: the address that the server chose, where it may.
fn specify(
    pages: &mut Pages,
    brk: &mut (u64, u64),
    op: &Op,
    chosen: Option<u64>,
) -> Result<(), Errno> {
    let at = |page: &u64| BASE + page * PAGE;
    let run = |start: u64, n: u64| (start..start + n * PAGE).step_by(PAGE as usize);
    match op {
        Op::Map { page, pages: n, prot, source, fixed, no_replace } => {
            let mut start = at(page);
            if *fixed || *no_replace {
                if start + n * PAGE > HIGHEST {
                    return Err(errno::ENOMEM);
                }
                if *no_replace && run(start, *n).any(|p| pages.contains_key(&p)) {
                    return Err(errno::EEXIST);
                }
                clear(pages, start, start + n * PAGE);
            } else {
                start = chosen.expect("there is room");
                assert!(start >= LOWEST && start + n * PAGE <= TOP);
                assert!(run(start, *n).all(|p| !pages.contains_key(&p)), "chosen over something");
                let hint = at(page);
                let hint_free =
                    hint + n * PAGE <= TOP && run(hint, *n).all(|p| !pages.contains_key(&p));
                assert_eq!(start == hint, hint_free, "the hint");
                if !hint_free {
                    // Highest: no free run of that length starts above.
                    let mut above = start + PAGE;
                    while above + n * PAGE <= TOP {
                        assert!(run(above, *n).any(|p| pages.contains_key(&p)), "not the highest");
                        above += PAGE;
                    }
                }
            }
            fill(pages, start, start + n * PAGE, *prot, *source);
        }
        Op::Unmap { page, pages: n } => {
            if *n == 0 || at(page) + n * PAGE > HIGHEST {
                return Err(errno::EINVAL);
            }
            clear(pages, at(page), at(page) + n * PAGE);
        }
        Op::Protect { page, pages: n, prot } => {
            if *prot > 7 {
                return Err(errno::EINVAL);
            }
            if run(at(page), *n).any(|p| !pages.contains_key(&p)) {
                return Err(errno::ENOMEM);
            }
            for p in run(at(page), *n) {
                pages.get_mut(&p).unwrap().0 = *prot;
            }
        }
        Op::Break { to } => {
            let to = brk.0 + to;
            let (old, new) = (brk.1.next_multiple_of(PAGE), to.next_multiple_of(PAGE));
            if new > old {
                if (old..new).step_by(PAGE as usize).any(|p| pages.contains_key(&p)) {
                    return Ok(());
                }
                fill(pages, old, new, 3, Source::Break);
            } else {
                clear(pages, new, old);
            }
            brk.1 = to;
        }
        Op::Remap { page, old, new, may_move, to } => {
            let start = at(page);
            if *new == 0 || *old == 0 || (to.is_some() && !may_move) {
                return Err(errno::EINVAL);
            }
            let Some((prot, source)) = pages.get(&start).copied() else {
                return Err(errno::EFAULT);
            };
            let same = |p: u64| {
                pages.get(&p).is_some_and(|x| *x == (prot, page_source(source, p - start)))
            };
            let whole = run(start, *old).all(same);
            let target = match to.as_ref().map(at) {
                Some(to) => {
                    let overlaps = to < start + old * PAGE && start < to + new * PAGE;
                    if to + new * PAGE > HIGHEST || overlaps {
                        return Err(errno::EINVAL);
                    }
                    to
                }
                None if new <= old => {
                    if new < old {
                        if start + old * PAGE > HIGHEST {
                            return Err(errno::EINVAL);
                        }
                        clear(pages, start + new * PAGE, start + old * PAGE);
                        return Ok(());
                    }
                    return if whole { Ok(()) } else { Err(errno::EFAULT) };
                }
                None => start,
            };
            if !whole {
                return Err(errno::EFAULT);
            }
            if to.is_none() {
                let more = start + old * PAGE;
                let free = start + new * PAGE <= HIGHEST
                    && run(more, new - old).all(|p| !pages.contains_key(&p));
                if free {
                    fill(pages, more, start + new * PAGE, prot, page_source(source, old * PAGE));
                    return Ok(());
                }
                if !may_move {
                    return Err(errno::ENOMEM);
                }
            }
            let target = if to.is_none() { chosen.expect("there is room") } else { target };
            if to.is_some() {
                clear(pages, target, target + new * PAGE);
            }
            assert!(run(target, *new).all(|p| !pages.contains_key(&p)));
            clear(pages, start, start + old * PAGE);
            fill(pages, target, target + new * PAGE, prot, source);
        }
    }
    Ok(())
}

fn apply(space: &mut Areas, op: &Op) -> space::Outcome {
    let at = |page: u64| BASE + page * PAGE;
    match op.clone() {
        Op::Map { page, pages, prot, source, fixed, no_replace } => {
            let len = pages * PAGE - 1;
            space::map(space, Ask { hint: at(page), len, prot, source, fixed, no_replace })
        }
        Op::Unmap { page, pages } => space::unmap(space, at(page), pages * PAGE),
        Op::Protect { page, pages, prot } => space::protect(space, at(page), pages * PAGE, prot),
        Op::Break { to } => space::set_break(space, space.brk_start + to),
        Op::Remap { page, old, new, may_move, to } => {
            space::remap(space, at(page), old * PAGE, new * PAGE, may_move, to.map(at))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn spaces_agree_with_a_map_of_pages(ops in proptest::collection::vec(ops(), 1..60)) {
        let brk = BASE + 20 * PAGE + 100;
        let mut space = Areas { areas: vec![], brk_start: brk, brk };
        let mut model_brk = (brk, brk);
        let (mut model, mut stub) = (Pages::new(), Pages::new());
        for op in &ops {
            let mut next = space.clone();
            let got = apply(&mut next, op);
            let chosen = got.as_ref().ok().map(|(addr, _)| *addr);
            let mut next_model = model.clone();
            let want = specify(&mut next_model, &mut model_brk, op, chosen);
            match (&got, &want) {
                (Ok((addr, steps)), Ok(())) => {
                    check(&next);
                    obey(&mut stub, steps);
                    space = next;
                    model = next_model;
                    if let Op::Break { .. } = op {
                        prop_assert_eq!(*addr, model_brk.1);
                    }
                }
                (Err(e), Err(f)) => prop_assert_eq!(e, f, "{:?}", op),
                _ => prop_assert!(false, "{:?}: {:?} instead of {:?}", op, got, want),
            }
            prop_assert_eq!(&pages_of(&space), &model, "{:?}", op);
            prop_assert_eq!(&stub, &model, "the stub after {:?}", op);
            prop_assert_eq!(space.brk, model_brk.1);
        }
    }

    /// Any numbers at all: an answer or an error, never a panic or a broken space.
    #[test]
    fn hostile_numbers_do_no_harm(
        a in any::<u64>(), b in any::<u64>(), c in any::<u64>(), d in any::<u64>(),
        prot in any::<u8>(), x in any::<bool>(), y in any::<bool>(), small in any::<bool>(),
    ) {
        let (a, b) = if small { ((a % HIGHEST) & !4095, b % (1 << 30)) } else { (a, b) };
        let brk = 0x50_0000;
        let area = Area { start: 0x40_0000, end: 0x50_0000, prot: 5, source: Source::File { ino: 1, offset: 0 } };
        let base = Areas { areas: vec![area], brk_start: brk, brk };
        let run = |f: &dyn Fn(&mut Areas) -> space::Outcome| {
            let mut s = base.clone();
            if f(&mut s).is_ok() { check(&s); }
        };
        for source in [Source::Anonymous, Source::File { ino: 1, offset: c }] {
            run(&|s| space::map(s, Ask { hint: a, len: b, prot, source, fixed: x, no_replace: y }));
        }
        run(&|s| space::unmap(s, a, b));
        run(&|s| space::protect(s, a, b, prot));
        run(&|s| space::set_break(s, a));
        run(&|s| space::remap(s, a, b, c, x, y.then_some(d)));
        run(&|s| space::remap(s, 0x40_0000, b, c, x, y.then_some(d)));
        let _ = space::check(&Areas { areas: vec![Area { start: a, end: b, prot, source: Source::File { ino: 0, offset: c } }], brk_start: c, brk: d });
    }
}

#[test]
fn too_many_areas_are_refused_and_change_nothing() {
    let mut space = Areas::default();
    let ask = |i: u64| Ask {
        hint: LOWEST + i * 2 * PAGE,
        len: PAGE,
        prot: 3,
        source: Source::Anonymous,
        fixed: true,
        no_replace: false,
    };
    for i in 0..MAX_AREAS as u64 {
        space::map(&mut space, ask(i)).unwrap();
    }
    assert_eq!(space::map(&mut space.clone(), ask(5000)), Err(errno::ENOMEM));
    let three = Ask { len: 3 * PAGE, ..ask(0) };
    space::map(&mut space, three).unwrap();
    space::map(&mut space, ask(5000)).unwrap();
    assert_eq!(
        space::unmap(&mut space.clone(), LOWEST + PAGE, PAGE),
        Err(errno::ENOMEM),
        "a split"
    );
    space.brk_start = 0x7000_0000_0000;
    space.brk = space.brk_start;
    let same = (space.brk, vec![]);
    assert_eq!(space::set_break(&mut space, same.0 + 1), Ok(same));
    assert!(postcard::to_allocvec(&space).unwrap().len() <= 65_536);
}

#[test]
fn the_largest_space_fits_its_object() {
    let source = Source::File { ino: u64::MAX, offset: (u64::MAX - (1 << 40)) & !4095 };
    let areas = (0..MAX_AREAS as u64)
        .map(|i| Area {
            start: TOP - (i + 1) * 2 * PAGE,
            end: TOP - (i * 2 + 1) * PAGE,
            prot: 7,
            source,
        })
        .rev()
        .collect();
    let space = Areas { areas, brk_start: TOP, brk: TOP };
    space::check(&space).unwrap();
    assert!(postcard::to_allocvec(&space).unwrap().len() <= 65_536);
}

#[test]
fn the_server_keeps_spaces_as_objects() {
    let cache = std::sync::Arc::new(LocalCache::new());
    let server = Server::new(cache.clone());
    exec::block_on(async {
        let map = |space| Request::Map {
            space,
            hint: 0,
            len: 100,
            prot: 3,
            source: Source::Anonymous,
            fixed: false,
            no_replace: false,
        };
        assert_eq!(server.handle(map(7)).await, Err(errno::ESRCH));
        let text = Area {
            start: 0x40_0000,
            end: 0x41_0000,
            prot: 5,
            source: Source::File { ino: 9, offset: 0 },
        };
        let fresh = Areas { areas: vec![text], brk_start: 0x42_0000, brk: 0x42_0000 };
        let Ok(Mapped { steps, .. }) =
            server.handle(Request::Replace { space: 7, areas: fresh.clone() }).await
        else {
            panic!()
        };
        assert_eq!(steps, [Step::Map(text)]);
        assert_eq!(server.handle(map(7)).await.unwrap().addr, TOP - PAGE);
        server.handle(Request::Fork { parent: 7, child: 8 }).await.unwrap();
        assert_eq!(server.handle(map(8)).await.unwrap().addr, TOP - 2 * PAGE);
        let unmap = Request::Unmap { space: 7, start: TOP - PAGE, len: 1 };
        assert_eq!(
            server.handle(unmap.clone()).await.unwrap().steps,
            [Step::Unmap(TOP - PAGE, TOP)]
        );
        assert_eq!(server.handle(unmap).await.unwrap().steps, []);
        let (left, _) = clustix_proto::object::load::<_, Areas>(&cache, areas(7)).await.unwrap();
        assert_eq!(left.unwrap(), fresh);
        let bad = Areas { areas: vec![text, text], ..fresh.clone() };
        assert_eq!(
            server.handle(Request::Replace { space: 7, areas: bad }).await,
            Err(errno::EINVAL)
        );
        for space in [7, 8, 9] {
            server.handle(Request::Remove { space }).await.unwrap();
        }
        assert!(cache.is_empty());
    });
}
