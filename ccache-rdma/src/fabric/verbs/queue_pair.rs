//! A reliable connection's queue pair: its states, what may be done through it, and its end.

use super::config::Patience;
use super::connection::Connection;
use super::device::Device;
use rdma_sys::{
    ibv_access_flags, ibv_create_qp, ibv_destroy_qp, ibv_modify_qp, ibv_mtu, ibv_port_attr,
    ibv_post_recv, ibv_post_send, ibv_qp, ibv_qp_attr, ibv_qp_attr_mask, ibv_qp_init_attr,
    ibv_qp_state, ibv_qp_type, ibv_query_port, ibv_recv_wr, ibv_send_flags, ibv_send_wr, ibv_sge,
    ibv_wr_opcode, rdma_init_qp_attr,
};
use std::io;
use std::ptr::null_mut;
use std::rc::Rc;

/// Bytes that a work request may carry in itself.
const INLINE: u32 = 64;

/// What a peer may do through a queue pair: everything, since it is only connected once admitted.
const ACCESS: u32 = ibv_access_flags::IBV_ACCESS_REMOTE_READ.0
    | ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0
    | ibv_access_flags::IBV_ACCESS_REMOTE_ATOMIC.0;

/// A queue pair. Dropping it destroys it; what it was doing is over when that returns.
pub(super) struct QueuePair {
    qp: *mut ibv_qp,
    inline: u32,
    device: Rc<Device>,
    wrs: Vec<ibv_send_wr>,
    sges: Vec<ibv_sge>,
}

/// Memory of this node's, of a registration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Local {
    /// Address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// Key of the registration.
    pub key: u32,
}

/// Memory of the other side's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Remote {
    /// Address, which is an offset in what the key stands for.
    pub offset: u64,
    /// Key of the registration.
    pub key: u32,
}

/// What a work request does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    Read(Remote),
    Write(Remote),
    CompareSwap(Remote, u64, u64),
    FetchAdd(Remote, u64),
    Send,
}

type Mask = ibv_qp_attr_mask;

