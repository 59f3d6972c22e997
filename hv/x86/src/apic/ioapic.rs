//! The physical IOAPICs: every pin masked; the console's line is the only one ever opened.
// UNSAFETY: device registers.
#![allow(unsafe_code)]

use crate::mm::host;
use addr::Hpa;
use alloc::vec::Vec;
use spin::Mutex;

const MASKED: u32 = 1 << 16;
const REG_VERSION: u32 = 1;
const REG_REDIRECTION: u32 = 0x10;

#[derive(Debug)]
struct IoApic {
    registers: u64,
    gsi_base: u32,
    pins: u32,
}

static IOAPICS: Mutex<Vec<IoApic>> = Mutex::new(Vec::new());

impl IoApic {
    fn read(&self, register: u32) -> u32 {
        // SAFETY: the window is an IOAPIC's (index at 0, data at 16), mapped uncached.
        unsafe {
            (self.registers as *mut u32).write_volatile(register);
            ((self.registers + 16) as *const u32).read_volatile()
        }
    }

    fn write(&self, register: u32, value: u32) {
        // SAFETY: as above; only this module programs pins.
        unsafe {
            (self.registers as *mut u32).write_volatile(register);
            ((self.registers + 16) as *mut u32).write_volatile(value);
        }
    }

    fn mask(&self, pin: u32) {
        self.write(REG_REDIRECTION + pin * 2, MASKED);
        self.write(REG_REDIRECTION + pin * 2 + 1, 0);
    }
}

/// Adds the IOAPIC at `address` whose first pin is `gsi_base`, and masks all its pins.
pub fn add(address: Hpa, gsi_base: u32) {
    let mut chip = IoApic { registers: host::device(address, 0x20) as u64, gsi_base, pins: 0 };
    chip.pins = (chip.read(REG_VERSION) >> 16 & 0xff) + 1;
    (0..chip.pins).for_each(|pin| chip.mask(pin));
    log::debug!("IOAPIC at {address}: GSI {gsi_base} to {}, all masked", gsi_base + chip.pins - 1);
    IOAPICS.lock().push(chip);
}

/// How a line signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Global system interrupt.
    pub gsi: u32,
    /// Active low.
    pub low: bool,
    /// Level triggered.
    pub level: bool,
}

/// Opens `line` to `vector` on the CPU with APIC id `destination` (physical mode, below 256). Whether there
/// is such a pin.
pub fn route(line: Line, vector: u8, destination: u32) -> bool {
    let chips = IOAPICS.lock();
    let Some(chip) = chips.iter().find(|c| (c.gsi_base..c.gsi_base + c.pins).contains(&line.gsi)) else {
        return false;
    };
    let pin = line.gsi - chip.gsi_base;
    chip.write(REG_REDIRECTION + pin * 2 + 1, destination << 24);
    chip.write(
        REG_REDIRECTION + pin * 2,
        u32::from(vector) | u32::from(line.low) << 13 | u32::from(line.level) << 15,
    );
    true
}
