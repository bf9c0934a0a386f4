//! Known bugs, each dropping one of the protocol's rules, with the workload that finds it. Those
//! that the product's engine can be built with have the same names there (`engine/bugs.rs`).
//!
//! Not here:
//! - a half or a record is whole or it is nothing: `record-unchecked` and "version at both ends
//!   instead of a checksum" are below the model's grain. The simulator cuts verbs into packets.
//! - a slot keeps its name and has been written: floors, the binding of slots, absent objects.
//! - rule 11, an end that clears all counts: what registers while W is set is accepted from a poll
//!   only, and that looks at its own count again before it caches (5, 4).
//! - rule 15 (i), W on an idle word that the dead held: behind the barrier of 13 nobody is left whose
//!   begin could be late.

/// A rule that the modelled nodes do not keep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// Rule 2: one bit for each sharer instead of a count.
    SingleBits,
    /// Rule 2: counts are added to without regard to how many their bits hold.
    UnboundedCounts,
    /// Rule 7: a kept word is taken from its live holder.
    StealKept,
    /// Rule 3: what was read while W = 1 is accepted and cached.
    ReadWhileWriting,
    /// Rule 2: the validity counter is read after the chain was posted.
    CounterAfterPosting,
    /// Rule 10: a write is acknowledged before its last completion.
    EarlyAcknowledgement,
    /// Rules 4 and 10: the lease is checked on hits only.
    LeaseOnHitsOnly,
    /// Rule 13: nobody waits for the lease of the evicted.
    NoLeaseWait,
    /// Rule 13: one survivor does not revoke the evicted.
    PartialRevoke,
    /// Rule 16: a survivor confirms while verbs of its own are under way.
    NoDrain,
    /// Rule 14: the sharer counts of the dead are cleared under live writers.
    CountsCleared,
    /// Rule 16: caches are kept when the primary died.
    CachesKept,
    /// Rule 9: the put of a kept object is posted without setting W.
    NoBegin,
    /// Rule 12: the copy of a word given back is published by the counter as it is afterwards.
    PublishedAfterGiveBack,
    /// Rule 17: what was posted is run again after a view change.
    PostedRunAgain,
    /// Rule 20: a transaction has no record.
    NoRecord,
    /// Rule 20: the record stands on one replica only.
    OneRecord,
    /// Rule 20: halves are written before the record stands.
    HalvesBeforeRecord,
    /// Rule 21: a transaction's ends go out before its halves stand.
    EndsBeforeApplies,
    /// Rule 22: a record is replayed whatever version its objects have.
    ReplayWithoutVersions,
    /// Rule 22: only records of the dead are replayed.
    ReplayOnlyTheDead,
    /// Rule 22: a record is replayed that stands on one survivor alone.
    ReplayFromOneRecord,
    /// Rule 29: what a transaction read is not read again under the last word.
    ReadsUnchecked,
    /// Rule 32: the copier copies although it did not get the word.
    CopierIgnoresSwap,
    /// Rule 32: the copier leaves what a write that came to nothing left in the new copy.
    LeftoverHalf,
    /// Rule 42: a next view makes a node forget what the change that it interrupts was about.
    ChangeForgotten,
    /// Rule 6: a new incarnation takes its counts for those of a first one.
    CountsForgotten,
}

/// A bug, its name on the command line, and the workload that finds it.
pub struct Known {
    /// The name.
    pub name: &'static str,
    /// What is broken.
    pub bug: Bug,
    /// By [`crate::workloads::Workload::name`].
    pub workload: &'static str,
}

const fn known(name: &'static str, bug: Bug, workload: &'static str) -> Known {
    Known { name, bug, workload }
}

/// All of them.
pub const ALL: &[Known] = &[
    known("single-bits", Bug::SingleBits, "many-reads"),
    known("unbounded-counts", Bug::UnboundedCounts, "many-reads"),
    known("steal-kept", Bug::StealKept, "kept"),
    known("read-while-writing", Bug::ReadWhileWriting, "puts-and-gets"),
    known("counter-after-posting", Bug::CounterAfterPosting, "puts-and-gets"),
    known("early-acknowledgement", Bug::EarlyAcknowledgement, "puts-and-gets"),
    known("lease-on-hits-only", Bug::LeaseOnHitsOnly, "put-suspicion"),
    known("no-lease-wait", Bug::NoLeaseWait, "kept-death"),
    known("partial-revoke", Bug::PartialRevoke, "put-suspicion"),
    known("no-drain", Bug::NoDrain, "kept-transaction-death"),
    known("counts-cleared", Bug::CountsCleared, "kept-death"),
    known("caches-kept", Bug::CachesKept, "kept-death"),
    known("no-begin", Bug::NoBegin, "kept"),
    known("published-after-give-back", Bug::PublishedAfterGiveBack, "kept"),
    known("posted-run-again", Bug::PostedRunAgain, "two-transactions-death"),
    known("no-record", Bug::NoRecord, "two-transactions-death"),
    known("one-record", Bug::OneRecord, "two-transactions-death"),
    known("halves-before-record", Bug::HalvesBeforeRecord, "transaction-death"),
    known("ends-before-applies", Bug::EndsBeforeApplies, "transaction-death"),
    known("replay-without-versions", Bug::ReplayWithoutVersions, "old-record"),
    known("replay-only-the-dead", Bug::ReplayOnlyTheDead, "transaction-rehome"),
    known("replay-from-one-record", Bug::ReplayFromOneRecord, "transaction-two-deaths"),
    known("reads-unchecked", Bug::ReadsUnchecked, "copy"),
    known("copier-ignores-swap", Bug::CopierIgnoresSwap, "kept-return"),
    known("leftover-half", Bug::LeftoverHalf, "return-death"),
    known("change-forgotten", Bug::ChangeForgotten, "two-deaths"),
    known("counts-forgotten", Bug::CountsForgotten, "return-counts"),
];
