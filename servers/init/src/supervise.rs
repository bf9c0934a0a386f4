//! The shell around [`crate::restart`]: the kernel's events in, starts out.

use crate::record::{MOST_VERDICTS, Verdict, verdicts};
use crate::restart::{Decision, Policy, WINDOW_NS};
use crate::tell::Servers;
use clustix_ccache::cache::Cache;
use clustix_ccache::client::CacheClient;
use clustix_pd::{Boot, Kernel, KernelError, PdEvent, exec};
use clustix_proto::Errno;
use clustix_proto::object::{Attempts, Draft};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// The domain whose end is the end of its programs.
const PERSONALITY: &str = "posix";

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
    servers: Servers,
    policy: RefCell<Policy>,
    /// 1 once the personality was given up.
    mourning: AtomicU32,
}

impl Supervisor {
    pub(crate) fn new(
        boot: &Boot,
        roles: Vec<String>,
        cache: CacheClient,
        servers: Servers,
    ) -> Supervisor {
        Supervisor {
            kernel: boot.kernel.clone(),
            node: boot.node,
            incarnation: boot.incarnation,
            cache,
            servers,
            policy: RefCell::new(Policy::new(roles, exec::now_ns())),
            mourning: AtomicU32::new(0),
        }
    }

    pub(crate) async fn run(&self, deaths: &Deaths) {
        loop {
            let heard = deaths.inner.bell.load(Ordering::Acquire);
            while let Some(event) = deaths.take() {
                tracing::warn!("{} (pid {}) died: {:?}", event.role, event.pid, event.status);
                self.restart(event).await;
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
                Some(at) => {
                    exec::select(bell, exec::sleep_until(at)).await;
                }
                None => {
                    bell.await;
                }
            }
        }
    }

    /// The other task: a personality that is not started again leaves programs which nobody will end. Its next
    /// one tells that of those with which it cannot go on.
    pub(crate) async fn mourn(&self) {
        while self.mourning.load(Ordering::Acquire) == 0 {
            exec::changed(&self.mourning, 0).await;
        }
        while !self.servers.personality_lost(self.incarnation).await {}
    }

    async fn start(&self, role: &str) {
        match self.kernel.pd_start(role) {
            Ok(()) => tracing::info!("{role} started"),
            // An init before this one has started it; from here on it is this one's.
            Err(e) if e.runs_already() => tracing::info!("{role} runs already"),
            Err(KernelError::Closed) => tracing::error!("{role} not started: the kernel is gone"),
            Err(e) => {
                tracing::warn!("{role} could not be started: {e}");
                let decision = self.policy.borrow_mut().died(role, exec::now_ns());
                self.follow(role, decision, &e.to_string()).await;
            }
        }
    }

    async fn restart(&self, event: PdEvent) {
        let decision = self.policy.borrow_mut().died(&event.role, exec::now_ns());
        self.follow(&event.role, decision, &format!("{:?}", event.status)).await;
    }

    async fn follow(&self, role: &str, decision: Decision, how: &str) {
        let Decision::GiveUp { deaths } = decision else { return };
        let text = format!(
            "dies too often: {deaths} times within {} s, the last time with {how}; not started any more",
            WINDOW_NS / 1_000_000_000
        );
        tracing::error!("{role} {text}");
        if role == PERSONALITY {
            self.mourning.store(1, Ordering::Release);
            exec::wake_all(&self.mourning);
        }
        if let Err(e) = self.write_down(role, text).await {
            tracing::error!("the verdict on {role} was not written down: {e}");
        }
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
