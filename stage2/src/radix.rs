//! The `s2_01` engine: a radix tree of tables in the format `F`.
//!
//! Changes are made by one caller at a time, who holds the lock of the domain's p2m; lookups
//! ([`Radix::translate`]) and hardware walks need none: every entry is replaced by a single store, and a
//! table is complete before an entry points to it. So at each moment a walk sees, for each page, the
//! mapping before or after the change, and nothing else.

use crate::debt::TlbDebt;
use crate::format::{Entry, Format, Mapping, MemType, Perms, level_shift, slot};
use crate::table::{ENTRIES, TableMemory};
use addr::{Gpa, GuestPhys, Hpa, PAGE_SIZE, PageSize, Range};

/// Why a change of mappings was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// An address or a length is no multiple of 4 KiB.
    Unaligned,
    /// The guest-physical range exceeds what the format translates, or the host range wraps.
    OutOfRange,
    /// The format cannot express these rights.
    BadPerms,
    /// No page for a table.
    NoMemory,
}

/// A change that stopped half-way. Pages before the point where it stopped have changed, later ones have
/// not: the caller undoes it (unmapping what it mapped) or repeats it, and pays the debt in any case.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub error: MapError,
    /// What the part that was done owes.
    pub debt: TlbDebt,
}

impl From<MapError> for Failed {
    fn from(error: MapError) -> Self {
        Self { error, debt: TlbDebt::none() }
    }
}

/// What the p2m says: how shadow tables ([`crate::shadow`]) ask for `s2_01`.
pub trait Translate2 {
    /// The page that holds `gpa`, if L0 lets L1 reach it as memory. `None`: L0 emulates it (MMIO, hole).
    fn translate(&self, gpa: Gpa) -> Option<Mapping>;
}

/// A [`Radix`] with its memory, as a [`Translate2`].
#[derive(Clone, Copy, Debug)]
pub struct P2m<'a, F, M> {
    /// The tree.
    pub radix: &'a Radix<F>,
    /// Its tables.
    pub tables: &'a M,
}

impl<F: Format, M: TableMemory> Translate2 for P2m<'_, F, M> {
    fn translate(&self, gpa: Gpa) -> Option<Mapping> {
        self.radix.translate(self.tables, gpa)
    }
}

/// A stage-2 tree.
#[derive(Debug)]
pub struct Radix<F> {
    format: F,
    root: Hpa,
}

/// What to do with each page of a range.
#[derive(Clone, Copy)]
enum Op {
    /// Guest address `gpa` goes to `delta + gpa` (modulo 2^64).
    Map {
        delta: u64,
        perms: Perms,
        memtype: MemType,
        largest: PageSize,
    },
    Unmap,
    Protect(Perms),
}

/// One table during a change: the table, its level, and the first address it translates.
#[derive(Clone, Copy)]
struct At {
    table: Hpa,
    level: u8,
    base: u64,
}

impl At {
    /// The slots that overlap `span`, each with its first address and whether `span` covers it whole.
    fn slots(self, span: (u64, u64)) -> impl Iterator<Item = (usize, u64, bool)> {
        let bytes = 1u64 << level_shift(self.level);
        let first = (span.0.max(self.base) - self.base) / bytes;
        let last = (span.1.min(self.base + bytes * ENTRIES as u64) - self.base).div_ceil(bytes);
        (first..last).map(move |i| {
            let start = self.base + i * bytes;
            (i as usize, start, span.0 <= start && start + bytes <= span.1)
        })
    }
    fn below(self, table: Hpa, base: u64) -> Self {
        Self { table, level: self.level - 1, base }
    }
}

impl<F: Format> Radix<F> {
    /// An empty tree; `None` if there is no page for the root.
    pub fn new(format: F, mem: &impl TableMemory) -> Option<Self> {
        Some(Self { format, root: mem.alloc()? })
    }
    /// The root table, for the hardware's register.
    pub const fn root(&self) -> Hpa {
        self.root
    }
    /// The format.
    pub const fn format(&self) -> &F {
        &self.format
    }

