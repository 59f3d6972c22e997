//! What a domain's L1 may use of VMX: constants of the domain, chosen when it is created, in the form of the
//! capability MSRs that it reads. SDM vol. 3, "VMX Capability Reporting Facility" (appendix A).

use crate::bits::{basic, entry, ept_cap, exit, misc, pin, primary, reg::*, secondary, vmfunc};
use crate::field::{Field, Needs};
use crate::vmcs12::REVISION;

/// What a control word may be: low half, bits that must be 1; high half, bits that may be 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Ctl(pub u64);

impl Ctl {
    /// From its two halves.
    pub const fn new(must: u32, may: u32) -> Self {
        Self((may as u64 | must as u64) << 32 | must as u64)
    }
    /// Bits that must be 1.
    #[inline]
    pub const fn must(self) -> u32 {
        self.0 as u32
    }
    /// Bits that may be 1.
    #[inline]
    pub const fn may(self) -> u32 {
        (self.0 >> 32) as u32
    }
    /// Whether the word `value` is allowed.
    #[inline]
    pub const fn allows(self, value: u32) -> bool {
        value & self.must() == self.must() && value & !self.may() == 0
    }
    /// Whether all of `bits` may be 1.
    #[inline]
    pub const fn has(self, bits: u32) -> bool {
        self.may() & bits == bits
    }
}

/// The VMX capability MSRs that say something; the others follow from them. Both what the processor has and
/// what L1 is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct VmxMsrs {
    /// 480h.
    pub basic: u64,
    /// 48Dh, or 481h where there is none.
    pub pin: Ctl,
    /// 48Eh, or 482h.
    pub primary: Ctl,
    /// 48Fh, or 483h.
    pub exit: Ctl,
    /// 490h, or 484h.
    pub entry: Ctl,
    /// 485h.
    pub misc: u64,
    /// 486h.
    pub cr0_fixed0: u64,
    /// 487h.
    pub cr0_fixed1: u64,
    /// 488h.
    pub cr4_fixed0: u64,
    /// 489h.
    pub cr4_fixed1: u64,
    /// 48Bh; 0 where there are no secondary controls.
    pub secondary: Ctl,
    /// 48Ch; 0 where there are neither EPT nor VPID.
    pub ept_vpid: u64,
    /// 491h; 0 where there are no VM functions.
    pub vmfunc: u64,
}

impl VmxMsrs {
    /// Reads a processor's, which has VMX. Only MSRs that exist are read.
    pub fn read(mut rdmsr: impl FnMut(u32) -> u64) -> Self {
        let basic = rdmsr(0x480);
        let ctl = if basic & basic::TRUE_CONTROLS != 0 { 0x48d } else { 0x481 };
        let [pin, primary, exit, entry] = core::array::from_fn(|i| Ctl(rdmsr(ctl + i as u32)));
        let mut if_msr = |exists: bool, msr| if exists { rdmsr(msr) } else { 0 };
        let secondary = Ctl(if_msr(primary.has(primary::SECONDARY), 0x48b));
        let tables = secondary.may() & (secondary::EPT | secondary::VPID) != 0;
        let ept_vpid = if_msr(tables, 0x48c);
        let vmfunc = if_msr(secondary.has(secondary::VM_FUNCTIONS), 0x491);
        let [misc, cr0_fixed0, cr0_fixed1, cr4_fixed0, cr4_fixed1] =
            core::array::from_fn(|i| rdmsr(0x485 + i as u32));
        Self {
            basic,
            pin,
            primary,
            exit,
            entry,
            misc,
            cr0_fixed0,
            cr0_fixed1,
            cr4_fixed0,
            cr4_fixed1,
            secondary,
            ept_vpid,
            vmfunc,
        }
    }
}

