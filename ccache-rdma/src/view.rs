//! Views: who is in the cluster and which nodes hold each shard.
//!
//! A view is decided by a majority of the members of the view before it (the `member` protection
//! domain) and then obeyed by every ccache. Everything here is a pure, deterministic function of
//! the view before: two members that apply the same commands in the same order have equal views.

use crate::name::{SHARDS, Shard};
use serde::{Deserialize, Serialize};

/// Most data nodes of a cluster; slots are `0..MAX_NODES`.
pub const MAX_NODES: usize = 16;
/// Copies of each shard when there are at least as many members.
pub const COPIES: usize = 3;

/// A set of node slots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Slots(pub u16);

impl Slots {
    /// No slot.
    pub const NONE: Slots = Slots(0);
    /// Only `slot` (empty for a slot out of range).
    pub const fn one(slot: u8) -> Slots {
        if (slot as usize) < MAX_NODES { Slots(1 << slot) } else { Slots(0) }
    }
    /// Whether `slot` is in it.
    pub const fn contains(self, slot: u8) -> bool {
        self.0 & Slots::one(slot).0 != 0
    }
    /// With `slot`.
    #[must_use]
    pub const fn with(self, slot: u8) -> Slots {
        Slots(self.0 | Slots::one(slot).0)
    }
    /// Without `slot`.
    #[must_use]
    pub const fn without(self, slot: u8) -> Slots {
        Slots(self.0 & !Slots::one(slot).0)
    }
    /// In either.
    #[must_use]
    pub const fn union(self, other: Slots) -> Slots {
        Slots(self.0 | other.0)
    }
    /// In both.
    #[must_use]
    pub const fn intersection(self, other: Slots) -> Slots {
        Slots(self.0 & other.0)
    }
    /// In this and not in `other`.
    #[must_use]
    pub const fn minus(self, other: Slots) -> Slots {
        Slots(self.0 & !other.0)
    }
    /// How many.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }
    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// The slots, ascending.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..MAX_NODES as u8).filter(move |s| self.contains(*s))
    }
}

impl FromIterator<u8> for Slots {
    fn from_iter<I: IntoIterator<Item = u8>>(slots: I) -> Slots {
        slots.into_iter().fold(Slots::NONE, Slots::with)
    }
}

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// A node of the view.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Member {
    /// Slot, 0 to 15.
    pub slot: u8,
    /// Start of its kernel process: a node that comes back has a higher one.
    pub incarnation: u64,
    /// Where its ccache listens, in the terms of the fabric: a Unix socket's path, or address and
    /// port.
    pub path: String,
}

/// The nodes that hold one shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Replicas {
    /// Its primary; `None` once every complete copy is lost (the shard is then refused).
    pub primary: Option<u8>,
    /// Complete copies besides the primary's.
    pub backups: Slots,
    /// Nodes that receive every write already, and count once the copier has passed (rule 32).
    pub rebuilding: Slots,
}

impl Replicas {
    /// Nodes with a complete copy, the primary included.
    pub fn complete(&self) -> Slots {
        self.primary.map_or(self.backups, |p| self.backups.with(p))
    }
    /// Every node that a write goes to.
    pub fn all(&self) -> Slots {
        self.complete().union(self.rebuilding)
    }
}

/// A view. `epoch` counts them, from 1; 0 is "none yet".
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct View {
    /// Number of this view.
    pub epoch: u64,
    /// The nodes, ascending by slot.
    pub members: Vec<Member>,
    /// [`SHARDS`] entries, by shard number (none in the view with epoch 0).
    pub shards: Vec<Replicas>,
    /// The witness's incarnation, while one is there: a voter that holds nothing. It has a vote where
    /// the members are even in number.
    pub witness: Option<u64>,
}

/// Whether a node can be lost now, and why not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Survival {
    /// Every shard has at least two complete copies.
    pub copies: bool,
    /// The members left, and the witness, would be a majority.
    pub votes: bool,
    /// Shards with a copy still being rebuilt.
    pub rebuilding: u32,
    /// Shards that have lost every complete copy.
    pub lost: u32,
}

impl Survival {
    /// Whether any one node may die now with nothing lost and the rest going on.
    pub const fn can_lose_a_node(&self) -> bool {
        self.copies && self.votes
    }
}

