//! A vCPU as its own pCPU sees it: vmcb01, registers, local APIC, software MSRs.

use crate::decode::{CodeSize, Gprs};
use crate::hw::mitigation;
use crate::mm::own::HardwarePage;
use crate::policy::cpuid::VcpuCpuidState;
use crate::policy::mitigation::Guards;
use crate::svm::guarded::SpecCtrl;
use crate::svm::step::Step;
use crate::svm::{Features, fetch::FetchCache, maps, msrs::Msrs, xstate::XState};
use crate::vlapic::{self, Vlapic};
use hv_core::memory::Owner;
use vsvm::layout::{
    Clean, Event, Intercept, Intercepts, Segment, Vmcb, attrib, int_ctl, int_state, misc_ctl, reg,
};

/// What Testudo intercepts in every guest. All else runs in hardware.
///
/// CR4 writes are seen because a reserved bit must be #GP, not an invalid VMCB; #DB and #AC because a
/// guest can make either recur for ever without another exit (CVE-2015-5307, CVE-2015-8104).
pub const INTERCEPTS01: Intercepts = Intercepts::of(&[
    Intercept::cr_write(4),
    Intercept::exception(1),
    Intercept::exception(17),
    Intercept::exception(18),
    Intercept::INTR,
    Intercept::NMI,
    Intercept::INIT,
    Intercept::CPUID,
    Intercept::INVD,
    Intercept::HLT,
    Intercept::INVLPGA,
    Intercept::IOIO,
    Intercept::MSR,
    Intercept::TASK_SWITCH,
    Intercept::SHUTDOWN,
    Intercept::RDPMC,
    Intercept::RSM,
    Intercept::VMRUN,
    Intercept::VMMCALL,
    Intercept::VMLOAD,
    Intercept::VMSAVE,
    Intercept::STGI,
    Intercept::CLGI,
    Intercept::SKINIT,
    Intercept::WBINVD,
    Intercept::MONITOR,
    Intercept::MWAIT,
    Intercept::XSETBV,
    Intercept::RDPRU,
    Intercept::INVLPGB,
    Intercept::INVLPGB_ILLEGAL,
    Intercept::TLBSYNC,
    Intercept::MCOMMIT,
]);

/// What may be changed only by the vCPU's own pCPU while it runs, or by whoever holds its lock.
#[derive(Debug)]
pub struct VcpuState {
    /// The VMCB that runs L1.
    pub vmcb01: HardwarePage<Vmcb>,
    /// The general-purpose registers; RAX and RSP are in the VMCB of the level that runs.
    pub gprs: Gprs,
    /// The local APIC.
    pub lapic: Vlapic,
    /// MSRs kept in software.
    pub msrs: Msrs,
    /// x87, SSE, AVX and so on while the vCPU does not run.
    pub xstate: XState,
    /// DR0–DR3.
    pub debug: [u64; 4],
    /// Whether DR0–DR3 are in the processor.
    pub debug_live: bool,
    /// Waits for a start-up IPI.
    pub wait_for_sipi: bool,
    /// INIT has come and is held by GIF.
    pub init_held: bool,
    /// Whether the local APIC accepted interrupts when last looked at.
    pub was_accepting: bool,
    /// Executed HLT and has not been woken by an event.
    pub halted: bool,
    /// An NMI handler runs: until IRET no other NMI is injected.
    pub nmi_masked: bool,
    /// Nested virtualization, if the domain has it.
    pub nested: Option<alloc::boxed::Box<crate::svm::nested::Nested>>,
    /// Where instructions were fetched lately.
    pub fetch: FetchCache,
    /// The hardware ASID of L1.
    pub tag: vsvm::asid::Tag,
    /// The level that runs is to exit behind its next instruction.
    pub(super) step: Option<Step>,
    /// SPEC_CTRL, where it is not in the VMCB.
    pub spec: SpecCtrl,
}

/// How a vCPU is made.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Account.
    pub owner: Owner,
    /// Local APIC.
    pub lapic: vlapic::Config,
    /// Root of the domain's nested page tables.
    pub n_cr3: addr::Hpa,
    /// Added to the TSC.
    pub tsc_offset: u64,
    /// Whether the hardware has virtual GIF.
    pub vgif: bool,
    /// Nested virtualization.
    pub nested: bool,
}

