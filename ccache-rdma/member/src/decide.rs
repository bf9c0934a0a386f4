//! What the leader does next, as a pure function of what it knows.

use crate::command::{Command, State};
use crate::{MAX_INCARNATION, WITNESS, node_of, raft_id};
use clustix_ccache::lease::Timing;
use clustix_ccache::succession::Incarnation;
use clustix_ccache::view::{MAX_NODES, Member};
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

impl Findings {
    /// Shape check of what came from another member.
    pub fn well_formed(&self) -> bool {
        let known = |(slot, incarnation): &Incarnation| {
            usize::from(*slot) < MAX_NODES && *incarnation <= MAX_INCARNATION
        };
        [&self.suspects, &self.ended]
            .into_iter()
            .all(|list| list.len() <= MAX_NODES && list.iter().all(known))
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
    /// Voters' raft ids: those that there are to be.
    pub voters: BTreeSet<u64>,
    /// While voters change: those that there were, who must agree too.
    pub joint: Vec<BTreeSet<u64>>,
    /// Whether the latest voters have been decided.
    pub is_decided: bool,
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
            cause
                && self.is_majority(&self.sound(m))
                && self.state.may_evict((m.slot, m.incarnation), &ended)
        })?;
        // Where the witness takes over its vote, that comes first: once the view is smaller, the next may die.
        let mut nodes = self.node_voters();
        nodes.remove(&id(goes));
        let voters = self.with_witness(nodes);
        let unfinished = !self.joint.is_empty() || !self.is_decided;
        if voters.iter().any(|v| !self.voters.contains(v)) || unfinished && voters == self.voters {
            return self.set_voters(voters);
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

    /// The voters that would be left without `m` and that nobody else suspects. One that `m` suspects counts if it
    /// has been heard of lately: or it may be that one that is dead.
    fn sound(&self, m: &Member) -> BTreeSet<u64> {
        let lives = |o: &Member| {
            let heard = self.reports.get(&id(o)).map_or(0, |r| r.at);
            id(o) == self.me
                || !self.suspects(id(m), o, 0)
                || self.now.saturating_sub(heard) < silence(self.timing)
        };
        let doubted =
            |o: &Member| self.others(o).any(|p| p.slot != m.slot && self.suspects(id(p), o, 0));
        let nodes = self.others(m).filter(|o| lives(o) && !doubted(o)).map(id);
        nodes.chain(self.witness_there()).collect()
    }

    /// Whether these can decide something.
    fn is_majority(&self, these: &BTreeSet<u64>) -> bool {
        let most = |voters: &BTreeSet<u64>| voters.intersection(these).count() > voters.len() / 2;
        most(&self.voters) && self.joint.iter().all(most)
    }

    /// Changes the voters, or finishes such a change; not before the last one has been decided.
    fn set_voters(&self, voters: BTreeSet<u64>) -> Option<Step> {
        let news = voters != self.voters || !self.joint.is_empty();
        (news && self.is_decided).then_some(Step::SetVoters(voters))
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

    /// Voters shrink with the view. A member of it that has lost its vote and is suspected no more gets it back.
    fn elect(&self) -> Option<Step> {
        let wanted = |id: &u64| self.in_view(*id) || self.joining(*id);
        let mut nodes: BTreeSet<u64> = self.node_voters().into_iter().filter(wanted).collect();
        if nodes.is_empty() {
            return None;
        }
        for m in &self.state.view.members {
            let id = id(m);
            if nodes.contains(&id) || self.against(m) > 0 {
                continue;
            }
            if !self.nodes.contains(&id) {
                return Some(Step::AddLearner(id));
            }
            if self.is_close(id) {
                nodes.insert(id);
            }
        }
        if let Some(step) = self.set_voters(self.with_witness(nodes)) {
            return Some(step);
        }
        let there = self.witness_there();
        let votes = |id: &u64| {
            self.voters.contains(id) || self.joint.iter().any(|voters| voters.contains(id))
        };
        let left: BTreeSet<u64> = self
            .nodes
            .iter()
            .copied()
            .filter(|id| !votes(id) && !wanted(id) && Some(*id) != there)
            .collect();
        (!left.is_empty() && self.is_decided).then_some(Step::RemoveLearners(left))
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
                return self.set_voters(self.with_witness(nodes));
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
mod tests;