    /// Maps `range` to the host memory from `hpa` on, with the largest pages that alignment and
    /// `largest` allow, replacing what was mapped there.
    ///
    /// # Errors
    /// See [`MapError`]; [`Failed`] says what state is left.
    pub fn map(
        &self,
        mem: &impl TableMemory,
        range: Range<GuestPhys>,
        hpa: Hpa,
        perms: Perms,
        memtype: MemType,
        largest: PageSize,
    ) -> Result<TlbDebt, Failed> {
        if !hpa.is_aligned(PageSize::Size4K) {
            return Err(MapError::Unaligned.into());
        }
        hpa.checked_add(range.bytes()).ok_or(MapError::OutOfRange)?;
        let delta = hpa.raw().wrapping_sub(range.start().raw());
        let largest = largest.min(self.format.max_page());
        self.apply(mem, range, perms, Op::Map { delta, perms, memtype, largest })
    }

    /// Unmaps `range`. Tables that become empty but are not wholly inside the range stay: see
    /// [`Radix::collapse`].
    ///
    /// # Errors
    /// As for [`Radix::map`]: taking a part out of a large page needs tables.
    pub fn unmap(&self, mem: &impl TableMemory, range: Range<GuestPhys>) -> Result<TlbDebt, Failed> {
        self.apply(mem, range, Perms::R, Op::Unmap)
    }

    /// Gives every page mapped in `range` exactly the rights `perms`, splitting large pages at the edges
    /// of the range. Holes stay holes.
    ///
    /// # Errors
    /// As for [`Radix::map`].
    pub fn protect(
        &self,
        mem: &impl TableMemory,
        range: Range<GuestPhys>,
        perms: Perms,
    ) -> Result<TlbDebt, Failed> {
        self.apply(mem, range, perms, Op::Protect(perms))
    }

    /// Replaces tables wholly inside `range` by large pages (up to `largest`) where that changes no
    /// translation, and unlinks those that map nothing.
    ///
    /// # Errors
    /// [`MapError::Unaligned`] or [`MapError::OutOfRange`], with nothing done.
    pub fn collapse(
        &self,
        mem: &impl TableMemory,
        range: Range<GuestPhys>,
        largest: PageSize,
    ) -> Result<TlbDebt, MapError> {
        let span = self.check(range)?;
        let mut debt = TlbDebt::none();
        self.collapse_in(mem, self.top(), span, largest.min(self.format.max_page()), &mut debt);
        Ok(debt)
    }

    /// The page that holds `gpa`. Needs no lock; sees each concurrent change as done or not yet done.
    /// Its rights are those of the whole walk.
    pub fn translate(&self, mem: &impl TableMemory, gpa: Gpa) -> Option<Mapping> {
        if gpa.raw() >> self.format.input_bits() != 0 {
            return None;
        }
        let (mut table, mut allowed) = (self.root, Perms::RWX);
        for level in (1..=self.format.levels()).rev() {
            match F::decode(mem.read(table, slot(gpa.raw(), level)), level) {
                Entry::Empty => return None,
                Entry::Table { next, perms } => (table, allowed) = (next, allowed & perms),
                Entry::Leaf(leaf) => return Some(Mapping { perms: leaf.perms & allowed, ..leaf }),
            }
        }
        None
    }

    /// Whether anything is mapped in `range`. Under the lock of changes.
    pub fn maps_any(&self, mem: &impl TableMemory, range: Range<GuestPhys>) -> bool {
        let end = range.end().raw().min(1 << self.format.input_bits());
        range.start().raw() < end && self.any_in(mem, self.top(), (range.start().raw(), end))
    }

