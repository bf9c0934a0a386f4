//! Where members listen, and the streams between them: Unix sockets on one machine, TCP between
//! machines. An address that begins with a slash is a socket's path, any other is `host:port`.

use crate::WITNESS;
use rustix::net::sockopt;
use serde::{Deserialize, Serialize};
use std::io::{Error, ErrorKind, Result};
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// Where the parts of the node in one slot listen.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Place {
    /// Slot.
    pub slot: u8,
    /// Its member.
    pub member: String,
    /// Its ccache, in the terms of the fabric.
    pub fabric: String,
}

impl Place {
    /// That of the node in `slot`, or of the witness, of a cluster on one machine with this state folder.
    pub fn local(state: &str, slot: u8) -> Place {
        let folder = folder(slot);
        Place {
            slot,
            member: format!("{state}/{folder}/member.sock"),
            fabric: format!("{state}/{folder}/fabric.sock"),
        }
    }
}

/// The name of a node's folder, or the witness's, in its cluster's state folder.
pub fn folder(slot: u8) -> String {
    if slot == WITNESS { "witness".to_owned() } else { format!("node-{slot}") }
}

/// A stream between two members.
pub trait Wire: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Wire for T {}

/// Either kind of it.
pub type Stream = Box<dyn Wire>;

/// A caller that is silent for this long is asked whether it is there, and after as long again, three times.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// A caller that has not said who it is after this is sent away.
const GREETING: Duration = Duration::from_secs(2);

/// Whether the address is a Unix socket's path.
pub fn is_path(address: &str) -> bool {
    address.starts_with('/')
}

/// Calls a member. Between machines the cluster's `token` is said first.
pub async fn dial(address: &str, token: u64) -> Result<Stream> {
    if is_path(address) {
        return Ok(Box::new(UnixStream::connect(address).await?));
    }
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&token.to_le_bytes()).await?;
    Ok(Box::new(stream))
}

/// Where one member is called.
pub enum Listener {
    /// By processes of this user.
    Unix(UnixListener, u32),
    /// By whoever knows this token.
    Tcp(TcpListener, u64),
}

/// A caller that may still be a stranger.
pub enum Caller {
    /// On this machine.
    Unix(UnixStream, u32),
    /// On any.
    Tcp(TcpStream, u64),
}

impl Listener {
    /// From a listening socket for `address`. Must be called in a runtime.
    pub fn new(fd: OwnedFd, address: &str, owner: u32, token: u64) -> Result<Listener> {
        if is_path(address) {
            let listener = std::os::unix::net::UnixListener::from(fd);
            listener.set_nonblocking(true)?;
            return Ok(Listener::Unix(UnixListener::from_std(listener)?, owner));
        }
        let listener = std::net::TcpListener::from(fd);
        listener.set_nonblocking(true)?;
        Ok(Listener::Tcp(TcpListener::from_std(listener)?, token))
    }

    /// The next caller.
    pub async fn accept(&self) -> Result<Caller> {
        Ok(match self {
            Listener::Unix(l, owner) => Caller::Unix(l.accept().await?.0, *owner),
            Listener::Tcp(l, token) => Caller::Tcp(l.accept().await?.0, *token),
        })
    }
}

impl Caller {
    /// Its stream, if it is one of ours.
    pub async fn greet(self) -> Result<Stream> {
        let stranger = || Error::from(ErrorKind::PermissionDenied);
        match self {
            Caller::Unix(stream, owner) => {
                if stream.peer_cred()?.uid() != owner {
                    return Err(stranger());
                }
                Ok(Box::new(stream))
            }
            Caller::Tcp(mut stream, token) => {
                stream.set_nodelay(true)?;
                // A host that is gone without a word must not keep its place among the callers for ever.
                sockopt::set_socket_keepalive(&stream, true)?;
                sockopt::set_tcp_keepidle(&stream, KEEPALIVE)?;
                sockopt::set_tcp_keepintvl(&stream, KEEPALIVE)?;
                sockopt::set_tcp_keepcnt(&stream, 3)?;
                let said = tokio::time::timeout(GREETING, stream.read_u64_le())
                    .await
                    .map_err(|_| Error::from(ErrorKind::TimedOut))??;
                if said != token {
                    return Err(stranger());
                }
                Ok(Box::new(stream))
            }
        }
    }
}
