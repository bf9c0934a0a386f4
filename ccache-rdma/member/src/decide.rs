//! What the leader does next, as a pure function of what it knows.

use crate::command::{Command, State};
use crate::{node_of, raft_id};
use clustix_ccache::lease::Timing;
use clustix_ccache::view::Member;
use std::collections::{BTreeMap, BTreeSet};

/// A report of suspicions older than this no longer counts, ns: whoever suspects repeats itself.
pub fn report_age(timing: Timing) -> u64 {
    timing.scaled(600_000_000)
}
/// A wish to join older than this is forgotten, ns: whoever wishes repeats itself.
pub fn join_age(timing: Timing) -> u64 {
    timing.scaled(2_000_000_000)
}
/// How long the first view waits for all of the first members, ns.
pub const FIRST_WAIT: u64 = 20_000_000_000;
/// How long the leader must have seen one view, and nobody suspected or joining, before it evens
/// primaries, ns: at least this between two such views, and after a change that something else made.
pub fn calm(timing: Timing) -> u64 {
    timing.scaled(1_000_000_000)
}
/// Most shards that one view moves for an even load: operations stand still while their words are
/// made anew.
pub const EVENED: usize = 128;
/// Entries that a learner may lack when it is made a voter.
const CLOSE: u64 = 32;

/// What one member suspects.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// When it came, ns.
    pub at: u64,
    /// Slots and incarnations.
    pub suspects: Vec<(u8, u64)>,
}

/// What the leader knows.
#[derive(Clone, Debug, Default)]
pub struct Situation {
    /// `CLOCK_MONOTONIC`, ns.
    pub now: u64,
    /// Its own raft id.
    pub me: u64,
    /// When it began to lead.
    pub leading_since: u64,
    /// Lease times.
    pub timing: Timing,
    /// The latest state.
    pub state: State,
    /// Voters' raft ids.
    pub voters: BTreeSet<u64>,
    /// All raft ids that get the log.
    pub nodes: BTreeSet<u64>,
    /// Log index that each other node is known to have.
    pub matched: BTreeMap<u64, u64>,
    /// Last log index of its own.
    pub last: u64,
    /// Latest report of each member, by raft id; its own too.
    pub reports: BTreeMap<u64, Report>,
    /// Since when it has suspected each incarnation itself.
    pub own: BTreeMap<(u8, u64), u64>,
    /// Wishes to join, and when they were last repeated.
    pub joins: Vec<(Member, u64)>,
    /// First members that have said they are ready, before the first view.
    pub ready: BTreeMap<u64, Member>,
    /// Complete copies to record: slot and epoch, shards.
    pub rebuilt: BTreeMap<(u8, u64), BTreeSet<u16>>,
    /// When it first saw the latest view, or anybody under suspicion or joining since.
    pub calm_since: u64,
    /// A rehome that somebody asks for: epoch of the view that it was checked against, whereto, which.
    pub asked: Option<(u64, u8, Vec<u16>)>,
}

/// One thing to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Write this to the log.
    Propose(Command),
    /// Start sending the log to this raft id.
    AddLearner(u64),
    /// Stop sending it to these.
    RemoveLearners(BTreeSet<u64>),
    /// Make these the voters.
    SetVoters(BTreeSet<u64>),
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nodes =
            |ids: &BTreeSet<u64>| -> Vec<(u8, u64)> { ids.iter().map(|id| node_of(*id)).collect() };
        match self {
            Step::Propose(Command::Rebuilt { slot, epoch, shards }) => {
                write!(f, "{} shards were copied to node {slot} in view {epoch}", shards.len())
            }
            Step::Propose(Command::First(members)) => {
                write!(f, "the first view: {} members", members.len())
            }
            Step::Propose(Command::Evict { slot, incarnation }) => {
                write!(f, "node {slot} (incarnation {incarnation}) is evicted")
            }
            Step::Propose(Command::Join(m)) => {
                write!(f, "node {} (incarnation {}) joins", m.slot, m.incarnation)
            }
            Step::Propose(Command::Rehome { to, shards, .. }) => {
                write!(f, "{} shards move to node {to}", shards.len())
            }
            Step::AddLearner(id) => write!(f, "the log goes to {:?}", node_of(*id)),
            Step::RemoveLearners(ids) => write!(f, "the log no more goes to {:?}", nodes(ids)),
            Step::SetVoters(ids) => write!(f, "voters are {:?}", nodes(ids)),
        }
    }
}

impl Situation {
    /// The next step, if there is one.
    pub fn decide(&self) -> Option<Step> {
        if self.state.view.epoch == 0 {
            return self.first();
        }
        self.evict()
            .or_else(|| self.shrink())
            .or_else(|| self.join())
            .or_else(|| self.record())
            .or_else(|| self.rehome())
            .or_else(|| self.even())
    }

