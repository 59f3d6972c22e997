//! The MSRs of SVM as L1 sees them. Source: APM vol. 2, "SVM Related MSRs" and "Extended Feature Enable
//! Register (EFER)".

use crate::caps::{Caps, Features};
use crate::layout::reg::EFER_SVME;

/// VM_CR.
pub const VM_CR: u32 = 0xc001_0114;
/// VM_HSAVE_PA.
pub const VM_HSAVE_PA: u32 = 0xc001_0117;
/// SVM_KEY.
pub const SVM_KEY: u32 = 0xc001_0118;
/// TSC_RATIO.
pub const TSC_RATIO: u32 = 0xc000_0104;

/// TSC_RATIO for "as fast as the TSC": 8 integer bits over 32 fraction bits.
pub const RATIO_ONE: u64 = 1 << 32;

/// VM_CR.LOCK: SVMDIS cannot be changed.
pub const VM_CR_LOCK: u64 = 1 << 3;
/// VM_CR.SVMDIS: EFER.SVME cannot be set.
pub const VM_CR_SVMDIS: u64 = 1 << 4;
/// DPD, R_INIT, DIS_A20M, LOCK, SVMDIS.
const VM_CR_BITS: u64 = 0x1f;

/// The access raises #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gp;

/// L1's SVM MSRs on one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msrs {
    /// VM_CR.
    pub vm_cr: u64,
    /// VM_HSAVE_PA. Kept for L1 only: L1's host state stays in vmcb01, the page is never used.
    pub hsave_pa: u64,
    /// TSC_RATIO, applied while L2 runs.
    pub tsc_ratio: u64,
    key: u64,
}

impl Default for Msrs {
    fn default() -> Self {
        Self { vm_cr: 0, hsave_pa: 0, tsc_ratio: RATIO_ONE, key: 0 }
    }
}

impl Msrs {
    /// RDMSR of `msr`; `None` if it is none of these.
    pub fn read(&self, msr: u32, caps: &Caps) -> Option<Result<u64, Gp>> {
        Some(match msr {
            VM_CR => Ok(self.vm_cr),
            VM_HSAVE_PA => Ok(self.hsave_pa),
            // Write-only: reads as zero.
            SVM_KEY if caps.has(Features::SVML) => Ok(0),
            TSC_RATIO if caps.has(Features::TSC_RATE) => Ok(self.tsc_ratio),
            SVM_KEY | TSC_RATIO => Err(Gp),
            _ => return None,
        })
    }

    /// WRMSR of `value` to `msr`, with EFER as L1 sees it; `None` if it is none of these. On `Err` nothing
    /// has changed.
    pub fn write(&mut self, msr: u32, value: u64, efer: u64, caps: &Caps) -> Option<Result<(), Gp>> {
        Some(match msr {
            VM_CR => self.write_vm_cr(value, efer),
            // Bits 11:0 are MBZ.
            VM_HSAVE_PA if value & 0xfff != 0 || value >= caps.phys_end() => Err(Gp),
            VM_HSAVE_PA => {
                self.hsave_pa = value;
                Ok(())
            }
            SVM_KEY if caps.has(Features::SVML) => {
                self.write_key(value);
                Ok(())
            }
            // Bits 63:40 are MBZ.
            TSC_RATIO if caps.has(Features::TSC_RATE) && value >> 40 == 0 => {
                self.tsc_ratio = value;
                Ok(())
            }
            SVM_KEY | TSC_RATIO => Err(Gp),
            _ => return None,
        })
    }

    /// Once LOCK is set, writes leave LOCK and SVMDIS as they are. A write that would set SVMDIS under EFER.SVME is #GP,
    /// whatever LOCK says (APM vol. 2, "VM_CR MSR").
    fn write_vm_cr(&mut self, value: u64, efer: u64) -> Result<(), Gp> {
        if value & !VM_CR_BITS != 0 {
            return Err(Gp);
        }
        let held = if self.vm_cr & VM_CR_LOCK != 0 { VM_CR_LOCK | VM_CR_SVMDIS } else { 0 };
        if value & VM_CR_SVMDIS != 0 && efer & EFER_SVME != 0 {
            return Err(Gp);
        }
        let new = self.vm_cr & held | value & !held;
        self.vm_cr = new;
        Ok(())
    }

