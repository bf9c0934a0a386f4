//! How the nodes of one machine find each other's arenas: Unix sockets over which memory is passed
//! (SCM_RIGHTS), and whose end says that the process at the other end died.
//!
//! Of each pair of nodes the one with the lower slot dials. Both send a hello that says who they
//! are and which incarnation of the other they mean, with their arena's descriptors: a socket's path
//! may by now be a later incarnation's, which must not take the short-lived connection for a link. The connection then stays open and silent.

use crate::arena::Arena;
use crate::layout::{REGIONS, RegionId};
use crate::view::MAX_NODES;
use clustix_pd::Region;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, connect,
    recvmsg, sendmsg, socket_with, sockopt,
};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const MAGIC: u64 = 0x31_6b_6e_69_6c_78_6c_63; // "clxlink1"
const HELLO: usize = 40;
/// A handshake that takes longer is given up, ns.
const PATIENCE: u64 = 1_000_000_000;
/// Connections at once, of all kinds; one more is refused.
const MAX_LINKS: usize = 4 * MAX_NODES;

/// What happened to a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkEvent {
    /// That node's arena is here.
    Up(u8, u64),
    /// Its ccache has closed the connection: it is dead, or as good as.
    Broken(u8, u64),
    /// Its ccache's process has ended.
    Ended(u8, u64),
}

struct Link {
    slot: u8,
    incarnation: u64,
    stream: OwnedFd,
    process: Option<OwnedFd>,
    arena: Arena,
    broken: bool,
    ended: bool,
}

struct Half {
    stream: OwnedFd,
    /// Whom this node dialled; `None` for a connection that came in.
    to: Option<(u8, u64)>,
    until: u64,
}

/// All links of one node.
pub struct Links {
    slot: u8,
    incarnation: u64,
    listener: Option<OwnedFd>,
    own: Arena,
    owner: u32,
    halves: Vec<Half>,
    links: Vec<Link>,
}

impl Links {
    /// The links of a node that listens on `listener` (a Unix stream socket) and has the arena
    /// `own`, whose regions must have kept their descriptors. Only processes of the user `owner`
    /// are answered.
    pub fn new(
        slot: u8,
        incarnation: u64,
        owner: u32,
        listener: Option<OwnedFd>,
        own: Arena,
    ) -> Links {
        if let Some(l) = &listener {
            // Only how waiting is done; a blocking one would stop the node at the first accept.
            let _ = rustix::io::ioctl_fionbio(l, true);
        }
        Links { slot, incarnation, listener, own, owner, halves: Vec::new(), links: Vec::new() }
    }

    /// Whether handshakes are under way, so that [`Links::poll`] is wanted soon.
    pub fn busy(&self) -> bool {
        !self.halves.is_empty()
    }

    /// The arena of that incarnation, if it is here.
    pub fn arena(&self, slot: u8, incarnation: u64) -> Option<&Arena> {
        self.link(slot, incarnation).map(|l| &l.arena)
    }

    fn link(&self, slot: u8, incarnation: u64) -> Option<&Link> {
        self.links.iter().find(|l| l.slot == slot && l.incarnation == incarnation)
    }

