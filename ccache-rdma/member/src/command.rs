//! What raft replicates: commands that make one view from another, as a pure state machine.

use clustix_ccache::name::Shard;
use clustix_ccache::request::shards;
use clustix_ccache::succession::{Incarnation, Succession};
use clustix_ccache::view::{MAX_NODES, Member, View};
use serde::{Deserialize, Serialize};

/// A change of the view. Those that do not fit the view in which they are applied change nothing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Command {
    /// The first view, of these members.
    First(Vec<Member>),
    /// This incarnation is no member any more.
    Evict {
        /// Its slot.
        slot: u8,
        /// Its incarnation.
        incarnation: u64,
        /// Who is known to have ended, of those that are or were members.
        ended: Vec<Incarnation>,
    },
    /// All members of the view with this epoch have revoked whom it leaves out, and a lease has passed since.
    Settled(u64),
    /// This incarnation of a witness votes where the members are even in number; or none is there.
    Witness(Option<u64>),
    /// A new incarnation, in a slot that has no member.
    Join(Member),
    /// Copies of shards on a member are complete.
    Rebuilt {
        /// The member's slot.
        slot: u8,
        /// Epoch of the view in which they were copied.
        epoch: u64,
        /// Shard numbers.
        shards: Vec<u16>,
    },
    /// A backup becomes the primary of shards.
    Rehome {
        /// Epoch of the view for which this was decided; it fits no other.
        epoch: u64,
        /// Whether somebody asked for it, and not the leader for an even load: what was asked for
        /// stands until a node joins or is lost.
        asked: bool,
        /// The backup's slot.
        to: u8,
        /// Shard numbers.
        shards: Vec<u16>,
    },
}

/// What applying a command gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Applied {
    /// Epoch of the view after it.
    pub epoch: u64,
    /// Whether it made a new one.
    pub changed: bool,
}

/// The replicated state.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// The latest view; epoch 0: none yet.
    pub view: View,
    /// Per shard, the epoch at which its primary changed or a copy began: what was copied in an
    /// earlier view does not count.
    since: Vec<u64>,
    /// Per slot, the highest incarnation that was ever a member: one that was evicted never comes
    /// back.
    highest: Vec<u64>,
    /// Primaries stand as somebody asked for.
    pub arranged: bool,
    /// Who was a member since a view was last settled.
    pub succession: Succession,
}

impl State {
    /// Whether this incarnation was never a member, nor a later one of its slot.
    pub fn is_new(&self, m: &Member) -> bool {
        usize::from(m.slot) < MAX_NODES
            && self.highest.get(usize::from(m.slot)).is_none_or(|h| m.incarnation > *h)
    }

    /// Whether it is news that `slot`'s copy of a shard was complete in view `epoch`: it is not
    /// recorded yet, and nothing since has made that copy worthless.
    pub fn counts(&self, slot: u8, epoch: u64, shard: u16) -> bool {
        let i = usize::from(shard);
        self.since.get(i).is_some_and(|since| epoch >= *since)
            && self.view.shards.get(i).is_some_and(|r| r.rebuilding.contains(slot))
    }

    /// Whether that member may be left out of the next view, where these are known to have ended.
    pub fn may_evict(&self, node: Incarnation, ended: &[Incarnation]) -> bool {
        let v = &self.view;
        v.members.len() > 1
            && v.member(node.0).is_some_and(|m| m.incarnation == node.1)
            && self.succession.may_evict(v, node, ended)
    }

