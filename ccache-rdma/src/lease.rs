//! Leases and suspicion, as arithmetic on times handed in.
//!
//! A node serves anything only under an unexpired lease. It renews by writing a growing number
//! into each peer's memory; a renewal counts when a majority of the view's members (itself
//! included) has completed, and the lease then runs from the time at which that renewal was
//! *sent*. A survivor may take over from an evicted node once [`Lease::over_by`] has passed on its
//! own clock since it last let that node renew.

use crate::view::{MAX_NODES, Slots};
use serde::{Deserialize, Serialize};

/// The times, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Timing {
    /// How long a renewal lasts.
    pub lease_ns: u64,
    /// How often one is sent.
    pub renewal_ns: u64,
    /// Bound on how far two nodes' clocks drift apart within a lease.
    pub drift_ns: u64,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing { lease_ns: 250_000_000, renewal_ns: 50_000_000, drift_ns: 5_000_000 }
    }
}

impl Timing {
    /// A time that is right with a lease of 250 ms, as it is with this one; never shorter, since
    /// shorter leases do not make elections quicker. ns.
    pub const fn scaled(&self, at_default: u64) -> u64 {
        let unit = 250_000;
        let lease = self.lease_ns / 1_000;
        at_default / unit * if lease > unit { lease } else { unit }
    }
    /// How long a survivor must wait, from the moment at which the evicted node can no longer
    /// complete a renewal, until that node's lease is surely over.
    pub const fn over_by(&self) -> u64 {
        self.lease_ns + self.drift_ns
    }
    /// A timer that fires later than this after its time says that this node was stopped or
    /// starved itself.
    pub const fn late(&self) -> u64 {
        self.lease_ns / 4
    }
}

/// Renewals on their way at most; an older one is forgotten (it could only give an older lease).
const UNDER_WAY: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Renewal {
    number: u64,
    sent: u64,
    done: Slots,
}

/// Leases that a new member has, beyond the usual one, to send its first renewal.
const FIRST_BEAT: u64 = 3;

/// Leases that a member is silent before it is suspected. A ccache that dies is noticed by the end
/// of its connection, at once; silence means that it stands still, which a loaded machine makes a
/// live one do for a lease or two, and to evict a live node costs more than to wait.
const SILENCE: u64 = 3;

/// This node's lease. Times are `CLOCK_MONOTONIC`, ns.
#[derive(Debug)]
pub struct Lease {
    timing: Timing,
    me: u8,
    members: Slots,
    number: u64,
    under_way: Vec<Renewal>,
    end: u64,
    next: u64,
}

impl Lease {
    /// No lease yet, no view yet.
    pub fn new(timing: Timing, me: u8) -> Lease {
        Lease {
            timing,
            me,
            members: Slots::NONE,
            number: 0,
            under_way: Vec::new(),
            end: 0,
            next: 0,
        }
    }

    /// A view with these members is in force. A lease already held runs on; renewals under way
    /// count against the new members. Without this node in it, nothing is renewed any more.
    pub fn install(&mut self, members: Slots) {
        self.members = if members.contains(self.me) { members } else { Slots::NONE };
        if self.members.is_empty() {
            self.under_way.clear();
        }
    }

    /// When the next renewal should be sent.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Starts a renewal that is being sent now: the number to write into every peer's memory.
    /// `None` when this node is in no view.
    pub fn send(&mut self, now: u64) -> Option<(u64, Slots)> {
        self.next = now + self.timing.renewal_ns;
        if self.members.is_empty() {
            return None;
        }
        self.number += 1;
        if self.under_way.len() >= UNDER_WAY {
            self.under_way.remove(0);
        }
        self.under_way.push(Renewal { number: self.number, sent: now, done: Slots::one(self.me) });
        self.settle();
        Some((self.number, self.members.without(self.me)))
    }

    /// Renewal `number` has completed in `peer`'s memory. Returns the new end of the lease, if it
    /// moved.
    pub fn completed(&mut self, peer: u8, number: u64) -> Option<u64> {
        let before = self.end;
        if let Some(r) = self.under_way.iter_mut().find(|r| r.number == number) {
            r.done = r.done.with(peer);
        }
        self.settle();
        (self.end > before).then_some(self.end)
    }

