//! The register map, shared by the MMIO page (offset = number × 16) and the MSRs (0x800 + number).
//!
//! APM vol. 2, "APIC Registers" and "x2APIC Register Address Space".

/// The number of an APIC register: its MMIO offset divided by 16, or its MSR less 0x800.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Reg(pub u8);

impl Reg {
    /// APIC ID.
    pub const ID: Self = Self(0x02);
    /// Version and number of LVT entries.
    pub const VERSION: Self = Self(0x03);
    /// Task priority.
    pub const TPR: Self = Self(0x08);
    /// Arbitration priority (xAPIC).
    pub const APR: Self = Self(0x09);
    /// Processor priority.
    pub const PPR: Self = Self(0x0a);
    /// End of interrupt.
    pub const EOI: Self = Self(0x0b);
    /// Remote read (xAPIC).
    pub const RRD: Self = Self(0x0c);
    /// Logical destination.
    pub const LDR: Self = Self(0x0d);
    /// Destination format (xAPIC).
    pub const DFR: Self = Self(0x0e);
    /// Spurious vector and software enable.
    pub const SVR: Self = Self(0x0f);
    /// First of eight in-service registers.
    pub const ISR0: Self = Self(0x10);
    /// First of eight trigger-mode registers.
    pub const TMR0: Self = Self(0x18);
    /// First of eight request registers.
    pub const IRR0: Self = Self(0x20);
    /// Error status.
    pub const ESR: Self = Self(0x28);
    /// Interrupt command, low half (x2APIC: all 64 bits).
    pub const ICR_LOW: Self = Self(0x30);
    /// Interrupt command, high half (xAPIC).
    pub const ICR_HIGH: Self = Self(0x31);
    /// LVT: timer.
    pub const LVT_TIMER: Self = Self(0x32);
    /// LVT: thermal sensor.
    pub const LVT_THERMAL: Self = Self(0x33);
    /// LVT: performance counters.
    pub const LVT_PERF: Self = Self(0x34);
    /// LVT: LINT0 pin.
    pub const LVT_LINT0: Self = Self(0x35);
    /// LVT: LINT1 pin.
    pub const LVT_LINT1: Self = Self(0x36);
    /// LVT: APIC errors.
    pub const LVT_ERROR: Self = Self(0x37);
    /// Timer, initial count.
    pub const TIMER_INITIAL: Self = Self(0x38);
    /// Timer, current count.
    pub const TIMER_CURRENT: Self = Self(0x39);
    /// Timer, divide configuration.
    pub const TIMER_DIVIDE: Self = Self(0x3e);
    /// Self IPI (x2APIC).
    pub const SELF_IPI: Self = Self(0x3f);
}

/// `MSR_APIC_BASE`, APM vol. 2, "APIC Base Address Register".
pub const MSR_APIC_BASE: u32 = 0x1b;
/// TSC deadline, SDM vol. 3, "TSC-Deadline Mode"; offered where `Config::tsc_deadline` says so.
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// First MSR of the x2APIC space.
pub const MSR_X2APIC_FIRST: u32 = 0x800;
/// Last MSR of the x2APIC space.
pub const MSR_X2APIC_LAST: u32 = 0x8ff;

/// Whether `msr` belongs to the virtual APIC, whatever its mode.
pub const fn owns_msr(msr: u32) -> bool {
    matches!(msr, MSR_APIC_BASE | MSR_TSC_DEADLINE | MSR_X2APIC_FIRST..=MSR_X2APIC_LAST)
}

/// What an x2APIC guest may do with a register, and which bits it may set.
#[derive(Clone, Copy, Debug)]
pub(super) struct X2Rule {
    pub read: bool,
    /// Bits that may be set in a write; `None`: the register can't be written.
    pub write: Option<u64>,
}

/// The access rules of the x2APIC space, except for the LVT's, whose writable bits are in [`super::lvt`].
///
/// APM vol. 2, "x2APIC Register Address Space"; SDM vol. 3, "Local APIC Register Address Map Supported by
/// x2APIC": other registers, reads of write-only and writes to read-only ones, and reserved bits cause #GP.
pub(super) const fn x2_rule(reg: Reg) -> X2Rule {
    const RO: X2Rule = X2Rule { read: true, write: None };
    const fn rw(bits: u64) -> X2Rule {
        X2Rule { read: true, write: Some(bits) }
    }
    const fn wo(bits: u64) -> X2Rule {
        X2Rule { read: false, write: Some(bits) }
    }
    match reg.0 {
        0x02 | 0x03 | 0x0a | 0x0d => RO,       // ID, version, PPR, LDR
        0x08 => rw(0xff),                      // TPR
        0x0b => wo(0),                         // EOI: any bit set is #GP
        0x0f => rw(super::lapic::SVR_BITS),    // SVR
        0x10..=0x27 => RO,                     // ISR, TMR, IRR
        0x28 => rw(0),                         // ESR: only 0 may be written
        0x30 => rw(super::icr::X2_ICR_BITS),   // ICR, 64 bits
        0x32..=0x37 => rw(0xffff_ffff),        // LVTs: narrowed by their own masks
        0x38 => rw(0xffff_ffff),               // initial count
        0x39 => RO,                            // current count
        0x3e => rw(super::timer::DIVIDE_BITS), // divide configuration
        0x3f => wo(0xff),                      // self IPI
        _ => X2Rule { read: false, write: None },
    }
}
