//! The control bits. SDM vol. 3, "VM-Execution Control Fields", "VM-Exit Control Fields", "VM-Entry Control
//! Fields". Names are the manual's.
#![allow(missing_docs)]

/// Pin-based VM-execution controls.
pub mod pin {
    pub const EXTERNAL_INTERRUPT: u32 = 1 << 0;
    pub const NMI: u32 = 1 << 3;
    pub const VIRTUAL_NMIS: u32 = 1 << 5;
    pub const PREEMPTION_TIMER: u32 = 1 << 6;
    pub const POSTED_INTERRUPTS: u32 = 1 << 7;
}

/// Primary processor-based VM-execution controls.
pub mod primary {
    pub const INTERRUPT_WINDOW: u32 = 1 << 2;
    pub const TSC_OFFSETTING: u32 = 1 << 3;
    pub const HLT: u32 = 1 << 7;
    pub const INVLPG: u32 = 1 << 9;
    pub const MWAIT: u32 = 1 << 10;
    pub const RDPMC: u32 = 1 << 11;
    pub const RDTSC: u32 = 1 << 12;
    pub const CR3_LOAD: u32 = 1 << 15;
    pub const CR3_STORE: u32 = 1 << 16;
    pub const TERTIARY: u32 = 1 << 17;
    pub const CR8_LOAD: u32 = 1 << 19;
    pub const CR8_STORE: u32 = 1 << 20;
    pub const TPR_SHADOW: u32 = 1 << 21;
    pub const NMI_WINDOW: u32 = 1 << 22;
    pub const MOV_DR: u32 = 1 << 23;
    pub const UNCONDITIONAL_IO: u32 = 1 << 24;
    pub const IO_BITMAPS: u32 = 1 << 25;
    pub const MONITOR_TRAP: u32 = 1 << 27;
    pub const MSR_BITMAPS: u32 = 1 << 28;
    pub const MONITOR: u32 = 1 << 29;
    pub const PAUSE: u32 = 1 << 30;
    pub const SECONDARY: u32 = 1 << 31;
}

/// Secondary processor-based VM-execution controls.
pub mod secondary {
    pub const APIC_ACCESS: u32 = 1 << 0;
    pub const EPT: u32 = 1 << 1;
    pub const DESCRIPTOR_TABLE: u32 = 1 << 2;
    pub const RDTSCP: u32 = 1 << 3;
    pub const X2APIC: u32 = 1 << 4;
    pub const VPID: u32 = 1 << 5;
    pub const WBINVD: u32 = 1 << 6;
    pub const UNRESTRICTED_GUEST: u32 = 1 << 7;
    pub const APIC_REGISTERS: u32 = 1 << 8;
    pub const INTERRUPT_DELIVERY: u32 = 1 << 9;
    pub const PAUSE_LOOP: u32 = 1 << 10;
    pub const RDRAND: u32 = 1 << 11;
    pub const INVPCID: u32 = 1 << 12;
    pub const VM_FUNCTIONS: u32 = 1 << 13;
    pub const VMCS_SHADOWING: u32 = 1 << 14;
    pub const ENCLS: u32 = 1 << 15;
    pub const RDSEED: u32 = 1 << 16;
    pub const PML: u32 = 1 << 17;
    pub const EPT_VE: u32 = 1 << 18;
    pub const CONCEAL_PT: u32 = 1 << 19;
    pub const XSAVES: u32 = 1 << 20;
    pub const PASID: u32 = 1 << 21;
    pub const MODE_BASED_EXECUTE: u32 = 1 << 22;
    pub const SPP: u32 = 1 << 23;
    pub const PT_GPA: u32 = 1 << 24;
    pub const TSC_SCALING: u32 = 1 << 25;
    pub const USER_WAIT: u32 = 1 << 26;
    pub const PCONFIG: u32 = 1 << 27;
    pub const ENCLV: u32 = 1 << 28;
    pub const BUS_LOCK: u32 = 1 << 30;
    pub const NOTIFY: u32 = 1 << 31;
}

/// Primary VM-exit controls.
pub mod exit {
    pub const SAVE_DEBUG: u32 = 1 << 2;
    pub const HOST_64: u32 = 1 << 9;
    pub const LOAD_PERF_GLOBAL: u32 = 1 << 12;
    pub const ACK_INTERRUPT: u32 = 1 << 15;
    pub const SAVE_PAT: u32 = 1 << 18;
    pub const LOAD_PAT: u32 = 1 << 19;
    pub const SAVE_EFER: u32 = 1 << 20;
    pub const LOAD_EFER: u32 = 1 << 21;
    pub const SAVE_TIMER: u32 = 1 << 22;
    pub const CLEAR_BNDCFGS: u32 = 1 << 23;
    pub const LOAD_CET: u32 = 1 << 28;
    pub const LOAD_PKRS: u32 = 1 << 29;
    pub const SECONDARY: u32 = 1 << 31;
}

