//! How table pages are reached.

use addr::Hpa;

/// Entries in a table page, 8 bytes each.
pub const ENTRIES: usize = 512;

/// The memory that tables live in. The implementor knows where table pages come from, charges them to
/// the domain, and reaches them; the engine hands in only addresses it got from [`TableMemory::alloc`]
/// and indices below [`ENTRIES`].
///
/// Hardware walks the same pages at any time: each access is one 8-byte access, `write` and
/// `compare_exchange` release what was written before, `read` acquires.
pub trait TableMemory {
    /// A zeroed page; `None` if the domain's share or the machine's memory is used up.
    fn alloc(&self) -> Option<Hpa>;
    /// Takes a page back. No hardware walks it any more.
    fn free(&self, table: Hpa);
    /// Reads an entry.
    fn read(&self, table: Hpa, index: usize) -> u64;
    /// Replaces an entry.
    fn write(&self, table: Hpa, index: usize, entry: u64);
    /// Replaces an entry if it is `old`; else `Err` holds the one found.
    fn compare_exchange(&self, table: Hpa, index: usize, old: u64, new: u64) -> Result<(), u64>;
}

impl<T: TableMemory + ?Sized> TableMemory for &T {
    fn alloc(&self) -> Option<Hpa> {
        (**self).alloc()
    }
    fn free(&self, table: Hpa) {
        (**self).free(table);
    }
    fn read(&self, table: Hpa, index: usize) -> u64 {
        (**self).read(table, index)
    }
    fn write(&self, table: Hpa, index: usize, entry: u64) {
        (**self).write(table, index, entry);
    }
    fn compare_exchange(&self, table: Hpa, index: usize, old: u64, new: u64) -> Result<(), u64> {
        (**self).compare_exchange(table, index, old, new)
    }
}
