//! Connections, made by rdma_cm: addresses to queue pairs, with a hello either way.
//!
//! One channel carries the events of all connections; nothing here blocks. Queue pairs are not
//! rdma_cm's ([`super::queue_pair`]): it only finds device and path, and exchanges the numbers.

use rdma_sys::{
    ibv_context, rdma_accept, rdma_ack_cm_event, rdma_bind_addr, rdma_cm_event, rdma_cm_event_type,
    rdma_cm_id, rdma_conn_param, rdma_connect, rdma_create_event_channel, rdma_create_id,
    rdma_destroy_event_channel, rdma_destroy_id, rdma_disconnect, rdma_establish,
    rdma_event_channel, rdma_get_cm_event, rdma_get_src_port, rdma_listen, rdma_port_space,
    rdma_reject, rdma_resolve_addr, rdma_resolve_route,
};
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::ptr::{null, null_mut};
use std::rc::Rc;

/// Private data that an event may carry (RDMA_CM, InfiniBand's REP).
const MAX_PRIVATE: usize = 196;
/// Requests that the kernel keeps until they are looked at.
const BACKLOG: i32 = 32;
/// For an address or a route to be found, ms.
const RESOLVE: i32 = 500;

struct Channel(*mut rdma_event_channel);

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: made by `rdma_create_event_channel`; every identifier holds it, so none is left.
        unsafe { rdma_destroy_event_channel(self.0) }
    }
}

/// The channel of events.
#[derive(Clone)]
pub(super) struct Connections(Rc<Channel>);

/// One connection, or an attempt at one. Dropping it ends it, and tells the other side.
pub(super) struct Connection {
    id: *mut rdma_cm_id,
    _channel: Rc<Channel>,
}

/// What identifies a connection in an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ConnectionId(usize);

/// What happened to a connection.
pub(super) enum Event {
    /// Someone wants to connect, and says this.
    Request(Connection, Vec<u8>),
    /// The address leads somewhere.
    Address,
    /// And so does the route.
    Route,
    /// The other side accepts, and says this.
    Response(Vec<u8>),
    /// The other side knows that this one has accepted.
    Established,
    /// It did not come about, or has ended; why, as rdma_cm calls it and with its status.
    Ended(&'static str, i32),
    /// Nothing that matters.
    Other,
}

/// What both sides must agree on.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    /// READs and atomics under way at once, each way.
    pub rd_atomic: u8,
    /// Retries.
    pub retry_count: u8,
    /// Retries for want of a posted buffer.
    pub rnr_retry: u8,
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A socket address in the shape of the C library's.
struct Raw(libc::sockaddr_storage);

impl Raw {
    fn new(address: SocketAddr) -> Raw {
        // SAFETY: a socket address is plain data, for which zero is valid.
        let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let into = (&raw mut storage).cast::<u8>();
        match address {
            SocketAddr::V4(a) => {
                // SAFETY: as above.
                let mut sin: libc::sockaddr_in = unsafe { std::mem::zeroed() };
                sin.sin_family = libc::AF_INET as u16;
                sin.sin_port = a.port().to_be();
                sin.sin_addr.s_addr = u32::from_ne_bytes(a.ip().octets());
                // SAFETY: the storage is large enough and aligned for every kind of address.
                unsafe { into.cast::<libc::sockaddr_in>().write(sin) };
            }
            SocketAddr::V6(a) => {
                // SAFETY: as above.
                let mut sin6: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
                sin6.sin6_family = libc::AF_INET6 as u16;
                sin6.sin6_port = a.port().to_be();
                sin6.sin6_addr.s6_addr = a.ip().octets();
                sin6.sin6_scope_id = a.scope_id();
                // SAFETY: as above.
                unsafe { into.cast::<libc::sockaddr_in6>().write(sin6) };
            }
        }
        Raw(storage)
    }

    fn as_mut<T>(&mut self) -> *mut T {
        (&raw mut self.0).cast()
    }
}

impl Connections {
    /// Opens the channel.
    ///
    /// # Errors
    /// There is no rdma_cm here (module `rdma_ucm`), or it may not be used.
    pub(super) fn new() -> io::Result<Connections> {
        // SAFETY: no arguments; the result is checked.
        let raw = unsafe { rdma_create_event_channel() };
        if raw.is_null() {
            return Err(io::Error::last_os_error());
        }
        let connections = Connections(Rc::new(Channel(raw)));
        rustix::io::ioctl_fionbio(connections.events(), true)?;
        Ok(connections)
    }

    /// Readable when there are events.
    pub(super) fn events(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel, and with it its descriptor, is open while `self` lives.
        unsafe { BorrowedFd::borrow_raw((*self.0.0).fd) }
    }