/// VM-entry controls.
pub mod entry {
    pub const LOAD_DEBUG: u32 = 1 << 2;
    pub const IA32E: u32 = 1 << 9;
    pub const SMM: u32 = 1 << 10;
    pub const DEACTIVATE_DUAL_MONITOR: u32 = 1 << 11;
    pub const LOAD_PERF_GLOBAL: u32 = 1 << 13;
    pub const LOAD_PAT: u32 = 1 << 14;
    pub const LOAD_EFER: u32 = 1 << 15;
    pub const LOAD_BNDCFGS: u32 = 1 << 16;
    pub const LOAD_CET: u32 = 1 << 20;
    pub const LOAD_PKRS: u32 = 1 << 22;
}

/// VM-function controls.
pub mod vmfunc {
    pub const EPTP_SWITCHING: u64 = 1 << 0;
}

/// The extended-page-table pointer. SDM vol. 3, "Extended-Page-Table Pointer (EPTP)".
pub mod eptp {
    /// Memory type of the tables.
    pub const MEMTYPE: u64 = 7;
    /// Levels minus one.
    pub const LEVELS: u64 = 7 << 3;
    /// Accessed and dirty flags.
    pub const ACCESSED_DIRTY: u64 = 1 << 6;
    /// Supervisor shadow-stack control.
    pub const SHADOW_STACK: u64 = 1 << 7;
}

/// `IA32_VMX_EPT_VPID_CAP`. SDM vol. 3, "VPID and EPT Capabilities" (appendix A).
pub mod ept_cap {
    pub const EXEC_ONLY: u64 = 1 << 0;
    pub const LEVELS_4: u64 = 1 << 6;
    pub const LEVELS_5: u64 = 1 << 7;
    pub const UC: u64 = 1 << 8;
    pub const WB: u64 = 1 << 14;
    pub const PAGES_2M: u64 = 1 << 16;
    pub const PAGES_1G: u64 = 1 << 17;
    pub const INVEPT: u64 = 1 << 20;
    pub const ACCESSED_DIRTY: u64 = 1 << 21;
    pub const ADVANCED_INFO: u64 = 1 << 22;
    pub const INVEPT_SINGLE: u64 = 1 << 25;
    pub const INVEPT_ALL: u64 = 1 << 26;
    pub const INVVPID: u64 = 1 << 32;
    pub const INVVPID_ADDRESS: u64 = 1 << 40;
    pub const INVVPID_SINGLE: u64 = 1 << 41;
    pub const INVVPID_ALL: u64 = 1 << 42;
    pub const INVVPID_RETAINING_GLOBALS: u64 = 1 << 43;
}

/// `IA32_VMX_BASIC`. SDM vol. 3, "Basic VMX Information" (appendix A).
pub mod basic {
    pub const INS_OUTS_INFO: u64 = 1 << 54;
    pub const TRUE_CONTROLS: u64 = 1 << 55;
    pub const ANY_ERROR_CODE: u64 = 1 << 56;
}

/// `IA32_VMX_MISC`. SDM vol. 3, "Miscellaneous Data" (appendix A).
pub mod misc {
    pub const TIMER_RATE: u64 = 0x1f;
    pub const EXIT_SAVES_LMA: u64 = 1 << 5;
    pub const HLT: u64 = 1 << 6;
    pub const SHUTDOWN: u64 = 1 << 7;
    pub const WAIT_FOR_SIPI: u64 = 1 << 8;
    pub const CR3_TARGETS: u64 = 0x1ff << 16;
    pub const MSR_LIST: u64 = 7 << 25;
    pub const VMWRITE_ANY: u64 = 1 << 29;
    pub const ZERO_LENGTH_INJECTION: u64 = 1 << 30;
}

/// Control registers, EFER and RFLAGS, as far as VMX looks at them.
pub mod reg {
    pub const CR0_PE: u64 = 1 << 0;
    pub const CR0_MP: u64 = 1 << 1;
    pub const CR0_EM: u64 = 1 << 2;
    pub const CR0_TS: u64 = 1 << 3;
    pub const CR0_NE: u64 = 1 << 5;
    pub const CR0_WP: u64 = 1 << 16;
    pub const CR0_NW: u64 = 1 << 29;
    pub const CR0_CD: u64 = 1 << 30;
    pub const CR0_PG: u64 = 1 << 31;
    pub const CR4_PAE: u64 = 1 << 5;
    pub const CR4_LA57: u64 = 1 << 12;
    pub const CR4_VMXE: u64 = 1 << 13;
    pub const CR4_PCIDE: u64 = 1 << 17;
    pub const CR4_CET: u64 = 1 << 23;
    pub const CR4_PKS: u64 = 1 << 24;
    pub const EFER_LME: u64 = 1 << 8;
    pub const EFER_LMA: u64 = 1 << 10;
    pub const EFER_NXE: u64 = 1 << 11;
    pub const RFLAGS_FIXED: u64 = 1 << 1;
    pub const RFLAGS_TF: u64 = 1 << 8;
    pub const RFLAGS_IF: u64 = 1 << 9;
    pub const RFLAGS_VM: u64 = 1 << 17;
    pub const DEBUGCTL_BTF: u64 = 1 << 1;
    pub const DR7_RESET: u64 = 0x400;
    pub const FEATURE_CONTROL_LOCK: u64 = 1 << 0;
    pub const FEATURE_CONTROL_VMX: u64 = 1 << 2;
}
