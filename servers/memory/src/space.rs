//! An address space as step functions: (areas, request) → (areas, address, steps for the stub).
//!
//! On an error the areas may have been changed in part; the caller drops them.

use clustix_proto::errno::{self, Errno};
use clustix_proto::memory::{Area, Areas, HIGHEST, LOWEST, MAX_AREAS, PAGE, Source, Step, TOP};

const PROT_READ: u8 = 1;
const PROT_WRITE: u8 = 2;
const PROT_ALL: u8 = 7;

/// An address and what the stub must do.
pub type Outcome = Result<(u64, Vec<Step>), Errno>;

/// What mmap(2) is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ask {
    /// Address, or where to look first.
    pub hint: u64,
    /// Bytes.
    pub len: u64,
    /// PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4.
    pub prot: u8,
    /// What it shows.
    pub source: Source,
    /// MAP_FIXED.
    pub fixed: bool,
    /// MAP_FIXED_NOREPLACE.
    pub no_replace: bool,
}

fn page_up(n: u64) -> Option<u64> {
    n.checked_next_multiple_of(PAGE)
}

const fn aligned(n: u64) -> bool {
    n.is_multiple_of(PAGE)
}

/// The source of what starts `by` bytes further on.
fn advance(source: Source, by: u64) -> Source {
    match source {
        Source::File { ino, offset } => Source::File { ino, offset: offset.saturating_add(by) },
        other => other,
    }
}

/// Whether `b`, which starts where `a` ends, goes on where `a` leaves off.
fn continues(a: &Area, b: &Area) -> bool {
    a.end == b.start && a.prot == b.prot && advance(a.source, a.end - a.start) == b.source
}

/// Index of the first area that ends after `at`.
fn first_after(areas: &[Area], at: u64) -> usize {
    areas.partition_point(|a| a.end <= at)
}

fn is_free(areas: &[Area], start: u64, end: u64) -> bool {
    areas.get(first_after(areas, start)).is_none_or(|a| a.start >= end)
}

/// Splits the area that `at` stands within, if one does.
fn split(areas: &mut Vec<Area>, at: u64) {
    let i = first_after(areas, at);
    if let Some(a) = areas.get_mut(i)
        && a.start < at
    {
        let tail = Area { start: at, source: advance(a.source, at - a.start), ..*a };
        a.end = at;
        areas.insert(i + 1, tail);
    }
}

/// The indices of the areas within `start..end`, after splitting at both.
fn cut(areas: &mut Vec<Area>, start: u64, end: u64) -> std::ops::Range<usize> {
    split(areas, start);
    split(areas, end);
    first_after(areas, start)..areas.partition_point(|a| a.start < end)
}

/// Empties `start..end`; whether anything was there.
fn clear(areas: &mut Vec<Area>, start: u64, end: u64) -> bool {
    let range = cut(areas, start, end);
    let any = !range.is_empty();
    areas.drain(range);
    any
}

/// Joins neighbours that are one area, and enforces the bound.
fn tidy(areas: &mut Vec<Area>) -> Result<(), Errno> {
    areas.dedup_by(|b, a| {
        let one = continues(a, b);
        if one {
            a.end = b.end;
        }
        one
    });
    if areas.len() > MAX_AREAS { Err(errno::ENOMEM) } else { Ok(()) }
}

fn insert(areas: &mut Vec<Area>, area: Area) {
    let i = first_after(areas, area.start);
    areas.insert(i, area);
}

/// The highest free place of `len` bytes below [`TOP`].
fn highest_gap(areas: &[Area], len: u64) -> Option<u64> {
    let mut ceiling = TOP;
    for a in areas.iter().rev() {
        if a.end < ceiling && ceiling - a.end >= len {
            break;
        }
        ceiling = ceiling.min(a.start);
    }
    ceiling.checked_sub(len).filter(|start| *start >= LOWEST && is_free(areas, *start, ceiling))
}

