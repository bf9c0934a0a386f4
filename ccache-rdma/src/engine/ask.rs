//! Reading a volatile object of another node (rule 31): its ccache is asked, and answers with what stands
//! in the slab at that moment. Nothing is cached: the next read asks again.

use super::message::{Message, Ticket};
use super::op::{Flow, Kind, Op, Part};
use super::{Action, Engine};
use crate::cache::{CacheError, Version};
use crate::name::Name;
use crate::request::Reply;
use crate::set;

/// A question to another node.
#[derive(Clone, Copy)]
pub(crate) struct Ask {
    node: u8,
    name: Name,
}

/// What a slab holds of an object: its version and payload.
pub type Published = Result<(Version, Vec<u8>), CacheError>;

impl Ask {
    pub(crate) fn kind(node: u8, name: Name) -> Kind {
        Kind::Ask(Ask { node, name })
    }
}

impl Engine {
    pub(crate) fn step_ask(&mut self, op: &mut Op, ask: Ask) -> Flow {
        let answer = op.take().pop();
        let reply = match answer {
            Some((_, Part::Published(published))) => published.and_then(|(version, data)| {
                let most = set::descriptor(ask.name.set()).map_or(0, |d| d.capacity as usize);
                let whole = data.len() <= most && version.exists() != data.is_empty();
                if whole { Ok(Reply::Object(version, data)) } else { Err(CacheError::Invalid) }
            }),
            // It was lost with its node; but a node that has no lease may know of an old view only.
            _ if self.view.member(ask.node).is_none() && !self.serving() => {
                Err(CacheError::NoQuorum)
            }
            _ if self.view.member(ask.node).is_none() => {
                Ok(Reply::Object(Version::ABSENT, Vec::new()))
            }
            _ => {
                op.pending += 1;
                self.send(ask.node, &Message::Ask { ticket: op.ticket(0), name: ask.name });
                return Flow::Waits;
            }
        };
        self.reply(op, reply);
        Flow::Done
    }

    /// Another node asks for an object of this node's slab, which only the shell can read.
    pub(crate) fn asked(&mut self, peer: u8, ticket: Ticket, name: Name) {
        self.out.push(Action::Publish { peer, ticket, name });
    }

    /// What the slab holds. Without a lease this node may have been evicted, and its objects be lost.
    pub(crate) fn published(&mut self, peer: u8, ticket: Ticket, published: Published) {
        let published = if self.lease_valid() { published } else { Err(CacheError::NoQuorum) };
        self.send(peer, &Message::Told { ticket, published });
    }
}
