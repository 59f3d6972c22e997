//! Numbers and bits of the MSRs that Testudo itself programs (AMD APM vol. 2, appendix A).

pub use x86::msr::{
    IA32_APIC_BASE, IA32_EFER, IA32_MTRR_DEF_TYPE, IA32_MTRRCAP, IA32_PAT, IA32_TSC_DEADLINE,
    IA32_X2APIC_APICID,
};

/// Enables SVM; read-only when the firmware locked it (bit 4, SVMDIS; bit 3, LOCK).
pub const VM_CR: u32 = 0xc001_0114;
/// VM_CR.SVMDIS.
pub const VM_CR_SVMDIS: u64 = 1 << 4;
/// Physical address of the host save area.
pub const VM_HSAVE_PA: u32 = 0xc001_0117;
/// EFER.SVME.
pub const EFER_SVME: u64 = 1 << 12;
/// EFER.SCE: Testudo leaves it to the guest, whose EFER is in the VMCB.
pub const EFER_NXE: u64 = 1 << 11;
/// APIC base: enabled.
pub const APIC_BASE_ENABLE: u64 = 1 << 11;
/// APIC base: x2APIC mode.
pub const APIC_BASE_X2APIC: u64 = 1 << 10;
/// Machine-check: number of banks in bits 7:0.
pub const MCG_CAP: u32 = 0x179;
/// Machine-check global control.
pub const MCG_CTL: u32 = 0x17b;
/// Control of bank 0; status is the next, then address and misc; banks are 4 apart.
pub const MC0_CTL: u32 = 0x400;
/// The PAT that every CPU uses, the power-on value: WB, WT, UC-, UC twice (APM vol. 2, 7.8.2).
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;
