//! USB controllers: the firmware, which uses them for keyboards and disks by its system-management code,
//! gives them to us.
//!
//! xHCI: eXtensible Host Controller Interface 1.2, 4.22.1 and 7.1. EHCI: Enhanced Host Controller Interface
//! 1.0, 2.1.7, 2.1.8 and 5.1.
// UNSAFETY: device registers.
#![allow(unsafe_code)]

use super::config::Config;
use super::quiet::{Bar, Class, Function, bars, command};
use crate::mm::host;
use addr::Hpa;
use alloc::boxed::Box;

/// Bits of USBLEGSUP, alike for both.
const FIRMWARE_OWNS: u32 = 1 << 16;
const SYSTEM_OWNS: u32 = 1 << 24;
/// How long the firmware may take, in ms (xHCI 4.22.1: a second).
const PATIENCE_MS: u32 = 1000;
/// How long a controller takes to stop, in ms (xHCI 5.4.1.1: 16; EHCI 2.3.1: 16 microframes).
const HALT_MS: u32 = 20;
/// Bytes of an xHCI's registers that extended capabilities may lie in: their pointer has 16 bits and counts
/// double words.
const XHCI_BYTES: u64 = 0x4_0000;
/// Most extended capabilities that are looked at.
const MAX_EXTENDED: u32 = 64;
/// Capability of legacy support, for both.
const LEGACY: u32 = 1;
/// USBLEGCTLSTS of xHCI: the enable bits of system-management interrupts, and their events, cleared by 1.
const XHCI_SMI_ENABLES: u32 = 1 << 0 | 1 << 4 | 7 << 13;
const XHCI_SMI_EVENTS: u32 = 7 << 29;

/// How a controller came to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takeover {
    /// Not a USB controller of these kinds, off, or not the firmware's.
    NotNeeded,
    /// The firmware let go.
    Given,
    /// It did not, in time: taken.
    Forced,
}

/// A controller's memory-mapped registers, and the passing of time.
pub(super) trait Registers {
    /// Reads the aligned double word at `offset`; all ones behind the end.
    fn read(&mut self, offset: u64) -> u32;
    /// Writes it.
    fn write(&mut self, offset: u64, value: u32);
    /// Lets a millisecond go by.
    fn pause(&mut self);
}

struct Mapped {
    base: *mut u8,
    bytes: u64,
}

impl Registers for Mapped {
    fn read(&mut self, offset: u64) -> u32 {
        if offset + 4 > self.bytes {
            return u32::MAX;
        }
        // SAFETY: inside the mapped window of the controller's registers.
        unsafe { self.base.add(offset as usize & !3).cast::<u32>().read_volatile() }
    }
    fn write(&mut self, offset: u64, value: u32) {
        if offset + 4 <= self.bytes {
            // SAFETY: as above.
            unsafe { self.base.add(offset as usize & !3).cast::<u32>().write_volatile(value) };
        }
    }
    fn pause(&mut self) {
        crate::time::pause_us(1000);
    }
}

/// Maps a controller's registers.
pub(super) fn mapped(at: u64, bytes: u64) -> Box<dyn Registers> {
    Box::new(Mapped { base: host::device(Hpa::new(at), bytes), bytes })
}

/// Takes a USB controller from the firmware and stops it.
pub(super) fn take(
    config: &mut impl Config,
    function: &Function,
    map: &mut dyn FnMut(u64, u64) -> Box<dyn Registers>,
) -> Takeover {
    let bytes = match function.class {
        Class::XHCI => XHCI_BYTES,
        Class::EHCI => addr::PAGE_SIZE,
        _ => return Takeover::NotNeeded,
    };
    // Without an address it was never used.
    let base = bars(config, function.at).into_iter().find_map(|(n, bar)| match bar {
        Bar::Memory(base) if n == 0 && base < 1 << 52 => Some(base),
        _ => None,
    });
    let Some(base) = base.filter(|_| function.command & command::MEMORY != 0) else {
        return Takeover::NotNeeded;
    };
    let mut registers = map(base, bytes);
    let registers = registers.as_mut();
    if function.class == Class::XHCI { xhci(registers) } else { ehci(config, function, registers) }
}

