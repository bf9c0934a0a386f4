//! `seL4_Syscall_ID`: the kernel's system calls.

use crate::error::numbered;

/// The first number of the system calls that seL4's MCS kernel has and the description has not.
pub const OWN_FIRST: i64 = -0x1000;

numbered! {
/// A system call of the hosted kernel. -1 to -8 are the description's; the rest, down from
/// [`OWN_FIRST`], have MCS's meaning.
pub enum Syscall: i64 {
    /// Send, and wait for the answer.
    Call = -1,
    /// Answer through a reply object, then receive.
    ReplyRecv = -2,
    /// Send; wait until somebody receives.
    Send = -3,
    /// Send if somebody waits, else drop.
    NBSend = -4,
    /// Receive; wait until somebody sends.
    Recv = -5,
    /// Answer through a reply object. (Without MCS: to the last caller. The hosted kernel has only
    /// explicit reply objects.)
    Reply = -6,
    /// Not offered: Linux schedules. Answers at once.
    Yield = -7,
    /// Receive if somebody sends, else return badge 0.
    NBRecv = -8,
    /// Wait for a notification, or receive without a reply object.
    Wait = -0x1000,
    /// As Wait, but return at once.
    NBWait = -0x1001,
    /// NBSend, then Recv.
    NBSendRecv = -0x1002,
    /// NBSend, then Wait.
    NBSendWait = -0x1003,
}
}