    fn any_in(&self, mem: &impl TableMemory, at: At, span: (u64, u64)) -> bool {
        at.slots(span).any(|(index, start, _)| match F::decode(mem.read(at.table, index), at.level) {
            Entry::Empty => false,
            Entry::Leaf(_) => true,
            Entry::Table { next, .. } => self.any_in(mem, at.below(next, start), span),
        })
    }

    /// Shows every page that is mapped, lowest first, with the guest address where it begins. Looks only at tables
    /// that exist: the space between pages costs nothing. Under the lock of changes.
    pub fn for_each(&self, mem: &impl TableMemory, mut f: impl FnMut(Gpa, Mapping)) {
        self.each_in(mem, self.top(), &mut f);
    }

    fn each_in(&self, mem: &impl TableMemory, at: At, f: &mut impl FnMut(Gpa, Mapping)) {
        for (index, start, _) in at.slots((0, 1 << self.format.input_bits())) {
            match F::decode(mem.read(at.table, index), at.level) {
                Entry::Empty => {}
                Entry::Leaf(page) => f(Gpa::new(start), page),
                Entry::Table { next, .. } => self.each_in(mem, at.below(next, start), f),
            }
        }
    }

    /// Gives up the tree. The debt owns all of its tables.
    pub fn destroy(self) -> TlbDebt {
        let mut debt = TlbDebt::none();
        debt.owe_01(Gpa::ZERO, Gpa::new(1 << self.format.input_bits()));
        debt.own::<F>(self.root, self.format.levels());
        debt
    }

    fn top(&self) -> At {
        At { table: self.root, level: self.format.levels(), base: 0 }
    }

    fn check(&self, range: Range<GuestPhys>) -> Result<(u64, u64), MapError> {
        let (start, end) = (range.start().raw(), range.end().raw());
        if (start | end) % PAGE_SIZE != 0 {
            return Err(MapError::Unaligned);
        }
        if end > 1 << self.format.input_bits() {
            return Err(MapError::OutOfRange);
        }
        Ok((start, end))
    }

    fn apply(
        &self,
        mem: &impl TableMemory,
        range: Range<GuestPhys>,
        perms: Perms,
        op: Op,
    ) -> Result<TlbDebt, Failed> {
        let span = self.check(range)?;
        if !F::expressible(perms) {
            return Err(MapError::BadPerms.into());
        }
        let mut debt = TlbDebt::none();
        if span.0 == span.1 {
            return Ok(debt);
        }
        match self.edit(mem, self.top(), span, op, &mut debt) {
            Ok(()) => Ok(debt),
            Err(error) => Err(Failed { error, debt }),
        }
    }

    /// Applies `op` to the part of `span` below one table. Recursion is bounded by the level.
    fn edit(
        &self,
        mem: &impl TableMemory,
        at: At,
        span: (u64, u64),
        op: Op,
        debt: &mut TlbDebt,
    ) -> Result<(), MapError> {
        for (index, start, whole) in at.slots(span) {
            let entry = mem.read(at.table, index);
            let old = F::decode(entry, at.level);
            match replacement::<F>(op, old, at.level, start, whole) {
                Step::Keep => {}
                Step::Put(new) if new == entry => {}
                Step::Put(new) => {
                    mem.write(at.table, index, new);
                    owe::<F>(debt, at.level, start, old, F::decode(new, at.level));
                }
                Step::Descend => {
                    let next = self.child(mem, at, index, old)?;
                    self.edit(mem, at.below(next, start), span, op, debt)?;
                }
            }
        }
        Ok(())
    }

    /// The table below a slot, made (empty, or as the pieces of the page that was there) if need be.
    fn child(&self, mem: &impl TableMemory, at: At, index: usize, old: Entry) -> Result<Hpa, MapError> {
        if let Entry::Table { next, .. } = old {
            return Ok(next);
        }
        let next = mem.alloc().ok_or(MapError::NoMemory)?;
        if let (Entry::Leaf(page), Some(size)) = (old, PageSize::of_level(at.level - 1)) {
            for i in 0..ENTRIES {
                let hpa = page.hpa.wrapping_add(i as u64 * size.bytes());
                mem.write(next, i, F::leaf(&Mapping { hpa, size, ..page }));
            }
        }
        mem.write(at.table, index, F::table(next, Perms::RWX));
        Ok(next)
    }

