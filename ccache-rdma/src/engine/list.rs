//! What this node is primary of, for listings, dumps and status.
//!
//! A write is acknowledged before its end has activated it (rule 11), so a page that meets a slot
//! in writing waits for the end: what was acknowledged before the question is in the answer.

use super::Engine;
use super::op::{Flow, Op};
use crate::cache::{CacheError, Version};
use crate::half::Head;
use crate::layout::{self, header};
use crate::name::{Name, Shard};
use crate::request::{DUMP_BYTES, Dumped, NodeStatus, ObjectInfo, PAGE, Reply};
use crate::word::Word;
use std::ops::Bound;
use std::sync::atomic::Ordering;

/// How often a page is gathered again because of writes in progress; then those count as not done.
const TRIES: u32 = 24;

/// Which page is asked for.
#[derive(Clone, Copy)]
pub(crate) enum Page {
    Names { set: u16, after: Option<Name> },
    Objects { set: Option<u16>, after: Option<Name> },
    Dump { everything: bool, after: Option<Name> },
}

impl Engine {
    pub(crate) fn step_page(&mut self, op: &mut Op, page: Page) -> Flow {
        if !self.serving() {
            self.reply(op, Err(CacheError::NoQuorum));
            return Flow::Done;
        }
        let mut writing = false;
        let reply = match page {
            Page::Names { set, after } => Reply::Names(self.list(set, after, &mut writing)),
            Page::Objects { set, after } => {
                Reply::Objects(self.objects_page(set, after, &mut writing))
            }
            Page::Dump { everything, after } => {
                Reply::Dumped(self.dump_page(after, everything, &mut writing))
            }
        };
        if writing && op.polls < TRIES {
            return self.back_off(op);
        }
        self.reply(op, Ok(reply));
        Flow::Done
    }

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

    /// Word and head of an object that exists; `writing` is set if a write of it is in progress.
    fn existing(&self, name: Name, slot: u32, writing: &mut bool) -> Option<(Word, Head)> {
        let set = layout::set(name.set())?;
        let at = set.header(name.shard(), slot) + header::WORD;
        let word = Word(self.arena.word(set.region(), at).load(Ordering::Acquire));
        *writing |= word.writing();
        let head = self.own_header(name, set, slot).current(word)?;
        (head.name == name && !head.tombstone).then_some((word, head))
    }

    fn list(&self, set: u16, after: Option<Name>, writing: &mut bool) -> Vec<(Name, Version)> {
        self.names(Some(set), after)
            .filter_map(|(n, slot)| Some((n, Version(self.existing(n, slot, writing)?.1.version))))
            .take(PAGE)
            .collect()
    }

    fn objects_page(
        &self,
        set: Option<u16>,
        after: Option<Name>,
        writing: &mut bool,
    ) -> Vec<ObjectInfo> {
        let info = |(name, slot): (Name, u32)| {
            let (word, head) = self.existing(name, slot, writing)?;
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

    fn dump_page(&self, after: Option<Name>, everything: bool, writing: &mut bool) -> Vec<Dumped> {
        let mut bytes = 0;
        let mut page = Vec::new();
        for (name, slot) in self.names(None, after) {
            let wanted = |l: &&layout::SetLayout| everything || l.set.snapshot;
            let Some(set) = layout::set(name.set()).filter(wanted) else { continue };
            let Some((_, head)) = self.existing(name, slot, writing) else { continue };
            let Some(data) = self.own_payload(name, set, slot, &head) else {
                // It is being replaced a second time meanwhile.
                *writing = true;
                continue;
            };
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
            primaries: self.view.primaries(),
            witness: self.view.witness,
        }
    }
}