    /// Applies a command.
    pub fn apply(&mut self, command: &Command) -> Applied {
        let v = &self.view;
        let next = match command {
            Command::First(members) if v.epoch == 0 && !members.is_empty() => {
                Some(View::first(members))
            }
            Command::Evict { slot, incarnation, ended } => {
                self.may_evict((*slot, *incarnation), ended).then(|| v.without(*slot))
            }
            Command::Join(m)
                if v.epoch > 0
                    && self.is_new(m)
                    && v.member(m.slot).is_none()
                    && self.succession.may_join() =>
            {
                Some(v.with(m))
            }
            Command::Witness(witness) if v.epoch > 0 => v.witnessed(*witness),
            Command::Rebuilt { slot, epoch, shards: numbers } => {
                let mut valid = shards(numbers);
                valid.retain(|s| self.counts(*slot, *epoch, s.0));
                v.rebuilt(*slot, &valid)
            }
            Command::Rehome { epoch, to, shards: numbers, .. } if *epoch == v.epoch => {
                v.rehome(*to, &shards(numbers))
            }
            _ => None,
        };
        let next = next.filter(|n| n.well_formed() && n.epoch == v.epoch + 1);
        let changed = next.is_some();
        if let Command::Settled(epoch) = command {
            self.succession.settled(*epoch);
        }
        if let Some(next) = next {
            match command {
                Command::Rehome { asked, .. } => self.arranged |= asked,
                Command::Evict { ended, .. } => {
                    self.arranged = false;
                    self.succession.ended(ended);
                }
                Command::First(_) | Command::Join(_) => self.arranged = false,
                Command::Rebuilt { .. } | Command::Witness(_) | Command::Settled(_) => {}
            }
            self.succession.decided(&next);
            self.since.resize(next.shards.len(), 0);
            for (i, since) in self.since.iter_mut().enumerate() {
                if next.copies_anew(&self.view, Shard(i as u16)) {
                    *since = next.epoch;
                }
            }
            self.highest.resize(MAX_NODES, 0);
            for m in &next.members {
                if let Some(h) = self.highest.get_mut(usize::from(m.slot)) {
                    *h = (*h).max(m.incarnation);
                }
            }
            self.view = next;
        }
        Applied { epoch: self.view.epoch, changed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(slot: u8, incarnation: u64) -> Member {
        Member { slot, incarnation, path: String::new() }
    }

    fn evict(slot: u8, incarnation: u64) -> Command {
        Command::Evict { slot, incarnation, ended: Vec::new() }
    }

    fn three() -> State {
        let mut s = State::default();
        assert!(s.apply(&Command::First((0..3).map(|i| member(i, 1)).collect())).changed);
        s
    }

    #[test]
    fn a_command_from_another_time_changes_nothing() {
        let mut s = three();
        assert!(!s.apply(&Command::First(vec![member(0, 1)])).changed);
        assert!(!s.apply(&evict(1, 2)).changed);
        assert!(!s.apply(&Command::Join(member(1, 2))).changed, "slot taken");
        assert!(!s.apply(&Command::Join(member(99, 2))).changed, "no such slot");
        assert!(s.apply(&evict(1, 1)).changed);
        assert!(!s.apply(&evict(1, 1)).changed);
        assert!(!s.apply(&Command::Join(member(1, 1))).changed, "it was evicted");
        assert!(s.apply(&Command::Join(member(1, 2))).changed);
    }

    #[test]
    fn a_rehome_fits_the_view_it_was_decided_for_and_what_was_asked_for_stands() {
        let mut s = three();
        let rehome = |epoch, asked| Command::Rehome { epoch, asked, to: 2, shards: vec![0, 1, 2] };
        assert!(!s.apply(&rehome(2, true)).changed && !s.arranged);
        assert!(s.apply(&rehome(1, true)).changed && s.arranged);
        assert!(!s.apply(&rehome(2, true)).changed, "it is there already");
        assert_eq!(s.view.primary(Shard(1)), Some(2));
        assert!(s.apply(&evict(0, 1)).changed && !s.arranged);
        assert!(
            !s.apply(&Command::Rehome { epoch: 3, asked: true, to: 0, shards: vec![0] }).changed
        );
    }

    #[test]
    fn a_copy_made_for_an_earlier_incarnation_does_not_count() {
        let mut s = three();
        s.apply(&evict(1, 1));
        s.apply(&Command::Join(member(1, 2)));
        let copied_in = s.view.epoch;
        let all: Vec<u16> = (0..1024).collect();
        s.apply(&evict(1, 2));
        s.apply(&Command::Join(member(1, 3)));
        let late = Command::Rebuilt { slot: 1, epoch: copied_in, shards: all.clone() };
        assert!(!s.apply(&late).changed);
        // One primary's report does not make the other's stale.
        let epoch = s.view.epoch;
        let (a, b) = all.split_at(500);
        assert!(s.apply(&Command::Rebuilt { slot: 1, epoch, shards: a.to_vec() }).changed);
        assert!(s.apply(&Command::Rebuilt { slot: 1, epoch, shards: b.to_vec() }).changed);
        assert!(s.view.survival().can_lose_a_node());
    }
}
