//! What the personality keeps per process: volatile, in the node's slab, written by the process's
//! own worker thread alone.

use crate::fd;
use clustix_ccache::cache::Cache;
use clustix_pd::{Stub, StubWindow};
use clustix_proto::Answer;
use clustix_proto::process::{Pid, name};
use clustix_proto::vfs::{Credentials, ROOT};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Signals, 1 to 64.
pub const SIGNALS: usize = 64;
/// Resource limits (RLIM_NLIMITS).
pub const LIMITS: usize = 16;

/// The bit of signal `n` in a mask.
pub const fn bit(n: u8) -> u64 {
    1u64.wrapping_shl(n as u32).wrapping_shr(1) | if n == 64 { 1 << 63 } else { 0 }
}

/// A signal action, as rt_sigaction(2) has it (struct kernel_sigaction).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Action {
    /// SIG_DFL 0, SIG_IGN 1, or the handler.
    pub handler: u64,
    /// SA_*.
    pub flags: u64,
    /// sa_restorer.
    pub restorer: u64,
    /// Blocked while the handler runs.
    pub mask: u64,
}

/// Alternate signal stack (sigaltstack(2)).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AltStack {
    /// Lowest address.
    pub sp: u64,
    /// SS_DISABLE 2, SS_AUTODISARM 1 << 31.
    pub flags: u32,
    /// Bytes.
    pub size: u64,
}

/// A process's own state (set `PSTATE`), postcard.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProcessState {
    /// Actions that are not the default's, by signal number.
    pub actions: Vec<(u8, Action)>,
    /// Blocked signals.
    pub mask: u64,
    /// Alternate stack.
    pub stack: AltStack,
    /// Working directory's inode.
    pub cwd: u64,
    /// umask(2).
    pub umask: u32,
    /// Soft and hard resource limits, by RLIMIT_* number.
    pub limits: [(u64, u64); LIMITS],
    /// PR_SET_NAME, NUL-padded.
    pub comm: [u8; 16],
    /// PR_SET_PDEATHSIG.
    pub pdeathsig: u8,
    /// Numbers used so far for requests that must happen once.
    pub requests: u64,
    /// PR_SET_DUMPABLE.
    pub dumpable: bool,
    /// Executable's path, for /proc/self/exe.
    pub exe: Vec<u8>,
    /// The mask to restore after a call that came with one of its own (sigsuspend(2), ppoll(2)).
    pub saved_mask: Option<u64>,
    /// ITIMER_REAL: next expiry (`CLOCK_MONOTONIC`) and interval, ns, as they were set; 0: none.
    pub timer: (u64, u64),
    /// Its stub: the node's incarnation, and the kernel's number.
    pub stub: (u64, u32),
}

impl Default for ProcessState {
    fn default() -> Self {
        const INFINITY: u64 = u64::MAX;
        let mut limits = [(INFINITY, INFINITY); LIMITS];
        limits[3] = (8 << 20, INFINITY); // RLIMIT_STACK
        limits[4] = (0, INFINITY); // RLIMIT_CORE
        limits[6] = (1024, 1024); // RLIMIT_NPROC
        limits[7] = (fd::MAX_FDS as u64, fd::MAX_FDS as u64); // RLIMIT_NOFILE
        Self {
            actions: Vec::new(),
            mask: 0,
            stack: AltStack { sp: 0, flags: 2, size: 0 },
            cwd: ROOT,
            umask: 0o022,
            limits,
            comm: [0; 16],
            pdeathsig: 0,
            requests: 0,
            dumpable: true,
            exe: Vec::new(),
            saved_mask: None,
            timer: (0, 0),
            stub: (0, 0),
        }
    }
}

