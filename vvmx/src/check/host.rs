//! SDM vol. 3, "Checks on Host Control Registers, MSRs, and SSP", "Checks on Host Segment and Descriptor-Table
//! Registers", "Checks Related to Address-Space Size".

use super::{View, pat_is_legal, rules, s_cet_is_legal};
use crate::bits::{entry, exit, reg::*};
use crate::field::Field;

rules! {
    /// A rule about host state. Breaking one is VMfailValid 8.
    HostRule;
    /// All of them.
    fn state(x) {
        /// "The CR0 field must not set any bit to a value not supported in VMX operation."
        Cr0 => !x.caps.cr0_fits(x.get(Field::HOST_CR0));
        /// "The CR4 field must not set any bit to a value not supported in VMX operation."
        Cr4 => !x.caps.cr4_fits(x.get(Field::HOST_CR4));
        /// "If bit 23 in the CR4 field (corresponding to CET) is 1, bit 16 in the CR0 field (WP) must also be
        /// 1."
        CetWithoutWp => x.get(Field::HOST_CR4) & CR4_CET != 0 && x.get(Field::HOST_CR0) & CR0_WP == 0;
        /// "The CR3 field must be such that bits 63:52 and bits in the range 51:32 beyond the processor's
        /// physical-address width must be 0."
        Cr3 => x.get(Field::HOST_CR3) >= x.caps.phys_end();
        /// "The IA32_SYSENTER_ESP field and the IA32_SYSENTER_EIP field must each contain a canonical address."
        Sysenter => x.uncanonical(Field::HOST_SYSENTER_ESP) || x.uncanonical(Field::HOST_SYSENTER_EIP);
        /// "If the “load IA32_PERF_GLOBAL_CTRL” VM-exit control is 1, bits reserved in the
        /// IA32_PERF_GLOBAL_CTRL MSR must be 0 in the field for that register."
        PerfGlobal => x.v.exit(exit::LOAD_PERF_GLOBAL)
            && x.get(Field::HOST_PERF_GLOBAL_CTRL) & !x.caps.cpu.perf_global != 0;
        /// "If the “load IA32_PAT” VM-exit control is 1, the value of the field for the IA32_PAT MSR must be
        /// one that could be written by WRMSR without fault at CPL 0."
        Pat => x.v.exit(exit::LOAD_PAT) && !pat_is_legal(x.get(Field::HOST_PAT));
        /// "If the “load IA32_EFER” VM-exit control is 1, bits reserved in the IA32_EFER MSR must be 0 in the
        /// field for that register."
        EferReserved => x.v.exit(exit::LOAD_EFER) && x.get(Field::HOST_EFER) & !x.caps.cpu.efer != 0;
        /// Likewise: "the values of the LMA and LME bits in the field must each be that of the “host address-
        /// space size” VM-exit control."
        EferMode => x.v.exit(exit::LOAD_EFER) && {
            let want = if host_64(x) { EFER_LMA | EFER_LME } else { 0 };
            x.get(Field::HOST_EFER) & (EFER_LMA | EFER_LME) != want
        };
        /// "If the “load CET state” VM-exit control is 1, the IA32_S_CET field must not set any bits reserved"
        SCet => x.v.exit(exit::LOAD_CET) && !s_cet_is_legal(x.get(Field::HOST_S_CET), x.caps);
        /// Likewise the IA32_INTERRUPT_SSP_TABLE_ADDR field must be canonical.
        SspTable => x.v.exit(exit::LOAD_CET) && x.uncanonical(Field::HOST_SSP_TABLE);
        /// Likewise "bits 1:0 of the SSP field must be 0", and it is canonical, below 4 GiB for a 32-bit host.
        Ssp => x.v.exit(exit::LOAD_CET) && {
            let ssp = x.get(Field::HOST_SSP);
            ssp & 3 != 0 || x.uncanonical(Field::HOST_SSP) || !host_64(x) && ssp >> 32 != 0
        };
        /// "If the “load PKRS” VM-exit control is 1, bits 63:32 must be 0 in the IA32_PKRS field."
        Pkrs => x.v.exit(exit::LOAD_PKRS) && x.get(Field::HOST_PKRS) >> 32 != 0;
        /// "In the selector field for each of CS, SS, DS, ES, FS, GS, and TR, the RPL (bits 1:0) and the TI flag
        /// (bit 2) must be 0."
        SelectorRplTi => (0..7).any(|i| x.get(Field::HOST_ES_SELECTOR.step(i)) & 7 != 0);
        /// "The selector fields for CS and TR cannot be 0000H."
        SelectorNull => x.get(Field::HOST_CS_SELECTOR) == 0 || x.get(Field::HOST_TR_SELECTOR) == 0;
        /// "The selector field for SS cannot be 0000H if the “host address-space size” VM-exit control is 0."
        SsNull => !host_64(x) && x.get(Field::HOST_SS_SELECTOR) == 0;
        /// "The base-address fields for FS, GS, GDTR, IDTR, and TR must contain canonical addresses."
        Bases => (0..5).any(|i| x.uncanonical(Field::HOST_FS_BASE.step(i)));
        /// "If the logical processor is outside IA-32e mode (if IA32_EFER.LMA = 0) at the time of VM entry": the
        /// “IA-32e mode guest” VM-entry control and the “host address-space size” VM-exit control are 0.
        OutsideLongMode => !x.long && (host_64(x) || x.v.entry(entry::IA32E));
        /// "If the logical processor is in IA-32e mode … the “host address-space size” VM-exit control must be
        /// 1."
        InsideLongMode => x.long && !host_64(x);
        /// "If the “host address-space size” VM-exit control is 0": the “IA-32e mode guest” VM-entry control is
        /// 0, bit 17 of the CR4 field (PCIDE) is 0, bits 63:32 in the RIP field are 0. (The first is implied.)
        Host32 => !host_64(x)
            && (x.get(Field::HOST_CR4) & CR4_PCIDE != 0 || x.get(Field::HOST_RIP) >> 32 != 0);
        /// "If the “host address-space size” VM-exit control is 1": bit 5 of the CR4 field (PAE) is 1, the RIP
        /// field contains a canonical address.
        Host64 => host_64(x) && (x.get(Field::HOST_CR4) & CR4_PAE == 0 || x.uncanonical(Field::HOST_RIP));
    }
}

fn host_64(x: &View<'_>) -> bool {
    x.v.exit(exit::HOST_64)
}
