//! The glue of nested SVM: the machine of `vsvm` on real hardware.
//!
//! Decisions are made by `vsvm` and `stage2`; here are the pages, the tables and the instructions. The first
//! tier ([`fast_l1`], [`fast_l2`]) does the common round trip without leaving GIF=0; what may have to wait
//! for other CPUs (new roots, flushes of L1's tables, faults) is done in [`prepare_l2`] and [`handle_l2`].

mod assist;
mod enter;
mod exit;
mod insn;
mod memory;

pub use enter::{enter_l2, prepare_l2, wakes_l2};
pub use exit::{fast_l2, handle_l2};
pub use insn::{fast_l1, instruction, rdmsr, wrmsr};
pub use memory::{GuestView, PinnedVmcb, table_write};

use crate::guest::memory::GuestRam;
use crate::guest::page::Page;
use crate::mm::own::HardwarePage;
use addr::GuestMemory;
use hv_core::memory::Owner;
use stage2::shadow::RootRef;
use vsvm::asid::AsidMap;
use vsvm::caps::{Caps, Features};
use vsvm::layout::{Clean, Event, Intercept, Intercepts, Vmcb};
use vsvm::perm::MSRPM_WORDS;
use vsvm::route::Exit;

/// Hot vmcb02 of a vCPU.
pub const SLOTS: usize = 4;

/// Constants of a domain with nested virtualization.
#[derive(Debug)]
pub struct DomainNested {
    /// What L1 may use.
    pub caps: Caps,
}

/// What belongs to one vmcb02 beyond the pure state.
#[derive(Debug)]
struct Slot {
    vmcb02: HardwarePage<Vmcb>,
    msrpm: HardwarePage<[u64; MSRPM_WORDS]>,
    /// The page of vmcb12, and the layout it was pinned under.
    page: Option<(Page, u64)>,
    /// Pages of L1's MSR permission map, likewise.
    msrpm12: Option<(addr::Gpa, u64, [Option<Page>; 2])>,
    root: Option<RootRef>,
}

/// Nested SVM of one vCPU.
#[derive(Debug)]
pub struct Nested {
    /// The pure state.
    pub machine: vsvm::state::Nested<SLOTS>,
    slots: [Slot; SLOTS],
    asids: AsidMap<8>,
    /// Index of the active L2's tag.
    tag: usize,
    /// For each tag: root and its generation, as of the last entry.
    tag_roots: [(u64, u64); 8],
    /// What VMRUN left to be done where other CPUs can be waited for.
    todo: Todo,
    /// The exit being handled.
    exit: Exit,
    /// Leave L2 right after its entry.
    kick_after_entry: bool,
    /// An exception that L0 has raised for L2 and L1 intercepts, and the address of a page fault.
    raised: Option<(Event, u64)>,
    /// Pages of VMLOAD and VMSAVE.
    pages: memory::PageCache,
}

#[derive(Clone, Copy, Debug, Default)]
struct Todo {
    root: bool,
    resync: bool,
}

impl Slot {
    fn new(owner: Owner) -> Option<Self> {
        Some(Slot {
            vmcb02: HardwarePage::new(owner)?,
            msrpm: HardwarePage::new(owner)?,
            page: None,
            msrpm12: None,
            root: None,
        })
    }
}

impl Slot {
    /// The page of the vmcb12 at `gpa`, which this slot serves. Whether it is another one than before; `None`: no
    /// RAM there.
    #[inline]
    fn pin(&mut self, memory: &GuestRam, gpa: addr::Gpa) -> Option<bool> {
        let generation = memory.layout();
        let old = match &self.page {
            Some((_, at)) if *at == generation => return Some(false),
            old => old.as_ref().map(|(page, _)| page.frame()),
        };
        let page = memory.pin(gpa.frame()).ok()?;
        let moved = old != Some(page.frame());
        self.page = Some((page, generation));
        Some(moved)
    }
}

impl Nested {
    /// A vCPU after reset. `None`: no memory.
    pub fn new(owner: Owner) -> Option<Self> {
        Some(Nested {
            machine: vsvm::state::Nested::new(),
            slots: [Slot::new(owner)?, Slot::new(owner)?, Slot::new(owner)?, Slot::new(owner)?],
            asids: AsidMap::new(),
            tag: 0,
            tag_roots: [(0, 0); 8],
            todo: Todo::default(),
            exit: Exit::default(),
            kick_after_entry: false,
            raised: None,
            pages: memory::PageCache::default(),
        })
    }

