//! Watches slots' words as atomics change them: the checkers of what no operation's answer shows.

use clustix_ccache::fabric::{Address, Verb};
use clustix_ccache::layout::{RegionId, SetLayout};
use clustix_ccache::name::Shard;
use clustix_ccache::word::Word;
use std::collections::{HashMap, HashSet};

/// A slot's word in one node's arena.
type Place = (usize, RegionId, u64);

/// What has been seen of slots' words.
#[derive(Default)]
pub struct Words {
    watched: HashSet<(RegionId, u64)>,
    /// The counts as they stood when W was set: what the writer's end takes away.
    observed: HashMap<Place, Word>,
    /// The first change that no rule allows: the checker's name and what was seen.
    pub violation: Option<(&'static str, String)>,
    /// Changes looked at.
    pub changes: u64,
}

impl Words {
    /// Watches the first `slots` slots of a set in a shard.
    pub fn watch(&mut self, set: &SetLayout, shard: Shard, slots: u32) {
        let words = (0..slots).map(|slot| (set.region(), set.header(shard, slot)));
        self.watched.extend(words);
    }

    /// An atomic (or a write of a word) by `poster` has changed what was `before`.
    pub fn changed(&mut self, port: usize, poster: u8, verb: &Verb, before: u64) {
        let (Verb::CompareSwap { at, .. } | Verb::FetchAdd { at, .. } | Verb::WriteWord { at, .. }) =
            verb
        else {
            return;
        };
        let Address { region, offset } = *at;
        if !self.watched.contains(&(region, offset)) {
            return;
        }
        let place = (port, region, offset);
        let before = Word(before);
        let after = match verb {
            Verb::CompareSwap { expect, new, .. } if *expect == before.0 => Word(*new),
            Verb::CompareSwap { .. } => return,
            Verb::FetchAdd { add, .. } => Word(before.0.wrapping_add(*add)),
            _ => {
                // A new primary's new word.
                self.observed.remove(&place);
                return;
            }
        };
        self.changes += 1;
        let add = match verb {
            Verb::FetchAdd { add, .. } => Some(*add),
            _ => None,
        };
        let found = counts_stay_in_their_bits(self.observed.get(&place), before, after, add)
            .and_then(|()| only_the_holder_ends_a_write(poster, before, after, add));
        if let Err((name, what)) = found {
            let what = format!("{what}; by {poster} at port {port} {region:?}+{offset:#x}");
            self.violation.get_or_insert((name, what));
        }
        match (before.writing(), after.writing()) {
            (false, true) => drop(self.observed.insert(place, before)),
            (true, false) => drop(self.observed.remove(&place)),
            _ => {}
        }
    }
}

type Found = Result<(), (&'static str, String)>;

/// Rules 2, 11 and 14: a node's sharer count never carries into its neighbour's bits, and an end
/// takes away no more than was counted when its writer set W.
fn counts_stay_in_their_bits(
    observed: Option<&Word>,
    before: Word,
    after: Word,
    add: Option<u64>,
) -> Found {
    let bad = |what: &str| {
        Err(("counts_stay_in_their_bits", format!("{what}: {:#x} to {:#x}", before.0, after.0)))
    };
    let Some(add) = add else { return Ok(()) };
    for node in 0..16 {
        if add == Word::share(node) && before.count(node) == 3 {
            return bad("a fourth copy is counted");
        }
    }
    // A word that is given back counts one more copy, its holder's.
    let given_back = !before.writing() && before.holder().is_some() && after.holder().is_none();
    if given_back && (0..16).any(|node| before.count(node) > after.count(node)) {
        return bad("a fourth copy is counted as the word is given back");
    }
    // An end: W goes and the version moves.
    let ends = before.writing() && !after.writing();
    if let (true, Some(observed)) = (ends && before.version_low() != after.version_low(), observed)
    {
        let holder = before.holder();
        for node in 0..16 {
            let left = before.count(node).checked_sub(observed.count(node));
            // Who keeps the word has no need of a count, and who does not know whether there is room for one more
            // adds none: its copy is void.
            let own = u8::from(Some(node) == holder && after.holder().is_none());
            let fits =
                |left: u8| (left..=left + own).any(|count| count < 4 && count == after.count(node));
            if !left.is_some_and(fits) {
                return bad("an end does not fit what its writer observed");
            }
        }
    }
    Ok(())
}

/// Rules 7, 9, 11 and 28: a word that is held or written is given up by its holder alone; what
/// else happens to it is that copies are counted. (Recovery acts by compare-and-swap.)
fn only_the_holder_ends_a_write(poster: u8, before: Word, after: Word, add: Option<u64>) -> Found {
    let Some(add) = add else { return Ok(()) };
    // The low 32 bits are counts; an end of a count that was not there borrows from above.
    let counts_only = (0..16).any(|node| add == Word::share(node));
    if counts_only || before.holder() == Some(poster) {
        return Ok(());
    }
    let what = format!("{before:?} became {after:?}");
    Err(("only_the_holder_ends_a_write", what))
}
