//! A cluster of several hosts: the file that says which, the same on each of them.
//!
//! ```toml
//! token = "what the hosts of this cluster know each other by"
//! memory = "2G"                  # of each node; default: a quarter of the host's
//! lease = 1000                   # milliseconds
//!
//! [fabric]
//! kind = "verbs"
//! device = "rxe0"                # default: the one that the host's address belongs to
//!
//! [[node]]
//! slot = 1
//! address = "10.77.0.1"          # membership on port, by TCP; the fabric on port + 1
//! port = 7470
//!
//! [witness]                      # if there is to be one: a host that holds nothing
//! address = "10.77.0.9"
//! port = 7470
//! ```

use crate::args::size;
use crate::state::{MAX_NODES, WITNESS};
use anyhow::{Context, Result, bail, ensure};
use clustix_ccache::lease::Timing;
use clustix_ccache::service::{NetworkConfig, Verbs};
use clustix_member::address::Place;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// Membership's port where none is given.
const PORT: u16 = 7470;
/// Lease where none is given, ms: networks are slower than memory.
const LEASE: u64 = 1_000;

/// The file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hosts {
    /// Any text: nodes of clusters with another one are refused. It keeps clusters apart, not
    /// eavesdroppers out.
    pub token: String,
    /// Memory budget of each node, as on the command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// Length of a lease, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<u64>,
    /// What carries objects.
    pub fabric: Fabric,
    /// The nodes.
    pub node: Vec<Host>,
    /// The witness.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witness: Option<Witness>,
}

/// What carries objects from host to host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Fabric {
    /// RDMA.
    Verbs {
        /// Which device; the one that the node's address belongs to if none is named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<String>,
        /// Acknowledgement time-out: 4.096 µs × 2^n (InfiniBand specification, 9.7.6.1.3).
        #[serde(default = "ack_timeout")]
        ack_timeout: u8,
        /// How often a packet is sent again before the peer counts as gone, 1 to 6.
        #[serde(default = "retries")]
        retries: u8,
    },
    /// Shared memory: all nodes are on one machine, and meet in this folder.
    Shm {
        /// Absolute path; of one user.
        folder: PathBuf,
    },
}

const fn ack_timeout() -> u8 {
    15
}
const fn retries() -> u8 {
    6
}

/// One node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Its number, 0 to 15.
    pub slot: u8,
    /// Its address.
    pub address: IpAddr,
    /// Where membership listens; the fabric has the next port.
    #[serde(default = "port")]
    pub port: u16,
}

/// A voter that holds nothing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Witness {
    /// Its address.
    pub address: IpAddr,
    /// Where membership listens.
    #[serde(default = "port")]
    pub port: u16,
}

const fn port() -> u16 {
    PORT
}

