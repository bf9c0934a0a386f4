//! Linearizability of one object's history, after Wing and Gong, with memory of the states seen
//! (Lowe). Every write carries a value of its own, so the state of an object is the value that was
//! written last; 0 stands for "absent".

use std::collections::HashSet;

/// What an operation did, or would have done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// Saw this value.
    Read(u64),
    /// Replaced one value by another, and only that one.
    Swap(u64, u64),
    /// Replaced whatever there was.
    Set(u64),
}

/// One operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// What.
    pub act: Act,
    /// When it was asked for, in the order of all questions and answers.
    pub begin: u64,
    /// When it was answered; `None`: its outcome is unknown, it may take effect at any time or not
    /// at all.
    pub end: Option<u64>,
}

fn apply(state: u64, act: Act) -> Option<u64> {
    match act {
        Act::Read(v) => (v == state).then_some(state),
        Act::Swap(from, to) => (from == state).then_some(to),
        Act::Set(to) => Some(to),
    }
}

/// How far an order has come: which operations are in it, and what they left.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Point {
    state: u64,
    /// The first known operation that is not done.
    first: usize,
    /// Known operations that are done, a bit each, from the word on in which `first` is.
    done: Vec<u64>,
    /// Those with unknown outcomes that are done.
    late: Vec<u64>,
}

fn bit(words: &[u64], i: usize) -> bool {
    words.get(i / 64).is_some_and(|w| w & 1 << (i % 64) != 0)
}

fn set(words: &mut Vec<u64>, i: usize) {
    if words.len() <= i / 64 {
        words.resize(i / 64 + 1, 0);
    }
    words[i / 64] |= 1 << (i % 64);
}

impl Point {
    fn is_done(&self, i: usize, known: usize) -> bool {
        if i >= known {
            return bit(&self.late, i - known);
        }
        i < self.first || bit(&self.done, i - self.first / 64 * 64)
    }
    fn with(&self, i: usize, state: u64, known: usize) -> Point {
        let mut next = Point { state, ..self.clone() };
        if i >= known {
            set(&mut next.late, i - known);
            return next;
        }
        let base = self.first / 64;
        set(&mut next.done, i - base * 64);
        while next.first < known && bit(&next.done, next.first - base * 64) {
            next.first += 1;
        }
        // All of what is left out is done, and nothing of what would follow.
        next.done.drain(..(next.first / 64 - base).min(next.done.len()));
        next
    }
}

/// Points looked at, at most, before a history counts as undecided.
const MOST: usize = 5_000_000;