    fn collapse_in(
        &self,
        mem: &impl TableMemory,
        at: At,
        span: (u64, u64),
        largest: PageSize,
        debt: &mut TlbDebt,
    ) {
        for (index, start, whole) in at.slots(span) {
            let old = F::decode(mem.read(at.table, index), at.level);
            let Entry::Table { next, .. } = old else { continue };
            self.collapse_in(mem, at.below(next, start), span, largest, debt);
            let target = PageSize::of_level(at.level).filter(|size| *size <= largest);
            if let Some(new) = whole.then(|| uniform::<F>(mem, next, at.level - 1, target)).flatten() {
                mem.write(at.table, index, new);
                owe::<F>(debt, at.level, start, old, F::decode(new, at.level));
            }
        }
    }
}

/// What to do with one slot.
enum Step {
    Keep,
    Put(u64),
    Descend,
}

/// Decides what `op` does to the slot that starts at guest address `start` and holds `old`.
fn replacement<F: Format>(op: Op, old: Entry, level: u8, start: u64, whole: bool) -> Step {
    match (op, old) {
        (Op::Map { delta, perms, memtype, largest }, _) => {
            let hpa = Hpa::new(start.wrapping_add(delta));
            match PageSize::of_level(level) {
                Some(size) if whole && size <= largest && hpa.is_aligned(size) => {
                    Step::Put(F::leaf(&Mapping { hpa, size, perms, memtype }))
                }
                _ => Step::Descend,
            }
        }
        (_, Entry::Empty) => Step::Keep,
        (Op::Unmap, _) if whole => Step::Put(0),
        (Op::Protect(perms), Entry::Leaf(page)) if page.perms == perms => Step::Keep,
        (Op::Protect(perms), Entry::Leaf(page)) if whole => Step::Put(F::leaf(&Mapping { perms, ..page })),
        _ => Step::Descend,
    }
}

/// Notes what replacing `old` by `new` owes: nothing if a walk can do at least what it could before.
fn owe<F: Format>(debt: &mut TlbDebt, level: u8, start: u64, old: Entry, new: Entry) {
    match (old, new) {
        (Entry::Empty, _) => return,
        (Entry::Leaf(was), Entry::Leaf(is))
            if (was.hpa, was.memtype) == (is.hpa, is.memtype) && is.perms.contains(was.perms) =>
        {
            return;
        }
        (Entry::Table { next, .. }, _) => debt.own::<F>(next, level - 1),
        _ => {}
    }
    debt.owe_01(Gpa::new(start), Gpa::new(start + (1 << level_shift(level))));
}

/// The entry that says the same as the whole table `table` of level `level`: none if it is empty, a leaf
/// of size `target` if it maps adjacent pages alike.
fn uniform<F: Format>(
    mem: &impl TableMemory,
    table: Hpa,
    level: u8,
    target: Option<PageSize>,
) -> Option<u64> {
    let entries = || (0..ENTRIES).map(|i| F::decode(mem.read(table, i), level));
    let Entry::Leaf(first) = F::decode(mem.read(table, 0), level) else {
        return entries().all(|e| e == Entry::Empty).then_some(0);
    };
    let whole = Mapping { size: target?, ..first };
    let adjacent = |(i, entry): (usize, Entry)| {
        let hpa = first.hpa.wrapping_add(i as u64 * first.size.bytes());
        entry == Entry::Leaf(Mapping { hpa, ..first })
    };
    (first.hpa.is_aligned(whole.size) && entries().enumerate().all(adjacent)).then(|| F::leaf(&whole))
}

#[cfg(test)]
mod tests;
