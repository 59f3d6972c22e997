//! Turning the machine off and on again.
// UNSAFETY: ports and registers that reset the machine.
#![allow(unsafe_code)]

use crate::cpu::instr;
use crate::mm::{direct, host};
use addr::Hpa;
use boot::cmdline::{Options, Reboot, RebootMethod};
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
static WANTED: Once<Reboot> = Once::new();
static NO_REBOOT: AtomicBool = AtomicBool::new(false);

/// Where a PC's firmware looks for what kind of restart this is: the BIOS data area, "reset flag".
const RESET_FLAG: Hpa = Hpa::new(0x472);
/// Its value for a restart that skips the memory test; anything else is a cold one.
const WARM: u16 = 0x1234;

/// Remembers what the firmware offers.
pub fn init(firmware: Firmware) {
    // Here, as a panic may not wait for the lock of Testudo's own tables.
    host::ensure_cached(RESET_FLAG, 2);
    FIRMWARE.call_once(|| firmware);
}

/// Remembers the user's `noreboot` and `reboot=`.
pub fn configure(options: &Options) {
    WANTED.call_once(|| options.reboot);
    NO_REBOOT.store(options.noreboot || options.reboot.never, Ordering::Relaxed);
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

/// The methods in the order they are tried: what the user wants, then the others, the most thorough first.
/// A power cycle loses what a warm restart would keep: it is tried only if it is asked for.
fn order(wanted: Option<RebootMethod>) -> impl Iterator<Item = RebootMethod> {
    const USUAL: [RebootMethod; 4] =
        [RebootMethod::Acpi, RebootMethod::Cf9, RebootMethod::Keyboard, RebootMethod::Triple];
    wanted.into_iter().chain(USUAL.into_iter().filter(move |method| Some(*method) != wanted))
}

/// What is written to port CF9h, in turn: system reset chosen, then done, with a power cycle if `cycle` (Intel I/O
/// controller hub datasheets, "RST_CNT: Reset Control Register").
const fn cf9(now: u8, cycle: bool) -> [u8; 2] {
    let (clean, full) = (now & !0xe, if cycle { 8 } else { 0 });
    [clean | 2 | full, clean | 6 | full]
}

/// Restarts the machine, by `reboot=` or what else works.
pub fn reboot() -> ! {
    crate::nmi::stop_others();
    leave_svm();
    if let (Some(_), Some(wanted)) = (FIRMWARE.get(), WANTED.get()) {
        // SAFETY: the page is firmware's and set apart; `init` has mapped it.
        unsafe {
            let flag = direct::pointer(RESET_FLAG).cast::<u16>();
            flag.write_volatile(if wanted.warm { WARM } else { 0 });
        }
    }
    order(WANTED.get().and_then(|wanted| wanted.method)).for_each(reset_by);
    instr::halt_forever()
}

/// Tries one method, and returns if it does nothing.
fn reset_by(method: RebootMethod) {
    // SAFETY: the machine is to be reset; each of these does that or nothing.
    unsafe {
        match method {
            RebootMethod::Acpi => {
                let Some((port, value)) = FIRMWARE.get().and_then(|f| f.reset) else { return };
                instr::outb(port, value);
            }
            RebootMethod::Cf9 | RebootMethod::Cf9Power => {
                let [choose, act] = cf9(instr::inb(0xcf9), method == RebootMethod::Cf9Power);
                instr::outb(0xcf9, choose);
                crate::time::pause_us(50);
                instr::outb(0xcf9, act);
            }
            RebootMethod::Keyboard => instr::outb(0x64, 0xfe),
            RebootMethod::Triple => {
                core::arch::asm!("lidt [{}]", "int3", in(reg) &[0u64; 2], options(noreturn))
            }
        }
        crate::time::pause_us(10_000);
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

#[cfg(test)]
mod tests {
    use super::*;
    use RebootMethod::{Acpi, Cf9, Cf9Power, Keyboard, Triple};
    use alloc::vec::Vec;

    #[test]
    fn what_is_wanted_comes_first_and_everything_else_after_it() {
        let tried = |wanted| order(wanted).collect::<Vec<_>>();
        assert_eq!(tried(None), [Acpi, Cf9, Keyboard, Triple]);
        assert_eq!(tried(Some(Keyboard)), [Keyboard, Acpi, Cf9, Triple]);
        assert_eq!(tried(Some(Triple)), [Triple, Acpi, Cf9, Keyboard]);
        assert_eq!(tried(Some(Cf9Power)), [Cf9Power, Acpi, Cf9, Keyboard, Triple]);
    }

    #[test]
    fn port_cf9_resets_and_cycles() {
        assert_eq!(cf9(0, false), [2, 6]);
        assert_eq!(cf9(0xff, false), [0xf3, 0xf7]);
        assert_eq!(cf9(0x10, true), [0x1a, 0x1e]);
    }
}
