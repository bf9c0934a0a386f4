//! The device: its context, protection domain, completion queue and channel, and what it can do.

use super::connection::Listener;
use rdma_sys::{
    ibv_ack_cq_events, ibv_alloc_pd, ibv_comp_channel, ibv_context, ibv_cq,
    ibv_create_comp_channel, ibv_create_cq, ibv_dealloc_pd, ibv_destroy_comp_channel,
    ibv_destroy_cq, ibv_device_attr, ibv_get_cq_event, ibv_get_device_name, ibv_gid, ibv_pd,
    ibv_poll_cq, ibv_query_device, ibv_query_gid, ibv_req_notify_cq, ibv_wc,
};
use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::null_mut;

/// rxe's vendor number (RXE_VENDOR_ID of the kernel's rxe_param.h). Its responder takes one request
/// packet after the other, and answers a repeated atomic with what it answered before.
const RXE: u32 = 0x00ff_ffff;
/// READs and atomics under way on a queue pair at once, each way: more gains nothing.
const RD_ATOMIC: i32 = 16;
/// Entries of a port's table of GIDs that are looked at.
const GIDS: i32 = 256;

/// A completion.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    /// What the work request was called.
    pub id: u64,
    /// Whether it succeeded.
    pub ok: bool,
    /// Status of the specification, for the log.
    pub status: u32,
    /// Bytes received, for a receive that succeeded.
    pub len: u32,
}

/// An open device. Everything made of it keeps it alive.
pub(super) struct Device {
    pub(super) pd: *mut ibv_pd,
    pub(super) cq: *mut ibv_cq,
    channel: *mut ibv_comp_channel,
    pub(super) context: *mut ibv_context,
    /// Port that the listening address is on.
    pub(super) port: u8,
    /// READs and atomics that a queue pair may have under way.
    pub(super) rd_atomic: u8,
    /// Whether its responder finishes one atomic before it begins what comes after.
    pub(super) atomics_in_order: bool,
    /// Whether it can be told to hold a request back until the READs and atomics before it are complete
    /// (IBV_SEND_FENCE). rxe can, but a queue pair that had to repeat a READ then holds it back for
    /// ever (seen with Linux 6.12, several times a minute between emulated machines).
    pub(super) fences: bool,
    /// Work requests that a queue pair can hold.
    pub(super) depth: u32,
    /// GID and its index, for a queue pair that is connected on this device.
    pub(super) own_gid: Option<(ibv_gid, u8)>,
    /// The context is the listener's.
    _listener: Listener,
}

