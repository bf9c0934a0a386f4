//! What is asked of the cluster-cache and the kernel: status, lists, counters, dump and restore.

use super::Node;
use super::session::{errno, failed, kept, send};
use crate::wire::{self, Failure, Metric, NodeStatus, Object, Pd, Reply, Restored, Status};
use clustix_ccache::cache::{
    Cache, CacheError, Expect, MAX_BYTES, MAX_OBJECTS, Transaction, Write,
};
use clustix_ccache::name::{Name, SHARDS};
use clustix_ccache::request::{self, Dumped};
use clustix_ccache::set;
use clustix_pd::exec;
use clustix_pd::wire::{Exit, PdInfo};
use std::os::unix::net::UnixStream;

/// Between two looks while a cluster comes up; nothing signals that a view was installed.
const LOOK_NS: u64 = 5_000_000;
/// Longest that shards may take to get another primary, and between two times of asking for it.
const REHOME_NS: u64 = 10_000_000_000;
const REHOME_LOOK_NS: u64 = 100_000_000;

fn cache_failed(what: impl std::fmt::Display, e: CacheError) -> Failure {
    Failure {
        message: format!("{what}: {e}"),
        elsewhere: matches!(e, CacheError::NoQuorum | CacheError::Busy | CacheError::Gone),
        exit: 1,
    }
}

/// How the cluster stands.
pub(crate) async fn status(node: &Node) -> Result<Status, Failure> {
    let s = node
        .cache
        .status()
        .await
        .map_err(|e| cache_failed(format!("node {}: no status", node.slot), e))?;
    Ok(shown(node, &s))
}

fn shown(node: &Node, s: &request::NodeStatus) -> Status {
    Status {
        cluster: node.cluster.clone(),
        node: node.slot,
        epoch: s.epoch,
        serving: s.epoch > 0 && s.lease && s.settled,
        nodes: s
            .members
            .iter()
            .zip(&s.primaries)
            .map(|((slot, incarnation), primaries)| NodeStatus {
                node: *slot,
                incarnation: *incarnation,
                primaries: *primaries,
            })
            .collect(),
        shards: SHARDS,
        rebuilding: u16::try_from(s.survival.rebuilding).unwrap_or(u16::MAX),
        lost: u16::try_from(s.survival.lost).unwrap_or(u16::MAX),
        copies: s.survival.copies,
        votes: s.survival.votes,
        can_lose_a_node: s.survival.can_lose_a_node(),
        witness: s.witness,
    }
}

/// Makes a node the primary of shards: asks until it is.
pub(crate) fn rehome(node: &Node, to: u8, first: u16, last: u16) -> Result<(), Failure> {
    let shards: Vec<u16> = (first..=last.min(SHARDS - 1)).collect();
    let until = exec::now_ns() + REHOME_NS;
    exec::block_on(async {
        loop {
            let what = || format!("shards {first} to {last} could not move to node {to}");
            let (lacking, moving) =
                node.cache.rehome(to, shards.clone()).await.map_err(|e| cache_failed(what(), e))?;
            if let Some(shard) = lacking.first() {
                return Err(failed(format!(
                    "node {to} has no complete copy of {} of these shards (the first is {shard}); \
                     `clustix status` says what is being rebuilt",
                    lacking.len()
                )));
            }
            if moving == 0 {
                return Ok(());
            }
            let now = exec::now_ns();
            if now >= until {
                return Err(failed(format!("{}: {moving} have another primary still", what())));
            }
            exec::sleep_until(now + REHOME_LOOK_NS).await;
        }
    })
}

/// Answers once this node serves in a view of `nodes` nodes: the cache, the root directory and PID 1
/// can be read, and the personality answers.
pub(crate) fn await_serving(
    node: &Node,
    nodes: u8,
    witness: Option<u64>,
    millis: u32,
) -> Result<(), Failure> {
    let until = exec::now_ns() + u64::from(millis.min(600_000)) * 1_000_000;
    exec::block_on(async {
        loop {
            let why = match serving(node, nodes, witness).await {
                Ok(()) => return Ok(()),
                Err(why) => why,
            };
            let now = exec::now_ns();
            if now >= until {
                return Err(failed(format!("node {} does not serve: {why}", node.slot)));
            }
            exec::sleep_until(until.min(now + LOOK_NS)).await;
        }
    })
}

async fn serving(node: &Node, nodes: u8, witness: Option<u64>) -> Result<(), String> {
    let s = node.cache.status().await.map_err(|e| format!("its cluster-cache: {e}"))?;
    let me = s.members.contains(&(node.slot, node.incarnation));
    if !me {
        return Err("it is not in a view yet".to_owned());
    }
    if s.members.len() < usize::from(nodes) {
        return Err(format!("the view has {} of {nodes} nodes", s.members.len()));
    }
    if witness.is_some() && s.witness != witness {
        return Err("the view has no witness yet".to_owned());
    }
    if !s.lease || !s.settled {
        return Err("its view is not settled".to_owned());
    }
    clustix_vfs::stat(&node.cache, clustix_proto::vfs::ROOT)
        .await
        .map_err(|e| format!("the root directory: {e}"))?;
    let pid1 = clustix_proto::process::name::process(1);
    let (first, _) =
        clustix_proto::object::load::<_, clustix_proto::process::Process>(&node.cache, pid1)
            .await
            .map_err(|e| format!("process 1: {e}"))?;
    if first.is_none() {
        return Err("there is no process 1 yet".to_owned());
    }
    super::ask::<_, u32>(&node.posix, &clustix_proto::posix::Request::Thaw)
        .await
        .map(drop)
        .map_err(|e| format!("its personality: {e}"))
}

