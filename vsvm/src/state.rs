//! The nested state of one vCPU, and which of its few vmcb02 serves which vmcb12.

use crate::msr::Msrs;
use crate::perm::MergedMap;
use crate::vmcb12::Cached12;
use addr::Gpa;

/// What belongs to one vmcb02: the copy of its vmcb12 and what its maps were merged from.
#[derive(Clone, Debug, Default)]
pub struct Slot {
    /// The copy.
    pub c12: Cached12,
    /// The merged MSR permission map.
    pub msrpm: MergedMap,
    /// The merged I/O permission map.
    pub iopm: MergedMap,
    /// When it was used last; 0: it serves nobody.
    used: u64,
    /// To be forgotten as soon as its L2 is left.
    doomed: bool,
}

/// L2 is running (or about to).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Active {
    /// Which vmcb02.
    pub slot: usize,
    /// Where L1 goes on after the #VMEXIT: behind the VMRUN.
    pub resume_rip: u64,
    /// VMRUN was accepted, but L2 has not really been entered: no exit may be made up yet.
    pub run_pending: bool,
}

/// A slot for a vmcb12.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    /// Index of the vmcb02.
    pub slot: usize,
    /// It served this vmcb12 last: clean bits may be trusted. If not, vmcb02's own clean bits must be set to
    /// 0 before the merge.
    pub hit: bool,
}

/// Nested SVM of one vCPU with `N` hot vmcb02. Owned by that vCPU alone; others only bump generations.
#[derive(Clone, Debug)]
pub struct Nested<const N: usize = 4> {
    /// L1's global interrupt flag.
    pub gif: bool,
    /// L1's SVM MSRs.
    pub msrs: Msrs,
    slots: [Slot; N],
    clock: u64,
    active: Option<Active>,
}

impl<const N: usize> Default for Nested<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Nested<N> {
    const SOME: () = assert!(N > 0);

    /// A vCPU after reset: GIF 1, L1 running.
    pub fn new() -> Self {
        let () = Self::SOME;
        Self {
            gif: true,
            msrs: Msrs::default(),
            slots: core::array::from_fn(|_| Slot::default()),
            clock: 0,
            active: None,
        }
    }

    /// Chooses the vmcb02 for the vmcb12 at `gpa`: the one it had, or the one unused for longest.
    #[inline]
    pub fn pick(&mut self, gpa: Gpa) -> Pick {
        self.clock += 1;
        let hit = self.slots.iter().position(|s| s.used != 0 && !s.doomed && s.c12.gpa() == gpa);
        let oldest = || (0..N).min_by_key(|&i| self.slots[i].used).unwrap_or(0);
        let slot = hit.unwrap_or_else(oldest);
        let entry = &mut self.slots[slot];
        if hit.is_none() {
            *entry = Slot { c12: Cached12::new(gpa), ..Slot::default() };
        }
        entry.used = self.clock;
        Pick { slot, hit: hit.is_some() }
    }

    /// The slot `index`, modulo `N`.
    #[inline]
    pub fn slot(&self, index: usize) -> &Slot {
        &self.slots[index % N]
    }

    /// The slot `index`, modulo `N`.
    #[inline]
    pub fn slot_mut(&mut self, index: usize) -> &mut Slot {
        &mut self.slots[index % N]
    }

    /// The memory behind the vmcb12 at `gpa` was replaced: nothing copied from it may be trusted at the
    /// next VMRUN. A running L2 keeps its copy, which is its truth until it exits.
    pub fn forget(&mut self, gpa: Gpa) {
        self.forget_if(|slot| slot.c12.gpa() == gpa);
    }

    /// Forgets every vmcb12, as [`Nested::forget`]: L1 turned SVM off, or its memory was restored.
    pub fn forget_all(&mut self) {
        self.forget_if(|_| true);
    }

    fn forget_if(&mut self, which: impl Fn(&Slot) -> bool) {
        let active = self.active.map(|a| a.slot);
        for (index, slot) in self.slots.iter_mut().enumerate().filter(|(_, slot)| which(slot)) {
            if Some(index) == active {
                slot.doomed = true;
            } else {
                *slot = Slot::default();
            }
        }
    }

    /// L2, if it is running.
    #[inline]
    pub fn active(&self) -> Option<Active> {
        self.active
    }

    /// VMRUN was accepted and vmcb02 `slot` merged. VMRUN sets GIF.
    #[inline]
    pub fn enter(&mut self, slot: usize, resume_rip: u64) {
        self.active = Some(Active { slot: slot % N, resume_rip, run_pending: true });
        self.gif = true;
    }

    /// L2 was really entered and has exited.
    #[inline]
    pub fn has_run(&mut self) {
        if let Some(active) = &mut self.active {
            active.run_pending = false;
        }
    }

    /// L2 is left by a #VMEXIT, which clears GIF. Returns what was running. For a refused VMRUN, which
    /// never became active, it clears GIF just the same.
    #[inline]
    pub fn leave(&mut self) -> Option<Active> {
        self.gif = false;
        self.active.take()
    }

    /// INIT or reset of the vCPU: L2 is gone, GIF is 1. INIT keeps the MSRs, reset does not: set `msrs`.
    pub fn init(&mut self) {
        let msrs = self.msrs;
        *self = Self { msrs, ..Self::new() };
    }
}
