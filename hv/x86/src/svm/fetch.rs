//! Instruction bytes of the guest, fetched as cheaply as can be.
//!
//! A processor without next-RIP save leaves the length of the instruction that exited to us. The page that
//! holds it is found by walking the guest's tables, and remembered by (CR3, page, nested root): later
//! exits from there cost one read of the bytes. If the guest has changed its tables since without an exit,
//! the bytes read may be those of the old page. They are used only where they are the very instruction
//! that the exit code names, so the worst a guest can do is to skip a wrong number of its own bytes.

use crate::guest::page::Page;
use addr::{GuestPage, PAGE_SIZE};

const ENTRIES: usize = 8;

/// Where an instruction was fetched from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Key {
    /// The guest's CR3.
    pub cr3: u64,
    /// Linear address of the page.
    pub page: u64,
    /// Root of the nested tables: L1's, or the L2's.
    pub root: u64,
}

/// Pages lately fetched from.
#[derive(Debug, Default)]
pub struct FetchCache {
    entries: [Option<(Key, Page)>; ENTRIES],
    next: usize,
}

impl FetchCache {
    /// Up to 8 bytes at `offset` of the page under `key`, if it is remembered; never across the page's end.
    #[inline]
    pub fn peek(&self, key: &Key, offset: usize) -> Option<([u8; 8], usize)> {
        let (_, page) = self.entries.iter().flatten().find(|(k, _)| k == key)?;
        let len = (PAGE_SIZE as usize - offset).min(8);
        let word = page.read_u64(offset);
        let shift = offset % 8 * 8;
        let mut value = word >> shift;
        if shift != 0 && offset / 8 < 511 {
            value |= page.read_u64(offset + 8) << (64 - shift);
        }
        Some((value.to_le_bytes(), len))
    }

    /// Remembers a page.
    pub fn remember(&mut self, key: Key, page: Page) {
        self.entries[self.next % ENTRIES] = Some((key, page));
        self.next = (self.next + 1) % ENTRIES;
    }
}
