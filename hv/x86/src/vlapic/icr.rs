//! Interrupt messages: the interrupt command register and MSIs, decoded.
//!
//! APM vol. 2, "Interrupt Control (IPI)", "Interrupt Command Register"; SDM vol. 3, "Interrupt Command
//! Register (ICR)" for the valid combinations and the x2APIC layout, "Message Address Register Format".

use super::dest::Destination;

/// Bits of the low half that a write keeps; 12 is the delivery status (always idle here), 16-17 remote read.
pub(super) const ICR_LOW_BITS: u32 = 0x000c_cfff;
/// Bits of the x2APIC register that may be set: those, the delivery status (ignored), the destination.
pub(super) const X2_ICR_BITS: u64 = 0xffff_ffff_0000_0000 | (1 << 12) | ICR_LOW_BITS as u64;

/// The message type of an interrupt message or LVT entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeliveryMode {
    /// An interrupt of the given vector.
    Fixed,
    /// The same, to the APIC of lowest priority among those addressed.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Remote read (reserved on Intel).
    RemoteRead,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up, the vector being the page to start at.
    Startup,
    /// An interrupt whose vector an external controller gives.
    ExtInt,
}

impl DeliveryMode {
    /// The message type in bits 10:8 of a register.
    pub const fn from_register(register: u32) -> Self {
        match (register >> 8) & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            3 => Self::RemoteRead,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::Startup,
            _ => Self::ExtInt,
        }
    }

    /// Whether the message carries an interrupt vector that goes to the IRR.
    pub const fn is_vectored(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// ICR bits 19:18.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shorthand {
    /// Use the destination field.
    None,
    /// The sender only.
    Myself,
    /// Every APIC.
    AllAndMyself,
    /// Every APIC but the sender.
    Others,
}

/// An interrupt message on its way to other APICs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipi {
    /// Destination field; meaningless if there is a shorthand.
    pub dest: Destination,
    /// Destination shorthand.
    pub shorthand: Shorthand,
    /// Message type.
    pub mode: DeliveryMode,
    /// Vector, or page number of a start-up message.
    pub vector: u8,
    /// Level-triggered: only messages from an I/O APIC or MSI; between processors all are edges.
    pub level: bool,
}

impl Ipi {
    /// Decodes an ICR; `wide` says that it is the x2APIC register.
    ///
    /// `None` where the message has no effect: INIT de-assert and other level de-asserts, remote reads, SMI
    /// and ExtINT (no guest here has SMM or an external controller behind a processor), and the
    /// combinations that the manuals call invalid.
    pub const fn from_icr(icr: u64, wide: bool) -> Option<Self> {
        let low = icr as u32;
        let level_triggered = low & (1 << 15) != 0;
        let asserted = low & (1 << 14) != 0;
        if level_triggered && !asserted {
            return None;
        }
        let shorthand = match (low >> 18) & 3 {
            0 => Shorthand::None,
            1 => Shorthand::Myself,
            2 => Shorthand::AllAndMyself,
            _ => Shorthand::Others,
        };
        let mode = DeliveryMode::from_register(low);
        let valid = match mode {
            DeliveryMode::Fixed => true,
            DeliveryMode::LowestPriority | DeliveryMode::Nmi | DeliveryMode::Init | DeliveryMode::Startup => {
                matches!(shorthand, Shorthand::None | Shorthand::Others)
            }
            DeliveryMode::Smi | DeliveryMode::RemoteRead | DeliveryMode::ExtInt => false,
        };
        if !valid {
            return None;
        }
        let value = if wide { (icr >> 32) as u32 } else { (icr >> 56) as u32 };
        let dest = Destination { value, logical: low & (1 << 11) != 0, wide };
        Some(Self { dest, shorthand, mode, vector: low as u8, level: false })
    }

    /// Decodes a message-signalled interrupt from the low half of its address and its data.
    ///
    /// `None` if the address isn't an interrupt address (0xFEEx_xxxx) or the message has no effect.
    pub const fn from_msi(address: u32, data: u32) -> Option<Self> {
        let mode = DeliveryMode::from_register(data);
        if address >> 20 != 0xfee
            || !matches!(mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority | DeliveryMode::Nmi)
        {
            return None;
        }
        let level = data & (1 << 15) != 0;
        if level && data & (1 << 14) == 0 {
            return None;
        }
        // The destination mode bit counts only with the redirection hint set (SDM), but software that
        // sends logical messages sets both and software without the hint leaves it clear.
        let logical = address & (1 << 2) != 0;
        let dest = Destination { value: (address >> 12) & 0xff, logical, wide: false };
        Some(Self { dest, shorthand: Shorthand::None, mode, vector: data as u8, level })
    }
}
