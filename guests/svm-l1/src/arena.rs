//! Pages for tests: physical RAM from 16 MiB to 32 MiB, given out in order, taken back all at once.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// First byte. 2 MiB-aligned, so that nested tables can treat it as large pages.
pub const START: u64 = 0x100_0000;
/// End.
pub const END: u64 = 0x200_0000;

static NEXT: AtomicU64 = AtomicU64::new(START);

/// `count` fresh zeroed pages in a row; the address is physical and virtual.
pub fn pages(count: u64) -> u64 {
    let at = NEXT.fetch_add(count * 4096, Relaxed);
    assert!(at + count * 4096 <= END, "a test uses more than the arena");
    // SAFETY: the range lies in the arena, which nothing else uses, and belongs to this caller now.
    unsafe { core::ptr::write_bytes(at as *mut u8, 0, count as usize * 4096) };
    at
}

/// One fresh zeroed page.
pub fn page() -> u64 {
    pages(1)
}

/// Take everything back.
pub fn reset() {
    NEXT.store(START, Relaxed);
}

/// Read a word of physical memory.
pub fn peek(at: u64) -> u64 {
    // SAFETY: identity-mapped; used for arena pages and our own image.
    unsafe { (at as *const u64).read_volatile() }
}

/// Write a word of physical memory.
pub fn poke(at: u64, value: u64) {
    // SAFETY: as for [`peek`].
    unsafe { (at as *mut u64).write_volatile(value) };
}
