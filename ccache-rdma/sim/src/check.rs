//! The checkers: one per invariant, each with the protocol's rules that it guards. Those on slots'
//! words stand in [`crate::words`], the one on leases in [`crate::cluster`].

use crate::cluster::Cluster;
use crate::history::{Record, linearizable};
use crate::work::{START, Seen, Value, accounts};
use clustix_ccache::cache::Version;
use clustix_ccache::half::Header;
use clustix_ccache::layout::{self, header};
use clustix_ccache::name::{Name, SHARDS, Shard};
use clustix_ccache::word::Word;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// What a checker found wrong: its name, and what it saw.
pub type Found = Result<(), (&'static str, String)>;

/// All that clients and domains of a cluster have been told.
#[derive(Default)]
pub struct Ledger {
    /// The value of each version seen.
    versions: BTreeMap<(Name, u64), u64>,
    /// The version at which each value was seen.
    values: BTreeMap<(Name, u64), u64>,
    /// The highest version of each object that any completed operation has shown or made.
    floors: BTreeMap<Name, u64>,
    /// Acknowledged writes by the version that they replaced.
    replaced: BTreeMap<(Name, u64), u64>,
    /// Every operation.
    histories: BTreeMap<Name, Vec<Record>>,
}

impl Ledger {
    /// What a read that begins now must reach.
    pub fn floor(&self, name: Name) -> u64 {
        self.floors.get(&name).copied().unwrap_or(0)
    }

    /// Adds an operation to an object's history.
    pub fn record(&mut self, name: Name, record: Record) {
        self.histories.entry(name).or_default().push(record);
    }

    /// How many operations there are.
    pub fn len(&self) -> usize {
        self.histories.values().map(Vec::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.histories.is_empty()
    }

    /// A completed operation has shown this.
    pub fn observe(
        &mut self,
        how: &str,
        name: Name,
        version: Version,
        data: &[u8],
        floor: u64,
    ) -> Result<Value, (&'static str, String)> {
        if !version.exists() {
            return Ok(Value::default());
        }
        let value = no_payload_is_torn(name, data)?;
        no_read_goes_back(how, name, version.0, floor)?;
        self.one_value_per_version(name, version.0, value.tag)?;
        self.nothing_is_applied_twice(name, version.0, value.tag)?;
        let known = self.floors.entry(name).or_default();
        *known = (*known).max(version.0);
        Ok(value)
    }

    /// A write that replaced this has been acknowledged.
    pub fn acknowledged(&mut self, seen: &Seen, tag: u64) -> Found {
        let floor = self.floors.entry(seen.name).or_default();
        *floor = (*floor).max(seen.version.0 + u64::from(seen.version.exists()));
        self.one_writer_per_version(seen, tag)
    }

    /// Rules 7, 9 and 10: of all writes that expect one version, at most one is acknowledged.
    fn one_writer_per_version(&mut self, seen: &Seen, tag: u64) -> Found {
        if !seen.version.exists() {
            return Ok(());
        }
        let first = *self.replaced.entry((seen.name, seen.version.0)).or_insert(tag);
        if first == tag {
            return Ok(());
        }
        let what = format!("{} {:?}: {first} and {tag}", seen.name, seen.version);
        Err(("one_writer_per_version", what))
    }

    /// Rules 7, 15 and 17: a version has one value, whoever shows it.
    fn one_value_per_version(&mut self, name: Name, version: u64, tag: u64) -> Found {
        let first = *self.versions.entry((name, version)).or_insert(tag);
        if first == tag {
            return Ok(());
        }
        Err(("one_value_per_version", format!("{name} {version}: {first} and {tag}")))
    }

    /// Rules 10, 17 and 22: what was posted is rolled forward or not, and never run again.
    fn nothing_is_applied_twice(&mut self, name: Name, version: u64, tag: u64) -> Found {
        let first = *self.values.entry((name, tag)).or_insert(version);
        if first == version {
            return Ok(());
        }
        let what = format!("{name}: value {tag} is version {first} and version {version}");
        Err(("nothing_is_applied_twice", what))
    }

    /// Rules 1–6, 8, 10, 11, 13–18 and 26: the answers about each object, hits and misses, fit one
    /// order in which each took effect while it was under way; the last answers, given when all
    /// is quiet, are among them, so no acknowledged write is lost.
    pub fn answers_are_linearizable(&self) -> Found {
        for (name, history) in &self.histories {
            linearizable(0, history)
                .map_err(|what| ("answers_are_linearizable", format!("{name}: {what}")))?;
        }
        Ok(())
    }
}

/// Rules 3 and 25: what is torn is never taken for whole.
fn no_payload_is_torn(name: Name, data: &[u8]) -> Result<Value, (&'static str, String)> {
    Value::parse(name, data).map_err(|what| ("no_payload_is_torn", what))
}

/// Rules 1, 2, 8 and 10: no read, hit or miss, is older than the newest that any operation
/// completed before it had shown or made.
fn no_read_goes_back(how: &str, name: Name, version: u64, floor: u64) -> Found {
    if version >= floor {
        return Ok(());
    }
    Err(("no_read_goes_back", format!("{how}: {name} went back to {version} from {floor}")))
}

/// Rules 19–22 and 29: what a read-only transaction has confirmed is of one moment; no transfer is
/// seen in part.
pub fn transactions_are_atomic(read: &[Seen]) -> Found {
    let sum: i64 = read.iter().map(|s| s.value.number).sum();
    if sum == START * accounts().len() as i64 {
        return Ok(());
    }
    Err(("transactions_are_atomic", format!("a transfer seen in part: {read:?}")))
}

/// Rules 8, 15, 16, 21 and 32: at rest every word is idle or kept by a live node, and every complete replica has the
/// version that the primary's word says, whole and alike.
pub fn replicas_agree(c: &Cluster) -> Found {
    let bad = |what: String| Err(("replicas_agree", what));
    for set in layout::sets() {
        for shard in (0..SHARDS).map(Shard) {
            let r = c.view().replicas(shard);
            let Some(primary) = r.primary.and_then(|p| c.at(p)) else { continue };
            let arena = &c.nodes[primary].arena;
            let mark = arena.word(set.region(), set.mark(shard)).load(Ordering::SeqCst);
            for slot in 0..mark as u32 {
                let at = set.header(shard, slot);
                let word = Word(arena.word(set.region(), at).load(Ordering::SeqCst));
                let place = || format!("{} {shard:?} slot {slot}: {word:?}", set.set.name);
                if word.writing() || word.holder().is_some_and(|h| c.at(h).is_none()) {
                    return bad(format!("{} is neither idle nor kept", place()));
                }
                if word.version_low() == 0 {
                    continue;
                }
                let mut all = Vec::new();
                for node in r.complete().iter().filter_map(|s| c.at(s)) {
                    let (node, arena) = (c.nodes[node].slot, &c.nodes[node].arena);
                    let mut bytes = [0; header::LEN as usize];
                    let _ = arena.region(set.region()).read(at as usize, &mut bytes);
                    let Some(head) = Header::decode(&bytes).highest() else {
                        return bad(format!("{}: no whole half on {node}", place()));
                    };
                    if !word.is_version(head.version) {
                        return bad(format!("{}: {head:?} on {node}", place()));
                    }
                    let mut data = vec![0; head.len as usize];
                    let half = set.payload(shard, slot, head.version) as usize;
                    let _ = arena.region(set.region()).read(half, &mut data);
                    if !head.matches(&data) {
                        return bad(format!("{}: torn at rest on {node}: {head:?}", place()));
                    }
                    all.push(head);
                }
                if all.windows(2).any(|w| w[0] != w[1]) {
                    return bad(format!("{}: {all:?}", place()));
                }
            }
        }
    }
    Ok(())
}
