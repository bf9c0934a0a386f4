//! What every server's main loop does: decode, handle, encode, many calls at once.

use crate::Answer;
use crate::errno::{self, Errno};
use crate::once::{Asked, Client, Record};
use clustix_pd::channel::{Call, Server, Task, serve};
use clustix_pd::exec;
use clustix_pd::fault::{self, Operation};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// Calls that a server works on at once.
pub const TASKS: usize = 16;
/// How often a server looks whether it is still called from the processor it runs on, ns.
const LOOK: u64 = 500_000_000;

/// Serves for ever: `handler` for each request on every channel, beside the tasks in `others`; on the
/// processor of whoever calls.
pub fn run<Q, R, H>(server: &Server, handler: H, others: Vec<Task<'_>>)
where
    Q: DeserializeOwned,
    R: Serialize,
    H: AsyncFn(&Call, Q) -> Answer<R>,
{
    let handler = &handler;
    let mut tasks: Vec<Task<'_>> = others;
    for _ in 0..TASKS {
        tasks.push(Box::pin(serve(server, async |call: &Call| {
            let answer = match postcard::from_bytes::<Q>(&call.request) {
                Ok(request) => handler(call, request).await,
                Err(_) => Err(errno::EINVAL),
            };
            (0, encode(&answer))
        })));
    }
    server.follow_callers();
    tasks.push(Box::pin(async {
        loop {
            let due = exec::now_ns() + LOOK;
            exec::sleep_until(due).await;
            server.ran_late(exec::now_ns().saturating_sub(due));
            server.look_for_callers();
        }
    }));
    exec::run(tasks);
}

/// As [`run`], of a server whose clients repeat requests: the answers of `here`'s (node and incarnation) are
/// recorded in `set`. EPERM for a number of a client that has none.
pub fn run_once<Q, R, H>(
    server: &Server,
    set: u16,
    here: (u8, u64),
    handler: H,
    others: Vec<Task<'_>>,
) where
    Q: DeserializeOwned + Debug,
    R: Serialize,
    H: AsyncFn(&Call, Option<&Record>, Q) -> Answer<R>,
{
    let handler = async |call: &Call, asked: Asked<Q>| {
        let record = match asked.once {
            None => None,
            Some(once) => {
                let role = server.client_role(call.channel).ok_or(errno::EPERM)?;
                let client = Client::new(here.0, here.1, &role).ok_or(errno::EPERM)?;
                Some(Record::new(set, client, once))
            }
        };
        let operation = Operation::of(&asked.request);
        fault::during(operation, handler(call, record.as_ref(), asked.request)).await
    };
    run(server, handler, others);
}

fn encode<R: Serialize>(answer: &Answer<R>) -> Vec<u8> {
    // An answer that cannot be encoded is the server's fault: EIO.
    postcard::to_allocvec(answer)
        .or_else(|_| postcard::to_allocvec(&Err::<(), Errno>(errno::EIO)))
        .unwrap_or_default()
}
