//! What can happen to the kernel.

use crate::id::{PdId, RegionId, StubId};
use clustix_abi::{CPtr, MessageInfo, Syscall};

/// Most words of a message on the slow path. (seL4 allows 120; what is longer goes by a channel or
/// a region.)
pub const MESSAGE_WORDS: usize = 16;

/// Most capabilities of a message.
pub const MESSAGE_CAPS: usize = clustix_abi::message::MSG_MAX_EXTRA_CAPS;

/// A message: its description and its words; only the first `info.length()` words count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Message {
    /// Label and lengths.
    pub info: MessageInfo,
    /// The words ("message registers").
    pub words: [u64; MESSAGE_WORDS],
}

/// A system call of a PD. Everything in it is the PD's word and is checked here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Invocation {
    /// The PD, as the host knows it (by the socket that the request came from).
    pub pd: PdId,
    /// Tells the PD's answers apart; the host's choice, unique among the PD's unanswered requests.
    pub request: u64,
    /// Which system call.
    pub syscall: Syscall,
    /// The capability invoked, or for Recv, Wait and their like received from. For ReplyRecv and
    /// NBSendRecv the capability received from; the other one is `reply` or `send`.
    pub cptr: CPtr,
    /// NBSendRecv and NBSendWait: the capability sent through.
    pub send: CPtr,
    /// Recv, NBRecv, ReplyRecv, NBSendRecv: the reply object that a received call shall be held in
    /// (0: none; a call cannot be received then). ReplyRecv and Reply: also the one answered through.
    pub reply: CPtr,
    /// The message sent.
    pub message: Message,
    /// The capabilities sent with it; the first `message.info.extra_caps()` count.
    pub caps: [CPtr; MESSAGE_CAPS],
    /// An empty slot of the PD's root CNode for a received capability; 0: none wanted.
    pub receive: CPtr,
}

/// One step's input.
// The kernel allocates nothing, so the one large variant is not boxed.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The host starts a PD on its own authority: those that nobody supervises (ccache, member,
    /// init).
    Start {
        /// Which one; no effect while it runs.
        pd: PdId,
    },
    /// A PD made a system call.
    Invoke(Invocation),
    /// The host no longer waits for the answer of a request (its asker gave up).
    Cancel {
        /// Who asked.
        pd: PdId,
        /// Which request.
        request: u64,
    },
    /// A PD's process ended.
    PdDied {
        /// Which PD.
        pd: PdId,
        /// Which of its starts; a word about another start is ignored.
        incarnation: u32,
        /// Wait status as of waitpid(2).
        status: i32,
    },
    /// A stub's process ended.
    StubDied {
        /// Which stub.
        stub: StubId,
        /// Wait status as of waitpid(2).
        status: i32,
    },
    /// A PD that keeps its stubs will not be started again, or not soon enough for them: they go. No effect while
    /// it runs.
    StubsForgotten {
        /// Whose.
        pd: PdId,
    },
    /// The host could not make a stub that [`crate::Action::StubSpawn`] or
    /// [`crate::Action::StubFork`] ordered. Its death is not told.
    StubFailed {
        /// Which stub.
        stub: StubId,
    },
    /// The host could not seal a region: somebody still has it mapped writable.
    SealFailed {
        /// Which region.
        region: RegionId,
    },
    /// The host could not make a region that [`crate::Action::RegionCreate`] ordered.
    RegionFailed {
        /// Which region.
        region: RegionId,
    },
}