fn check(result: i32) -> io::Result<()> {
    // ibv_modify_qp and its like answer an errno.
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

impl QueuePair {
    /// A new one, which does nothing yet. It can hold `receives` posted buffers.
    ///
    /// # Errors
    /// The device has no room for it.
    pub(super) fn new(device: &Rc<Device>, receives: u32) -> io::Result<QueuePair> {
        // SAFETY: plain data, for which zero is valid.
        let mut init: ibv_qp_init_attr = unsafe { std::mem::zeroed() };
        init.send_cq = device.cq;
        init.recv_cq = device.cq;
        init.cap.max_send_wr = device.depth;
        init.cap.max_recv_wr = receives.max(1);
        init.cap.max_send_sge = 1;
        init.cap.max_recv_sge = 1;
        init.cap.max_inline_data = INLINE;
        init.qp_type = ibv_qp_type::IBV_QPT_RC;
        // SAFETY: domain and queue live as long as the device, which is kept.
        let mut qp = unsafe { ibv_create_qp(device.pd, &mut init) };
        if qp.is_null() {
            // A device that carries nothing in work requests.
            init.cap.max_inline_data = 0;
            // SAFETY: as above.
            qp = unsafe { ibv_create_qp(device.pd, &mut init) };
        }
        if qp.is_null() {
            return Err(io::Error::last_os_error());
        }
        let inline = init.cap.max_inline_data.min(INLINE);
        let room = device.depth as usize;
        let device = device.clone();
        let (wrs, sges) = (Vec::with_capacity(room), Vec::with_capacity(room));
        Ok(QueuePair { qp, inline, device, wrs, sges })
    }

    /// Its number, for the other side.
    pub(super) fn number(&self) -> u32 {
        // SAFETY: the queue pair lives as long as `self`.
        unsafe { (*self.qp).qp_num }
    }

    fn modify(&self, attributes: &mut ibv_qp_attr, mask: u32) -> io::Result<()> {
        // SAFETY: the queue pair lives as long as `self`; the attributes outlive the call, and those
        // named in the mask were filled in by the caller.
        check(unsafe { ibv_modify_qp(self.qp, attributes, mask as i32) })
    }

    /// What rdma_cm knows of a state's attributes.
    fn known(by: &Connection, state: ibv_qp_state::Type) -> io::Result<(ibv_qp_attr, u32)> {
        // SAFETY: plain data, for which zero is valid.
        let mut attributes: ibv_qp_attr = unsafe { std::mem::zeroed() };
        attributes.qp_state = state;
        let mut mask = 0;
        // SAFETY: the connection's identifier is live; both outlive the call.
        if unsafe { rdma_init_qp_attr(by.raw(), &mut attributes, &mut mask) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((attributes, mask as u32))
    }

    /// INIT: buffers may be posted, and the peer's access is settled.
    ///
    /// # Errors
    /// rdma_cm has no path yet, or the device refuses.
    pub(super) fn prepare(&self, by: &Connection) -> io::Result<()> {
        let (mut a, mask) = QueuePair::known(by, ibv_qp_state::IBV_QPS_INIT)?;
        a.qp_access_flags = ACCESS;
        self.modify(&mut a, mask | Mask::IBV_QP_ACCESS_FLAGS.0)
    }

    /// RTR, then RTS: connected with the queue pair that the other side named.
    ///
    /// # Errors
    /// rdma_cm or the device refuses.
    pub(super) fn join(&self, by: &Connection, patience: Patience) -> io::Result<()> {
        let (mut a, mask) = QueuePair::known(by, ibv_qp_state::IBV_QPS_RTR)?;
        a.max_dest_rd_atomic = self.device.rd_atomic;
        a.min_rnr_timer = patience.rnr_timer;
        self.modify(&mut a, mask)?;
        let (mut a, mask) = QueuePair::known(by, ibv_qp_state::IBV_QPS_RTS)?;
        self.to_send(&mut a, mask, patience)
    }

    fn to_send(&self, a: &mut ibv_qp_attr, mask: u32, patience: Patience) -> io::Result<()> {
        a.timeout = patience.ack_timeout;
        a.retry_cnt = patience.retry_count;
        a.rnr_retry = patience.rnr_retry;
        a.max_rd_atomic = self.device.rd_atomic;
        let ours = Mask::IBV_QP_TIMEOUT.0
            | Mask::IBV_QP_RETRY_CNT.0
            | Mask::IBV_QP_RNR_RETRY.0
            | Mask::IBV_QP_MAX_QP_RD_ATOMIC.0;
        self.modify(a, mask | ours)
    }

    /// Connects it with `other` on the same device; with itself, for loopback.
    ///
    /// # Errors
    /// The device does not know its own address, or refuses.
    pub(super) fn join_local(&self, other: &QueuePair, patience: Patience) -> io::Result<()> {
        let device = &self.device;
        let (gid, index) = device.own_gid.ok_or(io::ErrorKind::AddrNotAvailable)?;
        // SAFETY: plain data, for which zero is valid.
        let mut port: ibv_port_attr = unsafe { std::mem::zeroed() };
        // SAFETY: the context is open. The library writes at most the part of the attributes that
        // its first version had, which is a prefix of this.
        check(unsafe { ibv_query_port(device.context, device.port, (&raw mut port).cast()) })?;
        // SAFETY: as above.
        let mut a: ibv_qp_attr = unsafe { std::mem::zeroed() };
        a.qp_state = ibv_qp_state::IBV_QPS_INIT;
        a.port_num = device.port;
        a.qp_access_flags = ACCESS;
        self.modify(
            &mut a,
            Mask::IBV_QP_STATE.0
                | Mask::IBV_QP_PKEY_INDEX.0
                | Mask::IBV_QP_PORT.0
                | Mask::IBV_QP_ACCESS_FLAGS.0,
        )?;
        a.qp_state = ibv_qp_state::IBV_QPS_RTR;
        a.path_mtu = if port.active_mtu == 0 { ibv_mtu::IBV_MTU_1024 } else { port.active_mtu };
        a.dest_qp_num = other.number();
        a.max_dest_rd_atomic = device.rd_atomic;
        a.min_rnr_timer = patience.rnr_timer;
        a.ah_attr.is_global = 1;
        a.ah_attr.port_num = device.port;
        a.ah_attr.dlid = port.lid;
        a.ah_attr.grh.dgid = gid;
        a.ah_attr.grh.sgid_index = index;
        a.ah_attr.grh.hop_limit = 1;
        self.modify(
            &mut a,
            Mask::IBV_QP_STATE.0
                | Mask::IBV_QP_AV.0
                | Mask::IBV_QP_PATH_MTU.0
                | Mask::IBV_QP_DEST_QPN.0
                | Mask::IBV_QP_RQ_PSN.0
                | Mask::IBV_QP_MAX_DEST_RD_ATOMIC.0
                | Mask::IBV_QP_MIN_RNR_TIMER.0,
        )?;
        a.qp_state = ibv_qp_state::IBV_QPS_RTS;
        self.to_send(&mut a, Mask::IBV_QP_STATE.0 | Mask::IBV_QP_SQ_PSN.0, patience)
    }

    /// Takes the peer's access: its next request is refused, with an answer that says so.
    ///
    /// # Errors
    /// The device refuses.
    pub(super) fn shut(&self) -> io::Result<()> {
        // SAFETY: plain data, for which zero is valid.
        let mut a: ibv_qp_attr = unsafe { std::mem::zeroed() };
        self.modify(&mut a, Mask::IBV_QP_ACCESS_FLAGS.0)
    }

    /// Ends all that is under way, both ways.
    ///
    /// # Errors
    /// The device refuses.
    pub(super) fn stop(&self) -> io::Result<()> {
        // SAFETY: plain data, for which zero is valid.
        let mut a: ibv_qp_attr = unsafe { std::mem::zeroed() };
        a.qp_state = ibv_qp_state::IBV_QPS_ERR;
        self.modify(&mut a, Mask::IBV_QP_STATE.0)
    }

    /// Posts a buffer for one message. The memory must stay registered while this lives.
    ///
    /// # Errors
    /// There is no room for it.
    pub(super) fn receive(&self, id: u64, into: Local) -> io::Result<()> {
        let mut sge = ibv_sge { addr: into.address, length: into.len, lkey: into.key };
        // SAFETY: plain data, for which zero is valid.
        let mut wr: ibv_recv_wr = unsafe { std::mem::zeroed() };
        wr.wr_id = id;
        wr.sg_list = &mut sge;
        wr.num_sge = 1;
        let mut bad = null_mut();
        // SAFETY: the queue pair lives as long as `self`; request and element outlive the call. The
        // device writes only what `into`'s registration covers.
        check(unsafe { ibv_post_recv(self.qp, &mut wr, &mut bad) })
    }

    /// How many requests are prepared.
    pub(super) fn prepared(&self) -> usize {
        self.wrs.len()
    }

    /// Prepares a work request. At most as many as the device's depth may be prepared and under
    /// way; `fenced`: not before the READs and atomics before it are complete.
    pub(super) fn add(&mut self, id: u64, work: Work, local: Local, fenced: bool) {
        // SAFETY: plain data, for which zero is valid.
        let mut wr: ibv_send_wr = unsafe { std::mem::zeroed() };
        wr.wr_id = id;
        wr.num_sge = 1;
        if fenced {
            wr.send_flags |= ibv_send_flags::IBV_SEND_FENCE.0;
        }
        let carries = matches!(work, Work::Write(_) | Work::Send);
        if carries && local.len <= self.inline {
            wr.send_flags |= ibv_send_flags::IBV_SEND_INLINE.0;
        }
        match work {
            Work::Read(at) => {
                wr.opcode = ibv_wr_opcode::IBV_WR_RDMA_READ;
                wr.wr.rdma = rdma_sys::rdma_t { remote_addr: at.offset, rkey: at.key };
            }
            Work::Write(at) => {
                wr.opcode = ibv_wr_opcode::IBV_WR_RDMA_WRITE;
                wr.wr.rdma = rdma_sys::rdma_t { remote_addr: at.offset, rkey: at.key };
            }
            Work::CompareSwap(at, expect, new) => {
                wr.opcode = ibv_wr_opcode::IBV_WR_ATOMIC_CMP_AND_SWP;
                wr.wr.atomic = rdma_sys::atomic_t {
                    remote_addr: at.offset,
                    compare_add: expect,
                    swap: new,
                    rkey: at.key,
                };
            }
            Work::FetchAdd(at, add) => {
                wr.opcode = ibv_wr_opcode::IBV_WR_ATOMIC_FETCH_AND_ADD;
                wr.wr.atomic = rdma_sys::atomic_t {
                    remote_addr: at.offset,
                    compare_add: add,
                    swap: 0,
                    rkey: at.key,
                };
            }
            Work::Send => wr.opcode = ibv_wr_opcode::IBV_WR_SEND,
        }
        self.wrs.push(wr);
        self.sges.push(ibv_sge { addr: local.address, length: local.len, lkey: local.key });
    }

    /// Asks for a completion of the last request prepared, and so of all before it.
    pub(super) fn signal(&mut self) {
        if let Some(wr) = self.wrs.last_mut() {
            wr.send_flags |= ibv_send_flags::IBV_SEND_SIGNALED.0;
        }
    }

    /// Posts what was prepared. The memory of the requests must stay registered until they are
    /// complete, or this is dropped.
    ///
    /// # Errors
    /// The device refuses; the queue pair is of no use any more.
    pub(super) fn post(&mut self) -> io::Result<()> {
        self.signal();
        let sges = self.sges.as_mut_ptr();
        for i in 0..self.wrs.len() {
            // SAFETY: there are as many elements as requests.
            self.wrs[i].sg_list = unsafe { sges.add(i) };
        }
        for i in 1..self.wrs.len() {
            let next = &raw mut self.wrs[i];
            self.wrs[i - 1].next = next;
        }
        let Some(first) = self.wrs.first_mut() else { return Ok(()) };
        let mut bad = null_mut();
        // SAFETY: the queue pair lives as long as `self`. Requests and elements stand in vectors
        // that do not change during the call, linked among themselves; local memory is covered by
        // registrations that the caller keeps, which the device checks, as it does the length of
        // what is carried inline (readable, since the same registration covers it).
        let result = check(unsafe { ibv_post_send(self.qp, first, &mut bad) });
        self.wrs.clear();
        self.sges.clear();
        result
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once. Returns when nothing of it is under way any more.
        unsafe { ibv_destroy_qp(self.qp) };
    }
}
