//! A guest memory of ordinary heap pages, for host tests of the crates above.

use crate::{FaultReason, Frame, Gpa, GuestFault, GuestMemory, GuestPage, GuestPhys, PAGE_SIZE, page_chunks};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, RwLock};
use std::vec::Vec;

std::thread_local! {
    static ACCESSES: Cell<u64> = const { Cell::new(0) };
}

/// How often this thread has accessed a [`HeapPage`]: what a path costs in memory that guests share.
pub fn accesses() -> u64 {
    ACCESSES.get()
}

/// A page: 512 little-endian words, shared by all its clones.
#[derive(Clone, Debug)]
pub struct HeapPage(Arc<Vec<AtomicU64>>);

impl Default for HeapPage {
    fn default() -> Self {
        Self(Arc::new((0..PAGE_SIZE / 8).map(|_| AtomicU64::new(0)).collect()))
    }
}

impl HeapPage {
    /// How many clones there are, this one included.
    pub fn clones(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// Whether both are the same page.
    pub fn same(&self, other: &HeapPage) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        ACCESSES.set(ACCESSES.get() + 1);
        &self.0[(offset % PAGE_SIZE as usize) / 8]
    }
    /// Replaces `mask` (at `offset`'s place in its word) by `value`, returning the old word.
    fn splice(&self, offset: usize, width: usize, f: impl Fn(u64) -> Option<u64>) -> (u64, bool) {
        let shift = (offset % 8 / width * width) * 8;
        let mask = if width == 8 { u64::MAX } else { (1 << (width * 8)) - 1 };
        let field = |word: u64| (word >> shift) & mask;
        match self.word(offset).fetch_update(SeqCst, SeqCst, |word| {
            f(field(word)).map(|new| word & !(mask << shift) | (new & mask) << shift)
        }) {
            Ok(old) => (field(old), true),
            Err(old) => (field(old), false),
        }
    }
}

impl GuestPage for HeapPage {
    fn read_u8(&self, offset: usize) -> u8 {
        self.splice(offset, 1, Some).0 as u8
    }
    fn read_u32(&self, offset: usize) -> u32 {
        self.splice(offset, 4, Some).0 as u32
    }
    fn read_u64(&self, offset: usize) -> u64 {
        self.word(offset).load(SeqCst)
    }
    fn write_u8(&self, offset: usize, value: u8) {
        self.splice(offset, 1, |_| Some(value.into()));
    }
    fn write_u32(&self, offset: usize, value: u32) {
        self.splice(offset, 4, |_| Some(value.into()));
    }
    fn write_u64(&self, offset: usize, value: u64) {
        self.word(offset).store(value, SeqCst);
    }
    fn swap_u8(&self, offset: usize, value: u8) -> u8 {
        self.splice(offset, 1, |_| Some(value.into())).0 as u8
    }
    fn fetch_or_u64(&self, offset: usize, bits: u64) -> u64 {
        self.word(offset).fetch_or(bits, SeqCst)
    }
    fn fetch_and_u64(&self, offset: usize, bits: u64) -> u64 {
        self.word(offset).fetch_and(bits, SeqCst)
    }
    fn fetch_or_u32(&self, offset: usize, bits: u32) -> u32 {
        self.splice(offset, 4, |old| Some(old | u64::from(bits))).0 as u32
    }
    fn fetch_and_u32(&self, offset: usize, bits: u32) -> u32 {
        self.splice(offset, 4, |old| Some(old & u64::from(bits))).0 as u32
    }
    fn compare_exchange_u32(&self, offset: usize, old: u32, new: u32) -> Result<u32, u32> {
        match self.splice(offset, 4, |found| (found == u64::from(old)).then_some(new.into())) {
            (found, true) => Ok(found as u32),
            (found, false) => Err(found as u32),
        }
    }
    fn compare_exchange_u64(&self, offset: usize, old: u64, new: u64) -> Result<u64, u64> {
        self.word(offset).compare_exchange(old, new, SeqCst, SeqCst)
    }
}

/// Sparse guest-physical memory. Shared by its clones, so a test can keep one hand on it while the code
/// under test holds the other.
#[derive(Clone, Debug, Default)]
pub struct HeapMemory(Arc<RwLock<BTreeMap<u64, HeapPage>>>);

impl HeapMemory {
    /// `pages` pages of RAM from guest-physical zero.
    pub fn with_pages(pages: u64) -> Self {
        let memory = Self::default();
        (0..pages).for_each(|n| memory.add(Frame::new(n)));
        memory
    }
    /// Puts a zeroed page of RAM at `frame`.
    pub fn add(&self, frame: Frame<GuestPhys>) {
        self.0.write().unwrap().insert(frame.number(), HeapPage::default());
    }
    /// Makes `frame` a hole.
    pub fn remove(&self, frame: Frame<GuestPhys>) {
        self.0.write().unwrap().remove(&frame.number());
    }
    /// Writes a u64 that must land in RAM.
    pub fn put_u64(&self, gpa: Gpa, value: u64) {
        self.write(gpa, &value.to_le_bytes()).unwrap();
    }
}

impl GuestMemory for HeapMemory {
    type Page = HeapPage;

    fn pin(&self, frame: Frame<GuestPhys>) -> Result<HeapPage, GuestFault> {
        let fault = GuestFault { gpa: frame.start(), reason: FaultReason::NotMapped };
        self.0.read().unwrap().get(&frame.number()).cloned().ok_or(fault)
    }
    fn read(&self, gpa: Gpa, out: &mut [u8]) -> Result<(), GuestFault> {
        for (at, from, n) in page_chunks(gpa, out.len()) {
            let page = self.pin(at.frame())?;
            for i in 0..n {
                out[from + i] = page.read_u8(at.page_offset() + i);
            }
        }
        Ok(())
    }
    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), GuestFault> {
        for (at, from, n) in page_chunks(gpa, data.len()) {
            let page = self.pin(at.frame())?;
            for i in 0..n {
                page.write_u8(at.page_offset() + i, data[from + i]);
            }
        }
        Ok(())
    }
}