/// mmap(2).
pub fn map(space: &mut Areas, ask: Ask) -> Outcome {
    let Ask { hint, len, prot, source, fixed, no_replace } = ask;
    if len == 0 || prot & !PROT_ALL != 0 {
        return Err(errno::EINVAL);
    }
    let len = page_up(len).ok_or(errno::ENOMEM)?;
    if len > HIGHEST - LOWEST {
        return Err(errno::ENOMEM);
    }
    if let Source::File { offset, .. } = source {
        if !aligned(offset) {
            return Err(errno::EINVAL);
        }
        offset.checked_add(len).ok_or(errno::EOVERFLOW)?;
    }
    let mut steps = Vec::new();
    let start = if fixed || no_replace {
        if !aligned(hint) {
            return Err(errno::EINVAL);
        }
        let end = hint.checked_add(len).filter(|e| *e <= HIGHEST).ok_or(errno::ENOMEM)?;
        if hint < LOWEST {
            return Err(errno::EPERM);
        }
        if no_replace && !is_free(&space.areas, hint, end) {
            return Err(errno::EEXIST);
        }
        if clear(&mut space.areas, hint, end) {
            steps.push(Step::Unmap(hint, end));
        }
        hint
    } else {
        let near = page_up(hint).filter(|h| {
            *h >= LOWEST
                && h.checked_add(len).is_some_and(|e| e <= TOP && is_free(&space.areas, *h, e))
        });
        near.or_else(|| highest_gap(&space.areas, len)).ok_or(errno::ENOMEM)?
    };
    let area = Area { start, end: start + len, prot, source };
    insert(&mut space.areas, area);
    tidy(&mut space.areas)?;
    steps.push(Step::Map(area));
    Ok((start, steps))
}

/// munmap(2).
pub fn unmap(space: &mut Areas, start: u64, len: u64) -> Outcome {
    if !aligned(start) || len == 0 {
        return Err(errno::EINVAL);
    }
    let end = page_up(len).and_then(|l| start.checked_add(l));
    let end = end.filter(|e| *e <= HIGHEST).ok_or(errno::EINVAL)?;
    let any = clear(&mut space.areas, start, end);
    tidy(&mut space.areas)?;
    Ok((start, if any { vec![Step::Unmap(start, end)] } else { Vec::new() }))
}

/// mprotect(2). Unlike Linux, a range with a hole changes nothing before it answers ENOMEM.
pub fn protect(space: &mut Areas, start: u64, len: u64, prot: u8) -> Outcome {
    if !aligned(start) || prot & !PROT_ALL != 0 {
        return Err(errno::EINVAL);
    }
    if len == 0 {
        return Ok((start, Vec::new()));
    }
    let end = page_up(len).and_then(|l| start.checked_add(l)).ok_or(errno::ENOMEM)?;
    let range = cut(&mut space.areas, start, end);
    let mut at = start;
    for a in space.areas.get_mut(range).unwrap_or_default() {
        if a.start != at {
            return Err(errno::ENOMEM);
        }
        at = a.end;
        a.prot = prot;
    }
    if at != end {
        return Err(errno::ENOMEM);
    }
    tidy(&mut space.areas)?;
    Ok((start, vec![Step::Protect(start, end, prot)]))
}

/// brk(2): never an error, but the break that holds afterwards.
pub fn set_break(space: &mut Areas, to: u64) -> Outcome {
    let unchanged = Ok((space.brk, Vec::new()));
    if to < space.brk_start || space.brk_start < LOWEST {
        return unchanged;
    }
    let (Some(old), Some(new)) = (page_up(space.brk), page_up(to)) else { return unchanged };
    if new > TOP {
        return unchanged;
    }
    let mut steps = Vec::new();
    if new > old {
        if !is_free(&space.areas, old, new) {
            return unchanged;
        }
        let prot = PROT_READ | PROT_WRITE;
        let area = Area { start: old, end: new, prot, source: Source::Break };
        insert(&mut space.areas, area);
        if tidy(&mut space.areas).is_err() {
            clear(&mut space.areas, old, new);
            return unchanged;
        }
        steps.push(Step::Map(area));
    } else if new < old {
        let before = space.areas.clone();
        let any = clear(&mut space.areas, new, old);
        if tidy(&mut space.areas).is_err() {
            space.areas = before;
            return unchanged;
        }
        if any {
            steps.push(Step::Unmap(new, old));
        }
    }
    space.brk = to;
    Ok((to, steps))
}

