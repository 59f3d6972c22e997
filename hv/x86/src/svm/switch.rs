//! What is switched with the vCPU, and what with the tier.
// UNSAFETY: VMLOAD, VMSAVE and debug registers.
#![allow(unsafe_code)]

use crate::cpu::instr;
use crate::svm::run::Run;
use crate::svm::vcpu::VcpuState;
use crate::svm::{entry, nested};
use vsvm::layout::{Clean, Intercepts};

impl VcpuState {
    /// The vCPU begins to run on this CPU.
    pub fn load(&mut self) {
        self.xstate.load();
        self.load_tsc_aux();
        if self.breakpoints_armed() {
            self.use_debug();
        }
    }

    /// Whether DR7 of a level that may run before DR0 to DR3 are accessed again enables a breakpoint.
    fn breakpoints_armed(&self) -> bool {
        const ENABLES: u64 = 0xff;
        (self.vmcb01.save.dr7 | self.cur().save.dr7) & ENABLES != 0
    }

    /// TSC_AUX is the guest's while it runs: RDTSCP reads it without an exit.
    pub fn load_tsc_aux(&self) {
        if crate::guest::arch::host().rdtscp {
            // SAFETY: CPUID announces RDTSCP; the value has been checked to be 32 bits.
            unsafe { instr::wrmsr(x86::msr::IA32_TSC_AUX, self.msrs.tsc_aux) };
        }
    }

    /// The vCPU ends running on this CPU.
    pub fn put(&mut self) {
        self.xstate.save();
        self.drop_debug();
    }

    /// The vCPU ran on another CPU before: nothing that a CPU may have cached of its VMCBs is true here.
    pub fn leave_pcpu(&mut self) {
        self.vmcb01.control.mark_dirty(Clean::all());
        if let Some(nested) = &mut self.nested {
            nested.leave_pcpu();
        }
    }

    /// The guest uses its debug registers: loads them and stops intercepting until the vCPU is put.
    pub fn use_debug(&mut self) {
        // SAFETY: DR0–DR3 hold breakpoint addresses of the guest; DR7, in the VMCB, arms them in the guest
        // only, as VMRUN and #VMEXIT switch it.
        unsafe {
            instr::write_dr0(self.debug[0]);
            instr::write_dr1(self.debug[1]);
            instr::write_dr2(self.debug[2]);
            instr::write_dr3(self.debug[3]);
        }
        self.debug_live = true;
        self.intercept_debug(0);
    }

    fn drop_debug(&mut self) {
        if !self.debug_live {
            return;
        }
        self.debug = [instr::read_dr0(), instr::read_dr1(), instr::read_dr2(), instr::read_dr3()];
        self.debug_live = false;
        self.intercept_debug(u32::MAX);
    }

    fn intercept_debug(&mut self, word: u32) {
        self.vmcb01.control.intercepts.0[Intercepts::DR] = word;
        self.vmcb01.control.mark_dirty(Clean::I);
        if let Some(nested) = &mut self.nested {
            nested.debug_registers(word == 0);
        }
    }
}

impl Run<'_> {
    /// FS, GS, TR, LDTR and the SYSCALL MSRs become the guest's. They live in vmcb01 also while L2 runs.
    #[inline(always)]
    pub fn load_guest_segments(&mut self) {
        // SAFETY: GIF=0 in the first tier; vmcb01 is RAM of ours.
        unsafe { entry::vmload(self.state.vmcb01.address()) };
    }

    /// The guest's go back to vmcb01, the host's TR comes in.
    #[inline(always)]
    pub fn save_guest_segments(&mut self) {
        // SAFETY: as above; the host's VMCB holds what `enter_cpu` saved.
        unsafe {
            entry::vmsave(self.state.vmcb01.address());
            entry::vmload(self.ctx.host_vmcb);
        }
    }
}

/// Executes L1's VMLOAD or VMSAVE: the state is in the processor, and so is what L1 means.
///
/// `at` is a page of L1's RAM, pinned by the caller. GIF=0 (first tier).
#[inline(always)]
pub fn forward_vmload(at: &nested::PinnedVmcb) {
    // SAFETY: RAM that the caller has pinned; the values L1 wrote there reach only state that Testudo does
    // not use in the first tier and replaces before the second.
    unsafe { entry::vmload(at.address()) };
}

/// See [`forward_vmload`].
#[inline(always)]
pub fn forward_vmsave(at: &nested::PinnedVmcb) {
    // SAFETY: as above; VMSAVE writes only fields of L1's page that it names.
    unsafe { entry::vmsave(at.address()) };
}
