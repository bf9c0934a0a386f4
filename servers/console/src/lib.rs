//! The console server: terminals that outlive the node they run on.
//!
//! 1. It keeps no state: a terminal, with what was typed and what was put out, is one object of the
//!    cluster-cache. A client attaches from any node.
//! 2. The line discipline ([`discipline`]) is Linux's n_tty as step functions; each request is one
//!    step in one transaction. Signals go to the process server after the step is committed.
//! 3. Every queue is bounded: a program's output waits for the client, keystrokes wait for the
//!    program; echo that has no place is dropped, never a keystroke.
//!
//! Called by control (keystrokes, output) and the personality (programs).

#![forbid(unsafe_code)]

pub mod ctype;
pub mod discipline;
pub mod job;
mod server;
pub mod termios;

pub use server::{Server, Signals};

use clustix_ccache::client::CacheClient;
use clustix_ccache::set;
use clustix_pd::channel::Task;
use clustix_pd::exec::{self, Either};
use clustix_pd::{Boot, BootError, Call, CallError, Client, rpc};
use clustix_proto::console::Request;
use clustix_proto::errno::{EAGAIN, EBUSY, EIO};
use clustix_proto::once::{Asked, Record};
use clustix_proto::process::{self, Target};
use clustix_proto::{once, service};

/// Signals by way of this node's process server.
struct ProcessServer(Client);

/// How long a process server that is being restarted is waited for, and the pause between tries.
const PATIENCE_NS: u64 = 2_000_000_000;
const PAUSE_NS: u64 = 20_000_000;

impl Signals for ProcessServer {
    async fn kill(&self, target: Target, signal: u8) -> bool {
        let request = process::Request::Kill { sender: 0, target, signal };
        // Sent again if this server dies meanwhile: no number would tell that repeat.
        let request = Asked { once: None, request };
        let until = exec::now_ns() + PATIENCE_NS;
        loop {
            let call = rpc::<_, process::Response>(&self.0, &request);
            match exec::select(call, exec::sleep_until(until)).await {
                Either::Left(
                    Err(CallError::Gone | CallError::Busy) | Ok(Err(EIO | EBUSY | EAGAIN)),
                ) => {
                    if exec::now_ns() >= until {
                        break;
                    }
                    exec::sleep_until(exec::now_ns() + PAUSE_NS).await;
                }
                Either::Left(Err(CallError::TooLarge) | Ok(_)) => return true,
                Either::Left(Err(_)) | Either::Right(()) => break,
            }
        }
        tracing::warn!("signal {signal} to {target:?} waits: the process server does not answer");
        false
    }
}

/// The protection domain `console`. Returns only when it cannot start.
pub fn main(boot: Boot) -> Result<(), BootError> {
    let cache = CacheClient::new(&boot)?;
    let process = ProcessServer(boot.channel("process")?);
    boot.enter_sandbox(None)?;
    let here = (boot.node, boot.incarnation);
    let server = Server::new(cache.clone(), process);
    let handler = async |_: &Call, record: Option<&Record>, request: Request| {
        server.handle_once(record, request).await
    };
    let others: Vec<Task<'_>> =
        vec![Box::pin(server.send_late()), Box::pin(once::tend(&cache, set::TTYANSWER))];
    service::run_once(&boot.server, set::TTYANSWER, here, handler, others);
    Ok(())
}
