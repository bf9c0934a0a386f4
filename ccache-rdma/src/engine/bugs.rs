//! Known bugs, put back on purpose: each drops one of the protocol's rules. The simulator shows
//! that it catches them. Without the feature `put-back-bugs` nothing of this is compiled into an
//! engine: [`Engine::bug`] is constantly false.

use super::Engine;

/// A rule that an engine does not keep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// Rule 2: copies are counted without regard to how many the count's bits hold. (Counts have two
    /// bits; single bits would carry at the second copy, these do at the fourth.)
    UnboundedCounts,
    /// Rule 7: a word that another node holds, W = 0, is taken from it.
    StealKept,
    /// Rule 3: what was read while W = 1 is accepted and cached.
    ReadWhileWriting,
    /// Rule 2: the validity counter is read after the chain was posted.
    CounterAfterPosting,
    /// Rule 10: a write is acknowledged before its last completion, a replica's or a counter's.
    #[cfg(feature = "put-back-bugs")]
    EarlyAcknowledgement,
    /// Rules 4 and 10: the lease is checked on hits only.
    LeaseOnHitsOnly,
    /// Rule 13: nobody waits for the lease of the evicted.
    NoLeaseWait,
    /// Rule 40: whose earlier incarnation has ended passes for ended.
    EndedBefore,
    /// Rule 13: one survivor does not revoke the evicted.
    PartialRevoke,
    /// Rule 16: a survivor confirms while verbs of its own are under way.
    NoDrain,
    /// Rule 14: the sharer counts of the dead are cleared under live writers.
    #[cfg(feature = "put-back-bugs")]
    CountsCleared,
    /// Rule 16: caches are kept when the primary died.
    CachesKept,
    /// Rule 21: a transaction's ends go out, and its record is free, before its halves stand.
    EndsBeforeApplies,
    /// Rule 22: a record is replayed whatever version its objects have.
    ReplayWithoutVersions,
    /// Rule 22: a record that is torn is replayed.
    RecordUnchecked,
    /// Rule 22: a record is replayed that stands on one survivor alone.
    ReplayFromOneRecord,
    /// Rule 32: the copier copies although it did not get the word.
    CopierIgnoresSwap,
    /// Rule 44: who has just written does not let those come first who wait. Nothing that was told is wrong
    /// then, so it is not one of [`Bug::ALL`]: the simulator's contention shows it.
    NoTurns,
    /// Rule 32: the copier leaves what a write that came to nothing left in the new copy.
    LeftoverHalf,
}

impl Bug {
    /// All, with their names on the command line.
    #[cfg(feature = "put-back-bugs")]
    pub const ALL: [(&str, Bug); 18] = [
        ("unbounded-counts", Bug::UnboundedCounts),
        ("steal-kept", Bug::StealKept),
        ("read-while-writing", Bug::ReadWhileWriting),
        ("counter-after-posting", Bug::CounterAfterPosting),
        ("early-acknowledgement", Bug::EarlyAcknowledgement),
        ("lease-on-hits-only", Bug::LeaseOnHitsOnly),
        ("no-lease-wait", Bug::NoLeaseWait),
        ("ended-before", Bug::EndedBefore),
        ("partial-revoke", Bug::PartialRevoke),
        ("no-drain", Bug::NoDrain),
        ("counts-cleared", Bug::CountsCleared),
        ("caches-kept", Bug::CachesKept),
        ("ends-before-applies", Bug::EndsBeforeApplies),
        ("replay-without-versions", Bug::ReplayWithoutVersions),
        ("record-unchecked", Bug::RecordUnchecked),
        ("replay-from-one-record", Bug::ReplayFromOneRecord),
        ("copier-ignores-swap", Bug::CopierIgnoresSwap),
        ("leftover-half", Bug::LeftoverHalf),
    ];
}

impl Engine {
    /// Whether this bug has been put back.
    #[inline(always)]
    pub(super) fn bug(&self, bug: Bug) -> bool {
        #[cfg(feature = "put-back-bugs")]
        return self.bug == Some(bug);
        #[cfg(not(feature = "put-back-bugs"))]
        {
            let _ = bug;
            false
        }
    }

    /// From now on this engine has that bug, or none.
    #[cfg(feature = "put-back-bugs")]
    pub fn put_back(&mut self, bug: Option<Bug>) {
        self.bug = bug;
    }

    /// [`Bug::CountsCleared`], in the shards whose words stay.
    #[cfg(feature = "put-back-bugs")]
    pub(super) fn clear_counts_of_the_gone(&mut self) {
        use crate::fabric::{Address, Verb};
        use crate::name::{SHARDS, Shard};
        use crate::word::Word;
        let gone = self.gone();
        for shard in (0..SHARDS).map(Shard) {
            if self.view.primary(shard) != Some(self.config.node) || self.is_affected(shard) {
                continue;
            }
            for set in crate::layout::sets() {
                for slot in 0..self.own_mark(set, shard) {
                    let offset = set.header(shard, slot);
                    let word = self.arena.word(set.region(), offset);
                    let word = Word(word.load(std::sync::atomic::Ordering::Acquire));
                    for node in gone.iter().filter(|n| word.count(*n) > 0) {
                        let counted = u64::from(word.count(node)) * Word::share(node);
                        let at = Address { region: set.region(), offset };
                        let add = counted.wrapping_neg();
                        self.post_unwaited(self.config.node, vec![Verb::FetchAdd { at, add }]);
                    }
                }
            }
        }
    }
}
