//! The glue of nested SVM: the machine of `vsvm` on real hardware.
//!
//! Decisions are made by `vsvm` and `stage2`; here are the pages, the tables and the instructions. The first
//! tier ([`fast_l1`], [`fast_l2`]) does the common round trip without leaving GIF=0; what may have to wait
//! for other CPUs (new roots, flushes of L1's tables, faults) is done in [`prepare_l2`] and [`handle_l2`].
// UNSAFETY: builds the state of a vCPU in its place.
#![allow(unsafe_code)]

mod assist;
mod enter;
mod exit;
mod insn;
mod memory;

pub use enter::{enter_l2, prepare_l2, wakes_l2};
pub use exit::{fast_l2, handle_l2, shutdown};
pub use insn::{fast_gp, fast_l1, instruction, rdmsr, wrmsr};
pub use memory::{GuestView, PinnedVmcb, table_write};

use crate::guest::memory::GuestRam;
use crate::guest::page::Page;
use crate::mm::own::HardwarePage;
use addr::GuestMemory;
use alloc::boxed::Box;
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
    /// Gives the root back, if there is one: the next VMRUN acquires its own.
    fn release_root(&mut self, memory: &GuestRam) {
        if let Some((root, shadow)) = self.root.take().zip(memory.shadow()) {
            shadow.release_root(root);
        }
    }

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
    /// A vCPU after reset. `None`: no memory. Written field by field where it stays, as a CPU's stack is small and
    /// moves are copies where nothing is optimised.
    pub fn new(owner: Owner) -> Option<Box<Self>> {
        let slots = [Slot::new(owner)?, Slot::new(owner)?, Slot::new(owner)?, Slot::new(owner)?];
        let mut place = Box::<Self>::new_uninit();
        let at = place.as_mut_ptr();
        // SAFETY: `at` is the box's own memory, and every field is written once; the pattern below names them all.
        unsafe {
            (&raw mut (*at).machine).write(vsvm::state::Nested::new());
            (&raw mut (*at).slots).write(slots);
            (&raw mut (*at).asids).write(AsidMap::new());
            (&raw mut (*at).tag).write(0);
            (&raw mut (*at).tag_roots).write([(0, 0); 8]);
            (&raw mut (*at).todo).write(Todo::default());
            (&raw mut (*at).exit).write(Exit::default());
            (&raw mut (*at).kick_after_entry).write(false);
            (&raw mut (*at).raised).write(None);
            (&raw mut (*at).pages).write(memory::PageCache::default());
            let place = place.assume_init();
            let Nested {
                machine: _,
                slots: _,
                asids: _,
                tag: _,
                tag_roots: _,
                todo: _,
                exit: _,
                kick_after_entry: _,
                raised: _,
                pages: _,
            } = &*place;
            Some(place)
        }
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

    /// Forgets every L2 that is not running, and gives back what was kept for the next VMRUN: roots, pins. L1 has
    /// turned SVM off, or its vCPU is reset. May wait for the lock of the shadow cache: second tier.
    pub fn forget_all(&mut self, memory: &GuestRam) {
        self.machine.forget_all();
        self.pages = memory::PageCache::default();
        let active = self.machine.active().map(|active| active.slot);
        for index in (0..SLOTS).filter(|&index| Some(index) != active) {
            let slot = &mut self.slots[index];
            (slot.page, slot.msrpm12) = (None, None);
            slot.release_root(memory);
        }
    }

    /// Gives back the roots of every L2 but `kept`: their tables may be taken for other things.
    fn release_roots_but(&mut self, kept: usize, memory: &GuestRam) {
        for index in (0..SLOTS).filter(|&index| index != kept) {
            self.slots[index].release_root(memory);
        }
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
