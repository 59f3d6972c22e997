//! The cache of `s2_02` roots of a domain: L1's nested tables and L0's, composed page by page as L2
//! touches them.
//!
//! **What a root is.** A tree of tables in L0's format, filled on faults. Each shadow table is built from
//! one table page of L1's (or a part of one), entry by entry: an entry carries the rights of the entry it
//! was built from, so hardware intersects them along its walk as it would on L1's own tables; a leaf also
//! carries what the p2m allows. A large page of L1's that the p2m can only give in pieces becomes a table
//! with no page behind it. Trees share nothing, whatever L1's tables share: no table is reached twice,
//! and cycles in L1's tables unroll to the depth of the walk.
//!
//! **Keys.** Roots are found by where and how L1's walk starts ([`Root12`]), never by ASID; the vCPUs of a
//! domain share them and they survive L1's switches between its guests.
//!
//! **When L1 changes its tables.** Nothing need happen before L1 flushes. Every page of L1's that serves
//! as a table is either *sync*: read-only in `s2_01`, equal to what was built from it; or *unsync*:
//! writable, perhaps changed. The first write to a sync page faults on `s2_01` and makes it unsync
//! ([`ShadowCache::on_table_write`]); a flush reads the unsync pages again, and only these. Protecting a
//! page costs a shootdown, so a page that is written after each flush stays unsync until it has been
//! quiet for some flushes. A flush has two halves, as pages must not be read before no CPU can write them
//! unseen:
//! ```text
//! if let Some((resync, debt)) = cache.resync_begin(host, scope) {   // protect
//!     pay(debt);                                                    // no lock held
//!     pay(cache.resync_finish(host, resync));                       // read, repair
//! }
//! ```
//! More rights need no flush: L2 faults, and the fault walks again.
//!
//! **When L0 changes the p2m.** First change it, then [`ShadowCache::zap`], then pay. Leaves are found by
//! record, in a hash of the L1 frames they map.
//!
//! **Locks.** One lock per cache, taken by every call for a bounded time and never while L1's tables are
//! walked on a fault; [`WriteProtect`] is called under it, so it ranks before the p2m's lock: nobody calls
//! in here with the p2m locked. Faults race with flushes and zaps through a generation: what was read
//! before it moved is not installed. (An install without the lock is possible by the same means: entries
//! by compare-exchange, then the generation checked again. Until a profile asks for it, it is not worth
//! its proof.)
//!
//! **Limits.** Table pages are charged to the domain's [`TableMemory`] and bounded by a quota. At the
//! quota, tables of the root longest out of use go first; a root in use loses tables but never its root
//! page, and a root is found again by key and generation, never by a kept address.

#[cfg(any(test, feature = "model"))]
mod check;
mod fill;
mod resync;
mod rmap;
mod slab;
mod source;
mod state;
#[cfg(test)]
mod tests;
mod zap;

pub use resync::{Resync, Scope};
pub use zap::Zap;

use crate::debt::TlbDebt;
use crate::format::{Format, Mapping};
use crate::radix::{Failed, Translate2};
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::table::TableMemory;
use crate::walk12::{Access, Marks, Root12, Violation, WalkError, walk};
use addr::{Frame, Gpa, GuestMemory, GuestPhys, Hpa, Ngpa};
use state::Inner;

/// Write protection of L1's frames in `s2_01`. Called under the cache's lock: it must not call back.
pub trait WriteProtect {
    /// Makes `frame` read-only for L1 (and in what [`Translate2`] says of it), splitting a large page if
    /// need be.
    ///
    /// # Errors
    /// If it cannot: the frame then counts as always changed, which is slow but right.
    fn protect(&self, frame: Frame<GuestPhys>) -> Result<TlbDebt, Failed>;
    /// Gives `frame` back the rights it would have if it were no table. It may meanwhile be unmapped or
    /// read-only for another reason: then nothing is to be done.
    fn unprotect(&self, frame: Frame<GuestPhys>);
}

