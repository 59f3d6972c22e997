//! `MSR_APIC_BASE`: where the APIC is and in which mode.
//!
//! APM vol. 2, "APIC Base Address Register", "x2APIC Mode" and SDM vol. 3, "x2APIC State Transitions".

use super::access::{Effect, Gp};
use super::dest::Mode;
use super::lapic::Vlapic;

const BSP: u64 = 1 << 8;
const EXTD: u64 = 1 << 10;
const ENABLE: u64 = 1 << 11;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Mode and address, without the BSC bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Base(u64);

impl Base {
    pub const POWER_UP: Self = Self(0xfee0_0000 | ENABLE);

    pub const fn mode(self) -> Mode {
        if self.0 & ENABLE == 0 {
            Mode::Disabled
        } else if self.0 & EXTD == 0 {
            Mode::Xapic
        } else {
            Mode::X2apic
        }
    }
}

impl Vlapic {
    /// The mode.
    pub const fn mode(&self) -> Mode {
        self.base.mode()
    }

    /// Guest-physical address of the MMIO page; only in xAPIC mode is there anything.
    pub const fn base_address(&self) -> u64 {
        self.base.0 & ADDRESS
    }

    /// Reads `MSR_APIC_BASE`.
    pub const fn read_base(&self) -> u64 {
        self.base.0 | if self.config.bsp { BSP } else { 0 }
    }

    /// Writes `MSR_APIC_BASE`. The BSC bit doesn't change.
    ///
    /// # Errors
    /// #GP for reserved bits, x2APIC without enable, x2APIC straight from disabled, and xAPIC straight
    /// from x2APIC.
    pub fn write_base(&mut self, value: u64) -> Result<Effect, Gp> {
        let address = ADDRESS & !(u64::MAX << u32::from(self.config.phys_bits).clamp(32, 52));
        let extd = if self.config.x2apic { EXTD } else { 0 };
        if value & !(address | BSP | ENABLE | extd) != 0 || value & (EXTD | ENABLE) == EXTD {
            return Err(Gp);
        }
        let (old, new) = (self.base, Base(value & !BSP));
        match (old.mode(), new.mode()) {
            (Mode::Disabled, Mode::X2apic) | (Mode::X2apic, Mode::Xapic) => return Err(Gp),
            _ if old == new => return Ok(Effect::None),
            (_, Mode::Disabled) => {
                self.base = new;
                self.reset_registers();
            }
            (Mode::Xapic, Mode::X2apic) => {
                self.base = new;
                self.icr &= 0xffff_ffff; // the high half isn't preserved
            }
            _ => self.base = new,
        }
        Ok(Effect::BaseChanged)
    }
}
