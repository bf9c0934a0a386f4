//! Clusters of whole ccaches in one process, for tests: a thread each, real rings, real arenas, real
//! slabs, real links; the test is their membership.
//!
//! What a node's regions may be used for is as in the product: its slab is writable to its client,
//! which stands for the personality, and read-only to its ccache.

pub mod faulty;

use clustix_ccache::arena::Arena;
use clustix_ccache::client::CacheClient;
use clustix_ccache::layout::RegionId;
use clustix_ccache::lease::Timing;
use clustix_ccache::name::{Name, Shard};
use clustix_ccache::network::shm::ShmNetwork;
use clustix_ccache::request::{Dumped, MemberEvent, Rights};
use clustix_ccache::service::{Config, Parts, Service};
use clustix_ccache::set::Class;
use clustix_ccache::slab::{self, Slab};
use clustix_ccache::view::{Member, View};
use clustix_pd::region::Mapping;
use clustix_pd::{Client, Region, channel, exec};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Leases long enough that a machine busy with other tests breaks none of them.
const TIMING: Timing =
    Timing { lease_ns: 1_000_000_000, renewal_ns: 100_000_000, drift_ns: 5_000_000 };
/// How long [`Cluster::govern`] waits for what it was told to.
const BOUND: Duration = Duration::from_secs(20);
/// Between two looks of [`Cluster::govern`] when nothing is told to membership.
const LOOK: Duration = Duration::from_millis(20);

/// One node: its ccache's thread, and a client of it.
struct Node {
    incarnation: u64,
    client: CacheClient,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<String>>,
}

/// A cluster, and what its membership knows.
pub struct Cluster {
    dir: TempDir,
    nodes: BTreeMap<u8, Node>,
    /// The view in force.
    pub view: View,
    events: mpsc::Receiver<(u8, u64, MemberEvent)>,
    sender: mpsc::Sender<(u8, u64, MemberEvent)>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let slots: Vec<u8> = self.nodes.keys().copied().collect();
        for s in slots {
            self.kill(s);
        }
    }
}

impl Cluster {
    /// `n` nodes, in their first view.
    pub fn new(n: u8) -> Cluster {
        let (sender, events) = mpsc::channel();
        let dir = tempfile::tempdir().unwrap();
        let mut c = Cluster { dir, nodes: BTreeMap::new(), view: View::default(), events, sender };
        let members: Vec<Member> = (0..n).map(|s| c.start(s, 1)).collect();
        c.install(View::first(&members));
        c
    }

