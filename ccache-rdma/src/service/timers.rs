//! What happens by the clock: renewals of the lease, looks at the peers, housekeeping.

use super::{Service, Way};
use crate::engine::{ClientId, Event};
use crate::fabric::{Address, Token, Verb};
use crate::layout::{RegionId, control};
use crate::lease::Opinion;
use crate::network::Broken;
use crate::request::MemberEvent;
use clustix_pd::{exec, metrics};
use std::io::Write;

/// Sockets are looked at, and peers' heartbeats, this often with a lease of 250 ms, ns.
const LOOK: u64 = 10_000_000;
/// The same while a link is being made, ns.
const LOOK_SOON: u64 = 1_000_000;
/// A queued wait that its client does not repeat is forgotten, ns.
const WAIT_AGE: u64 = 3_000_000_000;
/// Housekeeping: dead channels, old waits, gauges, ns.
const SWEEP: u64 = 500_000_000;

const MS: u64 = 1_000_000;

/// A line of the log in one write: other domains write to the same file.
fn say(line: std::fmt::Arguments<'_>) {
    // Without its log a node goes on.
    let _ = std::io::stderr().write_all(format!("ccache: {line}\n").as_bytes());
}

/// This thread's processor time, ns.
fn cpu_ns() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    (t.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(t.tv_nsec as u64)
}

