//! Three members in one process, over real Unix sockets, with the test in ccache's place.

use clustix_ccache::lease::Timing;
use clustix_ccache::request::MemberEvent;
use clustix_ccache::view::View;
use clustix_member::address::{Listener, Place, folder, is_path};
use clustix_member::{Config, RAFT_BYTES, Start, WITNESS, run};
use clustix_pd::Region;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("clx-member-{name}-{}", std::process::id()));
        for slot in (0..4).chain([WITNESS]) {
            std::fs::create_dir_all(dir.join(folder(slot))).unwrap();
        }
        Dir(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One member in a thread of its own.
struct Node {
    config: Config,
    events: mpsc::Sender<MemberEvent>,
    views: mpsc::Receiver<View>,
    region: Region,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<Option<String>>>,
}

impl Node {
    fn start(dir: &Path, slot: u8, incarnation: u64, start: Start) -> Node {
        let config = Config {
            slot,
            incarnation,
            places: (0..4)
                .chain([WITNESS])
                .map(|s| Place::local(dir.to_str().unwrap(), s))
                .collect(),
            token: 0,
            start,
            timing: Timing::default(),
        };
        Node::with_region(config, Region::anonymous(RAFT_BYTES).unwrap())
    }

    fn with_region(config: Config, region: Region) -> Node {
        let (events, for_member) = mpsc::channel(16);
        let (to_ccache, views) = mpsc::channel(64);
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let path = config.address(config.slot).to_owned();
        let listener: OwnedFd = if is_path(&path) {
            let _ = std::fs::remove_file(&path);
            std::os::unix::net::UnixListener::bind(&path).unwrap().into()
        } else {
            std::net::TcpListener::bind(&path).unwrap().into()
        };
        let (c, r) = (config.clone(), region.clone());
        let thread = std::thread::spawn(move || {
            let runtime: Runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let ended = runtime.block_on(async move {
                let owner = rustix::process::getuid().as_raw();
                let listener = Listener::new(listener, &path, owner, c.token).unwrap();
                tokio::select! {
                    e = run(c, listener, r, for_member, to_ccache) => Some(e.unwrap_err().to_string()),
                    _ = stopped => None,
                }
            });
            // As at a kill: nothing is said to anybody.
            runtime.shutdown_background();
            ended
        });
        Node { config, events, views, region, stop: Some(stop), thread: Some(thread) }
    }

    fn kill(&mut self) -> Option<String> {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        self.thread.take().and_then(|t| t.join().unwrap())
    }

    /// The first view, from now on, for which `f` holds; every one must follow the one before.
    fn view(&mut self, what: &str, f: impl Fn(&View) -> bool) -> View {
        let until = Instant::now() + Duration::from_secs(15);
        let mut last = 0;
        loop {
            match self.views.try_recv() {
                Ok(v) => {
                    assert!(v.well_formed());
                    assert!(last == 0 || v.epoch == last + 1, "{} after {last}", v.epoch);
                    last = v.epoch;
                    if f(&v) {
                        return v;
                    }
                }
                Err(mpsc::error::TryRecvError::Empty) => {
                    assert!(Instant::now() < until, "node {}: no {what}", self.config.slot);
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(e) => panic!("node {}: no {what}: {e}", self.config.slot),
            }
        }
    }

    fn suspect(&self, slot: u8, incarnation: u64) {
        self.events.blocking_send(MemberEvent::Suspect { slot, incarnation }).unwrap();
    }
}

fn first(dir: &Path, n: u8) -> Vec<Node> {
    let all: Vec<(u8, u64)> = (0..n).map(|s| (s, 1)).collect();
    all.iter().map(|(s, i)| Node::start(dir, *s, *i, Start::First(all.clone()))).collect()
}

fn slots(v: &View) -> Vec<u8> {
    v.slots().iter().collect()
}

#[test]
fn every_node_is_lost_and_comes_back() {
    let dir = Dir::new("cycle");
    let mut nodes = first(&dir.0, 3);
    for n in &mut nodes {
        let v = n.view("first view", |_| true);
        assert_eq!((v.epoch, slots(&v)), (1, vec![0, 1, 2]));
    }
    // Whichever of them leads, it dies once.
    for victim in 0..3u8 {
        let old = nodes[usize::from(victim)].config.incarnation;
        let killed = Instant::now();
        assert_eq!(nodes[usize::from(victim)].kill(), None);
        for n in nodes.iter().filter(|n| n.config.slot != victim) {
            n.suspect(victim, old);
        }
        let mut epoch = 0;
        for n in nodes.iter_mut().filter(|n| n.config.slot != victim) {
            let v = n.view("view without it", |v| v.member(victim).is_none());
            assert!(epoch == 0 || epoch == v.epoch);
            epoch = v.epoch;
        }
        let took = killed.elapsed();
        println!("node {victim}: new view {} ms after the death", took.as_millis());
        assert!(took < Duration::from_secs(5), "{took:?}");

        let joining = Instant::now();
        nodes[usize::from(victim)] = Node::start(&dir.0, victim, old + 1, Start::Join);
        let within = |v: &View| v.member(victim).is_some_and(|m| m.incarnation == old + 1);
        let mut whole = None;
        for n in &mut nodes {
            let v = n.view("view with it again", within);
            assert_eq!(slots(&v), [0, 1, 2]);
            assert_eq!(v.survival().rebuilding, 1024);
            whole = Some(v);
        }
        println!("node {victim}: joined {} ms after its start", joining.elapsed().as_millis());
        // Each primary says which copies are complete.
        let v = whole.unwrap();
        for n in nodes.iter().filter(|n| n.config.slot != victim) {
            let here = |s: &u16| v.shards[usize::from(*s)].primary == Some(n.config.slot);
            let shards: Vec<u16> = (0..1024).filter(here).collect();
            let rebuilt = MemberEvent::Rebuilt { slot: victim, epoch: v.epoch, shards };
            n.events.blocking_send(rebuilt).unwrap();
        }
        for n in &mut nodes {
            n.view("view with all copies", |v| v.survival().can_lose_a_node());
        }
    }
    for n in &mut nodes {
        n.kill();
    }
}

#[test]
fn a_member_restarted_in_its_node_goes_on_where_it_was() {
    let dir = Dir::new("restart");
    let mut nodes = first(&dir.0, 3);
    for n in &mut nodes {
        n.view("first view", |_| true);
    }
    for node in &mut nodes {
        assert_eq!(node.kill(), None);
        *node = Node::with_region(node.config.clone(), node.region.clone());
        let v = node.view("the view it had", |_| true);
        assert_eq!((v.epoch, slots(&v)), (1, vec![0, 1, 2]));
    }
    // They still decide.
    nodes[0].kill();
    nodes[1].suspect(0, 1);
    nodes[2].suspect(0, 1);
    for n in &mut nodes[1..] {
        n.view("view without node 0", |v| v.member(0).is_none());
        n.kill();
    }
}

#[test]
fn one_suspicion_that_is_withdrawn_evicts_nobody_and_the_evicted_hears_of_it() {
    let dir = Dir::new("evict");
    let mut nodes = first(&dir.0, 3);
    for n in &mut nodes {
        n.view("first view", |_| true);
    }
    nodes[1].suspect(2, 1);
    let trust = MemberEvent::Trust { slot: 2, incarnation: 1 };
    std::thread::sleep(Duration::from_millis(100));
    nodes[1].events.blocking_send(trust).unwrap();
    std::thread::sleep(Duration::from_millis(700));
    assert!(nodes[0].views.try_recv().is_err(), "a view without cause");
    // Now both others do; it lives, and must learn that it is out.
    nodes[0].suspect(2, 1);
    nodes[1].suspect(2, 1);
    for n in &mut nodes[..2] {
        n.view("view without node 2", |v| v.member(2).is_none());
    }
    let evicted = nodes[2].thread.take().unwrap().join().unwrap().unwrap();
    assert!(evicted.contains("is no member of view 2"), "{evicted}");
    nodes[0].kill();
    nodes[1].kill();
}

#[test]
fn a_cluster_grows_from_one_node() {
    let dir = Dir::new("grow");
    let mut nodes = first(&dir.0, 1);
    let v = nodes[0].view("first view", |_| true);
    assert_eq!(slots(&v), [0]);
    for slot in 1..4u8 {
        nodes.push(Node::start(&dir.0, slot, 7, Start::Join));
        for n in &mut nodes {
            let v = n.view("view with the newcomer", |v| v.member(slot).is_some());
            assert_eq!(v.members.len(), usize::from(slot) + 1);
        }
    }
    // A node that starts again before anybody missed it.
    nodes[2].kill();
    nodes[2] = Node::start(&dir.0, 2, 8, Start::Join);
    for n in &mut nodes {
        n.view("view with its new incarnation", |v| {
            v.member(2).is_some_and(|m| m.incarnation == 8)
        });
    }
    // It dies while its wish to join is still remembered: that must not bring it back.
    nodes[2].kill();
    for k in [0, 1, 3] {
        nodes[k].suspect(2, 8);
    }
    for k in [0, 1, 3] {
        nodes[k].view("view without it", |v| v.member(2).is_none());
    }
    std::thread::sleep(Duration::from_millis(500));
    for k in [0, 1, 3] {
        assert!(nodes[k].views.try_recv().is_err(), "the dead came back");
    }
    for n in &mut nodes {
        n.kill();
    }
}

#[test]
fn one_of_two_nodes_goes_on_with_a_witness() {
    let dir = Dir::new("witness");
    let mut nodes = first(&dir.0, 2);
    for n in &mut nodes {
        n.view("first view", |_| true);
    }
    let mut witness = Node::start(&dir.0, WITNESS, 5, Start::Join);
    for n in &mut nodes {
        let v = n.view("view with the witness", |v| v.witness.is_some());
        assert!(v.witness == Some(5) && v.survival().can_lose_a_node());
    }
    let revoked = |n: &Node, v: &View| {
        n.events.blocking_send(MemberEvent::Revoked { epoch: v.epoch }).unwrap();
    };
    // Whichever of them leads, it dies once; so does the other.
    for victim in [0u8, 1, 0] {
        let other = usize::from(1 - victim);
        let old = nodes[usize::from(victim)].config.incarnation;
        nodes[usize::from(victim)].kill();
        nodes[other].suspect(victim, old);
        let v = nodes[other].view("view without it", |v| v.member(victim).is_none());
        assert_eq!(slots(&v), [1 - victim]);
        revoked(&nodes[other], &v);
        nodes[usize::from(victim)] = Node::start(&dir.0, victim, old + 1, Start::Join);
        let within = |v: &View| v.member(victim).is_some();
        let v = nodes[other].view("view with it again", within);
        nodes[usize::from(victim)].view("view with itself", within);
        for n in &nodes {
            revoked(n, &v);
        }
        let shards = (0..1024).collect();
        let rebuilt = MemberEvent::Rebuilt { slot: victim, epoch: v.epoch, shards };
        nodes[other].events.blocking_send(rebuilt).unwrap();
        for n in &mut nodes {
            n.view("view with all copies", |v| v.survival().can_lose_a_node());
        }
    }
    // Without the witness none can be lost; with the next one, again.
    witness.kill();
    for n in &mut nodes {
        let v = n.view("view without the witness", |v| v.witness.is_none());
        assert!(!v.survival().votes);
    }
    witness = Node::start(&dir.0, WITNESS, 6, Start::Join);
    for n in &mut nodes {
        n.view("view with another witness", |v| v.witness == Some(6));
    }
    nodes[0].kill();
    let old = nodes[0].config.incarnation;
    nodes[1].suspect(0, old);
    nodes[1].view("view without node 0", |v| v.member(0).is_none());
    nodes[1].kill();
    witness.kill();
}

#[test]
fn of_two_nodes_one_decides_nothing() {
    let dir = Dir::new("two");
    let mut nodes = first(&dir.0, 2);
    for n in &mut nodes {
        n.view("first view", |_| true);
    }
    nodes[1].kill();
    nodes[0].suspect(1, 1);
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(nodes[0].views.try_recv().is_err(), "half of a cluster decided something");
    nodes[0].kill();
}

/// Over TCP, as between machines: each node is started alone and knows where the others would be.
#[test]
fn founders_wait_for_each_other_and_whoever_comes_back_joins() {
    const TOKEN: u64 = 0x5eed;
    let free = || {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap().to_string()
    };
    let places: Vec<Place> = (1..4)
        .map(|slot| Place { slot, member: free(), fabric: format!("10.0.0.{slot}:7471") })
        .collect();
    let start = |slot: u8, incarnation: u64, token: u64| {
        let config = Config {
            slot,
            incarnation,
            places: places.clone(),
            token,
            start: Start::Found(vec![1, 2, 3]),
            timing: Timing::default(),
        };
        Node::with_region(config, Region::anonymous(RAFT_BYTES).unwrap())
    };
    let mut one = start(1, 100, TOKEN);
    // One that was there and started again before the cluster was; and one of another cluster.
    let mut gone = start(3, 300, TOKEN);
    std::thread::sleep(Duration::from_millis(150));
    gone.kill();
    std::thread::sleep(Duration::from_millis(500));
    let mut two = start(2, 200, TOKEN);
    let mut stranger = start(3, 301, TOKEN + 1);
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(one.views.try_recv().is_err(), "a cluster without one of its founders");
    stranger.kill();
    let mut three = start(3, 302, TOKEN);
    for n in [&mut one, &mut two, &mut three] {
        let v = n.view("first view", |_| true);
        let members: Vec<(u8, u64)> = v.members.iter().map(|m| (m.slot, m.incarnation)).collect();
        assert_eq!((v.epoch, members), (1, vec![(1, 100), (2, 200), (3, 302)]));
        assert_eq!(v.members[1].path, "10.0.0.2:7471");
    }
    // The one that founds dies; its next start finds the cluster, and founds no other.
    one.kill();
    two.suspect(1, 100);
    three.suspect(1, 100);
    for n in [&mut two, &mut three] {
        n.view("view without it", |v| v.member(1).is_none());
    }
    let mut one = start(1, 101, TOKEN);
    for n in [&mut one, &mut two, &mut three] {
        let v = n.view("view with it", |v| v.member(1).is_some_and(|m| m.incarnation == 101));
        assert_eq!(slots(&v), [1, 2, 3]);
        n.kill();
    }
}
