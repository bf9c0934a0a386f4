//! Counters of this domain, in a page that the kernel reads for `clustix metrics`.
//!
//! The page is an array of entries of 64 bytes: a name (56 bytes, zero-padded) and a count. A name
//! may carry Prometheus labels: `clustix_calls_total{call="openat"}`. Names that do not fit, or
//! find the page full, are counted together under `clustix_metrics_dropped_total`. Where the last
//! entry would stand is the domain's *beat*, by which the kernel knows that its loop still turns.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

use crate::region::Region;

/// Length of the page in bytes.
pub const PAGE_LEN: usize = 64 * 1024;
/// Length of an entry in bytes.
pub const ENTRY_LEN: usize = 64;
/// Longest name in bytes.
pub const NAME_LEN: usize = 56;
/// Entries in the page.
pub const ENTRIES: usize = PAGE_LEN / ENTRY_LEN - 1;

/// Word of the page that a domain's loop counts its turns in.
const BEAT: usize = ENTRIES * ENTRY_LEN / 8;

const DROPPED: &str = "clustix_metrics_dropped_total";

struct Page {
    region: Region,
    known: RwLock<HashMap<String, usize>>,
}

static PAGE: OnceLock<Page> = OnceLock::new();

/// Makes `region` this domain's page; ignored when there is one already.
pub(crate) fn install(region: Region) {
    if region.len() >= PAGE_LEN {
        let _ = PAGE.set(Page { region, known: RwLock::default() });
    }
}

fn page() -> Option<&'static Page> {
    if let Some(p) = PAGE.get() {
        return Some(p);
    }
    // Outside a protection domain (a witness, tests): a page that nobody reads.
    install(Region::anonymous(PAGE_LEN).ok()?);
    PAGE.get()
}

/// Sees to it that there is a page, which a sandbox does not let a process make.
pub(crate) fn prepare() {
    page();
}

impl Page {
    fn count(&self, entry: usize) -> Option<&AtomicU64> {
        self.region.words().get(entry * (ENTRY_LEN / 8) + NAME_LEN / 8)
    }

    fn entry(&self, name: &str) -> Option<usize> {
        if let Some(&e) = self.known.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Some(e);
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(&e) = known.get(name) {
            return Some(e);
        }
        let e = known.len();
        // The last entry is kept for the names that found no room.
        let last = if name == DROPPED { ENTRIES } else { ENTRIES - 1 };
        if name.len() > NAME_LEN || e >= last || !self.region.write(e * ENTRY_LEN, name.as_bytes())
        {
            return None;
        }
        known.insert(name.to_owned(), e);
        Some(e)
    }
}

/// Adds `n` to the counter `name`.
pub fn add(name: &str, n: u64) {
    let Some(page) = page() else { return };
    let Some(entry) = page.entry(name).or_else(|| page.entry(DROPPED)) else { return };
    if let Some(count) = page.count(entry) {
        count.fetch_add(n, Ordering::Relaxed);
    }
}

/// Sets the gauge `name` to `n`.
pub fn set(name: &str, n: u64) {
    let Some(page) = page() else { return };
    let Some(entry) = page.entry(name) else { return };
    if let Some(count) = page.count(entry) {
        count.store(n, Ordering::Relaxed);
    }
}

/// What `name` stands at in this domain; 0 if it was never counted.
pub fn get(name: &str) -> u64 {
    let Some(page) = page() else { return 0 };
    let known = page.known.read().unwrap_or_else(PoisonError::into_inner);
    known.get(name).and_then(|&e| page.count(e)).map_or(0, |c| c.load(Ordering::Relaxed))
}

/// This domain's loop has come round. To be called at least every
/// [`LONGEST_SLEEP`](crate::exec::LONGEST_SLEEP), by one thread.
pub fn beat() {
    if let Some(beat) = page().and_then(|p| p.region.words().get(BEAT)) {
        beat.store(beat.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

/// How often the domain that writes this metrics page has [`beat`]; anything, if it is hostile.
pub fn beats(region: &Region) -> u64 {
    region.words().get(BEAT).map_or(0, |w| w.load(Ordering::Relaxed))
}

/// The entries of a metrics page, read from outside the domain that writes it: names that are not
/// printable ASCII are left out.
pub fn read_page(region: &Region) -> Vec<(String, u64)> {
    let mut out = Vec::new();
    for e in 0..ENTRIES {
        let mut name = [0; NAME_LEN];
        if !region.read(e * ENTRY_LEN, &mut name) || name[0] == 0 {
            break;
        }
        let len = name.iter().position(|&b| b == 0).unwrap_or(NAME_LEN);
        let name = &name[..len];
        if !name.iter().all(|b| (0x20..0x7f).contains(b)) {
            continue;
        }
        let count = region.words()[e * (ENTRY_LEN / 8) + NAME_LEN / 8].load(Ordering::Relaxed);
        out.push((String::from_utf8_lossy(name).into_owned(), count));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_and_long_names_are_counted_together() {
        add("clustix_test_total", 2);
        add("clustix_test_total", 3);
        assert_eq!(get("clustix_test_total"), 5);
        add(&"x".repeat(57), 1);
        assert_eq!(get(DROPPED), 1);
        let page = read_page(&PAGE.get().unwrap().region);
        assert!(page.contains(&("clustix_test_total".to_owned(), 5)));
    }

    #[test]
    fn a_full_page_keeps_its_beat() {
        let region = Region::anonymous(PAGE_LEN).unwrap();
        let page = Page { region, known: RwLock::default() };
        let entries = (0..2 * ENTRIES).filter_map(|i| page.entry(&format!("name{i}"))).count();
        assert_eq!(entries, ENTRIES - 1);
        assert_eq!(page.entry(DROPPED), Some(ENTRIES - 1));
        page.count(ENTRIES - 1).unwrap().store(u64::MAX, Ordering::Relaxed);
        assert_eq!(beats(&page.region), 0);
    }
}
