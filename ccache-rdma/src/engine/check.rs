//! What a transaction has read must still be so once it holds the last word (rule 29).

use super::Engine;
use super::get::{as_bytes, as_word, candidates};
use super::op::{Flow, Op, Part};
use super::write::{READ_POLLS, Stage, Write};
use crate::cache::{CacheError, Version};
use crate::half::Header;

impl Engine {
    /// Rule 29: what was read is READ again after the last word is taken.
    pub(super) fn check_reads(&mut self, op: &mut Op, w: &mut Write) -> Option<Flow> {
        w.stage = Stage::CheckLocating;
        for i in 0..w.reads.len() {
            let r = &mut w.reads[i];
            r.candidates.clear();
            r.checked = false;
            let Some(primary) = self.view.primary(r.name.shard()) else {
                return Some(self.refuse(op, w, CacheError::NoQuorum));
            };
            if primary == self.config.node {
                r.slot = self.primary.slot(r.name);
                continue;
            }
            r.slot = self.objects.get(&r.name).and_then(|o| o.slot);
            r.remembered = r.slot.is_some();
            if r.slot.is_none() {
                let chain = Engine::read_windows(r.name, r.set, false);
                self.post(op, i as u16, primary, chain);
            }
        }
        if op.pending > 0 { Some(Flow::Waits) } else { None }
    }

    pub(super) fn reads_located(&mut self, op: &mut Op, w: &mut Write) -> Option<Flow> {
        for (part, result) in op.take() {
            let (Some(r), Part::Verbs(o)) = (w.reads.get_mut(usize::from(part)), result) else {
                continue;
            };
            let (found, deeper) = candidates(r.name, r.set, &o);
            r.candidates.extend(found);
            r.remembered = false;
            if let (true, Some(primary)) = (deeper, self.view.primary(r.name.shard())) {
                let chain = Engine::read_windows(r.name, r.set, true);
                self.post(op, part, primary, chain);
            }
        }
        if op.pending > 0 {
            return Some(Flow::Waits);
        }
        for r in w.reads.iter_mut().filter(|r| r.slot.is_none()) {
            r.slot = r.candidates.pop();
        }
        self.post_checks(op, w)
    }

    fn post_checks(&mut self, op: &mut Op, w: &mut Write) -> Option<Flow> {
        w.stage = Stage::Checking;
        for i in 0..w.reads.len() {
            let r = &mut w.reads[i];
            if r.checked {
                continue;
            }
            match (r.slot, self.view.primary(r.name.shard())) {
                (Some(slot), Some(primary)) => {
                    let chain = Engine::read_word_and_header(r.name, r.set, slot).to_vec();
                    self.post(op, i as u16, primary, chain);
                }
                (None, Some(_)) if !r.version.exists() => r.checked = true,
                _ => return Some(self.refuse(op, w, CacheError::Conflict)),
            }
        }
        if op.pending > 0 { Some(Flow::Waits) } else { None }
    }

    pub(super) fn reads_checked(&mut self, op: &mut Op, w: &mut Write) -> Option<Flow> {
        let (mut again, mut moved) = (false, false);
        for (part, result) in op.take() {
            let (Some(r), Part::Verbs(o)) = (w.reads.get_mut(usize::from(part)), result) else {
                continue;
            };
            let Some(word) = as_word(o.first()) else { continue };
            let header = Header::decode(as_bytes(o.get(1)));
            if header.bound != r.name {
                moved = true;
                r.slot = r.candidates.pop();
                if r.slot.is_none() && r.remembered {
                    if let Some(known) = self.objects.get_mut(&r.name) {
                        known.slot = None;
                    }
                    again = true;
                }
                continue;
            }
            if word.writing() {
                again = true;
                continue;
            }
            let now = header
                .current(word)
                .filter(|h| h.name == r.name && !h.tombstone)
                .map_or(Version::ABSENT, |h| Version(h.version));
            if now != r.version {
                return Some(self.refuse(op, w, CacheError::Conflict));
            }
            r.checked = true;
        }
        if again {
            op.polls += 1;
            if op.polls > READ_POLLS {
                return Some(self.refuse(op, w, CacheError::Conflict));
            }
            w.stage = Stage::Check;
            return Some(self.back_off(op));
        }
        if moved {
            return self.post_checks(op, w);
        }
        w.stage = Stage::Post;
        None
    }
}
