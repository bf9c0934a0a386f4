//! Channels and badge tables, as the kernel keeps them.

use std::os::fd::{AsFd, OwnedFd};

use clustix_kernel_core::{ChannelId, EndpointId, PdId};
use clustix_pd::channel::{
    BADGE_TABLE_LEN, BADGES, channel_len, mark_gone, mark_revoked, wakeups, write_badge,
};
use clustix_pd::region::Mapping;

use crate::memory;

/// The badge table of a server: written here alone.
pub(crate) struct Badges {
    table: Mapping,
    pub(crate) read_only: OwnedFd,
    used: Vec<bool>,
}

impl Badges {
    pub(crate) fn new() -> std::io::Result<Badges> {
        let fd = memory::create("clustix-badges", BADGE_TABLE_LEN as u64)?;
        Ok(Badges {
            table: Mapping::new(fd.as_fd(), BADGE_TABLE_LEN, true)?,
            read_only: memory::read_only(fd.as_fd())?,
            used: vec![false; BADGES],
        })
    }

    /// Enters a channel; `None` when the table is full.
    fn enter(&mut self, channel: ChannelId, badge: u64) -> Option<u64> {
        let index = self.used.iter().position(|u| !u)?;
        let id = index as u64 | (channel.0 + 1) << 16;
        if !write_badge(&self.table, index, id, badge) {
            return None;
        }
        self.used[index] = true;
        Some(id)
    }

    fn leave(&mut self, id: u64) {
        let index = (id & 0xffff) as usize;
        write_badge(&self.table, index, 0, 0);
        if let Some(used) = self.used.get_mut(index) {
            *used = false;
        }
    }
}

/// A channel's memory.
pub(crate) struct Channel {
    pub(crate) client: PdId,
    pub(crate) server: PdId,
    pub(crate) endpoint: EndpointId,
    pub(crate) badge: u64,
    pub(crate) fd: OwnedFd,
    pub(crate) window: u32,
    pub(crate) name: String,
    mapping: Mapping,
    /// The core's number and the server's, while the capability lives.
    pub(crate) live: Option<(ChannelId, u64)>,
}

impl Channel {
    pub(crate) fn new(
        (client, server, endpoint): (PdId, PdId, EndpointId),
        badge: u64,
        name: String,
        window: u32,
    ) -> std::io::Result<Channel> {
        let len = channel_len(window as usize);
        let fd = memory::create("clustix-channel", len as u64)?;
        // The kernel looks at the header and the slots, never at the windows.
        let mapping = Mapping::new(fd.as_fd(), channel_len(0), true)?;
        Ok(Channel { client, server, endpoint, badge, fd, window, name, mapping, live: None })
    }

    /// Makes it usable: enters it in the server's badge table.
    pub(crate) fn open(&mut self, id: ChannelId, badges: &mut Badges) -> bool {
        match badges.enter(id, self.badge) {
            Some(entry) => {
                self.live = Some((id, entry));
                true
            }
            None => {
                mark_revoked(&self.mapping);
                false
            }
        }
    }

    /// Its capability is gone: the server serves nothing from it any more. `for_good` ends the
    /// requests that nobody took, too; otherwise they wait for the server's next life.
    pub(crate) fn close(&mut self, badges: &mut Badges, for_good: bool) -> Option<u64> {
        let (_, entry) = self.live.take()?;
        badges.leave(entry);
        if for_good {
            mark_revoked(&self.mapping);
        }
        Some(entry)
    }

    /// Its server died: the calls that it had taken are over.
    pub(crate) fn server_died(&self) {
        mark_gone(&self.mapping);
    }

    /// Nobody will serve it again.
    pub(crate) fn end(&self) {
        mark_revoked(&self.mapping);
    }

    /// Request bells rung on it.
    pub(crate) fn wakeups(&self) -> u64 {
        wakeups(&self.mapping)
    }
}