/// mremap(2): `to` is MREMAP_FIXED's address.
pub fn remap(
    space: &mut Areas,
    start: u64,
    old_len: u64,
    new_len: u64,
    may_move: bool,
    to: Option<u64>,
) -> Outcome {
    if !aligned(start) || new_len == 0 || (to.is_some() && !may_move) {
        return Err(errno::EINVAL);
    }
    // Length 0 duplicates a shared mapping; there are none here.
    if old_len == 0 {
        return Err(errno::EINVAL);
    }
    let old_len = page_up(old_len).ok_or(errno::EINVAL)?;
    let new_len = page_up(new_len).ok_or(errno::ENOMEM)?;
    if new_len > HIGHEST - LOWEST {
        return Err(errno::ENOMEM);
    }
    let end = start.checked_add(old_len).ok_or(errno::EINVAL)?;
    let area = space.areas.get(first_after(&space.areas, start)).copied();
    let area = area.filter(|a| a.start <= start).ok_or(errno::EFAULT)?;
    let whole = end <= area.end;
    let source = advance(area.source, start - area.start);
    if let Source::File { offset, .. } = source {
        offset.checked_add(new_len).ok_or(errno::EINVAL)?;
    }
    let mut steps = Vec::new();
    let place = match to {
        Some(to) => {
            let to_end = to.checked_add(new_len).filter(|e| *e <= HIGHEST);
            let to_end = to_end.ok_or(errno::EINVAL)?;
            if !aligned(to) || (to < end && start < to_end) {
                return Err(errno::EINVAL);
            }
            if to < LOWEST {
                return Err(errno::EPERM);
            }
            if !whole {
                return Err(errno::EFAULT);
            }
            if clear(&mut space.areas, to, to_end) {
                steps.push(Step::Unmap(to, to_end));
            }
            to
        }
        None if new_len <= old_len => {
            // Shrinking may span several areas, as munmap(2) may.
            if new_len < old_len {
                if end > HIGHEST {
                    return Err(errno::EINVAL);
                }
                return unmap(space, start + new_len, old_len - new_len).map(|(_, s)| (start, s));
            }
            return if whole { Ok((start, steps)) } else { Err(errno::EFAULT) };
        }
        None => {
            if !whole {
                return Err(errno::EFAULT);
            }
            let new_end = start.checked_add(new_len).filter(|e| *e <= HIGHEST);
            if let Some(new_end) = new_end
                && end == area.end
                && is_free(&space.areas, end, new_end)
            {
                let more =
                    Area { start: end, end: new_end, source: advance(source, old_len), ..area };
                insert(&mut space.areas, more);
                tidy(&mut space.areas)?;
                return Ok((start, vec![Step::Map(more)]));
            }
            if !may_move {
                return Err(errno::ENOMEM);
            }
            highest_gap(&space.areas, new_len).ok_or(errno::ENOMEM)?
        }
    };
    // The stub copies, so that both places must allow it for that long.
    if area.prot & PROT_READ == 0 {
        steps.push(Step::Protect(start, end, PROT_READ));
    }
    let new = Area { start: place, end: place + new_len, prot: area.prot, source };
    steps.push(Step::Map(Area { prot: area.prot | PROT_READ | PROT_WRITE, ..new }));
    steps.push(Step::Copy(start, place, old_len.min(new_len)));
    if area.prot & (PROT_READ | PROT_WRITE) != PROT_READ | PROT_WRITE {
        steps.push(Step::Protect(new.start, new.end, new.prot));
    }
    clear(&mut space.areas, start, end);
    steps.push(Step::Unmap(start, end));
    insert(&mut space.areas, new);
    tidy(&mut space.areas)?;
    Ok((place, steps))
}

/// Whether a caller's areas are an address space: EINVAL if not, ENOMEM if too many.
pub fn check(space: &Areas) -> Result<(), Errno> {
    let mut at = LOWEST;
    for a in &space.areas {
        let file_fits = match a.source {
            Source::File { offset, .. } => {
                aligned(offset)
                    && a.end.checked_sub(a.start).is_some_and(|l| offset.checked_add(l).is_some())
            }
            _ => true,
        };
        if a.start < at
            || a.end <= a.start
            || a.end > HIGHEST
            || !aligned(a.start)
            || !aligned(a.end)
            || a.prot & !PROT_ALL != 0
            || !file_fits
        {
            return Err(errno::EINVAL);
        }
        at = a.end;
    }
    if space.brk < space.brk_start || space.brk > TOP {
        return Err(errno::EINVAL);
    }
    if space.areas.len() > MAX_AREAS { Err(errno::ENOMEM) } else { Ok(()) }
}
