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
/// A power of two.
const HINTS: usize = 16;

/// Where an instruction was fetched from. The default stands for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Key {
    /// The guest's CR3.
    pub cr3: u64,
    /// Linear address of the page.
    pub page: u64,
    /// Root of the nested tables that the hardware uses, never 0.
    pub root: u64,
}

/// Pages lately fetched from.
#[derive(Debug, Default)]
pub struct FetchCache {
    keys: [Key; ENTRIES],
    pages: [Option<Page>; ENTRIES],
    /// Which entry was found last for a page number, by its lowest bits.
    hints: [u8; HINTS],
    next: usize,
}

impl FetchCache {
    /// Up to 8 bytes at `offset` of the page under `key`, the first one lowest, and their number, if the page is
    /// remembered; never across its end.
    #[inline]
    pub fn peek(&mut self, key: &Key, offset: usize) -> Option<(u64, usize)> {
        let hint = &mut self.hints[key.page as usize % HINTS];
        if self.keys[usize::from(*hint) % ENTRIES] != *key {
            *hint = self.keys.iter().position(|k| k == key)? as u8;
        }
        let page = self.pages[usize::from(*hint) % ENTRIES].as_ref()?;
        let shift = offset % 8 * 8;
        let mut head = page.read_u64(offset) >> shift;
        if shift != 0 && offset / 8 < 511 {
            head |= page.read_u64(offset + 8) << (64 - shift);
        }
        Some((head, (PAGE_SIZE as usize - offset).min(8)))
    }

    /// Remembers a page.
    pub fn remember(&mut self, key: Key, page: Page) {
        let index = self.keys.iter().position(|k| *k == key).unwrap_or(self.next % ENTRIES);
        self.keys[index] = key;
        self.pages[index] = Some(page);
        self.next = (self.next + 1) % ENTRIES;
    }
}