/// What a domain's shadow cache stands on.
pub trait Host {
    /// Where table pages come from.
    type Tables: TableMemory;
    /// L1's memory.
    type L1: GuestMemory;
    /// `s2_01`.
    type P2m: Translate2;
    /// Write protection in `s2_01`.
    type Guard: WriteProtect;

    /// Where table pages come from.
    fn tables(&self) -> &Self::Tables;
    /// L1's memory.
    fn l1(&self) -> &Self::L1;
    /// `s2_01`.
    fn p2m(&self) -> &Self::P2m;
    /// Write protection in `s2_01`.
    fn guard(&self) -> &Self::Guard;
}

/// A [`Host`] put together from parts.
#[derive(Debug)]
pub struct Env<'a, T, L, P, G> {
    /// Where table pages come from.
    pub tables: &'a T,
    /// L1's memory.
    pub l1: &'a L,
    /// `s2_01`.
    pub p2m: &'a P,
    /// Write protection in `s2_01`.
    pub guard: &'a G,
}

impl<T: TableMemory, L: GuestMemory, P: Translate2, G: WriteProtect> Host for Env<'_, T, L, P, G> {
    type Tables = T;
    type L1 = L;
    type P2m = P;
    type Guard = G;

    fn tables(&self) -> &T {
        self.tables
    }
    fn l1(&self) -> &L {
        self.l1
    }
    fn p2m(&self) -> &P {
        self.p2m
    }
    fn guard(&self) -> &G {
        self.guard
    }
}

/// A root in use. While it exists its root page stays what it is; give it back by
/// [`ShadowCache::release_root`]. (Dropped instead, it pins the root for the domain's life.)
#[derive(Debug)]
pub struct RootRef {
    index: u32,
    hpa: Hpa,
    generation: u64,
    key: Root12,
}

impl RootRef {
    /// The root table, for the hardware's register.
    pub const fn hpa(&self) -> Hpa {
        self.hpa
    }
    /// Distinguishes this root from every other one that ever was at the same address: a hardware tag
    /// last used with another (address, generation) must be flushed.
    pub const fn generation(&self) -> u64 {
        self.generation
    }
    /// What it stands for.
    pub const fn key(&self) -> &Root12 {
        &self.key
    }
    /// This root, as what a flush concerns.
    pub const fn scope(&self) -> Scope {
        Scope::root(self.index)
    }
}

/// Why there is no root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoot {
    /// L1's tables have more levels than the hardware's. L1's CPUID should not have offered it.
    Unsupported,
    /// No page even after reclaim. Pay the debt and try once more.
    OutOfMemory,
}

/// What came of an L2 access that faulted on `s2_02`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOutcome {
    /// Mapped: let L2 run.
    Fixed,
    /// L1's tables forbid it: reflect.
    Violation(Violation),
    /// L1's tables lead to `gpa`, where L1 has no memory: L0 emulates the access as L1's device would see
    /// it.
    Mmio {
        /// L1's physical address.
        gpa: Gpa,
    },
    /// L1's tables lead to memory to which the p2m does not allow the access (dirty log, ROM, …): L0's
    /// business, as if L1 had made it.
    Denied {
        /// L1's physical address.
        gpa: Gpa,
        /// What the p2m says.
        page: Mapping,
    },
    /// Something moved meanwhile. Pay the debt and let L2 run: it faults again.
    Retry,
    /// The domain has used up its tables and nothing could be reclaimed.
    OutOfMemory,
}

/// What became of a write by L1 to a write-protected frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableWrite {
    /// The frame was a table and is now writable: let L1 run.
    Unsynced,
    /// The frame is a table but was writable already: another vCPU was first, or the frame is read-only
    /// for another reason, which the p2m tells.
    AlreadyUnsync,
    /// Not a table: the fault has another cause.
    NotATable,
}

