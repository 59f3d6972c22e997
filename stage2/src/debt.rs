//! What a change of tables leaves owing to the TLBs.

use crate::format::{Entry, Format};
use crate::table::{ENTRIES, TableMemory};
use addr::{Gpa, Hpa};
use alloc::vec::Vec;

/// The `s2_02` roots whose translations must go, by address of the root page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roots {
    /// These; the list ends at the first `None`.
    Few([Option<Hpa>; 4]),
    /// Every root of the domain.
    All,
}

impl Roots {
    /// No root.
    pub const NONE: Self = Self::Few([None; 4]);

    /// Whether there is nothing to flush.
    pub fn is_empty(&self) -> bool {
        *self == Self::NONE
    }
    /// Whether translations made from `root` must go.
    pub fn contains(&self, root: Hpa) -> bool {
        match self {
            Self::All => true,
            Self::Few(list) => list.contains(&Some(root)),
        }
    }
    /// Adds `root`; one too many makes it all of them.
    pub fn add(&mut self, root: Hpa) {
        if self.contains(root) {
            return;
        }
        if let Self::Few(list) = self {
            match list.iter_mut().find(|place| place.is_none()) {
                Some(place) => *place = Some(root),
                None => *self = Self::All,
            }
        }
    }
    fn merge(&mut self, other: &Self) {
        match other {
            Self::All => *self = Self::All,
            Self::Few(list) => list.iter().flatten().for_each(|root| self.add(*root)),
        }
    }
}

/// What must be flushed, on every physical CPU that may hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush {
    /// Guest-physical addresses `start..end` whose `s2_01` translations changed. Where hardware cannot
    /// flush by guest-physical address (SVM), this means all tags of L1 in the domain.
    pub s2_01: Option<(Gpa, Gpa)>,
    /// Roots whose `s2_02` translations changed: all tags that run L2s on them.
    pub s2_02: Roots,
}

impl Flush {
    /// Nothing.
    pub const NONE: Self = Self { s2_01: None, s2_02: Roots::NONE };

    /// Whether there is nothing to flush.
    pub fn is_empty(&self) -> bool {
        *self == Self::NONE
    }
}

/// A tree of tables that has been unlinked from every root.
#[derive(Clone, Copy, Debug)]
struct Detached {
    table: Hpa,
    level: u8,
    /// The table that an entry points to; one per format.
    child: fn(u64, u8) -> Option<Hpa>,
}

/// Proof that a debt's [`Flush`] has been carried out. Made only by who did it.
#[derive(Debug)]
pub struct Paid(());

impl Paid {
    /// Says: every physical CPU that could hold a translation, or part of a walk, named by
    /// [`TlbDebt::flush`] has dropped it, or cannot use it before it drops it (its tag has been retired).
    pub const fn flushed() -> Self {
        Self(())
    }
}

/// The obligation that a change of tables leaves: translations to flush, and the table pages that
/// hardware may walk until that is done. Until it is paid, CPUs may still use the old translation; the
/// frames that were mapped must not get a new owner before.
///
/// Debts add up ([`TlbDebt::merge`]); whoever pays calls [`TlbDebt::settle`]. Dropping an unpaid debt
/// leaks its table pages, so that nothing dangles.
#[must_use = "translations stay in TLBs until the debt is paid"]
#[derive(Debug)]
pub struct TlbDebt {
    flush: Flush,
    tables: Vec<Detached>,
}

impl Default for TlbDebt {
    fn default() -> Self {
        Self::none()
    }
}

impl TlbDebt {
    /// Nothing owed.
    pub const fn none() -> Self {
        Self { flush: Flush::NONE, tables: Vec::new() }
    }
    /// Whether nothing is owed: neither flush nor page.
    pub fn is_none(&self) -> bool {
        self.flush.is_empty() && self.tables.is_empty()
    }
    /// What to flush.
    pub fn flush(&self) -> &Flush {
        &self.flush
    }
    /// Takes over what `other` owes.
    pub fn merge(&mut self, mut other: TlbDebt) {
        if let Some((start, end)) = other.flush.s2_01 {
            self.owe_01(start, end);
        }
        self.flush.s2_02.merge(&other.flush.s2_02);
        if self.tables.is_empty() {
            self.tables = core::mem::take(&mut other.tables);
        } else {
            self.tables.append(&mut other.tables);
        }
    }
    /// Frees the table pages. Only for who has carried out [`TlbDebt::flush`].
    pub fn settle(self, mem: &impl TableMemory, _proof: Paid) {
        self.tables.iter().for_each(|tree| free_tree(mem, *tree));
    }

    pub(crate) fn owe_01(&mut self, start: Gpa, end: Gpa) {
        self.flush.s2_01 = Some(match self.flush.s2_01 {
            None => (start, end),
            Some((s, e)) => (s.min(start), e.max(end)),
        });
    }
    pub(crate) fn owe_02(&mut self, root: Hpa) {
        self.flush.s2_02.add(root);
    }
    /// Takes over the tree below `table`, which no entry points to any more.
    pub(crate) fn own<F: Format>(&mut self, table: Hpa, level: u8) {
        let child = |entry, level| match F::decode(entry, level) {
            Entry::Table { next, .. } => Some(next),
            _ => None,
        };
        self.tables.push(Detached { table, level, child });
    }
}

/// Recursion is bounded by the level.
fn free_tree(mem: &impl TableMemory, tree: Detached) {
    if tree.level > 1 {
        for index in 0..ENTRIES {
            if let Some(table) = (tree.child)(mem.read(tree.table, index), tree.level) {
                free_tree(mem, Detached { table, level: tree.level - 1, ..tree });
            }
        }
    }
    mem.free(tree.table);
}
