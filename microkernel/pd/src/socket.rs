//! Packets with descriptors over an AF_UNIX SOCK_SEQPACKET socket.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::wire::{MAX_DESCRIPTORS, MAX_PACKET};

/// Sends one packet; `descriptors` are passed along. Waits for room unless the socket does not
/// block or `dont_wait` is set.
pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    dont_wait: bool,
) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    let flags =
        SendFlags::NOSIGNAL | if dont_wait { SendFlags::DONTWAIT } else { SendFlags::empty() };
    loop {
        match sendmsg(socket.as_fd(), &[IoSlice::new(bytes)], &mut control, flags) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// One packet as it came in.
#[derive(Debug)]
pub struct Received {
    /// The descriptors beside it, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
    /// The sender's process id, if the socket asks for credentials (SO_PASSCRED).
    pub sender: Option<i32>,
}

/// Receives one packet into `bytes`, replacing what was there; `Ok(None)` at the end of the
/// stream. A packet longer than [`MAX_PACKET`] or cut short is an error, and its descriptors are
/// closed.
pub fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut Vec<u8>,
    dont_wait: bool,
) -> std::io::Result<Option<Received>> {
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS), ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    bytes.resize(MAX_PACKET, 0);
    let flags =
        RecvFlags::CMSG_CLOEXEC | if dont_wait { RecvFlags::DONTWAIT } else { RecvFlags::empty() };
    let got = loop {
        match recvmsg(socket.as_fd(), &mut [IoSliceMut::new(bytes)], &mut control, flags) {
            Ok(got) => break got,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    };
    bytes.truncate(got.bytes);
    let mut received = Received { descriptors: Vec::new(), sender: None };
    for message in control.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(fds) => received.descriptors.extend(fds),
            RecvAncillaryMessage::ScmCredentials(c) => {
                received.sender = Some(c.pid.as_raw_nonzero().get());
            }
            _ => {}
        }
    }
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    Ok(Some(received))
}
