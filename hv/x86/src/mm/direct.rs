//! The direct map: how Testudo reaches physical memory that it owns.
// UNSAFETY: turns physical addresses into pointers.
#![allow(unsafe_code)]

use addr::{Frame, HostPhys, Hpa, PAGE_SIZE};

/// Where physical address 0 appears.
pub const BASE: u64 = 0xffff_8000_0000_0000;

/// The pointer to `hpa` in the direct map. Making it is harmless; using it is the caller's claim that the
/// address is RAM and that nobody else writes it as Rust-owned memory.
#[inline(always)]
pub fn pointer(hpa: Hpa) -> *mut u8 {
    (BASE + hpa.raw()) as *mut u8
}

/// Physical address of something that lives in the direct map.
pub fn physical<T>(pointer: *const T) -> Hpa {
    Hpa::new(pointer as u64 - BASE)
}

/// The bytes of a boot module. They lie in RAM that was set apart at boot and is never written or freed.
pub fn module(start: Hpa, bytes: usize) -> &'static [u8] {
    // SAFETY: as said; the direct map shows all RAM.
    unsafe { core::slice::from_raw_parts(pointer(start), bytes) }
}

/// Fills a frame with zeroes.
///
/// # Safety
/// The frame must be RAM that no Rust object lives in.
pub unsafe fn zero(frame: Frame<HostPhys>) {
    // SAFETY: the caller owns the frame.
    unsafe { core::ptr::write_bytes(pointer(frame.start()), 0, PAGE_SIZE as usize) };
}

/// Reads one entry of a table page.
///
/// # Safety
/// `table` must be a page of RAM used as a table of 64-bit entries.
#[inline(always)]
pub unsafe fn read_entry(table: Hpa, index: usize) -> u64 {
    let at = pointer(table).cast::<u64>();
    // SAFETY: the caller vouches for the page; the index is reduced to it.
    unsafe { core::sync::atomic::AtomicU64::from_ptr(at.add(index & 511)) }
        .load(core::sync::atomic::Ordering::Acquire)
}

/// Writes one entry of a table page.
///
/// # Safety
/// As [`read_entry`]; the new entry must keep every user of the table within its rights.
#[inline(always)]
pub unsafe fn write_entry(table: Hpa, index: usize, value: u64) {
    let at = pointer(table).cast::<u64>();
    // SAFETY: as above.
    unsafe { core::sync::atomic::AtomicU64::from_ptr(at.add(index & 511)) }
        .store(value, core::sync::atomic::Ordering::Release);
}
