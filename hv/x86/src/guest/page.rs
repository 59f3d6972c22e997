//! A pinned page of guest RAM.
// UNSAFETY: accesses guest memory through the direct map.
#![allow(unsafe_code)]

use crate::mm::{direct, frames::frames};
use addr::{Frame, GuestPage, HostPhys};
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};

/// A page of guest RAM that stays what it is while this value lives: the frame table counts it.
///
/// The guest writes the page whenever it likes. So there is no reference into it: each access is one
/// atomic access (relaxed where the trait asks for no order), which compiles to a plain move.
#[derive(Debug)]
pub struct Page(Frame<HostPhys>);

impl Page {
    /// Takes over a pin that the frame table has counted for the caller.
    pub(super) fn adopt(frame: Frame<HostPhys>) -> Self {
        Page(frame)
    }

    /// The frame.
    #[inline(always)]
    pub fn frame(&self) -> Frame<HostPhys> {
        self.0
    }

    #[inline(always)]
    fn at(&self, offset: usize, width: usize) -> *mut u8 {
        // SAFETY: the offset is reduced to the page; the direct map shows all RAM.
        unsafe { direct::pointer(self.0.start()).add(offset & (4096 - width)) }
    }
    #[inline(always)]
    fn byte(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: RAM of a guest, never Rust-owned; only atomics look at it.
        unsafe { AtomicU8::from_ptr(self.at(offset, 1)) }
    }
    #[inline(always)]
    fn dword(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as `byte`; aligned by `at`.
        unsafe { AtomicU32::from_ptr(self.at(offset, 4).cast()) }
    }
    #[inline(always)]
    fn qword(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as `byte`; aligned by `at`.
        unsafe { AtomicU64::from_ptr(self.at(offset, 8).cast()) }
    }

    /// Copies `out.len()` bytes from `offset`; both must lie in the page.
    pub(super) fn copy_out(&self, offset: usize, out: &mut [u8]) {
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = self.byte(offset + i).load(core::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Copies `data` to `offset`; both must lie in the page.
    pub(super) fn copy_in(&self, offset: usize, data: &[u8]) {
        let whole = if offset.is_multiple_of(8) { data.len() / 8 * 8 } else { 0 };
        for (i, word) in data[..whole].chunks_exact(8).enumerate() {
            let word = u64::from_le_bytes(word.try_into().expect("chunks of eight"));
            self.qword(offset + i * 8).store(word, core::sync::atomic::Ordering::Relaxed);
        }
        for (i, byte) in data[whole..].iter().enumerate() {
            self.byte(offset + whole + i).store(*byte, core::sync::atomic::Ordering::Relaxed);
        }
    }
}

impl Clone for Page {
    fn clone(&self) -> Self {
        assert!(frames().dup_ref(self.0), "a held page can be pinned once more");
        Page(self.0)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        frames().put_ref(self.0).expect("the pin that this value stands for");
    }
}

impl GuestPage for Page {
    #[inline(always)]
    fn read_u8(&self, offset: usize) -> u8 {
        self.byte(offset).load(core::sync::atomic::Ordering::Relaxed)
    }
    #[inline(always)]
    fn read_u32(&self, offset: usize) -> u32 {
        self.dword(offset).load(core::sync::atomic::Ordering::Relaxed)
    }
    #[inline(always)]
    fn read_u64(&self, offset: usize) -> u64 {
        self.qword(offset).load(core::sync::atomic::Ordering::Relaxed)
    }
    #[inline(always)]
    fn write_u8(&self, offset: usize, value: u8) {
        self.byte(offset).store(value, core::sync::atomic::Ordering::Relaxed);
    }
    #[inline(always)]
    fn write_u32(&self, offset: usize, value: u32) {
        self.dword(offset).store(value, core::sync::atomic::Ordering::Relaxed);
    }
    #[inline(always)]
    fn write_u64(&self, offset: usize, value: u64) {
        self.qword(offset).store(value, core::sync::atomic::Ordering::Relaxed);
    }
    fn swap_u8(&self, offset: usize, value: u8) -> u8 {
        self.byte(offset).swap(value, SeqCst)
    }
    fn fetch_or_u64(&self, offset: usize, bits: u64) -> u64 {
        self.qword(offset).fetch_or(bits, SeqCst)
    }
    fn fetch_and_u64(&self, offset: usize, bits: u64) -> u64 {
        self.qword(offset).fetch_and(bits, SeqCst)
    }
    fn fetch_or_u32(&self, offset: usize, bits: u32) -> u32 {
        self.dword(offset).fetch_or(bits, SeqCst)
    }
    fn fetch_and_u32(&self, offset: usize, bits: u32) -> u32 {
        self.dword(offset).fetch_and(bits, SeqCst)
    }
    fn compare_exchange_u32(&self, offset: usize, old: u32, new: u32) -> Result<u32, u32> {
        self.dword(offset).compare_exchange(old, new, SeqCst, SeqCst)
    }
    fn compare_exchange_u64(&self, offset: usize, old: u64, new: u64) -> Result<u64, u64> {
        self.qword(offset).compare_exchange(old, new, SeqCst, SeqCst)
    }
}