/// What the domain's CPUID says, as far as VMX depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Physical address bits, 32 to 52.
    pub maxphyaddr: u8,
    /// CR4 bits that exist, VMXE included.
    pub cr4: u64,
    /// EFER bits that exist, without SVME.
    pub efer: u64,
    /// IA32_DEBUGCTL bits that exist.
    pub debugctl: u64,
    /// IA32_PERF_GLOBAL_CTRL bits that exist; 0 where there is no such MSR.
    pub perf_global: u64,
    /// 1 GiB pages.
    pub pages_1g: bool,
    /// Secondary controls that belong to instructions which the domain doesn't have (RDTSCP, INVPCID, XSAVES,
    /// user wait, RDRAND, RDSEED): they are not offered.
    pub absent: u32,
}

/// Bits that are 1 in every control word: the default1 class that the TRUE MSRs keep.
const FIXED: [u32; 4] = [0x16, 0x0400_6172, 0x0003_6dfb, 0x0000_11fb];
/// Bits that are 1 in 481h–484h: the whole default1 class. SDM vol. 3, "Reserved Controls and Default
/// Settings" (appendix A).
const DEFAULT1: [u32; 4] = [0x16, 0x0401_e172, 0x0003_6dff, 0x0000_11ff];

/// What this crate composes. A control in none of these lists is offered to nobody.
const PIN: u32 = pin::EXTERNAL_INTERRUPT | pin::NMI | pin::VIRTUAL_NMIS | pin::POSTED_INTERRUPTS;
/// Pin controls that need no hardware: L0 keeps L1's deadline with a timer of its own.
const PIN_SOFTWARE: u32 = pin::PREEMPTION_TIMER;
const PRIMARY: u32 = primary::INTERRUPT_WINDOW
    | primary::TSC_OFFSETTING
    | primary::HLT
    | primary::INVLPG
    | primary::MWAIT
    | primary::RDPMC
    | primary::RDTSC
    | primary::CR3_LOAD
    | primary::CR3_STORE
    | primary::CR8_LOAD
    | primary::CR8_STORE
    | primary::TPR_SHADOW
    | primary::NMI_WINDOW
    | primary::MOV_DR
    | primary::UNCONDITIONAL_IO
    | primary::IO_BITMAPS
    | primary::MONITOR_TRAP
    | primary::MSR_BITMAPS
    | primary::MONITOR
    | primary::PAUSE
    | primary::SECONDARY;
const SECONDARY: u32 = secondary::APIC_ACCESS
    | secondary::EPT
    | secondary::DESCRIPTOR_TABLE
    | secondary::RDTSCP
    | secondary::X2APIC
    | secondary::WBINVD
    | secondary::UNRESTRICTED_GUEST
    | secondary::APIC_REGISTERS
    | secondary::INTERRUPT_DELIVERY
    | secondary::PAUSE_LOOP
    | secondary::RDRAND
    | secondary::INVPCID
    | secondary::VM_FUNCTIONS
    | secondary::RDSEED
    | secondary::XSAVES
    | secondary::TSC_SCALING
    | secondary::USER_WAIT;
/// Secondary controls that need no hardware: VPID (without hardware tags each entry flushes), VMCS
/// shadowing (L2's VMREAD and VMWRITE come to L0), PML (logged by the walk of L1's tables).
const SECONDARY_SOFTWARE: u32 = secondary::VPID | secondary::VMCS_SHADOWING | secondary::PML;
const EXIT: u32 = exit::SAVE_DEBUG
    | exit::HOST_64
    | exit::LOAD_PERF_GLOBAL
    | exit::ACK_INTERRUPT
    | exit::SAVE_PAT
    | exit::LOAD_PAT
    | exit::SAVE_EFER
    | exit::LOAD_EFER
    | exit::SAVE_TIMER
    | exit::LOAD_CET
    | exit::LOAD_PKRS;
const ENTRY: u32 = entry::LOAD_DEBUG
    | entry::IA32E
    | entry::LOAD_PERF_GLOBAL
    | entry::LOAD_PAT
    | entry::LOAD_EFER
    | entry::LOAD_CET
    | entry::LOAD_PKRS;

