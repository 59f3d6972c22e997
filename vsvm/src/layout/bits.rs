//! Bits of the VMCB's fields and of the registers in it, one module per field.

/// Bits of [`super::Segment::attrib`].
pub mod attrib {
    /// Present.
    pub const P: u16 = 1 << 7;
    /// Long mode code segment.
    pub const L: u16 = 1 << 9;
    /// Default operand size (code) or big (stack).
    pub const D: u16 = 1 << 10;
    /// Granularity.
    pub const G: u16 = 1 << 11;
}

/// Values of TLB_CONTROL (APM vol. 2, "TLB Flush").
pub mod tlb_control {
    /// Do nothing.
    pub const NONE: u8 = 0;
    /// Flush every ASID, global entries too.
    pub const ALL: u8 = 1;
    /// Flush this guest's ASID, global entries too. Needs flush-by-ASID.
    pub const THIS_ASID: u8 = 3;
    /// Flush this guest's ASID but for global entries. Needs flush-by-ASID.
    pub const THIS_ASID_NON_GLOBAL: u8 = 7;
}

/// Bits of [`super::Control::int_ctl`] (060h), 64 bits with the vector.
pub mod int_ctl {
    /// V_TPR: the guest's CR8 in bits 3:0.
    pub const V_TPR: u64 = 0xff;
    /// A virtual interrupt is pending.
    pub const V_IRQ: u64 = 1 << 8;
    /// The guest's virtual GIF.
    pub const V_GIF: u64 = 1 << 9;
    /// A virtual NMI is pending.
    pub const V_NMI: u64 = 1 << 11;
    /// Virtual NMIs are masked.
    pub const V_NMI_MASK: u64 = 1 << 12;
    /// Priority of the virtual interrupt.
    pub const V_INTR_PRIO: u64 = 0xf << 16;
    /// Take the virtual interrupt whatever V_TPR says.
    pub const V_IGN_TPR: u64 = 1 << 20;
    /// The guest's IF and CR8 are virtual.
    pub const V_INTR_MASKING: u64 = 1 << 24;
    /// The guest's STGI and CLGI act on V_GIF.
    pub const V_GIF_ENABLE: u64 = 1 << 25;
    /// NMI virtualization.
    pub const V_NMI_ENABLE: u64 = 1 << 26;
    /// AVIC in x2APIC mode.
    pub const X2AVIC_ENABLE: u64 = 1 << 30;
    /// AVIC.
    pub const AVIC_ENABLE: u64 = 1 << 31;
    /// Vector of the virtual interrupt.
    pub const V_INTR_VECTOR: u64 = 0xff << 32;
}

/// Bits of [`super::Control::int_state`] (068h).
pub mod int_state {
    /// The guest is in an interrupt shadow (of STI, MOV SS or POP SS).
    pub const INTERRUPT_SHADOW: u64 = 1 << 0;
    /// RFLAGS.IF of a SEV-ES guest.
    pub const GUEST_INTERRUPT_MASK: u64 = 1 << 1;
}

/// Bits of [`super::Control::misc_ctl`] (090h).
pub mod misc_ctl {
    /// Nested paging.
    pub const NP_ENABLE: u64 = 1 << 0;
    /// Secure encrypted virtualization.
    pub const SEV: u64 = 1 << 1;
    /// Encrypted register state.
    pub const SEV_ES: u64 = 1 << 2;
    /// Guest mode execute trap.
    pub const GMET: u64 = 1 << 3;
    /// Supervisor shadow stack check.
    pub const SSS_CHECK: u64 = 1 << 4;
    /// Virtual transparent encryption.
    pub const VTE: u64 = 1 << 5;
    /// Read-only guest page tables.
    pub const ROGPT: u64 = 1 << 6;
    /// The guest may use INVLPGB and TLBSYNC.
    pub const INVLPGB_ENABLE: u64 = 1 << 7;
}

/// Bits of [`super::Control::misc_ctl2`] (0B8h).
pub mod misc_ctl2 {
    /// LBR virtualization.
    pub const LBR_VIRTUALIZATION: u64 = 1 << 0;
    /// The guest's VMLOAD and VMSAVE take guest-physical addresses and need no exit.
    pub const V_VMSAVE_VMLOAD: u64 = 1 << 1;
    /// IBS virtualization.
    pub const IBS_VIRTUALIZATION: u64 = 1 << 2;
    /// Performance counter virtualization.
    pub const PMC_VIRTUALIZATION: u64 = 1 << 3;
}

/// Bits of CR0, CR4, EFER and RFLAGS that nested SVM looks at (APM vol. 2, "System Resources").
pub mod reg {
    /// CR0.PE.
    pub const CR0_PE: u64 = 1 << 0;
    /// CR0.WP.
    pub const CR0_WP: u64 = 1 << 16;
    /// CR0.NW.
    pub const CR0_NW: u64 = 1 << 29;
    /// CR0.CD.
    pub const CR0_CD: u64 = 1 << 30;
    /// CR0.PG.
    pub const CR0_PG: u64 = 1 << 31;
    /// CR4.PAE.
    pub const CR4_PAE: u64 = 1 << 5;
    /// CR4.LA57.
    pub const CR4_LA57: u64 = 1 << 12;
    /// CR4.CET.
    pub const CR4_CET: u64 = 1 << 23;
    /// EFER.SCE.
    pub const EFER_SCE: u64 = 1 << 0;
    /// EFER.LME.
    pub const EFER_LME: u64 = 1 << 8;
    /// EFER.LMA.
    pub const EFER_LMA: u64 = 1 << 10;
    /// EFER.NXE.
    pub const EFER_NXE: u64 = 1 << 11;
    /// EFER.SVME.
    pub const EFER_SVME: u64 = 1 << 12;
    /// RFLAGS bit 1, always set.
    pub const RFLAGS_FIXED: u64 = 1 << 1;
    /// RFLAGS.IF.
    pub const RFLAGS_IF: u64 = 1 << 9;
    /// RFLAGS.VM.
    pub const RFLAGS_VM: u64 = 1 << 17;
    /// Every RFLAGS bit that exists (the fixed one not counted).
    pub const RFLAGS_WRITABLE: u64 = 0x003f_7fd5;
    /// DR7 with no breakpoint enabled.
    pub const DR7_RESET: u64 = 0x400;
}
