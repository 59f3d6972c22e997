//! The local vector table: which entries there are and which of their bits.
//!
//! APM vol. 2, "Local Interrupts" (message types and masks of each LVT register).

use super::reg::Reg;

/// An entry of the local vector table, in register order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lvt {
    /// APIC timer.
    Timer = 0,
    /// Thermal sensor.
    Thermal = 1,
    /// Performance counters.
    Perf = 2,
    /// LINT0 pin.
    Lint0 = 3,
    /// LINT1 pin.
    Lint1 = 4,
    /// APIC error.
    Error = 5,
}

/// Number of entries.
pub(super) const LVT_COUNT: usize = 6;

/// The mask bit.
pub(super) const LVT_MASKED: u32 = 1 << 16;

const VECTOR: u32 = 0xff;
const MESSAGE_TYPE: u32 = 7 << 8;
const STATUS: u32 = 1 << 12; // delivery status, read-only: idle
const POLARITY: u32 = 1 << 13;
const REMOTE_IRR: u32 = 1 << 14; // read-only: no level-triggered pin is modelled
const TRIGGER: u32 = 1 << 15;
const PERIODIC: u32 = 1 << 17;
const TSC_DEADLINE: u32 = 1 << 18;

impl Lvt {
    /// The entry that `reg` is.
    pub(super) const fn from_reg(reg: Reg) -> Option<Self> {
        Some(match reg {
            Reg::LVT_TIMER => Self::Timer,
            Reg::LVT_THERMAL => Self::Thermal,
            Reg::LVT_PERF => Self::Perf,
            Reg::LVT_LINT0 => Self::Lint0,
            Reg::LVT_LINT1 => Self::Lint1,
            Reg::LVT_ERROR => Self::Error,
            _ => return None,
        })
    }

    /// The bits that software can change.
    pub(super) const fn writable(self, tsc_deadline: bool) -> u32 {
        match self {
            Self::Timer => VECTOR | LVT_MASKED | PERIODIC | if tsc_deadline { TSC_DEADLINE } else { 0 },
            Self::Thermal | Self::Perf | Self::Error => VECTOR | MESSAGE_TYPE | LVT_MASKED,
            Self::Lint0 | Self::Lint1 => VECTOR | MESSAGE_TYPE | POLARITY | TRIGGER | LVT_MASKED,
        }
    }

    /// The bits that a write to the x2APIC register may have set: the writable and the read-only ones.
    pub(super) const fn allowed(self, tsc_deadline: bool) -> u32 {
        let read_only = match self {
            Self::Lint0 | Self::Lint1 => STATUS | REMOTE_IRR,
            _ => STATUS,
        };
        self.writable(tsc_deadline) | read_only
    }
}
