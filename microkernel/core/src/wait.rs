//! Operations that wait in the kernel: what a blocked thread is in seL4.

use crate::action::{Delivery, Request};
use crate::event::{MESSAGE_CAPS, Message};
use crate::id::{EndpointId, NotificationId, PdId, ReplyId};
use crate::kernel::Kernel;
use crate::limits::WAITS_PER_PD;
use crate::queue::{Item, Place};
use clustix_abi::{Badge, CPtr, Error};

/// A waiting operation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WaitId(pub u32);

impl crate::table::Key for WaitId {
    fn from_raw(raw: u32) -> Self {
        WaitId(raw)
    }
    fn raw(self) -> u32 {
        self.0
    }
}

/// What is sent: kept as it was sent, since capabilities are looked up when they are passed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outgoing {
    /// The message.
    pub message: Message,
    /// Its capabilities, in the sender's CSpace.
    pub caps: [CPtr; MESSAGE_CAPS],
}

/// What an operation waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blocked {
    /// A receiver.
    Send {
        /// Through which endpoint.
        endpoint: EndpointId,
        /// Badge of the capability it was sent through.
        badge: Badge,
        /// Whether that capability allows passing capabilities.
        grant: bool,
        /// Whether the sender waits for an answer then.
        call: bool,
        /// What is sent.
        outgoing: Outgoing,
    },
    /// The answer to a call that was received.
    Answer {
        /// The reply object that holds the call.
        reply: ReplyId,
    },
    /// A sender.
    Receive {
        /// Through which endpoint.
        endpoint: EndpointId,
        /// The reply object for a call.
        reply: Option<ReplyId>,
        /// Whether the capability received through allows the answer to pass capabilities.
        grant: bool,
    },
    /// A signal.
    Signal {
        /// Of which notification.
        notification: NotificationId,
    },
}

/// A waiting operation.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// Whose answer it will give.
    pub to: Request,
    /// What it waits for.
    pub blocked: Blocked,
    /// Where a received capability goes.
    pub receive: CPtr,
    /// Its place in a queue, if it stands in one.
    pub place: Option<Place>,
}

impl Kernel {
    /// Whether this PD may wait for one more thing.
    pub(crate) fn may_wait(&self, pd: PdId) -> Result<(), Error> {
        let waits = self.pds.get(usize::from(pd.0)).map_or(0, |p| p.waits);
        if usize::from(waits) < WAITS_PER_PD { Ok(()) } else { Err(Error::Busy) }
    }

    /// Enters a waiting operation; the caller has asked [`Kernel::may_wait`].
    pub(crate) fn wait(
        &mut self,
        to: Request,
        blocked: Blocked,
        receive: CPtr,
    ) -> Result<WaitId, Error> {
        self.may_wait(to.pd)?;
        let id: WaitId =
            self.waits.insert(Wait { to, blocked, receive, place: None }).ok_or(Error::Busy)?;
        if let Some(p) = self.pds.get_mut(usize::from(to.pd.0)) {
            p.waits += 1;
        }
        let queue = match blocked {
            Blocked::Send { endpoint, .. } | Blocked::Receive { endpoint, .. } => {
                self.endpoints.get_mut(endpoint).map(|e| &mut e.queue)
            }
            Blocked::Signal { notification } => {
                self.notifications.get_mut(notification).map(|n| &mut n.queue)
            }
            Blocked::Answer { .. } => None,
        };
        let place = queue.and_then(|q| self.nodes.push(q, Item::Wait(id)));
        if let Some(w) = self.waits.get_mut(id) {
            w.place = place;
        }
        Ok(id)
    }

    /// Takes a waiting operation out of wherever it waits, unanswered.
    pub(crate) fn unwait(&mut self, id: WaitId) -> Option<Wait> {
        let wait = self.waits.remove(id)?;
        if let Some(p) = self.pds.get_mut(usize::from(wait.to.pd.0)) {
            p.waits -= 1;
        }
        let queue = match wait.blocked {
            Blocked::Send { endpoint, .. } => {
                self.endpoints.get_mut(endpoint).map(|e| &mut e.queue)
            }
            Blocked::Receive { endpoint, reply, .. } => {
                if let Some(r) = reply {
                    self.reply_release(r);
                }
                self.endpoints.get_mut(endpoint).map(|e| &mut e.queue)
            }
            Blocked::Signal { notification } => {
                self.notifications.get_mut(notification).map(|n| &mut n.queue)
            }
            Blocked::Answer { reply } => {
                self.reply_release(reply);
                None
            }
        };
        if let (Some(q), Some(place)) = (queue, wait.place) {
            self.nodes.remove(q, place);
        }
        Some(wait)
    }

    /// Ends a waiting operation with its answer.
    pub(crate) fn end_wait(&mut self, id: WaitId, result: Result<Delivery, Error>) {
        if let Some(wait) = self.unwait(id) {
            self.answer(wait.to, result);
        }
    }

    /// The host no longer wants a request's answer.
    pub(crate) fn cancel(&mut self, to: Request) {
        let found = self.waits.iter::<WaitId>().find(|(_, w)| w.to == to).map(|(id, _)| id);
        if let Some(id) = found {
            self.unwait(id);
        }
    }

    /// Forgets everything that a dead PD waits for.
    pub(crate) fn forget_waits(&mut self, pd: PdId) {
        let next =
            |k: &Kernel| k.waits.iter::<WaitId>().find(|(_, w)| w.to.pd == pd).map(|(id, _)| id);
        while let Some(id) = next(self) {
            self.unwait(id);
        }
    }
}