    /// Starts a node; a view with it is the caller's to install.
    pub fn start(&mut self, slot: u8, incarnation: u64) -> Member {
        let path = self.dir.path().join(format!("{slot}.sock"));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let arena = Arena::anonymous().unwrap();
        let (slab, read_only) = slabs();
        let stop = Arc::new(AtomicBool::new(false));
        let (give, take) = mpsc::channel();
        let (a, flag) = (arena.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let (ring, server) = channel::pair(channel::WINDOW).unwrap();
            // Membership has a ring of its own: its bells are not the client's.
            let region = Region::anonymous(channel::channel_len(channel::WINDOW)).unwrap();
            let fd = region.as_fd().unwrap();
            let end = || Mapping::new(fd.as_fd(), region.len(), true).unwrap();
            server.adopt_for_test(end(), channel::WINDOW).unwrap();
            give.send((ring, Client::new(end(), channel::WINDOW).unwrap())).unwrap();
            let config =
                Config { timing: TIMING, first_incarnation: incarnation == 1, ..Config::default() };
            let owner = rustix::process::getuid().as_raw();
            let network =
                ShmNetwork::new(slot, incarnation, owner, Some(listener.into()), a.clone());
            let parts = Parts {
                slot,
                incarnation,
                config,
                arena: a,
                slab: Some(read_only),
                network: Box::new(network),
                server,
            };
            Service::new(parts, Rights(u64::MAX)).run(|| flag.load(Ordering::Relaxed))
        });
        let (ring, member) = take.recv().unwrap();
        let class = |c| Some(arena.region(RegionId::Class(c)).clone());
        let client = CacheClient::from_parts(
            ring,
            slot,
            Some(arena.region(RegionId::Control).clone()),
            Class::ALL.map(class),
            Some(slab),
        );
        let source = CacheClient::from_parts(member, slot, None, Class::ALL.map(|_| None), None);
        let events = self.sender.clone();
        std::thread::spawn(move || {
            while let Ok(e) = exec::block_on(source.next_event()) {
                if events.send((slot, incarnation, e)).is_err() {
                    return;
                }
            }
        });
        self.nodes.insert(slot, Node { incarnation, client, stop, thread: Some(thread) });
        Member { slot, incarnation, path: path.to_str().unwrap().into() }
    }

    /// Puts a view in force on all nodes.
    pub fn install(&mut self, view: View) {
        self.view = view;
        for n in self.nodes.values() {
            exec::block_on(n.client.install_view(self.view.clone())).unwrap();
        }
    }

    /// Ends a node.
    pub fn kill(&mut self, slot: u8) {
        let Some(n) = self.nodes.get(&slot) else { return };
        n.stop.store(true, Ordering::Relaxed);
        self.ended(slot);
    }

    /// Waits for a node to end, and answers why it did.
    pub fn ended(&mut self, slot: u8) -> String {
        let thread = self.nodes.remove(&slot).and_then(|n| n.thread);
        thread.map(|t| t.join().unwrap()).unwrap_or_default()
    }

    /// The client of a node, which may write its slab.
    pub fn client(&self, slot: u8) -> &CacheClient {
        &self.nodes[&slot].client
    }

    /// Handles events as membership would, until `done`.
    pub fn govern(&mut self, what: &str, done: impl Fn(&Cluster) -> bool) {
        let until = Instant::now() + BOUND;
        while !done(self) {
            assert!(Instant::now() < until, "no {what}: {:?}", self.view.survival());
            let Ok((from, by, event)) = self.events.recv_timeout(LOOK) else { continue };
            if self.nodes.get(&from).is_none_or(|n| n.incarnation != by) {
                continue;
            }
            match event {
                MemberEvent::Suspect { slot, incarnation } => {
                    let lives = self.nodes.get(&slot).is_some_and(|n| n.incarnation == incarnation);
                    assert!(!lives, "{from} suspects {slot}, which lives");
                    if self.view.member(slot).is_some_and(|m| m.incarnation == incarnation) {
                        self.install(self.view.without(slot));
                    }
                }
                MemberEvent::Rebuilt { slot, shards, .. } => {
                    let shards: Vec<Shard> = shards.into_iter().map(Shard).collect();
                    if let Some(next) = self.view.rebuilt(slot, &shards) {
                        self.install(next);
                    }
                }
                MemberEvent::Rehome { epoch, to, shards } => {
                    let shards: Vec<Shard> = shards.into_iter().map(Shard).collect();
                    if let Some(next) = self.view.rehome(to, &shards)
                        && epoch == self.view.epoch
                    {
                        self.install(next);
                    }
                }
                MemberEvent::Trust { .. }
                | MemberEvent::Ended { .. }
                | MemberEvent::Revoked { .. }
                | MemberEvent::LeaseLost => {}
            }
        }
    }
}

/// One empty slab, as the domain that writes it has it mapped and as its readers have.
fn slabs() -> (Slab, Slab) {
    let region = Region::anonymous(slab::BYTES).unwrap();
    let fd = region.as_fd().unwrap().as_fd().try_clone_to_owned().unwrap();
    let read_only = Region::map(fd, slab::BYTES, false, false).unwrap();
    (Slab::new(region).unwrap(), Slab::new(read_only).unwrap())
}

/// A whole dump of the objects whose primary is the client's node: the pages, each of which is as
/// much as one restore takes.
pub fn dump(client: &CacheClient, everything: bool) -> Vec<Vec<Dumped>> {
    let mut pages = Vec::new();
    let mut after: Option<Name> = None;
    loop {
        let page = exec::block_on(client.dump(everything, after)).unwrap();
        let Some(last) = page.last() else { return pages };
        after = Some(last.name);
        pages.push(page);
    }
}
