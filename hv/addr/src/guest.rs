//! How code that touches no hardware reaches guest memory: by value, never by reference.

use crate::{Frame, Gpa, GuestPhys, PAGE_SIZE};

/// Why a guest-physical access failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultReason {
    /// Nothing is mapped there.
    NotMapped,
    /// Mapped, but not for this access.
    Permission,
}

/// A guest-physical access that could not be made. Whoever asked is to blame, not the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestFault {
    /// First address that could not be reached.
    pub gpa: Gpa,
    /// Why.
    pub reason: FaultReason,
}

/// One 4 KiB page of guest RAM, pinned: it stays that guest's RAM as long as the value lives, whatever
/// the guest does to its mapping. Every access is a single volatile (or atomic) access of its width, as
/// other CPUs of the guest may write the page at any time.
///
/// Offsets are in bytes, taken modulo the page size and rounded down to the access width, so that no
/// offset, from wherever it comes, can leave the page.
pub trait GuestPage: Clone {
    /// Reads one byte.
    fn read_u8(&self, offset: usize) -> u8;
    /// Reads 4 bytes at a multiple of 4.
    fn read_u32(&self, offset: usize) -> u32;
    /// Reads 8 bytes at a multiple of 8.
    fn read_u64(&self, offset: usize) -> u64;
    /// Writes one byte.
    fn write_u8(&self, offset: usize, value: u8);
    /// Writes 4 bytes at a multiple of 4.
    fn write_u32(&self, offset: usize, value: u32);
    /// Writes 8 bytes at a multiple of 8.
    fn write_u64(&self, offset: usize, value: u64);
    /// Atomically exchanges a byte (sequentially consistent).
    fn swap_u8(&self, offset: usize, value: u8) -> u8;
    /// Atomically ORs, returning the old value (sequentially consistent).
    fn fetch_or_u64(&self, offset: usize, bits: u64) -> u64;
    /// Atomically ANDs, returning the old value (sequentially consistent).
    fn fetch_and_u64(&self, offset: usize, bits: u64) -> u64;
    /// Atomically ORs, returning the old value (sequentially consistent).
    fn fetch_or_u32(&self, offset: usize, bits: u32) -> u32;
    /// Atomically ANDs, returning the old value (sequentially consistent).
    fn fetch_and_u32(&self, offset: usize, bits: u32) -> u32;
    /// Compare-exchange; `Err` holds the value found.
    fn compare_exchange_u32(&self, offset: usize, old: u32, new: u32) -> Result<u32, u32>;
    /// Compare-exchange; `Err` holds the value found.
    fn compare_exchange_u64(&self, offset: usize, old: u64, new: u64) -> Result<u64, u64>;
}

/// A guest's physical memory.
pub trait GuestMemory {
    /// What [`GuestMemory::pin`] gives.
    type Page: GuestPage;

    /// Pins the RAM page `frame` for reading and writing.
    fn pin(&self, frame: Frame<GuestPhys>) -> Result<Self::Page, GuestFault>;

    /// Copies guest memory out; may cross pages. On a fault `out` is partly written.
    fn read(&self, gpa: Gpa, out: &mut [u8]) -> Result<(), GuestFault>;

    /// Copies into guest memory; may cross pages. On a fault a prefix has been written.
    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), GuestFault>;

    /// Reads a little-endian u64, in one access if it lies within a page at a multiple of 8.
    fn read_u64(&self, gpa: Gpa) -> Result<u64, GuestFault> {
        if gpa.raw().is_multiple_of(8) {
            return Ok(self.pin(gpa.frame())?.read_u64(gpa.page_offset()));
        }
        let mut bytes = [0; 8];
        self.read(gpa, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads a little-endian u32, in one access if it lies within a page at a multiple of 4.
    fn read_u32(&self, gpa: Gpa) -> Result<u32, GuestFault> {
        if gpa.raw().is_multiple_of(4) {
            return Ok(self.pin(gpa.frame())?.read_u32(gpa.page_offset()));
        }
        let mut bytes = [0; 4];
        self.read(gpa, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }
}

/// Splits `len` bytes at `gpa` at page borders: yields (address, offset into the buffer, bytes).
pub fn page_chunks(gpa: Gpa, len: usize) -> impl Iterator<Item = (Gpa, usize, usize)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        if done >= len {
            return None;
        }
        let at = gpa.wrapping_add(done as u64);
        let n = (PAGE_SIZE as usize - at.page_offset()).min(len - done);
        let item = (at, done, n);
        done += n;
        Some(item)
    })
}
