//! L1's VPIDs: which hardware tag each gets, and the flushes that are due.
//!
//! SDM vol. 3, "Cached Translation Information": with VPIDs translations survive VM entry and exit; without,
//! each transition flushes. L1's VPIDs never reach the processor: each vCPU has hardware tags of its own, one
//! for L1, one per VPID of L1's that is remembered, one for an L2 without. INVVPID acts on linear and
//! combined mappings only: it never drops a composed table.

use crate::state::Invvpid;

/// A flush of one hardware tag, by what it leaves. Ordered: the greater does what the lesser does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Flush {
    /// Nothing.
    #[default]
    None,
    /// INVVPID type 3: all but global translations.
    RetainingGlobals,
    /// INVVPID type 1: all.
    All,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// L1's VPID; 0: free.
    vpid12: u16,
    owed: Flush,
    used: u64,
}

/// What an entry to L2 runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Selected {
    /// Hardware VPID.
    pub vpid: u16,
    /// To be done to it before the entry.
    pub flush: Flush,
    /// L1's own tag is to be flushed before L1 runs again: without VPIDs the transitions that L1 sees flush
    /// L1's translations, too.
    pub flush_01: bool,
}

/// The tags of one vCPU, with `N` of L1's VPIDs remembered.
#[derive(Clone, Debug)]
pub struct VpidMap<const N: usize = 8> {
    base: u16,
    entries: [Entry; N],
    clock: u64,
}

impl<const N: usize> VpidMap<N> {
    /// Hardware VPIDs that a vCPU needs: L1's, L2's without VPID, and the remembered ones.
    pub const TAGS: u16 = N as u16 + 2;

    /// For a vCPU that owns the hardware VPIDs from `base`, which is not 0, to `base + TAGS - 1`.
    pub fn new(base: u16) -> Self {
        const { assert!(N > 0 && N < 1000) };
        // What was there before this vCPU is unknown.
        Self { base, entries: [Entry { owed: Flush::All, ..Entry::default() }; N], clock: 0 }
    }

    /// L1's own tag.
    pub fn l1(&self) -> u16 {
        self.base
    }

    /// VM entry with `vpid12`, `None` where L1 uses no VPIDs.
    pub fn select(&mut self, vpid12: Option<u16>) -> Selected {
        let Some(vpid12) = vpid12.filter(|v| *v != 0) else {
            return Selected { vpid: self.base + 1, flush: Flush::All, flush_01: true };
        };
        let index = self.find(vpid12).unwrap_or_else(|| self.oldest());
        self.clock += 1;
        let entry = &mut self.entries[index];
        if entry.vpid12 != vpid12 {
            *entry = Entry { vpid12, owed: Flush::All, used: 0 };
        }
        entry.used = self.clock;
        let flush = core::mem::take(&mut entry.owed);
        Selected { vpid: self.tag(index), flush, flush_01: false }
    }

    /// INVVPID by L1. What must be done at once is returned: a hardware VPID, and the linear address to flush
    /// from it. The rest is done at the next entry.
    pub fn invalidate(&mut self, what: Invvpid) -> Option<(u16, u64)> {
        let (vpid, flush) = match what {
            Invvpid::All => {
                self.owe_all();
                return None;
            }
            Invvpid::Address { vpid, address } => {
                return self.find(vpid).map(|index| (self.tag(index), address));
            }
            Invvpid::Single(vpid) => (vpid, Flush::All),
            Invvpid::RetainingGlobals(vpid) => (vpid, Flush::RetainingGlobals),
        };
        if let Some(index) = self.find(vpid) {
            let owed = &mut self.entries[index].owed;
            *owed = flush.max(*owed);
        }
        None
    }

    /// The vCPU runs on another processor now, where its tags may be from an earlier stay. L1's tag is the
    /// caller's to flush.
    pub fn moved(&mut self) {
        self.owe_all();
    }

    fn owe_all(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.owed = Flush::All);
    }
    fn find(&self, vpid12: u16) -> Option<usize> {
        self.entries.iter().position(|e| e.vpid12 == vpid12 && vpid12 != 0)
    }
    fn oldest(&self) -> usize {
        (0..N).min_by_key(|i| self.entries[*i].used).unwrap_or(0)
    }
    fn tag(&self, index: usize) -> u16 {
        self.base.wrapping_add(2 + index as u16)
    }
}
