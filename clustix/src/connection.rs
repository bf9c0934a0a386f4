//! A command's connection to a node's control PD.

use crate::procfs::timespec;
use crate::state::{Folder, WITNESS};
use crate::wire::{self, FrameError, Hello, Reply, Request};
use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, poll};
use serde::Serialize;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Longest that a request without a stream of its own may go unanswered.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A connection on which one request was sent.
#[derive(Debug)]
pub struct Connection {
    /// The socket.
    pub stream: UnixStream,
    /// The node at the other end.
    pub node: u8,
}

/// The connection ended before its request did: the node, or its control PD, died.
#[derive(Debug, thiserror::Error)]
#[error("node {node} went away before it had answered")]
pub struct WentAway {
    /// Which node.
    pub node: u8,
}

impl Connection {
    /// Sends `request` to node `slot`.
    ///
    /// # Errors
    /// The node cannot be reached.
    pub fn open(folder: &Folder, slot: u8, request: Request) -> Result<Connection> {
        let path = folder.control(slot);
        let mut stream = UnixStream::connect(&path)
            .with_context(|| format!("could not reach node {slot} at {}", path.display()))?;
        wire::send(&mut stream, &Hello { version: wire::VERSION, request })
            .with_context(|| format!("could not ask node {slot}"))?;
        Ok(Connection { stream, node: slot })
    }

    /// Sends a frame of the request's stream.
    ///
    /// # Errors
    /// The node went away.
    pub fn send<T: Serialize>(&mut self, message: &T) -> Result<()> {
        wire::send(&mut self.stream, message).map_err(|_| anyhow!(WentAway { node: self.node }))
    }

    /// The next frame that is not an end; `None` at [`Reply::Done`].
    ///
    /// # Errors
    /// [`Reply::Failed`], as [`wire::Failure`]; [`WentAway`]; nothing came within `patience`.
    pub fn next(&mut self, patience: Option<Duration>) -> Result<Option<Reply>> {
        if let Some(patience) = patience
            && !self.readable(patience)?
        {
            bail!(
                "node {} has not answered for {} s; see `clustix logs`",
                self.node,
                patience.as_secs()
            );
        }
        match wire::receive::<Reply>(&mut self.stream) {
            Ok(Some(Reply::Done)) => Ok(None),
            Ok(Some(Reply::Failed(failure))) => Err(anyhow!(failure)),
            Ok(Some(reply)) => Ok(Some(reply)),
            Ok(None) | Err(FrameError::Io(_)) => Err(anyhow!(WentAway { node: self.node })),
            Err(e) => Err(anyhow!(e).context(format!("node {} sent", self.node))),
        }
    }

    fn readable(&self, patience: Duration) -> Result<bool> {
        let until = Instant::now() + patience;
        loop {
            let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
            let left = until.saturating_duration_since(Instant::now());
            match poll(&mut fds, Some(&timespec(left))) {
                Ok(n) => return Ok(n > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// All frames up to the end.
    ///
    /// # Errors
    /// As [`Connection::next`].
    pub fn all(&mut self) -> Result<Vec<Reply>> {
        self.all_within(PATIENCE)
    }

    /// As [`Connection::all`]; no frame may take longer than `patience`.
    ///
    /// # Errors
    /// As [`Connection::next`].
    pub fn all_within(&mut self, patience: Duration) -> Result<Vec<Reply>> {
        let mut replies = Vec::new();
        while let Some(reply) = self.next(Some(patience))? {
            replies.push(reply);
        }
        Ok(replies)
    }
}

/// The slots to ask: `node` alone, which must run, or every one that does.
///
/// # Errors
/// The cluster or the node is not up.
pub fn candidates(folder: &Folder, node: Option<u8>) -> Result<Vec<u8>> {
    let cluster = folder.running()?;
    let live: Vec<u8> = folder.live()?.into_iter().map(|(slot, _)| slot).collect();
    if let Some(slot) = node {
        cluster.check_here(slot)?;
    }
    if let Some((_, WITNESS)) = cluster.hosts {
        bail!(
            "this host is the witness of cluster {:?}, and holds nothing: ask on a node's host",
            cluster.name
        );
    }
    match node {
        Some(slot) if !live.contains(&slot) => {
            bail!(
                "node {slot} is down; bring it back with `clustix start-node{} {slot}`",
                folder.flag()
            )
        }
        Some(slot) => Ok(vec![slot]),
        None if live.is_empty() => bail!(
            "no node of cluster {:?} runs: all were killed, and what was in memory is lost; `clustix down{}` cleans up, then `clustix up` restores the last snapshot if there is one",
            cluster.name,
            folder.flag()
        ),
        None => Ok(live),
    }
}

/// Asks a node, or any live one, a question whose answer is a list of frames; another one where the
/// first cannot answer.
///
/// # Errors
/// What the last node asked said.
pub fn ask(folder: &Folder, node: Option<u8>, request: &Request) -> Result<(u8, Vec<Reply>)> {
    let mut last = None;
    for slot in candidates(folder, node)? {
        let asked = Connection::open(folder, slot, request.clone()).and_then(|mut c| c.all());
        match asked {
            Ok(replies) => return Ok((slot, replies)),
            Err(e) if is_elsewhere(&e) => last = Some(e),
            Err(e) => return Err(e),
        }
    }
    Err(last.unwrap_or_else(|| anyhow!("no node answered")))
}

/// Asks every live node; a node that dies meanwhile is left out, and one whose control dies is asked again.
///
/// # Errors
/// A node that lives refuses, or its control dies again and again.
pub fn ask_all(
    folder: &Folder,
    node: Option<u8>,
    request: &Request,
) -> Result<Vec<(u8, Vec<Reply>)>> {
    const TRIES: u32 = 5;
    /// Between two tries.
    const AGAIN: Duration = Duration::from_millis(20);
    let mut answers = Vec::new();
    for slot in candidates(folder, node)? {
        for tried in 1..=TRIES {
            match Connection::open(folder, slot, request.clone()).and_then(|mut c| c.all()) {
                Ok(replies) => answers.push((slot, replies)),
                Err(_) if folder.process(slot)?.is_none() => {}
                // Its next one takes the connection; or the node is about to be seen as gone.
                Err(e) if tried < TRIES && is_cut(&e) => {
                    std::thread::sleep(AGAIN);
                    continue;
                }
                Err(e) => return Err(e),
            }
            break;
        }
    }
    Ok(answers)
}

/// Whether another node may do what this error says one could not.
pub fn is_elsewhere(e: &anyhow::Error) -> bool {
    e.downcast_ref::<wire::Failure>().is_some_and(|f| f.elsewhere) || is_cut(e)
}

/// Whether the connection broke.
fn is_cut(e: &anyhow::Error) -> bool {
    e.downcast_ref::<WentAway>().is_some() || e.downcast_ref::<std::io::Error>().is_some()
}