impl ProcessState {
    /// The action of a signal.
    pub fn action(&self, signal: u8) -> Action {
        self.actions.iter().find(|a| a.0 == signal).map_or(Action::default(), |a| a.1)
    }
    /// Sets the action of a signal.
    pub fn set_action(&mut self, signal: u8, action: Action) {
        self.actions.retain(|a| a.0 != signal);
        if action != Action::default() {
            self.actions.push((signal, action));
        }
    }
    /// Signals that would do something if they came now: not blocked, not ignored.
    pub fn effective(&self) -> u64 {
        let mut ignored = crate::signal::IGNORED_BY_DEFAULT;
        for (signal, action) in &self.actions {
            match action.handler {
                1 => ignored |= bit(*signal),
                0 => {}
                _ => ignored &= !bit(*signal),
            }
        }
        const UNBLOCKABLE: u64 = bit(9) | bit(19);
        (!self.mask | UNBLOCKABLE) & !ignored
    }
}

/// What other threads of the personality know of a running process.
pub struct Running {
    /// PID.
    pub pid: Pid,
    /// Its stub's number; changes when exec takes a fresh one.
    pub stub: AtomicU32,
    /// Bumped and woken when the worker must look at something.
    pub attention: AtomicU32,
    /// Pending signals, as last seen in the process object.
    pub pending: AtomicU64,
    /// The stub ended: its wait status | 1 << 31.
    pub death: AtomicU32,
    /// The thread is held at a call boundary for a freeze.
    pub held: AtomicBool,
    /// ITIMER_REAL: next expiry (`CLOCK_MONOTONIC` ns), 0: none.
    pub timer: AtomicU64,
    /// Its interval, ns.
    pub interval: AtomicU64,
}

impl Running {
    /// Of a process that starts.
    pub fn new(pid: Pid, stub: u32) -> Arc<Running> {
        Arc::new(Running {
            pid,
            stub: AtomicU32::new(stub),
            attention: AtomicU32::new(0),
            pending: AtomicU64::new(0),
            death: AtomicU32::new(0),
            held: AtomicBool::new(false),
            timer: AtomicU64::new(0),
            interval: AtomicU64::new(0),
        })
    }
    /// Makes the worker look.
    pub fn nudge(&self) {
        self.attention.fetch_add(1, Ordering::Release);
        clustix_pd::exec::wake_all(&self.attention);
    }
}

/// A process, as its own worker thread holds it.
pub struct ProcessContext {
    /// PID; also the number of its address space.
    pub pid: Pid,
    /// Effective credentials, for the vfs. Refreshed by whoever changes them.
    pub credentials: Credentials,
    /// Volatile state; [`ProcessContext::save`] after a change.
    pub state: ProcessState,
    /// The window it shares with its stub.
    pub window: StubWindow,
    /// The part that other threads see.
    pub running: Arc<Running>,
    /// Number of the latest request seen in the window.
    pub answered: AtomicU32,
    /// The call that a personality which died had made, and its deadline: the app makes it again.
    pub again: Option<(u64, u64)>,
    /// The call under way ends the process, with this wait status.
    pub exiting: Option<i32>,
    /// User and system time used, µs, once it is known.
    pub used_us: (u64, u64),
}

impl ProcessContext {
    /// A process in a stub that has said nothing yet.
    pub fn new(pid: Pid, credentials: Credentials, state: ProcessState, stub: Stub) -> Self {
        ProcessContext {
            pid,
            credentials,
            state,
            running: Running::new(pid, stub.id),
            window: stub.window,
            answered: AtomicU32::new(0),
            again: None,
            exiting: None,
            used_us: (0, 0),
        }
    }
    /// Its stub's number.
    pub fn stub(&self) -> u32 {
        self.running.stub.load(Ordering::Relaxed)
    }
    /// Writes the volatile state to the slab.
    pub async fn save<C: Cache>(&self, cache: &C) -> Answer<()> {
        fd::store(cache, name::pstate(self.pid), &self.state).await
    }
    /// A number for a request that must happen once.
    pub fn request(&mut self) -> u64 {
        self.state.requests += 1;
        self.state.requests
    }
}