impl Service {
    pub(super) fn timers(&mut self) {
        let now = exec::now_ns();
        self.now = now;
        self.renew_in_time(now);
        let valid = self.lease.valid(now);
        if self.had_lease && !valid {
            eprintln!("ccache: the lease of node {} has run out", self.parts.slot);
            self.tell(MemberEvent::LeaseLost);
        }
        self.had_lease = valid;
        if now >= self.look_at {
            self.look(now);
        }
        if self.engine.deadline().is_some_and(|at| now >= at) {
            self.step(Event::Tick);
        }
        if self.revoked < self.view.epoch && self.engine.has_revoked() {
            self.revoked = self.view.epoch;
            self.tell(MemberEvent::Revoked { epoch: self.revoked });
        }
        self.tell_of_change();
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP;
            self.sweep(now);
        }
    }

    /// Says of a change of view in which somebody was lost how long each part of it took.
    fn tell_of_change(&mut self) {
        let s = self.engine.stats();
        if std::mem::replace(&mut self.changes, s.changes) == s.changes || !s.last_change.gone {
            return;
        }
        let t = s.last_change;
        // Where another node noticed first, there was nothing to wait for here.
        let (silent, at) = match std::mem::take(&mut self.noticed) {
            (_, 0) => (0, t.view),
            noticed => noticed,
        };
        let parts = [
            ("silent", silent),
            ("view", t.view.saturating_sub(at)),
            ("revoke", t.drained.saturating_sub(t.view)),
            ("lease", t.lease.saturating_sub(t.drained)),
            ("records", t.replayed.saturating_sub(t.lease)),
            ("resolve", t.resolved.saturating_sub(t.replayed)),
        ];
        let text: Vec<String> =
            parts.iter().map(|(part, ns)| format!("{part} {:.1}", *ns as f64 / 1e6)).collect();
        eprintln!("ccache: view {} serves; ms: {}", self.view.epoch, text.join(", "));
        for (part, ns) in parts {
            metrics::set(&format!("clustix_takeover_ns{{part=\"{part}\"}}"), ns);
        }
    }

    pub(super) fn renew_in_time(&mut self, now: u64) {
        if now >= self.lease.next() {
            self.renew(now);
        }
    }

    pub(super) fn renew(&mut self, now: u64) {
        // It counts from `now`: none goes to a peer that is not known to have been there since. (In shared memory
        // it would complete in the memory of the dead.)
        self.look(now);
        let before = self.lease.end();
        let Some((number, peers)) = self.lease.send(now) else { return };
        let at = Address { region: RegionId::Control, offset: control::heartbeat(self.parts.slot) };
        for peer in peers.iter() {
            let open = self.outboxes.get(usize::from(peer)).is_some_and(|o| o.way == Way::Open);
            if open {
                let verb = Verb::WriteWord { at, word: number };
                self.parts.network.post(peer, Token(Token::SHELL | number), &[verb]);
            }
        }
        if self.lease.end() > before {
            self.renewed(self.lease.end());
        }
    }

    pub(super) fn renewed(&mut self, until: u64) {
        self.parts.arena.set_control(control::LEASE, until);
        self.had_lease = true;
        self.step(Event::Lease { until });
    }

    /// Looks at the sockets and at the peers' heartbeats.
    fn look(&mut self, now: u64) {
        let due = self.look_at;
        let mut news = Vec::new();
        self.parts.network.look(now, &mut news);
        let mut opinions = Vec::new();
        for Broken { slot, incarnation, ended } in news {
            let way = self.outboxes.get(usize::from(slot)).map(|o| o.way);
            let next = matches!(way, Some(Way::Opening(i)) if i != incarnation);
            if !next {
                // Rule 34: what this node would still write there is not written, and counts for
                // no lease; only then is the death told.
                self.parts.network.dead(slot);
                self.close(slot);
            }
            if ended {
                self.step(Event::Ended { peer: slot, incarnation });
                self.ended_peers.insert(slot, incarnation);
                self.tell(MemberEvent::Ended { slot, incarnation });
            }
            opinions.extend(self.watch.broken(slot, incarnation));
        }
        for m in &self.view.members {
            let way = self.outboxes.get(usize::from(m.slot)).map(|o| o.way);
            if way == Some(Way::Opening(m.incarnation)) {
                self.parts.network.open(now, m.slot, m.incarnation, &m.path);
            }
        }
        for slot in self.watch.slots().iter() {
            let beat = self.parts.arena.control(control::heartbeat(slot));
            opinions.extend(self.watch.observe(now, slot, beat));
        }
        // A look that was asked for (due 0) is never late.
        let due = if due == 0 { now } else { due };
        let late = now.saturating_sub(due);
        // Whether it was this thread's own work, or it was not run.
        let ran = cpu_ns().saturating_sub(self.ran);
        self.parts.server.ran_late(late.saturating_sub(ran));
        tell_of(self.urgency.ran_late(late.saturating_sub(ran)));
        if late > self.parts.config.timing.late() {
            say(format_args!(
                "this node stood still: a timer was {} ms late; it ran for {} ms since the last one; at {} ms",
                late / MS,
                ran / MS,
                now / MS
            ));
            metrics::add("clustix_timer_late_total", 1);
        }
        opinions.extend(self.watch.tick(now, due));
        for o in opinions {
            match o {
                Opinion::Suspect(slot, incarnation) => {
                    let silent = self.watch.silence(now, slot);
                    say(format_args!(
                        "node {slot} (incarnation {incarnation}) is suspected to be dead, silent for {} ms; at {} ms",
                        silent / MS,
                        now / MS
                    ));
                    metrics::add("clustix_suspicions_total", 1);
                    self.suspected.insert(slot, incarnation);
                    self.noticed = (silent, now);
                    self.tell(MemberEvent::Suspect { slot, incarnation });
                }
                Opinion::Trust(slot, incarnation) => {
                    self.suspected.remove(&slot);
                    self.tell(MemberEvent::Trust { slot, incarnation });
                }
            }
        }
        self.ran = cpu_ns();
        let soon = self.parts.network.is_opening() || self.waiting_for_room();
        let usual = self.parts.config.timing.scaled(LOOK);
        self.look_at = now + if soon { LOOK_SOON } else { usual };
    }

    fn sweep(&mut self, now: u64) {
        self.parts.server.look_for_callers();
        self.urgency.look();
        let live = self.parts.server.channels();
        for channel in std::mem::replace(&mut self.channels, live.clone()) {
            if !live.contains(&channel) {
                self.pending.retain(|_, p| p.call.channel != channel);
                self.step(Event::ClientGone { client: ClientId(channel.0) });
            }
        }
        let old: Vec<u64> = self
            .waits
            .iter()
            .filter(|(_, w)| now.saturating_sub(w.since) > WAIT_AGE || !live.contains(&w.channel))
            .map(|(id, _)| *id)
            .collect();
        for id in old {
            self.forget_wait(id);
        }
        metrics::set("clustix_view_epoch", self.view.epoch);
        metrics::set("clustix_view_members", self.view.members.len() as u64);
        metrics::set("clustix_lease_valid", u64::from(self.lease.valid(now)));
        metrics::set("clustix_shards_rebuilding", u64::from(self.view.survival().rebuilding));
        metrics::set("clustix_requests_pending", self.pending.len() as u64);
        metrics::set("clustix_waiters", self.waits.len() as u64);
        let s = self.engine.stats();
        for (name, value) in [
            ("clustix_fabric_verbs_total", s.verbs_posted),
            ("clustix_engine_hits_total", s.hits),
            ("clustix_engine_misses_total", s.misses),
            ("clustix_engine_writes_total", s.writes),
            ("clustix_engine_kept_writes_total", s.kept_writes),
            ("clustix_engine_given_back_total", s.given_back),
            ("clustix_engine_messages_sent_total", s.messages_sent),
            ("clustix_engine_messages_handled_total", s.messages_handled),
        ] {
            metrics::set(name, value);
        }
    }
}

/// Says that this thread could not be made real-time.
pub(super) fn tell_of(made: std::io::Result<()>) {
    if let Err(e) = made {
        say(format_args!(
            "runs no sooner than others where this machine has more to run than processors: {e}"
        ));
    }
}
