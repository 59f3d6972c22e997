//! Exit counters by level and reason.

use alloc::boxed::Box;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Who was running when the event happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// A guest of ours.
    L1 = 0,
    /// A guest of a guest.
    L2 = 1,
}

impl Level {
    const COUNT: usize = 2;
    /// L2 if `nested`.
    pub const fn of(nested: bool) -> Self {
        if nested { Level::L2 } else { Level::L1 }
    }
}

/// One vCPU's or pCPU's exits by level and reason. `N` is the number of reasons, which the architecture
/// numbers from 0; the last one also takes every number beyond, so that no reason is lost.
///
/// Only one CPU at a time may count (the one that runs the vCPU); two would lose counts, nothing worse.
#[derive(Debug)]
pub struct ExitCounters<const N: usize>([[AtomicU64; N]; Level::COUNT]);

impl<const N: usize> Default for ExitCounters<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> ExitCounters<N> {
    /// All zero.
    pub const fn new() -> Self {
        const { assert!(N > 0, "there must be a reason to count") };
        Self([const { [const { AtomicU64::new(0) }; N] }; Level::COUNT])
    }

    /// Counts one exit: a load, an add and a store.
    #[inline]
    pub fn inc(&self, level: Level, reason: usize) {
        self.add(level, reason, 1);
    }

    /// Counts `n`.
    #[inline]
    pub fn add(&self, level: Level, reason: usize, n: u64) {
        let counter = &self.0[level as usize][reason.min(N - 1)];
        counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// How often so far.
    pub fn get(&self, level: Level, reason: usize) -> u64 {
        self.0[level as usize][reason.min(N - 1)].load(Relaxed)
    }

    /// The numbers of this moment.
    pub fn snapshot(&self) -> Snapshot {
        let all = || self.0.iter().flat_map(|level| level.iter().map(|c| c.load(Relaxed)));
        Snapshot { reasons: N, counts: all().collect() }
    }
}

/// Counter values of one moment, or the difference or sum of such.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    reasons: usize,
    /// `reasons` numbers for L1, then as many for L2.
    counts: Box<[u64]>,
}

impl Snapshot {
    /// One count.
    pub fn get(&self, level: Level, reason: usize) -> u64 {
        match reason < self.reasons {
            true => self.counts[level as usize * self.reasons + reason],
            false => 0,
        }
    }

    /// All counts of a level.
    pub fn total(&self, level: Level) -> u64 {
        self.of(level).iter().sum()
    }

    /// What was counted from `earlier` until this one. Both must be of the same counters, or counters of
    /// the same shape; where `earlier` is the larger one (counts lost, or the wrong order) the answer is 0.
    pub fn since(&self, earlier: &Snapshot) -> Snapshot {
        self.combine(earlier, u64::saturating_sub)
    }

    /// Both together: the counts of several vCPUs or pCPUs.
    pub fn plus(&self, other: &Snapshot) -> Snapshot {
        self.combine(other, u64::wrapping_add)
    }

    /// The counts that are not zero as lines "`level` `name`: `count`", the largest of each level first.
    /// `name` gives a reason its name.
    pub fn table<'a, D: fmt::Display>(&'a self, name: impl Fn(usize) -> D + 'a) -> impl fmt::Display + 'a {
        fmt::from_fn(move |f| {
            for level in [Level::L1, Level::L2] {
                let mut below = (u64::MAX, 0);
                while let Some((count, reason)) = self.next_largest(level, below) {
                    writeln!(
                        f,
                        "{level:?} {:<20} {count:>12}",
                        fmt::from_fn(|f| write!(f, "{}:", name(reason)))
                    )?;
                    below = (count, reason + 1);
                }
            }
            Ok(())
        })
    }

    /// The largest count behind `below` (a count, and the first reason of that count still to be shown).
    fn next_largest(&self, level: Level, (last, from): (u64, usize)) -> Option<(u64, usize)> {
        let counts = || self.of(level).iter().copied().zip(0..).filter(|(count, _)| *count != 0);
        let same = counts().find(|&(count, reason)| count == last && reason >= from);
        same.or_else(|| {
            let lower = counts().filter(|&(count, _)| count < last).map(|(count, _)| count).max()?;
            counts().find(|&(count, _)| count == lower)
        })
    }

    fn of(&self, level: Level) -> &[u64] {
        &self.counts[level as usize * self.reasons..][..self.reasons]
    }

    fn combine(&self, other: &Snapshot, f: impl Fn(u64, u64) -> u64) -> Snapshot {
        let count = |at: usize| {
            let level = if at < self.reasons { Level::L1 } else { Level::L2 };
            f(self.counts[at], other.get(level, at % self.reasons))
        };
        Snapshot { reasons: self.reasons, counts: (0..self.counts.len()).map(count).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn levels_and_reasons_are_apart_and_unknown_ones_are_kept() {
        let c = ExitCounters::<4>::new();
        c.inc(Level::L1, 0);
        c.inc(Level::L2, 0);
        c.inc(Level::L2, 0);
        c.inc(Level::L2, 3);
        c.inc(Level::L2, 4000);
        let s = c.snapshot();
        assert_eq!((s.get(Level::L1, 0), s.get(Level::L2, 0), s.get(Level::L2, 3)), (1, 2, 2));
        assert_eq!((s.total(Level::L1), s.total(Level::L2), s.get(Level::L2, 4)), (1, 4, 0));
    }

    #[test]
    fn differences_and_sums() {
        let c = ExitCounters::<3>::new();
        c.add(Level::L1, 1, 5);
        let before = c.snapshot();
        c.add(Level::L1, 1, 2);
        c.inc(Level::L2, 2);
        let diff = c.snapshot().since(&before);
        assert_eq!((diff.get(Level::L1, 1), diff.get(Level::L2, 2), diff.total(Level::L2)), (2, 1, 1));
        assert_eq!(before.since(&c.snapshot()).total(Level::L1), 0);
        assert_eq!(diff.plus(&before), c.snapshot());
    }

    #[test]
    fn the_table_is_sorted_and_leaves_out_zeroes() {
        let c = ExitCounters::<5>::new();
        for (reason, n) in [(0, 3), (1, 0), (2, 70), (3, 3)] {
            c.add(Level::L1, reason, n);
        }
        c.inc(Level::L2, 4);
        let names = ["cpuid", "hlt", "npf", "msr", "other"];
        let text = c.snapshot().table(|reason| names[reason]).to_string();
        let words: std::vec::Vec<_> =
            text.lines().map(|l| l.split_whitespace().collect::<std::vec::Vec<_>>().join(" ")).collect();
        assert_eq!(words, ["L1 npf: 70", "L1 cpuid: 3", "L1 msr: 3", "L2 other: 1"]);
    }
}