    /// The vmcb02 that runs. Only while there is one; else the first.
    #[inline(always)]
    pub fn active_vmcb(&self) -> &Vmcb {
        &self.slots[self.active_slot()].vmcb02
    }

    /// See [`Nested::active_vmcb`].
    #[inline(always)]
    pub fn active_vmcb_mut(&mut self) -> &mut Vmcb {
        let slot = self.active_slot();
        &mut self.slots[slot].vmcb02
    }

    #[inline(always)]
    fn active_slot(&self) -> usize {
        self.machine.active().map_or(0, |active| active.slot) % SLOTS
    }

    /// The vCPU ran on another CPU before.
    pub fn leave_pcpu(&mut self) {
        for slot in &mut self.slots {
            slot.vmcb02.control.mark_dirty(Clean::all());
        }
    }

    /// L2's address space owes a flush.
    pub fn owe_flush(&mut self, flush: vsvm::asid::Flush) {
        self.asids.tag(self.tag).owe(flush);
    }

    /// L2's IRET ends the handling of an NMI: exit on it, or only if L1 wants that.
    fn watch_iret(&mut self, on: bool) {
        let Some(active) = self.machine.active() else { return };
        let theirs = self.machine.slot(active.slot).c12.checked();
        let wanted = on || theirs.is_some_and(|c12| c12.control().intercepts.has(Intercept::IRET));
        let control = &mut self.slots[active.slot % SLOTS].vmcb02.control;
        if control.intercepts.has(Intercept::IRET) != wanted {
            if wanted {
                control.intercepts.set(Intercept::IRET);
            } else {
                control.intercepts.clear(Intercept::IRET);
            }
            control.mark_dirty(Clean::I);
        }
    }

    /// Whether an L2 runs that has a PAT of its own, as it has nested paging.
    pub fn has_own_pat(&self) -> bool {
        let active = self.machine.active();
        let c12 = active.and_then(|active| self.machine.slot(active.slot).c12.checked());
        c12.is_some_and(|c12| c12.np())
    }

    /// L0 raises `event` for L2. Whether L1 gets an exit of it is decided when the exit has been handled.
    pub fn raise(&mut self, event: Event) -> bool {
        let Some(active) = self.machine.active() else { return false };
        let intercept = Intercept::exception(event.vector());
        let c12 = self.machine.slot(active.slot).c12.checked();
        let wanted = c12.is_some_and(|c12| c12.control().intercepts.has(intercept));
        if wanted {
            self.raised = Some((event, 0));
        }
        wanted
    }

    /// The page fault just raised for L2 was at `address`. Whether L1 gets an exit of it.
    pub fn raised_at(&mut self, address: u64) -> bool {
        match &mut self.raised {
            Some((_, at)) => {
                *at = address;
                true
            }
            None => false,
        }
    }

    /// DR0 to DR3 are in the processor from now on, or are not: the active vmcb02 intercepts what L1 wants, or
    /// everything.
    pub fn debug_registers(&mut self, live: bool) {
        let Some(active) = self.machine.active() else { return };
        let theirs = self.machine.slot(active.slot).c12.checked().map(|c12| c12.control().intercepts);
        let control = &mut self.slots[active.slot % SLOTS].vmcb02.control;
        let word = match theirs {
            Some(theirs) if live => theirs.0[Intercepts::DR],
            _ => u32::MAX,
        };
        control.intercepts.0[Intercepts::DR] = word;
        control.mark_dirty(Clean::I);
    }

    /// The roots in use, to be given back when the vCPU ends.
    pub fn take_roots(&mut self) -> impl Iterator<Item = RootRef> + '_ {
        self.slots.iter_mut().filter_map(|slot| slot.root.take())
    }
}

/// What a domain's L1 is offered: what the processor has, and what software can give it.
pub fn caps(hardware: Features, maxphyaddr: u8, cr4_allowed: u64, efer_allowed: u64, invpcid: bool) -> Caps {
    // Not composed by this glue: the SVM key, and a TSC ratio of L2's own.
    let none = Features::SVML | Features::TSC_RATE;
    // Decode assists in software cost a fetch through three translations at each reflected fault, more than
    // they save L1, which fetches through one: offered only where the processor has them.
    let software =
        if hardware.contains(Features::DECODE_ASSISTS) { none } else { none | Features::DECODE_ASSISTS };
    let features = Features::offer(hardware, true) - software;
    Caps { features, asids: 64, maxphyaddr, cr4_allowed, efer_allowed, invpcid, rdpru: false }
}