/// What this L1 may use. Equal on all vCPUs of a domain, unchanged during its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// The capability MSRs that L1 reads.
    pub msrs: VmxMsrs,
    /// The domain's CPUID.
    pub cpu: Cpu,
}

impl Caps {
    /// What to offer a domain with `cpu` on a processor with `hw`.
    pub fn offer(hw: &VmxMsrs, cpu: Cpu) -> Self {
        let ept = hw.secondary.has(secondary::EPT) && hw.ept_vpid & ept_cap::WB != 0;
        let mut second = (SECONDARY & hw.secondary.may() & !cpu.absent) | SECONDARY_SOFTWARE;
        if !ept {
            second &=
                !(secondary::EPT | secondary::UNRESTRICTED_GUEST | secondary::VM_FUNCTIONS | secondary::PML);
        }
        // What hangs on others: no L1 could use one without the other.
        let tpr = hw.primary.has(primary::TPR_SHADOW);
        if !tpr {
            second &= !(secondary::X2APIC | secondary::APIC_REGISTERS | secondary::INTERRUPT_DELIVERY);
        }
        let mut pins = PIN & hw.pin.may() | PIN_SOFTWARE;
        if second & secondary::INTERRUPT_DELIVERY == 0 {
            pins &= !pin::POSTED_INTERRUPTS;
        }
        if hw.vmfunc & vmfunc::EPTP_SWITCHING == 0 {
            second &= !secondary::VM_FUNCTIONS;
        }
        let (exits, entries) = Self::load_controls(hw, &cpu);
        let [pin_fixed, primary_fixed, exit_fixed, entry_fixed] = FIXED;
        let msrs = VmxMsrs {
            basic: u64::from(REVISION)
                | 4096 << 32
                | 6 << 50
                | basic::TRUE_CONTROLS
                | hw.basic & (basic::INS_OUTS_INFO | basic::ANY_ERROR_CODE),
            pin: Ctl::new(pin_fixed, pins),
            primary: Ctl::new(primary_fixed, PRIMARY & hw.primary.may() | primary::SECONDARY),
            exit: Ctl::new(exit_fixed, exits),
            entry: Ctl::new(entry_fixed, entries),
            misc: misc(hw, second),
            cr0_fixed0: CR0_PE | CR0_NE | CR0_PG,
            cr0_fixed1: 0xffff_ffff,
            cr4_fixed0: CR4_VMXE,
            cr4_fixed1: cpu.cr4 | CR4_VMXE,
            secondary: Ctl::new(0, second),
            ept_vpid: if ept { ept_offer(hw, &cpu) } else { 0 } | INVVPID,
            vmfunc: if second & secondary::VM_FUNCTIONS != 0 { vmfunc::EPTP_SWITCHING } else { 0 },
        };
        Self { msrs, cpu }
    }

    /// Exit and entry controls, without those that load what the domain has not.
    fn load_controls(hw: &VmxMsrs, cpu: &Cpu) -> (u32, u32) {
        let (mut exits, mut entries) = (EXIT & hw.exit.may(), ENTRY & hw.entry.may());
        if cpu.perf_global == 0 {
            exits &= !exit::LOAD_PERF_GLOBAL;
            entries &= !entry::LOAD_PERF_GLOBAL;
        }
        if cpu.cr4 & CR4_CET == 0 {
            exits &= !exit::LOAD_CET;
            entries &= !entry::LOAD_CET;
        }
        if cpu.cr4 & CR4_PKS == 0 {
            exits &= !exit::LOAD_PKRS;
            entries &= !entry::LOAD_PKRS;
        }
        (exits | exit::SAVE_TIMER, entries)
    }

