//! What this node is primary of, for listings, dumps and status.

use super::Engine;
use crate::cache::Version;
use crate::layout::{self, header};
use crate::name::{Name, Shard};
use crate::request::{DUMP_BYTES, Dumped, NodeStatus, ObjectInfo, PAGE};
use crate::word::Word;
use std::ops::Bound;
use std::sync::atomic::Ordering;

impl Engine {
    /// Bound names after `after`, of one set or of all.
    fn names(&self, set: Option<u16>, after: Option<Name>) -> impl Iterator<Item = (Name, u32)> {
        let first = Name::new(set.unwrap_or(0), Shard(0), 0);
        let last = Name::new(set.unwrap_or(u16::MAX), Shard(u16::MAX), u128::MAX);
        let from = match after {
            Some(name) if name >= first => Bound::Excluded(name),
            _ => Bound::Included(first),
        };
        // An `after` beyond the set's last name would be a range that runs backwards.
        let none = after.is_some_and(|a| a >= last);
        let to = if none { None } else { Some((from, Bound::Included(last))) };
        to.into_iter().flat_map(|range| self.primary.range(range))
    }

    /// Version and length of an object that exists; a write in progress counts as not done.
    fn existing(&self, name: Name, slot: u32) -> Option<(Word, crate::half::Head)> {
        let set = layout::set(name.set())?;
        let at = set.header(name.shard(), slot) + header::WORD;
        let word = Word(self.arena.word(set.region(), at).load(Ordering::Acquire));
        let head = self.own_header(name, set, slot).current(word)?;
        (head.name == name && !head.tombstone).then_some((word, head))
    }

    pub(crate) fn list(&self, set: u16, after: Option<Name>) -> Vec<(Name, Version)> {
        self.names(Some(set), after)
            .filter_map(|(n, slot)| Some((n, Version(self.existing(n, slot)?.1.version))))
            .take(PAGE)
            .collect()
    }

    pub(crate) fn objects_page(&self, set: Option<u16>, after: Option<Name>) -> Vec<ObjectInfo> {
        let info = |(name, slot)| {
            let (word, head) = self.existing(name, slot)?;
            let replicas = self.view.replicas(name.shard());
            Some(ObjectInfo {
                name,
                version: Version(head.version),
                len: head.len,
                holder: word.holder(),
                sharers: word.sharers(),
                replicas: replicas.primary.into_iter().chain(replicas.backups.iter()).collect(),
            })
        };
        self.names(set, after).filter_map(info).take(PAGE).collect()
    }

    pub(crate) fn dump_page(&self, after: Option<Name>, everything: bool) -> Vec<Dumped> {
        let mut bytes = 0;
        let mut page = Vec::new();
        for (name, slot) in self.names(None, after) {
            let wanted = |l: &&layout::SetLayout| everything || l.set.snapshot;
            let Some(set) = layout::set(name.set()).filter(wanted) else { continue };
            let Some((_, head)) = self.existing(name, slot) else { continue };
            // A payload that is being replaced a second time meanwhile is left to a later dump:
            // `down` has stopped all writers before it asks.
            let Some(data) = self.own_payload(name, set, slot, &head) else { continue };
            if bytes + data.len() > DUMP_BYTES && !page.is_empty() {
                break;
            }
            bytes += data.len();
            page.push(Dumped { name, version: Version(head.version), data });
            if page.len() >= PAGE {
                break;
            }
        }
        page
    }

    pub(crate) fn status(&self) -> NodeStatus {
        NodeStatus {
            node: self.config.node,
            incarnation: self.config.incarnation,
            epoch: self.view.epoch,
            members: self.view.members.iter().map(|m| (m.slot, m.incarnation)).collect(),
            lease: self.lease_valid(),
            settled: !self.frozen,
            survival: self.view.survival(),
            objects: self.primary.len() as u64,
            used_bytes: self.primary.used_bytes * self.view.wanted().max(1) as u64,
            budget_bytes: self.config.budget_bytes,
        }
    }
}
