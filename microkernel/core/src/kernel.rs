//! The kernel's state and its step.

use crate::action::Action;
use crate::declare::{Grant, PdDeclaration};
use crate::event::Event;
use crate::id::{EndpointId, NotificationId, PdId, RegionId};
use clustix_abi::{Badge, Error};

/// The kernel. Large (about 2 MiB): keep it in a `static` (`Kernel::new` is `const`), not on a stack.
pub struct Kernel {}

impl Kernel {
    /// A kernel with nothing declared.
    pub const fn new() -> Self {
        Kernel {}
    }

    /// Declares a PD; [`Error::NotEnoughMemory`] beyond 64 or when the slots are used up,
    /// [`Error::RangeError`] on a bad radix or guard.
    pub fn declare_pd(&mut self, _pd: PdDeclaration) -> Result<PdId, Error> {
        unimplemented!()
    }

    /// Declares an endpoint. With a `server`, every PD that holds a capability to it with
    /// [`clustix_abi::Rights::CLIENT`] has a channel to that server.
    pub fn declare_endpoint(&mut self, _server: Option<PdId>) -> Result<EndpointId, Error> {
        unimplemented!()
    }

    /// Declares a notification.
    pub fn declare_notification(&mut self) -> Result<NotificationId, Error> {
        unimplemented!()
    }

    /// Declares a memory region of `length` bytes.
    pub fn declare_region(&mut self, _length: u64) -> Result<RegionId, Error> {
        unimplemented!()
    }

    /// Declares a first capability of a PD. [`Error::DeleteFirst`] if the slot is taken,
    /// [`Error::RangeError`] if the slot is outside the PD's CNode.
    pub fn declare_grant(&mut self, _grant: Grant) -> Result<(), Error> {
        unimplemented!()
    }

    /// Declares where a PD's death is told.
    pub fn declare_fault(
        &mut self,
        _pd: PdId,
        _endpoint: EndpointId,
        _badge: Badge,
    ) -> Result<(), Error> {
        unimplemented!()
    }

    /// Declares where the deaths of a PD's stubs are told.
    pub fn declare_stub_fault(
        &mut self,
        _pd: PdId,
        _endpoint: EndpointId,
        _badge: Badge,
    ) -> Result<(), Error> {
        unimplemented!()
    }

    /// One step. The actions are valid until the next one, and at most [`MAX_ACTIONS`].
    pub fn handle(&mut self, _event: Event) -> &[Action] {
        unimplemented!()
    }
}

impl Default for Kernel {
    fn default() -> Self {
        Kernel::new()
    }
}

/// Most actions of one step.
pub const MAX_ACTIONS: usize = 16384;
