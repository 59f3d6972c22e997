//! The SVM back end.
// UNSAFETY: SVM instructions and MSRs.
#![allow(unsafe_code)]

mod access;
pub mod entry;
pub mod exit;
pub mod fetch;
pub mod guarded;
mod inject;
pub mod maps;
pub mod msrs;
pub mod nested;
pub mod run;
mod step;
mod switch;
pub mod vcpu;
pub mod xstate;

use crate::cpu::{instr, msr, percpu};
use crate::mm::frames;
use core::sync::atomic::{AtomicBool, Ordering};
use hv_core::memory::Zone;

/// Why this machine cannot run guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// No SVM.
    NoSvm,
    /// SVM is switched off and locked by the firmware.
    Locked,
    /// No nested paging.
    NoNestedPaging,
}

impl core::fmt::Display for Unfit {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Unfit::NoSvm => "this CPU has no AMD-V (SVM): Testudo needs a CPU with AMD-V and nested paging; under QEMU use `-cpu max` or an EPYC model",
            Unfit::Locked => "AMD-V (SVM) is disabled by the firmware: enable \"SVM\" or \"AMD-V\" in its setup",
            Unfit::NoNestedPaging => "this CPU has AMD-V without nested paging (NPT), which Testudo needs",
        })
    }
}

/// What this CPU's SVM can do: CPUID 8000_000Ah.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// Revision.
    pub revision: u8,
    /// Number of address-space ids.
    pub asids: u32,
    /// EDX as it stands.
    pub edx: u32,
}

impl Features {
    /// Bit of nested paging.
    pub const NPT: u32 = 1 << 0;
    /// Bit of next-RIP save.
    pub const NRIPS: u32 = 1 << 3;
    /// Bit of VMCB clean bits.
    pub const VMCB_CLEAN: u32 = 1 << 5;
    /// Bit of flush by ASID.
    pub const FLUSH_BY_ASID: u32 = 1 << 6;
    /// Bit of decode assists.
    pub const DECODE_ASSISTS: u32 = 1 << 7;
    /// Bit of virtual GIF.
    pub const VGIF: u32 = 1 << 16;
    /// Bit of "VMRUN, VMLOAD and VMSAVE are intercepted before an address that the processor keeps for itself is #GP".
    pub const SVME_ADDRESS_CHECK: u32 = 1 << 28;

    /// Whether all bits of `mask` are there.
    pub const fn has(&self, mask: u32) -> bool {
        self.edx & mask == mask
    }
}

static EMULATED: AtomicBool = AtomicBool::new(false);

/// Whether the processor is QEMU's emulation, which takes some rules of the manual lightly.
#[inline]
pub fn is_emulated() -> bool {
    EMULATED.load(Ordering::Relaxed)
}

fn look_for_emulation() {
    let hypervisor = instr::cpuid(1, 0)[2] & (1 << 31) != 0;
    let name = if hypervisor { instr::cpuid(0x4000_0000, 0) } else { [0; 4] };
    let letters = |word: &[u8; 4]| u32::from_le_bytes(*word);
    let tcg = [letters(b"TCGT"), letters(b"CGTC"), letters(b"GTCG")];
    EMULATED.store(name[1..] == tcg, Ordering::Relaxed);
}

/// Looks at this CPU.
pub fn probe() -> Result<Features, Unfit> {
    let extended = instr::cpuid(0x8000_0000, 0)[0];
    if extended < 0x8000_000a || instr::cpuid(0x8000_0001, 0)[2] & (1 << 2) == 0 {
        return Err(Unfit::NoSvm);
    }
    look_for_emulation();
    let [eax, ebx, _, edx] = instr::cpuid(0x8000_000a, 0);
    // SAFETY: the MSR exists where SVM does.
    if unsafe { instr::rdmsr(msr::VM_CR) } & msr::VM_CR_SVMDIS != 0 {
        return Err(Unfit::Locked);
    }
    let features = Features { revision: eax as u8, asids: ebx, edx };
    if features.has(Features::NPT) { Ok(features) } else { Err(Unfit::NoNestedPaging) }
}

/// Turns SVM on on this CPU.
pub fn enter_cpu() {
    let cpu = percpu::this();
    let page = |slot: &core::sync::atomic::AtomicU64| {
        if slot.load(Ordering::Relaxed) == 0 {
            let frame = frames::alloc_own(Zone::Any).expect("memory for a CPU's SVM pages");
            slot.store(frame.start().raw(), Ordering::Relaxed);
        }
        slot.load(Ordering::Relaxed)
    };
    let (save, host_vmcb) = (page(&cpu.host_save), page(&cpu.host_vmcb));
    // SAFETY: `probe` has found SVM usable; the pages are this CPU's own. VMSAVE stores the host's segment
    // state once: it never changes afterwards.
    unsafe {
        instr::wrmsr(msr::IA32_EFER, instr::rdmsr(msr::IA32_EFER) | msr::EFER_SVME);
        instr::wrmsr(msr::VM_HSAVE_PA, save);
        core::arch::asm!("vmsave rax", in("rax") host_vmcb, options(nostack, preserves_flags));
    }
}

/// Turns SVM off on this CPU, with GIF=1, so that INIT and NMI are taken again.
pub fn leave_cpu() {
    // SAFETY: EFER exists; STGI is legal while SVME is set.
    unsafe {
        let efer = instr::rdmsr(msr::IA32_EFER);
        if efer & msr::EFER_SVME != 0 {
            core::arch::asm!("stgi", options(nomem, nostack));
            instr::wrmsr(msr::IA32_EFER, efer & !msr::EFER_SVME);
        }
    }
}
