//! Creating objects from a snapshot: those that exist already are left alone.

use super::Engine;
use super::op::{Caller, Flow, Kind, Op, Part};
use super::write::Write;
use crate::cache::{CacheError, Transaction};
use crate::request::{Dumped, Reply};

/// A restore under way.
pub(crate) struct Restore {
    objects: Vec<Dumped>,
    started: bool,
}

impl Restore {
    pub(crate) fn new(objects: Vec<Dumped>) -> Restore {
        Restore { objects, started: false }
    }
}

impl Engine {
    pub(crate) fn step_restore(&mut self, op: &mut Op, r: &mut Restore) -> Flow {
        if !r.started {
            r.started = true;
            for (i, o) in std::mem::take(&mut r.objects).into_iter().enumerate() {
                let part = u16::try_from(i).unwrap_or(u16::MAX);
                let write = Write::new(Transaction::new().create(o.name, o.data), None);
                let caller = Caller::Inner(op.ticket(part));
                let spawned = write.map(|w| self.spawn(caller, Kind::Write(w)));
                let error = match spawned {
                    Ok(Some(_)) => {
                        op.pending += 1;
                        continue;
                    }
                    Ok(None) => CacheError::Busy,
                    Err(e) => e,
                };
                op.results.push((part, Part::Version(Err(error))));
            }
            if op.pending > 0 {
                return Flow::Waits;
            }
        }
        let failed = op.take().into_iter().find_map(|(_, part)| match part {
            Part::Version(Err(e)) if e != CacheError::Conflict => Some(e),
            _ => None,
        });
        self.reply(op, failed.map_or(Ok(Reply::Done), Err));
        Flow::Done
    }
}