impl View {
    /// The first view: shards dealt round-robin, every copy complete (all are empty).
    ///
    /// Members of slots out of range, or given twice, are left out.
    pub fn first(members: &[Member]) -> View {
        let mut view = View { epoch: 1, ..View::default() };
        for m in members {
            view.insert(m);
        }
        let slots: Vec<u8> = view.members.iter().map(|m| m.slot).collect();
        let copies = COPIES.min(slots.len());
        view.shards = (0..SHARDS as usize)
            .map(|s| Replicas {
                primary: (!slots.is_empty()).then(|| slots[s % slots.len()]),
                // The backups' order turns once per round, so that a dead primary's shards
                // spread over all others.
                backups: (1..copies)
                    .map(|k| {
                        let step = if slots.len() > COPIES {
                            1 + (s / slots.len() + (k - 1)) % (slots.len() - 1)
                        } else {
                            k
                        };
                        slots[(s + step) % slots.len()]
                    })
                    .collect(),
                rebuilding: Slots::NONE,
            })
            .collect();
        view
    }

    fn insert(&mut self, m: &Member) {
        if usize::from(m.slot) < MAX_NODES && self.member(m.slot).is_none() {
            let at = self.members.partition_point(|x| x.slot < m.slot);
            self.members.insert(at, m.clone());
        }
    }

    /// The member in `slot`.
    pub fn member(&self, slot: u8) -> Option<&Member> {
        self.members.iter().find(|m| m.slot == slot)
    }

    /// All members' slots.
    pub fn slots(&self) -> Slots {
        self.members.iter().map(|m| m.slot).collect()
    }

    /// Who holds `shard` (nobody, when out of range).
    pub fn replicas(&self, shard: Shard) -> Replicas {
        self.shards.get(usize::from(shard.0)).copied().unwrap_or_default()
    }

    /// The primary of `shard`.
    pub fn primary(&self, shard: Shard) -> Option<u8> {
        self.replicas(shard).primary
    }

    /// Copies that each shard should have with this many members.
    pub fn wanted(&self) -> usize {
        COPIES.min(self.members.len())
    }

    /// The next view, with that witness, or none. `None` if nothing changes.
    pub fn witnessed(&self, witness: Option<u64>) -> Option<View> {
        let next = View { epoch: self.epoch + 1, witness, ..self.clone() };
        (self.witness != witness).then_some(next)
    }

    /// How many members are more than half.
    pub fn majority(&self) -> usize {
        self.members.len() / 2 + 1
    }

    /// Shape check of a view that came from outside: slots in range, ascending, [`SHARDS`] shards,
    /// replicas members, no node twice in a shard.
    pub fn well_formed(&self) -> bool {
        let slots = self.slots();
        self.members.iter().all(|m| usize::from(m.slot) < MAX_NODES)
            && self.members.windows(2).all(|w| w[0].slot < w[1].slot)
            && self.shards.len() == usize::from(SHARDS)
            && self.shards.iter().all(|r| {
                r.all().minus(slots).is_empty()
                    && r.primary.is_none_or(|p| {
                        usize::from(p) < MAX_NODES && !r.backups.union(r.rebuilding).contains(p)
                    })
                    && r.backups.intersection(r.rebuilding).is_empty()
            })
    }

    /// The next view, in which `slot` is gone: a backup of each of its shards is promoted, and
    /// members that are to hold a new copy are listed as rebuilding.
    #[must_use]
    pub fn without(&self, slot: u8) -> View {
        let mut next = self.clone();
        next.epoch += 1;
        next.members.retain(|m| m.slot != slot);
        for r in &mut next.shards {
            r.backups = r.backups.without(slot);
            r.rebuilding = r.rebuilding.without(slot);
        }
        let mut primaries = next.count(|r, s| r.primary == Some(s));
        for r in &mut next.shards {
            if r.primary == Some(slot) {
                r.primary = r.backups.iter().min_by_key(|s| (primaries[usize::from(*s)], *s));
                match r.primary {
                    Some(p) => {
                        primaries[usize::from(p)] += 1;
                        r.backups = r.backups.without(p);
                    }
                    // Half a copy is none, with nobody left to fill it.
                    None => r.rebuilding = Slots::NONE,
                }
            }
        }
        next.top_up();
        next
    }

