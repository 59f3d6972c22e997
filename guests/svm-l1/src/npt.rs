//! Nested page tables of our own: the identity for the first 4 GiB in large pages, and one 2 MiB window in 4 KiB pages
//! whose entries tests change. (APM vol. 2, "Nested Paging".)

use crate::arena::{self, peek, poke};
use crate::l2::L2;
use crate::vmcb::*;

/// Present, writable, user, accessed, dirty.
pub const ALL: u64 = 0x67;
/// Present.
pub const P: u64 = 1;
/// Writable.
pub const W: u64 = 2;
/// User.
pub const U: u64 = 4;
/// Accessed.
pub const A: u64 = 0x20;
/// Dirty.
pub const D: u64 = 0x40;
/// Large page.
pub const PS: u64 = 0x80;
/// No execute.
pub const NX: u64 = 1 << 63;

/// Guest-physical address of the window.
pub const WINDOW: u64 = 0x8000_0000;

/// The tables.
#[derive(Debug, Clone, Copy)]
pub struct Npt {
    /// Root, for nCR3.
    pub root: u64,
    /// Level 3 table.
    pub pdpt: u64,
    /// Level 2 table of the GiB with the window.
    pub pd: u64,
    /// Level 1 table of the window: entry n maps WINDOW + n pages.
    pub pt: u64,
    /// 16 pages of memory behind the first entries of the window.
    pub memory: u64,
}

impl Npt {
    /// Build them; the first 16 pages of the window map to fresh memory, the rest is absent.
    pub fn new() -> Npt {
        let (root, pdpt, pd, pt, memory) =
            (arena::page(), arena::page(), arena::page(), arena::page(), arena::pages(16));
        poke(root, pdpt | ALL);
        for gib in [0, 1, 3] {
            let directory = arena::page();
            poke(pdpt + gib * 8, directory | ALL);
            for i in 0..512 {
                poke(directory + i * 8, gib << 30 | i << 21 | PS | ALL);
            }
        }
        poke(pdpt + 16, pd | ALL);
        poke(pd, pt | ALL);
        for i in 0..16 {
            poke(pt + i * 8, (memory + i * 4096) | ALL);
        }
        Npt { root, pdpt, pd, pt, memory }
    }

    /// Make `l2` use them.
    pub fn attach(&self, l2: &mut L2) {
        l2.vmcb.or(MISC_CTL, 1);
        l2.vmcb.set(NCR3, self.root);
    }

    /// Level-1 entry `n` of the window.
    pub fn entry(&self, n: u64) -> u64 {
        peek(self.pt + n * 8)
    }

    /// Change level-1 entry `n`, keeping the frame.
    pub fn set_flags(&self, n: u64, flags: u64) {
        poke(self.pt + n * 8, (self.memory + n * 4096) | flags);
    }
}
