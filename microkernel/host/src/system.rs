//! The system description: protection domains, memory regions, channels, and which capability goes
//! where. It reads like seL4 Microkit's, as TOML or any other format of serde's.
//!
//! What is not granted here is not reachable, except by what a domain passes on over IPC.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

/// A node's whole declaration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemDescription {
    /// Memory regions.
    #[serde(default)]
    pub regions: Vec<RegionDescription>,
    /// Protection domains, in the order in which the kernel starts its own.
    pub pds: Vec<PdDescription>,
    /// Channels.
    #[serde(default)]
    pub channels: Vec<ChannelDescription>,
}

/// A memory region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionDescription {
    /// Its name.
    pub name: String,
    /// Its length in bytes; memory is used only where it was touched.
    pub size: u64,
}

/// A protection domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PdDescription {
    /// Its role: its name, and the row of the sandbox table.
    pub role: String,
    /// Who starts it.
    #[serde(default)]
    pub start: Start,
    /// What its death means.
    #[serde(default)]
    pub on_death: OnDeath,
    /// The domain that is told of its death and holds the capability to start and kill it.
    #[serde(default)]
    pub supervisor: Option<String>,
    /// Most kernel objects it may have at a time: stubs, regions, notifications, endpoints, replies.
    #[serde(default)]
    pub budget: u32,
    /// Other capabilities: `stubs`, `regions`, `node`.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// The regions it maps.
    #[serde(default)]
    pub regions: Vec<RegionGrant>,
    /// Whether it keeps its regions' descriptors, to pass them on to peers (ccache).
    #[serde(default)]
    pub keeps_descriptors: bool,
    /// Names of the host descriptors it is given.
    #[serde(default)]
    pub descriptors: Vec<String>,
    /// How long its loop may go without a turn ([`clustix_pd::metrics::beat`]), ms: then it counts as
    /// hung, and is killed. 0: for ever.
    #[serde(default)]
    pub deadline_ms: u32,
    /// Whether its stubs outlive it, for its next life, which must come within [`crate::host::KEPT_NS`].
    #[serde(default)]
    pub keeps_stubs: bool,
    /// Whether it runs before whatever is not real-time (SCHED_RR, sched(7)), where the host allows that: for one
    /// with little to do, on whose timers others' lives hang.
    #[serde(default)]
    pub realtime: bool,
}

/// Who starts a domain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// The kernel, at once.
    Kernel,
    /// Its supervisor, when it sees fit.
    #[default]
    Supervisor,
}

/// What the death of a domain means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDeath {
    /// Its supervisor is told.
    #[default]
    TellSupervisor,
    /// The kernel starts it again; after too many deaths in a row the node ends.
    Restart,
    /// The node ends.
    EndNode,
}

/// A region in a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionGrant {
    /// The region.
    pub name: String,
    /// What the domain may do with it.
    #[serde(default)]
    pub access: Access,
}

/// What a domain may do with a region.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Read it.
    #[default]
    Read,
    /// Read and write it.
    Write,
}

/// A channel: a capability for the server's endpoint in the client's CSpace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelDescription {
    /// Who calls.
    pub client: String,
    /// Who serves.
    pub server: String,
    /// What the client calls it; the server's role if absent.
    #[serde(default)]
    pub name: Option<String>,
    /// What the server sees of the client.
    #[serde(default)]
    pub badge: u64,
    /// Bytes of one of its 32 windows: longest request and longest reply.
    #[serde(default = "default_window")]
    pub window: u32,
}

fn default_window() -> u32 {
    clustix_pd::channel::WINDOW as u32
}

impl ChannelDescription {
    /// The name by which the client knows it.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.server)
    }
}

/// Capabilities of [`PdDescription::capabilities`].
pub(crate) const CAPABILITIES: [&str; 3] =
    [clustix_pd::kernel::CAP_STUBS, clustix_pd::kernel::CAP_REGIONS, clustix_pd::kernel::CAP_NODE];

/// Longest window of a channel in bytes.
const MAX_WINDOW: u32 = 16 << 20;

/// What is wrong with a system description.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SystemError {
    /// Two domains, regions or channels of one domain have the same name.
    #[error("{0} {1:?} is declared twice")]
    Twice(&'static str, String),
    /// Something names a domain, region or capability that is not declared.
    #[error("{0} names {1} {2:?}, which is not declared")]
    Unknown(String, &'static str, String),
    /// A number is out of range.
    #[error("{0}: {1}")]
    Range(String, &'static str),
}

impl SystemDescription {
    /// Place of the domain `role` in the order of declaration.
    pub fn pd(&self, role: &str) -> Option<usize> {
        self.pds.iter().position(|p| p.role == role)
    }

    /// Checks that names are unique and lead somewhere.
    pub fn check(&self) -> Result<(), SystemError> {
        let mut regions = HashSet::new();
        for r in &self.regions {
            if !regions.insert(r.name.as_str()) {
                return Err(SystemError::Twice("region", r.name.clone()));
            }
            if r.size == 0 {
                return Err(SystemError::Range(format!("region {:?}", r.name), "is empty"));
            }
        }
        let mut roles = HashSet::new();
        for p in &self.pds {
            if !roles.insert(p.role.as_str()) {
                return Err(SystemError::Twice("protection domain", p.role.clone()));
            }
        }
        for p in &self.pds {
            let who = || format!("protection domain {:?}", p.role);
            if let Some(s) = p.supervisor.as_ref().filter(|s| !roles.contains(s.as_str())) {
                return Err(SystemError::Unknown(who(), "supervisor", s.clone()));
            }
            if let Some(c) = p.capabilities.iter().find(|c| !CAPABILITIES.contains(&c.as_str())) {
                return Err(SystemError::Unknown(who(), "capability", c.clone()));
            }
            if let Some(g) = p.regions.iter().find(|g| !regions.contains(g.name.as_str())) {
                return Err(SystemError::Unknown(who(), "region", g.name.clone()));
            }
        }
        let mut names = HashSet::new();
        for c in &self.channels {
            let who = || format!("channel {:?} of {:?}", c.name(), c.client);
            for role in [&c.client, &c.server] {
                if !roles.contains(role.as_str()) {
                    return Err(SystemError::Unknown(who(), "protection domain", role.clone()));
                }
            }
            if !names.insert((c.client.as_str(), c.name())) {
                return Err(SystemError::Twice("channel", c.name().to_owned()));
            }
            if c.window < 64 || c.window > MAX_WINDOW || c.window % 64 != 0 {
                return Err(SystemError::Range(
                    who(),
                    "its window is no multiple of 64 up to 16 MiB",
                ));
            }
        }
        Ok(())
    }
}
