//! The protection domain `member`: a [`crate::node`] between its ccache's ring and the others'
//! sockets.

use crate::address::{Listener, is_path};
use crate::node::{Config, Ended, run};
use clustix_ccache::cache::CacheError;
use clustix_ccache::client::CacheClient;
use clustix_ccache::view::View;
use clustix_pd::{Boot, Region, exec, metrics, sandbox};
use std::os::fd::OwnedFd;
use tokio::sync::mpsc;

/// Ends with the reason on standard error; the node goes on only if this was no eviction.
fn fail(why: &dyn std::fmt::Display) -> ! {
    eprintln!("member: {why}");
    std::process::exit(1)
}

/// What runs in the domain. Needs the channel `ccache` (rights of membership), the region `raft`,
/// writable, the descriptor `member` (a listening socket) and [`Config`] as arguments.
pub fn main(mut boot: Boot) -> ! {
    let config: Config = match postcard::from_bytes(&boot.args) {
        Ok(c) => c,
        Err(_) => fail(&"malformed configuration"),
    };
    let (cache, region) = match (CacheClient::new(&boot), boot.region("raft")) {
        (Ok(c), Ok(r)) => (c, r),
        (Err(e), _) | (_, Err(e)) => fail(&e),
    };
    let listener = match boot.descriptor("member") {
        Ok(fd) => fd,
        Err(e) => fail(&e),
    };
    // The sandbox does not let it be asked for later.
    let owner = rustix::process::getuid().as_raw();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(r) => r,
        Err(e) => fail(&e),
    };
    // A first view waits for every member; one whose ccache is not there yet does not answer.
    if let Err(e) = exec::block_on(cache.status()) {
        fail(&format_args!("ccache: {e}"));
    }
    let (events, for_member) = mpsc::channel(256);
    let (views, to_install) = mpsc::channel::<View>(64);
    // The ring is waited for with futexes, raft's sockets with epoll: a thread each.
    let ring = cache.clone();
    std::thread::spawn(move || listen(&ring, &events));
    std::thread::spawn(move || install(&cache, to_install));
    let address = config.address(config.slot).to_owned();
    let beyond = if is_path(&address) { None } else { Some("tcp") };
    if let Err(e) = boot.enter_sandbox(beyond) {
        fail(&e);
    }
    let ended = runtime.block_on(async {
        match Listener::new(listener, &address, owner, config.token) {
            Ok(listener) => match run(config, listener, region, for_member, views).await {
                Err(e) => e,
                Ok(never) => match never {},
            },
            Err(e) => Ended::Start(e),
        }
    });
    if let Ended::Evicted { .. } = ended {
        eprintln!("member: {ended}");
        // ccache has been told and ends the node, this process with it, as soon as it has given up its memory.
        for _ in 0..60 {
            metrics::beat();
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
    }
    fail(&ended)
}

/// Hands ccache's events on.
fn listen(cache: &CacheClient, events: &mpsc::Sender<clustix_ccache::request::MemberEvent>) {
    loop {
        match exec::block_on(cache.next_event()) {
            Ok(event) => {
                if events.blocking_send(event).is_err() {
                    return;
                }
            }
            Err(CacheError::Busy | CacheError::NoQuorum) => {}
            Err(e) => fail(&format_args!("ccache: {e}")),
        }
    }
}

/// Gives committed views to ccache, in order.
fn install(cache: &CacheClient, mut views: mpsc::Receiver<View>) {
    while let Some(view) = views.blocking_recv() {
        let epoch = view.epoch;
        if let Err(e) = exec::block_on(cache.install_view(view)) {
            fail(&format_args!("ccache refused view {epoch}: {e}"));
        }
    }
}

/// Runs a witness: a member without a ccache, that votes where the nodes are even in number. `fd` listens at
/// its address; descriptors 0 and 1 are closed. It ends only when it cannot go on, and says why.
///
/// Log and vote are in this process's memory: another process is another incarnation.
pub fn witness(config: Config, fd: OwnedFd) -> Ended {
    let owner = rustix::process::getuid().as_raw();
    let region = match Region::anonymous(crate::RAFT_BYTES) {
        Ok(region) => region,
        Err(e) => return Ended::Start(e),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return Ended::Start(e),
    };
    // Nothing is told by a ccache, nor to one.
    let (_events, none) = mpsc::channel(1);
    let (views, _) = mpsc::channel(1);
    let address = config.address(config.slot).to_owned();
    let role = if is_path(&address) { "member" } else { "member-tcp" };
    if let Err(e) = sandbox::enter(role, true) {
        return Ended::Start(std::io::Error::other(e));
    }
    runtime.block_on(async {
        match Listener::new(fd, &address, owner, config.token) {
            Ok(listener) => match run(config, listener, region, none, views).await {
                Err(e) => e,
                Ok(never) => match never {},
            },
            Err(e) => Ended::Start(e),
        }
    })
}
