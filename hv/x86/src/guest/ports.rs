//! The ports of a PVH guest.
//!
//! | port | what |
//! |---|---|
//! | 0x40 to 0x42 | a timer (PIT) that does not count: reads 0 |
//! | 0xE9 | debug console: each byte written goes to the domain's console (as under Xen) |
//! | 0x600, 0x601 | sleep control and status of the guest's hardware-reduced ACPI: power-off |
//! | 0x602 | its reset register |

use crate::svm::run::{Next, Run};
use hv_core::platform::Arch;
use xen_abi::sched::ShutdownReason;

/// Byte written, console.
const DEBUG: u16 = 0xe9;
/// Sleep control register: SLP_EN in bit 5, SLP_TYP in bits 4:2.
pub const SLEEP_CONTROL: u16 = 0x600;
/// Sleep status register.
pub const SLEEP_STATUS: u16 = 0x601;
/// Reset register.
pub const RESET: u16 = 0x602;
/// Value that resets.
pub const RESET_VALUE: u8 = 6;
/// SLP_TYP of S5.
pub const S5: u8 = 5;

/// The counters of the timer that a PVH guest has not got.
const PIT_COUNTERS: core::ops::RangeInclusive<u16> = 0x40..=0x42;

/// What a read gives.
pub fn read(_run: &mut Run<'_>, port: u16, size: u8) -> u32 {
    match (port, size) {
        // The debug port answers with its own number, by which it is found.
        (DEBUG, 1) => DEBUG.into(),
        (SLEEP_STATUS, 1) => 0,
        // Linux calibrates its TSC by counter 2 before it knows that there is none. It waits for as long as it reads
        // ones there, which takes 100,000 exits; any other value ends it.
        (port, 1) if PIT_COUNTERS.contains(&port) => 0,
        _ => u32::MAX,
    }
}

/// Carries out a write. `Some`: the domain has stopped.
pub fn write(run: &mut Run<'_>, port: u16, size: u8, value: u32) -> Option<Next> {
    let byte = value as u8;
    match (port, size) {
        (DEBUG, 1) => crate::guest::arch::X86::console_write(run.vcpu.domain(), &[byte]),
        (SLEEP_CONTROL, 1) if byte & 0x20 != 0 && byte >> 2 & 7 == S5 => {
            run.vcpu.domain().shutdown(ShutdownReason::POWEROFF);
            return Some(Next::Stop);
        }
        (RESET, 1) if byte == RESET_VALUE => {
            run.vcpu.domain().shutdown(ShutdownReason::REBOOT);
            return Some(Next::Stop);
        }
        _ => {}
    }
    None
}
