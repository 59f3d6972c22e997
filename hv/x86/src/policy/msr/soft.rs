//! Registers that are only storage, one set per vCPU.

use super::check;
use super::check::Gp;

const VARIABLE: u8 = 16;
const FIXED: u8 = 11;

/// Which of a vCPU's [`SoftMsrs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u8);

impl Slot {
    /// HWCR.
    pub const HWCR: Slot = Slot(0);
    /// MCG_STATUS.
    pub const MCG_STATUS: Slot = Slot(1);
    /// MTRR_DEF_TYPE.
    pub const MTRR_DEF_TYPE: Slot = Slot(2);
    const MTRR_VARIABLE: u8 = 3;
    const MTRR_FIXED: u8 = Self::MTRR_VARIABLE + VARIABLE;
    /// How many there are.
    pub const COUNT: usize = (Self::MTRR_FIXED + FIXED) as usize;

    /// MTRR_PHYS_BASE n (even) and MTRR_PHYS_MASK n (odd), from MSR 0x200 up.
    pub(super) const fn mtrr_variable(n: u32) -> Slot {
        Slot(Self::MTRR_VARIABLE + n as u8 % VARIABLE)
    }
    /// The fixed-range registers in the order of their numbers.
    pub(super) const fn mtrr_fixed(n: u32) -> Slot {
        Slot(Self::MTRR_FIXED + n as u8 % FIXED)
    }
    fn is_variable(self) -> bool {
        (Self::MTRR_VARIABLE..Self::MTRR_FIXED).contains(&self.0)
    }
    fn is_mask(self) -> bool {
        self.is_variable() && (self.0 - Self::MTRR_VARIABLE) % 2 == 1
    }
}

/// HWCR.TscFreqSel: the TSC counts at the P0 frequency. System software complains if it is clear.
const TSC_FREQ_SEL: u64 = 1 << 24;
/// HWCR.McStatusWrEn: the only bit that a guest's write changes.
const MC_STATUS_WR_EN: u64 = 1 << 18;

/// One vCPU's storage. MTRRs are kept and given back but have no effect: memory types come from the
/// guest's PAT and the host's policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SoftMsrs([u64; Slot::COUNT]);

impl Default for SoftMsrs {
    fn default() -> Self {
        let mut values = [0; Slot::COUNT];
        values[usize::from(Slot::HWCR.0)] = TSC_FREQ_SEL;
        // As firmware leaves it: MTRRs on, write-back where no range says otherwise.
        values[usize::from(Slot::MTRR_DEF_TYPE.0)] = 1 << 11 | 6;
        Self(values)
    }
}

impl SoftMsrs {
    /// What a read gives.
    pub fn read(&self, slot: Slot) -> u64 {
        self.0[usize::from(slot.0)]
    }

    /// A guest's write. `max_phys` is the guest's physical address width in bits.
    pub fn write(&mut self, slot: Slot, value: u64, max_phys: u8) -> Result<(), Gp> {
        let value = match slot {
            Slot::HWCR => TSC_FREQ_SEL | value & MC_STATUS_WR_EN,
            Slot::MCG_STATUS => check::mcg_status(value)?,
            Slot::MTRR_DEF_TYPE => check::mtrr_def_type(value)?,
            _ if slot.is_mask() => check::mtrr_mask(value, max_phys)?,
            _ if slot.is_variable() => check::mtrr_base(value, max_phys)?,
            _ => check::mtrr_fixed(value)?,
        };
        self.0[usize::from(slot.0)] = value;
        Ok(())
    }
}