impl VcpuState {
    /// A vCPU after reset, waiting for INIT and start-up unless it is the boot vCPU. `None`: no memory.
    pub fn new(setup: Setup) -> Option<Self> {
        let mut state = VcpuState {
            vmcb01: HardwarePage::new(setup.owner)?,
            gprs: Gprs::default(),
            lapic: Vlapic::new(setup.lapic),
            msrs: Msrs::default(),
            xstate: XState::new()?,
            debug: [0; 4],
            debug_live: false,
            wait_for_sipi: !setup.lapic.bsp,
            init_held: false,
            was_accepting: false,
            halted: false,
            nmi_masked: false,
            nested: if setup.nested { Some(crate::svm::nested::Nested::new(setup.owner)?) } else { None },
            fetch: FetchCache::default(),
            tag: Default::default(),
            step: None,
            spec: SpecCtrl { guest: 0, host: mitigation::plan().host_spec_ctrl },
        };
        let maps = maps::shared();
        let control = &mut state.vmcb01.control;
        control.intercepts = INTERCEPTS01;
        control.intercepts.0[Intercepts::DR] = 0xffff_ffff;
        control.iopm_base_pa = maps.iopm.raw();
        control.msrpm_base_pa = maps.msrpm.raw();
        control.tsc_offset = setup.tsc_offset;
        control.int_ctl = int_ctl::V_INTR_MASKING;
        if setup.nested && setup.vgif {
            control.int_ctl |= int_ctl::V_GIF | int_ctl::V_GIF_ENABLE;
        }
        control.misc_ctl = misc_ctl::NP_ENABLE;
        control.n_cr3 = setup.n_cr3.raw();
        state.reset_registers();
        state.set_svme(false);
        Some(state)
    }

    /// EFER.SVME as the guest sees it; the hardware's is always set. Without it the instructions of SVM are
    /// #UD: STGI and CLGI, which run in the processor where it keeps L1's GIF, must exit then, and so must the
    /// #GP that the processor raises for each of them in user mode. One that checks addresses against its own before
    /// intercepts raises #GP instead of an exit, whatever the mode.
    pub fn set_svme(&mut self, on: bool) {
        self.msrs.svme = on;
        if self.nested.is_none() {
            return;
        }
        let in_hardware = self.vmcb01.control.int_ctl & int_ctl::V_GIF_ENABLE != 0;
        self.watch(Intercept::STGI, !(on && in_hardware));
        self.watch(Intercept::CLGI, !(on && in_hardware));
        let address_first = !crate::guest::arch::host().svm.has(Features::SVME_ADDRESS_CHECK);
        self.watch(Intercept::exception(13), !on || address_first);
    }

    /// The registers after INIT (APM vol. 2, "Initial Processor State").
    pub fn reset_registers(&mut self) {
        let data = Segment { selector: 0, attrib: 0x93, limit: 0xffff, base: 0 };
        let save = &mut self.vmcb01.save;
        save.es = data;
        save.ss = data;
        save.ds = data;
        save.fs = data;
        save.gs = data;
        save.cs = Segment { selector: 0xf000, attrib: 0x9b, limit: 0xffff, base: 0xffff_0000 };
        save.gdtr = Segment { limit: 0xffff, ..Segment::default() };
        save.idtr = save.gdtr;
        save.ldtr = Segment { attrib: 0x82, limit: 0xffff, ..Segment::default() };
        save.tr = Segment { attrib: 0x8b, limit: 0xffff, ..Segment::default() };
        save.cpl = 0;
        save.efer = reg::EFER_SVME;
        save.cr0 = 0x6000_0010;
        save.cr2 = 0;
        save.cr3 = 0;
        save.cr4 = 0;
        save.dr6 = 0xffff_0ff0;
        save.dr7 = 0x400;
        save.rflags = 2;
        save.rip = 0xfff0;
        save.rsp = 0;
        save.rax = 0;
        save.g_pat = crate::cpu::msr::PAT_RESET;
        save.spec_ctrl = 0;
        self.spec.guest = 0;
        self.gprs = Gprs::default();
        // Family, model, stepping: what a BIOS finds in EDX.
        self.gprs.regs[Gprs::RDX] = crate::cpu::instr::cpuid(1, 0)[0].into();
        self.vmcb01.control.event_inj = 0;
        self.vmcb01.control.int_state = 0;
        self.vmcb01.control.mark_dirty(Clean::all());
        self.nmi_masked = false;
        self.debug = [0; 4];
    }

    /// The state in which a PVH kernel starts: 32-bit protected mode, flat segments, paging off, EBX at the
    /// start info (Xen public header `arch-x86/hvm/start_info.h`).
    pub fn set_pvh_entry(&mut self, entry: u32, start_info: u32) {
        let data = Segment { selector: 0, attrib: 0xc93, limit: u32::MAX, base: 0 };
        let save = &mut self.vmcb01.save;
        save.cs = Segment { attrib: 0xc9b, ..data };
        (save.ds, save.es, save.ss, save.fs, save.gs) = (data, data, data, data, data);
        save.tr = Segment { attrib: 0x8b, limit: 0x67, ..Segment::default() };
        save.cr0 = 0x11;
        save.rip = entry.into();
        self.gprs.regs[Gprs::RBX] = start_info.into();
        self.wait_for_sipi = false;
    }