    /// "Enabling SVM": unlocked, a write sets the key; locked, the right non-zero key clears LOCK.
    fn write_key(&mut self, value: u64) {
        if self.vm_cr & VM_CR_LOCK == 0 {
            self.key = value;
        } else if self.key != 0 && self.key == value {
            self.vm_cr &= !VM_CR_LOCK;
        }
    }

    /// Of the EFER bits in `allowed` those that L1 may set now: under SVMDIS, SVME must be zero.
    pub const fn efer_allowed(&self, allowed: u64) -> u64 {
        if self.vm_cr & VM_CR_SVMDIS != 0 { allowed & !EFER_SVME } else { allowed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caps::test_caps;

    fn put(m: &mut Msrs, msr: u32, value: u64) -> Result<(), Gp> {
        m.write(msr, value, 0, &test_caps()).unwrap()
    }

    #[test]
    fn hsave_must_be_an_existing_page() {
        let mut m = Msrs::default();
        assert_eq!(put(&mut m, VM_HSAVE_PA, 0x5000), Ok(()));
        for bad in [0x5001, 1 << 40, u64::MAX] {
            assert_eq!(put(&mut m, VM_HSAVE_PA, bad), Err(Gp));
        }
        assert_eq!(m.read(VM_HSAVE_PA, &test_caps()), Some(Ok(0x5000)));
    }

    #[test]
    fn lock_freezes_svmdis_until_the_key_comes() {
        let mut m = Msrs::default();
        assert_eq!(put(&mut m, SVM_KEY, 0x1234), Ok(()));
        assert_eq!(put(&mut m, VM_CR, VM_CR_LOCK | VM_CR_SVMDIS), Ok(()));
        assert_eq!(m.efer_allowed(EFER_SVME | 1), 1);
        assert_eq!(put(&mut m, VM_CR, 0), Ok(()));
        assert_eq!(m.vm_cr, VM_CR_LOCK | VM_CR_SVMDIS);
        assert_eq!(put(&mut m, SVM_KEY, 1), Ok(()));
        assert_eq!(m.vm_cr & VM_CR_LOCK, VM_CR_LOCK);
        assert_eq!(put(&mut m, SVM_KEY, 0x1234), Ok(()));
        assert_eq!(put(&mut m, VM_CR, 0), Ok(()));
        assert_eq!(m.vm_cr, 0);
        assert_eq!(m.efer_allowed(EFER_SVME | 1), EFER_SVME | 1);
        assert_eq!(m.read(SVM_KEY, &test_caps()), Some(Ok(0)));
    }

    #[test]
    fn no_key_no_unlocking() {
        let mut m = Msrs { vm_cr: VM_CR_LOCK, ..Msrs::default() };
        assert_eq!(put(&mut m, SVM_KEY, 0), Ok(()));
        assert_eq!(m.vm_cr, VM_CR_LOCK);
    }

    #[test]
    fn svmdis_under_svme_and_reserved_bits_are_gp() {
        let mut m = Msrs::default();
        assert_eq!(m.write(VM_CR, VM_CR_SVMDIS, EFER_SVME, &test_caps()), Some(Err(Gp)));
        assert_eq!(put(&mut m, VM_CR, 0x20), Err(Gp));
        assert_eq!(m, Msrs::default());
        let mut locked = Msrs { vm_cr: VM_CR_LOCK, ..Msrs::default() };
        let caps = test_caps();
        assert_eq!(locked.write(VM_CR, VM_CR_SVMDIS, EFER_SVME, &caps), Some(Err(Gp)), "locked or not");
        assert_eq!(put(&mut locked, VM_CR, VM_CR_SVMDIS), Ok(()));
        assert_eq!(locked.vm_cr, VM_CR_LOCK, "locked: SVMDIS stays as it is");
    }

    #[test]
    fn tsc_ratio_exists_only_if_offered() {
        let mut caps = test_caps();
        let mut m = Msrs::default();
        assert_eq!(m.write(TSC_RATIO, 3 << 31, 0, &caps), Some(Ok(())));
        assert_eq!(m.write(TSC_RATIO, 1 << 40, 0, &caps), Some(Err(Gp)));
        assert_eq!(m.tsc_ratio, 3 << 31);
        caps.features.remove(Features::TSC_RATE);
        assert_eq!(m.read(TSC_RATIO, &caps), Some(Err(Gp)));
        assert_eq!(m.read(0x10, &caps), None);
    }
}