impl Device {
    /// The device behind `listener`, which must be called `name` if there is one.
    ///
    /// # Errors
    /// There is none, it has another name, or it refuses what is needed.
    pub(super) fn open(listener: Listener, name: Option<&str>) -> io::Result<Device> {
        let (context, port, gid) = listener.device().ok_or_else(|| {
            io::Error::other("no RDMA device has the address that peers are to connect to")
        })?;
        // SAFETY: the context is open while the listener lives, which is kept; its device's name is
        // a C string that lives as long.
        let called = unsafe { CStr::from_ptr(ibv_get_device_name((*context).device)) };
        if let Some(name) = name
            && called.to_bytes() != name.as_bytes()
        {
            return Err(io::Error::other(format!(
                "the address belongs to the RDMA device {}, not to {name}",
                called.to_string_lossy()
            )));
        }
        // SAFETY: all-zero attributes are valid, and are filled in by the call.
        let mut attributes: ibv_device_attr = unsafe { std::mem::zeroed() };
        // SAFETY: the context is open; the attributes outlive the call.
        if unsafe { ibv_query_device(context, &mut attributes) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let rd_atomic =
            RD_ATOMIC.min(attributes.max_qp_rd_atom).min(attributes.max_qp_init_rd_atom);
        // From here on Drop frees what there is.
        let mut device = Device {
            pd: null_mut(),
            cq: null_mut(),
            channel: null_mut(),
            context,
            port,
            rd_atomic: rd_atomic.clamp(1, 255) as u8,
            fences: attributes.vendor_id != RXE,
            atomics_in_order: attributes.vendor_id == RXE,
            depth: super::DEPTH.min(attributes.max_qp_wr.max(1) as u32),
            own_gid: None,
            _listener: listener,
        };
        // SAFETY: the context is open; each result is checked before it is used.
        unsafe {
            device.pd = ibv_alloc_pd(context);
            if device.pd.is_null() {
                return Err(io::Error::last_os_error());
            }
            device.channel = ibv_create_comp_channel(context);
            if device.channel.is_null() {
                return Err(io::Error::last_os_error());
            }
            let entries = super::CQ_ENTRIES.min(attributes.max_cqe);
            device.cq = ibv_create_cq(context, entries, null_mut(), device.channel, 0);
            if device.cq.is_null() {
                return Err(io::Error::last_os_error());
            }
        }
        rustix::io::ioctl_fionbio(device.events(), true)?;
        // Now: a sandbox allows no files.
        device.own_gid = device.find_gid(gid);
        Ok(device)
    }

    /// Readable when the armed completion queue had a completion.
    pub(super) fn events(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel, and with it its descriptor, is open while `self` lives.
        unsafe { BorrowedFd::borrow_raw((*self.channel).fd) }
    }

    /// Takes and acknowledges the channel's event: each arming leads to one at most.
    pub(super) fn take_event(&self) {
        let (mut cq, mut context) = (null_mut(), null_mut());
        // SAFETY: the channel does not block; an event taken is of the one queue, and is acknowledged
        // at once, as destroying the queue demands.
        unsafe {
            if ibv_get_cq_event(self.channel, &mut cq, &mut context) == 0 {
                ibv_ack_cq_events(cq, 1);
            }
        }
    }

    /// Asks for one event at the next completion. Those that came before must be polled for
    /// afterwards.
    pub(super) fn arm(&self) -> bool {
        // SAFETY: the queue lives as long as `self`.
        unsafe { ibv_req_notify_cq(self.cq, 0) == 0 }
    }

    /// Takes completions; how many.
    pub(super) fn poll(&self, into: &mut [Completion]) -> usize {
        const BATCH: usize = 32;
        // SAFETY: work completions are plain data, for which zero is valid.
        let mut found: [ibv_wc; BATCH] = unsafe { std::mem::zeroed() };
        let room = into.len().min(BATCH);
        // SAFETY: the queue lives as long as `self`, and `found` has room for that many.
        let n = unsafe { ibv_poll_cq(self.cq, room as i32, found.as_mut_ptr()) };
        let n = usize::try_from(n).unwrap_or(0).min(room);
        for (c, wc) in into.iter_mut().zip(&found[..n]) {
            *c = Completion {
                id: wc.wr_id,
                ok: wc.status == 0,
                status: wc.status,
                len: wc.byte_len,
            };
        }
        n
    }

    fn find_gid(&self, own: [u8; 16]) -> Option<(ibv_gid, u8)> {
        let name = self.name();
        let types = |i: i32| {
            let port = self.port;
            let path = format!("/sys/class/infiniband/{name}/ports/{port}/gid_attrs/types/{i}");
            std::fs::read_to_string(path).unwrap_or_default()
        };
        let mut found = None;
        for i in 0..GIDS {
            let mut gid = ibv_gid { raw: [0; 16] };
            // SAFETY: the context is open; the GID outlives the call. Beyond the table's end the
            // call fails.
            if unsafe { ibv_query_gid(self.context, self.port, i, &mut gid) } != 0 {
                break;
            }
            // SAFETY: every bit pattern of the union is a valid array of bytes.
            if unsafe { gid.raw } != own {
                continue;
            }
            // The same address stands there once per version of RoCE.
            if types(i).contains("v2") {
                return Some((gid, i as u8));
            }
            found = found.or(Some((gid, i as u8)));
        }
        found
    }

    /// Such as `rxe0`.
    pub(super) fn name(&self) -> String {
        // SAFETY: the context is open; its device's name is a C string that lives as long.
        let name = unsafe { CStr::from_ptr(ibv_get_device_name((*self.context).device)) };
        name.to_string_lossy().into_owned()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: each was made by `open` or is null; queue pairs and memory registrations hold the
        // device, so none of them is left; every event was acknowledged.
        unsafe {
            if !self.cq.is_null() {
                ibv_destroy_cq(self.cq);
            }
            if !self.channel.is_null() {
                ibv_destroy_comp_channel(self.channel);
            }
            if !self.pd.is_null() {
                ibv_dealloc_pd(self.pd);
            }
        }
    }
}
