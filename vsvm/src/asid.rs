//! ASIDs: which hardware tag stands for L1's ASID, and which flush is due.
//!
//! Three levels. [`AsidPool`] belongs to one processor and hands out hardware ASIDs, each only once per
//! generation; when they run out everything is flushed once and a new generation begins. [`Tag`] is one
//! address space's claim on one of them: vmcb01 has a tag, and each (vCPU, asid12) has one, in an
//! [`AsidMap`]. A new ASID is as good as a flush of the old one, so a tag that moves between processors,
//! or whose flush the processor can't do by ASID, just takes a new one.
//!
//! Flushes owed are forgotten only after a real entry ([`AsidPool::entered`], [`Tag::entered`]), so that
//! an entry given up for an event loses none.
//!
//! Source: APM vol. 2, "TLB Control" of SVM.

use crate::layout::tlb_control;
use crate::vmcb12::Checked12;
use addr::Gpa;

/// How much of an ASID's translations must go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Flush {
    /// Nothing.
    #[default]
    None,
    /// All but global ones.
    NonGlobal,
    /// All.
    All,
}

/// The hardware ASIDs of one processor.
#[derive(Clone, Debug)]
pub struct AsidPool {
    next: u32,
    count: u32,
    generation: u64,
    owes_full_flush: bool,
}

impl AsidPool {
    /// A pool for a processor with `count` ASIDs by CPUID (0 is the host's, so `count - 1` are given out;
    /// at least one). The first entry flushes everything.
    pub const fn new(count: u32) -> Self {
        let count = if count < 2 { 2 } else { count };
        Self { next: 1, count, generation: 1, owes_full_flush: true }
    }

    fn take(&mut self) -> u32 {
        if self.next >= self.count {
            self.revoke();
        }
        self.next += 1;
        self.next - 1
    }

    /// Takes back every ASID, e.g. as the host's own mappings changed: all tags get new ones.
    pub fn revoke(&mut self) {
        self.next = 1;
        self.generation += 1;
        self.owes_full_flush = true;
    }

    /// A guest was entered with the TLB_CONTROL last granted.
    #[inline]
    pub fn entered(&mut self) {
        self.owes_full_flush = false;
    }
}

/// ASID and TLB_CONTROL of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Hardware ASID, never 0.
    pub asid: u32,
    /// TLB_CONTROL.
    pub tlb_control: u8,
}

/// An address space's claim on a hardware ASID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Tag {
    asid: u32,
    pcpu: u32,
    generation: u64,
    seen: u64,
    owed: Flush,
}

impl Tag {
    /// A claim not yet served.
    pub const fn new() -> Self {
        Self { asid: 0, pcpu: 0, generation: 0, seen: 0, owed: Flush::None }
    }

    /// Makes `flush` due at the next entry.
    #[inline]
    pub fn owe(&mut self, flush: Flush) {
        self.owed = self.owed.max(flush);
    }

    fn holds(&self, pool: &AsidPool, pcpu: u32) -> bool {
        self.asid != 0 && self.pcpu == pcpu && self.generation == pool.generation
    }

    /// What to enter with, on processor `pcpu` whose pool is `pool`. `forced` is the domain's generation of
    /// flushes by others (a changed p2m, another vCPU's global flush): if it moved since this tag's last
    /// entry, everything is flushed. `by_asid` says whether the processor can flush by ASID.
    #[inline]
    pub fn prepare(&mut self, pool: &mut AsidPool, pcpu: u32, forced: u64, by_asid: bool) -> Grant {
        if self.seen != forced {
            self.seen = forced;
            self.owed = Flush::All;
        }
        if !self.holds(pool, pcpu) || self.owed != Flush::None && !by_asid && !pool.owes_full_flush {
            (self.asid, self.owed) = (pool.take(), Flush::None);
            (self.pcpu, self.generation) = (pcpu, pool.generation);
        }
        let tlb_control = match self.owed {
            _ if pool.owes_full_flush => tlb_control::ALL,
            Flush::None => tlb_control::NONE,
            Flush::NonGlobal => tlb_control::THIS_ASID_NON_GLOBAL,
            Flush::All => tlb_control::THIS_ASID,
        };
        Grant { asid: self.asid, tlb_control }
    }

    /// A guest was entered with what [`Tag::prepare`] granted.
    #[inline]
    pub fn entered(&mut self) {
        self.owed = Flush::None;
    }

