//! A cluster of a few nodes over one in-process cache, with faults if asked for.
#![allow(dead_code)]

use clustix_ccache::cache::{Cache, CacheError, Transaction, Version, Waited};
use clustix_ccache::local::LocalCache;
use clustix_ccache::name::{Name, Shard};
use clustix_ccache::set::Class;
use clustix_process::Server;
use clustix_proto::errno::Errno;
use clustix_proto::object::load;
use clustix_proto::process::{
    Group, Inbox, Life, Pid, Process, Reply, Request, Response, State, Waited as Child, Which, name,
};
use std::cell::Cell;
use std::sync::Arc;

pub const NODES: u8 = 3;

/// A seeded generator (splitmix64).
pub struct Random(pub u64);

impl Random {
    /// From `SEED`, or a new one; printed, so that a failure can be run again.
    pub fn seeded() -> Random {
        let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(1, |d| d.as_nanos() as u64)
        });
        println!("SEED={seed}");
        Random(seed)
    }
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

/// How often, in percent, a transaction fails though it could be done.
#[derive(Default)]
pub struct Faults {
    pub conflict: Cell<u64>,
    /// The outcome is unknown; half of them did happen.
    pub unknown: Cell<u64>,
    pub state: Cell<u64>,
}

/// The cache as one node sees it.
#[derive(Clone)]
pub struct Node {
    pub cache: Arc<LocalCache>,
    pub node: u8,
    pub faults: std::rc::Rc<Faults>,
}

impl Node {
    fn roll(&self) -> u64 {
        let mut r = Random(self.faults.state.get());
        let n = r.next();
        self.faults.state.set(r.0);
        n
    }
    fn is_mine(&self, shard: Shard) -> bool {
        shard.0 % u16::from(NODES) == u16::from(self.node)
    }
}

impl Cache for Node {
    async fn get(&self, name: Name, out: &mut Vec<u8>) -> Result<Version, CacheError> {
        self.cache.get(name, out).await
    }
    async fn transact(&self, t: Transaction) -> Result<(), CacheError> {
        let n = self.roll();
        if n % 100 < self.faults.conflict.get() {
            return Err(CacheError::Conflict);
        }
        if n / 100 % 100 < self.faults.unknown.get() {
            if (n / 10_000).is_multiple_of(2) {
                let _ = self.cache.transact(t).await;
            }
            return Err(CacheError::Unknown);
        }
        self.cache.transact(t).await
    }
    async fn grab(&self, name: Name, out: &mut Vec<u8>) -> Result<Version, CacheError> {
        self.cache.grab(name, out).await
    }
    async fn release(&self, name: Name) -> Result<(), CacheError> {
        self.cache.release(name).await
    }
    async fn wait(&self, on: &[(Name, Version)], d: Option<u64>) -> Result<Waited, CacheError> {
        self.cache.wait(on, d).await
    }
    fn local_shard(&self, _: Class, near: Option<Shard>) -> Shard {
        near.filter(|s| self.is_mine(*s)).unwrap_or(Shard(u16::from(self.node)))
    }
    fn node(&self) -> u8 {
        self.node
    }
    async fn list(
        &self,
        set: u16,
        after: Option<Name>,
    ) -> Result<Vec<(Name, Version)>, CacheError> {
        let mut after = after;
        loop {
            let page = self.cache.list(set, after).await?;
            let Some((last, _)) = page.last() else { return Ok(Vec::new()) };
            after = Some(*last);
            let mine: Vec<_> = page.into_iter().filter(|(n, _)| self.is_mine(n.shard())).collect();
            if !mine.is_empty() {
                return Ok(mine);
            }
        }
    }
}

pub struct Cluster {
    pub cache: Arc<LocalCache>,
    pub faults: std::rc::Rc<Faults>,
    pub servers: Vec<Server<Node>>,
    pub nodes: Vec<Node>,
}

pub const INCARNATION: u64 = 5;
/// Every node's personality.
#[allow(dead_code, reason = "not every file of tests needs it")]
pub const LIFE: Life = Life { incarnation: INCARNATION, start: 1 };

impl Cluster {
    pub async fn new() -> Cluster {
        let cache = Arc::new(LocalCache::new());
        let faults = std::rc::Rc::<Faults>::default();
        let nodes: Vec<Node> = (0..NODES)
            .map(|node| Node { cache: cache.clone(), node, faults: faults.clone() })
            .collect();
        let init = postcard::to_allocvec(&Process::init(0)).unwrap();
        cache.put(name::process(1), init).await.unwrap();
        let servers = nodes.iter().map(|n| Server::new(n.clone(), INCARNATION)).collect();
        Cluster { cache, faults, servers, nodes }
    }

    pub async fn ask(&self, node: u8, request: Request) -> Response {
        self.servers[usize::from(node)].handle(true, request).await
    }

