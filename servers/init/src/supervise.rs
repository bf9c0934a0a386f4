//! The shell around [`crate::restart`]: the kernel's events in, starts out.

use crate::record::{MOST_VERDICTS, Verdict, verdicts};
use crate::restart::{Decision, Policy, WINDOW_NS};
use clustix_ccache::cache::Cache;
use clustix_ccache::client::CacheClient;
use clustix_pd::{Boot, Client, Kernel, KernelError, PdEvent, exec, rpc};
use clustix_proto::Errno;
use clustix_proto::object::{Attempts, Draft};
use clustix_proto::process;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// The domain whose death is the death of its programs.
const PERSONALITY: &str = "posix";
/// Longest that the process server is asked to end a dead personality's programs.
const TELL_NS: u64 = 5_000_000_000;
const TELL_PAUSE_NS: u64 = 20_000_000;

/// `CLOCK_REALTIME`, seconds.
pub(crate) fn wall_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// Deaths that the kernel told of. Its call blocks, so a thread makes it.
pub(crate) struct Deaths {
    inner: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    events: Mutex<VecDeque<PdEvent>>,
    bell: AtomicU32,
    closed: AtomicBool,
}

impl Queue {
    fn ring(&self) {
        self.bell.fetch_add(1, Ordering::Release);
        exec::wake_all(&self.bell);
    }
}

impl Deaths {
    pub(crate) fn new(kernel: &Kernel) -> std::io::Result<Deaths> {
        let inner = Arc::<Queue>::default();
        let (queue, kernel) = (inner.clone(), kernel.clone());
        std::thread::Builder::new().name("deaths".into()).stack_size(256 * 1024).spawn(
            move || {
                loop {
                    match kernel.pd_events() {
                        Ok(event) => {
                            // Bounded by the number of domains: one is not started again before
                            // its death was taken from here.
                            let mut events =
                                queue.events.lock().unwrap_or_else(PoisonError::into_inner);
                            events.push_back(event);
                        }
                        Err(e) => {
                            tracing::error!("the kernel tells of no more deaths: {e}");
                            queue.closed.store(true, Ordering::Release);
                        }
                    }
                    queue.ring();
                    if queue.closed.load(Ordering::Acquire) {
                        return;
                    }
                }
            },
        )?;
        Ok(Deaths { inner })
    }

    fn take(&self) -> Option<PdEvent> {
        self.inner.events.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

pub(crate) struct Supervisor {
    kernel: Kernel,
    node: u8,
    incarnation: u64,
    cache: CacheClient,
    process: Client,
    policy: RefCell<Policy>,
}

impl Supervisor {
    pub(crate) fn new(
        boot: &Boot,
        roles: Vec<String>,
        cache: CacheClient,
        process: Client,
    ) -> Supervisor {
        Supervisor {
            kernel: boot.kernel.clone(),
            node: boot.node,
            incarnation: boot.incarnation,
            cache,
            process,
            policy: RefCell::new(Policy::new(roles, exec::now_ns())),
        }
    }

    pub(crate) async fn run(&self, deaths: &Deaths) {
        loop {
            let heard = deaths.inner.bell.load(Ordering::Acquire);
            while let Some(event) = deaths.take() {
                self.mourn(event).await;
            }
            if deaths.inner.closed.load(Ordering::Acquire) {
                // Without the kernel there is no node.
                return;
            }
            loop {
                let due = self.policy.borrow_mut().next_due(exec::now_ns());
                let Some(role) = due else { break };
                self.start(&role).await;
            }
            let next = self.policy.borrow().next_time();
            let bell = exec::changed(&deaths.inner.bell, heard);
            match next {
                Some(at) => drop(exec::select(bell, exec::sleep_until(at)).await),
                None => drop(bell.await),
            }
        }
    }

    async fn start(&self, role: &str) {
        match self.kernel.pd_start(role) {
            Ok(()) => tracing::info!("{role} started"),
            Err(KernelError::Closed) => tracing::error!("{role} not started: the kernel is gone"),
            Err(e) => {
                tracing::warn!("{role} could not be started: {e}");
                let decision = self.policy.borrow_mut().died(role, exec::now_ns());
                self.follow(role, decision, &e.to_string()).await;
            }
        }
    }

    async fn mourn(&self, event: PdEvent) {
        let how = format!("{:?}", event.status);
        tracing::warn!("{} (pid {}) died: {how}", event.role, event.pid);
        let decision = self.policy.borrow_mut().died(&event.role, exec::now_ns());
        if event.role == PERSONALITY && decision != Decision::Nothing {
            // Before it is started again, so that no program of the next one is meant.
            self.end_programs().await;
        }
        self.follow(&event.role, decision, &how).await;
    }

    async fn follow(&self, role: &str, decision: Decision, how: &str) {
        let Decision::GiveUp { deaths } = decision else { return };
        let text = format!(
            "dies too often: {deaths} times within {} s, the last time with {how}; not started any more",
            WINDOW_NS / 1_000_000_000
        );
        tracing::error!("{role} {text}");
        if let Err(e) = self.write_down(role, text).await {
            tracing::error!("the verdict on {role} was not written down: {e}");
        }
    }

    async fn end_programs(&self) {
        let request = process::Request::PersonalityLost { incarnation: self.incarnation };
        let until = exec::now_ns() + TELL_NS;
        loop {
            // Bounded even when the process server is being restarted, or hangs.
            let call = rpc::<_, process::Response>(&self.process, &request);
            match exec::select(call, exec::sleep_until(until)).await {
                exec::Either::Left(Ok(Ok(_))) => return,
                exec::Either::Left(r) => tracing::warn!("programs were not ended: {r:?}"),
                exec::Either::Right(()) => break,
            }
            exec::sleep_until(exec::now_ns() + TELL_PAUSE_NS).await;
            if exec::now_ns() >= until {
                break;
            }
        }
        tracing::error!("the programs of the dead personality may still be listed");
    }

    async fn write_down(&self, role: &str, text: String) -> Result<(), Errno> {
        note(&self.cache, self.node, self.incarnation, role, text).await
    }
}

/// Adds a verdict to the node's record.
async fn note<C: Cache>(
    cache: &C,
    node: u8,
    incarnation: u64,
    role: &str,
    text: String,
) -> Result<(), Errno> {
    let mut attempts = Attempts::new();
    let verdict =
        Verdict { role: role.chars().take(32).collect(), text, at: wall_s(), incarnation };
    loop {
        let mut d = Draft::repeatable(cache);
        let mut all: Vec<Verdict> = d.load(verdicts(node)).await?.unwrap_or_default();
        all.retain(|v| v.role != verdict.role);
        if all.len() >= MOST_VERDICTS {
            all.remove(0);
        }
        all.push(verdict.clone());
        d.store(verdicts(node), &all)?;
        if d.commit().await? {
            return Ok(());
        }
        attempts.again().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clustix_ccache::local::LocalCache;

    #[test]
    fn verdicts_are_kept_one_per_role_and_bounded() {
        let cache = LocalCache::new();
        exec::block_on(async {
            for i in 0..40 {
                note(&cache, 3, 1, &format!("role{}", i % 20), "x".repeat(200)).await.unwrap();
            }
            let (all, _) =
                clustix_proto::object::load::<_, Vec<Verdict>>(&cache, verdicts(3)).await.unwrap();
            let all = all.unwrap();
            assert_eq!(all.len(), MOST_VERDICTS);
            assert_eq!(all.last().unwrap().role, "role19");
        });
    }
}