    fn first(&self) -> Option<Step> {
        let all = self.voters.iter().all(|v| self.ready.contains_key(v));
        let waited = self.now.saturating_sub(self.leading_since) > FIRST_WAIT;
        let enough = self.ready.len() > self.voters.len() / 2;
        (all || waited && enough)
            .then(|| Step::Propose(Command::First(self.ready.values().cloned().collect())))
    }

    fn suspects(&self, id: u64, slot: u8, incarnation: u64) -> bool {
        self.reports.get(&id).is_some_and(|r| {
            self.now.saturating_sub(r.at) < report_age(self.timing)
                && r.suspects.contains(&(slot, incarnation))
        })
    }

    /// A member is evicted when more than half of the others suspect it, or the leader has for two
    /// leases; and only if those whom nobody suspects can commit that.
    fn evict(&self) -> Option<Step> {
        let others = |slot: u8| self.state.view.members.iter().filter(move |m| m.slot != slot);
        let doubted = |m: &Member| {
            others(m.slot)
                .any(|o| self.suspects(raft_id(o.slot, o.incarnation), m.slot, m.incarnation))
        };
        for m in &self.state.view.members {
            let against = others(m.slot)
                .filter(|o| self.suspects(raft_id(o.slot, o.incarnation), m.slot, m.incarnation))
                .count();
            let alone = self
                .own
                .get(&(m.slot, m.incarnation))
                .is_some_and(|since| self.now.saturating_sub(*since) > 2 * self.timing.lease_ns);
            // A new incarnation that asks to join is proof enough that the one before is no more.
            let replaced =
                self.fresh_joins().any(|j| j.slot == m.slot && j.incarnation > m.incarnation);
            if !(against * 2 > others(m.slot).count() || alone || replaced) {
                continue;
            }
            let sound = others(m.slot)
                .filter(|o| !doubted(o))
                .filter(|o| self.voters.contains(&raft_id(o.slot, o.incarnation)))
                .count();
            if sound > self.voters.len() / 2 {
                return Some(Step::Propose(Command::Evict {
                    slot: m.slot,
                    incarnation: m.incarnation,
                }));
            }
        }
        None
    }

    fn in_view(&self, id: u64) -> bool {
        let (slot, incarnation) = node_of(id);
        self.state.view.member(slot).is_some_and(|m| m.incarnation == incarnation)
    }

    fn fresh_joins(&self) -> impl Iterator<Item = &Member> {
        let fresh = |at: u64| self.now.saturating_sub(at) < join_age(self.timing);
        self.joins.iter().filter(move |(m, at)| fresh(*at) && self.state.is_new(m)).map(|(m, _)| m)
    }

    fn joining(&self, id: u64) -> bool {
        let (slot, incarnation) = node_of(id);
        self.fresh_joins().any(|m| m.slot == slot && m.incarnation == incarnation)
            && self.state.view.member(slot).is_none_or(|m| m.incarnation < incarnation)
    }

    /// Voters shrink with the view.
    fn shrink(&self) -> Option<Step> {
        let wanted = |id: &u64| self.in_view(*id) || self.joining(*id);
        let voters: BTreeSet<u64> = self.voters.iter().copied().filter(wanted).collect();
        if voters.len() < self.voters.len() && !voters.is_empty() {
            return Some(Step::SetVoters(voters));
        }
        let left: BTreeSet<u64> =
            self.nodes.difference(&self.voters).copied().filter(|id| !wanted(id)).collect();
        (!left.is_empty()).then_some(Step::RemoveLearners(left))
    }

    /// A node gets the log, then a vote, then its place in the view: so that a view never has more
    /// members than there are votes to lose.
    fn join(&self) -> Option<Step> {
        for m in self.fresh_joins() {
            let id = raft_id(m.slot, m.incarnation);
            if self.in_view(id) || self.state.view.member(m.slot).is_some() {
                continue;
            }
            if self.voters.contains(&id) {
                return Some(Step::Propose(Command::Join(m.clone())));
            }
            if !self.nodes.contains(&id) {
                return Some(Step::AddLearner(id));
            }
            if self.matched.get(&id).is_some_and(|at| at + CLOSE >= self.last) {
                let mut voters = self.voters.clone();
                voters.insert(id);
                return Some(Step::SetVoters(voters));
            }
        }
        None
    }

    fn record(&self) -> Option<Step> {
        self.rebuilt.iter().find_map(|((slot, epoch), shards)| {
            let counts = |s: &u16| self.state.counts(*slot, *epoch, *s);
            let shards: Vec<u16> = shards.iter().copied().filter(counts).collect();
            let command = Command::Rebuilt { slot: *slot, epoch: *epoch, shards };
            let news = matches!(&command, Command::Rebuilt { shards, .. } if !shards.is_empty());
            news.then_some(Step::Propose(command))
        })
    }