    /// What L1 reads from a capability MSR; `None` for one that it doesn't have. None of them can be written.
    /// IA32_FEATURE_CONTROL is as firmware leaves it: locked, with VMX on.
    pub fn rdmsr(&self, msr: u32) -> Option<u64> {
        let m = &self.msrs;
        let legacy = |ctl: Ctl, i: usize| ctl.0 | u64::from(DEFAULT1[i]) | u64::from(DEFAULT1[i]) << 32;
        let second = m.primary.has(primary::SECONDARY);
        Some(match msr {
            0x3a => FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX,
            0x480 => m.basic,
            0x481 => legacy(m.pin, 0),
            0x482 => legacy(m.primary, 1),
            0x483 => legacy(m.exit, 2),
            0x484 => legacy(m.entry, 3),
            0x485 => m.misc,
            0x486 => m.cr0_fixed0,
            0x487 => m.cr0_fixed1,
            0x488 => m.cr4_fixed0,
            0x489 => m.cr4_fixed1,
            0x48a => self.vmcs_enum(),
            0x48b if second => m.secondary.0,
            0x48c if second && m.ept_vpid != 0 => m.ept_vpid,
            0x48d => m.pin.0,
            0x48e => m.primary.0,
            0x48f => m.exit.0,
            0x490 => m.entry.0,
            0x491 if m.secondary.has(secondary::VM_FUNCTIONS) => m.vmfunc,
            _ => return None,
        })
    }

    /// IA32_VMX_VMCS_ENUM: the highest index of a field that exists, in bits 9:1.
    fn vmcs_enum(&self) -> u64 {
        Field::all().filter(|f| self.exists(*f)).map(|f| u64::from(f.encoding() & 0x3fe)).max().unwrap_or(0)
    }

    /// Whether L1's VMCSs have `field`: VMREAD and VMWRITE fail for others with error 12.
    pub fn exists(&self, field: Field) -> bool {
        let m = &self.msrs;
        let second = |bits| m.secondary.has(bits);
        match field.needs() {
            Needs::Always => true,
            Needs::NotOffered => false,
            Needs::Vpid => second(secondary::VPID),
            Needs::PostedInterrupts => m.pin.has(pin::POSTED_INTERRUPTS),
            Needs::EptpSwitching => m.vmfunc & vmfunc::EPTP_SWITCHING != 0,
            Needs::VirtualInterruptDelivery => second(secondary::INTERRUPT_DELIVERY),
            Needs::Pml => second(secondary::PML),
            Needs::MsrBitmaps => m.primary.has(primary::MSR_BITMAPS),
            Needs::TprShadow => m.primary.has(primary::TPR_SHADOW),
            Needs::ApicAccess => second(secondary::APIC_ACCESS),
            Needs::VmFunctions => second(secondary::VM_FUNCTIONS),
            Needs::Ept => second(secondary::EPT),
            Needs::VmcsShadowing => second(secondary::VMCS_SHADOWING),
            Needs::Xsaves => second(secondary::XSAVES),
            Needs::TscScaling => second(secondary::TSC_SCALING),
            Needs::PauseLoopExiting => second(secondary::PAUSE_LOOP),
            Needs::PreemptionTimer => m.pin.has(pin::PREEMPTION_TIMER),
            Needs::GuestPat => m.entry.has(entry::LOAD_PAT) || m.exit.has(exit::SAVE_PAT),
            Needs::HostPat => m.exit.has(exit::LOAD_PAT),
            Needs::GuestEfer => m.entry.has(entry::LOAD_EFER) || m.exit.has(exit::SAVE_EFER),
            Needs::HostEfer => m.exit.has(exit::LOAD_EFER),
            Needs::GuestPerfGlobal => m.entry.has(entry::LOAD_PERF_GLOBAL),
            Needs::HostPerfGlobal => m.exit.has(exit::LOAD_PERF_GLOBAL),
            Needs::Cet => m.entry.has(entry::LOAD_CET),
            Needs::GuestPkrs => m.entry.has(entry::LOAD_PKRS),
            Needs::HostPkrs => m.exit.has(exit::LOAD_PKRS),
        }
    }

