//! The fields of a VMCS: one table of what each is, for vmcs01, vmcs12 and vmcs02 alike.
//!
//! Sources: SDM vol. 3, "Field Encoding in VMCS" (appendix B) for the encodings; "VMREAD, VMWRITE, and
//! Encodings of VMCS Fields" for their parts. Which capability brings a field into being is said there, too.

mod set;

use core::fmt;
pub use set::FieldSet;

/// A field, as a position in the table. Small and dense, so that sets and mirrors of fields are arrays.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Field(u8);

/// Bits of a field (encoding bits 14:13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 16 bits.
    Bits16,
    /// 64 bits, with a second encoding for the high half.
    Bits64,
    /// 32 bits.
    Bits32,
    /// 64 bits where the processor has long mode.
    Natural,
}

impl Width {
    /// The bits that a field of this width has.
    pub const fn mask(self) -> u64 {
        match self {
            Self::Bits16 => 0xffff,
            Self::Bits32 => 0xffff_ffff,
            Self::Bits64 | Self::Natural => u64::MAX,
        }
    }
}

/// What kind of state a field is (encoding bits 11:10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A control of execution, exit or entry.
    Control,
    /// Information on an exit. Read-only where `IA32_VMX_MISC[29]` is 0.
    Exit,
    /// Guest state.
    Guest,
    /// Host state.
    Host,
}

/// What must be offered for a field to exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Each is the name of one control or capability.
pub enum Needs {
    /// Every processor with VMX and the secondary controls has it.
    Always,
    Vpid,
    PostedInterrupts,
    EptpSwitching,
    VirtualInterruptDelivery,
    Pml,
    MsrBitmaps,
    TprShadow,
    ApicAccess,
    VmFunctions,
    Ept,
    VmcsShadowing,
    Xsaves,
    TscScaling,
    PauseLoopExiting,
    PreemptionTimer,
    GuestPat,
    HostPat,
    GuestEfer,
    HostEfer,
    GuestPerfGlobal,
    HostPerfGlobal,
    Cet,
    GuestPkrs,
    HostPkrs,
    /// Belongs to a feature that no L1 is offered; Testudo itself may use it in a vmcs01.
    NotOffered,
}

/// What becomes of a field between vmcs12 and vmcs02.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// L2's state: copied into vmcs02, and read back when L1 asks for it (or the vmcs02 goes).
    Rare,
    /// L2's state: copied into vmcs02, and read back on each reflected exit.
    Live,
    /// L2's state that [`crate::merge`] and [`crate::reflect`] compose, each by a line of its own.
    Mixed,
    /// A control that [`crate::merge`] composes. L1's value stays what L1 wrote.
    Control,
    /// L1's host state: never reaches vmcs02, is loaded into vmcs01 on a reflected exit.
    Host,
    /// Exit information: filled in by [`crate::reflect`].
    Info,
    /// L1's value is kept for L1 and used for nothing; vmcs02 has L0's own.
    Unused,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    name: &'static str,
    needs: Needs,
}

macro_rules! fields {
    ($($name:ident $encoding:literal $needs:ident $flow:ident;)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        enum Position { $($name),* }
        impl Field {
            $(
                #[doc = concat!("`", stringify!($name), "`, encoding ", stringify!($encoding), ".")]
                pub const $name: Self = Self(Position::$name as u8);
            )*
        }
        static ROWS: [Row; COUNT] = [$(Row {
            name: stringify!($name), needs: Needs::$needs,
        }),*];
        /// Number of fields.
        pub const COUNT: usize = [$($encoding as u16),*].len();
        /// The columns that are used when the crate is compiled.
        const ENCODINGS: [u16; COUNT] = [$($encoding),*];
        const FLOWS: [Flow; COUNT] = [$(Flow::$flow),*];
    };
}

