//! The numbers that VMX speaks: exit reasons, instruction errors, aborts, exit qualifications.

/// A basic exit reason. Any number can be one. SDM vol. 3, "VMX Basic Exit Reasons" (appendix C).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Reason(pub u16);

macro_rules! reasons {
    ($($name:ident $number:literal;)*) => {
        impl Reason {
            $(#[doc = concat!("Basic exit reason ", stringify!($number), ".")]
            pub const $name: Self = Self($number);)*
            /// The manual's name, if it has one.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 { $($number => Some(stringify!($name)),)* _ => None }
            }
        }
        /// Every reason with a name.
        pub const REASONS: &[Reason] = &[$(Reason($number)),*];
    };
}

reasons! {
    EXCEPTION_NMI 0; EXTERNAL_INTERRUPT 1; TRIPLE_FAULT 2; INIT 3; SIPI 4; IO_SMI 5; OTHER_SMI 6;
    INTERRUPT_WINDOW 7; NMI_WINDOW 8; TASK_SWITCH 9; CPUID 10; GETSEC 11; HLT 12; INVD 13; INVLPG 14;
    RDPMC 15; RDTSC 16; RSM 17; VMCALL 18; VMCLEAR 19; VMLAUNCH 20; VMPTRLD 21; VMPTRST 22; VMREAD 23;
    VMRESUME 24; VMWRITE 25; VMXOFF 26; VMXON 27; CR_ACCESS 28; DR_ACCESS 29; IO 30; RDMSR 31; WRMSR 32;
    INVALID_GUEST_STATE 33; MSR_LOADING 34; MWAIT 36; MONITOR_TRAP 37; MONITOR 39; PAUSE 40;
    MACHINE_CHECK_ENTRY 41; TPR_BELOW_THRESHOLD 43; APIC_ACCESS 44; VIRTUALIZED_EOI 45; GDTR_IDTR 46;
    LDTR_TR 47; EPT_VIOLATION 48; EPT_MISCONFIGURATION 49; INVEPT 50; RDTSCP 51; PREEMPTION_TIMER 52;
    INVVPID 53; WBINVD 54; XSETBV 55; APIC_WRITE 56; RDRAND 57; INVPCID 58; VMFUNC 59; ENCLS 60;
    RDSEED 61; PML_FULL 62; XSAVES 63; XRSTORS 64; PCONFIG 65; SPP 66; UMWAIT 67; TPAUSE 68; LOADIWKEY 69;
    ENCLV 70; ENQCMD_PASID 72; ENQCMDS_PASID 73; BUS_LOCK 74; NOTIFY 75; SEAMCALL 76; TDCALL 77;
    RDMSRLIST 78; WRMSRLIST 79; URDMSR 80; UWRMSR 81; RDMSR_IMM 84; WRMSR_IMM 85;
}

impl Reason {
    /// Bit 31 of the exit-reason field: the VM entry failed.
    pub const ENTRY_FAILURE: u32 = 1 << 31;

    /// From the exit-reason field.
    pub const fn from_field(field: u32) -> Self {
        Self(field as u16)
    }
}

/// A VM-instruction error number. SDM vol. 3, "VM Instruction Error Numbers".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)] // The manual's one-line descriptions, as names.
pub enum InsnError {
    VmcallInRoot = 1,
    VmclearBadAddress = 2,
    VmclearVmxonPointer = 3,
    VmlaunchNotClear = 4,
    VmresumeNotLaunched = 5,
    VmresumeAfterVmxoff = 6,
    BadControls = 7,
    BadHostState = 8,
    VmptrldBadAddress = 9,
    VmptrldVmxonPointer = 10,
    VmptrldRevision = 11,
    UnsupportedField = 12,
    ReadOnlyField = 13,
    VmxonInRoot = 15,
    BlockedByMovSs = 26,
    BadInvalidationOperand = 28,
}

/// A VMX abort indicator. SDM vol. 3, "VMX Aborts".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Abort {
    /// Saving guest MSRs failed.
    SavingGuestMsrs = 1,
    /// The PDPTEs of L1's host CR3 are not loadable.
    HostPdpte = 2,
    /// Loading host MSRs failed.
    LoadingHostMsrs = 4,
}

/// Exit qualification of a VM entry that failed on guest state. SDM vol. 3, "VM-Entry Failures During or
/// After Loading Guest State".
pub mod entry_failure {
    /// Nothing more is said.
    pub const PLAIN: u64 = 0;
    /// A PDPTE.
    pub const PDPTE: u64 = 2;
    /// An NMI injected into blocking by STI.
    pub const NMI: u64 = 3;
    /// The VMCS link pointer.
    pub const LINK: u64 = 4;
}

/// The interruption-information format shared by entry, exit and IDT-vectoring fields. SDM vol. 3,
/// "VM-Entry Controls for Event Injection", "Information for VM Exits Due to Vectored Events".
pub mod intr {
    /// Event types, bits 10:8.
    pub mod kind {
        #![allow(missing_docs)] // The manual's names.
        pub const EXTERNAL: u32 = 0;
        pub const RESERVED: u32 = 1;
        pub const NMI: u32 = 2;
        pub const HARDWARE: u32 = 3;
        pub const SOFT_INTERRUPT: u32 = 4;
        pub const PRIV_SOFT: u32 = 5;
        pub const SOFT_EXCEPTION: u32 = 6;
        pub const OTHER: u32 = 7;
    }
    /// An error code goes with it.
    pub const ERROR_CODE: u32 = 1 << 11;
    /// Exit information only: NMI unblocking due to IRET.
    pub const NMI_UNBLOCKED: u32 = 1 << 12;
    /// The field holds an event.
    pub const VALID: u32 = 1 << 31;

    /// Event type of `info`.
    pub const fn kind_of(info: u32) -> u32 {
        info >> 8 & 7
    }
    /// Vector of `info`.
    pub const fn vector(info: u32) -> u8 {
        info as u8
    }
    /// Whether `info` holds an event.
    pub const fn valid(info: u32) -> bool {
        info & VALID != 0
    }
    /// Whether the event is an NMI.
    pub const fn is_nmi(info: u32) -> bool {
        info & VALID != 0 && kind_of(info) == kind::NMI
    }
    /// Whether the event's delivery pushes the address behind an instruction: it needs its length.
    pub const fn is_soft(info: u32) -> bool {
        matches!(kind_of(info), kind::SOFT_INTERRUPT | kind::PRIV_SOFT | kind::SOFT_EXCEPTION)
    }
}

/// Bits of the guest's interruptibility state. SDM vol. 3, "Guest Non-Register State".
pub mod blocking {
    #![allow(missing_docs)] // The manual's names.
    pub const STI: u64 = 1 << 0;
    pub const MOV_SS: u64 = 1 << 1;
    pub const SMI: u64 = 1 << 2;
    pub const NMI: u64 = 1 << 3;
    pub const ENCLAVE: u64 = 1 << 4;
}

/// Activity states. SDM vol. 3, "Guest Non-Register State".
pub mod activity {
    #![allow(missing_docs)] // The manual's names.
    pub const ACTIVE: u64 = 0;
    pub const HLT: u64 = 1;
    pub const SHUTDOWN: u64 = 2;
    pub const WAIT_FOR_SIPI: u64 = 3;
}
