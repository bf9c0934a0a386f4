//! The loop that decides: what this node's ccache and the other members say, what is told to them, and, where this
//! member leads, the steps of [`Situation::decide`].

use crate::command::{Command, State};
use crate::decide::{Findings, Report, Situation, Step};
use crate::network::{Answer, Call, Envelope, call_once};
use crate::node::{Config, Ended, Start, times};
use crate::{TypeConfig, WITNESS, node_of, raft_id};
use clustix_ccache::request::MemberEvent;
use clustix_ccache::succession::Incarnation;
use clustix_ccache::view::{MAX_NODES, Member, View};
use clustix_pd::exec::now_ns;
use clustix_pd::metrics;
use openraft::{BasicNode, ChangeMembers, Raft, ServerState};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Copies to report that are kept at most.
const MAX_PENDING: usize = 4_096;

type Rebuilt = (u8, u64, Vec<u16>);
/// Epoch, whereto, which shards.
type Asked = (u64, u8, Vec<u16>);

/// What other members tell this one's loop.
pub(crate) enum Told {
    Report {
        from: u64,
        findings: Findings,
    },
    Rebuilt(Rebuilt),
    Rehome(Asked),
    Join(Member),
    Ready {
        id: u64,
        member: Member,
    },
    /// A founder waits for a cluster.
    Waits {
        slot: u8,
        id: u64,
    },
    /// Another member's view, asked for since this one hears of no leader.
    View(View),
}

/// See the module.
pub(crate) struct Governor {
    config: Config,
    raft: Raft<TypeConfig>,
    state: watch::Receiver<State>,
    tell: mpsc::Sender<Told>,
    views: mpsc::Sender<View>,
    /// As the one who founds a cluster: the incarnations that have said they wait for one.
    founders: BTreeMap<u8, (u64, u64)>,
    /// Since when this node's ccache suspects them.
    own: BTreeMap<Incarnation, u64>,
    /// Who has ended, by slot the latest, and the latest view whose gone are revoked, by this node's ccache.
    ended: BTreeMap<u8, u64>,
    revoked: u64,
    /// Others were last told of a suspicion.
    suspected: bool,
    reports: BTreeMap<u64, Report>,
    joins: Vec<(Member, u64)>,
    ready: BTreeMap<u64, Member>,
    /// Copies reported by this node's ccache, until a view shows them.
    pending: Vec<Rebuilt>,
    /// As the leader: everyone's.
    rebuilt: BTreeMap<(u8, u64), BTreeSet<u16>>,
    /// As the leader: a rehome that somebody asks for; whoever asks repeats it.
    asked: Option<Asked>,
    /// The latest view's epoch, and since when there has been no other and no unrest.
    calm: (u64, u64),
    leading_since: Option<u64>,
    /// The dead leader in whose place this member has stood.
    stood: Option<u64>,
    heard_of_leader: u64,
    repeat_at: u64,
    step: Option<JoinHandle<()>>,
}

impl Governor {
    pub(crate) fn new(
        config: Config,
        raft: Raft<TypeConfig>,
        state: watch::Receiver<State>,
        tell: mpsc::Sender<Told>,
        views: mpsc::Sender<View>,
    ) -> Governor {
        Governor {
            config,
            raft,
            state,
            tell,
            views,
            founders: BTreeMap::new(),
            own: BTreeMap::new(),
            ended: BTreeMap::new(),
            revoked: 0,
            suspected: false,
            reports: BTreeMap::new(),
            joins: Vec::new(),
            ready: BTreeMap::new(),
            pending: Vec::new(),
            rebuilt: BTreeMap::new(),
            asked: None,
            calm: (0, 0),
            leading_since: None,
            stood: None,
            heard_of_leader: now_ns(),
            repeat_at: 0,
            step: None,
        }
    }

    /// A time of [`times`] as it is with this lease, ns.
    fn time(&self, ms_at_default: u64) -> u64 {
        self.config.timing.scaled(ms_at_default * 1_000_000)
    }