fields! {
    // 16 bits
    VPID                     0x0000 Vpid                     Control;
    POSTED_INTR_NV           0x0002 PostedInterrupts         Control;
    EPTP_INDEX               0x0004 NotOffered               Unused;
    HLAT_PREFIX_SIZE         0x0006 NotOffered               Unused;
    LAST_PID_POINTER_INDEX   0x0008 NotOffered               Unused;
    GUEST_ES_SELECTOR        0x0800 Always                   Rare;
    GUEST_CS_SELECTOR        0x0802 Always                   Rare;
    GUEST_SS_SELECTOR        0x0804 Always                   Rare;
    GUEST_DS_SELECTOR        0x0806 Always                   Rare;
    GUEST_FS_SELECTOR        0x0808 Always                   Rare;
    GUEST_GS_SELECTOR        0x080a Always                   Rare;
    GUEST_LDTR_SELECTOR      0x080c Always                   Rare;
    GUEST_TR_SELECTOR        0x080e Always                   Rare;
    GUEST_INTR_STATUS        0x0810 VirtualInterruptDelivery Mixed;
    GUEST_PML_INDEX          0x0812 Pml                      Mixed;
    GUEST_UINV               0x0814 NotOffered               Unused;
    HOST_ES_SELECTOR         0x0c00 Always                   Host;
    HOST_CS_SELECTOR         0x0c02 Always                   Host;
    HOST_SS_SELECTOR         0x0c04 Always                   Host;
    HOST_DS_SELECTOR         0x0c06 Always                   Host;
    HOST_FS_SELECTOR         0x0c08 Always                   Host;
    HOST_GS_SELECTOR         0x0c0a Always                   Host;
    HOST_TR_SELECTOR         0x0c0c Always                   Host;
    // 64 bits
    IO_BITMAP_A              0x2000 Always                   Control;
    IO_BITMAP_B              0x2002 Always                   Control;
    MSR_BITMAP               0x2004 MsrBitmaps               Control;
    VM_EXIT_MSR_STORE_ADDR   0x2006 Always                   Control;
    VM_EXIT_MSR_LOAD_ADDR    0x2008 Always                   Control;
    VM_ENTRY_MSR_LOAD_ADDR   0x200a Always                   Control;
    EXECUTIVE_VMCS_POINTER   0x200c Always                   Unused;
    PML_ADDRESS              0x200e Pml                      Control;
    TSC_OFFSET               0x2010 Always                   Control;
    VIRTUAL_APIC_ADDRESS     0x2012 TprShadow                Control;
    APIC_ACCESS_ADDRESS      0x2014 ApicAccess               Control;
    POSTED_INTR_DESC_ADDR    0x2016 PostedInterrupts         Control;
    VM_FUNCTION_CONTROLS     0x2018 VmFunctions              Control;
    EPT_POINTER              0x201a Ept                      Control;
    EOI_EXIT_BITMAP_0        0x201c VirtualInterruptDelivery Control;
    EOI_EXIT_BITMAP_1        0x201e VirtualInterruptDelivery Control;
    EOI_EXIT_BITMAP_2        0x2020 VirtualInterruptDelivery Control;
    EOI_EXIT_BITMAP_3        0x2022 VirtualInterruptDelivery Control;
    EPTP_LIST_ADDRESS        0x2024 EptpSwitching            Control;
    VMREAD_BITMAP            0x2026 VmcsShadowing            Control;
    VMWRITE_BITMAP           0x2028 VmcsShadowing            Control;
    VE_INFORMATION_ADDRESS   0x202a NotOffered               Unused;
    XSS_EXITING_BITMAP       0x202c Xsaves                   Control;
    ENCLS_EXITING_BITMAP     0x202e NotOffered               Unused;
    SPP_TABLE_POINTER        0x2030 NotOffered               Unused;
    TSC_MULTIPLIER           0x2032 TscScaling               Control;
    TERTIARY_CONTROLS        0x2034 NotOffered               Unused;
    ENCLV_EXITING_BITMAP     0x2036 NotOffered               Unused;
    LOW_PASID_DIRECTORY      0x2038 NotOffered               Unused;
    HIGH_PASID_DIRECTORY     0x203a NotOffered               Unused;
    SHARED_EPT_POINTER       0x203c NotOffered               Unused;
    PCONFIG_EXITING_BITMAP   0x203e NotOffered               Unused;
    HLAT_POINTER             0x2040 NotOffered               Unused;
    PID_POINTER_TABLE        0x2042 NotOffered               Unused;
    SECONDARY_EXIT_CONTROLS  0x2044 NotOffered               Unused;
    SPEC_CTRL_MASK           0x204a NotOffered               Unused;
    SPEC_CTRL_SHADOW         0x204c NotOffered               Unused;
    GUEST_PHYSICAL_ADDRESS   0x2400 Ept                      Info;
    VMCS_LINK_POINTER        0x2800 Always                   Mixed;
    GUEST_DEBUGCTL           0x2802 Always                   Mixed;
    GUEST_PAT                0x2804 GuestPat                 Mixed;
    GUEST_EFER               0x2806 GuestEfer                Mixed;
    GUEST_PERF_GLOBAL_CTRL   0x2808 GuestPerfGlobal          Mixed;
    GUEST_PDPTE0             0x280a Ept                      Mixed;
    GUEST_PDPTE1             0x280c Ept                      Mixed;
    GUEST_PDPTE2             0x280e Ept                      Mixed;
    GUEST_PDPTE3             0x2810 Ept                      Mixed;
    GUEST_BNDCFGS            0x2812 NotOffered               Unused;
    GUEST_RTIT_CTL           0x2814 NotOffered               Unused;
    GUEST_LBR_CTL            0x2816 NotOffered               Unused;
    GUEST_PKRS               0x2818 GuestPkrs                Mixed;
    HOST_PAT                 0x2c00 HostPat                  Host;
    HOST_EFER                0x2c02 HostEfer                 Host;
    HOST_PERF_GLOBAL_CTRL    0x2c04 HostPerfGlobal           Host;
    HOST_PKRS                0x2c06 HostPkrs                 Host;
    // 32 bits
    PIN_CONTROLS             0x4000 Always                   Control;
    PRIMARY_CONTROLS         0x4002 Always                   Control;
    EXCEPTION_BITMAP         0x4004 Always                   Control;
    PFEC_MASK                0x4006 Always                   Control;
    PFEC_MATCH               0x4008 Always                   Control;
    CR3_TARGET_COUNT         0x400a Always                   Control;
    EXIT_CONTROLS            0x400c Always                   Control;
    VM_EXIT_MSR_STORE_COUNT  0x400e Always                   Control;
    VM_EXIT_MSR_LOAD_COUNT   0x4010 Always                   Control;
    ENTRY_CONTROLS           0x4012 Always                   Control;
    VM_ENTRY_MSR_LOAD_COUNT  0x4014 Always                   Control;
    ENTRY_INTR_INFO          0x4016 Always                   Control;
    ENTRY_ERROR_CODE         0x4018 Always                   Control;
    ENTRY_INSN_LENGTH        0x401a Always                   Control;
    TPR_THRESHOLD            0x401c TprShadow                Control;
    SECONDARY_CONTROLS       0x401e Always                   Control;
    PLE_GAP                  0x4020 PauseLoopExiting         Control;
    PLE_WINDOW               0x4022 PauseLoopExiting         Control;
    INSN_TIMEOUT             0x4024 NotOffered               Unused;
    VM_INSTRUCTION_ERROR     0x4400 Always                   Info;
    EXIT_REASON              0x4402 Always                   Info;
    EXIT_INTR_INFO           0x4404 Always                   Info;
    EXIT_INTR_ERROR_CODE     0x4406 Always                   Info;
    IDT_VECTORING_INFO       0x4408 Always                   Info;
    IDT_VECTORING_ERROR_CODE 0x440a Always                   Info;
    EXIT_INSN_LENGTH         0x440c Always                   Info;
    EXIT_INSN_INFO           0x440e Always                   Info;
    GUEST_ES_LIMIT           0x4800 Always                   Rare;
    GUEST_CS_LIMIT           0x4802 Always                   Rare;
    GUEST_SS_LIMIT           0x4804 Always                   Rare;
    GUEST_DS_LIMIT           0x4806 Always                   Rare;
    GUEST_FS_LIMIT           0x4808 Always                   Rare;
    GUEST_GS_LIMIT           0x480a Always                   Rare;
    GUEST_LDTR_LIMIT         0x480c Always                   Rare;
    GUEST_TR_LIMIT           0x480e Always                   Rare;
    GUEST_GDTR_LIMIT         0x4810 Always                   Rare;
    GUEST_IDTR_LIMIT         0x4812 Always                   Rare;
    GUEST_ES_AR              0x4814 Always                   Rare;
    GUEST_CS_AR              0x4816 Always                   Live;
    GUEST_SS_AR              0x4818 Always                   Live;
    GUEST_DS_AR              0x481a Always                   Rare;
    GUEST_FS_AR              0x481c Always                   Rare;
    GUEST_GS_AR              0x481e Always                   Rare;
    GUEST_LDTR_AR            0x4820 Always                   Rare;
    GUEST_TR_AR              0x4822 Always                   Rare;
    GUEST_INTERRUPTIBILITY   0x4824 Always                   Mixed;
    GUEST_ACTIVITY           0x4826 Always                   Mixed;
    GUEST_SMBASE             0x4828 Always                   Unused;
    GUEST_SYSENTER_CS        0x482a Always                   Rare;
    PREEMPTION_TIMER         0x482e PreemptionTimer          Mixed;
    HOST_SYSENTER_CS         0x4c00 Always                   Host;
    // natural width
    CR0_MASK                 0x6000 Always                   Control;
    CR4_MASK                 0x6002 Always                   Control;
    CR0_SHADOW               0x6004 Always                   Control;
    CR4_SHADOW               0x6006 Always                   Control;
    CR3_TARGET_0             0x6008 Always                   Control;
    CR3_TARGET_1             0x600a Always                   Control;
    CR3_TARGET_2             0x600c Always                   Control;
    CR3_TARGET_3             0x600e Always                   Control;
    EXIT_QUALIFICATION       0x6400 Always                   Info;
    IO_RCX                   0x6402 Always                   Info;
    IO_RSI                   0x6404 Always                   Info;
    IO_RDI                   0x6406 Always                   Info;
    IO_RIP                   0x6408 Always                   Info;
    GUEST_LINEAR_ADDRESS     0x640a Always                   Info;
    GUEST_CR0                0x6800 Always                   Mixed;
    GUEST_CR3                0x6802 Always                   Mixed;
    GUEST_CR4                0x6804 Always                   Mixed;
    GUEST_ES_BASE            0x6806 Always                   Rare;
    GUEST_CS_BASE            0x6808 Always                   Rare;
    GUEST_SS_BASE            0x680a Always                   Rare;
    GUEST_DS_BASE            0x680c Always                   Rare;
    GUEST_FS_BASE            0x680e Always                   Rare;
    GUEST_GS_BASE            0x6810 Always                   Rare;
    GUEST_LDTR_BASE          0x6812 Always                   Rare;
    GUEST_TR_BASE            0x6814 Always                   Rare;
    GUEST_GDTR_BASE          0x6816 Always                   Rare;
    GUEST_IDTR_BASE          0x6818 Always                   Rare;
    GUEST_DR7                0x681a Always                   Mixed;
    GUEST_RSP                0x681c Always                   Live;
    GUEST_RIP                0x681e Always                   Live;
    GUEST_RFLAGS             0x6820 Always                   Live;
    GUEST_PENDING_DEBUG      0x6822 Always                   Live;
    GUEST_SYSENTER_ESP       0x6824 Always                   Rare;
    GUEST_SYSENTER_EIP       0x6826 Always                   Rare;
    GUEST_S_CET              0x6828 Cet                      Mixed;
    GUEST_SSP                0x682a Cet                      Mixed;
    GUEST_SSP_TABLE          0x682c Cet                      Mixed;
    HOST_CR0                 0x6c00 Always                   Host;
    HOST_CR3                 0x6c02 Always                   Host;
    HOST_CR4                 0x6c04 Always                   Host;
    HOST_FS_BASE             0x6c06 Always                   Host;
    HOST_GS_BASE             0x6c08 Always                   Host;
    HOST_TR_BASE             0x6c0a Always                   Host;
    HOST_GDTR_BASE           0x6c0c Always                   Host;
    HOST_IDTR_BASE           0x6c0e Always                   Host;
    HOST_SYSENTER_ESP        0x6c10 Always                   Host;
    HOST_SYSENTER_EIP        0x6c12 Always                   Host;
    HOST_RSP                 0x6c14 Always                   Host;
    HOST_RIP                 0x6c16 Always                   Host;
    HOST_S_CET               0x6c18 Cet                      Host;
    HOST_SSP                 0x6c1a Cet                      Host;
    HOST_SSP_TABLE           0x6c1c Cet                      Host;
}

