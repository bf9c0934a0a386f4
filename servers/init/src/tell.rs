//! What init tells the process server: each call bounded in time, so that a server that hangs holds up nothing.

use clustix_pd::exec::{self, Either};
use clustix_pd::{Client, rpc};
use clustix_proto::once::Asked;
use clustix_proto::{Answer, process};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest that one call is waited for.
const CALL_NS: u64 = 3_000_000_000;
/// Longest that a server is asked again, for what must be done before something else; and the pause.
const URGENT_NS: u64 = 5_000_000_000;
const PAUSE_NS: u64 = 20_000_000;

/// The server that init talks to.
#[derive(Clone)]
pub(crate) struct Servers {
    pub(crate) process: Client,
}

async fn call<Q: Serialize, R: DeserializeOwned>(to: &Client, request: &Q) -> Result<R, String> {
    let until = exec::now_ns() + CALL_NS;
    match exec::select(
        rpc::<_, Answer<R>>(to, &Asked { once: None, request }),
        exec::sleep_until(until),
    )
    .await
    {
        Either::Left(Ok(Ok(reply))) => Ok(reply),
        Either::Left(Ok(Err(e))) => Err(e.to_string()),
        Either::Left(Err(e)) => Err(e.to_string()),
        Either::Right(()) => Err("no answer".to_owned()),
    }
}

async fn insist<Q: Serialize, R: DeserializeOwned>(to: &Client, request: &Q) -> Result<R, String> {
    let until = exec::now_ns() + URGENT_NS;
    loop {
        match call(to, request).await {
            Err(e) if exec::now_ns() >= until => return Err(e),
            Err(_) => exec::sleep_until(exec::now_ns() + PAUSE_NS).await,
            done => return done,
        }
    }
}

impl Servers {
    /// All incarnations of `node` up to this one are dead. Whether the server has taken note.
    pub(crate) async fn node_lost(&self, node: u8, incarnation: u64) -> bool {
        let lost = process::Request::NodeLost { node, incarnation };
        match call::<_, process::Reply>(&self.process, &lost).await {
            Ok(_) => {
                tracing::info!("incarnations of node {node} up to {incarnation} are dead");
                true
            }
            Err(e) => {
                tracing::warn!("the loss of node {node} was not taken note of: {e}");
                false
            }
        }
    }

    /// This node's personality is not started again: its programs are lost. Whether the server has taken note.
    pub(crate) async fn personality_lost(&self, incarnation: u64) -> bool {
        // The next one starts after this.
        let life = process::Life { incarnation, start: exec::now_ns() };
        let lost = process::Request::PersonalityLost { life };
        let told = insist::<_, process::Reply>(&self.process, &lost).await;
        if let Err(e) = &told {
            tracing::error!("the programs of the dead personality may still be listed: {e}");
        }
        told.is_ok()
    }
}
