//! Registered memory: the chunks of this node's arena, and buffers of the fabric's own.

use super::device::Device;
use super::queue_pair::Local;
use super::wire::Chunk;
use crate::arena::Arena;
use clustix_pd::{Region, metrics};
use rdma_sys::{ibv_access_flags, ibv_dereg_mr, ibv_mr, ibv_reg_mr_iova};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;

/// What the holder of a key may do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing; only this node's own work requests use it.
    Own,
    /// Whatever a queue pair lets it.
    Remote,
}

/// A registration: the pages are pinned, and the device reads and writes them. Addresses in it are
/// offsets in the region, so that peers need none of this node's.
pub(super) struct Registration {
    mr: *mut ibv_mr,
    base: u64,
    _region: Region,
    _device: Rc<Device>,
}

impl Registration {
    /// Registers `len` bytes of `region` from `offset` on, a multiple of the page size.
    ///
    /// # Errors
    /// The range is not inside, too much memory is locked (RLIMIT_MEMLOCK), or the device is full.
    pub(super) fn new(
        device: &Rc<Device>,
        region: &Region,
        offset: u64,
        len: u64,
        access: Access,
    ) -> io::Result<Registration> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= region.len() as u64);
        if !inside || !region.writable() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let base = region.words().as_ptr() as u64;
        let mut flags = ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0;
        if access == Access::Remote {
            flags |= ibv_access_flags::IBV_ACCESS_REMOTE_READ.0
                | ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0
                | ibv_access_flags::IBV_ACCESS_REMOTE_ATOMIC.0;
        }
        // What only this node uses keeps its addresses: work requests name them.
        let named = if access == Access::Remote { offset } else { base + offset };
        // SAFETY: the range is inside the region, as just checked, and stays mapped: the region is
        // kept until the registration is gone. Nothing in this process has a reference to plain
        // data in a region, so that the device may write there at any time. The protection domain
        // lives as long as the device, which is kept too.
        let mr = unsafe {
            ibv_reg_mr_iova(device.pd, (base + offset) as *mut _, len as usize, named, flags as i32)
        };
        if mr.is_null() {
            return Err(io::Error::last_os_error());
        }
        metrics::add("clustix_verbs_registrations_total", 1);
        Ok(Registration { mr, base, _region: region.clone(), _device: device.clone() })
    }

    /// What the other side needs.
    pub(super) fn remote_key(&self) -> u32 {
        // SAFETY: the registration lives as long as `self`.
        unsafe { (*self.mr).rkey }
    }

    /// A part of the region, for this node's own requests.
    pub(super) fn local(&self, offset: u64, len: u32) -> Local {
        // SAFETY: the registration lives as long as `self`.
        let key = unsafe { (*self.mr).lkey };
        Local { address: self.base + offset, len, key }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: made by `new`, ended once; the region is still mapped.
        unsafe { ibv_dereg_mr(self.mr) };
    }
}

/// The arena's registered chunks. Once registered, a chunk stays so: who has been told a key may use
/// it for as long as it is let in.
pub(super) struct Memory {
    chunks: HashMap<Chunk, Registration>,
    arena: Arena,
    device: Rc<Device>,
}

impl Memory {
    pub(super) fn new(device: &Rc<Device>, arena: &Arena) -> Memory {
        Memory { chunks: HashMap::new(), arena: arena.clone(), device: device.clone() }
    }

    /// The key of a chunk, which is registered now if it was not. `None`: it cannot be.
    pub(super) fn key(&mut self, chunk: Chunk) -> Option<u32> {
        if let Some(r) = self.chunks.get(&chunk) {
            return Some(r.remote_key());
        }
        if !chunk.exists() {
            return None;
        }
        let region = self.arena.region(chunk.region());
        let made =
            Registration::new(&self.device, region, chunk.offset(), chunk.len(), Access::Remote);
        match made {
            Ok(r) => {
                let key = r.remote_key();
                self.chunks.insert(chunk, r);
                metrics::add("clustix_verbs_registered_bytes", chunk.len());
                Some(key)
            }
            Err(e) => {
                eprintln!("verbs: {chunk:?} cannot be registered: {e}");
                None
            }
        }
    }
}