    /// The hardware ASID that holds translations of this tag on processor `pcpu`, if any.
    #[inline]
    pub fn current(&self, pool: &AsidPool, pcpu: u32) -> Option<u32> {
        self.holds(pool, pcpu).then_some(self.asid)
    }
}

/// One asid12 of a vCPU.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// 0: free.
    asid12: u32,
    root: Option<Gpa>,
    tag: Tag,
    used: u64,
    resync: bool,
}

/// What a VMRUN demands of translations.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selected {
    /// Index for [`AsidMap::tag`].
    pub index: usize,
    /// L1's nested page tables may have changed unseen: compare the unsynchronised ones before the entry.
    /// Never set if 12 has no nested paging.
    pub resync: bool,
    /// L1 asked to flush every ASID, its own too: vmcb01's tag owes [`Flush::All`].
    pub flush_01: bool,
}

/// L1's ASIDs of one vCPU, `N` of them remembered.
#[derive(Clone, Debug)]
pub struct AsidMap<const N: usize = 8> {
    entries: [Entry; N],
    clock: u64,
}

impl<const N: usize> Default for AsidMap<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> AsidMap<N> {
    const SOME: () = assert!(N > 0);

    /// None remembered.
    pub fn new() -> Self {
        let () = Self::SOME;
        Self { entries: [Entry::default(); N], clock: 0 }
    }

    /// VMRUN of `c12`: finds the tag of its ASID and notes the flushes due, from TLB_CONTROL, a changed root
    /// or mode, and first use. `by_asid12` says whether L1 is offered flush-by-ASID. A TLB_CONTROL that
    /// L1 should not use flushes everything.
    #[inline]
    pub fn select(&mut self, c12: &Checked12, by_asid12: bool) -> Selected {
        let c = c12.control();
        let flush_all = match c.tlb_control {
            tlb_control::NONE => false,
            tlb_control::THIS_ASID | tlb_control::THIS_ASID_NON_GLOBAL => !by_asid12,
            _ => true,
        };
        if flush_all {
            self.flush_all();
        }
        let root = c12.np().then_some(c.n_cr3);
        let index = self.find(c.asid);
        let entry = &mut self.entries[index];
        let fresh = entry.asid12 != c.asid;
        if fresh {
            *entry = Entry { asid12: c.asid, root, resync: true, ..Entry::default() };
        }
        if entry.root != root {
            entry.root = root;
            entry.resync = true;
            entry.tag.owe(Flush::All);
        }
        match c.tlb_control {
            tlb_control::NONE => {}
            tlb_control::THIS_ASID_NON_GLOBAL if by_asid12 => entry.tag.owe(Flush::NonGlobal),
            _ => entry.tag.owe(Flush::All),
        }
        let resync = (entry.resync || c.tlb_control != tlb_control::NONE) && root.is_some();
        self.clock += 1;
        (entry.resync, entry.used) = (false, self.clock);
        Selected { index, resync, flush_01: flush_all }
    }

    /// The one that is there, else a free one, else the one unused for longest.
    fn find(&self, asid12: u32) -> usize {
        let there = self.entries.iter().position(|e| e.asid12 == asid12);
        there.unwrap_or_else(|| (0..N).min_by_key(|&i| self.entries[i].used).unwrap_or(0))
    }

    /// The tag that [`AsidMap::select`] found, by index modulo `N`.
    #[inline]
    pub fn tag(&mut self, index: usize) -> &mut Tag {
        &mut self.entries[index % N].tag
    }

    /// Every ASID of this vCPU owes a full flush.
    pub fn flush_all(&mut self) {
        for entry in &mut self.entries {
            entry.tag.owe(Flush::All);
            entry.resync = true;
        }
    }

    /// L1 executed INVLPGA for `asid12`: the hardware ASID to execute it on now, if translations of that
    /// ASID can be on processor `pcpu`. ASID 0 is L1's own: execute it on vmcb01's. L1's nested tables
    /// are compared at the next entry, as this is how L1 invalidates them page by page.
    pub fn invlpga(&mut self, asid12: u32, pool: &AsidPool, pcpu: u32) -> Option<u32> {
        let entry = self.entries.iter_mut().find(|e| e.asid12 == asid12 && asid12 != 0)?;
        entry.resync = true;
        let here = entry.tag.current(pool, pcpu);
        if here.is_none() {
            // They may wait on the processor that this vCPU left, and be met again there.
            entry.tag.owe(Flush::All);
        }
        here
    }
}
