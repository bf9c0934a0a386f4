//! One member at work: raft, and the socket that others call.

use crate::address::{Listener, Place, Stream};
use crate::command::State;
use crate::governor::{Governor, Told};
use crate::network::{Answer, Call, Envelope, Factory, receive, send};
use crate::store::{Machine, Store};
use crate::{MAX_INCARNATION, TypeConfig, WITNESS, raft_id};
use clustix_ccache::lease::Timing;
use clustix_ccache::request::MemberEvent;
use clustix_ccache::view::{Member, View};
use clustix_pd::Region;
use openraft::{BasicNode, Raft, SnapshotPolicy};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;

/// How this node came to the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Start {
    /// It is one of the first members: these slots and incarnations, the same list on each.
    First(Vec<(u8, u64)>),
    /// It joins a cluster that runs, through any other member.
    Join,
    /// It joins a cluster that runs; if there is none, the nodes in these slots found one, once all
    /// of them are there.
    Found(Vec<u8>),
}

/// What a member must know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// Slot.
    pub slot: u8,
    /// Start of the kernel process, at least 1; higher at each start of this slot.
    pub incarnation: u64,
    /// Where the nodes that there may be listen.
    pub places: Vec<Place>,
    /// What members on different machines know each other by.
    pub token: u64,
    /// How it came to be.
    pub start: Start,
    /// Lease times.
    pub timing: Timing,
}

impl Config {
    pub(crate) fn place(&self, slot: u8) -> Option<&Place> {
        self.places.iter().find(|p| p.slot == slot)
    }
    /// Where the member in `slot` listens; empty if there can be none.
    pub fn address(&self, slot: u8) -> &str {
        self.place(slot).map_or("", |p| &p.member)
    }
    pub(crate) fn id(&self) -> u64 {
        raft_id(self.slot, self.incarnation)
    }
    pub(crate) fn member(&self, slot: u8, incarnation: u64) -> Member {
        let path = self.place(slot).map_or_else(String::new, |p| p.fabric.clone());
        Member { slot, incarnation, path }
    }
}

/// Why a member ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The region or the socket cannot be used.
    #[error("membership cannot start: {0}")]
    Start(#[from] std::io::Error),
    /// Raft refused or stopped.
    #[error("membership stopped: {0}")]
    Raft(String),
    /// A view without this incarnation was decided.
    #[error("node {slot} (incarnation {incarnation}) is no member of view {epoch} any more")]
    Evicted {
        /// Slot.
        slot: u8,
        /// Incarnation.
        incarnation: u64,
        /// The view.
        epoch: u64,
    },
    /// Its ccache went away.
    #[error("ccache went away")]
    Alone,
}

/// Calls served at once.
const MAX_CONNECTIONS: usize = 64;
/// Pause after a connection that could not be taken, or a step that failed.
pub(crate) const AGAIN: Duration = Duration::from_millis(20);
/// The times of a member, which go with the lease: those given here for one of 250 ms, in
/// milliseconds.
pub(crate) mod times {
    /// The loop looks around this often, beside whatever happens.
    pub const TICK: u64 = 20;
    /// Raft's heartbeats, and bounds of its election time-outs.
    pub const HEARTBEAT: u64 = 40;
    pub const ELECTION_MIN: u64 = 120;
    pub const ELECTION_MAX: u64 = 200;
    /// How long after a leader's death the others grant votes again: the longest election time-out,
    /// and a little.
    pub const LEADER_LEASE: u64 = 215;
    /// Suspicions, copies and wishes are told again after this.
    pub const REPEAT: u64 = 100;
    /// A call to another member is given up after this.
    pub const CALL_BOUND: u64 = 300;
    /// A step of the leader's, or a snapshot, is given up after this; it is decided again.
    pub const STEP_BOUND: u64 = 1_000;
    /// Without a leader for this long, other members are asked what became of the cluster.
    pub const LOST: u64 = 1_000;
}

