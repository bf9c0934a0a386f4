//! Runs of pages that may exist ([`clustix_proto::vfs::Inode::extents`]).

use clustix_proto::vfs::{MAX_EXTENTS, MAX_JOINED_HOLE};

/// Whether page `index` is within a run.
pub fn contains(extents: &[(u32, u32)], index: u32) -> bool {
    extents.iter().any(|&(first, count)| index >= first && index - first < count)
}

/// One past the last page that may exist.
pub fn end(extents: &[(u32, u32)]) -> u64 {
    extents.last().map_or(0, |&(first, count)| u64::from(first) + u64::from(count))
}

/// Every page that may exist, ascending.
pub fn pages(extents: &[(u32, u32)]) -> impl DoubleEndedIterator<Item = u32> + '_ {
    extents.iter().flat_map(|&(first, count)| first..first + count)
}

/// Adds page `index`. `false`, and nothing changed: the runs are too many and too far apart.
pub fn insert(extents: &mut Vec<(u32, u32)>, index: u32) -> bool {
    if contains(extents, index) {
        return true;
    }
    let at = extents.partition_point(|&(first, _)| first < index);
    let before = at.checked_sub(1).map(|i| extents[i]);
    let joins_before = before.is_some_and(|(first, count)| first + count == index);
    let joins_after = extents.get(at).is_some_and(|&(first, _)| index + 1 == first);
    match (joins_before, joins_after) {
        (true, true) => {
            extents[at - 1].1 += 1 + extents[at].1;
            extents.remove(at);
        }
        (true, false) => extents[at - 1].1 += 1,
        (false, true) => extents[at] = (index, extents[at].1 + 1),
        (false, false) => {
            extents.insert(at, (index, 1));
            if extents.len() > MAX_EXTENTS && !join_nearest(extents) {
                extents.remove(at);
                return false;
            }
        }
    }
    true
}

fn join_nearest(extents: &mut Vec<(u32, u32)>) -> bool {
    let hole = |w: &[(u32, u32)]| w[1].0 - w[0].0 - w[0].1;
    let nearest = extents.windows(2).enumerate().min_by_key(|(_, w)| hole(w));
    match nearest {
        Some((i, w)) if hole(w) <= MAX_JOINED_HOLE => {
            extents[i].1 = w[1].0 + w[1].1 - w[0].0;
            extents.remove(i + 1);
            true
        }
        _ => false,
    }
}

/// Drops every page from `from` on.
pub fn truncate(extents: &mut Vec<(u32, u32)>, from: u64) {
    extents.retain_mut(|(first, count)| {
        let keep = from.saturating_sub(u64::from(*first)).min(u64::from(*count));
        *count = keep as u32;
        keep > 0
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn they_cover_what_was_added_and_stay_few(
            ops in prop::collection::vec((0u32..200, any::<bool>()), 0..200)
        ) {
            let mut extents = Vec::new();
            let mut pages = BTreeSet::new();
            for (n, cut) in ops {
                if cut && n % 8 == 0 {
                    truncate(&mut extents, u64::from(n));
                    pages.retain(|p| *p < n);
                } else {
                    prop_assert!(insert(&mut extents, n));
                    pages.insert(n);
                }
                prop_assert!(extents.len() <= MAX_EXTENTS);
                prop_assert!(pages.iter().all(|p| contains(&extents, *p)));
                prop_assert!(extents.windows(2).all(|w| w[0].0 + w[0].1 < w[1].0));
                prop_assert!(extents.iter().all(|e| e.1 > 0));
                if extents.len() < MAX_EXTENTS / 2 && extents.iter().all(|e| e.1 == 1) {
                    prop_assert_eq!(extents.len(), pages.len());
                }
            }
        }
    }

    #[test]
    fn runs_far_apart_are_refused_when_they_are_too_many() {
        let mut extents = Vec::new();
        for i in 0..MAX_EXTENTS as u32 {
            assert!(insert(&mut extents, i * 100_000_000));
        }
        let before = extents.clone();
        assert!(!insert(&mut extents, 50_000_000));
        assert_eq!(extents, before);
        assert!(insert(&mut extents, 100_000_002), "a near one still fits");
        assert!(insert(&mut extents, u32::MAX - 1) || extents.len() == MAX_EXTENTS);
    }
}
