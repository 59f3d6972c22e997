//! The two 8259s: moved out of the exceptions' way and masked for good.
// UNSAFETY: I/O ports of the 8259s.
#![allow(unsafe_code)]

use crate::cpu::instr::{inb, outb};
use crate::trap::vector::PIC_BASE;

const MASTER: u16 = 0x20;
const SLAVE: u16 = 0xa0;

/// Initialises both (ICW1–ICW4, Intel 8259A data sheet) and masks all lines.
pub fn disable() {
    // SAFETY: the ports belong to Testudo alone.
    unsafe {
        for (port, offset, wiring) in [(MASTER, PIC_BASE, 4), (SLAVE, PIC_BASE + 8, 2)] {
            outb(port, 0x11);
            outb(port + 1, offset);
            outb(port + 1, wiring);
            outb(port + 1, 1);
            outb(port + 1, 0xff);
        }
    }
}

/// Answers an interrupt that arrived although all lines are masked: spurious ones are lines 7 and 15.
pub fn spurious(line: u8) {
    // SAFETY: reading the in-service register (OCW3) and non-specific EOI (OCW2).
    unsafe {
        let chip = if line < 8 { MASTER } else { SLAVE };
        outb(chip, 0x0b);
        if inb(chip) & (1 << (line % 8)) != 0 {
            outb(chip, 0x20);
        }
        if line >= 8 {
            outb(MASTER, 0x20);
        }
    }
}
