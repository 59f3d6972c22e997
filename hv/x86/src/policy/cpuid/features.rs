//! The allow-list of feature bits: one table per register.

use super::xsave::Xsave;
use super::{DomainCpuConfig, Leaf};

/// A register of feature bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    /// Leaf 1.
    L1Ecx,
    L1Edx,
    /// Leaf 7, sub-leaf 0.
    L7Ebx,
    L7Ecx,
    L7Edx,
    /// Leaf 7, sub-leaves 1 and 2.
    L7S1Eax,
    L7S1Edx,
    L7S2Edx,
    /// Leaves 8000_0001, 8000_0008, 8000_0021.
    E1Ecx,
    E1Edx,
    E8Ebx,
    E21Eax,
    E21Ecx,
}

pub(super) const XSAVE: u32 = 1 << 26; //     1 ECX
pub(super) const OSXSAVE: u32 = 1 << 27; //   1 ECX
pub(super) const APIC: u32 = 1 << 9; //       1 EDX
pub(super) const PKU: u32 = 1 << 3; //        7 ECX
pub(super) const OSPKE: u32 = 1 << 4; //      7 ECX
pub(super) const TOPOEXT: u32 = 1 << 22; //   8000_0001 ECX
pub(super) const TCE: u32 = 1 << 17; //       8000_0001 ECX
pub(super) const SYSCALL: u32 = 1 << 11; //   8000_0001 EDX
pub(super) const NX: u32 = 1 << 20; //        8000_0001 EDX
pub(super) const FFXSR: u32 = 1 << 25; //     8000_0001 EDX
pub(super) const PAGE_1G: u32 = 1 << 26; //   8000_0001 EDX
pub(super) const RDTSCP: u32 = 1 << 27; //    8000_0001 EDX
pub(super) const LONG_MODE: u32 = 1 << 29; // 8000_0001 EDX

/// What decides a bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// Shown if the host has it.
    Host,
    /// Always shown: provided in software, whatever the host has.
    Software,
    /// Shown if the host has it and XSAVE is offered: its state is switched, or it is XSAVE's own.
    Xsave,
    /// Shown if the host has it and these XCR0 states are offered.
    State(u64),
    /// Shown if SVM is offered.
    Nested,
    /// Shown if there is more than one vCPU.
    Smp,
    /// Shown if TSC_ADJUST is emulated.
    TscAdjust,
}

const AVX: By = By::State(0b110);
const AVX512: By = By::State(0xe6);

type Row = (u32, By);

/// Leaf 1 ECX.
const L1_ECX: &[Row] = &[
    (0, By::Host),      // SSE3
    (1, By::Host),      // PCLMULQDQ
    (9, By::Host),      // SSSE3
    (12, AVX),          // FMA
    (13, By::Host),     // CMPXCHG16B
    (17, By::Host),     // PCID
    (19, By::Host),     // SSE4.1
    (20, By::Host),     // SSE4.2
    (21, By::Software), // x2APIC
    (22, By::Host),     // MOVBE
    (23, By::Host),     // POPCNT
    (24, By::Software), // TSC deadline timer
    (25, By::Host),     // AES
    (26, By::Xsave),    // XSAVE
    (28, AVX),          // AVX
    (29, AVX),          // F16C
    (30, By::Host),     // RDRAND
    (31, By::Software), // a hypervisor is present
]; // hidden: DTES64 2, MONITOR 3, DS_CPL 4, VMX 5, SMX 6, EIST 7, TM2 8, SDBG 11, PDCM 15, DCA 18

/// Leaf 1 EDX.
const L1_EDX: &[Row] = &[
    (0, By::Host),      // FPU
    (1, By::Host),      // VME
    (2, By::Host),      // DE
    (3, By::Host),      // PSE
    (4, By::Host),      // TSC
    (5, By::Host),      // MSR
    (6, By::Host),      // PAE
    (7, By::Software),  // MCE
    (8, By::Host),      // CX8
    (9, By::Software),  // APIC
    (11, By::Host),     // SEP
    (12, By::Software), // MTRR
    (13, By::Host),     // PGE
    (14, By::Software), // MCA
    (15, By::Host),     // CMOV
    (16, By::Software), // PAT
    (17, By::Host),     // PSE36
    (19, By::Host),     // CLFLUSH
    (23, By::Host),     // MMX
    (24, By::Host),     // FXSR
    (25, By::Host),     // SSE
    (26, By::Host),     // SSE2
    (28, By::Smp),      // HTT: more than one logical processor
]; // hidden: PSN 18, DS 21, ACPI 22, SS 27, TM 29, PBE 31