/// Waits for `done`, a millisecond at a time.
fn wait(registers: &mut dyn Registers, ms: u32, mut done: impl FnMut(&mut dyn Registers) -> bool) -> bool {
    for _ in 0..ms {
        if done(registers) {
            return true;
        }
        registers.pause();
    }
    done(registers)
}

fn xhci(registers: &mut dyn Registers) -> Takeover {
    let mut result = Takeover::NotNeeded;
    // HCCPARAMS1: the first extended capability, in double words from the base.
    let mut offset = u64::from(registers.read(0x10) >> 16) * 4;
    for _ in 0..MAX_EXTENDED {
        let header = if offset == 0 { u32::MAX } else { registers.read(offset) };
        if header == u32::MAX {
            break;
        }
        if header & 0xff == LEGACY {
            if header & FIRMWARE_OWNS != 0 {
                registers.write(offset, header | SYSTEM_OWNS);
                let given = wait(registers, PATIENCE_MS, |r| r.read(offset) & FIRMWARE_OWNS == 0);
                if !given {
                    let now = registers.read(offset);
                    registers.write(offset, now & !FIRMWARE_OWNS | SYSTEM_OWNS);
                }
                result = if given { Takeover::Given } else { Takeover::Forced };
            }
            let control = registers.read(offset + 4);
            registers.write(offset + 4, control & !XHCI_SMI_ENABLES | XHCI_SMI_EVENTS);
            break;
        }
        let next = u64::from(header >> 8 & 0xff) * 4;
        if next == 0 {
            break;
        }
        offset += next;
    }
    // CAPLENGTH; USBCMD.Run/Stop; USBSTS.HCHalted is bit 0.
    stop(registers, 1, 1 << 0);
    result
}

fn ehci(config: &mut impl Config, function: &Function, registers: &mut dyn Registers) -> Takeover {
    let mut result = Takeover::NotNeeded;
    // HCCPARAMS: the capability lies in configuration space.
    let mut offset = (registers.read(0x08) >> 8) as u8 & !3;
    for _ in 0..MAX_EXTENDED {
        if offset < 0x40 {
            break;
        }
        let header = config.read(function.at, offset);
        if header == u32::MAX {
            break;
        }
        if header & 0xff == LEGACY {
            if header & FIRMWARE_OWNS != 0 {
                config.write(function.at, offset, header | SYSTEM_OWNS);
                let given =
                    wait(registers, PATIENCE_MS, |_| config.read(function.at, offset) & FIRMWARE_OWNS == 0);
                if !given {
                    config.write(function.at, offset, header & !FIRMWARE_OWNS | SYSTEM_OWNS);
                }
                result = if given { Takeover::Given } else { Takeover::Forced };
            }
            if offset <= 0xf8 {
                // USBLEGCTLSTS: no system-management interrupts.
                config.write(function.at, offset + 4, 0);
            }
            break;
        }
        offset = (header >> 8) as u8 & !3;
    }
    // USBCMD: run, and both schedules; USBSTS.HCHalted is bit 12.
    stop(registers, 1 | 1 << 4 | 1 << 5, 1 << 12);
    result
}

/// Clears `run` of USBCMD and waits until USBSTS shows `halted`.
fn stop(registers: &mut dyn Registers, run: u32, halted: u32) {
    // CAPLENGTH is the first byte.
    let operational = u64::from(registers.read(0) & 0xff);
    let command = registers.read(operational);
    if command == u32::MAX || operational < 0x10 {
        return;
    }
    registers.write(operational, command & !run);
    if !wait(registers, HALT_MS, |r| r.read(operational + 4) & halted != 0) {
        log::debug!("a USB controller does not halt");
    }
}
