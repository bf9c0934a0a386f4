//! Halves: the two places of a slot in which its versions stand, by turns.
//!
//! A half is a head in the slot's header and a payload elsewhere; a write puts the payload first,
//! the head after it. The payload's checksum covers name, version, length and data, so a half that
//! is torn, or of another version or object than it claims, is never taken for a whole one.

use crate::layout::header;
use crate::name::Name;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The head of a half.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// Full version.
    pub version: u64,
    /// Length of the payload, bytes; 0 for a tombstone.
    pub len: u32,
    /// Whether the object was removed by this version.
    pub tombstone: bool,
    /// Checksum of the payload.
    pub checksum: u64,
    /// Whose it is.
    pub name: Name,
}

/// Bytes of a head.
pub const HEAD: usize = header::HEAD_LEN as usize;

/// The checksum of a payload.
pub fn checksum(name: Name, version: u64, tombstone: bool, data: &[u8]) -> u64 {
    let seed = (name.0 as u64).rotate_left(17)
        ^ ((name.0 >> 64) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ version.rotate_left(40)
        ^ (data.len() as u64) << 1
        ^ u64::from(tombstone);
    xxh3_64_with_seed(data, seed)
}

fn word(bytes: &[u8], index: usize) -> u64 {
    bytes
        .get(index * 8..index * 8 + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

impl Head {
    /// The head for a payload; `None` removes the object.
    pub fn of(name: Name, version: u64, data: Option<&[u8]>) -> Head {
        let bytes = data.unwrap_or(&[]);
        let tombstone = data.is_none();
        let checksum = checksum(name, version, tombstone, bytes);
        Head { version, len: bytes.len() as u32, tombstone, checksum, name }
    }

    /// As it stands in memory.
    pub fn encode(&self) -> [u8; HEAD] {
        let meta = u64::from(self.len) | if self.tombstone { header::TOMBSTONE } else { 0 };
        let mut out = [0; HEAD];
        let words =
            [self.version, meta, self.checksum, self.name.0 as u64, (self.name.0 >> 64) as u64];
        for (i, w) in words.iter().enumerate() {
            out[i * 8..i * 8 + 8].copy_from_slice(&w.to_le_bytes());
        }
        let check = xxh3_64_with_seed(&out[..40], 1);
        out[40..].copy_from_slice(&check.to_le_bytes());
        out
    }

    /// Reads a head; `None` for one that was never written or is torn.
    pub fn decode(bytes: &[u8]) -> Option<Head> {
        let bytes = bytes.get(..HEAD)?;
        let head = Head {
            version: word(bytes, 0),
            len: word(bytes, 1) as u32,
            tombstone: word(bytes, 1) & header::TOMBSTONE != 0,
            checksum: word(bytes, 2),
            name: Name(u128::from(word(bytes, 3)) | u128::from(word(bytes, 4)) << 64),
        };
        let sane = head.version != 0 && head.len <= 65_536 && !(head.tombstone && head.len != 0);
        (sane && xxh3_64_with_seed(&bytes[..40], 1) == word(bytes, 5)).then_some(head)
    }

    /// Whether `data` is this head's payload, whole.
    pub fn matches(&self, data: &[u8]) -> bool {
        data.len() == self.len as usize
            && checksum(self.name, self.version, self.tombstone, data) == self.checksum
    }
}

/// A slot's header, as one READ gives it.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// The name that the primary has bound the slot to; [`Name`] 0 when free.
    pub bound: Name,
    /// See [`header::FLOOR`].
    pub floor: u64,
    /// The heads, where whole.
    pub heads: [Option<Head>; 2],
}

impl Header {
    /// Reads a header of [`header::LEN`] bytes.
    pub fn decode(bytes: &[u8]) -> Header {
        let at = |o: u64| bytes.get(o as usize..).unwrap_or(&[]);
        Header {
            bound: Name(
                u128::from(word(at(header::NAME), 0)) | u128::from(word(at(header::NAME), 1)) << 64,
            ),
            floor: word(at(header::FLOOR), 0),
            heads: [Head::decode(at(header::head(0))), Head::decode(at(header::head(1)))],
        }
    }

    /// The head of the version that a word speaks of.
    pub fn current(&self, word: crate::word::Word) -> Option<Head> {
        self.heads[(word.version_low() & 1) as usize].filter(|h| word.is_version(h.version))
    }

    /// The highest version whose head is whole.
    pub fn highest(&self) -> Option<Head> {
        self.heads.iter().flatten().max_by_key(|h| h.version).copied()
    }
}

/// A half as it is posted: the head, then the payload padded to whole words.
pub fn buffer(head: &Head, data: &[u8]) -> Arc<Vec<u8>> {
    let mut out = Vec::with_capacity(HEAD + data.len().next_multiple_of(8));
    out.extend_from_slice(&head.encode());
    out.extend_from_slice(data);
    out.resize(HEAD + data.len().next_multiple_of(8), 0);
    Arc::new(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Shard;

    #[test]
    fn any_changed_byte_is_noticed() {
        let name = Name::new(4, Shard(3), 12);
        let data = vec![7u8; 100];
        let head = Head::of(name, 9, Some(&data));
        let bytes = head.encode();
        assert_eq!(Head::decode(&bytes), Some(head));
        for i in 0..HEAD {
            let mut torn = bytes;
            torn[i] ^= 1;
            assert_eq!(Head::decode(&torn), None, "byte {i}");
        }
        assert!(head.matches(&data));
        for i in 0..data.len() {
            let mut torn = data.clone();
            torn[i] ^= 128;
            assert!(!head.matches(&torn));
        }
        assert!(!head.matches(&data[1..]));
        let other = Head { version: 11, ..head };
        assert!(!other.matches(&data));
        assert!(Head::of(name, 3, None).matches(&[]));
        assert_eq!(Head::decode(&[0; HEAD]), None);
    }
}
