//! Reply objects (MCS): each holds one received call until it is answered, so that a server can
//! hold many at once and answer them in any order.

use crate::action::Delivery;
use crate::event::Invocation;
use crate::id::{PdId, ReplyId};
use crate::kernel::{Kernel, Outcome};
use crate::transfer::Sender;
use crate::wait::WaitId;
use clustix_abi::Error;

/// What a reply object does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holding {
    /// Nothing.
    Nothing,
    /// It is set aside by an operation that waits to receive.
    Reserved(WaitId),
    /// It holds a call.
    Call {
        /// The waiting caller.
        caller: WaitId,
        /// Whether the answer may pass capabilities.
        grant: bool,
    },
}

/// A reply object.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    /// What it holds.
    pub holding: Holding,
    /// Whom it is charged to.
    pub payer: Option<PdId>,
    /// Capabilities that name it.
    pub refs: u32,
}

impl Reply {
    pub const fn new(payer: Option<PdId>) -> Self {
        Reply { holding: Holding::Nothing, payer, refs: 0 }
    }
}

impl Kernel {
    fn set_holding(&mut self, id: ReplyId, holding: Holding) {
        if let Some(r) = self.replies.get_mut(id) {
            r.holding = holding;
        }
    }

    pub(crate) fn reply_hold(&mut self, id: ReplyId, caller: WaitId, grant: bool) {
        self.set_holding(id, Holding::Call { caller, grant });
    }

    pub(crate) fn reply_reserve(&mut self, id: ReplyId, receiver: WaitId) {
        self.set_holding(id, Holding::Reserved(receiver));
    }

    /// The operation that it was held for is over.
    pub(crate) fn reply_release(&mut self, id: ReplyId) {
        self.set_holding(id, Holding::Nothing);
    }

    /// Ends whatever the object holds: a call is lost, a waiting receive is over.
    pub(crate) fn reply_evict(&mut self, id: ReplyId) {
        match self.replies.get(id).map(|r| r.holding) {
            Some(Holding::Reserved(wait) | Holding::Call { caller: wait, .. }) => {
                self.end_wait(wait, Err(Error::Gone));
            }
            Some(Holding::Nothing) | None => {}
        }
    }

    /// Answers the call that the object holds. Without one (the caller died or gave up) nothing
    /// happens, as in seL4: the answerer could not have known.
    pub(crate) fn reply(&mut self, inv: &Invocation, id: ReplyId) -> Outcome {
        let outgoing = self.outgoing(inv)?;
        if let Some(Holding::Call { caller, grant }) = self.replies.get(id).map(|r| r.holding)
            && let Some(wait) = self.unwait(caller)
        {
            let sender = Sender { pd: inv.pd, through: None, badge: 0, grant };
            let delivery = self.transfer(sender, &outgoing, wait.to.pd, wait.receive);
            self.answer(wait.to, Ok(delivery));
        }
        Ok(Some(Delivery::default()))
    }

    /// The last capability is gone: nobody can answer any more.
    pub(crate) fn destroy_reply(&mut self, id: ReplyId) {
        self.reply_evict(id);
        if let Some(r) = self.replies.remove(id) {
            self.refund(r.payer);
        }
    }
}
