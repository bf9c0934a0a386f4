//! The system description, declared to the core: objects, first capabilities and their names.

use std::os::fd::AsFd;
use std::rc::Rc;

use clustix_abi::{Rights, slot};
use clustix_kernel_core::{EndpointId, Grant, Object, PdDeclaration, PdId};
use clustix_pd::kernel as names;

use crate::host::{Host, HostError, RegionMemory, io};
use crate::memory;

/// A domain's root CNode has 2^8 slots,
const RADIX: u8 = 8;
/// or 2^13 if it keeps stubs and their regions.
const RADIX_WITH_STUBS: u8 = 13;

/// Rights on an object to be made to act and to be looked at.
const READ_WRITE: Rights = Rights::READ.union(Rights::WRITE);

impl Host {
    pub(crate) fn declare(&mut self) -> Result<(), HostError> {
        let refused =
            |what: String| move |e: clustix_abi::Error| HostError::Declaration(what, e.name());
        let system = self.system.clone();
        for p in &system.pds {
            let with_stubs = p.capabilities.iter().any(|c| c == names::CAP_STUBS);
            let radix = if with_stubs { RADIX_WITH_STUBS } else { RADIX };
            let mut declaration = PdDeclaration::new(radix);
            declaration.budget = p.budget;
            declaration.keeps_stubs = p.keeps_stubs;
            self.kernel.declare_pd(declaration).map_err(refused(p.role.clone()))?;
        }
        let mut regions = Vec::new();
        for r in &system.regions {
            let id = self.kernel.declare_region(r.size).map_err(refused(r.name.clone()))?;
            let fd = memory::create(&r.name, r.size).map_err(io("cannot make a region"))?;
            let read_only =
                memory::read_only(fd.as_fd()).map_err(io("cannot open a region to read"))?;
            self.regions.insert(
                id.0,
                RegionMemory {
                    fd: Rc::new(fd),
                    read_only: Rc::new(read_only),
                    len: r.size,
                    name: r.name.clone(),
                },
            );
            regions.push(id);
        }
        let mut endpoints: Vec<Option<EndpointId>> = vec![None; system.pds.len()];
        let mut deaths: Vec<Option<EndpointId>> = vec![None; system.pds.len()];
        for c in &system.channels {
            let Some(server) = system.pd(&c.server) else { continue };
            if endpoints[server].is_none() {
                let id = self
                    .kernel
                    .declare_endpoint(Some(PdId(server as u16)))
                    .map_err(refused(c.server.clone()))?;
                endpoints[server] = Some(id);
            }
        }
        let mut next = vec![slot::FIRST_DECLARED; system.pds.len()];
        let mut grants = Vec::new();
        let mut grant = |pd: usize, name: String, object, rights, badge| {
            let slot = next[pd];
            next[pd] += 1;
            grants.push((name, Grant { pd: PdId(pd as u16), slot, object, rights, badge }));
        };
        for (n, p) in system.pds.iter().enumerate() {
            let id = PdId(n as u16);
            if let Some(s) = p.supervisor.as_deref().and_then(|s| system.pd(s)) {
                grant(s, format!("{}{}", names::CAP_PD, p.role), Object::Pd(id), Rights::ALL, 0);
                let endpoint = match deaths[s] {
                    Some(e) => e,
                    None => {
                        let e =
                            self.kernel.declare_endpoint(None).map_err(refused(p.role.clone()))?;
                        let name = names::CAP_PD_EVENTS.to_owned();
                        grant(s, name, Object::Endpoint(e), Rights::READ, 0);
                        deaths[s] = Some(e);
                        e
                    }
                };
                self.kernel
                    .declare_fault(id, endpoint, n as u64 + 1)
                    .map_err(refused(p.role.clone()))?;
            }
            for g in &p.regions {
                let Some(r) = system.regions.iter().position(|r| r.name == g.name) else {
                    continue;
                };
                let rights = match g.access {
                    crate::system::Access::Read => Rights::READ,
                    crate::system::Access::Write => READ_WRITE,
                };
                grant(n, format!("region:{}", g.name), Object::Region(regions[r]), rights, 0);
            }
            for c in &p.capabilities {
                let (object, rights) = match c.as_str() {
                    names::CAP_STUBS => (Object::StubPool, Rights::WRITE),
                    names::CAP_REGIONS => (Object::RegionPool, Rights::WRITE),
                    _ => (Object::Metrics, Rights::READ),
                };
                grant(n, c.clone(), object, rights, 0);
                if c == names::CAP_STUBS {
                    let e = self.kernel.declare_endpoint(None).map_err(refused(p.role.clone()))?;
                    let name = names::CAP_STUB_EVENTS.to_owned();
                    grant(n, name, Object::Endpoint(e), Rights::READ, 0);
                    self.kernel.declare_stub_fault(id, e, 1).map_err(refused(p.role.clone()))?;
                }
            }
        }
        for c in &system.channels {
            let (Some(client), Some(server)) = (system.pd(&c.client), system.pd(&c.server)) else {
                continue;
            };
            if let Some(e) = endpoints[server] {
                let object = Object::Endpoint(e);
                grant(client, c.name().to_owned(), object, Rights::CLIENT, c.badge);
            }
        }
        self.endpoints = endpoints;
        for (name, grant) in grants {
            self.kernel.declare_grant(grant).map_err(refused(name.clone()))?;
            self.pds[usize::from(grant.pd.0)].caps.push((name, grant.slot));
        }
        let roles: Vec<String> = system.pds.iter().map(|p| p.role.clone()).collect();
        for (s, _) in deaths.iter().enumerate().filter(|(_, d)| d.is_some()) {
            self.pds[s].roles = roles.clone();
        }
        Ok(())
    }
}
