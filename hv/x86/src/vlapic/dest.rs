//! Who receives a message: destination matching and lowest-priority arbitration, as pure functions.
//!
//! APM vol. 2, "Physical Destination Mode", "Logical Destination Mode", "Lowest Priority Messages"
//! and "x2APIC" addressing; SDM vol. 3, "Determining IPI Destination".

use super::icr::{DeliveryMode, Ipi, Shorthand};

/// The mode of a local APIC, as `MSR_APIC_BASE` chooses it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Disabled: the vCPU behaves as one without a local APIC.
    Disabled,
    /// The MMIO page, 8-bit ids.
    Xapic,
    /// The MSRs, 32-bit ids.
    X2apic,
}

/// What a message's destination is matched against: the address of one local APIC, as a plain value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addressing {
    /// The 32-bit APIC id; xAPIC mode compares its low byte.
    pub id: u32,
    /// Mode of the APIC.
    pub mode: Mode,
    /// Logical id in xAPIC mode: LDR bits 31:24. In x2APIC mode the logical id follows from `id`.
    pub ldr: u8,
    /// Destination model in xAPIC mode: DFR bits 31:28.
    pub model: u8,
    /// Whether it accepts fixed and lowest-priority interrupts (SVR bit 8, and a mode other than disabled).
    pub accepting: bool,
    /// Its processor priority when it was last seen; advisory, for arbitration only.
    pub priority: u8,
}

/// DFR model: each bit of the logical id is one APIC.
pub(super) const MODEL_FLAT: u8 = 0xf;
/// DFR model: a cluster number and four bits.
pub(super) const MODEL_CLUSTER: u8 = 0x0;

/// The logical id that an APIC in x2APIC mode has: cluster in bits 31:16, one bit below.
pub const fn x2apic_logical_id(id: u32) -> u32 {
    ((id >> 4) << 16) | (1 << (id & 15))
}

/// The destination field of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Destination {
    /// The destination as written: 8 bits, or 32 if `wide`.
    pub value: u32,
    /// Logical rather than physical.
    pub logical: bool,
    /// Sent in x2APIC format. MSIs and xAPIC ICRs are narrow.
    pub wide: bool,
}

impl Destination {
    /// Whether it names every APIC.
    pub const fn is_broadcast(&self) -> bool {
        self.value == if self.wide { u32::MAX } else { 0xff }
    }

    /// Whether `cpu` is addressed. A disabled APIC never is.
    pub const fn matches(&self, cpu: &Addressing) -> bool {
        if matches!(cpu.mode, Mode::Disabled) {
            false
        } else if self.is_broadcast() {
            true
        } else if self.logical {
            self.matches_logical(cpu)
        } else {
            match cpu.mode {
                // An xAPIC has only eight id bits; a wide destination beyond them is not for it.
                Mode::Xapic => self.value == cpu.id & 0xff,
                _ => self.value == cpu.id,
            }
        }
    }

    const fn matches_logical(&self, cpu: &Addressing) -> bool {
        if matches!(cpu.mode, Mode::X2apic) {
            // A narrow message (an MSI) reaches the first eight APICs of cluster 0.
            let own = x2apic_logical_id(cpu.id);
            return self.value >> 16 == own >> 16 && self.value & own & 0xffff != 0;
        }
        if self.value > 0xff {
            return false;
        }
        let dest = self.value as u8;
        match cpu.model {
            MODEL_FLAT => dest & cpu.ldr != 0,
            MODEL_CLUSTER => dest >> 4 == cpu.ldr >> 4 && dest & cpu.ldr & 0xf != 0,
            _ => false, // the other models are reserved
        }
    }
}

/// Calls `deliver` with the index of each of `cpus` that receives `ipi`.
///
/// `sender` is the index of the sending APIC, `None` for a message from outside (MSI, I/O APIC), where
/// shorthands have no meaning. A lowest-priority message goes to one accepting APIC of least priority; among
/// equals the vector spreads the load, so that one interrupt source stays on one vCPU.
pub fn resolve<I>(ipi: &Ipi, sender: Option<usize>, cpus: I, mut deliver: impl FnMut(usize))
where
    I: Iterator<Item = Addressing> + Clone,
{
    let receives = |(index, cpu): &(usize, Addressing)| {
        let myself = sender == Some(*index);
        match ipi.shorthand {
            Shorthand::None => ipi.dest.matches(cpu),
            Shorthand::Myself => myself,
            Shorthand::AllAndMyself => cpu.mode != Mode::Disabled,
            Shorthand::Others => !myself && cpu.mode != Mode::Disabled,
        }
    };
    let receivers = cpus.enumerate().filter(receives);
    if ipi.mode == DeliveryMode::LowestPriority {
        if let Some(winner) = arbitrate(receivers, ipi.vector) {
            deliver(winner);
        }
    } else {
        receivers.for_each(|(index, _)| deliver(index));
    }
}

/// The accepting APIC of least priority class; among equals the one that `vector` picks.
fn arbitrate(receivers: impl Iterator<Item = (usize, Addressing)> + Clone, vector: u8) -> Option<usize> {
    let accepting = receivers.filter(|(_, cpu)| cpu.accepting);
    let least = accepting.clone().map(|(_, cpu)| cpu.priority >> 4).min()?;
    let equals = accepting.filter(|(_, cpu)| cpu.priority >> 4 == least);
    let nth = usize::from(vector) % equals.clone().count().max(1);
    equals.map(|(index, _)| index).nth(nth)
}