    /// First physical address that L1 does not have.
    #[inline]
    pub fn phys_end(&self) -> u64 {
        1 << self.cpu.maxphyaddr.clamp(32, 52)
    }
    /// Whether `address` is one of L1's physical addresses and a multiple of `align`.
    #[inline]
    pub fn is_address(&self, address: u64, align: u64) -> bool {
        address < self.phys_end() && address & (align - 1) == 0
    }
    /// Whether `address` is canonical for the linear address width of the domain's CPUID.
    #[inline]
    pub fn is_canonical(&self, address: u64) -> bool {
        let shift = if self.cpu.cr4 & CR4_LA57 != 0 { 7 } else { 16 };
        ((address << shift) as i64 >> shift) as u64 == address
    }
    /// Whether `address` belongs to a sign-extended run of bits above the linear address width.
    pub(crate) fn high_bits_equal(&self, address: u64) -> bool {
        let width = if self.cpu.cr4 & CR4_LA57 != 0 { 57 } else { 48 };
        matches!((address as i64) >> width, 0 | -1)
    }
    /// Whether all bits that are fixed in VMX operation are as they must be in `cr0`.
    #[inline]
    pub fn cr0_fits(&self, cr0: u64) -> bool {
        cr0 & self.msrs.cr0_fixed0 == self.msrs.cr0_fixed0 && cr0 & !self.msrs.cr0_fixed1 == 0
    }
    /// Whether all bits that are fixed in VMX operation are as they must be in `cr4`.
    #[inline]
    pub fn cr4_fits(&self, cr4: u64) -> bool {
        cr4 & self.msrs.cr4_fixed0 == self.msrs.cr4_fixed0 && cr4 & !self.msrs.cr4_fixed1 == 0
    }
    /// Most entries of an MSR list that L1 may expect to work. SDM vol. 3, "Miscellaneous Data".
    pub fn msr_list_limit(&self) -> u32 {
        ((self.msrs.misc >> 25 & 7) as u32 + 1) * 512
    }
}

/// All four types of INVVPID, whatever the processor has: they act on tags that L0 hands out.
const INVVPID: u64 = ept_cap::INVVPID
    | ept_cap::INVVPID_ADDRESS
    | ept_cap::INVVPID_SINGLE
    | ept_cap::INVVPID_ALL
    | ept_cap::INVVPID_RETAINING_GLOBALS;

/// The EPT half. Large pages, accessed and dirty flags and INVEPT are the composing engine's work; only what
/// the tables of vmcs02 must express comes from the processor.
fn ept_offer(hw: &VmxMsrs, cpu: &Cpu) -> u64 {
    ept_cap::LEVELS_4
        | ept_cap::UC
        | ept_cap::WB
        | ept_cap::PAGES_2M
        | if cpu.pages_1g { ept_cap::PAGES_1G } else { 0 }
        | ept_cap::INVEPT
        | ept_cap::INVEPT_SINGLE
        | ept_cap::INVEPT_ALL
        | ept_cap::ACCESSED_DIRTY
        | hw.ept_vpid & ept_cap::EXEC_ONLY
}

/// IA32_VMX_MISC. Of the activity states only HLT: SHUTDOWN and wait-for-SIPI entered by an L2 would stop
/// L0's processor. VMWRITE to any field is software's work.
fn misc(hw: &VmxMsrs, second: u32) -> u64 {
    let lent = hw.pin.has(pin::PREEMPTION_TIMER);
    let rate = if lent { hw.misc & misc::TIMER_RATE } else { SOFTWARE_TIMER_RATE };
    let saves_lma = if second & secondary::UNRESTRICTED_GUEST != 0 { misc::EXIT_SAVES_LMA } else { 0 };
    rate | saves_lma | misc::HLT | 4 << 16 | misc::VMWRITE_ANY | hw.misc & misc::ZERO_LENGTH_INJECTION
}

/// log2 of TSC ticks per tick of the preemption timer, where the processor has no such timer.
const SOFTWARE_TIMER_RATE: u64 = 5;
