//! What peers say to each other: the hello of a connection, and the fabric's own messages.
//!
//! Everything here came from another machine and is only bytes until it is decoded.

use crate::layout::{REGIONS, RegionId, control};
use crate::view::MAX_NODES;

/// First word of a hello; says in which version of this protocol.
const MAGIC: u32 = 0x636c_7601; // "clv", 1
/// Length of a hello. rdma_cm carries at most 56 bytes with a request.
pub(super) const HELLO: usize = 40;
/// Length of what stands before the body of every message.
pub(super) const HEAD: usize = 8;
/// Most chunks asked for, or told, in one message.
pub(super) const MAX_KEYS: usize = 16;

/// The start of a connection, from either side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hello {
    /// The cluster's token.
    pub token: u64,
    /// Who speaks.
    pub slot: u8,
    /// In which incarnation.
    pub incarnation: u64,
    /// To which incarnation of the other.
    pub meant: u64,
    /// Key of the word in which the speaker learns how many of its messages were taken.
    pub credit: u32,
}

impl Hello {
    pub(super) fn encode(&self) -> [u8; HELLO] {
        let mut bytes = [0; HELLO];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4] = self.slot;
        bytes[8..16].copy_from_slice(&self.token.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.incarnation.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.meant.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.credit.to_le_bytes());
        bytes
    }

    /// From the private data of an event, which may be longer than what was sent.
    pub(super) fn decode(bytes: &[u8]) -> Option<Hello> {
        let word = |at: usize| {
            bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes)
        };
        let half = |at: usize| {
            bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes)
        };
        let slot = *bytes.get(4)?;
        if half(0)? != MAGIC || usize::from(slot) >= MAX_NODES {
            return None;
        }
        Some(Hello {
            token: word(8)?,
            slot,
            incarnation: word(16)?,
            meant: word(24)?,
            credit: half(32)?,
        })
    }
}

/// A piece of a region that is registered as one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Chunk(u64);

impl Chunk {
    const REGION: u32 = 48;

    /// Length of a region's chunks, bytes; a power of two. Registering pins memory, and objects are
    /// spread over all shards: a class's chunks are small, lest each costs many pages that nothing is in.
    /// Control words and redo records stand close together.
    pub(super) const fn size(region: RegionId) -> u64 {
        match region {
            RegionId::Class(_) => 16 * 1024,
            RegionId::Control => 64 * 1024,
        }
    }

    /// The one that an offset is in.
    pub(super) fn of(region: RegionId, offset: u64) -> Chunk {
        Chunk(((region.index() as u64) << Self::REGION) | (offset / Self::size(region)))
    }

    pub(super) fn region(self) -> RegionId {
        let index = (self.0 >> Self::REGION) as usize;
        RegionId::all().nth(index).unwrap_or(RegionId::Control)
    }

    /// Byte offset in its region.
    pub(super) fn offset(self) -> u64 {
        (self.0 & ((1 << Self::REGION) - 1)) * Self::size(self.region())
    }

    /// Bytes that there are of it: a region's last may be shorter.
    pub(super) fn len(self) -> u64 {
        let region = self.region();
        Self::size(region).min(region.len().saturating_sub(self.offset()))
    }

    /// Whether every arena has it.
    pub(super) fn exists(self) -> bool {
        ((self.0 >> Self::REGION) as usize) < REGIONS && self.len() > 0
    }

    /// Those that every peer uses from its first view on: heartbeats, validity counters.
    pub(super) fn common() -> impl Iterator<Item = Chunk> {
        let end = control::COUNTERS + control::COUNTER_COUNT * 8;
        let size = Self::size(RegionId::Control);
        (0..end.div_ceil(size)).map(move |i| Chunk::of(RegionId::Control, i * size))
    }
}

/// A message between two ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Message {
    /// The node's own, for its engine.
    Plain(Vec<u8>),
    /// Asks for the keys of chunks.
    AskKeys(Vec<Chunk>),
    /// Tells keys; `None`: the chunk cannot be registered.
    Keys(Vec<(Chunk, Option<u32>)>),
}

const PLAIN: u64 = 1;
const ASK: u64 = 2;
const KEYS: u64 = 3;
/// Bit of a key's word: there is one.
const THERE: u64 = 1 << 32;