    /// The next view, with `member` in it (in place of an earlier incarnation of its slot). It
    /// holds nothing yet: its share of copies is listed as rebuilding. A member of a slot out of
    /// range is left out.
    #[must_use]
    pub fn with(&self, member: &Member) -> View {
        let mut next = if self.member(member.slot).is_some() {
            self.without(member.slot)
        } else {
            self.clone()
        };
        next.epoch = self.epoch + 1;
        next.insert(member);
        next.top_up();
        if next.member(member.slot).is_none() {
            return next;
        }
        // With more members than copies, the newcomer takes its share of the others' copies: it
        // becomes one replica more, and `rebuilt` then drops the most loaded one.
        let share = usize::from(SHARDS) * next.wanted() / next.members.len().max(1);
        let wanted = next.wanted();
        let mut held = next.count(|r, s| r.all().contains(s));
        for r in &mut next.shards {
            if held[usize::from(member.slot)] >= share {
                break;
            }
            if r.all().contains(member.slot) || r.all().len() > wanted {
                continue;
            }
            if r.all().iter().any(|s| held[usize::from(s)] > share) {
                if let Some(s) = r.all().iter().max_by_key(|s| held[usize::from(*s)]) {
                    held[usize::from(s)] -= 1;
                }
                held[usize::from(member.slot)] += 1;
                r.rebuilding = r.rebuilding.with(member.slot);
            }
        }
        next
    }

    /// Whether copies of `shard` that were filled in `before` no longer count in this view, the next
    /// one: its primary changed, or another copy began.
    pub fn copies_anew(&self, before: &View, shard: Shard) -> bool {
        let (now, before) = (self.replicas(shard), before.replicas(shard));
        now.primary != before.primary || !now.rebuilding.minus(before.rebuilding).is_empty()
    }

    /// The next view, in which `slot`'s copies of `shards` count. Shards that `slot` is not
    /// rebuilding are left as they are. `None` if nothing changes.
    pub fn rebuilt(&self, slot: u8, shards: &[Shard]) -> Option<View> {
        let mut next = self.clone();
        let wanted = next.wanted();
        let mut held = next.count(|r, s| r.all().contains(s));
        let mut changed = false;
        for shard in shards {
            let Some(r) = next.shards.get_mut(usize::from(shard.0)) else { continue };
            if !r.rebuilding.contains(slot) || r.primary.is_none() {
                continue;
            }
            changed = true;
            r.rebuilding = r.rebuilding.without(slot);
            r.backups = r.backups.with(slot);
            if r.complete().len() > wanted {
                let surplus =
                    r.backups.without(slot).iter().max_by_key(|s| (held[usize::from(*s)], *s));
                if let Some(s) = surplus {
                    held[usize::from(s)] -= 1;
                    r.backups = r.backups.without(s);
                }
            }
        }
        next.epoch += 1;
        changed.then_some(next)
    }

    /// The next view, in which `to` (a complete copy already) is the primary of those `shards`
    /// that it backs. `None` if nothing changes.
    pub fn rehome(&self, to: u8, shards: &[Shard]) -> Option<View> {
        let mut next = self.clone();
        let mut changed = false;
        for shard in shards {
            let Some(r) = next.shards.get_mut(usize::from(shard.0)) else { continue };
            let (true, Some(old)) = (r.backups.contains(to), r.primary) else { continue };
            changed = true;
            r.primary = Some(to);
            r.backups = r.backups.without(to).with(old);
        }
        next.epoch += 1;
        changed.then_some(next)
    }

    /// By how many primaries a shard's primary may surpass one of its backups in an even view: a
    /// quarter of a node's share.
    pub fn slack(&self) -> usize {
        (usize::from(SHARDS) / (4 * self.members.len().max(1))).max(1)
    }

    /// What to [`rehome`](View::rehome) next so that primaries are even: at most `batch` shards, and
    /// the node that is to be their primary. Nothing while a copy is missing or being filled, or while
    /// no shard's primary surpasses a backup of it by more than [`slack`](View::slack).
    ///
    /// A shard moves only to a node with fewer primaries, after the move too, than it leaves; so
    /// repeating this ends, and none goes back.
    pub fn evened(&self, batch: usize) -> Option<(u8, Vec<Shard>)> {
        let wanted = self.wanted();
        let whole = |r: &Replicas| {
            r.primary.is_some() && r.rebuilding.is_empty() && r.complete().len() >= wanted
        };
        if self.shards.len() != usize::from(SHARDS) || !self.shards.iter().all(whole) {
            return None;
        }
        let mut primaries = self.count(|r, s| r.primary == Some(s));
        let surplus = |r: &Replicas, to: u8, primaries: &[usize; MAX_NODES]| {
            let from = r.primary.filter(|_| r.backups.contains(to))?;
            primaries[usize::from(from)].checked_sub(primaries[usize::from(to)])
        };
        let poor =
            |s: &u8| self.shards.iter().any(|r| surplus(r, *s, &primaries) > Some(self.slack()));
        let to = self.slots().iter().filter(poor).min_by_key(|s| primaries[usize::from(*s)])?;
        // Up to an even share; beyond it only where what is too much can't go to the poorest at once.
        let share = usize::from(SHARDS) / self.members.len().max(1);
        let most = if primaries[usize::from(to)] < share { share } else { usize::MAX };
        let mut moved = Vec::new();
        let mut left: Vec<u16> = (0..SHARDS).collect();
        while moved.len() < batch && primaries[usize::from(to)] < most {
            // From the richest; of its shards the first.
            let Some((at, _)) = left
                .iter()
                .enumerate()
                .filter_map(|(at, s)| {
                    let by = surplus(&self.shards[usize::from(*s)], to, &primaries)?;
                    (by >= 2).then_some((at, by))
                })
                .max_by_key(|(at, by)| (*by, usize::MAX - *at))
            else {
                break;
            };
            let shard = Shard(left.remove(at));
            if let Some(from) = self.primary(shard) {
                primaries[usize::from(from)] -= 1;
                primaries[usize::from(to)] += 1;
            }
            moved.push(shard);
        }
        Some((to, moved))
    }