    fn connection(&self) -> io::Result<Connection> {
        let mut id = null_mut();
        // SAFETY: the channel is open and is kept by the connection.
        check(unsafe {
            rdma_create_id(self.0.0, &mut id, null_mut(), rdma_port_space::RDMA_PS_TCP)
        })?;
        Ok(Connection { id, _channel: self.0.clone() })
    }

    /// Listens on `address`.
    ///
    /// # Errors
    /// No RDMA device has that address, or the port is taken.
    pub(super) fn listen(&self, address: SocketAddr) -> io::Result<Listener> {
        let connection = self.connection()?;
        let mut raw = Raw::new(address);
        // SAFETY: the identifier is live; the address outlives the call.
        check(unsafe { rdma_bind_addr(connection.id, raw.as_mut()) })?;
        // SAFETY: as above.
        check(unsafe { rdma_listen(connection.id, BACKLOG) })?;
        Ok(Listener(connection))
    }

    /// Begins to connect from this node's address to `to`: [`Event::Address`] comes next.
    ///
    /// # Errors
    /// Nothing can lead there.
    pub(super) fn dial(&self, from: SocketAddr, to: SocketAddr) -> io::Result<Connection> {
        let connection = self.connection()?;
        let mut from = Raw::new(SocketAddr::new(from.ip(), 0));
        let mut to = Raw::new(to);
        // SAFETY: the identifier is live; the addresses outlive the call.
        check(unsafe { rdma_resolve_addr(connection.id, from.as_mut(), to.as_mut(), RESOLVE) })?;
        Ok(connection)
    }

    /// Finds the way from an address to itself, and waits for it. The library's first search opens
    /// files and sockets of its own (it looks for ibacm), which a sandbox would not allow later.
    ///
    /// # Errors
    /// No device leads there.
    pub(super) fn rehearse(address: SocketAddr) -> io::Result<()> {
        /// Destroys it, and with it the channel that it was given.
        struct Alone(*mut rdma_cm_id);
        impl Drop for Alone {
            fn drop(&mut self) {
                // SAFETY: made below; without a channel of this process's there are no events to
                // acknowledge.
                unsafe { rdma_destroy_id(self.0) };
            }
        }
        let mut id = null_mut();
        let space = rdma_port_space::RDMA_PS_TCP;
        // SAFETY: without a channel the library makes one, and calls wait for their events.
        check(unsafe { rdma_create_id(null_mut(), &mut id, null_mut(), space) })?;
        let alone = Alone(id);
        let mut from = Raw::new(SocketAddr::new(address.ip(), 0));
        let mut to = Raw::new(address);
        // SAFETY: the identifier is live; the addresses outlive the call.
        check(unsafe { rdma_resolve_addr(alone.0, from.as_mut(), to.as_mut(), RESOLVE) })?;
        // SAFETY: as above.
        check(unsafe { rdma_resolve_route(alone.0, RESOLVE) })
    }

    /// The next event, and of which connection.
    pub(super) fn next(&self) -> Option<(ConnectionId, Event)> {
        let mut raw: *mut rdma_cm_event = null_mut();
        // SAFETY: the channel is open and does not block.
        if unsafe { rdma_get_cm_event(self.0.0, &mut raw) } != 0 || raw.is_null() {
            return None;
        }
        // SAFETY: the event is valid until it is acknowledged, below; the identifier in it is live,
        // since destroying one waits for its events to be acknowledged, and of a request it is new
        // and this process's to destroy. For requests and responses the parameters are those of
        // connections, and `private_data_len` bytes of private data are readable if there are any.
        unsafe {
            let event = &*raw;
            let id = ConnectionId(event.id as usize);
            let said = || {
                let conn = &event.param.conn;
                let len = usize::from(conn.private_data_len).min(MAX_PRIVATE);
                if conn.private_data.is_null() || len == 0 {
                    return Vec::new();
                }
                std::slice::from_raw_parts(conn.private_data.cast::<u8>(), len).to_vec()
            };
            let what = match event.event {
                rdma_cm_event_type::RDMA_CM_EVENT_CONNECT_REQUEST => {
                    let bytes = said();
                    Event::Request(Connection { id: event.id, _channel: self.0.clone() }, bytes)
                }
                rdma_cm_event_type::RDMA_CM_EVENT_ADDR_RESOLVED => Event::Address,
                rdma_cm_event_type::RDMA_CM_EVENT_ROUTE_RESOLVED => Event::Route,
                rdma_cm_event_type::RDMA_CM_EVENT_CONNECT_RESPONSE => Event::Response(said()),
                rdma_cm_event_type::RDMA_CM_EVENT_ESTABLISHED => Event::Established,
                rdma_cm_event_type::RDMA_CM_EVENT_ADDR_ERROR => {
                    Event::Ended("no such address", event.status)
                }
                rdma_cm_event_type::RDMA_CM_EVENT_ROUTE_ERROR => {
                    Event::Ended("no route", event.status)
                }
                rdma_cm_event_type::RDMA_CM_EVENT_CONNECT_ERROR => {
                    Event::Ended("connecting failed", event.status)
                }
                rdma_cm_event_type::RDMA_CM_EVENT_UNREACHABLE => {
                    Event::Ended("no answer", event.status)
                }
                rdma_cm_event_type::RDMA_CM_EVENT_REJECTED => {
                    Event::Ended("rejected", event.status)
                }
                rdma_cm_event_type::RDMA_CM_EVENT_DISCONNECTED => {
                    Event::Ended("disconnected", event.status)
                }
                rdma_cm_event_type::RDMA_CM_EVENT_DEVICE_REMOVAL => {
                    Event::Ended("the device is gone", event.status)
                }
                _ => Event::Other,
            };
            rdma_ack_cm_event(raw);
            Some((id, what))
        }
    }
}

impl Connection {
    /// For comparing with an event's.
    pub(super) fn id(&self) -> ConnectionId {
        ConnectionId(self.id as usize)
    }

