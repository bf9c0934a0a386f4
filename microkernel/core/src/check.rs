//! The kernel's invariants, one function each. They are for tests, fuzzing and a host's debug mode:
//! they walk everything.

use crate::cap::Object;
use crate::id::{EndpointId, NotificationId, PdId, RegionId, ReplyId, StubId};
use crate::kernel::Kernel;
use crate::pd::State;
use crate::queue::{Item, Queue};
use crate::reply::Holding;
use crate::wait::{Blocked, WaitId};

/// An invariant's name and its test.
type Invariant = (&'static str, fn(&Kernel) -> bool);

impl Kernel {
    /// Checks every invariant; the name of the first that does not hold.
    pub fn check(&self) -> Result<(), &'static str> {
        let all: [Invariant; 9] = [
            ("derivation tree well-formed", |k| k.slots.well_formed()),
            ("rights never grow", Kernel::rights_never_grow),
            ("children name their parent's object", Kernel::children_agree),
            ("no dangling capability, every reference counted", Kernel::references_exact),
            ("budget accounting exact", Kernel::budget_exact),
            (
                "a PD that does not run has nothing but stubs that it keeps",
                Kernel::dead_has_nothing,
            ),
            ("queues and waits agree", Kernel::queues_agree),
            ("replies and waits agree", Kernel::replies_agree),
            ("channels follow from capabilities", Kernel::channels_follow),
        ];
        all.iter().try_for_each(|(name, holds)| if holds(self) { Ok(()) } else { Err(*name) })
    }

    fn rights_never_grow(&self) -> bool {
        self.slots.iter().all(|(slot, cap)| {
            let parent = self.slots.parent(slot).and_then(|p| self.slots.cap(p));
            parent.is_none_or(|p| p.rights.contains(cap.rights))
        })
    }

    /// A child names what its parent names, with the same badge or one where the parent had none;
    /// or it is what was made from an untyped.
    fn children_agree(&self) -> bool {
        self.slots.iter().all(|(slot, cap)| {
            let Some(parent) = self.slots.parent(slot).and_then(|p| self.slots.cap(p)) else {
                return true;
            };
            match (parent.object, cap.object) {
                (p, c) if p == c => parent.badge() == 0 || parent.badge() == cap.badge(),
                (Object::Untyped(pd), c) => self.payer(c) == Some(pd),
                _ => false,
            }
        })
    }

    fn payer(&self, object: Object) -> Option<PdId> {
        match object {
            Object::Endpoint(id) => self.endpoints.get(id)?.payer,
            Object::Notification(id) => self.notifications.get(id)?.payer,
            Object::Reply(id) => self.replies.get(id)?.payer,
            Object::Region(id) => self.regions.get(id)?.payer,
            Object::Stub(id) => Some(self.stubs.get(id)?.owner),
            _ => None,
        }
    }

    fn exists(&self, object: Object) -> bool {
        match object {
            Object::Endpoint(id) => self.endpoints.get(id).is_some(),
            Object::Notification(id) => self.notifications.get(id).is_some(),
            Object::Reply(id) => self.replies.get(id).is_some(),
            Object::Region(id) => self.regions.get(id).is_some(),
            Object::Stub(id) => self.stubs.get(id).is_some(),
            Object::Untyped(pd) | Object::Pd(pd) => self.pds.get(usize::from(pd.0)).is_some(),
            Object::CNode(n) => self.cnodes.get(usize::from(n)).is_some(),
            Object::StubPool | Object::RegionPool | Object::Metrics => true,
        }
    }

    /// Every object made or declared at run time, with its count of references.
    fn counted(&self) -> impl Iterator<Item = (Object, u32)> + '_ {
        let endpoints = self.endpoints.iter::<EndpointId>();
        let notifications = self.notifications.iter::<NotificationId>();
        let replies = self.replies.iter::<ReplyId>();
        let regions = self.regions.iter::<RegionId>();
        let stubs = self.stubs.iter::<StubId>();
        endpoints
            .map(|(id, o)| (Object::Endpoint(id), o.refs))
            .chain(notifications.map(|(id, o)| (Object::Notification(id), o.refs)))
            .chain(replies.map(|(id, o)| (Object::Reply(id), o.refs)))
            .chain(regions.map(|(id, o)| (Object::Region(id), o.refs)))
            .chain(stubs.map(|(id, o)| (Object::Stub(id), o.refs)))
    }

    fn references_exact(&self) -> bool {
        self.slots.iter().all(|(_, cap)| self.exists(cap.object))
            && self.counted().all(|(object, refs)| {
                let found = self.slots.iter().filter(|(_, cap)| cap.object == object).count();
                refs > 0 && refs as usize == found
            })
    }

    fn budget_exact(&self) -> bool {
        self.pds.iter().enumerate().all(|(i, p)| {
            let pd = Some(PdId(i as u16));
            let made = self.counted().filter(|(object, _)| self.payer(*object) == pd).count();
            p.used as usize == made && p.used <= p.budget
        })
    }

    fn dead_has_nothing(&self) -> bool {
        self.pds.iter().enumerate().filter(|(_, p)| p.state != State::Running).all(|(i, p)| {
            let pd = PdId(i as u16);
            let kept = self.stubs.iter::<StubId>().filter(|(_, s)| s.owner == pd).count();
            p.used as usize == kept
                && (kept == 0 || p.keeps_stubs)
                && p.waits == 0
                && self
                    .caps(pd)
                    .all(|(i, _)| self.slot_of(pd, i).is_some_and(|s| self.outlives(pd, s)))
                && self.waits.iter::<WaitId>().all(|(_, w)| w.to.pd != pd)
                && self.channels.iter().all(|c| c.client != pd)
        })
    }

    fn stands_in(&self, queue: &Queue, item: Item) -> bool {
        self.nodes.iter(queue).filter(|(_, i)| *i == item).count() == 1
    }

    /// Every queue holds what its kind allows, and each waiting operation stands where it says.
    fn queues_agree(&self) -> bool {
        let endpoints = self.endpoints.iter::<EndpointId>().all(|(id, e)| {
            self.nodes.iter(&e.queue).all(|(_, item)| match item {
                Item::Wait(w) => match self.waits.get(w).map(|w| w.blocked) {
                    Some(Blocked::Send { endpoint, .. }) => !e.receivers && endpoint == id,
                    Some(Blocked::Receive { endpoint, .. }) => e.receivers && endpoint == id,
                    _ => false,
                },
                Item::Pd(pd) => {
                    let p = self.pds.get(usize::from(pd.0));
                    !e.receivers && p.is_some_and(|p| p.untold.is_some())
                }
                Item::Stub(s) => {
                    !e.receivers && self.stubs.get(s).is_some_and(|s| s.untold.is_some())
                }
            })
        });
        let notifications = self.notifications.iter::<NotificationId>().all(|(id, n)| {
            (n.queue.is_empty() || n.signalled.is_none())
                && self.nodes.iter(&n.queue).all(|(_, item)| match item {
                    Item::Wait(w) => self
                        .waits
                        .get(w)
                        .is_some_and(|w| w.blocked == Blocked::Signal { notification: id }),
                    _ => false,
                })
        });
        let waits = self.waits.iter::<WaitId>().all(|(id, w)| {
            let item = Item::Wait(id);
            match w.blocked {
                Blocked::Send { endpoint, .. } | Blocked::Receive { endpoint, .. } => {
                    self.endpoints.get(endpoint).is_some_and(|e| self.stands_in(&e.queue, item))
                }
                Blocked::Signal { notification } => self
                    .notifications
                    .get(notification)
                    .is_some_and(|n| self.stands_in(&n.queue, item)),
                Blocked::Answer { .. } => w.place.is_none(),
            }
        });
        let counts = self.pds.iter().enumerate().all(|(i, p)| {
            let pd = PdId(i as u16);
            self.waits.iter::<WaitId>().filter(|(_, w)| w.to.pd == pd).count()
                == usize::from(p.waits)
        });
        let deaths = self.pds.iter().enumerate().all(|(i, p)| {
            let item = Item::Pd(PdId(i as u16));
            p.untold.is_none()
                || p.fault
                    .and_then(|(e, _)| self.endpoints.get(e))
                    .is_some_and(|e| self.stands_in(&e.queue, item))
        });
        endpoints && notifications && waits && counts && deaths
    }

    /// A held call waits for its answer, a reserved reply object for its receive, and conversely.
    fn replies_agree(&self) -> bool {
        let replies = self.replies.iter::<ReplyId>().all(|(id, r)| match r.holding {
            Holding::Nothing => true,
            Holding::Call { caller, .. } => {
                self.waits.get(caller).is_some_and(|w| w.blocked == Blocked::Answer { reply: id })
            }
            Holding::Reserved(receiver) => self.waits.get(receiver).is_some_and(
                |w| matches!(w.blocked, Blocked::Receive { reply, .. } if reply == Some(id)),
            ),
        });
        let waits = self.waits.iter::<WaitId>().all(|(id, w)| match w.blocked {
            Blocked::Answer { reply } => matches!(
                self.replies.get(reply).map(|r| r.holding),
                Some(Holding::Call { caller, .. }) if caller == id
            ),
            Blocked::Receive { reply: Some(reply), .. } => {
                self.replies.get(reply).map(|r| r.holding) == Some(Holding::Reserved(id))
            }
            _ => true,
        });
        replies && waits
    }

    fn channels_follow(&self) -> bool {
        let counted = self.channels.iter().all(|c| {
            let holds = self.caps(c.client).filter(|(_, cap)| {
                self.channel_of(*cap).is_some_and(|(_, e, b)| (e, b) == (c.endpoint, c.badge))
            });
            let server = self.endpoints.get(c.endpoint).and_then(|e| e.server);
            let up = server.and_then(|s| self.pd_state(s)).is_some_and(|s| s != State::Dead);
            c.refs > 0 && c.refs as usize == holds.count() && c.open.is_some() == up
        });
        let complete = self.pds.iter().enumerate().all(|(i, _)| {
            let pd = PdId(i as u16);
            self.caps(pd).filter_map(|(_, cap)| self.channel_of(cap)).all(|(_, e, b)| {
                let same = |c: &&crate::channel::Channel| {
                    c.client == pd && c.endpoint == e && c.badge == b
                };
                self.channels.iter().filter(same).count() == 1
            })
        });
        counted && complete
    }
}
