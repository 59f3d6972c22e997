//! The MSR policy: what each register is to a guest.
//!
//! [`classify`] names the behaviour; registers without one fault. [`SoftMsrs`] holds those that are only
//! storage, [`check`] the values that must fault. The registers of [`OPEN`] are the guest's own while it
//! runs and need no exit; everything else is intercepted.
//!
//! Values and reserved bits: AMD APM vol. 2, appendix A "MSR Cross-Reference", and the processor programming
//! reference manuals for the families' own registers.

pub mod check;
mod soft;

pub use soft::{Slot, SoftMsrs};

/// The guest may read and write these without an exit: they are VMLOAD/VMSAVE state (APM vol. 2, "VMSAVE and
/// VMLOAD Instructions"), so what is in the CPU while the guest runs is the guest's.
pub const OPEN: [u32; 10] = [
    0x0000_0174, // SYSENTER_CS
    0x0000_0175, // SYSENTER_ESP
    0x0000_0176, // SYSENTER_EIP
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0083, // CSTAR
    0xc000_0084, // SFMASK
    0xc000_0100, // FS_BASE
    0xc000_0101, // GS_BASE
    0xc000_0102, // KERNEL_GS_BASE
];

/// What a write to a constant register does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnWrite {
    /// Nothing: system software writes it unasked, and the value has no meaning here.
    Ignore,
    /// #GP.
    Fault,
}

/// A register of the SVM extension; #GP unless the domain is nested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SvmMsr {
    /// VM_CR.
    VmCr,
    /// VM_HSAVE_PA.
    HsavePa,
    /// SVM_KEY: write-only.
    Key,
    /// TSC_RATIO, if the domain's SVM features include it.
    TscRatio,
}

/// What a register is to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrClass {
    /// Reads give `value`.
    Const {
        /// What is read.
        value: u64,
        /// What a write does.
        write: OnWrite,
    },
    /// Write-only, and writes do nothing.
    WriteIgnored,
    /// Storage: [`SoftMsrs`].
    Software(Slot),
    /// In [`OPEN`]: handled without an exit; an exit for it (L1's intercept) reads and writes guest state.
    PassThrough,
    /// x2APIC register number (the MSR less 0x800): the virtual APIC's, which faults where there is none.
    Lapic(u8),
    /// APIC_BASE: the virtual APIC's.
    ApicBase,
    /// EFER: [`check::efer`].
    Efer,
    /// PAT: software, [`check::pat`].
    Pat,
    /// TSC.
    Tsc,
    /// TSC_ADJUST, if the domain's CPUID has it.
    TscAdjust,
    /// TSC_DEADLINE, of the virtual APIC's timer.
    TscDeadline,
    /// TSC_AUX: [`check::tsc_aux`].
    TscAux,
    /// DEBUGCTL: [`check::debugctl`].
    DebugCtl,
    /// XSS: [`check::xss`].
    Xss,
    /// The microcode's revision: the host's, read-only.
    PatchLevel,
    /// The write that installs the hypercall page; reads give 0.
    XenHypercall,
    /// SVM.
    Svm(SvmMsr),
    /// SPEC_CTRL: [`check::spec_ctrl`].
    SpecCtrl,
    /// PRED_CMD: write-only, [`check::pred_cmd`].
    PredCmd,
    /// VIRT_SPEC_CTRL: [`check::virt_spec_ctrl`].
    VirtSpecCtrl,
    /// #GP for reads and writes.
    Fault,
}

const fn zero_ignored() -> MsrClass {
    MsrClass::Const { value: 0, write: OnWrite::Ignore }
}
const fn read_only(value: u64) -> MsrClass {
    MsrClass::Const { value, write: OnWrite::Fault }
}

/// MTRRCAP: eight variable ranges, fixed ranges, write-combining.
pub const MTRR_CAP: u64 = 0x508;