/// Leaf 7.0 EBX.
const L7_EBX: &[Row] = &[
    (0, By::Host),      // FSGSBASE
    (1, By::TscAdjust), // TSC_ADJUST
    (3, By::Host),      // BMI1
    (5, AVX),           // AVX2
    (6, By::Host),      // FDP_EXCPTN_ONLY
    (7, By::Host),      // SMEP
    (8, By::Host),      // BMI2
    (9, By::Host),      // ERMS
    (10, By::Host),     // INVPCID
    (13, By::Host),     // FPU CS/DS deprecated
    (16, AVX512),       // AVX512F
    (17, AVX512),       // AVX512DQ
    (18, By::Host),     // RDSEED
    (19, By::Host),     // ADX
    (20, By::Host),     // SMAP
    (21, AVX512),       // AVX512_IFMA
    (23, By::Host),     // CLFLUSHOPT
    (24, By::Host),     // CLWB
    (28, AVX512),       // AVX512CD
    (29, By::Host),     // SHA
    (30, AVX512),       // AVX512BW
    (31, AVX512),       // AVX512VL
]; // hidden: SGX 2, HLE 4, RTM 11, PQM 12, MPX 14, PQE 15, PT 25, PF/ER 26 27

/// Leaf 7.0 ECX.
const L7_ECX: &[Row] = &[
    (1, AVX512),            // AVX512_VBMI
    (2, By::Host),          // UMIP
    (3, By::State(1 << 9)), // PKU
    (6, AVX512),            // AVX512_VBMI2
    (8, By::Host),          // GFNI
    (9, AVX),               // VAES
    (10, AVX),              // VPCLMULQDQ
    (11, AVX512),           // AVX512_VNNI
    (12, AVX512),           // AVX512_BITALG
    (14, AVX512),           // AVX512_VPOPCNTDQ
    (16, By::Host),         // LA57
    (22, By::Host),         // RDPID
    (27, By::Host),         // MOVDIRI
    (28, By::Host),         // MOVDIR64B
]; // hidden: WAITPKG 5, SHSTK 7, TME 13, KL 23, bus-lock detect 24, ENQCMD 29, SGX_LC 30, PKS 31

/// Leaf 7.0 EDX. The speculation bits here are Intel's way to say it; AMD's are in 8000_0008.
const L7_EDX: &[Row] = &[
    (4, By::Host),  // FSRM
    (8, AVX512),    // AVX512_VP2INTERSECT
    (14, By::Host), // SERIALIZE
]; // hidden: IBT 20, AMX 22 24 25, SPEC_CTRL 26, STIBP 27, L1D_FLUSH 28, ARCH_CAPABILITIES 29, SSBD 31

/// Leaf 7.1 EAX.
const L7S1_EAX: &[Row] = &[
    (4, AVX),       // AVX-VNNI
    (5, AVX512),    // AVX512_BF16
    (10, By::Host), // fast zero-length REP MOVSB
    (11, By::Host), // fast short REP STOSB
    (12, By::Host), // fast short REP CMPSB, SCASB
    (23, AVX),      // AVX-IFMA
]; // hidden: FRED 17, LKGS 18, WRMSRNS 19, AMX-FP16 21, HRESET 22, LAM 26
/// Leaf 7.1 EDX.
const L7S1_EDX: &[Row] = &[
    (4, AVX),       // AVX-VNNI-INT8
    (5, AVX),       // AVX-NE-CONVERT
    (14, By::Host), // PREFETCHI
];
/// Leaf 7.2 EDX: Intel's predictor controls.
const L7S2_EDX: &[Row] = &[];

/// Leaf 8000_0001 ECX.
const E1_ECX: &[Row] = &[
    (0, By::Host),   // LAHF in long mode
    (1, By::Smp),    // CmpLegacy: the logical processors are cores
    (2, By::Nested), // SVM
    (4, By::Host),   // MOV CR8 by LOCK
    (5, By::Host),   // LZCNT
    (6, By::Host),   // SSE4A
    (7, By::Host),   // misaligned SSE
    (8, By::Host),   // PREFETCHW
    (11, AVX),       // XOP
    (16, AVX),       // FMA4
    (17, By::Host),  // TCE
    (21, By::Host),  // TBM
    (22, By::Host),  // TOPOEXT
    (26, By::Host),  // data breakpoint extension
]; // hidden: ExtApicSpace 3, OSVW 9, IBS 10, SKINIT 12, WDT 13, LWP 15, performance counters 23 24 28, MONITORX 29

/// Leaf 8000_0001 EDX.
const E1_EDX: &[Row] = &[
    (0, By::Host),      // FPU
    (1, By::Host),      // VME
    (2, By::Host),      // DE
    (3, By::Host),      // PSE
    (4, By::Host),      // TSC
    (5, By::Host),      // MSR
    (6, By::Host),      // PAE
    (7, By::Software),  // MCE
    (8, By::Host),      // CX8
    (9, By::Software),  // APIC
    (11, By::Host),     // SYSCALL
    (12, By::Software), // MTRR
    (13, By::Host),     // PGE
    (14, By::Software), // MCA
    (15, By::Host),     // CMOV
    (16, By::Software), // PAT
    (17, By::Host),     // PSE36
    (20, By::Host),     // NX
    (22, By::Host),     // MMX extensions
    (23, By::Host),     // MMX
    (24, By::Host),     // FXSR
    (25, By::Host),     // FFXSR
    (26, By::Host),     // 1 GiB pages
    (27, By::Host),     // RDTSCP
    (29, By::Host),     // long mode
    (30, By::Host),     // 3DNow! extensions
    (31, By::Host),     // 3DNow!
];

