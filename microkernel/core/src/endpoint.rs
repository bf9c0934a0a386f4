//! Endpoints: messages from who sends to who receives, one to one, in order of arrival.

use crate::action::{Delivery, Request};
use crate::cap::Cap;
use crate::event::Invocation;
use crate::id::{EndpointId, PdId, ReplyId};
use crate::kernel::{Kernel, Outcome};
use crate::queue::{Item, Queue};
use crate::transfer::Sender;
use crate::wait::Blocked;
use clustix_abi::{Badge, CPtr, Error, Rights};

/// An endpoint. Its queue holds senders or receivers, never both.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    /// Who waits.
    pub queue: Queue,
    /// Whether those are receivers.
    pub receivers: bool,
    /// The PD that serves it by channels, if it is declared so.
    pub server: Option<PdId>,
    /// Whom it is charged to; `None` for a declared one.
    pub payer: Option<PdId>,
    /// Capabilities that name it.
    pub refs: u32,
}

impl Endpoint {
    pub const fn new(payer: Option<PdId>, server: Option<PdId>) -> Self {
        Endpoint { queue: Queue::EMPTY, receivers: false, server, payer, refs: 0 }
    }
}

/// How a message is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sending {
    /// Wait for a receiver.
    Wait,
    /// Drop it if there is none.
    NonBlocking,
    /// Wait for a receiver, then for its answer.
    Call,
}

impl Kernel {
    /// Sends through an endpoint capability.
    pub(crate) fn send(
        &mut self,
        inv: &Invocation,
        endpoint: EndpointId,
        cap: Cap,
        how: Sending,
    ) -> Outcome {
        if !cap.rights.contains(Rights::WRITE)
            || how == Sending::Call && !cap.rights.intersects(Rights::GRANT | Rights::GRANT_REPLY)
        {
            return Err(Error::InvalidCapability);
        }
        let outgoing = self.outgoing(inv)?;
        let to = Request { pd: inv.pd, request: inv.request };
        let grant = cap.rights.contains(Rights::GRANT);
        let call = how == Sending::Call;
        match self.receiver(endpoint) {
            Some(_) if call => self.may_wait(inv.pd)?,
            Some(_) => {}
            None if how == Sending::NonBlocking => return Ok(Some(Delivery::default())),
            None => {
                let blocked = Blocked::Send { endpoint, badge: cap.badge(), grant, call, outgoing };
                self.wait(to, blocked, inv.receive)?;
                if let Some(e) = self.endpoints.get_mut(endpoint) {
                    e.receivers = false;
                }
                return Ok(None);
            }
        }
        let Some((receiver, blocked)) = self.receiver(endpoint).and_then(|id| {
            let wait = self.unwait(id)?;
            Some((wait, wait.blocked))
        }) else {
            return Err(Error::Gone);
        };
        let sender = Sender { pd: inv.pd, through: Some(endpoint), badge: cap.badge(), grant };
        let delivery = self.transfer(sender, &outgoing, receiver.to.pd, receiver.receive);
        self.answer(receiver.to, Ok(delivery));
        if !call {
            return Ok(Some(Delivery::default()));
        }
        let Blocked::Receive { reply, grant, .. } = blocked else { return Err(Error::Gone) };
        self.await_answer(to, inv.receive, reply, grant)
    }

    /// The first of those who wait to receive.
    fn receiver(&self, endpoint: EndpointId) -> Option<crate::wait::WaitId> {
        let e = self.endpoints.get(endpoint)?;
        match self.nodes.first(&e.queue) {
            Some((_, Item::Wait(id))) if e.receivers => Some(id),
            _ => None,
        }
    }

    /// Holds a received call in a reply object. Without one nobody can answer: the call ends.
    fn await_answer(
        &mut self,
        to: Request,
        receive: CPtr,
        reply: Option<ReplyId>,
        grant: bool,
    ) -> Outcome {
        let reply = reply.filter(|r| self.replies.get(*r).is_some()).ok_or(Error::Gone)?;
        let wait = self.wait(to, Blocked::Answer { reply }, receive)?;
        self.reply_hold(reply, wait, grant);
        Ok(None)
    }

