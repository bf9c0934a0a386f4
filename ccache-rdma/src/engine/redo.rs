//! Redo records (rules 20–22): what a transaction over several objects writes before it commits,
//! so that either all of it is found after a death or none.
//!
//! A record is: checksum of the rest, length of the rest, count; then per object slot, padding,
//! the half as it will stand (head, payload).

use crate::cache::MAX_OBJECTS;
use crate::half::{HEAD, Head};
use crate::layout::control;
use crate::name::Name;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

const SEED: u64 = 0x7265_646f;
const FIXED: usize = 24;

/// One object of a record.
pub(crate) struct Entry {
    pub(crate) head: Head,
    pub(crate) slot: u32,
    pub(crate) data: Vec<u8>,
}

/// A record of (name, slot, half).
pub(crate) fn encode<'a>(items: impl Iterator<Item = (Name, u32, &'a Arc<Vec<u8>>)>) -> Vec<u8> {
    let mut out = vec![0; FIXED];
    let mut count = 0u64;
    for (_, slot, half) in items {
        out.extend_from_slice(&u64::from(slot).to_le_bytes());
        out.extend_from_slice(half);
        count += 1;
    }
    let len = out.len() as u64;
    out[8..16].copy_from_slice(&len.to_le_bytes());
    out[16..24].copy_from_slice(&count.to_le_bytes());
    let check = xxh3_64_with_seed(&out[8..], SEED);
    out[..8].copy_from_slice(&check.to_le_bytes());
    out
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// How long the record is of which these are the first bytes; `None` if there is none.
pub(crate) fn length(fixed: &[u8]) -> Option<usize> {
    let len = usize::try_from(word(fixed, 8)?).ok()?;
    (len > FIXED && len as u64 <= control::REDO_LEN).then_some(len)
}

/// Whether a record, which is as long as [`length`] says, is whole.
pub(crate) fn is_whole(bytes: &[u8]) -> bool {
    length(bytes) == Some(bytes.len())
        && word(bytes, 0) == Some(xxh3_64_with_seed(&bytes[8..], SEED))
}

/// The objects of a record; `None` for one that never was.
pub(crate) fn entries(bytes: &[u8]) -> Option<Vec<Entry>> {
    let count = word(bytes, 16).filter(|n| *n <= MAX_OBJECTS as u64)?;
    let mut at = FIXED;
    let mut entries = Vec::new();
    for _ in 0..count {
        let slot = u32::try_from(word(bytes, at)?).ok()?;
        let head = Head::decode(bytes.get(at + 8..)?)?;
        let start = at + 8 + HEAD;
        let data = bytes.get(start..start.checked_add(head.len as usize)?)?.to_vec();
        if !head.matches(&data) {
            return None;
        }
        at = start + (head.len as usize).next_multiple_of(8);
        entries.push(Entry { head, slot, data });
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::half::buffer;
    use crate::name::Shard;

    #[test]
    fn a_torn_record_is_none() {
        let a = Name::new(1, Shard(1), 1);
        let b = Name::new(4, Shard(2), 2);
        let data = vec![9u8; 4001];
        let halves = [
            (a, 3, buffer(&Head::of(a, 5, None), &[])),
            (b, 70, buffer(&Head::of(b, 8, Some(&data)), &data)),
        ];
        let record = encode(halves.iter().map(|(n, s, h)| (*n, *s, h)));
        let decode = |r: &[u8]| if is_whole(r) { super::entries(r) } else { None };
        let entries = decode(&record).unwrap();
        assert_eq!(entries.len(), 2);
        assert!(entries[0].head.tombstone && entries[0].slot == 3);
        assert_eq!((entries[1].head.name, entries[1].slot), (b, 70));
        assert_eq!(entries[1].data, data);
        for i in (0..record.len()).step_by(37) {
            let mut torn = record.clone();
            torn[i] ^= 16;
            assert!(decode(&torn).is_none(), "byte {i}");
            assert!(decode(&record[..i]).is_none());
        }
    }
}