    /// The state after a start-up IPI: real mode at `page` * 4 KiB.
    pub fn set_startup(&mut self, page: u8) {
        let save = &mut self.vmcb01.save;
        save.cs.selector = u16::from(page) << 8;
        save.cs.base = u64::from(page) << 12;
        save.rip = 0;
        self.wait_for_sipi = false;
    }

    /// The VMCB of the level that runs: vmcb01, or the active vmcb02.
    #[inline(always)]
    pub fn cur(&self) -> &Vmcb {
        match &self.nested {
            Some(nested) if nested.machine.active().is_some() => nested.active_vmcb(),
            _ => &self.vmcb01,
        }
    }

    /// See [`VcpuState::cur`].
    #[inline(always)]
    pub fn cur_mut(&mut self) -> &mut Vmcb {
        match &mut self.nested {
            Some(nested) if nested.machine.active().is_some() => nested.active_vmcb_mut(),
            _ => &mut self.vmcb01,
        }
    }

    /// SPEC_CTRL as L1 and its guests share it.
    pub fn spec_ctrl(&mut self, guards: Guards) -> &mut u64 {
        // Copied to vmcb02 at its entries, and back at its exits.
        if guards.has(Guards::IN_VMCB) { &mut self.vmcb01.save.spec_ctrl } else { &mut self.spec.guest }
    }

    /// Code size of the present code segment.
    #[inline]
    pub fn code_size(vmcb: &Vmcb) -> CodeSize {
        let cs = vmcb.save.cs.attrib;
        let real = vmcb.save.cr0 & reg::CR0_PE == 0 || vmcb.save.rflags & reg::RFLAGS_VM != 0;
        let d = !real && cs & attrib::D != 0;
        CodeSize::of(vmcb.save.efer & reg::EFER_LMA != 0, cs & attrib::L != 0, d)
    }

    /// Queues an exception for the level that runs, with the manual's rules for two at a time. One of L2's that
    /// L1 intercepts becomes an exit instead, once the present exit has been handled.
    pub fn inject_exception(&mut self, vector: u8, error: Option<u32>) {
        let control = &mut self.cur_mut().control;
        let event = super::inject::combine(Event(control.event_inj), vector, error);
        if let Some(nested) = &mut self.nested
            && nested.raise(event)
        {
            return;
        }
        self.cur_mut().control.event_inj = event.0;
    }

    /// #PF at `address` for the level that runs.
    pub fn inject_page_fault(&mut self, address: u64, error: u32) {
        self.inject_exception(14, Some(error));
        if let Some(nested) = &mut self.nested
            && nested.raised_at(address)
        {
            return;
        }
        let vmcb = self.cur_mut();
        vmcb.save.cr2 = address;
        vmcb.control.mark_dirty(Clean::CR2);
    }

    /// #GP(0) for the level that runs.
    pub fn inject_gp(&mut self) {
        self.inject_exception(13, Some(0));
    }

    /// #UD for the level that runs.
    pub fn inject_ud(&mut self) {
        self.inject_exception(6, None);
    }

    /// Moves the level that runs behind an instruction of `len` bytes: shadows end, single-stepping traps.
    #[inline]
    pub fn advance(&mut self, len: u8) {
        let vmcb = self.cur_mut();
        let size = Self::code_size(vmcb);
        vmcb.save.rip = size.advance(vmcb.save.rip, len);
        vmcb.control.int_state &= !int_state::INTERRUPT_SHADOW;
        if vmcb.save.rflags & (1 << 8) != 0 {
            vmcb.save.dr6 |= 1 << 14;
            vmcb.control.mark_dirty(Clean::DRX);
            self.inject_exception(1, None);
        }
    }

    /// What of CPUID follows the guest's own state.
    #[inline]
    pub fn cpuid_state(&self) -> VcpuCpuidState {
        VcpuCpuidState {
            xcr0: self.xstate.xcr0,
            xss: 0,
            cr4: self.cur().save.cr4,
            apic_id: self.lapic.config().id,
            vcpu_id: self.lapic.config().id / 2,
            apic_enabled: self.lapic.mode() != vlapic::Mode::Disabled,
        }
    }

    /// Whether an event would wake L1 from HLT.
    pub fn has_interrupt(&self) -> bool {
        let event = Event(self.vmcb01.control.event_inj).is_valid();
        let open = self.vmcb01.save.rflags & reg::RFLAGS_IF != 0 && self.gif();
        event || self.lapic.nmi_pending() && self.gif() || open && self.lapic.highest_pending().is_some()
    }
}