/// Counters since creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Leaves installed or upgraded.
    pub filled: u64,
    /// Leaves now present.
    pub leaves: u64,
    /// Pages now in use, records included.
    pub pages: u64,
    /// Table pages of L1's now known.
    pub sources: u64,
    /// Roots now known.
    pub roots: u64,
    /// References to them that were not given back.
    pub held: u64,
    /// Sync pages that L1 wrote to.
    pub unsynced: u64,
    /// Table pages read again by flushes.
    pub reread: u64,
    /// Entries dropped or reduced by flushes.
    pub revised: u64,
    /// Leaves dropped or reduced by zaps.
    pub zapped: u64,
    /// Tables taken back at the quota.
    pub reclaimed: u64,
}

/// Pages per shadow table: the table, and two of records (what each entry was built from; where it is
/// linked).
pub const PAGES_PER_TABLE: u32 = 3;

/// The least quota, pages: enough for an instruction's worth of L2 addresses on each of some vCPUs.
pub const MIN_QUOTA: u32 = 64 * PAGES_PER_TABLE;

/// The `s2_02` roots of a domain.
#[derive(Debug)]
pub struct ShadowCache<F> {
    inner: Mutex<Inner<F>>,
    /// Moves, under the lock, when something read earlier may no longer be installed.
    generation: AtomicU64,
}

/// How often a fault starts again because a flush or a zap came between.
const ATTEMPTS: usize = 4;

impl<F: Format> ShadowCache<F> {
    /// An empty cache that uses at most `quota` pages (at least [`MIN_QUOTA`]) of its [`TableMemory`],
    /// not counting those that unpaid debts own. Its own memory is taken here, about one byte for each
    /// 16 of the quota's.
    pub fn new(format: F, quota: u32) -> Self {
        Self { inner: Mutex::new(Inner::new(format, quota.max(MIN_QUOTA))), generation: AtomicU64::new(0) }
    }

    /// Finds or makes the root for `key`, and marks it in use. Pay the debt before L2 runs.
    ///
    /// # Errors
    /// See [`NoRoot`].
    pub fn acquire_root(&self, host: &impl Host, key: Root12) -> (Result<RootRef, NoRoot>, TlbDebt) {
        let mut debt = TlbDebt::none();
        let root = self.with(|inner| inner.acquire(host, key, &mut debt));
        (root, debt)
    }

    /// Gives a root back. It stays in the cache until its pages are needed.
    pub fn release_root(&self, root: RootRef) {
        self.with(|inner| inner.release(root));
    }

    /// Deals with a fault of L2's on `s2_02`. Whatever the outcome, pay the debt.
    pub fn handle_fault(
        &self,
        host: &impl Host,
        root: &RootRef,
        ngpa: Ngpa,
        access: Access,
    ) -> (FaultOutcome, TlbDebt) {
        let mut debt = TlbDebt::none();
        for _ in 0..ATTEMPTS {
            let generation = self.generation.load(Ordering::Acquire);
            let mapped = match walk(host.l1(), &root.key, ngpa, access, Marks::Set) {
                Ok(mapped) => mapped,
                Err(WalkError::Violation(violation)) => return (FaultOutcome::Violation(violation), debt),
                Err(WalkError::Busy) => break,
            };
            let page = match self.resolve(host, mapped.gpa, access) {
                Ok(page) => page,
                Err(outcome) => return (outcome, debt),
            };
            let outcome = self.with(|inner| {
                if self.generation.load(Ordering::Relaxed) != generation {
                    return None;
                }
                Some(match inner.fill(host, root.index, &mapped, &page, ngpa, &mut debt) {
                    Ok(()) => FaultOutcome::Fixed,
                    Err(_) if inner.reclaim(host, &mut debt) => FaultOutcome::Retry,
                    Err(_) => FaultOutcome::OutOfMemory,
                })
            });
            if let Some(outcome) = outcome {
                return (outcome, debt);
            }
        }
        (FaultOutcome::Retry, debt)
    }