fn shown_object(o: request::ObjectInfo) -> Object {
    let mut sharers = Vec::new();
    for slot in 0..16u8 {
        if o.sharers.contains(slot) {
            sharers.push(slot);
        }
    }
    Object {
        name: o.name,
        size: o.len,
        version: o.version.0,
        holder: o.holder,
        sharers,
        replicas: o.replicas,
        data: None,
    }
}

/// Every object whose primary is here, in pages.
pub(crate) fn list(node: &Node, stream: &mut UnixStream, set: Option<u16>) -> Result<(), Failure> {
    if set.is_some_and(|s| set::descriptor(s).is_none()) {
        return Err(failed("there is no such set"));
    }
    let mut after: Option<Name> = None;
    loop {
        let page = exec::block_on(node.cache.objects(set, after))
            .map_err(|e| cache_failed(format!("node {}: could not list objects", node.slot), e))?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.name);
        send(stream, &Reply::Objects(page.into_iter().map(shown_object).collect()))?;
    }
}

/// The node's protection domains.
pub(crate) fn pds(node: &Node, stream: &mut UnixStream) -> Result<(), Failure> {
    let list = node
        .kernel
        .pd_list()
        .map_err(|e| failed(format!("node {}: the kernel refused the list: {e}", node.slot)))?;
    let now = exec::now_ns();
    let end = |(at, exit): &(u64, Exit)| (exit.to_string(), now.saturating_sub(*at) / 1_000_000);
    let pd = |p: PdInfo| Pd {
        role: p.role,
        node: node.slot,
        pid: p.pid,
        restarts: p.restarts,
        ends: p.ends.iter().map(end).collect(),
    };
    send(stream, &Reply::Pds(list.into_iter().map(pd).collect()))
}

/// The node's counters.
pub(crate) fn metrics(node: &Node, stream: &mut UnixStream) -> Result<(), Failure> {
    let list = node
        .kernel
        .metrics_read()
        .map_err(|e| failed(format!("node {}: the kernel refused the counters: {e}", node.slot)))?;
    let metrics: Vec<Metric> =
        list.into_iter().map(|(pd, name, value)| Metric { name, pd, value }).collect();
    for page in metrics.chunks(4096) {
        send(stream, &Reply::Metrics(page.to_vec()))?;
    }
    Ok(())
}

/// Objects that outlive programs and whose primary is here, with their payloads.
pub(crate) fn dump(node: &Node, stream: &mut UnixStream) -> Result<(), Failure> {
    let mut after: Option<Name> = None;
    loop {
        let page = exec::block_on(node.cache.dump(false, after))
            .map_err(|e| cache_failed(format!("node {}: could not read objects", node.slot), e))?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.name);
        let object = |o: Dumped| Object {
            name: o.name,
            size: o.data.len() as u32,
            version: o.version.0,
            holder: None,
            sharers: Vec::new(),
            replicas: Vec::new(),
            data: Some(o.data),
        };
        send(stream, &Reply::Objects(page.into_iter().map(object).collect()))?;
    }
}

/// Creates objects of a snapshot.
pub(crate) fn restore(node: &Node, stream: &mut UnixStream) -> Result<(), Failure> {
    let Some(_pass) = node.gate.enter() else {
        return Err(failed("the cluster is stopping"));
    };
    loop {
        let writes: Vec<(Name, Option<Vec<u8>>)> = match wire::receive::<Restored>(stream) {
            Ok(Some(Restored::Objects(objects))) => {
                objects.into_iter().map(|(name, data)| (name, Some(data))).collect()
            }
            Ok(Some(Restored::Remove(names))) => {
                names.into_iter().map(|name| (name, None)).collect()
            }
            Ok(Some(Restored::End)) => return Ok(()),
            Ok(None) => return Err(failed("the snapshot ended early")),
            Err(e) => return Err(failed(format!("the snapshot could not be read: {e}"))),
        };
        if let Some((name, _)) = writes.iter().find(|(n, _)| !kept(n.set())) {
            return Err(failed(format!("object {name} is of no set that outlives programs")));
        }
        exec::block_on(put_all(node, writes)).map_err(|e| match e {
            CacheError::NoSpace => failed(
                "the cluster has too little memory for the snapshot; give `up` a larger --memory",
            ),
            e => errno("could not restore", e.into()),
        })?;
    }
}

/// Writes objects over whatever is there (a new cluster has made its own root directory already).
async fn put_all(node: &Node, writes: Vec<(Name, Option<Vec<u8>>)>) -> Result<(), CacheError> {
    let mut transaction = Transaction::new();
    let mut bytes = 0;
    for (name, data) in writes {
        let length = data.as_ref().map_or(0, Vec::len);
        if transaction.writes.len() == MAX_OBJECTS || bytes + length > MAX_BYTES {
            node.cache.transact(std::mem::take(&mut transaction)).await?;
            bytes = 0;
        }
        bytes += length;
        transaction.writes.push(Write { name, expect: Expect::Any, data });
    }
    if transaction.writes.is_empty() {
        return Ok(());
    }
    node.cache.transact(transaction).await
}