    fn settle(&mut self) {
        let majority = self.members.len() / 2 + 1;
        let members = self.members;
        let best = self
            .under_way
            .iter()
            .filter(|r| r.done.intersection(members).len() >= majority)
            .map(|r| r.sent)
            .max();
        if let Some(sent) = best {
            self.end = self.end.max(sent + self.timing.lease_ns);
            self.under_way.retain(|r| r.sent > sent);
        }
    }

    /// When the lease runs out; 0: never held.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Whether the lease is valid.
    pub fn valid(&self, now: u64) -> bool {
        now < self.end
    }
}

/// What changed in this node's opinion of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opinion {
    /// Silent for some leases, or its connection broke.
    Suspect(u8, u64),
    /// It beats again.
    Trust(u8, u64),
}

#[derive(Clone, Copy, Debug)]
struct Peer {
    incarnation: u64,
    beat: u64,
    since: u64,
    suspected: bool,
    /// It can be reached no more: no beat makes up for that.
    broken: bool,
}

/// Watches the other members' renewals arrive.
#[derive(Debug)]
pub struct Watch {
    timing: Timing,
    peers: [Option<Peer>; MAX_NODES],
}

impl Watch {
    /// Watches nobody yet.
    pub fn new(timing: Timing) -> Watch {
        Watch { timing, peers: [None; MAX_NODES] }
    }

    /// From `now` on, watches the members of the view other than `me`. A member that was watched
    /// already keeps its record.
    pub fn install(&mut self, now: u64, me: u8, members: impl IntoIterator<Item = (u8, u64)>) {
        let before = std::mem::take(&mut self.peers);
        for (slot, incarnation) in members {
            let at = usize::from(slot);
            if slot == me || at >= MAX_NODES {
                continue;
            }
            self.peers[at] = match before[at] {
                Some(p) if p.incarnation == incarnation => Some(p),
                _ => {
                    // It may hear of the view a little later, and is not linked yet.
                    let since = now + FIRST_BEAT * self.timing.lease_ns;
                    Some(Peer { incarnation, beat: 0, since, suspected: false, broken: false })
                }
            };
        }
    }

    /// The slots watched.
    pub fn slots(&self) -> Slots {
        (0..MAX_NODES as u8).filter(|s| self.peers[usize::from(*s)].is_some()).collect()
    }

    /// How long `slot` has not beaten, ns.
    pub fn silence(&self, now: u64, slot: u8) -> u64 {
        let peer = self.peers.get(usize::from(slot)).and_then(Option::as_ref);
        peer.map_or(0, |p| now.saturating_sub(p.since))
    }

    /// The renewal number of `slot` that stands in this node's memory now.
    pub fn observe(&mut self, now: u64, slot: u8, beat: u64) -> Option<Opinion> {
        let p = self.peers.get_mut(usize::from(slot))?.as_mut()?;
        if beat == p.beat {
            return None;
        }
        p.beat = beat;
        p.since = now;
        // The last beat of the dead may be seen after their end.
        let trusted = !p.broken && std::mem::take(&mut p.suspected);
        trusted.then_some(Opinion::Trust(slot, p.incarnation))
    }

    /// The connection to that incarnation broke: suspected without waiting, and for good.
    pub fn broken(&mut self, slot: u8, incarnation: u64) -> Option<Opinion> {
        let p = self.peers.get_mut(usize::from(slot))?.as_mut()?;
        if p.incarnation != incarnation {
            return None;
        }
        p.broken = true;
        (!std::mem::replace(&mut p.suspected, true)).then_some(Opinion::Suspect(slot, incarnation))
    }

