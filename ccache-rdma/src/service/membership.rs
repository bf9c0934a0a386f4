//! What passes between ccache and its node's membership: events there, views here.

use super::{Parts, Service, respond};
use crate::cache::CacheError;
use crate::engine::Event;
use crate::layout::control;
use crate::name::{SHARDS, Shard};
use crate::request::{MemberEvent, Reply};
use crate::view::View;
use clustix_pd::{Call, exec};

/// Most events that wait for membership to take them.
const MAX_EVENTS: usize = 4_096;

impl Service {
    pub(super) fn tell(&mut self, event: MemberEvent) {
        match self.parked.take() {
            Some(call) if self.events.is_empty() => respond(call, Ok(Reply::Event(event))),
            parked => {
                self.parked = parked;
                if self.events.len() >= MAX_EVENTS {
                    // Nobody takes them: a new member is told everything that still counts.
                    self.events.clear();
                    self.member = None;
                }
                self.events.push_back(event);
            }
        }
    }

    pub(super) fn next_event(&mut self, call: Call) {
        if self.member != Some(call.channel) {
            // A new member process knows nothing of what the one before was told.
            self.member = Some(call.channel);
            self.events.clear();
            self.events.push_back(MemberEvent::Revoked { epoch: self.revoked });
            for (slot, incarnation) in self.ended_peers.clone() {
                self.events.push_back(MemberEvent::Ended { slot, incarnation });
            }
            for (slot, incarnation) in self.suspected.clone() {
                self.events.push_back(MemberEvent::Suspect { slot, incarnation });
            }
            for (slot, epoch, shards) in self.rebuilt.clone() {
                self.events.push_back(MemberEvent::Rebuilt { slot, epoch, shards });
            }
        }
        match self.events.pop_front() {
            Some(event) => respond(call, Ok(Reply::Event(event))),
            None => self.parked = Some(call),
        }
    }

    pub(super) fn install(&mut self, view: View) {
        if view.epoch <= self.view.epoch {
            return;
        }
        let Parts { slot, incarnation, .. } = self.parts;
        let epoch = view.epoch;
        let within = view.member(slot).is_some_and(|m| m.incarnation == incarnation);
        if !within {
            self.ended = Some(format!(
                "node {slot} (incarnation {incarnation}) was evicted: view {epoch} is without it"
            ));
            return;
        }
        let members: Vec<(u8, u64)> =
            view.members.iter().map(|m| (m.slot, m.incarnation)).collect();
        eprintln!("ccache: view {epoch}: {members:?}, {:?}", view.survival());
        let now = exec::now_ns();
        let before = std::mem::replace(&mut self.view, view.clone());
        self.lease.install(view.slots());
        self.watch.install(now, slot, members.iter().copied());
        self.suspected.retain(|s, i| members.contains(&(*s, *i)));
        for (s, _, shards) in &mut self.rebuilt {
            shards.retain(|x| {
                let x = Shard(*x);
                view.replicas(x).rebuilding.contains(*s) && !view.copies_anew(&before, x)
            });
        }
        self.rebuilt.retain(|(_, _, shards)| !shards.is_empty());
        for s in (0..SHARDS).map(Shard) {
            let primary = view.primary(s).map_or(0, |p| u64::from(p) + 1);
            self.parts.arena.set_control(control::primary(s), primary);
        }
        self.step(Event::View(view));
        self.renew(now);
        self.look_at = 0;
    }

    /// Passes on to membership that shards are to have another primary, if they can.
    pub(super) fn rehome(&mut self, to: u8, shards: &[u16]) -> Result<Reply, CacheError> {
        if !self.lease.valid(exec::now_ns()) {
            return Err(CacheError::NoQuorum);
        }
        if !self.engine.settled() {
            return Err(CacheError::Busy);
        }
        let of = |s: &u16| self.view.replicas(Shard(*s));
        let lacking: Vec<u16> =
            shards.iter().copied().filter(|s| !of(s).complete().contains(to)).collect();
        let moving = shards.iter().filter(|s| of(s).primary != Some(to)).count() as u32;
        if lacking.is_empty() && moving > 0 {
            let epoch = self.view.epoch;
            self.tell(MemberEvent::Rehome { epoch, to, shards: shards.to_vec() });
        }
        Ok(Reply::Rehoming { lacking, moving })
    }
}
