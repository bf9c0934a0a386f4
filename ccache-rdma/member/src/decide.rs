//! What the leader does next, as a pure function of what it knows.

use crate::command::{Command, State};
use crate::{WITNESS, node_of, raft_id};
use clustix_ccache::lease::Timing;
use clustix_ccache::succession::Incarnation;
use clustix_ccache::view::Member;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// A report of suspicions older than this no longer counts, ns: whoever suspects repeats itself.
pub fn report_age(timing: Timing) -> u64 {
    timing.scaled(600_000_000)
}
/// Whoever suspects and has not said so for this long, ns, may be dead itself.
fn silence(timing: Timing) -> u64 {
    timing.scaled(300_000_000)
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

/// What one member has found out about the others.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Findings {
    /// Whom it suspects now.
    pub suspects: Vec<Incarnation>,
    /// Who has ended, for certain.
    pub ended: Vec<Incarnation>,
    /// Epoch of the latest view of which it has revoked all whom that leaves out.
    pub revoked: u64,
}

/// The latest of it that came from one member.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// When it came, ns.
    pub at: u64,
    /// It.
    pub findings: Findings,
    /// Since when each suspicion has stood, as far as is known here, ns.
    pub since: BTreeMap<Incarnation, u64>,
    /// Since when it has been known that it has revoked so much, ns.
    pub revoked_since: u64,
}

impl Report {
    /// That came now, after `before`.
    pub fn new(timing: Timing, at: u64, findings: Findings, before: Option<&Report>) -> Report {
        let revoked = before.filter(|b| b.findings.revoked == findings.revoked);
        let revoked_since = revoked.map_or(at, |b| b.revoked_since);
        // Of one that is too old it is not known what was taken back since.
        let before = before.filter(|b| at.saturating_sub(b.at) < report_age(timing));
        let stood = |s: &Incarnation| before.and_then(|b| b.since.get(s)).copied().unwrap_or(at);
        let since = findings.suspects.iter().map(|s| (*s, stood(s))).collect();
        Report { at, findings, since, revoked_since }
    }
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
    /// Wishes to join, the witness's too, and when they were last repeated.
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
        let node = |id: &u64| match node_of(*id) {
            (WITNESS, incarnation) => format!("witness (incarnation {incarnation})"),
            (slot, incarnation) => format!("node {slot} (incarnation {incarnation})"),
        };
        let nodes = |ids: &BTreeSet<u64>| ids.iter().map(node).collect::<Vec<_>>().join(", ");
        match self {
            Step::Propose(Command::Rebuilt { slot, epoch, shards }) => {
                write!(f, "{} shards were copied to node {slot} in view {epoch}", shards.len())
            }
            Step::Propose(Command::First(members)) => {
                write!(f, "the first view: {} members", members.len())
            }
            Step::Propose(Command::Settled(epoch)) => write!(f, "view {epoch} is settled"),
            Step::Propose(Command::Witness(Some(incarnation))) => {
                write!(f, "there is a witness (incarnation {incarnation})")
            }
            Step::Propose(Command::Witness(None)) => write!(f, "there is no witness any more"),
            Step::Propose(Command::Evict { slot, incarnation, .. }) => {
                write!(f, "node {slot} (incarnation {incarnation}) is evicted")
            }
            Step::Propose(Command::Join(m)) => {
                write!(f, "node {} (incarnation {}) joins", m.slot, m.incarnation)
            }
            Step::Propose(Command::Rehome { to, shards, .. }) => {
                write!(f, "{} shards move to node {to}", shards.len())
            }
            Step::AddLearner(id) => write!(f, "the log goes to {}", node(id)),
            Step::RemoveLearners(ids) => write!(f, "the log no more goes to {}", nodes(ids)),
            Step::SetVoters(ids) => write!(f, "voters are {}", nodes(ids)),
        }
    }
}

fn id(m: &Member) -> u64 {
    raft_id(m.slot, m.incarnation)
}