    /// The timer that was to fire at `due` fired at `now`. One that is late by more than a quarter
    /// of the lease says that this node itself stood still: it then suspects nobody, and starts to
    /// count anew.
    pub fn tick(&mut self, now: u64, due: u64) -> Vec<Opinion> {
        let late = now.saturating_sub(due) > self.timing.late();
        let mut news = Vec::new();
        for (slot, p) in self.peers.iter_mut().enumerate() {
            let Some(p) = p else { continue };
            if p.suspected {
                continue;
            }
            if late {
                p.since = p.since.max(now);
            } else if now.saturating_sub(p.since) > SILENCE * self.timing.lease_ns {
                p.suspected = true;
                news.push(Opinion::Suspect(slot as u8, p.incarnation));
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn lease(me: u8, members: &[u8]) -> Lease {
        let mut l = Lease::new(Timing::default(), me);
        l.install(members.iter().copied().collect());
        l
    }

    #[test]
    fn runs_from_the_sending_of_a_renewal_that_a_majority_completed() {
        let mut l = lease(0, &[0, 1, 2]);
        let (a, to) = l.send(1_000 * MS).unwrap();
        assert_eq!(to, [1, 2].into_iter().collect());
        assert!(!l.valid(1_000 * MS));
        let (b, _) = l.send(1_050 * MS).unwrap();
        // The second completes late: its sending counts, not its completion.
        assert_eq!(l.completed(1, b), Some(1_300 * MS));
        assert_eq!(l.completed(1, a), None);
        assert!(l.valid(1_300 * MS - 1) && !l.valid(1_300 * MS));
    }

    #[test]
    fn two_members_need_both_and_one_needs_itself() {
        let mut l = lease(1, &[0, 1]);
        let (n, _) = l.send(0).unwrap();
        assert!(!l.valid(1));
        assert!(l.completed(5, n).is_none(), "a stranger does not count");
        assert!(l.completed(0, n).is_some());
        let mut alone = lease(3, &[3]);
        alone.send(7 * MS).unwrap();
        assert_eq!(alone.end(), 257 * MS);
    }

    #[test]
    fn an_evicted_node_renews_nothing() {
        let mut l = lease(2, &[0, 1, 2]);
        let (n, _) = l.send(0).unwrap();
        l.install([0, 1].into_iter().collect());
        assert!(l.completed(0, n).is_none() && l.completed(1, n).is_none());
        assert!(l.send(MS).is_none());
    }

    #[test]
    fn many_unanswered_renewals_stay_bounded() {
        let mut l = lease(0, &[0, 1, 2]);
        for i in 0..1_000 {
            l.send(i);
        }
        assert!(l.under_way.len() <= UNDER_WAY);
    }

    #[test]
    fn silence_is_suspected_once_and_withdrawn_on_a_beat() {
        let mut w = Watch::new(Timing::default());
        w.install(0, 0, [(0, 1), (1, 7), (2, 1)]);
        assert_eq!(w.tick(751 * MS, 751 * MS), [], "they have time for their first");
        assert_eq!(w.observe(760 * MS, 1, 5), None);
        assert_eq!(w.tick(1_500 * MS, 1_500 * MS), []);
        assert_eq!(w.tick(1_501 * MS, 1_501 * MS), [Opinion::Suspect(2, 1)]);
        assert_eq!(w.tick(1_511 * MS, 1_511 * MS), [Opinion::Suspect(1, 7)]);
        assert_eq!(w.tick(1_900 * MS, 1_900 * MS), []);
        assert_eq!(w.observe(1_901 * MS, 1, 6), Some(Opinion::Trust(1, 7)));
        assert_eq!(w.broken(1, 6), None, "another incarnation's connection");
        assert_eq!(w.broken(1, 7), Some(Opinion::Suspect(1, 7)));
        assert_eq!(w.observe(1_902 * MS, 1, 7), None, "its last beat, seen late");
        assert_eq!(w.broken(1, 7), None, "it is suspected already");
    }

    #[test]
    fn whoever_was_late_itself_suspects_nobody() {
        let mut w = Watch::new(Timing::default());
        w.install(0, 0, [(1, 1)]);
        assert_eq!(w.tick(5_000 * MS, 50 * MS), []);
        assert_eq!(w.tick(5_750 * MS, 5_750 * MS), [], "counting began anew");
        assert_eq!(w.tick(5_751 * MS, 5_751 * MS), [Opinion::Suspect(1, 1)]);
    }
}