/// What `msr` is to a guest. A match over constants, which compiles to a few comparisons.
pub const fn classify(msr: u32) -> MsrClass {
    use MsrClass::*;
    match msr {
        0x0000_0000..=0x0000_0001 => zero_ignored(), // MC_ADDR, MC_TYPE: no banks
        0x0000_0010 => Tsc,
        0x0000_001b => ApicBase,
        0x0000_003b => TscAdjust,
        0x0000_0048 => SpecCtrl,
        0x0000_0049 => PredCmd,
        0x0000_008b => PatchLevel,
        0x0000_00ce => read_only(0), // PLATFORM_INFO: probed for CPUID faulting
        0x0000_00fe => read_only(MTRR_CAP),
        0x0000_0174..=0x0000_0176 => PassThrough, // SYSENTER_CS, _ESP, _EIP
        0x0000_0179 => read_only(0),              // MCG_CAP: no banks, hence no MCG_CTL (17b)
        0x0000_017a => Software(Slot::MCG_STATUS),
        // MISC_ENABLE, not AMD's, but read unasked by some: fast strings, no BTS, no PEBS
        0x0000_01a0 => Const { value: 0x1801, write: OnWrite::Ignore },
        0x0000_01d9 => DebugCtl,
        0x0000_01db..=0x0000_01de => zero_ignored(), // last branch and exception, from and to
        0x0000_0200..=0x0000_020f => Software(Slot::mtrr_variable(msr - 0x200)),
        0x0000_0250 => Software(Slot::mtrr_fixed(0)),
        0x0000_0258..=0x0000_0259 => Software(Slot::mtrr_fixed(1 + msr - 0x258)),
        0x0000_0268..=0x0000_026f => Software(Slot::mtrr_fixed(3 + msr - 0x268)),
        0x0000_0277 => Pat,
        0x0000_02ff => Software(Slot::MTRR_DEF_TYPE),
        // RAPL units and energy counters: no energy is reported
        0x0000_0606 | 0x0000_0611 | 0x0000_0619 | 0x0000_0639 | 0x0000_0641 => read_only(0),
        0x0000_06e0 => TscDeadline,
        0x0000_0800..=0x0000_08ff => Lapic((msr - 0x800) as u8),
        0x0000_0da0 => Xss,

        0x4000_0000 => XenHypercall,

        0xc000_0080 => Efer,
        0xc000_0081..=0xc000_0084 => PassThrough, // STAR, LSTAR, CSTAR, SFMASK
        0xc000_0100..=0xc000_0102 => PassThrough, // FS_BASE, GS_BASE, KERNEL_GS_BASE
        0xc000_0103 => TscAux,
        0xc000_0104 => Svm(SvmMsr::TscRatio),

        0xc001_0000..=0xc001_0007 => zero_ignored(), // PERF_EVTSEL 0-3, PERF_CTR 0-3
        0xc001_0010 => zero_ignored(),               // SYSCFG: no TOM2, no SME
        0xc001_0015 => Software(Slot::HWCR),
        0xc001_0016..=0xc001_001a => zero_ignored(), // IORR base and mask, TOP_MEM
        0xc001_001d => zero_ignored(),               // TOP_MEM2
        0xc001_001f => zero_ignored(),               // NB_CFG
        0xc001_0020 => WriteIgnored,                 // PATCH_LOADER: the microcode is the host's
        0xc001_0055 => zero_ignored(),               // INT_PENDING: no C1E
        0xc001_0058 => zero_ignored(),               // MMIO_CFG_BASE: no memory-mapped configuration
        0xc001_0061..=0xc001_006b => zero_ignored(), // P-state limit, control, status, definitions
        0xc001_0074 => zero_ignored(),               // CPU_WATCHDOG
        0xc001_0111..=0xc001_0113 => zero_ignored(), // SMBASE, SMM_ADDR, SMM_MASK: no TSEG
        0xc001_0114 => Svm(SvmMsr::VmCr),
        0xc001_0115 => zero_ignored(), // IGNNE
        0xc001_0117 => Svm(SvmMsr::HsavePa),
        0xc001_0118 => Svm(SvmMsr::Key),
        0xc001_011f => VirtSpecCtrl,
        0xc001_0140..=0xc001_0141 => zero_ignored(), // OSVW: no errata are reported
        0xc001_0200..=0xc001_020b => zero_ignored(), // PERF_CTL 0-5, PERF_CTR 0-5
        0xc001_0299..=0xc001_029b => read_only(0),   // RAPL
        // DE_CFG: LFENCE is dispatch serialising (bit 1), which the host makes true
        0xc001_1029 => Const { value: 1 << 1, write: OnWrite::Ignore },
        // LS_CFG, IC_CFG, DC_CFG, ..., FP_CFG, BU_CFG2, ..., BP_CFG: chicken bits are the host's
        0xc001_1020..=0xc001_1028 | 0xc001_102a..=0xc001_102f => zero_ignored(),
        0xc001_10e3 => zero_ignored(), // chicken bits of Zen 2's branch predictor
        _ => Fault,
    }
}

#[cfg(test)]
mod tests;
