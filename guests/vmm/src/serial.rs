//! An 8250 at 3F8h: enough for Linux's driver, with transmit and receive interrupts. (National Semiconductor PC16450D,
//! "Registers".)

use std::collections::VecDeque;
use std::io::Write;

/// First port.
pub const PORT: u16 = 0x3f8;
/// Interrupt line.
pub const IRQ: u32 = 4;

const IER_RX: u8 = 1;
const IER_TX: u8 = 2;
const LCR_DLAB: u8 = 0x80;
const MCR_LOOP: u8 = 0x10;
const LSR_DATA: u8 = 0x01;
const LSR_TX_EMPTY: u8 = 0x60;
const IIR_NONE: u8 = 1;
const IIR_TX: u8 = 2;
const IIR_RX: u8 = 4;

/// The port's registers, the line being assembled, and input not yet read.
#[derive(Debug)]
pub struct Serial {
    prefix: Vec<u8>,
    line: Vec<u8>,
    input: VecDeque<u8>,
    ier: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    divisor: [u8; 2],
    tx_pending: bool,
    fresh: bool,
}

impl Serial {
    /// A port whose output lines begin with `prefix`.
    pub fn new(prefix: &str) -> Serial {
        Serial {
            prefix: prefix.into(),
            line: Vec::new(),
            input: VecDeque::new(),
            ier: 0,
            lcr: 0,
            mcr: 0,
            scratch: 0,
            divisor: [1, 0],
            tx_pending: false,
            fresh: true,
        }
    }

    /// The guest reads register `offset`.
    pub fn read(&mut self, offset: u16) -> u8 {
        let dlab = self.lcr & LCR_DLAB != 0;
        match offset {
            0 | 1 if dlab => self.divisor[offset as usize],
            0 => self.input.pop_front().unwrap_or(0),
            1 => self.ier,
            2 => self.identify(),
            3 => self.lcr,
            4 => self.mcr,
            5 => LSR_TX_EMPTY | if self.input.is_empty() { 0 } else { LSR_DATA },
            // Loop-back shows the outputs as inputs; else carrier, DSR and CTS are there.
            6 if self.mcr & MCR_LOOP != 0 => {
                (self.mcr & 1) << 5 | (self.mcr & 2) << 3 | (self.mcr & 4) << 4 | (self.mcr & 8) << 4
            }
            6 => 0xb0,
            7 => self.scratch,
            _ => 0xff,
        }
    }

    /// The guest writes register `offset`.
    pub fn write(&mut self, offset: u16, value: u8) {
        let dlab = self.lcr & LCR_DLAB != 0;
        match offset {
            0 | 1 if dlab => self.divisor[offset as usize] = value,
            0 if self.mcr & MCR_LOOP != 0 => self.input.push_back(value),
            0 => {
                self.put(value);
                self.tx_pending = true;
            }
            1 => {
                // Enabling the transmit interrupt while the register is empty raises it at once.
                self.tx_pending |= value & !self.ier & IER_TX != 0;
                self.ier = value & 0xf;
            }
            3 => self.lcr = value,
            4 => self.mcr = value & 0x1f,
            7 => self.scratch = value,
            _ => {}
        }
    }

    /// Whether the interrupt line is raised.
    pub fn irq(&self) -> bool {
        self.cause() != IIR_NONE
    }

    /// Hand a byte to the guest.
    pub fn receive(&mut self, byte: u8) {
        if self.input.len() < 4096 {
            self.input.push_back(byte);
        }
    }

    /// Print a line of our own, prefixed like the guest's.
    pub fn print(&mut self, line: &str) {
        line.bytes().for_each(|b| self.put(b));
    }

    /// Print what is left of an unfinished line.
    pub fn finish(&mut self) {
        if !self.fresh || !self.line.is_empty() {
            self.put(b'\n');
        }
    }

    fn cause(&self) -> u8 {
        if self.ier & IER_RX != 0 && !self.input.is_empty() {
            IIR_RX
        } else if self.ier & IER_TX != 0 && self.tx_pending {
            IIR_TX
        } else {
            IIR_NONE
        }
    }

    fn identify(&mut self) -> u8 {
        let cause = self.cause();
        if cause == IIR_TX {
            self.tx_pending = false;
        }
        cause
    }

    /// Line-buffered: a line of an L2 must not be torn by its neighbours' or by L1's own output.
    fn put(&mut self, byte: u8) {
        if byte == b'\r' {
            return;
        }
        if self.fresh {
            self.line.extend(&self.prefix);
            self.fresh = false;
        }
        self.line.push(byte);
        if byte == b'\n' || self.line.len() > 1024 {
            let mut out = std::io::stdout().lock();
            // Nowhere to report a broken standard output to; the guest goes on.
            let _ = out.write_all(&self.line).and_then(|()| out.flush());
            self.line.clear();
            self.fresh = byte == b'\n';
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transmit_interrupt_comes_once_per_byte() {
        let mut s = Serial::new("");
        s.write(1, IER_TX);
        assert!(s.irq());
        assert_eq!((s.read(2), s.read(2)), (IIR_TX, IIR_NONE));
        s.write(0, b'x');
        assert!(s.irq());
    }

    #[test]
    fn receive_interrupt_beats_transmit() {
        let mut s = Serial::new("");
        s.write(1, IER_TX | IER_RX);
        s.receive(b'a');
        assert_eq!(s.read(2), IIR_RX);
        assert_eq!((s.read(5) & LSR_DATA, s.read(0)), (LSR_DATA, b'a'));
        assert_eq!((s.read(5) & LSR_DATA, s.read(2)), (0, IIR_TX));
    }

    #[test]
    fn loopback_mirrors_modem_lines() {
        let mut s = Serial::new("");
        s.write(4, MCR_LOOP | 0xa);
        assert_eq!(s.read(6) & 0xf0, 0x90);
        s.write(0, 0x5a);
        assert_eq!(s.read(0), 0x5a);
    }

    #[test]
    fn divisor_latch_hides_data() {
        let mut s = Serial::new("");
        s.write(3, LCR_DLAB);
        s.write(0, 12);
        assert_eq!(s.read(0), 12);
        s.write(3, 3);
        assert!(!s.irq() && s.read(0) == 0);
    }
}
