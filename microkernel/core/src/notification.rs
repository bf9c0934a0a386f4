//! Notifications: a word of signals; badges are OR-ed until somebody takes them.

use crate::action::{Delivery, Request};
use crate::cap::Cap;
use crate::event::Invocation;
use crate::id::{NotificationId, PdId};
use crate::kernel::{Kernel, Outcome};
use crate::queue::{Item, Queue};
use crate::wait::Blocked;
use clustix_abi::{Badge, Error, Rights};

/// A notification. Somebody waits only while nothing is signalled.
#[derive(Clone, Copy, Debug)]
pub struct Notification {
    /// Who waits.
    pub queue: Queue,
    /// The badges signalled, `None` if nothing was.
    pub signalled: Option<Badge>,
    /// Whom it is charged to; `None` for a declared one.
    pub payer: Option<PdId>,
    /// Capabilities that name it.
    pub refs: u32,
}

impl Notification {
    pub const fn new(payer: Option<PdId>) -> Self {
        Notification { queue: Queue::EMPTY, signalled: None, payer, refs: 0 }
    }
}

impl Kernel {
    /// Signals through a notification capability.
    pub(crate) fn signal(&mut self, id: NotificationId, cap: Cap) -> Outcome {
        if !cap.rights.contains(Rights::WRITE) {
            return Err(Error::InvalidCapability);
        }
        let done = Ok(Some(Delivery::default()));
        let Some(n) = self.notifications.get_mut(id) else { return Err(Error::Gone) };
        match self.nodes.first(&n.queue) {
            Some((_, Item::Wait(wait))) => {
                self.end_wait(wait, Ok(Delivery { badge: cap.badge(), ..Delivery::default() }));
            }
            _ => n.signalled = Some(n.signalled.unwrap_or(0) | cap.badge()),
        }
        done
    }

    /// Takes the signals through a notification capability, or waits for some.
    pub(crate) fn wait_signal(
        &mut self,
        inv: &Invocation,
        id: NotificationId,
        cap: Cap,
        blocking: bool,
    ) -> Outcome {
        if !cap.rights.contains(Rights::READ) {
            return Err(Error::InvalidCapability);
        }
        let Some(n) = self.notifications.get_mut(id) else { return Err(Error::Gone) };
        match n.signalled.take() {
            Some(badge) => Ok(Some(Delivery { badge, ..Delivery::default() })),
            None if !blocking => Ok(Some(Delivery::default())),
            None => {
                let to = Request { pd: inv.pd, request: inv.request };
                self.wait(to, Blocked::Signal { notification: id }, 0)?;
                Ok(None)
            }
        }
    }

    /// The last capability is gone.
    pub(crate) fn destroy_notification(&mut self, id: NotificationId) {
        while let Some((_, Item::Wait(wait))) =
            self.notifications.get(id).and_then(|n| self.nodes.first(&n.queue))
        {
            self.end_wait(wait, Err(Error::Gone));
        }
        if let Some(n) = self.notifications.remove(id) {
            self.refund(n.payer);
        }
    }
}
