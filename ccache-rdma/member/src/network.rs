//! Remote calls between members: one frame out, one frame back. A frame is a 32-bit length and that
//! many bytes of `postcard`.

use crate::TypeConfig;
use crate::address::{Stream, dial};
use crate::decide::Findings;
use clustix_ccache::view::{Member, View};
use openraft::BasicNode;
use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{Error, ErrorKind};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longest frame, bytes.
const MAX_FRAME: u32 = 1 << 20;
/// A try to reach a member that did not answer is repeated after this.
const BACKOFF: Duration = Duration::from_millis(50);

/// A call.
#[derive(Debug, Serialize, Deserialize)]
pub enum Call {
    /// Raft's.
    Append(AppendEntriesRequest<TypeConfig>),
    /// Raft's.
    Vote(VoteRequest<u64>),
    /// Raft's.
    Snapshot(InstallSnapshotRequest<TypeConfig>),
    /// What the caller has found out about the others: all of it.
    Report(Findings),
    /// Copies that are complete.
    Rebuilt {
        /// Slot that holds them.
        slot: u8,
        /// Epoch in which they were copied.
        epoch: u64,
        /// Shard numbers.
        shards: Vec<u16>,
    },
    /// Somebody asks that a complete copy of shards be their primary.
    Rehome {
        /// Epoch of the view that this was checked against.
        epoch: u64,
        /// Slot that holds the copies.
        to: u8,
        /// Shard numbers.
        shards: Vec<u16>,
    },
    /// The caller wants to be a member.
    Join(Member),
    /// What is your view, and are you ready?
    Status,
    /// Do you wait for a cluster to be founded, and know of none?
    Found,
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Raft's.
    Append(AppendEntriesResponse<u64>),
    /// Raft's.
    Vote(VoteResponse<u64>),
    /// Raft's.
    Snapshot(InstallSnapshotResponse<u64>),
    /// Taken note of.
    Noted,
    /// Its raft id and latest view.
    Status(u64, Box<View>),
    /// Its raft id: it is there and knows of no cluster.
    Waits(u64),
    /// Not the member that the call was for, or it could not do it.
    Refused,
}

/// A call with its addresses.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// Raft id of the caller.
    pub from: u64,
    /// Raft id of the member it is for; 0: whoever listens.
    pub to: u64,
    /// The call.
    pub call: Call,
}

/// Sends one frame.
pub async fn send<T: Serialize>(stream: &mut Stream, message: &T) -> std::io::Result<()> {
    let mut frame = vec![0; 4];
    frame = postcard::to_extend(message, frame).map_err(|_| Error::from(ErrorKind::InvalidData))?;
    let len = u32::try_from(frame.len() - 4).unwrap_or(u32::MAX);
    if len > MAX_FRAME {
        return Err(ErrorKind::InvalidData.into());
    }
    frame[..4].copy_from_slice(&len.to_le_bytes());
    stream.write_all(&frame).await
}

/// Receives one frame.
pub async fn receive<T: DeserializeOwned>(stream: &mut Stream) -> std::io::Result<T> {
    let mut len = [0; 4];
    stream.read_exact(&mut len).await?;
    let len = u32::from_le_bytes(len);
    if len > MAX_FRAME {
        return Err(ErrorKind::InvalidData.into());
    }
    // The buffer grows with what comes, not with what was announced.
    let mut bytes = Vec::new();
    stream.take(u64::from(len)).read_to_end(&mut bytes).await?;
    if bytes.len() != len as usize {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    postcard::from_bytes(&bytes).map_err(|_| ErrorKind::InvalidData.into())
}

/// One call on a connection of its own.
pub async fn call_once(
    address: &str,
    token: u64,
    envelope: &Envelope,
    bound: Duration,
) -> std::io::Result<Answer> {
    let call = async {
        let mut stream = dial(address, token).await?;
        send(&mut stream, envelope).await?;
        receive(&mut stream).await
    };
    tokio::time::timeout(bound, call).await.map_err(|_| Error::from(ErrorKind::TimedOut))?
}

/// Makes connections for raft.
pub struct Factory {
    /// This member's raft id.
    pub me: u64,
    /// What members on other machines are told first.
    pub token: u64,
}

/// A connection to one member, made when it is needed.
pub struct Peer {
    me: u64,
    token: u64,
    target: u64,
    address: String,
    stream: Option<Stream>,
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        let Factory { me, token } = *self;
        Peer { me, token, target, address: node.addr.clone(), stream: None }
    }
}

impl Peer {
    async fn call(&mut self, call: Call, option: &RPCOption) -> std::io::Result<Answer> {
        let envelope = Envelope { from: self.me, to: self.target, call };
        // Taken out while in use: a connection that failed, or was given up in the middle of a
        // frame, is not used again.
        let held = self.stream.take();
        let (address, token) = (&self.address, self.token);
        let exchange = async {
            let mut stream = match held {
                Some(s) => s,
                None => dial(address, token).await?,
            };
            send(&mut stream, &envelope).await?;
            let answer: Answer = receive(&mut stream).await?;
            Ok::<_, Error>((stream, answer))
        };
        let (stream, answer) = tokio::time::timeout(option.hard_ttl(), exchange)
            .await
            .map_err(|_| Error::from(ErrorKind::TimedOut))??;
        self.stream = Some(stream);
        Ok(answer)
    }
}

fn failed<E: std::error::Error>(
    result: std::io::Result<Answer>,
) -> RPCError<u64, BasicNode, RaftError<u64, E>> {
    match result {
        Err(e) if e.kind() == ErrorKind::TimedOut => RPCError::Network(NetworkError::new(&e)),
        Err(e) => RPCError::Unreachable(Unreachable::new(&e)),
        Ok(_) => {
            RPCError::Unreachable(Unreachable::new(&Error::from(ErrorKind::ConnectionRefused)))
        }
    }
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        match self.call(Call::Append(rpc), &option).await {
            Ok(Answer::Append(a)) => Ok(a),
            other => Err(failed(other)),
        }
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<
        InstallSnapshotResponse<u64>,
        RPCError<u64, BasicNode, RaftError<u64, InstallSnapshotError>>,
    > {
        match self.call(Call::Snapshot(rpc), &option).await {
            Ok(Answer::Snapshot(a)) => Ok(a),
            other => Err(failed(other)),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        match self.call(Call::Vote(rpc), &option).await {
            Ok(Answer::Vote(a)) => Ok(a),
            other => Err(failed(other)),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}