    /// Dials that incarnation at `path`, if it is this node that has to and it is not linked yet.
    pub fn dial(&mut self, now: u64, slot: u8, incarnation: u64, path: &str) {
        let linked = self.link(slot, incarnation).is_some();
        let dialling = self.halves.iter().any(|h| h.to == Some((slot, incarnation)));
        if slot <= self.slot || linked || dialling || self.halves.len() >= MAX_LINKS {
            return;
        }
        let connected = || -> rustix::io::Result<OwnedFd> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            connect(&stream, &SocketAddrUnix::new(path)?)?;
            Ok(stream)
        };
        // A node that is not there (yet) is dialled again at the caller's next look.
        if let Ok(stream) = connected()
            && self.send_hello(stream.as_fd(), incarnation).is_ok()
        {
            self.halves.push(Half { stream, to: Some((slot, incarnation)), until: now + PATIENCE });
        }
    }

    fn send_hello(&self, stream: BorrowedFd<'_>, to: u64) -> rustix::io::Result<()> {
        let mut hello = [0; HELLO];
        let words = [MAGIC, u64::from(self.slot), self.incarnation, REGIONS as u64, to];
        for (bytes, word) in hello.chunks_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let fds: Vec<BorrowedFd<'_>> =
            RegionId::all().filter_map(|id| self.own.region(id).as_fd()).collect();
        if fds.len() != REGIONS {
            return Err(rustix::io::Errno::BADF);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(REGIONS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let sent = sendmsg(stream, &[IoSlice::new(&hello)], &mut control, SendFlags::NOSIGNAL)?;
        if sent == HELLO { Ok(()) } else { Err(rustix::io::Errno::MSGSIZE) }
    }

    /// Reads a hello to this incarnation: `None` while there is none.
    fn receive_hello(
        &self,
        stream: BorrowedFd<'_>,
    ) -> rustix::io::Result<Option<(u8, u64, Arena)>> {
        let mut hello = [0; HELLO];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(REGIONS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = match recvmsg(stream, &mut [IoSliceMut::new(&mut hello)], &mut control, flags) {
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            other => other?.bytes,
        };
        let fds: Vec<OwnedFd> = control
            .drain()
            .filter_map(|m| match m {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        let mut words = [0; HELLO / 8];
        for (word, bytes) in words.iter_mut().zip(hello.chunks(8)) {
            *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        }
        let [magic, slot, incarnation, regions, to] = words;
        let slot = u8::try_from(slot).ok().filter(|s| usize::from(*s) < MAX_NODES);
        let (Some(slot), true) =
            (slot, got == HELLO && magic == MAGIC && regions == REGIONS as u64)
        else {
            return Err(rustix::io::Errno::PROTO);
        };
        if to != self.incarnation {
            return Err(rustix::io::Errno::PROTO);
        }
        let mut mapped = Vec::new();
        for (id, fd) in RegionId::all().zip(fds) {
            // Mapping more than there is would be a trap for the first access beyond.
            let len = u64::try_from(rustix::fs::fstat(&fd)?.st_size).unwrap_or(0);
            if len < id.len() {
                return Err(rustix::io::Errno::PROTO);
            }
            let region = Region::map(fd, id.len() as usize, true, false)
                .map_err(|_| rustix::io::Errno::NOMEM)?;
            mapped.push(region);
        }
        let regions = mapped.try_into().map_err(|_| rustix::io::Errno::PROTO)?;
        let arena = Arena::new(regions).ok_or(rustix::io::Errno::PROTO)?;
        Ok(Some((slot, incarnation, arena)))
    }

    /// Takes what happened since the last call: accepts, goes on with handshakes, sees deaths.
    pub fn poll(&mut self, now: u64, out: &mut Vec<LinkEvent>) {
        self.look(out);
        self.accept(now);
        let mut i = 0;
        while let Some(half) = self.halves.get(i) {
            let done = match self.receive_hello(half.stream.as_fd()) {
                Ok(None) if now < half.until => {
                    i += 1;
                    continue;
                }
                Ok(Some(hello)) => Some(hello),
                _ => None,
            };
            let half = self.halves.swap_remove(i);
            let Some((slot, incarnation, arena)) = done else { continue };
            let as_expected = match half.to {
                Some(to) => to == (slot, incarnation),
                // Who dials has the lower slot, and is answered now.
                None => {
                    slot < self.slot && self.send_hello(half.stream.as_fd(), incarnation).is_ok()
                }
            };
            if as_expected && self.keep(slot, incarnation, half.stream, arena) {
                out.push(LinkEvent::Up(slot, incarnation));
            }
        }
    }

    fn keep(&mut self, slot: u8, incarnation: u64, stream: OwnedFd, arena: Arena) -> bool {
        let newer = self.links.iter().any(|l| l.slot == slot && l.incarnation >= incarnation);
        if newer {
            return false;
        }
        self.links.retain(|l| l.slot != slot);
        let process = sockopt::socket_peercred(&stream)
            .ok()
            .and_then(|c| pidfd_open(c.pid, PidfdFlags::empty()).ok());
        self.links.push(Link {
            slot,
            incarnation,
            stream,
            process,
            arena,
            broken: false,
            ended: false,
        });
        true
    }

    /// One system call says which sockets and processes have news.
    fn look(&mut self, out: &mut Vec<LinkEvent>) {
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(2 * self.links.len());
        for l in self.links.iter().filter(|l| !l.ended) {
            fds.push(PollFd::new(&l.stream, PollFlags::IN | PollFlags::RDHUP));
            // A descriptor of a process is readable once that has ended.
            fds.push(PollFd::new(l.process.as_ref().unwrap_or(&l.stream), PollFlags::IN));
        }
        if fds.is_empty() {
            return;
        }
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        if poll(&mut fds, Some(&none)).is_err() {
            return;
        }
        let closed = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
        let news: Vec<(bool, bool)> = fds
            .chunks_exact(2)
            .map(|f| (f[0].revents().intersects(closed), f[1].revents().contains(PollFlags::IN)))
            .collect();
        for (l, (closed, ended)) in self.links.iter_mut().filter(|l| !l.ended).zip(news) {
            let ended = ended && l.process.is_some();
            if (closed || ended) && !std::mem::replace(&mut l.broken, true) {
                out.push(LinkEvent::Broken(l.slot, l.incarnation));
            }
            if ended {
                l.ended = true;
                out.push(LinkEvent::Ended(l.slot, l.incarnation));
            }
        }
    }

    fn accept(&mut self, now: u64) {
        let Some(listener) = &self.listener else { return };
        while self.halves.len() + self.links.len() < MAX_LINKS {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let Ok(stream) = accept_with(listener, flags) else { return };
            let ours =
                sockopt::socket_peercred(&stream).is_ok_and(|c| c.uid.as_raw() == self.owner);
            if ours {
                self.halves.push(Half { stream, to: None, until: now + PATIENCE });
            }
        }
    }

    /// Kills the ccache of a peer that does not leave this node's memory (rule 33). Its node ends
    /// with it.
    pub fn kill(&self, slot: u8) {
        if let Some(process) =
            self.links.iter().find(|l| l.slot == slot).and_then(|l| l.process.as_ref())
        {
            // It may be dead already, which is what is wanted.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::control;
    use std::os::unix::net::UnixListener;

    #[test]
    fn two_nodes_exchange_arenas_and_notice_the_end() {
        let dir = std::env::temp_dir().join(format!("clx-links-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("1.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let me = rustix::process::getuid().as_raw();
        let (a_arena, b_arena) = (Arena::anonymous().unwrap(), Arena::anonymous().unwrap());
        let mut a = Links::new(0, 7, me, None, a_arena.clone());
        let mut b = Links::new(1, 9, me, Some(listener.into()), b_arena.clone());
        let path = path.to_str().unwrap();
        b.dial(0, 0, 7, path);
        assert!(!b.busy(), "the higher slot does not dial");
        a.dial(0, 1, 9, path);
        assert!(a.busy());
        let mut out = Vec::new();
        b.poll(1, &mut out);
        a.poll(1, &mut out);
        assert_eq!(out, [LinkEvent::Up(0, 7), LinkEvent::Up(1, 9)]);
        a.arena(1, 9).unwrap().set_control(control::LEASE, 42);
        assert_eq!(b_arena.control(control::LEASE), 42);
        b.arena(0, 7).unwrap().set_control(control::LEASE, 43);
        assert_eq!(a_arena.control(control::LEASE), 43);
        out.clear();
        a.poll(2, &mut out);
        assert!(out.is_empty());
        drop(b);
        a.poll(3, &mut out);
        a.poll(4, &mut out);
        assert_eq!(out, [LinkEvent::Broken(1, 9)]);
        // Whoever answers as another than the one dialled is not taken.
        let listener = UnixListener::bind(dir.join("2.sock")).unwrap();
        let mut c = Links::new(2, 3, me, Some(listener.into()), b_arena);
        a.dial(5, 2, 4, dir.join("2.sock").to_str().unwrap());
        out.clear();
        c.poll(6, &mut out);
        a.poll(6, &mut out);
        assert_eq!(out, [], "and it does not take the one who dialled for a peer");
        assert!(a.arena(2, 3).is_none() && a.arena(2, 4).is_none() && c.arena(0, 7).is_none());
        // The one that is there is linked all the same.
        a.dial(7, 2, 3, dir.join("2.sock").to_str().unwrap());
        c.poll(8, &mut out);
        a.poll(8, &mut out);
        assert_eq!(out, [LinkEvent::Up(0, 7), LinkEvent::Up(2, 3)]);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