    pub async fn spawn(&self, node: u8) -> Pid {
        self.spawn_as(node, 0).await
    }

    pub async fn spawn_as(&self, node: u8, uid: u32) -> Pid {
        let request = Request::Spawn {
            uid,
            gid: uid,
            groups: vec![],
            command: b"sh".to_vec(),
            tty: None,
            start: None,
            personality: 1,
        };
        match self.ask(node, request).await.unwrap() {
            Reply::Pid(pid) => pid,
            r => panic!("{r:?}"),
        }
    }

    pub async fn fork(&self, parent: Pid) -> Pid {
        let node = self.process(parent).await.unwrap().node;
        match self.ask(node, Request::Fork { parent, exit_signal: 17, request: 0 }).await.unwrap() {
            Reply::Pid(pid) => pid,
            r => panic!("{r:?}"),
        }
    }

    pub async fn exit(&self, pid: Pid, status: i32) {
        let node = self.process(pid).await.unwrap().node;
        let request = Request::Exit { pid, status, verdict: None, own_us: (3, 4) };
        self.ask(node, request).await.unwrap();
    }

    pub async fn wait(
        &self,
        parent: Pid,
        which: Which,
        options: u32,
    ) -> Result<Option<Child>, Errno> {
        let node = if parent == 1 { 0 } else { self.process(parent).await.unwrap().node };
        let request = Request::Wait { parent, which, options, keep: false, request: 0 };
        match self.ask(node, request).await? {
            Reply::Waited(w) => Ok(w),
            r => panic!("{r:?}"),
        }
    }

    pub async fn process(&self, pid: Pid) -> Option<Process> {
        load(&self.cache, name::process(pid)).await.unwrap().0
    }

    pub async fn group(&self, pgid: Pid) -> Option<Group> {
        load(&self.cache, name::group(pgid)).await.unwrap().0
    }

    pub async fn inbox(&self, node: u8) -> Inbox {
        load(&self.cache, name::inbox(node)).await.unwrap().0.unwrap_or_default()
    }

    pub async fn pending(&self, pid: Pid, signal: u8) -> bool {
        self.process(pid).await.unwrap().pending & 1 << (signal - 1) != 0
    }

    pub async fn take_all(&self, pid: Pid) {
        let node = self.process(pid).await.unwrap().node;
        self.ask(node, Request::Take { pid, signals: u64::MAX }).await.unwrap();
    }

    /// Every process in the cluster.
    pub async fn all(&self) -> Vec<Process> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let page = self.cache.list(clustix_ccache::set::PROCESS, after).await.unwrap();
            let Some((last, _)) = page.last() else { return all };
            after = Some(*last);
            for (n, _) in page {
                all.extend(load::<_, Process>(&self.cache, n).await.unwrap().0);
            }
        }
    }

    /// What must hold at any time: links between parents and children, groups and members.
    pub async fn check(&self) {
        let all = self.all().await;
        let find = |pid: Pid| all.iter().find(|p| p.pid == pid);
        let mut members = std::collections::BTreeMap::<Pid, Vec<Pid>>::new();
        for p in &all {
            for c in &p.children {
                let c =
                    find(*c).unwrap_or_else(|| panic!("{} lists a child {c} that is gone", p.pid));
                assert_eq!(c.ppid, p.pid, "child {}", c.pid);
            }
            if p.ppid > 1 {
                let parent = find(p.ppid).unwrap_or_else(|| panic!("{} has no parent", p.pid));
                assert!(parent.children.contains(&p.pid), "{} is unknown to its parent", p.pid);
                assert!(!matches!(parent.state, State::Zombie(_)), "parent {} is dead", p.ppid);
            } else if p.pid != 1 && matches!(p.state, State::Zombie(_)) {
                assert!(p.claimed, "init did not reap {}", p.pid);
            }
            if matches!(p.state, State::Zombie(_)) {
                assert!(p.children.is_empty() && p.pending == 0);
            }
            if p.pid != 1 {
                members.entry(p.pgid).or_default().push(p.pid);
            }
            for i in &p.infos {
                assert!(p.pending & 1 << (i.signal - 1) != 0, "info of a signal not pending");
            }
            assert_eq!(p.pending.count_ones() as usize, p.infos.len(), "pid {}", p.pid);
        }
        let mut after = None;
        loop {
            let page = self.cache.list(clustix_ccache::set::GROUP, after).await.unwrap();
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            for (n, _) in page {
                let pgid = n.id() as Pid;
                let mut g = self.group(pgid).await.unwrap();
                let mut expected = members.remove(&pgid).unwrap_or_default();
                g.members.sort_unstable();
                expected.sort_unstable();
                assert_eq!(g.members, expected, "members of group {pgid}");
                for m in &g.members {
                    assert_eq!(find(*m).unwrap().sid, g.sid, "session of {m}");
                }
            }
        }
        assert!(members.is_empty(), "groups without an object: {members:?}");
    }
}