impl Hosts {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// It cannot be read; what is wrong in it.
    pub fn read(path: &Path) -> Result<Hosts> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("could not read {}", path.display()))?;
        let hosts: Hosts = toml::from_str(&text).with_context(|| format!("{}", path.display()))?;
        hosts.check().with_context(|| format!("{}", path.display()))?;
        Ok(hosts)
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.token.is_empty(), "token is empty: give any text that is this cluster's own");
        ensure!(!self.node.is_empty(), "there is no [[node]]");
        for (i, n) in self.node.iter().enumerate() {
            ensure!(
                n.slot < MAX_NODES,
                "slot {}: nodes are numbered 0 to {}",
                n.slot,
                MAX_NODES - 1
            );
            ensure!(n.port > 0 && n.port < u16::MAX, "port {} of node {}", n.port, n.slot);
            ensure!(!n.address.is_unspecified(), "node {}: which address?", n.slot);
            for m in &self.node[..i] {
                ensure!(n.slot != m.slot, "slot {} is given twice", n.slot);
                let apart = n.address != m.address || n.port.abs_diff(m.port) > 1;
                ensure!(apart, "nodes {} and {} have the same address and port", m.slot, n.slot);
            }
        }
        if let Some(w) = &self.witness {
            ensure!(!w.address.is_unspecified() && w.port > 0, "the witness: at which address?");
            for n in &self.node {
                let apart = n.address != w.address || (w.port != n.port && w.port != n.port + 1);
                ensure!(apart, "node {} and the witness have the same address and port", n.slot);
            }
        }
        if let Some(memory) = &self.memory
            && let Err(why) = size(memory)
        {
            bail!("memory = {memory:?}: {why}");
        }
        if let Some(lease) = self.lease {
            ensure!((50..=60_000).contains(&lease), "lease = {lease}: 50 to 60000 milliseconds");
        }
        match &self.fabric {
            Fabric::Verbs { ack_timeout, retries, .. } => {
                ensure!((8..=20).contains(ack_timeout), "ack_timeout = {ack_timeout}: 8 to 20");
                // 7 of some devices means for ever.
                ensure!((1..=6).contains(retries), "retries = {retries}: 1 to 6");
            }
            Fabric::Shm { folder } => ensure!(folder.is_absolute(), "folder must be absolute"),
        }
        Ok(())
    }

    /// A node.
    ///
    /// # Errors
    /// There is none in this slot.
    pub fn host(&self, slot: u8) -> Result<&Host> {
        self.node.iter().find(|n| n.slot == slot).with_context(|| {
            let known: Vec<String> = self.node.iter().map(|n| n.slot.to_string()).collect();
            format!("there is no node {slot}; the nodes are {}", known.join(", "))
        })
    }

    /// The address of a node, or of the witness.
    ///
    /// # Errors
    /// There is none.
    pub fn address(&self, slot: u8) -> Result<IpAddr> {
        if slot != WITNESS {
            return Ok(self.host(slot)?.address);
        }
        let witness = self.witness.as_ref().context("the file of hosts names no [witness]")?;
        Ok(witness.address)
    }

    /// Memory budget, bytes, where one is given.
    pub fn memory(&self) -> Option<u64> {
        self.memory.as_deref().and_then(|m| size(m).ok())
    }

    /// Lease times.
    pub fn timing(&self) -> Timing {
        let usual = Timing::default();
        let lease_ns = self.lease.unwrap_or(LEASE) * 1_000_000;
        Timing {
            lease_ns,
            renewal_ns: lease_ns / 5,
            drift_ns: lease_ns / (usual.lease_ns / usual.drift_ns),
        }
    }

    /// The number that stands for the token on the wire.
    pub fn token(&self) -> u64 {
        xxh3_64(self.token.as_bytes())
    }

    /// Where every node, and the witness, listens.
    pub fn places(&self) -> Vec<Place> {
        self.node
            .iter()
            .map(|n| Place {
                slot: n.slot,
                member: SocketAddr::new(n.address, n.port).to_string(),
                fabric: match &self.fabric {
                    Fabric::Verbs { .. } => SocketAddr::new(n.address, n.port + 1).to_string(),
                    Fabric::Shm { folder } => {
                        folder.join(format!("fabric-{}.sock", n.slot)).display().to_string()
                    }
                },
            })
            .chain(self.witness.iter().map(|w| Place {
                slot: WITNESS,
                member: SocketAddr::new(w.address, w.port).to_string(),
                fabric: String::new(),
            }))
            .collect()
    }

    /// What node `slot`'s ccache is told about its network.
    pub fn network(&self, slot: u8) -> NetworkConfig {
        let places = self.places();
        let listen = places.iter().find(|p| p.slot == slot);
        match &self.fabric {
            Fabric::Shm { .. } => NetworkConfig::Shm,
            Fabric::Verbs { device, ack_timeout, retries } => NetworkConfig::Verbs(Verbs {
                listen: listen.map_or_else(String::new, |p| p.fabric.clone()),
                device: device.clone(),
                token: self.token(),
                ack_timeout: *ack_timeout,
                retries: *retries,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        token = "t"
        [fabric]
        kind = "verbs"
        [[node]]
        slot = 1
        address = "10.77.0.1"
        [[node]]
        slot = 2
        address = "10.77.0.2"
        port = 8000
    "#;

    fn parse(text: &str) -> Result<Hosts> {
        let hosts: Hosts = toml::from_str(text)?;
        hosts.check()?;
        Ok(hosts)
    }

    #[test]
    fn a_file_says_who_listens_where() {
        let hosts = parse(GOOD).unwrap();
        let places = hosts.places();
        assert_eq!(places[0].member, "10.77.0.1:7470");
        assert_eq!(places[1].fabric, "10.77.0.2:8001");
        let seen = parse(&format!("{GOOD}\n[witness]\naddress = \"10.77.0.9\"")).unwrap();
        assert_eq!(seen.places()[2].member, "10.77.0.9:7470");
        assert_eq!(seen.address(WITNESS).unwrap().to_string(), "10.77.0.9");
        assert!(hosts.address(WITNESS).unwrap_err().to_string().contains("[witness]"));
        assert!(hosts.host(3).unwrap_err().to_string().contains("1, 2"));
        let NetworkConfig::Verbs(v) = hosts.network(2) else { panic!() };
        assert_eq!((v.listen.as_str(), v.ack_timeout, v.retries), ("10.77.0.2:8001", 15, 6));
        assert_eq!(hosts.timing().renewal_ns, 200_000_000);
        // It is kept as JSON.
        let json = serde_json::to_string(&hosts).unwrap();
        assert_eq!(serde_json::from_str::<Hosts>(&json).unwrap(), hosts);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (from, to, says) in [
            ("slot = 2", "slot = 1", "twice"),
            ("slot = 2", "slot = 16", "0 to 15"),
            ("\"10.77.0.2\"\n        port = 8000", "\"10.77.0.1\"", "same address"),
            ("token = \"t\"", "token = \"\"", "token"),
            ("token = \"t\"", "token = \"t\"\nlease = 3", "lease"),
            ("token = \"t\"", "token = \"t\"\nmemory = \"1M\"", "memory"),
            ("kind = \"verbs\"", "kind = \"verbs\"\nretries = 7", "retries"),
            ("kind = \"verbs\"", "kind = \"pigeons\"", "pigeons"),
            ("port = 8000", "prot = 8000", "prot"),
            ("port = 8000", "port = 8000\n[witness]\naddress = \"10.77.0.1\"", "and the witness"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let e = format!("{:#}", parse(&GOOD.replace(from, to)).unwrap_err());
            assert!(e.contains(says), "{to}: {e}");
        }
    }
}