impl Situation {
    /// The next step, if there is one.
    pub fn decide(&self) -> Option<Step> {
        if self.state.view.epoch == 0 {
            return self.first();
        }
        self.settle()
            .or_else(|| self.evict())
            .or_else(|| self.witness())
            .or_else(|| self.elect())
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

    /// A view is settled when all of its members have said that they have revoked whom it leaves out, and the
    /// leases that those may have had are over.
    fn settle(&self) -> Option<Step> {
        let epoch = self.state.succession.unsettled()?;
        let revoked = self.state.view.members.iter().map(|m| {
            let report = self.reports.get(&id(m)).filter(|r| r.findings.revoked >= epoch);
            report.map(|r| r.revoked_since)
        });
        let since = revoked.collect::<Option<Vec<u64>>>()?.into_iter().max()?;
        let over = self.now.saturating_sub(since) >= self.timing.over_by();
        over.then_some(Step::Propose(Command::Settled(epoch)))
    }

    /// Whether the member of that raft id suspects another, and has for so long, ns.
    fn suspects(&self, id: u64, other: &Member, for_ns: u64) -> bool {
        let other = (other.slot, other.incarnation);
        self.reports.get(&id).is_some_and(|r| {
            self.now.saturating_sub(r.at) < report_age(self.timing)
                && r.since.get(&other).is_some_and(|at| self.now.saturating_sub(*at) >= for_ns)
        })
    }

    fn others(&self, m: &Member) -> impl Iterator<Item = &Member> {
        self.state.view.members.iter().filter(move |o| o.slot != m.slot)
    }

    /// How many of the others suspect it.
    fn against(&self, m: &Member) -> usize {
        self.others(m).filter(|o| self.suspects(id(o), m, 0)).count()
    }

    /// Who is known to have ended: somebody saw its end, or a new incarnation asks to join, which is proof
    /// enough that those before are no more.
    fn ended(&self) -> Vec<Incarnation> {
        let mut ended: Vec<Incarnation> =
            self.reports.values().flat_map(|r| r.findings.ended.iter().copied()).collect();
        for j in self.fresh_joins() {
            ended.extend(self.state.succession.before((j.slot, j.incarnation)));
        }
        ended.sort_unstable();
        ended.dedup();
        ended.retain(|e| self.state.succession.knows(e));
        ended
    }

    /// A member is evicted when it has ended; when more than half of the others suspect it, and it none of
    /// them; or when one has for two leases. Only if those whom nobody else suspects can commit that, and if
    /// it is safe ([`State::may_evict`]). Of those who suspect each other whoever more suspect comes first,
    /// the leader last, and none goes in favour of one that may be dead: so one of two goes, and one stays.
    fn evict(&self) -> Option<Step> {
        let ended = self.ended();
        let mut members: Vec<&Member> = self.state.view.members.iter().collect();
        members.sort_by_key(|m| (id(m) == self.me, Reverse(self.against(m)), m.slot));
        let goes = members.into_iter().find(|m| {
            let cause = ended.contains(&(m.slot, m.incarnation)) || self.is_suspect(m);
            // One that has lost its vote was about to go.
            (cause || !self.voters.contains(&id(m)))
                && self.sound(m) > self.voters.len() / 2
                && self.state.may_evict((m.slot, m.incarnation), &ended)
        })?;
        // Where the witness takes over its vote, that comes first: once the view is smaller, the next may die.
        let mut nodes = self.node_voters();
        nodes.remove(&id(goes));
        let voters = self.with_witness(nodes);
        if voters.iter().any(|v| !self.voters.contains(v)) {
            return Some(Step::SetVoters(voters));
        }
        let (slot, incarnation) = (goes.slot, goes.incarnation);
        Some(Step::Propose(Command::Evict { slot, incarnation, ended }))
    }

    fn is_suspect(&self, m: &Member) -> bool {
        let mutual = self.others(m).any(|o| self.suspects(id(m), o, 0));
        let most = self.against(m) * 2 > self.others(m).count();
        let long = 2 * self.timing.lease_ns + 1;
        most && !mutual || self.others(m).any(|o| self.suspects(id(o), m, long))
    }

    /// How many voters would be left without `m` that nobody else suspects. One that `m` suspects counts if it
    /// has been heard of lately: or it may be that one that is dead.
    fn sound(&self, m: &Member) -> usize {
        let lives = |o: &Member| {
            let heard = self.reports.get(&id(o)).map_or(0, |r| r.at);
            id(o) == self.me
                || !self.suspects(id(m), o, 0)
                || self.now.saturating_sub(heard) < silence(self.timing)
        };
        let doubted =
            |o: &Member| self.others(o).any(|p| p.slot != m.slot && self.suspects(id(p), o, 0));
        let nodes = self
            .others(m)
            .filter(|o| self.voters.contains(&id(o)) && lives(o) && !doubted(o))
            .count();
        let witness = self.witness_there().is_some_and(|w| self.voters.contains(&w));
        nodes + usize::from(witness)
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

    /// The raft id of the witness that is there, which says so again and again.
    fn witness_there(&self) -> Option<u64> {
        let fresh = |at: u64| self.now.saturating_sub(at) < join_age(self.timing);
        self.joins
            .iter()
            .filter(|(m, at)| m.slot == WITNESS && fresh(*at))
            .map(|(m, _)| id(m))
            .max()
    }

    /// Whether it has all but the last of the log.
    fn is_close(&self, id: u64) -> bool {
        self.matched.get(&id).is_some_and(|at| at + CLOSE >= self.last)
    }

    /// Who is to vote with these nodes: the witness too where they are even in number, and so could fall in
    /// two halves. With an odd number its vote would help nobody, and its death would take one.
    fn with_witness(&self, mut nodes: BTreeSet<u64>) -> BTreeSet<u64> {
        if let Some(w) = self.witness_there()
            && nodes.len().is_multiple_of(2)
            && (self.voters.contains(&w) || self.is_close(w))
        {
            nodes.insert(w);
        }
        nodes
    }

    fn node_voters(&self) -> BTreeSet<u64> {
        self.voters.iter().copied().filter(|id| node_of(*id).0 != WITNESS).collect()
    }

    /// A witness gets the log, then a vote if it is to have one, then its place in the view; it loses the last
    /// first.
    fn witness(&self) -> Option<Step> {
        let seen = self.state.view.witness;
        let Some(w) = self.witness_there() else {
            return seen.map(|_| Step::Propose(Command::Witness(None)));
        };
        let incarnation = node_of(w).1;
        if seen.is_some_and(|s| s != incarnation) {
            return Some(Step::Propose(Command::Witness(None)));
        }
        if !self.nodes.contains(&w) {
            return Some(Step::AddLearner(w));
        }
        let spare = self.node_voters().len() % 2 == 1 && self.is_close(w);
        let ready = self.voters.contains(&w) || spare;
        (ready && seen.is_none()).then_some(Step::Propose(Command::Witness(Some(incarnation))))
    }

    /// Voters shrink with the view.
    fn elect(&self) -> Option<Step> {
        let wanted = |id: &u64| self.in_view(*id) || self.joining(*id);
        let nodes: BTreeSet<u64> = self.node_voters().into_iter().filter(wanted).collect();
        if nodes.is_empty() {
            return None;
        }
        let voters = self.with_witness(nodes);
        if voters != self.voters {
            return Some(Step::SetVoters(voters));
        }
        let there = self.witness_there();
        let left: BTreeSet<u64> = self
            .nodes
            .difference(&self.voters)
            .copied()
            .filter(|id| !wanted(id) && Some(*id) != there)
            .collect();
        (!left.is_empty()).then_some(Step::RemoveLearners(left))
    }

    /// A node gets the log, then a vote, then its place in the view: so that a view never has more
    /// members than there are votes to lose.
    fn join(&self) -> Option<Step> {
        for m in self.fresh_joins() {
            let id = id(m);
            if self.in_view(id) || self.state.view.member(m.slot).is_some() {
                continue;
            }
            if self.voters.contains(&id) {
                if self.state.succession.may_join() {
                    return Some(Step::Propose(Command::Join(m.clone())));
                }
                continue;
            }
            if !self.nodes.contains(&id) {
                return Some(Step::AddLearner(id));
            }
            if self.is_close(id) {
                let mut nodes = self.node_voters();
                nodes.insert(id);
                return Some(Step::SetVoters(self.with_witness(nodes)));
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
                && r.findings.suspects.iter().any(|(s, i)| self.in_view(raft_id(*s, *i)))
        };
        !self.reports.values().any(suspected) && self.fresh_joins().next().is_none()
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

    fn report(s: &mut Situation, id: u64, suspects: &[Incarnation]) {
        let findings = Findings { suspects: suspects.to_vec(), ..Findings::default() };
        let report = Report::new(s.timing, s.now, findings, s.reports.get(&id));
        s.reports.insert(id, report);
    }

    /// Those suspect these for two leases and a little.
    fn suspect_for_long(s: &mut Situation, who: &[(u64, &[Incarnation])]) {
        for _ in 0..2 {
            for (id, suspects) in who {
                report(s, *id, suspects);
            }
            s.now += 550 * MS;
        }
        for (id, suspects) in who {
            report(s, *id, suspects);
        }
    }

    fn evict(slot: u8, incarnation: u64) -> Command {
        Command::Evict { slot, incarnation, ended: Vec::new() }
    }

    fn evicts(slot: u8, incarnation: u64) -> Option<Step> {
        Some(Step::Propose(evict(slot, incarnation)))
    }

    #[test]
    fn two_of_two_others_evict_and_one_does_not() {
        let mut s = three();
        report(&mut s, 17, &[(2, 1)]);
        assert_eq!(s.decide(), None);
        report(&mut s, 16, &[(2, 1)]);
        assert_eq!(s.decide(), evicts(2, 1));
        s.now += report_age(Timing::default());
        assert_eq!(s.decide(), None, "stale reports");
        report(&mut s, 17, &[(2, 1)]);
        s.now += 500 * MS;
        report(&mut s, 17, &[(2, 1)]);
        assert_eq!(s.decide(), None);
        s.now += 1;
        assert_eq!(s.decide(), evicts(2, 1), "one for long");
        report(&mut s, 17, &[]);
        report(&mut s, 17, &[(2, 1)]);
        assert_eq!(s.decide(), None, "it was taken back meanwhile");
    }

    #[test]
    fn nobody_is_evicted_by_a_minority() {
        let mut s = three();
        suspect_for_long(&mut s, &[(16, &[(1, 1), (2, 1)])]);
        assert_eq!(s.decide(), None);
        let mut two = three();
        two.state.apply(&evict(2, 1));
        two.voters.remove(&18);
        two.nodes.remove(&18);
        suspect_for_long(&mut two, &[(16, &[(1, 1)])]);
        assert_eq!(two.decide(), None, "of two, one is no majority");
    }

    #[test]
    fn of_two_that_cannot_reach_each_other_one_goes_and_the_leader_stays() {
        let mut s = three();
        suspect_for_long(&mut s, &[(16, &[(1, 1)]), (17, &[(0, 1)])]);
        assert_eq!(s.decide(), evicts(1, 1));
        // Also where the leader is neither.
        s.me = 18;
        assert_eq!(s.decide(), evicts(0, 1));
        // Or where nobody can reach the leader, which goes itself.
        let mut s = three();
        suspect_for_long(&mut s, &[(16, &[(1, 1), (2, 1)]), (17, &[(0, 1)]), (18, &[(0, 1)])]);
        assert_eq!(s.decide(), evicts(0, 1));
        // Not at once: whoever says so may be dead itself by now.
        let mut s = three();
        report(&mut s, 16, &[(1, 1)]);
        report(&mut s, 17, &[(0, 1), (2, 1)]);
        report(&mut s, 18, &[(1, 1)]);
        assert_eq!(s.decide(), None);
        s.now += 550 * MS;
        report(&mut s, 16, &[(1, 1)]);
        report(&mut s, 18, &[(1, 1)]);
        assert_eq!(s.decide(), evicts(1, 1));
    }

    #[test]
    fn whoever_has_ended_goes_at_once() {
        let mut s = three();
        let findings = Findings { ended: vec![(1, 1), (3, 9)], ..Findings::default() };
        s.reports.insert(18, Report::new(s.timing, s.now, findings, None));
        let ended = vec![(1, 1)];
        let evict = Command::Evict { slot: 1, incarnation: 1, ended };
        assert_eq!(s.decide(), Some(Step::Propose(evict)));
    }

    #[test]
    fn a_settled_view_is_told_of_once() {
        let mut s = three();
        let revoked = |s: &mut Situation, id: u64, revoked| {
            let findings = Findings { revoked, ..Findings::default() };
            let report = Report::new(s.timing, s.now, findings, s.reports.get(&id));
            s.reports.insert(id, report);
        };
        revoked(&mut s, 16, 1);
        assert_eq!(s.decide(), None, "nothing came before");
        s.state.apply(&evict(1, 1));
        s.voters.remove(&17);
        s.nodes.remove(&17);
        assert_eq!(s.decide(), None, "not yet");
        revoked(&mut s, 16, 2);
        revoked(&mut s, 18, 1);
        s.now += s.timing.over_by();
        assert_eq!(s.decide(), None, "node 2 has not");
        revoked(&mut s, 18, 2);
        s.now += s.timing.over_by() - 1;
        revoked(&mut s, 18, 2);
        assert_eq!(s.decide(), None, "a lease may last until then");
        s.now += 1;
        assert_eq!(s.decide(), Some(Step::Propose(Command::Settled(2))));
        s.state.apply(&Command::Settled(2));
        assert_eq!(s.decide(), None);
    }

    const WITNESS_ID: u64 = raft_id(WITNESS, 7);

    /// Says that the witness is there.
    fn witness(s: &mut Situation) {
        s.joins.retain(|(m, _)| m.slot != WITNESS);
        s.joins.push((member(WITNESS, 7), s.now));
    }

    /// Two nodes and a witness, whole.
    fn two_and_witness() -> Situation {
        let mut s = three();
        s.state = State::default();
        s.state.apply(&Command::First(vec![member(0, 1), member(1, 1)]));
        s.voters = [16, 17].into();
        s.nodes = s.voters.clone();
        witness(&mut s);
        assert_eq!(s.decide(), Some(Step::AddLearner(WITNESS_ID)));
        s.nodes.insert(WITNESS_ID);
        assert_eq!(s.decide(), None, "it has no log yet");
        s.matched.insert(WITNESS_ID, 90);
        let voters: BTreeSet<u64> = [16, 17, WITNESS_ID].into();
        assert_eq!(s.decide(), Some(Step::SetVoters(voters.clone())));
        s.voters = voters;
        assert_eq!(s.decide(), Some(Step::Propose(Command::Witness(Some(7)))));
        s.state.apply(&Command::Witness(Some(7)));
        assert_eq!(s.decide(), None);
        assert!(s.state.view.survival().can_lose_a_node());
        s
    }

    #[test]
    fn with_a_witness_one_of_two_goes_on() {
        let mut s = two_and_witness();
        report(&mut s, 16, &[(1, 1)]);
        assert_eq!(s.decide(), evicts(1, 1));
        let mut alone = s.clone();
        alone.now += join_age(alone.timing);
        report(&mut alone, 16, &[(1, 1)]);
        let gone = Some(Step::Propose(Command::Witness(None)));
        assert_eq!(alone.decide(), gone, "the witness is silent");
        s.state.apply(&evict(1, 1));
        assert_eq!(s.decide(), Some(Step::SetVoters([16].into())), "its death would bind it");
        s.voters = [16].into();
        assert_eq!(s.decide(), Some(Step::RemoveLearners([17].into())));
        s.nodes = [16, WITNESS_ID].into();
        assert_eq!(s.decide(), None);
        // Another node comes, and both get their votes at once.
        s.joins.push((member(1, 2), s.now));
        assert_eq!(s.decide(), Some(Step::AddLearner(33)));
        s.nodes.insert(33);
        s.matched.insert(33, 100);
        assert_eq!(s.decide(), Some(Step::SetVoters([16, 33, WITNESS_ID].into())));
    }

    #[test]
    fn of_two_that_suspect_each_other_the_witness_sees_one_go() {
        let mut s = two_and_witness();
        suspect_for_long(&mut s, &[(16, &[(1, 1)]), (17, &[(0, 1)])]);
        witness(&mut s);
        assert_eq!(s.decide(), evicts(1, 1), "the leader stays");
        s.me = WITNESS_ID;
        assert_eq!(s.decide(), evicts(0, 1));
        // But not if the other one has fallen silent: then that goes.
        s.now += silence(s.timing);
        report(&mut s, 16, &[(1, 1)]);
        assert_eq!(s.decide(), evicts(1, 1));
    }

    #[test]
    fn three_nodes_need_no_witness_and_two_of_them_get_it() {
        let mut s = two_and_witness();
        s.joins.push((member(2, 1), s.now));
        s.nodes.insert(18);
        s.matched.insert(18, 100);
        let three = Some(Step::SetVoters([16, 17, 18].into()));
        assert_eq!(s.decide(), three);
        s.voters = [16, 17, 18].into();
        s.state.apply(&Command::Join(member(2, 1)));
        s.joins.retain(|(m, _)| m.slot == WITNESS);
        assert_eq!(s.decide(), None);
        // A witness that is silent can be lost then.
        s.now += join_age(s.timing);
        assert_eq!(s.decide(), Some(Step::Propose(Command::Witness(None))));
        s.state.apply(&Command::Witness(None));
        assert_eq!(s.decide(), Some(Step::RemoveLearners([WITNESS_ID].into())));
        // And comes again, without a vote until one of them is lost.
        witness(&mut s);
        assert_eq!(s.decide(), Some(Step::Propose(Command::Witness(Some(7)))));
        s.state.apply(&Command::Witness(Some(7)));
        s.state.apply(&Command::Settled(s.state.view.epoch));
        let all: Vec<u16> = (0..1024).collect();
        let epoch = s.state.view.epoch;
        s.state.apply(&Command::Rebuilt { slot: 2, epoch, shards: all });
        report(&mut s, 16, &[(1, 1)]);
        report(&mut s, 18, &[(1, 1)]);
        assert_eq!(s.decide(), Some(Step::SetVoters([16, 18, WITNESS_ID].into())));
        s.voters = [16, 18, WITNESS_ID].into();
        s.nodes = s.voters.clone();
        assert_eq!(s.decide(), evicts(1, 1));
        report(&mut s, 16, &[]);
        assert_eq!(s.decide(), evicts(1, 1), "it has no vote any more");
        s.state.apply(&evict(1, 1));
        // Until that is settled node 1 may live, and renew in the memory of the next to go.
        report(&mut s, 16, &[(2, 1)]);
        assert_eq!(s.decide(), None);
        s.state.apply(&Command::Settled(s.state.view.epoch));
        assert_eq!(s.decide(), evicts(2, 1));
    }

    #[test]
    fn a_witness_that_started_again_is_another() {
        let mut s = two_and_witness();
        s.joins = vec![(member(WITNESS, 8), s.now), (member(WITNESS, 7), s.now)];
        assert_eq!(s.decide(), Some(Step::Propose(Command::Witness(None))));
        s.state.apply(&Command::Witness(None));
        let new = raft_id(WITNESS, 8);
        assert_eq!(s.decide(), Some(Step::AddLearner(new)));
        s.nodes.insert(new);
        assert_eq!(s.decide(), Some(Step::SetVoters([16, 17].into())));
        s.voters = [16, 17].into();
        assert_eq!(s.decide(), Some(Step::RemoveLearners([WITNESS_ID].into())));
    }

    #[test]
    fn voters_shrink_and_grow_with_the_view() {
        let mut s = three();
        s.state.apply(&evict(1, 1));
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
        s.state.apply(&evict(0, 1));
        s.state.apply(&Command::Join(member(0, 2)));
        let early = s.state.view.epoch;
        s.state.apply(&evict(2, 1));
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
        s.state.apply(&evict(0, 1));
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
            report(&mut busy, 32, &[(2, 1)]);
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
        s.state.apply(&evict(1, 1));
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
        let evict = Command::Evict { slot: 2, incarnation: 1, ended: vec![(2, 1)] };
        assert_eq!(s.decide(), Some(Step::Propose(evict)));
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