/// Leaf 8000_0008 EBX, without the speculation bits, which the mitigation plan gives.
const E8_EBX: &[Row] = &[
    (0, By::Host),      // CLZERO
    (2, By::Host),      // FXSAVE always saves error pointers
    (9, By::Host),      // WBNOINVD
    (20, By::Software), // EFER.LMSLE is not there
]; // hidden: IRPERF 1, INVLPGB 3, RDPRU 4, MCOMMIT 8, PPIN 23, VIRT_SSBD 25, CPPC 27

/// Leaf 8000_0021 EAX, without the speculation bits.
const E21_EAX: &[Row] = &[
    (0, By::Host),     // nested data breakpoints are not taken
    (1, By::Host),     // WRMSR to FS, GS and KERNEL_GS bases does not serialise
    (2, By::Software), // LFENCE serialises: by itself, or because the host sets DE_CFG
    (6, By::Host),     // a null selector clears the base
    (9, By::Software), // no SMM_CTL
    (10, By::Host),    // fast short REP STOSB
    (11, By::Host),    // fast short REP CMPSB
]; // hidden: SMM page configuration 3, upper address ignore 7, prefetch control 13, CPUID for user code 17
const E21_ECX: &[Row] = &[];

impl Register {
    /// leaf, sub-leaf, register index, rows
    fn source(self) -> (u32, u32, usize, &'static [Row]) {
        match self {
            Register::L1Ecx => (1, 0, 2, L1_ECX),
            Register::L1Edx => (1, 0, 3, L1_EDX),
            Register::L7Ebx => (7, 0, 1, L7_EBX),
            Register::L7Ecx => (7, 0, 2, L7_ECX),
            Register::L7Edx => (7, 0, 3, L7_EDX),
            Register::L7S1Eax => (7, 1, 0, L7S1_EAX),
            Register::L7S1Edx => (7, 1, 3, L7S1_EDX),
            Register::L7S2Edx => (7, 2, 3, L7S2_EDX),
            Register::E1Ecx => (0x8000_0001, 0, 2, E1_ECX),
            Register::E1Edx => (0x8000_0001, 0, 3, E1_EDX),
            Register::E8Ebx => (0x8000_0008, 0, 1, E8_EBX),
            Register::E21Eax => (0x8000_0021, 0, 0, E21_EAX),
            Register::E21Ecx => (0x8000_0021, 0, 2, E21_ECX),
        }
    }
    /// What the mitigation plan adds.
    fn speculation(self, config: &DomainCpuConfig) -> u32 {
        match self {
            Register::E8Ebx => config.spec.extended,
            Register::E21Eax => config.spec.features2,
            Register::E21Ecx => config.spec.features2c,
            _ => 0,
        }
    }
}

/// The bits of a register that a domain sees.
pub(super) fn masked(
    register: Register,
    host: &impl Fn(u32, u32) -> Leaf,
    config: &DomainCpuConfig,
    xsave: &Xsave,
) -> u32 {
    let (leaf, sub, index, rows) = register.source();
    // A sub-leaf exists if leaf 7's EAX says so; others have only the one asked for.
    let exists = sub == 0 || host(leaf, 0)[0] >= sub;
    let host = if exists { host(leaf, sub)[index] } else { 0 };
    let shown = |&(bit, by): &Row| {
        let in_host = host >> bit & 1 != 0;
        let on = match by {
            By::Host => in_host,
            By::Software => true,
            By::Xsave => in_host && xsave.xcr0() != 0,
            By::State(states) => in_host && xsave.xcr0() & states == states,
            By::Nested => config.nested,
            By::Smp => config.vcpus > 1,
            By::TscAdjust => config.tsc_adjust,
        };
        u32::from(on) << bit
    };
    rows.iter().map(shown).fold(register.speculation(config), |all, bit| all | bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Register; 13] = [
        Register::L1Ecx,
        Register::L1Edx,
        Register::L7Ebx,
        Register::L7Ecx,
        Register::L7Edx,
        Register::L7S1Eax,
        Register::L7S1Edx,
        Register::L7S2Edx,
        Register::E1Ecx,
        Register::E1Edx,
        Register::E8Ebx,
        Register::E21Eax,
        Register::E21Ecx,
    ];

    #[test]
    fn no_bit_stands_twice_and_rows_are_in_order() {
        for register in ALL {
            let rows = register.source().3;
            assert!(rows.windows(2).all(|w| w[0].0 < w[1].0), "{register:?}");
            assert!(rows.iter().all(|(bit, _)| *bit < 32), "{register:?}");
        }
    }

    #[test]
    fn shared_bits_of_the_two_edx_agree() {
        for row in E1_EDX.iter().filter(|(bit, _)| *bit < 18 && *bit != 11) {
            assert!(L1_EDX.contains(row), "{row:?}");
        }
    }
}