/// Whether some order of the operations explains every answer, from `start` on. The error names
/// the operation that no order reaches.
pub fn linearizable(start: u64, history: &[Record]) -> Result<(), String> {
    let mut all: Vec<Record> = history.iter().filter(|r| r.end.is_some()).copied().collect();
    all.sort_by_key(|r| r.begin);
    let known = all.len();
    // Nobody need ever have done what nobody saw: an order with such a write in it explains no
    // more than the same one without.
    let used: HashSet<u64> = history
        .iter()
        .filter_map(|r| match r.act {
            Act::Read(v) => Some(v),
            Act::Swap(from, _) => Some(from),
            Act::Set(_) => None,
        })
        .collect();
    let seen_by_some = |r: &&Record| match r.act {
        Act::Read(_) => false,
        Act::Swap(_, to) | Act::Set(to) => used.contains(&to),
    };
    all.extend(history.iter().filter(|r| r.end.is_none()).filter(seen_by_some).copied());
    let start = Point { state: start, first: 0, done: Vec::new(), late: Vec::new() };
    let mut seen = HashSet::new();
    let mut furthest = start.clone();
    let mut open = vec![start];
    while let Some(point) = open.pop() {
        if point.first == known {
            return Ok(());
        }
        if seen.contains(&point) {
            continue;
        }
        if point.first >= furthest.first {
            furthest = point.clone();
        }
        if seen.len() >= MOST {
            let at = all[furthest.first];
            return Err(format!("undecided after {MOST} points; the furthest came to {at:?}"));
        }
        // Whatever begins after the first end that is still to come has to wait for it.
        let mut limit = u64::MAX;
        let mut enabled = Vec::new();
        for (i, r) in all[..known].iter().enumerate().skip(point.first) {
            if r.begin > limit {
                break;
            }
            if !point.is_done(i, known) {
                limit = limit.min(r.end.unwrap_or(u64::MAX));
                enabled.push(i);
            }
        }
        enabled.retain(|i| all[*i].begin < limit || all[*i].end == Some(limit));
        // A read that fits changes nothing: no other order can be better.
        let read = enabled.iter().find(|i| all[**i].act == Act::Read(point.state));
        if let Some(i) = read {
            open.push(point.with(*i, point.state, known));
        } else {
            // What overwrites everything and is seen by nobody yet is of use only if it is seen next.
            let seen_next = |i: &usize| match all[*i].act {
                Act::Set(v) => enabled
                    .iter()
                    .copied()
                    .chain(known..all.len())
                    .any(|j| matches!(all[j].act, Act::Read(w) | Act::Swap(w, _) if w == v)),
                _ => true,
            };
            let late = (known..all.len())
                .filter(|i| all[*i].begin < limit && !point.is_done(*i, known))
                .filter(seen_next);
            // What overwrites everything and is never seen may as well come right before the next that
            // overwrites everything, in any order: they are done along with it, or all of them at once.
            let blind = |i: &usize| matches!(all[*i].act, Act::Set(v) if !used.contains(&v));
            let (unseen, mut rest): (Vec<usize>, Vec<usize>) =
                enabled.iter().copied().partition(blind);
            // What is answered first is tried first: most things take effect in that order.
            rest.sort_by_key(|i| std::cmp::Reverse(all[*i].end));
            let along = |point: &Point| {
                unseen.iter().fold(point.clone(), |p, i| p.with(*i, p.state, known))
            };
            if let Some(Act::Set(v)) = unseen.first().map(|i| all[*i].act) {
                open.push(Point { state: v, ..along(&point) });
            }
            // Unknown ones are tried last.
            let order: Vec<usize> = late.chain(rest.iter().copied()).collect();
            for i in order {
                if let Some(state) = apply(point.state, all[i].act) {
                    let overwrites = matches!(all[i].act, Act::Set(_));
                    let before = if overwrites { along(&point) } else { point.clone() };
                    open.push(before.with(i, state, known));
                }
            }
        }
        seen.insert(point);
    }
    let at = furthest.first;
    let around = &all[at.saturating_sub(3).min(known)..(at + 4).min(known)];
    Err(format!("stuck at {:?} in state {}; around it {around:?}", all[at], furthest.state))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn r(act: Act, begin: u64, end: u64) -> Record {
        Record { act, begin, end: Some(end) }
    }

    #[test]
    fn orders_that_explain_and_orders_that_do_not() {
        let swap = r(Act::Swap(0, 7), 1, 4);
        assert!(linearizable(0, &[swap, r(Act::Read(0), 2, 3), r(Act::Read(7), 5, 6)]).is_ok());
        assert!(linearizable(0, &[swap, r(Act::Read(7), 2, 3)]).is_ok());
        let stale = [swap, r(Act::Read(0), 5, 6)];
        assert!(linearizable(0, &stale).is_err(), "a read after the acknowledgement");
        let back = [swap, r(Act::Read(7), 2, 3), r(Act::Read(0), 4, 5)];
        assert!(linearizable(0, &back).is_err(), "seen, then not");
        let both = [r(Act::Swap(0, 7), 1, 4), r(Act::Swap(0, 8), 2, 3)];
        assert!(linearizable(0, &both).is_err(), "two writers of one version");
    }

    #[test]
    fn an_unknown_write_may_come_late_or_never() {
        let unknown = Record { act: Act::Swap(0, 7), begin: 1, end: None };
        assert!(linearizable(0, &[unknown, r(Act::Read(0), 5, 6)]).is_ok());
        assert!(linearizable(0, &[unknown, r(Act::Read(0), 5, 6), r(Act::Read(7), 7, 8)]).is_ok());
        let again = [unknown, r(Act::Read(7), 5, 6), r(Act::Read(0), 7, 8)];
        assert!(linearizable(0, &again).is_err());
        let early = [r(Act::Read(7), 1, 2), Record { begin: 3, ..unknown }];
        assert!(linearizable(0, &early).is_err(), "before it was asked for");
    }

    #[test]
    fn writes_that_nobody_saw_are_no_matter() {
        // All at once, and what was seen of them is the first and the last in the order of asking.
        let mut all: Vec<Record> = (1..=40u64).map(|v| r(Act::Set(v), v, 1_000 + v)).collect();
        all.push(r(Act::Read(1), 500, 501));
        all.push(r(Act::Read(40), 502, 503));
        all.push(r(Act::Read(1), 50, 51));
        assert!(linearizable(0, &all).is_ok());
        all.push(r(Act::Read(1), 504, 505));
        assert!(linearizable(0, &all).is_err(), "seen, overwritten, and seen again");
        let last = [r(Act::Set(5), 1, 2), r(Act::Read(0), 3, 4)];
        assert!(linearizable(0, &last).is_err(), "overwritten by what nobody saw");
    }

    #[test]
    fn many_writes_at_once_are_quick() {
        // Answered in another order than asked for, each read back at once.
        let end = |v: u64| 1_000 + 10 * ((v * 17) % 41);
        let mut all: Vec<Record> = (1..=40u64).map(|v| r(Act::Set(v), v, end(v))).collect();
        all.extend((1..=40u64).map(|v| r(Act::Read(v), end(v) + 1, end(v) + 2)));
        assert!(linearizable(0, &all).is_ok());
    }

    #[test]
    fn long_histories_are_quick() {
        let mut all = Vec::new();
        for i in 0..2_000u64 {
            all.push(r(Act::Swap(i, i + 1), 10 * i, 10 * i + 8));
            all.push(r(Act::Read(i + 1), 10 * i + 1, 10 * i + 12));
            all.push(Record { act: Act::Swap(i, 1 << 40 | i), begin: 10 * i + 2, end: None });
        }
        assert!(linearizable(0, &all).is_ok());
        all.push(r(Act::Read(5), 19_999, 20_000));
        assert!(linearizable(0, &all).is_err());
    }
}