/// Where an encoding without its lowest bit is found: width, class, and 6 bits of index.
const fn place(encoding: u16) -> Option<usize> {
    let index = (encoding >> 1) & 0x1ff;
    // Bits 12 and 31:15 are reserved; no field has an index of more than 6 bits.
    if encoding & 0x9000 != 0 || index > 63 {
        return None;
    }
    Some(((encoding >> 13 & 3) << 8 | (encoding >> 10 & 3) << 6 | index) as usize)
}

const ABSENT: u8 = u8::MAX;

/// From [`place`] to a position in the table.
static BY_PLACE: [u8; 1024] = {
    let mut map = [ABSENT; 1024];
    let mut at = 0;
    while at < COUNT {
        match place(ENCODINGS[at]) {
            Some(place) => map[place] = at as u8,
            None => panic!("an encoding with reserved bits"),
        }
        at += 1;
    }
    map
};

impl Field {
    /// The field that an operand of VMREAD or VMWRITE names, and whether it names the high half of a 64-bit
    /// field. `None` for reserved bits, a high half of a narrower field, and fields that nobody knows.
    #[inline]
    pub fn decode(encoding: u64) -> Option<(Self, bool)> {
        let encoding = u16::try_from(encoding).ok()?;
        let high = encoding & 1 != 0;
        let field = Self(*BY_PLACE.get(place(encoding & !1)?)?);
        let known = field.0 != ABSENT && (!high || field.width() == Width::Bits64);
        known.then_some((field, high))
    }
    /// The operand by which VMREAD and VMWRITE name it (its low half, or all of it).
    #[inline]
    pub const fn encoding(self) -> u32 {
        ENCODINGS[self.index()] as u32
    }
    /// Position in the table: less than [`COUNT`].
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
    /// Bits.
    #[inline]
    pub const fn width(self) -> Width {
        match self.encoding() >> 13 & 3 {
            0 => Width::Bits16,
            1 => Width::Bits64,
            2 => Width::Bits32,
            _ => Width::Natural,
        }
    }
    /// Kind of state.
    pub const fn class(self) -> Class {
        match self.encoding() >> 10 & 3 {
            0 => Class::Control,
            1 => Class::Exit,
            2 => Class::Guest,
            _ => Class::Host,
        }
    }
    /// What must be offered for it to exist.
    #[inline]
    pub fn needs(self) -> Needs {
        ROWS[self.index()].needs
    }
    /// What becomes of it between vmcs12 and vmcs02.
    #[inline]
    pub const fn flow(self) -> Flow {
        FLOWS[self.index()]
    }
    /// Its name.
    pub fn name(self) -> &'static str {
        ROWS[self.index()].name
    }
    /// All fields, in the order of the table.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..COUNT as u8).map(Self)
    }
    /// The field `n` steps further in the table, for the runs of segment registers: `n` must stay in its run.
    #[inline]
    pub(crate) const fn step(self, n: u8) -> Self {
        Self(if self.0 + n < COUNT as u8 { self.0 + n } else { self.0 })
    }
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A VMCS by its fields: the processor's by VMREAD and VMWRITE, or an array in tests.
pub trait Vmcs {
    /// Reads a field that exists.
    fn read(&mut self, field: Field) -> u64;
    /// Writes a field that exists.
    fn write(&mut self, field: Field, value: u64);
}