    /// Moves what somebody asks for, if that still fits.
    fn rehome(&self) -> Option<Step> {
        let (epoch, to, shards) = self.asked.clone()?;
        let fits = self.state.view.rehome(to, &clustix_ccache::request::shards(&shards)).is_some();
        (fits && epoch == self.state.view.epoch).then_some(Step::Propose(Command::Rehome {
            epoch,
            asked: true,
            to,
            shards,
        }))
    }

    /// Whether nothing is going on that changes views: no suspicion, nobody joining.
    pub fn quiet(&self) -> bool {
        let suspected = |r: &Report| {
            self.now.saturating_sub(r.at) < report_age(self.timing)
                && r.suspects.iter().any(|(s, i)| self.in_view(raft_id(*s, *i)))
        };
        self.own.is_empty()
            && !self.reports.values().any(suspected)
            && self.fresh_joins().next().is_none()
    }

    /// A node that came back is primary of nothing: it gets its share, some at a time, once the
    /// cluster is whole and has been calm.
    fn even(&self) -> Option<Step> {
        let calm = self.now.saturating_sub(self.calm_since) >= calm(self.timing);
        if self.state.arranged || !calm || !self.quiet() {
            return None;
        }
        let view = &self.state.view;
        let (to, shards) = view.evened(EVENED)?;
        let shards = shards.into_iter().map(|s| s.0).collect();
        let epoch = view.epoch;
        Some(Step::Propose(Command::Rehome { epoch, asked: false, to, shards }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn member(slot: u8, incarnation: u64) -> Member {
        Member { slot, incarnation, path: String::new() }
    }

    fn three() -> Situation {
        let members: Vec<Member> = (0..3).map(|s| member(s, 1)).collect();
        let ids: BTreeSet<u64> = [16, 17, 18].into();
        let mut state = State::default();
        state.apply(&Command::First(members));
        Situation {
            now: 10_000 * MS,
            me: 16,
            state,
            voters: ids.clone(),
            nodes: ids,
            last: 100,
            ..Situation::default()
        }
    }

    fn report(s: &mut Situation, id: u64, suspects: &[(u8, u64)]) {
        s.reports.insert(id, Report { at: s.now, suspects: suspects.to_vec() });
    }

    #[test]
    fn two_of_two_others_evict_and_one_does_not() {
        let mut s = three();
        report(&mut s, 17, &[(2, 1)]);
        assert_eq!(s.decide(), None);
        report(&mut s, 16, &[(2, 1)]);
        let evict = Step::Propose(Command::Evict { slot: 2, incarnation: 1 });
        assert_eq!(s.decide(), Some(evict.clone()));
        s.now += report_age(Timing::default());
        assert_eq!(s.decide(), None, "stale reports");
        s.own.insert((2, 1), s.now - 499 * MS);
        assert_eq!(s.decide(), None);
        s.own.insert((2, 1), s.now - 501 * MS);
        assert_eq!(s.decide(), Some(evict));
    }

    #[test]
    fn nobody_is_evicted_by_a_minority() {
        let mut s = three();
        report(&mut s, 16, &[(1, 1), (2, 1)]);
        s.own = [((1, 1), 0), ((2, 1), 0)].into();
        assert_eq!(s.decide(), None);
        let mut two = three();
        two.state.apply(&Command::Evict { slot: 2, incarnation: 1 });
        two.voters.remove(&18);
        two.nodes.remove(&18);
        report(&mut two, 16, &[(1, 1)]);
        assert_eq!(two.decide(), None, "of two, one is no majority");
    }

    #[test]
    fn voters_shrink_and_grow_with_the_view() {
        let mut s = three();
        s.state.apply(&Command::Evict { slot: 1, incarnation: 1 });
        assert_eq!(s.decide(), Some(Step::SetVoters([16, 18].into())));
        s.voters.remove(&17);
        assert_eq!(s.decide(), Some(Step::RemoveLearners([17].into())));
        s.nodes.remove(&17);
        assert_eq!(s.decide(), None);
        s.joins.push((member(1, 1), s.now));
        assert_eq!(s.decide(), None, "the evicted one's wish is no more than a memory");
        s.joins.push((member(1, 2), s.now));
        assert_eq!(s.decide(), Some(Step::AddLearner(33)));
        s.nodes.insert(33);
        assert_eq!(s.decide(), None, "it has no log yet");
        s.matched.insert(33, 90);
        assert_eq!(s.decide(), Some(Step::SetVoters([16, 18, 33].into())));
        s.voters.insert(33);
        assert_eq!(s.decide(), Some(Step::Propose(Command::Join(member(1, 2)))));
        let mut gave_up = s.clone();
        gave_up.now += join_age(gave_up.timing);
        assert_eq!(gave_up.decide(), Some(Step::SetVoters([16, 18].into())));
        s.state.apply(&Command::Join(member(1, 2)));
        assert_eq!(s.decide(), None);
    }

    #[test]
    fn a_copy_that_counts_no_more_does_not_hide_one_that_does() {
        let mut s = three();
        s.state.apply(&Command::Evict { slot: 0, incarnation: 1 });
        s.state.apply(&Command::Join(member(0, 2)));
        let early = s.state.view.epoch;
        s.state.apply(&Command::Evict { slot: 2, incarnation: 1 });
        s.state.apply(&Command::Join(member(2, 2)));
        let now = s.state.view.epoch;
        s.voters = [32, 17, 34].into();
        s.nodes = s.voters.clone();
        let all = || (0..1024).collect::<BTreeSet<u16>>();
        s.rebuilt = [((0, early), all())].into();
        assert_eq!(s.decide(), None, "that report was overtaken");
        s.rebuilt.insert((2, now), all());
        let Some(Step::Propose(command)) = s.decide() else { panic!("nothing is recorded") };
        assert!(s.state.apply(&command).changed, "{command:?}");
    }

    /// Three nodes, of which node 0 was lost and is back, with all its copies.
    fn back() -> Situation {
        let mut s = three();
        s.state.apply(&Command::Evict { slot: 0, incarnation: 1 });
        s.state.apply(&Command::Join(member(0, 2)));
        let epoch = s.state.view.epoch;
        s.state.apply(&Command::Rebuilt { slot: 0, epoch, shards: (0..1024).collect() });
        s.voters = [32, 17, 18].into();
        s.nodes = s.voters.clone();
        s.calm_since = s.now;
        s
    }

    #[test]
    fn a_node_that_came_back_gets_its_share_when_all_is_calm() {
        let mut s = back();
        assert_eq!(s.state.view.primaries(), [0, 512, 512]);
        let calm = calm(s.timing);
        for share in [128, 256, 341] {
            s.now += calm - 1;
            assert_eq!(s.decide(), None, "too soon");
            s.now += 1;
            let mut busy = s.clone();
            busy.own.insert((2, 1), busy.now);
            assert_eq!(busy.decide(), None, "a suspicion");
            let mut busy = s.clone();
            busy.joins.push((member(3, 1), busy.now));
            assert_eq!(busy.decide(), Some(Step::AddLearner(19)));
            busy.nodes.insert(19);
            assert_eq!(busy.decide(), None, "somebody joins");
            let Some(Step::Propose(command)) = s.decide() else { panic!("nothing is moved") };
            assert!(s.state.apply(&command).changed);
            assert!(!s.state.apply(&command).changed, "twice");
            assert_eq!(s.state.view.primaries()[0], share);
            s.calm_since = s.now;
        }
        s.now += 100 * calm;
        assert_eq!(s.decide(), None, "even");
    }

    #[test]
    fn what_was_asked_for_is_moved_at_once_and_stays() {
        let mut s = back();
        let epoch = s.state.view.epoch;
        s.asked = Some((epoch, 0, (0..1024).collect()));
        let Some(Step::Propose(command)) = s.decide() else { panic!("nothing is moved") };
        s.state.apply(&command);
        assert_eq!(s.state.view.primaries(), [1024, 0, 0]);
        assert_eq!(s.decide(), None, "it was for the view before");
        s.asked = None;
        s.now += 100 * calm(s.timing);
        assert_eq!(s.decide(), None, "so it was wished");
        s.state.apply(&Command::Evict { slot: 1, incarnation: 1 });
        s.state.apply(&Command::Join(member(1, 2)));
        let epoch = s.state.view.epoch;
        s.state.apply(&Command::Rebuilt { slot: 1, epoch, shards: (0..1024).collect() });
        s.voters = [32, 33, 18].into();
        s.nodes = s.voters.clone();
        let moved = s.decide();
        assert!(matches!(&moved, Some(Step::Propose(Command::Rehome { to: 1, .. }))), "{moved:?}");
    }

    #[test]
    fn a_new_incarnation_ends_the_one_before() {
        let mut s = three();
        s.joins.push((member(2, 2), s.now));
        let evict = Step::Propose(Command::Evict { slot: 2, incarnation: 1 });
        assert_eq!(s.decide(), Some(evict));
    }

    #[test]
    fn the_first_view_waits_for_all_and_in_the_end_for_most() {
        let mut s = three();
        s.state = State::default();
        s.leading_since = s.now;
        s.ready = [(16, member(0, 1)), (17, member(1, 1))].into();
        assert_eq!(s.decide(), None);
        s.now += FIRST_WAIT + 1;
        assert!(matches!(s.decide(), Some(Step::Propose(Command::First(m))) if m.len() == 2));
        s.ready.remove(&17);
        assert_eq!(s.decide(), None);
    }
}