    pub(super) fn raw(&self) -> *mut rdma_cm_id {
        self.id
    }

    /// After [`Event::Address`]: [`Event::Route`] comes next.
    pub(super) fn find_route(&self) -> io::Result<()> {
        // SAFETY: the identifier is live.
        check(unsafe { rdma_resolve_route(self.id, RESOLVE) })
    }

    fn parameters(terms: Terms, queue_pair: u32, say: &[u8]) -> rdma_conn_param {
        // SAFETY: plain data, for which zero is valid.
        let mut p: rdma_conn_param = unsafe { std::mem::zeroed() };
        p.private_data = say.as_ptr().cast();
        p.private_data_len = say.len() as u8;
        p.responder_resources = terms.rd_atomic;
        p.initiator_depth = terms.rd_atomic;
        p.flow_control = 1;
        p.retry_count = terms.retry_count;
        p.rnr_retry_count = terms.rnr_retry;
        p.qp_num = queue_pair;
        p
    }

    /// After [`Event::Route`], with a queue pair: [`Event::Response`] comes next, or its end.
    pub(super) fn connect(&self, terms: Terms, queue_pair: u32, say: &[u8]) -> io::Result<()> {
        let mut p = Connection::parameters(terms, queue_pair, say);
        // SAFETY: the identifier is live; parameters and private data outlive the call.
        check(unsafe { rdma_connect(self.id, &mut p) })
    }

    /// After [`Event::Response`], once the queue pair can send.
    pub(super) fn establish(&self) -> io::Result<()> {
        // SAFETY: the identifier is live.
        check(unsafe { rdma_establish(self.id) })
    }

    /// After [`Event::Request`], once the queue pair can send: [`Event::Established`] comes next.
    pub(super) fn accept(&self, terms: Terms, queue_pair: u32, say: &[u8]) -> io::Result<()> {
        let mut p = Connection::parameters(terms, queue_pair, say);
        // SAFETY: the identifier is live; parameters and private data outlive the call.
        check(unsafe { rdma_accept(self.id, &mut p) })
    }

    /// After [`Event::Request`]: says no.
    pub(super) fn reject(self) {
        // SAFETY: the identifier is live; there is no private data. A rejection that is lost is a
        // connection that does not come about either.
        unsafe { rdma_reject(self.id, null(), 0) };
    }

    /// Tells the other side, without waiting, that this is the end.
    pub(super) fn disconnect(&self) {
        // SAFETY: the identifier is live. One that is not connected has nobody to tell.
        unsafe { rdma_disconnect(self.id) };
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: live until now; its events are acknowledged as they are taken.
        unsafe { rdma_destroy_id(self.id) };
    }
}

/// A connection that listens.
pub(super) struct Listener(Connection);

impl Listener {
    /// The device that has the address: its context, port and GID there.
    pub(super) fn device(&self) -> Option<(*mut ibv_context, u8, [u8; 16])> {
        // SAFETY: the identifier is live; binding to one address has chosen a device, if any has it,
        // and filled in the addresses of the InfiniBand kind.
        unsafe {
            let id = &*self.0.id;
            let gid = id.route.addr.addr.ibaddr.sgid.raw;
            (!id.verbs.is_null()).then_some((id.verbs, id.port_num, gid))
        }
    }

    /// The port that peers connect to.
    pub(super) fn port(&self) -> u16 {
        // SAFETY: the identifier is live and bound.
        u16::from_be(unsafe { rdma_get_src_port(self.0.id) })
    }
}
