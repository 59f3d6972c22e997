//! Registers and memory of the level that runs, for whoever emulates on its behalf.

use crate::decode::{CodeSize, Gpr, Gprs};
use crate::guest::arch::{self, X86};
use crate::policy::paging::{self, Access, Privilege, WalkError};
use crate::svm::exit::fetch;
use crate::svm::run::Run;
use crate::svm::vcpu::VcpuState;
use crate::vlapic::{self, Deadline, Effect, VlapicShared, resolve};
use addr::Gva;
use hv_core::hypercall::Width;
use hv_core::time::TimerKind;
use hv_core::vcpu::{Pending, Vcpu, VcpuId};

impl Run<'_> {
    /// A general-purpose register.
    #[inline]
    pub fn gpr(&self, gpr: Gpr) -> u64 {
        match gpr.index() {
            Gprs::RAX => self.state.cur().save.rax,
            Gprs::RSP => self.state.cur().save.rsp,
            index => self.state.gprs.regs[index],
        }
    }

    /// Sets all 64 bits of a general-purpose register.
    #[inline]
    pub fn set_gpr(&mut self, gpr: Gpr, value: u64) {
        match gpr.index() {
            Gprs::RAX => self.state.cur_mut().save.rax = value,
            Gprs::RSP => self.state.cur_mut().save.rsp = value,
            index => self.state.gprs.regs[index] = value,
        }
    }

    /// EDX:EAX.
    #[inline]
    pub fn edx_eax(&self) -> u64 {
        self.state.gprs.regs[Gprs::RDX] << 32 | self.state.cur().save.rax & 0xffff_ffff
    }

    /// Sets EDX:EAX.
    #[inline]
    pub fn set_edx_eax(&mut self, value: u64) {
        self.state.cur_mut().save.rax = value & 0xffff_ffff;
        self.state.gprs.regs[Gprs::RDX] = value >> 32;
    }

    /// RAX and RSP into the register file, for an executor that works on it.
    pub fn sync_gprs_in(&mut self) {
        self.state.gprs.regs[Gprs::RAX] = self.state.cur().save.rax;
        self.state.gprs.regs[Gprs::RSP] = self.state.cur().save.rsp;
    }

    /// And back.
    pub fn sync_gprs_out(&mut self) {
        let (rax, rsp) = (self.state.gprs.regs[Gprs::RAX], self.state.gprs.regs[Gprs::RSP]);
        let save = &mut self.state.cur_mut().save;
        (save.rax, save.rsp) = (rax, rsp);
    }

    /// Width of L1's present mode, as hypercalls see it.
    pub fn width(&self) -> Width {
        match VcpuState::code_size(&self.state.vmcb01) {
            CodeSize::Bits64 => Width::Bits64,
            _ => Width::Bits32,
        }
    }

    /// Reads L1's memory by linear address with supervisor rights, also while L2 runs.
    pub fn read_l1(&self, gva: Gva, out: &mut [u8]) -> Result<(), WalkError> {
        let domain = self.vcpu.domain();
        let paging = fetch::paging_of(&self.state.vmcb01, domain.arch.phys_bits);
        paging::copy_in(&paging, &domain.memory, gva, out, Access::Read, Privilege::Supervisor)
    }

    /// Writes L1's memory by linear address with supervisor rights, also while L2 runs.
    pub fn write_l1(&self, gva: Gva, data: &[u8]) -> Result<(), WalkError> {
        let domain = self.vcpu.domain();
        let paging = fetch::paging_of(&self.state.vmcb01, domain.arch.phys_bits);
        paging::copy_out(&paging, &domain.memory, gva, data, Privilege::Supervisor)
    }

    /// Reads the running level's memory for an instruction of its own: a fault is injected. `None`: faulted.
    pub fn copy_from_guest(&mut self, gva: Gva, out: &mut [u8], for_write: bool) -> Option<()> {
        let access = if for_write { Access::Write } else { Access::Read };
        let result = self.with_guest(|paging, memory, privilege| {
            paging::copy_in(paging, memory, gva, out, access, privilege)
        });
        self.raise(result)
    }

    /// Writes the running level's memory for an instruction of its own: a fault is injected. `None`: faulted.
    pub fn copy_to_guest(&mut self, gva: Gva, data: &[u8]) -> Option<()> {
        let result = self
            .with_guest(|paging, memory, privilege| paging::copy_out(paging, memory, gva, data, privilege));
        self.raise(result)
    }

    fn with_guest<R>(&self, f: impl FnOnce(&paging::PagingState, &arch::GuestView<'_>, Privilege) -> R) -> R {
        let vmcb = self.state.cur();
        let view = self.memory_view();
        f(&fetch::paging_of(vmcb, self.vcpu.domain().arch.phys_bits), &view, fetch::privilege_of(vmcb))
    }

    fn raise(&mut self, result: Result<(), WalkError>) -> Option<()> {
        match result {
            Ok(()) => Some(()),
            Err(WalkError::PageFault(fault)) => {
                self.state.inject_page_fault(fault.gva.raw(), fault.error_code);
                None
            }
            Err(WalkError::NotCanonical(_) | WalkError::Memory(_)) => {
                self.state.inject_gp();
                None
            }
            // The guest's tables were changing: the instruction runs again.
            Err(WalkError::Unstable) => None,
        }
    }

    /// The running level's address space owes a flush.
    pub fn owe_flush(&mut self, flush: vsvm::asid::Flush) {
        match &mut self.state.nested {
            Some(nested) if nested.machine.active().is_some() => nested.owe_flush(flush),
            _ => self.state.tag.owe(flush),
        }
    }

    /// Carries out what a write to the local APIC asks of the outside.
    pub fn apply_lapic(&mut self, effect: Effect) {
        match effect {
            Effect::None | Effect::Eoi(_) => {}
            Effect::Ipi(ipi) => self.send_ipi(&ipi),
            Effect::TimerChanged => self.rearm_lapic_timer(),
            Effect::BaseChanged => {
                let _ = self.state.lapic.sync(&self.vcpu.shared.lapic);
                self.rearm_lapic_timer();
            }
        }
    }

    fn send_ipi(&mut self, ipi: &vlapic::Ipi) {
        let domain = self.vcpu.domain();
        let count = domain.config().vcpus;
        let addresses = (0..count).map(|n| match domain.vcpu(VcpuId(n)) {
            Some(vcpu) => vcpu.shared.lapic.addressing(),
            None => VlapicShared::new(u32::MAX - 1).addressing(),
        });
        resolve(ipi, Some(self.vcpu.id().index()), addresses, |index| {
            if let Some(target) = domain.vcpu(VcpuId(index as u32)) {
                deliver(&target, ipi);
            }
        });
    }

    /// The timer of the local APIC ran out, or was changed.
    pub fn expire_lapic_timer(&mut self) {
        let time = arch::guest_time(self.state);
        self.state.lapic.expire(&time);
        self.rearm_lapic_timer();
    }

    /// Sets the vCPU's timer to when the local APIC must be looked at next.
    pub fn rearm_lapic_timer(&mut self) {
        let deadline = self.state.lapic.next_deadline().map(|deadline| match deadline {
            Deadline::Ns(ns) => ns,
            Deadline::Tsc(tsc) => {
                let host = tsc.wrapping_sub(self.state.vmcb01.control.tsc_offset);
                crate::time::tsc_to_ns(host.saturating_sub(crate::time::tsc_base()))
            }
        });
        self.vcpu.set_timer(TimerKind::Arch, deadline);
    }
}

/// Gives `target` a message, starts it or wakes it.
fn deliver(target: &alloc::sync::Arc<Vcpu<X86>>, ipi: &vlapic::Ipi) {
    let kick = target.shared.lapic.deliver(ipi);
    // Also where an INIT that has not been taken yet keeps the target from being told anew.
    if ipi.mode == vlapic::DeliveryMode::Startup {
        target.bring_up();
    }
    if kick {
        target.post(Pending::EVENT);
    }
}
