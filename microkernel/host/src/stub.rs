//! Stub processes, as the kernel keeps them. They are the zygote's children; the kernel holds the
//! other end of each one's socket, and its window.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;

use clustix_kernel_core::{Request, StubId};
use clustix_pd::kernel::STUB_WAKEUPS_AT;

use crate::memory;

/// Deaths kept of processes that are not known yet (a forked stub that died before its hello was
/// read).
const EARLY_DEATHS: usize = 256;

pub(crate) struct Stub {
    pub(crate) socket: OwnedFd,
    pub(crate) window: OwnedFd,
    /// Which domain has it, and in which slot of its.
    pub(crate) owner: (u16, u64),
    /// Its process id, once the zygote or its hello told it.
    pub(crate) pid: Option<u32>,
    /// To be killed as soon as its process is known.
    pub(crate) doomed: bool,
    /// The system call that waits for its start.
    pub(crate) starting: Option<Request>,
    /// Whether it is the copy of another.
    pub(crate) forked: bool,
}

#[derive(Default)]
pub(crate) struct Stubs {
    table: HashMap<u32, Stub>,
    by_pid: HashMap<u32, u32>,
    early_deaths: VecDeque<(u32, i32)>,
    /// Request bells rung by stubs that are gone.
    wakeups: u64,
    /// Stubs started, and stubs forked.
    pub(crate) made: u64,
}

impl Stubs {
    pub(crate) fn insert(&mut self, id: StubId, stub: Stub) {
        self.made += 1;
        self.table.insert(id.0, stub);
    }

    pub(crate) fn get_mut(&mut self, id: StubId) -> Option<&mut Stub> {
        self.table.get_mut(&id.0)
    }

    pub(crate) fn get(&self, id: StubId) -> Option<&Stub> {
        self.table.get(&id.0)
    }

    /// Those of a domain, each with its number.
    pub(crate) fn of(&self, owner: u16) -> impl Iterator<Item = (u32, &Stub)> {
        self.table.iter().filter(move |(_, s)| s.owner.0 == owner).map(|(id, s)| (*id, s))
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// The process of a stub became known. Its wait status, if it has died already — or if the word
    /// is false: a process that is a stub already spoke on its child's socket.
    pub(crate) fn born(&mut self, id: StubId, pid: u32) -> Option<i32> {
        if self.by_pid.contains_key(&pid) {
            return Some(libc::SIGKILL);
        }
        if let Some(at) = self.early_deaths.iter().position(|&(p, _)| p == pid) {
            return self.early_deaths.remove(at).map(|(_, status)| status);
        }
        if let Some(stub) = self.table.get_mut(&id.0) {
            stub.pid = Some(pid);
            self.by_pid.insert(pid, id.0);
        }
        None
    }

    /// A child of the zygote was reaped: the stub that it was.
    pub(crate) fn died(&mut self, pid: u32, status: i32) -> Option<StubId> {
        match self.by_pid.remove(&pid) {
            Some(id) => Some(StubId(id)),
            None => {
                if self.early_deaths.len() == EARLY_DEATHS {
                    self.early_deaths.pop_front();
                }
                self.early_deaths.push_back((pid, status));
                None
            }
        }
    }

    /// Forgets a stub; its bells stay counted.
    pub(crate) fn remove(&mut self, id: StubId) -> Option<Stub> {
        let stub = self.table.remove(&id.0)?;
        self.wakeups += memory::word_at(&stub.window, STUB_WAKEUPS_AT as u64);
        if let Some(pid) = stub.pid {
            self.by_pid.remove(&pid);
        }
        Some(stub)
    }

    /// Request bells rung by all stubs there ever were.
    pub(crate) fn wakeups(&self) -> u64 {
        let living: u64 =
            self.table.values().map(|s| memory::word_at(&s.window, STUB_WAKEUPS_AT as u64)).sum();
        self.wakeups + living
    }
}
