//! Requests for volatile objects, answered from the node's slab.

use crate::cache::CacheError;
use crate::engine::Published;
use crate::name::Name;
use crate::request::{DUMP_BYTES, Dumped, ObjectInfo, PAGE, Reply, Request};
use crate::set::{self, Durability, SETS};
use crate::slab::Slab;
use crate::view::Slots;

fn is_volatile(name: Name) -> bool {
    set::descriptor(name.set()).is_some_and(|d| d.durability == Durability::Volatile)
}

/// Answers what concerns volatile objects from the slab; `None`: the engine's.
pub(super) fn answer(
    slab: Option<&Slab>,
    slot: u8,
    request: &Request,
) -> Option<Result<Reply, CacheError>> {
    let own = || slab.ok_or(CacheError::Invalid);
    let of_set =
        |set: u16| set::descriptor(set).is_some_and(|d| d.durability == Durability::Volatile);
    match request {
        Request::Get { name } if is_volatile(*name) => {
            Some(get(slab, *name).map(|(v, data)| Reply::Object(v, data)))
        }
        Request::GetOf { node, name } if *node == slot => {
            Some(get(slab, *name).map(|(v, data)| Reply::Object(v, data)))
        }
        // Only the domain that has the slab writes it.
        Request::Transact(t)
            if t.writes
                .iter()
                .map(|w| w.name)
                .chain(t.reads.iter().map(|r| r.0))
                .any(is_volatile) =>
        {
            Some(Err(CacheError::Denied))
        }
        Request::Grab { name } | Request::Release { name } if is_volatile(*name) => {
            Some(Err(CacheError::Invalid))
        }
        Request::List { set, after } if of_set(*set) => {
            Some(own().and_then(|s| s.list(*set, *after, PAGE)).map(Reply::Names))
        }
        Request::Objects { set: Some(set), after } if of_set(*set) => {
            Some(own().and_then(|s| objects(s, slot, *set, *after)).map(Reply::Objects))
        }
        Request::Dump { everything: true, after: Some(after) } if is_volatile(*after) => {
            Some(own().and_then(|s| dump(Some(s), Some(*after))).map(Reply::Dumped))
        }
        Request::Restore(objects) if objects.iter().any(|o| is_volatile(o.name)) => {
            Some(Err(CacheError::Denied))
        }
        _ => None,
    }
}

/// What the slab holds of an object.
pub(super) fn get(slab: Option<&Slab>, name: Name) -> Published {
    let mut data = Vec::new();
    let version = slab.ok_or(CacheError::Invalid)?.look(name, &mut data)?;
    Ok((version, data))
}

fn objects(
    slab: &Slab,
    slot: u8,
    set: u16,
    after: Option<Name>,
) -> Result<Vec<ObjectInfo>, CacheError> {
    let mut data = Vec::new();
    let mut page = Vec::new();
    for (name, _) in slab.list(set, after, PAGE)? {
        let version = slab.look(name, &mut data)?;
        if version.exists() {
            page.push(ObjectInfo {
                name,
                version,
                len: data.len() as u32,
                holder: Some(slot),
                sharers: Slots::NONE,
                replicas: vec![slot],
            });
        }
    }
    Ok(page)
}

/// One page of the volatile objects after `after`, in the order of their names.
pub(super) fn dump(slab: Option<&Slab>, after: Option<Name>) -> Result<Vec<Dumped>, CacheError> {
    let Some(slab) = slab else { return Ok(Vec::new()) };
    let mut sets: Vec<u16> =
        SETS.iter().filter(|d| d.durability == Durability::Volatile).map(|d| d.id).collect();
    sets.sort_unstable();
    let mut page = Vec::new();
    let mut bytes = 0;
    for set in sets.into_iter().filter(|s| after.is_none_or(|a| *s >= a.set())) {
        for (name, _) in slab.list(set, after.filter(|a| a.set() == set), PAGE)? {
            let mut data = Vec::new();
            let version = slab.look(name, &mut data)?;
            if version.exists() {
                bytes += data.len();
                page.push(Dumped { name, version, data });
            }
            if bytes >= DUMP_BYTES {
                return Ok(page);
            }
        }
        if !page.is_empty() {
            return Ok(page);
        }
    }
    Ok(page)
}
