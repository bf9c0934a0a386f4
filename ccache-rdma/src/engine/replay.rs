//! What a survivor does with the redo records in its memory while all are frozen (rule 22): records whose
//! objects nobody else will bring to an end are applied, each as a whole.
//!
//! A record may stand here alone. It goes to every other survivor before anything of it is applied:
//! whoever dies in the middle of it, the others have it, and apply it again.

use super::get::as_bytes;
use super::op::{Flow, Op, Part};
use super::{Bug, Engine, redo};
use crate::fabric::{Address, Verb};
use crate::half::{self, Header};
use crate::layout::{self, RegionId, SetLayout, control, header};
use crate::name::SHARDS;
use crate::view::{MAX_NODES, Slots};
use std::collections::VecDeque;
use std::sync::Arc;

/// A whole record, and what of it is for this node to apply.
struct Record {
    at: Address,
    bytes: Vec<u8>,
    entries: Vec<(&'static SetLayout, redo::Entry)>,
}

enum Stage {
    /// Looks what of the first record is not on all complete replicas yet.
    Look,
    Looking,
    /// The record is being written to all others.
    Spreading(Vec<usize>),
    Applying,
}

/// The replay of all records.
pub(crate) struct Replay {
    left: VecDeque<Record>,
    stage: Stage,
}

impl Engine {
    /// Whole records in this node's memory with objects in shards whose words are made anew, whoever
    /// wrote them, and those of the gone.
    pub(crate) fn begin_replay(&self) -> Replay {
        let mut left = VecDeque::new();
        if !self.gone().is_empty() || self.any_affected() {
            for writer in 0..MAX_NODES as u8 {
                left.extend((0..control::REDO_RECORDS).filter_map(|i| self.record(writer, i)));
            }
        }
        Replay { left, stage: Stage::Look }
    }

    fn record(&self, writer: u8, index: u64) -> Option<Record> {
        let region = self.arena.region(RegionId::Control);
        let offset = control::redo(writer, index);
        let mut fixed = [0; 24];
        if !region.read(offset as usize, &mut fixed) {
            return None;
        }
        let mut bytes = vec![0; redo::length(&fixed)?];
        if !region.read(offset as usize, &mut bytes) {
            return None;
        }
        let mut entries = Vec::new();
        if !redo::is_whole(&bytes) && !self.bug(Bug::RecordUnchecked) {
            return None;
        }
        for e in redo::entries(&bytes)? {
            let shard = e.head.name.shard();
            let set = layout::set(e.head.name.set());
            let Some(set) = set.filter(|l| e.slot < l.slots() && shard.0 < SHARDS) else {
                continue;
            };
            if self.is_affected(shard) || self.gone().contains(writer) {
                entries.push((set, e));
            }
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let at = Address { region: RegionId::Control, offset };
        (!entries.is_empty()).then_some(Record { at, bytes, entries })
    }

    pub(crate) fn replay(&mut self, op: &mut Op, r: &mut Replay) -> Flow {
        while let Some(record) = r.left.front_mut() {
            match &mut r.stage {
                Stage::Look => {
                    for (i, (set, e)) in record.entries.iter().enumerate() {
                        let name = e.head.name;
                        let [_, header] = Engine::read_word_and_header(name, set, e.slot);
                        for peer in self.view.replicas(name.shard()).complete().iter() {
                            self.post(op, part(i, peer), peer, vec![header.clone()]);
                        }
                    }
                    r.stage = Stage::Looking;
                }
                Stage::Looking => {
                    let any = self.bug(Bug::ReplayWithoutVersions);
                    let lacking = lacking(record, op.take(), any);
                    if lacking.is_empty() {
                        r.left.pop_front();
                        r.stage = Stage::Look;
                        continue;
                    }
                    // Its space holds nothing else that is needed: the writer used it again only when
                    // the transaction before stood everywhere.
                    let data = Arc::new(std::mem::take(&mut record.bytes));
                    let len = data.len() as u32;
                    let write = Verb::Write { at: record.at, data, from: 0, len };
                    let mut others = self.view.slots().without(self.config.node);
                    if self.bug(Bug::ReplayFromOneRecord) {
                        others = Slots::NONE;
                    }
                    for peer in others.iter() {
                        self.post(op, u16::from(peer), peer, vec![write.clone()]);
                    }
                    r.stage = Stage::Spreading(lacking);
                }
                Stage::Spreading(lacking) => {
                    op.take();
                    for i in std::mem::take(lacking) {
                        let Some((set, e)) = record.entries.get(i) else { continue };
                        let shard = e.head.name.shard();
                        let half = half::buffer(&e.head, &e.data);
                        for peer in self.view.replicas(shard).all().iter() {
                            let chain =
                                Engine::write_half(set, shard, e.slot, e.head.version, &half);
                            self.post(op, part(i, peer), peer, chain);
                        }
                    }
                    r.stage = Stage::Applying;
                }
                Stage::Applying => {
                    op.take();
                    r.left.pop_front();
                    r.stage = Stage::Look;
                }
            }
            if op.pending > 0 {
                return Flow::Waits;
            }
        }
        Flow::Done
    }
}

fn part(entry: usize, peer: u8) -> u16 {
    (entry * MAX_NODES) as u16 + u16::from(peer)
}

/// The objects of a record that stand in that version or a higher one on no complete replica, or at that
/// version not on all: such a copy may have been cut off in the middle.
fn lacking(record: &Record, headers: Vec<(u16, Part)>, any: bool) -> Vec<usize> {
    let mut highest = vec![0; record.entries.len()];
    let mut whole = vec![true; record.entries.len()];
    for (part, result) in headers {
        let i = usize::from(part) / MAX_NODES;
        let (Part::Verbs(outcomes), Some((_, e))) = (result, record.entries.get(i)) else {
            continue;
        };
        let bytes = as_bytes(outcomes.first());
        debug_assert_eq!(bytes.len(), header::LEN as usize);
        let version = Header::decode(bytes).highest().map_or(0, |h| h.version);
        highest[i] = version.max(highest[i]);
        whole[i] &= version >= e.head.version;
    }
    let lacks = |i: &usize| {
        let version = record.entries[*i].1.head.version;
        any || version > highest[*i] || (version == highest[*i] && !whole[*i])
    };
    (0..record.entries.len()).filter(lacks).collect()
}