    /// The memory at `gpa`, if the p2m allows `access` there. A write by L2 to one of L1's tables is like
    /// one by L1: it makes the page unsync.
    fn resolve(&self, host: &impl Host, gpa: Gpa, access: Access) -> Result<Mapping, FaultOutcome> {
        let mut page = host.p2m().translate(gpa).ok_or(FaultOutcome::Mmio { gpa })?;
        if access.write
            && !page.perms.contains(access.needs())
            && self.on_table_write(host.guard(), gpa.frame()) != TableWrite::NotATable
        {
            page = host.p2m().translate(gpa).ok_or(FaultOutcome::Mmio { gpa })?;
        }
        if page.perms.contains(access.needs()) { Ok(page) } else { Err(FaultOutcome::Denied { gpa, page }) }
    }

    /// Tells the cache that L1 (or a device of L1's, or L0 on behalf of either) is about to write to
    /// `frame`, which a fault on `s2_01` found read-only.
    pub fn on_table_write(&self, guard: &impl WriteProtect, frame: Frame<GuestPhys>) -> TableWrite {
        self.with(|inner| inner.table_write(guard, frame))
    }

    /// Begins what a flush of L1's entails (TLB_CONTROL, INVLPGA, a change of nCR3, the first use of a
    /// tag): protects the unsync pages. To be called at every flush, as it also stops faults that read
    /// L1's tables before it; cheap and `None` if there are no unsync pages in `scope`. The vCPU that
    /// flushes also flushes its own hardware tag, whatever this returns. Once the debt has been paid, go
    /// on with [`ShadowCache::resync_finish`]; a [`Resync`] that is dropped leaves its pages unsync.
    pub fn resync_begin(&self, host: &impl Host, scope: Scope) -> Option<(Resync, TlbDebt)> {
        self.with(|inner| {
            self.moved();
            inner.resync_begin(host, scope)
        })
    }

    /// Reads the unsync pages again and drops or reduces what L1 changed. To be called when the debt of
    /// [`ShadowCache::resync_begin`] has been paid, and not before.
    pub fn resync_finish(&self, host: &impl Host, resync: Resync) -> TlbDebt {
        let mut debt = TlbDebt::none();
        self.with(|inner| {
            self.moved();
            inner.resync_finish(host, resync, &mut debt);
        });
        debt
    }

    /// Removes what was built from the L1 frames in `range`, after the p2m changed there. L1's frames may
    /// get a new owner when the debt has been paid.
    pub fn zap(&self, host: &impl Host, range: addr::Range<GuestPhys>, what: Zap) -> TlbDebt {
        let mut debt = TlbDebt::none();
        self.with(|inner| {
            self.moved();
            inner.zap(host, range, what, &mut debt);
        });
        debt
    }

    /// Empties the cache: roots in use lose everything but their root page, all others go. For a domain
    /// that dies, or stops nesting.
    pub fn clear(&self, host: &impl Host) -> TlbDebt {
        let mut debt = TlbDebt::none();
        self.with(|inner| {
            self.moved();
            inner.clear(host, &mut debt);
        });
        debt
    }

    /// The end of a domain whose vCPUs are gone: no table stays, whoever held a root of it.
    pub fn destroy(self, host: &impl Host) -> TlbDebt {
        let mut debt = TlbDebt::none();
        self.with(|inner| inner.destroy(host, &mut debt));
        debt
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        self.inner.lock().stats()
    }

    /// What was read before now may not be installed.
    fn moved(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    fn with<R>(&self, f: impl FnOnce(&mut Inner<F>) -> R) -> R {
        f(&mut self.inner.lock())
    }

    /// Checks every invariant of the metadata against the tables; panics where one is broken. Slow.
    #[cfg(any(test, feature = "model"))]
    pub fn check(&self, host: &impl Host) {
        self.inner.lock().check(host);
    }
}