impl Message {
    /// Length when encoded.
    pub(super) fn len(&self) -> usize {
        HEAD + match self {
            Message::Plain(bytes) => bytes.len(),
            Message::AskKeys(chunks) => chunks.len() * 8,
            Message::Keys(keys) => keys.len() * 16,
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len());
        match self {
            Message::Plain(bytes) => {
                out.extend(PLAIN.to_le_bytes());
                out.extend(bytes);
            }
            Message::AskKeys(chunks) => {
                out.extend(ASK.to_le_bytes());
                chunks.iter().for_each(|c| out.extend(c.0.to_le_bytes()));
            }
            Message::Keys(keys) => {
                out.extend(KEYS.to_le_bytes());
                for (chunk, key) in keys {
                    out.extend(chunk.0.to_le_bytes());
                    out.extend(key.map_or(0, |k| u64::from(k) | THERE).to_le_bytes());
                }
            }
        }
        out
    }

    pub(super) fn decode(mut bytes: Vec<u8>) -> Option<Message> {
        let words = || {
            bytes[HEAD..]
                .chunks_exact(8)
                .map(|b| u64::from_le_bytes(b.try_into().unwrap_or([0; 8])))
        };
        let kind = u64::from_le_bytes(bytes.get(..HEAD)?.try_into().ok()?);
        let body = bytes.len() - HEAD;
        match kind {
            PLAIN if body <= control::MAX_MESSAGE => {
                bytes.drain(..HEAD);
                Some(Message::Plain(bytes))
            }
            ASK if body.is_multiple_of(8) && body / 8 <= MAX_KEYS => {
                let chunks: Vec<Chunk> = words().map(Chunk).collect();
                chunks.iter().all(|c| c.exists()).then_some(Message::AskKeys(chunks))
            }
            KEYS if body.is_multiple_of(16) && body / 16 <= MAX_KEYS => {
                let words: Vec<u64> = words().collect();
                let key = |w: u64| (w & THERE != 0).then_some(w as u32);
                let keys = words.chunks_exact(2).map(|w| (Chunk(w[0]), key(w[1]))).collect();
                Some(Message::Keys(keys))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_said_is_understood() {
        let hello = Hello { token: 1 << 60, slot: 3, incarnation: 7, meant: 9, credit: 77 };
        let mut bytes = hello.encode().to_vec();
        bytes.resize(56, 0);
        assert_eq!(Hello::decode(&bytes), Some(hello));
        for (at, byte) in [(0, 0), (4, 16)] {
            let mut bad = bytes.clone();
            bad[at] = byte;
            assert_eq!(Hello::decode(&bad), None);
        }
        let chunks: Vec<Chunk> = Chunk::common().take(3).collect();
        let last = Chunk::of(RegionId::Control, control::LEN - 1);
        assert!(last.exists() && !Chunk::of(RegionId::Control, control::LEN).exists());
        assert_eq!((last.region(), last.offset() + last.len()), (RegionId::Control, control::LEN));
        for region in RegionId::all() {
            let mut at = 0;
            for offset in [0, Chunk::size(region), region.len() / 2, region.len() - 8] {
                let chunk = Chunk::of(region, offset);
                assert!(chunk.exists() && chunk.region() == region && chunk.offset() >= at);
                assert!((chunk.offset()..chunk.offset() + chunk.len()).contains(&offset));
                at = chunk.offset();
            }
            let beyond = region.len().next_multiple_of(Chunk::size(region));
            assert!(!Chunk::of(region, beyond).exists());
        }
        for m in [
            Message::Plain(b"hello".to_vec()),
            Message::AskKeys(chunks.clone()),
            Message::Keys(vec![(chunks[1], Some(0)), (last, None)]),
        ] {
            let bytes = m.encode();
            assert_eq!(bytes.len(), m.len());
            assert_eq!(Message::decode(bytes), Some(m));
        }
        assert_eq!(Message::decode(Message::AskKeys(vec![Chunk(u64::MAX)]).encode()), None);
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_only_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 0u64..5) {
            let _ = Hello::decode(&bytes);
            let _ = Message::decode(bytes.clone());
            let mut b = kind.to_le_bytes().to_vec();
            b.extend(bytes);
            if let Some(Message::AskKeys(chunks)) = Message::decode(b) {
                prop_assert!(chunks.len() <= MAX_KEYS && chunks.iter().all(|c| c.exists()));
            }
        }
    }
}