    /// Receives through an endpoint capability.
    pub(crate) fn receive(
        &mut self,
        inv: &Invocation,
        endpoint: EndpointId,
        cap: Cap,
        reply: Option<ReplyId>,
        blocking: bool,
    ) -> Outcome {
        if !cap.rights.contains(Rights::READ) {
            return Err(Error::InvalidCapability);
        }
        let to = Request { pd: inv.pd, request: inv.request };
        let grant = cap.rights.contains(Rights::GRANT);
        let first = self
            .endpoints
            .get(endpoint)
            .filter(|e| !e.receivers)
            .and_then(|e| self.nodes.first(&e.queue));
        let Some((_, item)) = first else {
            if !blocking {
                return Ok(Some(Delivery::default()));
            }
            self.may_wait(inv.pd)?;
            if let Some(r) = reply {
                self.reply_evict(r);
            }
            let wait = self.wait(to, Blocked::Receive { endpoint, reply, grant }, inv.receive)?;
            if let Some(r) = reply {
                self.reply_reserve(r, wait);
            }
            if let Some(e) = self.endpoints.get_mut(endpoint) {
                e.receivers = true;
            }
            return Ok(None);
        };
        if let Some(r) = reply {
            self.reply_evict(r);
        }
        match item {
            Item::Pd(pd) => Ok(Some(self.take_pd_fault(pd))),
            Item::Stub(stub) => Ok(Some(self.take_stub_fault(stub))),
            Item::Wait(id) => {
                let Some(wait) = self.unwait(id) else { return Err(Error::Gone) };
                let Blocked::Send { badge, grant: may_grant, call, outgoing, .. } = wait.blocked
                else {
                    return Err(Error::Gone);
                };
                let sender =
                    Sender { pd: wait.to.pd, through: Some(endpoint), badge, grant: may_grant };
                let delivery = self.transfer(sender, &outgoing, inv.pd, inv.receive);
                if call {
                    if let Err(e) = self.await_answer(wait.to, wait.receive, reply, grant) {
                        self.answer(wait.to, Err(e));
                    }
                } else {
                    self.answer(wait.to, Ok(Delivery::default()));
                }
                Ok(Some(delivery))
            }
        }
    }

    /// Gives a fault message to a receiver that waits; `false` if none does.
    pub(crate) fn tell(&mut self, endpoint: EndpointId, delivery: Delivery) -> bool {
        match self.receiver(endpoint) {
            Some(id) => {
                self.end_wait(id, Ok(delivery));
                true
            }
            None => false,
        }
    }

    /// Ends queued sends: all of them, or those with one badge. Deaths to be told stay.
    pub(crate) fn cancel_sends(&mut self, endpoint: EndpointId, badge: Option<Badge>) {
        loop {
            let Some(e) = self.endpoints.get(endpoint).filter(|e| !e.receivers) else { return };
            let found = self.nodes.iter(&e.queue).find_map(|(_, item)| match item {
                Item::Wait(id) => match self.waits.get(id)?.blocked {
                    Blocked::Send { badge: b, .. } if badge.is_none_or(|x| x == b) => Some(id),
                    _ => None,
                },
                _ => None,
            });
            match found {
                Some(id) => self.end_wait(id, Err(Error::Gone)),
                None => return,
            }
        }
    }

    /// The last capability is gone: nobody can receive or send any more.
    pub(crate) fn destroy_endpoint(&mut self, id: EndpointId) {
        while let Some((place, item)) =
            self.endpoints.get(id).and_then(|e| self.nodes.first(&e.queue))
        {
            match item {
                Item::Wait(wait) => self.end_wait(wait, Err(Error::Gone)),
                Item::Pd(pd) => self.drop_pd_fault(pd),
                Item::Stub(stub) => self.drop_stub_fault(stub),
            }
            // What could not be ended above must not keep the loop going.
            let Some(e) = self.endpoints.get_mut(id) else { break };
            if self.nodes.first(&e.queue).is_some_and(|(p, i)| p == place && i == item) {
                self.nodes.remove(&mut e.queue, place);
            }
        }
        if let Some(e) = self.endpoints.remove(id) {
            self.refund(e.payer);
        }
    }
}
