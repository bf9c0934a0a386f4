//! The rest of a node in one process: the servers, called directly, over a cluster-cache: a LocalCache
//! unless the test has another.
#![allow(dead_code)]

use super::HostStubs;
use clustix_ccache::cache::Cache;
use clustix_ccache::local::LocalCache;
use clustix_pd::exec::{self, block_on, run};
use clustix_posix::exec::Command;
use clustix_posix::lifecycle::{Spawn, spawn};
use clustix_posix::node::Node;
use clustix_posix::services::{Services, Stubs};
use clustix_posix::watch;
use clustix_process::pipe::{self, End};
use clustix_proto::object::Draft;
use clustix_proto::posix::Stdio;
use clustix_proto::process::{Pid, Reply, Which};
use clustix_proto::vfs::{Credentials, ROOT, Request};
use clustix_proto::{console, job, memory, process, vfs};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

type Shared = Arc<LocalCache>;

/// What a node's servers stand on; clones are the same cache.
pub trait Base: Cache + Clone + Send + Sync + 'static {}
impl<C: Cache + Clone + Send + Sync + 'static> Base for C {}

pub struct Local<C: Base = Shared> {
    pub cache: C,
    process: Arc<clustix_process::Server<C>>,
    memory: clustix_memory::Server<C>,
    console: clustix_console::Server<C, Signals<C>>,
    pub stubs: HostStubs,
}

/// How the console signals processes here.
pub struct Signals<C>(Arc<clustix_process::Server<C>>);

impl<C: Base> clustix_console::Signals for Signals<C> {
    async fn kill(&self, target: process::Target, signal: u8) -> bool {
        let _ = self.0.handle(true, process::Request::Kill { sender: 0, target, signal }).await;
        true
    }
}

impl<C: Base> Services for Local<C> {
    type Cache = C;
    fn cache(&self) -> &C {
        &self.cache
    }
    async fn vfs(&self, request: &vfs::Request) -> vfs::Reply {
        clustix_vfs::handle(&self.cache, request.clone()).await
    }
    async fn process(&self, request: &process::Request) -> process::Response {
        self.process.handle(false, request.clone()).await
    }
    async fn memory(&self, request: &memory::Request) -> memory::Response {
        self.memory.handle(request.clone()).await
    }
    async fn console(&self, request: &console::Request) -> console::Response {
        self.console.handle(request.clone()).await
    }
    fn stubs(&self) -> &dyn Stubs {
        &self.stubs
    }
    fn life(&self) -> process::Life {
        process::Life { incarnation: 1, start: 1 }
    }
}

impl<C: Base> Local<C> {
    /// The servers over whatever stands in `cache`.
    pub fn over(cache: C) -> Local<C> {
        let process = Arc::new(clustix_process::Server::new(cache.clone(), 1));
        Local {
            memory: clustix_memory::Server::new(cache.clone()),
            console: clustix_console::Server::new(cache.clone(), Signals(process.clone())),
            process,
            cache,
            stubs: HostStubs::new(),
        }
    }
}

/// A node of its own, with a file system.
pub fn node() -> Arc<Node<Local>> {
    let node = start(Arc::new(LocalCache::new()));
    populate(&node);
    node
}

/// A personality over whatever stands in `cache`, and the threads beside its workers.
pub fn start<C: Base>(cache: C) -> Arc<Node<Local<C>>> {
    let node = Node::new(Local::over(cache));
    node.open();
    let deaths = node.clone();
    std::thread::spawn(move || watch::deaths(&deaths));
    let beside = node.clone();
    std::thread::spawn(move || {
        run([
            Box::pin(watch::inbox(beside.clone())) as clustix_pd::channel::Task<'_>,
            Box::pin(watch::timers(beside)),
        ])
    });
    node
}

/// A file system of /bin/busybox under its usual names, /dev and /tmp.
pub fn populate<C: Base>(node: &Node<Local<C>>) {
    block_on(async {
        clustix_vfs::mkfs(node.services.cache()).await.unwrap();
        for dir in ["/bin", "/tmp", "/dev"] {
            make(node, Request::Mkdir { cred: root(), dir: ROOT, path: dir.into(), mode: 0o777 })
                .await;
        }
        let busybox = std::fs::read("/bin/busybox").unwrap();
        put(node, "/bin/busybox", &busybox, 0o755).await;
        for name in ["sh", "echo", "cat", "true", "false", "sleep", "ls", "wc", "kill", "seq"] {
            let (target, path) = (b"busybox".to_vec(), format!("/bin/{name}").into_bytes());
            make(node, Request::Symlink { cred: root(), target, dir: ROOT, path }).await;
        }
        let null = Request::Mknod {
            cred: root(),
            dir: ROOT,
            path: b"/dev/null".to_vec(),
            mode: 0o20666,
            rdev: 1 << 32 | 3,
        };
        make(node, null).await;
    });
}

fn root() -> Credentials {
    Credentials::ROOT
}

async fn make<C: Base>(node: &Node<Local<C>>, request: Request) -> u64 {
    match node.services.vfs(&request).await {
        Ok(ino) => ino,
        Err(clustix_proto::errno::EEXIST) => 0,
        Err(e) => panic!("{request:?}: {e}"),
    }
}

