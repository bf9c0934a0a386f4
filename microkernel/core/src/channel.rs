//! Fast-path channels: which PD has one to which server follows from the capabilities alone.
//!
//! A PD has a channel for each (endpoint, badge) of which it holds at least one capability with
//! write and grant rights in its root CNode, as long as the endpoint's server is not dead. Messages on
//! a channel never pass through the kernel; it only says when a channel begins and ends.

use crate::action::Action;
use crate::cap::{Cap, Object};
use crate::id::{ChannelId, EndpointId, PdId};
use crate::kernel::Kernel;
use crate::limits::CHANNELS_PER_PD;
use crate::pd::State;
use clustix_abi::{Badge, Error, Rights};

/// What a client's capabilities to one endpoint with one badge amount to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Channel {
    /// Who holds them.
    pub client: PdId,
    /// Which endpoint.
    pub endpoint: EndpointId,
    /// Which badge.
    pub badge: Badge,
    /// How many they are.
    pub refs: u32,
    /// The channel, `None` while the server is dead.
    pub open: Option<ChannelId>,
}

impl Kernel {
    /// The server, endpoint and badge of the channel that holding this capability means.
    pub(crate) fn channel_of(&self, cap: Cap) -> Option<(PdId, EndpointId, Badge)> {
        let Object::Endpoint(endpoint) = cap.object else { return None };
        let server = self.endpoints.get(endpoint)?.server?;
        cap.rights.contains(Rights::CLIENT).then_some((server, endpoint, cap.badge()))
    }

    fn channel_index(&self, client: PdId, endpoint: EndpointId, badge: Badge) -> Option<usize> {
        self.channels
            .iter()
            .position(|c| c.client == client && c.endpoint == endpoint && c.badge == badge)
    }

    /// Whether this PD may hold this capability: [`Error::NotEnoughMemory`] if it would be one channel
    /// too many.
    pub(crate) fn channel_room(&self, client: PdId, cap: Cap) -> Result<(), Error> {
        let Some((_, endpoint, badge)) = self.channel_of(cap) else { return Ok(()) };
        let held = self.channels.iter().filter(|c| c.client == client).count();
        if held < CHANNELS_PER_PD || self.channel_index(client, endpoint, badge).is_some() {
            Ok(())
        } else {
            Err(Error::NotEnoughMemory)
        }
    }

    /// A capability came into a PD's root CNode; there is room for its channel.
    pub(crate) fn channel_gain(&mut self, client: PdId, cap: Cap) {
        let Some((_, endpoint, badge)) = self.channel_of(cap) else { return };
        if let Some(c) =
            self.channel_index(client, endpoint, badge).and_then(|i| self.channels.get_mut(i))
        {
            c.refs += 1;
            return;
        }
        let channel = Channel { client, endpoint, badge, refs: 1, open: None };
        if self.channels.push(channel).is_ok() {
            self.channel_open(self.channels.len() - 1);
        }
    }

    /// A capability left a PD's root CNode.
    pub(crate) fn channel_lose(&mut self, client: PdId, cap: Cap) {
        let Some((_, endpoint, badge)) = self.channel_of(cap) else { return };
        let Some(i) = self.channel_index(client, endpoint, badge) else { return };
        let Some(c) = self.channels.get_mut(i) else { return };
        c.refs -= 1;
        if c.refs == 0 {
            let gone = self.channels.swap_remove(i);
            if let Some(channel) = gone.open {
                self.emit(Action::ChannelRevoke { channel });
            }
        }
    }

    fn channel_open(&mut self, index: usize) {
        let Some(c) = self.channels.get(index).copied() else { return };
        let Some(server) = self.endpoints.get(c.endpoint).and_then(|e| e.server) else { return };
        if c.open.is_some() || self.pd_state(server) == Some(State::Dead) {
            return;
        }
        let channel = ChannelId(self.next_channel);
        self.next_channel += 1;
        if let Some(c) = self.channels.get_mut(index) {
            c.open = Some(channel);
        }
        let (client, endpoint, badge) = (c.client, c.endpoint, c.badge);
        self.emit(Action::ChannelOpen { channel, client, server, endpoint, badge });
    }

    /// A server starts: those who hold capabilities to it have channels again.
    pub(crate) fn channels_of_server_open(&mut self, server: PdId) {
        for i in 0..self.channels.len() {
            if self.serves(server, i) {
                self.channel_open(i);
            }
        }
    }

    /// A server died: its channels are dead.
    pub(crate) fn channels_of_server_close(&mut self, server: PdId) {
        for i in 0..self.channels.len() {
            if !self.serves(server, i) {
                continue;
            }
            if let Some(channel) = self.channels.get_mut(i).and_then(|c| c.open.take()) {
                self.emit(Action::ChannelRevoke { channel });
            }
        }
    }

    fn serves(&self, server: PdId, index: usize) -> bool {
        self.channels
            .get(index)
            .and_then(|c| self.endpoints.get(c.endpoint))
            .is_some_and(|e| e.server == Some(server))
    }
}