/// Runs a member until its node is evicted or something it needs goes away. `listener` is bound
/// to [`Config::address`]; `region` is the memory region `raft`; `events` come from the node's
/// ccache, `views` go there, in order; the last may be one without this node, which ends it.
pub async fn run(
    config: Config,
    listener: Listener,
    region: Region,
    events: mpsc::Receiver<MemberEvent>,
    views: mpsc::Sender<View>,
) -> Result<std::convert::Infallible, Ended> {
    let me = config.id();
    let store = Store::open(region, me)?;
    let pristine = store.pristine();
    let (committed, from_machine) = mpsc::channel(64);
    let (latest, state) = watch::channel(State::default());
    let ms = |at_default| config.timing.scaled(at_default * 1_000_000) / 1_000_000;
    let raft_config = openraft::Config {
        cluster_name: "clustix".into(),
        heartbeat_interval: ms(times::HEARTBEAT),
        election_timeout_min: ms(times::ELECTION_MIN),
        election_timeout_max: ms(times::ELECTION_MAX),
        install_snapshot_timeout: ms(times::STEP_BOUND),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(48),
        max_in_snapshot_log_to_keep: 16,
        replication_lag_threshold: 64,
        ..openraft::Config::default()
    };
    let raft_config = raft_config.validate().map_err(|e| Ended::Raft(e.to_string()))?;
    let machine = Machine::new(store.clone(), committed, latest).await;
    let raft =
        Raft::new(me, Arc::new(raft_config), Factory { me, token: config.token }, store, machine)
            .await
            .map_err(|e| Ended::Raft(e.to_string()))?;
    let (tell, told) = mpsc::channel(256);
    let server = tokio::spawn(serve(listener, raft.clone(), me, state.clone(), tell.clone()));
    let forwarder = tokio::spawn(forward(config.clone(), from_machine, views.clone()));
    if pristine
        && let Start::First(first) = &config.start
        && first.iter().map(|(slot, _)| *slot).min() == Some(config.slot)
    {
        let nodes: BTreeMap<u64, BasicNode> = first
            .iter()
            .map(|(s, i)| (raft_id(*s, *i), BasicNode::new(config.address(*s))))
            .collect();
        // Refused when an earlier process of this incarnation did it already.
        if let Err(e) = raft.initialize(nodes).await {
            tracing::debug!("initialize: {e}");
        }
    }
    let bound = Duration::from_millis(ms(times::STEP_BOUND));
    let governor = Governor::new(config, raft.clone(), state, tell, views);
    let why = governor.run(events, told, forwarder).await;
    server.abort();
    let _ = timeout(bound, raft.shutdown()).await;
    Err(why)
}

/// Hands committed views to the node's ccache, from the first on that has this incarnation in it.
async fn forward(
    config: Config,
    mut committed: mpsc::Receiver<View>,
    views: mpsc::Sender<View>,
) -> Ended {
    let mut member = false;
    while let Some(view) = committed.recv().await {
        let within = view.member(config.slot).is_some_and(|m| m.incarnation == config.incarnation);
        let epoch = view.epoch;
        if (within || member) && views.send(view).await.is_err() {
            return Ended::Alone;
        }
        if member && !within {
            let Config { slot, incarnation, .. } = config;
            return Ended::Evicted { slot, incarnation, epoch };
        }
        member = within;
    }
    Ended::Raft("the state machine ended".into())
}

async fn serve(
    listener: Listener,
    raft: Raft<TypeConfig>,
    me: u64,
    state: watch::Receiver<State>,
    tell: mpsc::Sender<Told>,
) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let Ok(caller) = listener.accept().await else {
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        let (raft, state, tell) = (raft.clone(), state.clone(), tell.clone());
        tokio::spawn(async move {
            let _permit = permit;
            if let Ok(stream) = caller.greet().await {
                connection(stream, &raft, me, &state, &tell).await;
            }
        });
    }
}

async fn connection(
    mut stream: Stream,
    raft: &Raft<TypeConfig>,
    me: u64,
    state: &watch::Receiver<State>,
    tell: &mpsc::Sender<Told>,
) {
    while let Ok(envelope) = receive::<Envelope>(&mut stream).await {
        let Envelope { from, to, call } = envelope;
        let answer = if to != 0 && to != me {
            Answer::Refused
        } else {
            answer(raft, me, state, tell, from, call).await
        };
        if send(&mut stream, &answer).await.is_err() {
            return;
        }
    }
}

async fn answer(
    raft: &Raft<TypeConfig>,
    me: u64,
    state: &watch::Receiver<State>,
    tell: &mpsc::Sender<Told>,
    from: u64,
    call: Call,
) -> Answer {
    let note = |told: Told| match tell.try_send(told) {
        Ok(()) => Answer::Noted,
        // Whoever told it says it again.
        Err(_) => Answer::Refused,
    };
    match call {
        Call::Append(rpc) => raft.append_entries(rpc).await.map_or(Answer::Refused, Answer::Append),
        Call::Vote(rpc) => raft.vote(rpc).await.map_or(Answer::Refused, Answer::Vote),
        Call::Snapshot(rpc) => {
            raft.install_snapshot(rpc).await.map_or(Answer::Refused, Answer::Snapshot)
        }
        Call::Report(findings) if findings.well_formed() => note(Told::Report { from, findings }),
        Call::Rebuilt { slot, epoch, shards } => note(Told::Rebuilt((slot, epoch, shards))),
        Call::Rehome { epoch, to, shards } => note(Told::Rehome((epoch, to, shards))),
        Call::Join(m)
            if m.slot <= WITNESS
                && m.incarnation <= MAX_INCARNATION
                && from == raft_id(m.slot, m.incarnation) =>
        {
            note(Told::Join(m))
        }
        Call::Report(_) | Call::Join(_) => Answer::Refused,
        // One that was in the log of a cluster before must not be taken for another.
        Call::Found if raft.metrics().borrow().last_log_index.is_some() => Answer::Refused,
        Call::Found => Answer::Waits(me),
        Call::Status => Answer::Status(me, Box::new(state.borrow().view.clone())),
    }
}