/// Writes a file.
pub async fn put<C: Base>(node: &Node<Local<C>>, path: &str, bytes: &[u8], mode: u32) {
    let request =
        Request::Create { cred: root(), dir: ROOT, path: path.into(), mode, exclusive: false };
    let ino = make(node, request).await;
    let cache = node.services.cache();
    for (i, chunk) in bytes.chunks(64 * 1024).enumerate() {
        let at = (i * 64 * 1024) as u64;
        clustix_vfs::write(cache, &root(), ino, at, chunk, false).await.unwrap();
    }
}

/// A program that runs, and the ends of its pipes.
pub struct Program<C: Base = Shared> {
    pub node: Arc<Node<Local<C>>>,
    pub pid: Pid,
    pub pipes: [u64; 3],
}

/// What a program left behind.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub status: i32,
    pub out: String,
    pub err: String,
}

/// Three pipes of a job's, of whose ends the test is the other side.
async fn pipes<C: Base>(cache: &C) -> [u64; 3] {
    static JOBS: AtomicU64 = AtomicU64::new(0);
    let job = JOBS.fetch_add(1, Ordering::Relaxed);
    let mut d = Draft::repeatable(cache);
    for (fd, end) in (0..).zip([End::Write, End::Read, End::Read]) {
        d.store(process::name::pipe(job::pipe(job, fd)), &pipe::of_job(end)).unwrap();
    }
    assert!(d.commit().await.unwrap());
    [0, 1, 2].map(|fd| job::pipe(job, fd))
}

/// Starts a program as root in `/`, with pipes.
pub fn launch<C: Base>(node: &Arc<Node<Local<C>>>, argv: &[&str]) -> Program<C> {
    let pipes = block_on(pipes(node.services.cache()));
    let pid = launch_with(node, argv, Stdio::Pipes(pipes));
    Program { node: node.clone(), pid, pipes }
}

/// Starts a program as root in `/`.
pub fn launch_with<C: Base>(node: &Arc<Node<Local<C>>>, argv: &[&str], stdio: Stdio) -> Pid {
    let argv: Vec<Vec<u8>> = argv.iter().map(|a| a.as_bytes().to_vec()).collect();
    let command = Command {
        path: argv[0].clone(),
        argv,
        env: vec![b"PATH=/bin".to_vec(), b"HOME=/".to_vec()],
    };
    block_on(spawn(
        node,
        Spawn { command, cwd: b"/".to_vec(), credentials: root(), stdio, start: None },
    ))
    .unwrap()
}

impl<C: Base> Program<C> {
    /// Gives it input; the end of input if `last`.
    pub fn input(&self, bytes: &[u8], last: bool) {
        block_on(async {
            let cache = self.node.services.cache();
            let mut rest = bytes;
            while !rest.is_empty() {
                match pipe::write(cache, self.pipes[0], rest).await.unwrap() {
                    pipe::Step::Done(n) => rest = &rest[n..],
                    pipe::Step::WouldBlock(name, version) => {
                        cache.wait(&[(name, version)], None).await.unwrap();
                    }
                }
            }
            if last {
                pipe::leave(cache, self.pipes[0], End::Write).await.unwrap();
            }
        })
    }

    async fn drain(&self, i: usize) -> String {
        let cache = self.node.services.cache();
        let mut out = Vec::new();
        loop {
            match pipe::read(cache, self.pipes[i], 65536, &mut out).await.unwrap() {
                pipe::Step::Done(0) => break,
                pipe::Step::Done(_) => {}
                pipe::Step::WouldBlock(name, version) => {
                    cache.wait(&[(name, version)], None).await.unwrap();
                }
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    }

    /// Sends it a signal, as the operator.
    pub fn kill(&self, signal: u8) {
        let target = process::Target::Process(self.pid);
        let request = process::Request::Kill { sender: 0, target, signal };
        block_on(self.node.services.process.handle(true, request)).unwrap();
    }

    /// Waits for its end.
    pub fn wait(&self) -> i32 {
        self.wait_until(u64::MAX).unwrap()
    }

    /// Waits for its end until `deadline` (`CLOCK_MONOTONIC`, ns).
    pub fn wait_until(&self, deadline: u64) -> Option<i32> {
        block_on(async {
            let cache = self.node.services.cache();
            let name = process::name::process(self.pid);
            loop {
                let version = cache.get(name, &mut Vec::new()).await.unwrap();
                let request = process::Request::Wait {
                    parent: 1,
                    which: Which::Pid(self.pid),
                    options: 0,
                    keep: false,
                    request: 0,
                };
                match self.node.services.process.handle(true, request).await.unwrap() {
                    Reply::Waited(Some(w)) => return Some(w.status),
                    Reply::Waited(None) if exec::now_ns() >= deadline => return None,
                    Reply::Waited(None) => {}
                    other => panic!("{other:?}"),
                }
                cache.wait(&[(name, version)], Some(deadline)).await.unwrap();
            }
        })
    }

    /// Its output until it closes it, then its end.
    pub fn outcome(&self) -> Outcome {
        let (out, err) = block_on(async { (self.drain(1).await, self.drain(2).await) });
        Outcome { status: self.wait(), out, err }
    }
}

/// Runs a program to its end without input.
pub fn complete<C: Base>(node: &Arc<Node<Local<C>>>, argv: &[&str]) -> Outcome {
    let p = launch(node, argv);
    p.input(b"", true);
    p.outcome()
}