    pub(crate) async fn run(
        mut self,
        mut events: mpsc::Receiver<MemberEvent>,
        mut told: mpsc::Receiver<Told>,
        mut forwarder: JoinHandle<Ended>,
    ) -> Ended {
        let mut ticks = tokio::time::interval(Duration::from_nanos(self.time(times::TICK)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            metrics::beat();
            tokio::select! {
                ended = &mut forwarder => {
                    return ended.unwrap_or_else(|e| Ended::Raft(e.to_string()));
                }
                event = events.recv() => match event {
                    Some(event) => self.event(event),
                    None => return Ended::Alone,
                },
                Some(told) = told.recv() => {
                    if let Some(ended) = self.told(told) {
                        return ended;
                    }
                }
                () = finished(&mut self.step) => self.step = None,
                Ok(()) = self.state.changed() => {}
                _ = ticks.tick() => {}
            }
            if let Err(e) = self.raft.metrics().borrow().running_state.clone() {
                return Ended::Raft(e.to_string());
            }
            self.look();
        }
    }

    fn event(&mut self, event: MemberEvent) {
        let now = now_ns();
        match event {
            MemberEvent::Suspect { slot, incarnation } => {
                self.own.entry((slot, incarnation)).or_insert(now);
                self.repeat_at = 0;
            }
            MemberEvent::Trust { slot, incarnation } => {
                self.own.remove(&(slot, incarnation));
                self.repeat_at = 0;
            }
            MemberEvent::Rebuilt { slot, epoch, shards } => {
                if self.pending.len() < MAX_PENDING {
                    self.pending.push((slot, epoch, shards));
                }
                self.repeat_at = self.repeat_at.min(now + 5_000_000);
            }
            MemberEvent::Rehome { epoch, to, shards } => {
                let leader = self.raft.metrics().borrow().current_leader;
                match leader {
                    Some(l) if l == self.config.id() => self.asked = Some((epoch, to, shards)),
                    Some(l) => drop(self.call(node_of(l).0, l, Call::Rehome { epoch, to, shards })),
                    None => {}
                }
            }
            MemberEvent::Ended { slot, incarnation } => {
                self.ended.insert(slot, incarnation);
                self.repeat_at = 0;
            }
            MemberEvent::Revoked { epoch } => {
                self.revoked = self.revoked.max(epoch);
                self.repeat_at = 0;
            }
            MemberEvent::LeaseLost => self.heard_of_leader = 0,
        }
    }

    fn told(&mut self, told: Told) -> Option<Ended> {
        let now = now_ns();
        let join_age = crate::decide::join_age(self.config.timing);
        match told {
            Told::Report { from, findings } => {
                if self.reports.len() < 4 * MAX_NODES || self.reports.contains_key(&from) {
                    self.report(now, from, findings);
                }
            }
            Told::Rebuilt((slot, epoch, shards)) => {
                if self.rebuilt.len() < MAX_PENDING {
                    self.rebuilt.entry((slot, epoch)).or_default().extend(shards);
                }
            }
            Told::Rehome(asked) => self.asked = Some(asked),
            // One of whom this member does not know where it listens could not be sent the log.
            Told::Join(m) if self.config.place(m.slot).is_none() => {}
            Told::Join(m) => {
                self.joins.retain(|(j, at)| {
                    (j.slot, j.incarnation) != (m.slot, m.incarnation)
                        && now.saturating_sub(*at) < join_age
                });
                if self.joins.len() < 2 * MAX_NODES {
                    self.joins.push((m, now));
                }
            }
            Told::Waits { slot, id } => {
                let (theirs, incarnation) = node_of(id);
                if theirs == slot {
                    self.founders.insert(slot, (incarnation, now));
                }
            }
            Told::Ready { id, member } => {
                self.ready.insert(id, member);
            }
            Told::View(theirs) => {
                let Config { slot, incarnation, .. } = self.config;
                let here = |v: &View| v.member(slot).is_some_and(|m| m.incarnation == incarnation);
                if here(&self.state.borrow().view)
                    && theirs.epoch > self.state.borrow().view.epoch
                    && theirs.well_formed()
                    && !here(&theirs)
                {
                    let epoch = theirs.epoch;
                    // It ends the node's ccache, which then ends this process too.
                    let _ = self.views.try_send(theirs);
                    return Some(Ended::Evicted { slot, incarnation, epoch });
                }
            }
        }
        None
    }

    /// Looks around: tells others what they should know and, as the leader, takes a step.
    fn look(&mut self) {
        let now = now_ns();
        let view = self.state.borrow().view.clone();
        let (leader, leads) = {
            let m = self.raft.metrics();
            let m = m.borrow();
            (m.current_leader, m.state == ServerState::Leader)
        };
        if leader.is_some() {
            self.heard_of_leader = self.heard_of_leader.max(now);
        }
        {
            let state = self.state.borrow();
            self.pending.retain(|(slot, epoch, shards)| {
                shards.iter().any(|s| state.counts(*slot, *epoch, *s))
            });
        }
        let within = |slot: u8, incarnation: u64| {
            view.member(slot).is_some_and(|m| m.incarnation == incarnation)
        };
        self.own.retain(|(slot, incarnation), _| within(*slot, *incarnation));
        self.reports.retain(|id, _| {
            let (slot, incarnation) = node_of(*id);
            within(slot, incarnation)
        });
        let findings = self.findings();
        self.report(now, self.config.id(), findings);
        if self.is_witness() {
            let wish = self.config.member(WITNESS, self.config.incarnation);
            self.told(Told::Join(wish));
        }
        if leads {
            for (slot, epoch, shards) in &self.pending {
                self.rebuilt.entry((*slot, *epoch)).or_default().extend(shards);
            }
        }
        if now >= self.repeat_at {
            self.repeat_at = now + self.time(times::REPEAT);
            self.tell_others(now, &view, leader, leads);
        }
        if let Some(leader) = leader {
            self.stand(now, &view, leader);
        }
        if leads {
            let since = *self.leading_since.get_or_insert(now);
            self.lead(now, since);
        } else {
            self.leading_since = None;
            self.rebuilt.clear();
            self.asked = None;
        }
    }

    fn is_witness(&self) -> bool {
        self.config.slot == WITNESS
    }

    fn findings(&self) -> Findings {
        Findings {
            suspects: self.own.keys().copied().collect(),
            ended: self.ended.iter().map(|(slot, incarnation)| (*slot, *incarnation)).collect(),
            revoked: self.revoked,
        }
    }

    fn report(&mut self, now: u64, from: u64, findings: Findings) {
        let report = Report::new(self.config.timing, now, findings, self.reports.get(&from));
        self.reports.insert(from, report);
    }

    /// Stands for election as soon as votes are granted again after the leader's death, if nobody
    /// with a lower slot lives: sooner than at the end of a random time-out, and alone.
    fn stand(&mut self, now: u64, view: &View, leader: u64) {
        let lease = self.time(times::LEADER_LEASE);
        let over = |at: &u64| now.saturating_sub(*at) >= lease;
        if self.stood == Some(leader) || !self.own.get(&node_of(leader)).is_some_and(over) {
            return;
        }
        let alive = |m: &&Member| !self.own.contains_key(&(m.slot, m.incarnation));
        if view.members.iter().find(alive).is_some_and(|m| m.slot == self.config.slot) {
            self.stood = Some(leader);
            let raft = self.raft.clone();
            tokio::spawn(async move {
                // Refused when another leads by now.
                let _ = raft.trigger().elect().await;
            });
        }
    }

    /// Calls another member without waiting for it.
    fn call(&self, slot: u8, to: u64, call: Call) -> JoinHandle<std::io::Result<Answer>> {
        let (address, token) = (self.config.address(slot).to_owned(), self.config.token);
        let envelope = Envelope { from: self.config.id(), to, call };
        let bound = Duration::from_nanos(self.time(times::CALL_BOUND));
        tokio::spawn(async move { call_once(&address, token, &envelope, bound).await })
    }

    fn tell_others(&mut self, now: u64, view: &View, leader: Option<u64>, leads: bool) {
        let me = self.config.slot;
        let others = || view.members.iter().filter(|m| m.slot != me);
        let findings = self.findings();
        let news = {
            let succession = &self.state.borrow().succession;
            succession.unsettled().is_some_and(|epoch| findings.revoked >= epoch)
                || findings.ended.iter().any(|e| succession.knows(e))
        };
        // Also that none is suspected any more.
        let silent = findings.suspects.is_empty() && !std::mem::take(&mut self.suspected);
        if news || !silent {
            self.suspected = !findings.suspects.is_empty();
            let witness = view.witness.filter(|_| me != WITNESS).map(|w| (WITNESS, w));
            for (slot, incarnation) in others().map(|m| (m.slot, m.incarnation)).chain(witness) {
                let to = raft_id(slot, incarnation);
                self.call(slot, to, Call::Report(findings.clone()));
            }
        }
        if let Some(leader) = leader.filter(|_| !leads) {
            for (slot, epoch, shards) in self.pending.iter().take(64) {
                let call = Call::Rebuilt { slot: *slot, epoch: *epoch, shards: shards.clone() };
                self.call(node_of(leader).0, leader, call);
            }
        }
        let here = view.member(me).is_some_and(|m| m.incarnation == self.config.incarnation);
        if !matches!(self.config.start, Start::First(_)) && !here {
            // Only the leader acts on it; which node that is, a newcomer does not know.
            let wish = self.config.member(me, self.config.incarnation);
            for place in self.config.places.iter().filter(|p| p.slot != me) {
                self.call(place.slot, 0, Call::Join(wish.clone()));
            }
            self.found(now, view);
        }
        if here && now.saturating_sub(self.heard_of_leader) > self.time(times::LOST) {
            for m in others() {
                self.ask(m.slot);
            }
        }
        if leads && view.epoch == 0 {
            self.ready.insert(self.config.id(), self.config.member(me, self.config.incarnation));
            let voters: Vec<u64> =
                self.raft.metrics().borrow().membership_config.voter_ids().collect();
            for id in voters.into_iter().filter(|id| *id != self.config.id()) {
                let (slot, incarnation) = node_of(id);
                let (asked, tell) = (self.call(slot, id, Call::Status), self.tell.clone());
                let member = self.config.member(slot, incarnation);
                tokio::spawn(async move {
                    if let Ok(Ok(Answer::Status(..))) = asked.await {
                        let _ = tell.send(Told::Ready { id, member }).await;
                    }
                });
            }
        }
    }

    /// The founder with the lowest slot initializes raft once all founders have said, within the
    /// time of a few tries, that they are there and know of no cluster. Nobody else does, and one
    /// that has heard of a cluster does not; so there is one at most. (One that dies in between is
    /// missed in the first view, which then waits for [`crate::decide::FIRST_WAIT`].)
    fn found(&mut self, now: u64, view: &View) {
        let Start::Found(founders) = &self.config.start else { return };
        let me = self.config.slot;
        let knows = self.raft.metrics().borrow().last_log_index.is_some();
        if view.epoch > 0 || knows || founders.iter().min() != Some(&me) {
            return;
        }
        let fresh = self.time(times::CALL_BOUND);
        self.founders.retain(|_, (_, at)| now.saturating_sub(*at) < fresh);
        self.founders.insert(me, (self.config.incarnation, now));
        if founders.iter().all(|s| self.founders.contains_key(s)) {
            let nodes: BTreeMap<u64, BasicNode> = founders
                .iter()
                .filter_map(|s| {
                    let (incarnation, _) = self.founders.get(s)?;
                    Some((raft_id(*s, *incarnation), BasicNode::new(self.config.address(*s))))
                })
                .collect();
            let raft = self.raft.clone();
            tokio::spawn(async move {
                if let Err(e) = raft.initialize(nodes).await {
                    tracing::debug!("initialize: {e}");
                }
            });
            return;
        }
        for slot in founders.iter().copied().filter(|s| *s != me) {
            let (asked, tell) = (self.call(slot, 0, Call::Found), self.tell.clone());
            tokio::spawn(async move {
                if let Ok(Ok(Answer::Waits(id))) = asked.await {
                    let _ = tell.send(Told::Waits { slot, id }).await;
                }
            });
        }
    }

    /// Asks a member for its view.
    fn ask(&self, slot: u8) {
        let (asked, tell) = (self.call(slot, 0, Call::Status), self.tell.clone());
        tokio::spawn(async move {
            if let Ok(Ok(Answer::Status(_, view))) = asked.await {
                let _ = tell.send(Told::View(*view)).await;
            }
        });
    }

    fn lead(&mut self, now: u64, leading_since: u64) {
        if self.step.is_some() {
            return;
        }
        let epoch = self.state.borrow().view.epoch;
        if self.calm.0 != epoch || self.calm.1 < leading_since {
            self.calm = (epoch, now);
        }
        let situation = {
            let metrics = self.raft.metrics();
            let m = metrics.borrow();
            let matched = m.replication.iter().flatten();
            let config = &m.membership_config;
            let configs = config.membership().get_joint_config().clone();
            Situation {
                now,
                me: self.config.id(),
                leading_since,
                timing: self.config.timing,
                state: self.state.borrow().clone(),
                voters: configs.last().cloned().unwrap_or_default(),
                joint: configs.iter().rev().skip(1).cloned().collect(),
                is_decided: config.log_id() <= &m.last_applied,
                nodes: config.nodes().map(|(id, _)| *id).collect(),
                matched: matched.filter_map(|(id, at)| Some((*id, at.as_ref()?.index))).collect(),
                last: m.last_log_index.unwrap_or(0),
                reports: self.reports.clone(),
                joins: self.joins.clone(),
                ready: self.ready.clone(),
                rebuilt: std::mem::take(&mut self.rebuilt),
                calm_since: self.calm.1,
                asked: self.asked.take(),
            }
        };
        if !situation.quiet() {
            self.calm.1 = now;
        }
        let Some(step) = situation.decide() else { return };
        eprintln!("member: {step}");
        let (raft, config) = (self.raft.clone(), self.config.clone());
        let bound = Duration::from_nanos(self.time(times::STEP_BOUND));
        self.step = Some(tokio::spawn(async move {
            if timeout(bound, take(&raft, &config, step)).await.is_err() {
                eprintln!("member: that took too long");
            }
        }));
    }
}

/// Ends with the step, if there is one.
async fn finished(step: &mut Option<JoinHandle<()>>) {
    match step {
        Some(step) => drop(step.await),
        None => std::future::pending().await,
    }
}

async fn take(raft: &Raft<TypeConfig>, config: &Config, step: Step) {
    let failed = match step {
        Step::Propose(command) => propose(raft, command).await,
        Step::AddLearner(id) => {
            let node = BasicNode::new(config.address(node_of(id).0));
            raft.add_learner(id, node, false).await.err().map(|e| e.to_string())
        }
        // Whoever loses its vote still gets the log, and hears from it what became of it.
        Step::SetVoters(voters) => {
            raft.change_membership(voters, true).await.err().map(|e| e.to_string())
        }
        Step::RemoveLearners(ids) => raft
            .change_membership(ChangeMembers::RemoveNodes(ids), false)
            .await
            .err()
            .map(|e| e.to_string()),
    };
    if let Some(e) = failed {
        eprintln!("member: that failed: {e}");
        // It will be decided again as soon as this has ended.
        tokio::time::sleep(crate::node::AGAIN).await;
    }
}

async fn propose(raft: &Raft<TypeConfig>, command: Command) -> Option<String> {
    raft.client_write(command).await.err().map(|e| e.to_string())
}
