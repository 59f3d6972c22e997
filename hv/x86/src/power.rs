//! Turning the machine off and on again.
// UNSAFETY: ports and registers that reset the machine.
#![allow(unsafe_code)]

use crate::cpu::instr;
use core::sync::atomic::{AtomicBool, Ordering};
use spin::Once;

/// What the FADT and the DSDT say about power.
#[derive(Clone, Copy, Debug, Default)]
pub struct Firmware {
    /// PM1a and PM1b control ports; 0 = absent.
    pub pm1_control: [u16; 2],
    /// SLP_TYP values of \_S5 for PM1a and PM1b.
    pub s5: Option<[u8; 2]>,
    /// Reset register: an I/O port and the value to write.
    pub reset: Option<(u16, u8)>,
}

static FIRMWARE: Once<Firmware> = Once::new();
static NO_REBOOT: AtomicBool = AtomicBool::new(false);

/// Remembers what the firmware offers.
pub fn init(firmware: Firmware) {
    FIRMWARE.call_once(|| firmware);
}

/// Remembers the user's `noreboot`.
pub fn set_no_reboot(on: bool) {
    NO_REBOOT.store(on, Ordering::Relaxed);
}

/// Whether the user wants a halt instead of a reboot after a failure.
pub fn no_reboot() -> bool {
    NO_REBOOT.load(Ordering::Relaxed)
}

/// Leaves SVM on this CPU: INIT and resets are held back or misbehave otherwise.
fn leave_svm() {
    instr::cli();
    crate::svm::leave_cpu();
}

/// Restarts the machine: ACPI reset register, CF9, 8042, triple fault, in turn.
pub fn reboot() -> ! {
    crate::nmi::stop_others();
    leave_svm();
    // SAFETY: the machine is to be reset; each of these ports does that or nothing.
    unsafe {
        if let Some((port, value)) = FIRMWARE.get().and_then(|f| f.reset) {
            instr::outb(port, value);
            crate::time::pause_us(10_000);
        }
        let cf9 = instr::inb(0xcf9) & !6;
        instr::outb(0xcf9, cf9 | 2);
        crate::time::pause_us(50);
        instr::outb(0xcf9, cf9 | 6);
        crate::time::pause_us(10_000);
        instr::outb(0x64, 0xfe);
        crate::time::pause_us(10_000);
        core::arch::asm!("lidt [{}]", "int3", in(reg) &[0u64; 2], options(noreturn));
    }
}

/// Turns the machine off by \_S5; halts where that does nothing.
pub fn off() -> ! {
    crate::nmi::stop_others();
    leave_svm();
    const SLEEP_ENABLE: u16 = 1 << 13;
    if let Some(firmware) = FIRMWARE.get()
        && let Some(types) = firmware.s5
    {
        for (port, kind) in firmware.pm1_control.into_iter().zip(types) {
            if port != 0 {
                // SAFETY: the PM1 control port by the FADT.
                unsafe { instr::outw(port, u16::from(kind) << 10 | SLEEP_ENABLE) };
            }
        }
        crate::time::pause_us(1_000_000);
    }
    instr::halt_forever()
}
