//! Machine checks: banks logged and cleared at boot; a machine check while running is fatal.
// UNSAFETY: machine-check MSRs.
#![allow(unsafe_code)]

use crate::cpu::{instr, msr};
use crate::trap::Frame;

/// CPUID leaf 1 EDX: MCE and MCA.
const FEATURES: u32 = 1 << 7 | 1 << 14;
const STATUS_VALID: u64 = 1 << 63;

/// Logs and clears what the banks hold, arms them, and sets CR4.MCE on this CPU.
pub fn init_cpu() {
    if instr::cpuid(1, 0)[3] & FEATURES != FEATURES {
        return;
    }
    report(log::Level::Warn);
    // SAFETY: CPUID announces machine-check architecture; MCG_CAP counts the banks.
    unsafe {
        let capabilities = instr::rdmsr(msr::MCG_CAP);
        if capabilities & (1 << 8) != 0 {
            instr::wrmsr(msr::MCG_CTL, u64::MAX);
        }
        for bank in 0..(capabilities & 0xff) as u32 {
            crate::trap::probe::wrmsr(msr::MC0_CTL + bank * 4, u64::MAX);
            instr::wrmsr(msr::MC0_CTL + bank * 4 + 1, 0);
        }
        instr::write_cr4(instr::read_cr4() | 1 << 6);
    }
}

fn report(level: log::Level) {
    // SAFETY: as in `init_cpu`.
    unsafe {
        for bank in 0..(instr::rdmsr(msr::MCG_CAP) & 0xff) as u32 {
            let status = instr::rdmsr(msr::MC0_CTL + bank * 4 + 1);
            if status & STATUS_VALID != 0 {
                let address = instr::rdmsr(msr::MC0_CTL + bank * 4 + 2);
                log::log!(level, "machine-check bank {bank}: status {status:#x} address {address:#x}");
            }
        }
    }
}

/// Handles #MC: the machine can't be trusted any more.
pub fn handle(frame: &Frame) -> ! {
    report(log::Level::Error);
    crate::report::exception(frame, format_args!("machine check"))
}
