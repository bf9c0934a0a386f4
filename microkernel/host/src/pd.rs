//! Protection domains, as the kernel keeps them.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use clustix_kernel_core::RegionId;
use clustix_pd::metrics;
use clustix_pd::region::Region;
use clustix_pd::wire::{Exit, MOST_ENDS, Notice, PdInfo};

use crate::channel::Badges;
use crate::health::Health;
use crate::memory;
use crate::process::Process;

/// Most packets that wait for a domain to read them.
const OUTBOX: usize = 1024;

/// Packets on their way to a process that may be slow to read them.
#[derive(Default)]
pub(crate) struct Outbox(VecDeque<(Vec<u8>, Vec<Rc<OwnedFd>>)>);

/// What became of an attempt to send.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// Everything is sent.
    All,
    /// Something waits for room.
    Waits,
    /// The receiver does not read, or is gone.
    Hopeless,
}

impl Outbox {
    pub(crate) fn push(&mut self, bytes: Vec<u8>, fds: Vec<Rc<OwnedFd>>) -> bool {
        if self.0.len() >= OUTBOX {
            return false;
        }
        self.0.push_back((bytes, fds));
        true
    }

    /// Sends what can be sent without waiting.
    pub(crate) fn flush(&mut self, socket: &OwnedFd) -> Sent {
        while let Some((bytes, fds)) = self.0.front() {
            let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
            match clustix_pd::socket::send(socket.as_fd(), bytes, &fds, true) {
                Ok(()) => {
                    self.0.pop_front();
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Sent::Waits,
                // Too many descriptors in flight: the receiver will take some.
                Err(e) if e.raw_os_error() == Some(libc::ETOOMANYREFS) => return Sent::Waits,
                Err(_) => return Sent::Hopeless,
            }
        }
        Sent::All
    }
}

/// One life of a domain.
pub(crate) struct Life {
    pub(crate) process: Process,
    pub(crate) socket: OwnedFd,
    pub(crate) outbox: Outbox,
    pub(crate) metrics: Region,
    pub(crate) health: Health,
    /// It was killed for not beating.
    pub(crate) hung: bool,
    /// Counts its start in the core's terms.
    pub(crate) incarnation: u32,
}

/// A domain over all its lives.
pub(crate) struct Pd {
    pub(crate) role: String,
    pub(crate) life: Option<Life>,
    pub(crate) badges: Badges,
    /// What it maps at its next start.
    pub(crate) regions: Vec<(RegionId, bool)>,
    /// Capabilities it starts with, by name.
    pub(crate) caps: Vec<(String, u64)>,
    pub(crate) roles: Vec<String>,
    /// System calls of the hosted kernel that it made.
    pub(crate) requests: u64,
    pub(crate) starts: u32,
    pub(crate) started_ns: u64,
    pub(crate) last_pid: u32,
    /// When and how it ended, lately.
    pub(crate) ends: VecDeque<(u64, Exit)>,
    /// When it died lately (CLOCK_MONOTONIC, ns).
    pub(crate) deaths: VecDeque<u64>,
    /// Until when its stubs wait for its next life.
    pub(crate) forget_at: Option<u64>,
    /// Counters of its former lives.
    pub(crate) carried: HashMap<String, u64>,
}

impl Pd {
    pub(crate) fn new(role: String) -> std::io::Result<Pd> {
        Ok(Pd {
            role,
            life: None,
            badges: Badges::new()?,
            regions: Vec::new(),
            caps: Vec::new(),
            roles: Vec::new(),
            requests: 0,
            starts: 0,
            started_ns: 0,
            last_pid: 0,
            ends: VecDeque::new(),
            deaths: VecDeque::new(),
            forget_at: None,
            carried: HashMap::new(),
        })
    }

    pub(crate) fn info(&self) -> PdInfo {
        PdInfo {
            role: self.role.clone(),
            pid: self.life.as_ref().map_or(0, |l| l.process.pid),
            restarts: self.starts.saturating_sub(1),
            started_ns: self.started_ns,
            ends: self.ends.iter().copied().collect(),
        }
    }

    /// Its counters over all its lives. Names that say "set to" (gauges) are the last life's.
    pub(crate) fn counters(&self) -> Vec<(String, u64)> {
        let mut all = self.carried.clone();
        if let Some(life) = &self.life {
            for (name, n) in metrics::read_page(&life.metrics) {
                *all.entry(name).or_default() += n;
            }
        }
        let mut all: Vec<_> = all.into_iter().collect();
        all.sort();
        all
    }

    /// Ends its life on the kernel's books.
    pub(crate) fn bury(&mut self, exit: Exit, now: u64) {
        if let Some(life) = self.life.take() {
            for (name, n) in metrics::read_page(&life.metrics) {
                // The page holds at most metrics::ENTRIES names; a domain that invents others at
                // each life is cut off.
                if name.contains("_total")
                    && (self.carried.len() < 4 * metrics::ENTRIES
                        || self.carried.contains_key(&name))
                {
                    *self.carried.entry(name).or_default() += n;
                }
            }
        }
        if self.ends.len() >= MOST_ENDS {
            self.ends.pop_front();
        }
        self.ends.push_back((now, exit));
        self.deaths.push_back(now);
    }

    /// Queues a packet; `false` when the domain must be killed for not reading.
    pub(crate) fn tell(&mut self, notice: &Notice, fds: Vec<Rc<OwnedFd>>) -> Sent {
        let Some(life) = &mut self.life else { return Sent::All };
        let Ok(bytes) = postcard::to_stdvec(notice) else { return Sent::All };
        if !life.outbox.push(bytes, fds) {
            return Sent::Hopeless;
        }
        life.outbox.flush(&life.socket)
    }
}

/// A metrics page: mapped here, and its descriptor for the domain.
pub(crate) fn metrics_page() -> std::io::Result<(Region, OwnedFd)> {
    let fd = memory::create("clustix-metrics", metrics::PAGE_LEN as u64)?;
    let region = Region::map(memory::duplicate(fd.as_fd())?, metrics::PAGE_LEN, true, false)?;
    Ok((region, fd))
}
