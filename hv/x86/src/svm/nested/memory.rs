//! L1's and L2's memory, as the nested glue sees it.

use crate::guest::memory::{GuestRam, Tables};
use crate::guest::page::Page;
use crate::svm::run::Run;
use addr::{Frame, Gpa, GuestFault, GuestMemory, GuestPhys, Hpa, Ngpa, page_chunks};
use stage2::shadow::{Env, TableWrite, WriteProtect};
use stage2::walk12::{Access, Marks, Paging12, Root12, walk};
use stage2::{Failed, Perms, TlbDebt};
use vsvm::vmcb12::Checked12;

/// A page of L1's RAM, used as a VMCB by address.
#[derive(Clone, Debug)]
pub struct PinnedVmcb(Page);

impl PinnedVmcb {
    /// Where the processor finds it.
    #[inline(always)]
    pub fn address(&self) -> Hpa {
        self.0.frame().start()
    }
}

const CACHED: usize = 6;

/// Pages that L1 lately gave to VMLOAD and VMSAVE.
#[derive(Debug, Default)]
pub struct PageCache {
    entries: [Option<(u64, PinnedVmcb)>; CACHED],
    next: usize,
    layout: u64,
}

impl PageCache {
    /// The page at `gpa` of `memory`, pinned. `None`: no RAM there.
    #[inline]
    pub fn get(&mut self, memory: &GuestRam, gpa: u64) -> Option<&PinnedVmcb> {
        let layout = memory.layout();
        if self.layout != layout {
            self.layout = layout;
            self.entries = Default::default();
        }
        let known = self.entries.iter().position(|e| matches!(e, Some((at, _)) if *at == gpa));
        let index = match known {
            Some(index) => index,
            None => {
                let page = PinnedVmcb(memory.pin(Gpa::new(gpa).frame()).ok()?);
                let index = self.next % CACHED;
                self.entries[index] = Some((gpa, page));
                self.next = (self.next + 1) % CACHED;
                index
            }
        };
        self.entries[index].as_ref().map(|(_, page)| page)
    }
}

/// The physical memory of the level that runs.
#[derive(Clone, Copy, Debug)]
pub enum GuestView<'a> {
    /// L1's, or an L2's without nested paging.
    L1(&'a GuestRam),
    /// An L2's, behind L1's nested tables.
    L2(&'a GuestRam, Root12),
}

impl GuestView<'_> {
    fn ram(&self) -> &GuestRam {
        match self {
            GuestView::L1(ram) | GuestView::L2(ram, _) => ram,
        }
    }

    /// L1's address of what the running level calls `gpa`. An access that L1's nested tables forbid to L2 is refused,
    /// as what L0 does for L2 may do no more than L2.
    fn to_l1(self, gpa: Gpa, access: Access) -> Result<Gpa, GuestFault> {
        let marks = if access == Access::READ { Marks::Leave } else { Marks::Set };
        match self {
            GuestView::L1(_) => Ok(gpa),
            GuestView::L2(ram, root) => walk(ram, &root, Ngpa::new(gpa.raw()), access, marks)
                .map(|mapped| mapped.gpa)
                .map_err(|_| GuestFault { gpa, reason: addr::FaultReason::NotMapped }),
        }
    }
}

impl GuestMemory for GuestView<'_> {
    type Page = Page;

    fn pin(&self, frame: Frame<GuestPhys>) -> Result<Page, GuestFault> {
        self.ram().pin(self.to_l1(frame.start(), Access::READ)?.frame())
    }
    fn read(&self, gpa: Gpa, out: &mut [u8]) -> Result<(), GuestFault> {
        for (at, from, n) in page_chunks(gpa, out.len()) {
            self.ram().read(self.to_l1(at, Access::READ)?, &mut out[from..from + n])?;
        }
        Ok(())
    }
    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), GuestFault> {
        for (at, from, n) in page_chunks(gpa, data.len()) {
            self.ram().write(self.to_l1(at, Access::WRITE)?, &data[from..from + n])?;
        }
        Ok(())
    }
}

impl Run<'_> {
    /// The physical memory of the level that runs.
    pub fn memory_view(&self) -> GuestView<'_> {
        let ram = &self.vcpu.domain().memory;
        match self.root12() {
            Some(root) => GuestView::L2(ram, root),
            None => GuestView::L1(ram),
        }
    }

    /// Where the walk of L1's nested tables starts, if L2 runs and has them.
    pub fn root12(&self) -> Option<Root12> {
        let nested = self.state.nested.as_ref()?;
        let active = nested.machine.active()?;
        let c12 = nested.machine.slot(active.slot).c12.checked()?;
        c12.np().then(|| self.root_of(c12))
    }

    /// The root that vmcb12 `c12` names, in the regime that L1's registers choose.
    pub(super) fn root_of(&self, c12: &Checked12) -> Root12 {
        let save = &self.state.vmcb01.save;
        let host = crate::guest::arch::host();
        let bits = self.vcpu.domain().arch.phys_bits;
        let paging = Paging12::from_host(save.cr4, save.efer, bits, host.gigabyte_pages);
        Root12::new(c12.control().n_cr3.raw(), paging)
    }
}

/// What the shadow cache of `ram` stands on.
pub(super) fn env(ram: &GuestRam) -> Env<'_, Tables, GuestRam, GuestRam, GuestRam> {
    Env { tables: ram.tables(), l1: ram, p2m: ram, guard: ram }
}

impl WriteProtect for GuestRam {
    fn protect(&self, frame: Frame<GuestPhys>) -> Result<TlbDebt, Failed> {
        self.set_rights(frame, Perms::RX)
    }
    fn unprotect(&self, frame: Frame<GuestPhys>) {
        // More rights leave nothing to flush; a page that is gone stays gone.
        if let Ok(debt) = self.set_rights(frame, Perms::RWX) {
            debug_assert!(debt.is_none(), "raising rights owes nothing");
        }
    }
}

/// A write of L1 to a page that it found read-only: one of its own nested tables? Then it may go on.
pub fn table_write(run: &Run<'_>, gpa: Gpa) -> bool {
    let ram = &run.vcpu.domain().memory;
    ram.shadow().is_some_and(|shadow| shadow.on_table_write(ram, gpa.frame()) != TableWrite::NotATable)
        && ram.translate_now(gpa).is_some_and(|mapping| mapping.perms.contains(Perms::W))
}
