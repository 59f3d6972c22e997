//! Configuration space: addresses, and the two ways to it.
//!
//! All that is done here lies in the first 256 bytes, which ports CF8h and CFCh reach; those work wherever
//! there is a segment 0, even if the MCFG table is wrong. The memory-mapped way is for the other segments,
//! and for machines without the ports.
// UNSAFETY: I/O ports and device registers.
#![allow(unsafe_code)]

use crate::cpu::instr;
use crate::mm::host;
use addr::Hpa;
use alloc::vec::Vec;
use boot::acpi::McfgSegment;
use core::fmt;
use core::ops::RangeInclusive;

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;

/// A function: bus, device (0 to 31) and function (0 to 7).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address {
    /// Bus.
    pub bus: u8,
    /// Device in bits 7:3, function in bits 2:0.
    pub devfn: u8,
}

impl Address {
    /// The function.
    pub const fn new(bus: u8, device: u8, function: u8) -> Self {
        Self { bus, devfn: (device & 31) << 3 | function & 7 }
    }

    /// Bus in the upper byte, device and function below, as routing ids have them.
    pub const fn bdf(self) -> u16 {
        (self.bus as u16) << 8 | self.devfn as u16
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus, self.devfn >> 3, self.devfn & 7)
    }
}

/// Configuration space of one segment, in aligned double words. `offset` below 256.
pub(super) trait Config {
    /// Reads; all ones where there is nothing.
    fn read(&mut self, at: Address, offset: u8) -> u32;
    /// Writes.
    fn write(&mut self, at: Address, offset: u8, value: u32);
}

/// A segment and how it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    /// Segment 0, by ports.
    Ports(RangeInclusive<u8>),
    /// By memory.
    Memory(McfgSegment),
}

impl Segment {
    /// The buses that may exist.
    pub fn buses(&self) -> RangeInclusive<u8> {
        match self {
            Segment::Ports(buses) => buses.clone(),
            Segment::Memory(window) => window.first_bus..=window.last_bus,
        }
    }

    pub fn open(&self) -> Hardware {
        match self {
            Segment::Ports(_) => Hardware::Ports,
            Segment::Memory(window) => Hardware::Memory(window.base),
        }
    }
}

/// The machine's segments, given the windows of its MCFG table.
pub(super) fn segments(windows: &[McfgSegment]) -> Vec<Segment> {
    plan(windows, ports_work())
}

/// A machine of one segment has windows for it, or no MCFG at all.
pub(super) fn plan(windows: &[McfgSegment], ports: bool) -> Vec<Segment> {
    let mut all = Vec::new();
    if ports {
        all.push(Segment::Ports(0..=255));
    }
    // Firmware leaves empty windows as base zero.
    let sound = |w: &&McfgSegment| {
        let last = u64::from(w.last_bus) << 20 | 0xf_ffff;
        w.base.raw() != 0 && w.base.raw().checked_add(last).is_some_and(|end| end < 1 << 52)
    };
    let by_memory = windows.iter().filter(sound).filter(|w| !(ports && w.segment == 0));
    all.extend(by_memory.copied().map(Segment::Memory));
    all
}

/// Whether the address port keeps what is written to it (PCI Local Bus Specification 3.0, 3.2.2.3.2).
fn ports_work() -> bool {
    // SAFETY: the port is the configuration mechanism's or nobody's; it is put back.
    unsafe {
        let old = instr::inl(ADDRESS_PORT);
        instr::outl(ADDRESS_PORT, ENABLE);
        let works = instr::inl(ADDRESS_PORT) == ENABLE;
        instr::outl(ADDRESS_PORT, old);
        works
    }
}

/// The hardware's configuration space.
#[derive(Debug)]
pub(super) enum Hardware {
    Ports,
    Memory(Hpa),
}

impl Hardware {
    /// The registers of a function, 4 KiB each (PCI Express Base Specification, 7.2.2).
    fn register(window: Hpa, at: Address, offset: u8) -> *mut u32 {
        let page = Hpa::new(window.raw() + (u64::from(at.bdf()) << 12));
        let mapped = host::device(page, addr::PAGE_SIZE);
        mapped.wrapping_add(usize::from(offset & !3)).cast()
    }

    fn select(at: Address, offset: u8) {
        let address = ENABLE | u32::from(at.bdf()) << 8 | u32::from(offset & !3);
        // SAFETY: selects a register; only the boot CPU uses the ports now.
        unsafe { instr::outl(ADDRESS_PORT, address) };
    }
}

impl Config for Hardware {
    fn read(&mut self, at: Address, offset: u8) -> u32 {
        match *self {
            Hardware::Ports => {
                Self::select(at, offset);
                // SAFETY: registers that are read here have no side effect of reading.
                unsafe { instr::inl(DATA_PORT) }
            }
            // SAFETY: the window's page of this function, mapped uncached.
            Hardware::Memory(window) => unsafe { Self::register(window, at, offset).read_volatile() },
        }
    }

    fn write(&mut self, at: Address, offset: u8, value: u32) {
        match *self {
            Hardware::Ports => {
                Self::select(at, offset);
                // SAFETY: the writes of `quiet` and `usb` only stop devices.
                unsafe { instr::outl(DATA_PORT, value) };
            }
            // SAFETY: as above.
            Hardware::Memory(window) => unsafe {
                Self::register(window, at, offset).write_volatile(value);
            },
        }
    }
}