    /// How many shards each member is primary of, ascending by slot.
    pub fn primaries(&self) -> Vec<u32> {
        let count = self.count(|r, s| r.primary == Some(s));
        self.members.iter().map(|m| count[usize::from(m.slot)] as u32).collect()
    }

    /// Whether a node can be lost now.
    pub fn survival(&self) -> Survival {
        Survival {
            copies: self.shards.len() == usize::from(SHARDS)
                && self.shards.iter().all(|r| r.complete().len() >= 2),
            votes: self.members.len() > 2 || self.members.len() == 2 && self.witness.is_some(),
            rebuilding: self.shards.iter().filter(|r| !r.rebuilding.is_empty()).count() as u32,
            lost: self.shards.iter().filter(|r| r.primary.is_none()).count() as u32,
        }
    }

    /// Per slot, the number of shards for which `f` holds.
    fn count(&self, f: impl Fn(&Replicas, u8) -> bool) -> [usize; MAX_NODES] {
        let mut n = [0; MAX_NODES];
        for r in &self.shards {
            for m in &self.members {
                n[usize::from(m.slot)] += usize::from(f(r, m.slot));
            }
        }
        n
    }

    /// Lists members as rebuilding where a shard has fewer copies than wanted; the least loaded
    /// first.
    fn top_up(&mut self) {
        let wanted = self.wanted();
        let slots = self.slots();
        let mut held = self.count(|r, s| r.all().contains(s));
        for r in &mut self.shards {
            // A shard with no complete copy has nothing to copy from.
            while r.primary.is_some() && r.all().len() < wanted {
                let Some(s) =
                    slots.minus(r.all()).iter().min_by_key(|s| (held[usize::from(*s)], *s))
                else {
                    break;
                };
                held[usize::from(s)] += 1;
                r.rebuilding = r.rebuilding.with(s);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(slot: u8, incarnation: u64) -> Member {
        Member { slot, incarnation, path: format!("/n{slot}/fabric.sock") }
    }

    fn first(n: u8) -> View {
        View::first(&(0..n).map(|s| member(s, 1)).collect::<Vec<_>>())
    }

    fn loads(v: &View, f: impl Fn(&Replicas, u8) -> bool) -> Vec<usize> {
        v.slots().iter().map(|s| v.shards.iter().filter(|r| f(r, s)).count()).collect()
    }

    fn everything(v: &View, slot: u8) -> Vec<Shard> {
        (0..SHARDS).map(Shard).filter(|s| v.replicas(*s).rebuilding.contains(slot)).collect()
    }

    fn rebuild_all(mut v: View) -> View {
        for slot in v.slots().iter() {
            v = v.rebuilt(slot, &everything(&v, slot)).unwrap_or(v);
        }
        v
    }

    #[test]
    fn three_nodes_lose_one_and_get_it_back() {
        let v = first(3);
        assert!(v.well_formed() && v.survival().can_lose_a_node());
        assert!(v.shards.iter().all(|r| r.complete().len() == 3));
        let two = v.without(0);
        assert!(two.well_formed());
        assert_eq!(two.epoch, 2);
        assert!(two.shards.iter().all(|r| r.complete().len() == 2 && r.rebuilding.is_empty()));
        assert!(two.survival().copies && !two.survival().votes);
        let seen = two.witnessed(Some(9)).unwrap();
        assert!(seen.survival().can_lose_a_node() && seen.witnessed(Some(9)).is_none());
        assert_eq!((seen.epoch, seen.without(1).witness), (3, Some(9)));
        assert!(!seen.without(1).survival().votes);
        let primaries = loads(&two, |r, s| r.primary == Some(s));
        assert!(primaries.iter().all(|p| p.abs_diff(512) <= 1), "{primaries:?}");
        let three = two.with(&member(0, 2));
        assert_eq!(three.survival().rebuilding, 1024);
        assert!(three.shards.iter().all(|r| r.rebuilding == Slots::one(0)));
        let whole = rebuild_all(three);
        assert!(whole.survival().can_lose_a_node());
        assert_eq!(whole.survival().rebuilding, 0);
        assert_eq!(whole.rebuilt(0, &[Shard(3)]), None);
    }

    #[test]
    fn a_node_alone_and_a_node_too_many() {
        let one = first(1);
        assert!(one.well_formed() && !one.survival().copies);
        let none = first(2).without(0).without(1);
        assert_eq!(none.survival().lost, 1024);
        let mut many: Vec<Member> = (0..20).map(|s| member(s, 1)).collect();
        many.push(member(3, 2));
        let v = View::first(&many);
        assert!(v.well_formed());
        assert_eq!((v.members.len(), v.member(3).unwrap().incarnation), (16, 1));
    }

    #[test]
    fn what_is_not_a_view_is_seen() {
        let v = first(3);
        let mut w = v.clone();
        w.shards[7].backups = w.shards[7].complete();
        assert!(!w.well_formed(), "primary twice");
        let mut w = v.clone();
        w.shards.pop();
        assert!(!w.well_formed());
        let mut w = v.clone();
        w.shards[0].primary = Some(9);
        assert!(!w.well_formed(), "stranger");
        let mut w = v;
        w.members.swap(0, 1);
        assert!(!w.well_formed());
    }

    #[test]
    fn a_node_that_came_back_gets_its_share_and_no_shard_moves_that_need_not() {
        let mut v = rebuild_all(first(3).without(0).with(&member(0, 2)));
        assert_eq!(v.primaries(), [0, 512, 512]);
        let mut moves = 0;
        while let Some((to, shards)) = v.evened(128) {
            assert!(to == 0 && shards.len() <= 128);
            moves += shards.len();
            v = v.rehome(to, &shards).unwrap();
        }
        assert_eq!((v.epoch, v.primaries(), moves), (4 + 3, vec![341, 341, 342], 341));
        // Uneven, but within the bound: left alone.
        let few: Vec<Shard> = (0..SHARDS).map(Shard).filter(|s| v.primary(*s) == Some(1)).collect();
        let asked = v.rehome(2, &few[..42]).unwrap();
        assert_eq!(asked.primaries(), [341, 299, 384]);
        assert_eq!(asked.evened(128), None);
        let more = v.rehome(2, &few[..43]).unwrap();
        assert_eq!(more.evened(128).map(|(to, s)| (to, s.len())), Some((1, 43)));
        // A view that is not whole is left alone.
        assert_eq!(first(3).without(0).with(&member(0, 2)).evened(128), None);
        assert_eq!(View::default().evened(128), None);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Die(u8),
        Join(u8),
        Rebuilt(u8, u16),
        Rehome(u8, u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..8u8).prop_map(Step::Die),
            (0..8u8).prop_map(Step::Join),
            (0..8u8, 1..=1024u16).prop_map(|(s, n)| Step::Rebuilt(s, n)),
            (0..8u8, 0..1024u16).prop_map(|(s, n)| Step::Rehome(s, n)),
        ]
    }

    fn evens(mut v: View, batch: usize) {
        let lost = v.survival().lost > 0;
        let nodes = v.members.len();
        let share = usize::from(SHARDS).div_ceil(nodes.max(1));
        let (begin, mut moves) = (v.clone(), 0);
        // Each view takes a whole batch of what is out of place, or makes one node even.
        let views = nodes * (usize::from(SHARDS) / batch + 2);
        for _ in 0..views {
            let Some((to, shards)) = v.evened(batch) else { break };
            assert!(!lost && !shards.is_empty() && shards.len() <= batch);
            moves += shards.len();
            let next = v.rehome(to, &shards).unwrap();
            let of = |v: &View, s: u8| {
                loads(v, |r, x| r.primary == Some(x))
                    [v.slots().iter().position(|x| x == s).unwrap()]
            };
            for s in &shards {
                assert!(v.replicas(*s).backups.contains(to), "to a node without a complete copy");
                assert_eq!(v.replicas(*s).complete(), next.replicas(*s).complete());
                // None of those who gave has less than what the other now has, or it would go back.
                assert!(of(&next, v.primary(*s).unwrap()) + 1 >= of(&next, to));
            }
            v = next;
        }
        assert_eq!(v.evened(batch), None, "not even after {views} views: {:?}", v.primaries());
        let even = |v: &View| {
            v.shards.iter().all(|r| {
                let of = |s: u8| v.primaries()[v.slots().iter().position(|x| x == s).unwrap()];
                r.backups.iter().all(|b| of(r.primary.unwrap()) <= of(b) + v.slack() as u32)
            })
        };
        if v.survival().rebuilding == 0 && !lost && !v.shards.is_empty() {
            assert!(even(&v));
        }
        // With a copy everywhere, what lacked is what moved.
        if nodes <= COPIES && !lost {
            let lacked = begin.primaries().iter().map(|n| share.saturating_sub(*n as usize)).sum();
            assert!(moves <= lacked, "{moves} moved where {lacked} lacked");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// In any history, each step moves only what it must, and a complete copy is never claimed
        /// that was not one before or reported rebuilt.
        #[test]
        fn histories(n in 1..8u8, steps in proptest::collection::vec(step(), 1..40)) {
            let mut v = first(n);
            for (i, s) in steps.into_iter().enumerate() {
                let before = v.clone();
                match s {
                    Step::Die(d) => {
                        if v.member(d).is_none() || v.members.len() == 1 { continue }
                        v = v.without(d);
                        for (a, b) in before.shards.iter().zip(&v.shards) {
                            prop_assert_eq!(b.complete(), a.complete().without(d));
                            if a.primary != Some(d) {
                                prop_assert_eq!(a.primary, b.primary);
                            }
                            prop_assert_eq!(b.primary.is_none(), b.complete().is_empty());
                            if b.primary.is_some() {
                                prop_assert!(b.all().len() >= v.wanted());
                            }
                        }
                    }
                    Step::Join(j) => {
                        if v.member(j).is_some() { continue }
                        v = v.with(&member(j, 2 + i as u64));
                        for (a, b) in before.shards.iter().zip(&v.shards) {
                            prop_assert_eq!((a.primary, a.backups), (b.primary, b.backups));
                            prop_assert!(b.rebuilding.minus(a.rebuilding).minus(Slots::one(j)).is_empty()
                                || a.all().len() < v.wanted());
                        }
                    }
                    Step::Rebuilt(slot, many) => {
                        let mut shards = everything(&v, slot);
                        shards.truncate(usize::from(many));
                        let Some(next) = v.rebuilt(slot, &shards) else { continue };
                        v = next;
                        for s in &shards {
                            prop_assert!(v.replicas(*s).backups.contains(slot));
                            prop_assert!(v.replicas(*s).complete().len() <= v.wanted());
                            prop_assert_eq!(v.primary(*s), before.primary(*s));
                        }
                    }
                    Step::Rehome(to, s) => {
                        let Some(next) = v.rehome(to, &[Shard(s)]) else { continue };
                        v = next;
                        prop_assert_eq!(v.primary(Shard(s)), Some(to));
                        prop_assert_eq!(v.replicas(Shard(s)).complete(), before.replicas(Shard(s)).complete());
                    }
                }
                prop_assert!(v.well_formed());
                prop_assert_eq!(v.epoch, before.epoch + 1);
            }
            // Once everything is rebuilt and nothing was lost, a node can be lost from three up.
            let whole = rebuild_all(v);
            prop_assert_eq!(whole.survival().rebuilding, 0);
            let s = whole.survival();
            prop_assert_eq!(s.can_lose_a_node(), whole.members.len() > 2 && s.lost == 0);
            evens(whole, 128);
        }

        /// Whatever was asked for, evening ends soon, and moves shards to complete copies alone.
        #[test]
        fn evening_ends(
            n in 2..9u8,
            batch in 16..400usize,
            moves in proptest::collection::vec((0..8u8, 0..1024u16, 1..1024u16), 0..20),
        ) {
            let mut v = first(n);
            for (to, from, many) in moves {
                let shards: Vec<Shard> = (from..from.saturating_add(many).min(SHARDS)).map(Shard).collect();
                v = v.rehome(to, &shards).unwrap_or(v);
            }
            evens(v, batch);
        }
    }
}
