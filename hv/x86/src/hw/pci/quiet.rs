//! Which functions there are, and how one is made quiet.

use super::Console;
use super::config::{Address, Config};
use super::usb::{self, Takeover};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::ops::RangeInclusive;

/// Offsets in the header (PCI Local Bus Specification 3.0, 6.1 and 6.2).
pub(super) mod reg {
    pub const ID: u8 = 0x00;
    /// Command in the lower half, status in the upper, whose bits are cleared by writing 1.
    pub const COMMAND: u8 = 0x04;
    pub const CLASS: u8 = 0x08;
    pub const HEADER_TYPE: u8 = 0x0c;
    pub const BAR0: u8 = 0x10;
    pub const CAPABILITIES: u8 = 0x34;
}

/// Bits of the command register and, above, of status.
pub(super) mod command {
    pub const IO: u32 = 1 << 0;
    pub const MEMORY: u32 = 1 << 1;
    pub const BUS_MASTER: u32 = 1 << 2;
    pub const INTX_DISABLE: u32 = 1 << 10;
    pub const MASK: u32 = 0xffff;
    pub const HAS_CAPABILITIES: u32 = 1 << 20;
}

const CAP_MSI: u8 = 0x05;
const CAP_MSIX: u8 = 0x11;
/// Message control: the enable bits of MSI and MSI-X, as bits of the capability's first double word.
const MSI_ENABLE: u32 = 1 << 16;
const MSIX_ENABLE: u32 = 1 << 31;
/// Most capabilities that 192 bytes have room for.
const MAX_CAPABILITIES: usize = 48;

/// Class, subclass and programming interface, 24 bits (PCI Code and ID Assignment Specification, 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class(pub u32);

impl Class {
    pub const EHCI: Self = Self(0x0c_03_20);
    pub const XHCI: Self = Self(0x0c_03_30);

    fn base(self) -> u32 {
        self.0 >> 16
    }
    fn sub(self) -> u32 {
        self.0 >> 8
    }
    fn is_bridge(self) -> bool {
        self.base() == 0x06
    }
    fn is_display(self) -> bool {
        self.base() == 0x03
    }
    fn is_vga(self) -> bool {
        self.sub() == 0x0300
    }
    fn is_iommu(self) -> bool {
        self.sub() == 0x0806
    }
}

/// A function that is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function {
    pub at: Address,
    pub class: Class,
    /// Header layout: 0 for devices, 1 and 2 for bridges.
    pub layout: u8,
    pub command: u32,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Functions found.
    pub functions: u32,
    /// Functions left alone: bridges, IOMMUs, the console.
    pub kept: u32,
    /// Functions that were bus masters.
    pub masters: u32,
    /// MSI and MSI-X capabilities that were enabled.
    pub msi: u32,
    /// USB controllers that were taken from the firmware.
    pub usb_taken: u32,
    /// USB controllers that the firmware did not give up in time.
    pub usb_forced: u32,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "PCI: {} functions, {} kept; stopped {} bus masters, {} MSI",
            self.functions, self.kept, self.masters, self.msi
        )?;
        if self.usb_taken + self.usb_forced > 0 {
            write!(f, "; took {} USB controllers from firmware", self.usb_taken + self.usb_forced)?;
        }
        if self.usb_forced > 0 {
            write!(f, " ({} by force)", self.usb_forced)?;
        }
        Ok(())
    }
}

/// The function at `at`, if there is one.
fn probe(config: &mut impl Config, at: Address) -> Option<Function> {
    // All ones: nobody answers. Zero, and a vendor of ones: broken bridges (as seen by many systems).
    let id = config.read(at, reg::ID);
    if id == 0 || id & 0xffff == 0xffff {
        return None;
    }
    Some(Function {
        at,
        class: Class(config.read(at, reg::CLASS) >> 8),
        layout: (config.read(at, reg::HEADER_TYPE) >> 16 & 0x7f) as u8,
        command: config.read(at, reg::COMMAND),
    })
}

/// Calls `each` for every function of `buses`.
pub(super) fn enumerate<C: Config>(
    config: &mut C,
    buses: RangeInclusive<u8>,
    mut each: impl FnMut(&mut C, Function),
) {
    for bus in buses {
        for device in 0..32 {
            let first = Address::new(bus, device, 0);
            let Some(function) = probe(config, first) else { continue };
            let many = config.read(first, reg::HEADER_TYPE) & (1 << 23) != 0;
            each(config, function);
            for number in 1..if many { 8 } else { 1 } {
                if let Some(function) = probe(config, Address::new(bus, device, number)) {
                    each(config, function);
                }
            }
        }
    }
}

/// A base address register's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bar {
    Io(u32),
    Memory(u64),
}

/// The base addresses of a device's function, zero ones (not set) left out.
pub(super) fn bars(config: &mut impl Config, at: Address) -> Vec<(u8, Bar)> {
    let mut found = Vec::new();
    let mut n = 0;
    while n < 6 {
        let low = config.read(at, reg::BAR0 + n * 4);
        let wide = low & 7 == 4;
        let high = if wide && n < 5 { config.read(at, reg::BAR0 + n * 4 + 4) } else { 0 };
        let bar = match low & 1 {
            1 => Bar::Io(low & !3),
            _ => Bar::Memory(u64::from(high) << 32 | u64::from(low & !15)),
        };
        found.extend((bar != Bar::Io(0) && bar != Bar::Memory(0)).then_some((n, bar)));
        n += if wide { 2 } else { 1 };
    }
    found
}

/// The display that the console is on. Sizes of base address registers can only be found by writing them,
/// which a live screen does not like, so it is the display whose region starts closest below.
fn console_display<C: Config>(
    config: &mut C,
    buses: RangeInclusive<u8>,
    console: &Console,
) -> Option<Address> {
    let mut best: Option<(u64, Address)> = None;
    enumerate(config, buses, |config, function| {
        if !function.class.is_display() || function.layout != 0 {
            return;
        }
        if let Some(screen) = console.framebuffer.map(addr::Hpa::raw) {
            for (_, bar) in bars(config, function.at) {
                if let Bar::Memory(start) = bar
                    && start <= screen
                    && best.is_none_or(|(closest, _)| start > closest)
                {
                    best = Some((start, function.at));
                }
            }
        } else if console.vga_text
            && function.class.is_vga()
            && function.command & (command::IO | command::MEMORY) == command::IO | command::MEMORY
            && best.is_none()
        {
            best = Some((0, function.at));
        }
    });
    best.map(|(_, at)| at)
}

/// Whether the function has one of the console's serial lines. An I/O region has at most 256 ports.
fn has_uart(config: &mut impl Config, function: &Function, console: &Console) -> bool {
    if console.uarts == [None; 2] {
        return false;
    }
    let holds = |start: u32| {
        console.uarts.into_iter().flatten().map(u32::from).any(|port| start <= port && port - start < 256)
    };
    function.layout == 0
        && function.command & command::IO != 0
        && bars(config, function.at).into_iter().any(|(_, bar)| matches!(bar, Bar::Io(start) if holds(start)))
}

/// Makes the functions of `buses` quiet.
pub(super) fn silence<C: Config>(
    config: &mut C,
    buses: RangeInclusive<u8>,
    console: &Console,
    map: &mut dyn FnMut(u64, u64) -> Box<dyn usb::Registers>,
    summary: &mut Summary,
) {
    let screen = console_display(config, buses.clone(), console);
    enumerate(config, buses, |config, function| {
        summary.functions += 1;
        if function.class.is_bridge()
            || function.layout != 0
            || function.class.is_iommu()
            || screen == Some(function.at)
            || has_uart(config, &function, console)
        {
            summary.kept += 1;
            return;
        }
        // While it can still reach memory: the firmware's part ends with the transfer in flight done.
        match usb::take(config, &function, map) {
            Takeover::NotNeeded => {}
            Takeover::Given => summary.usb_taken += 1,
            Takeover::Forced => {
                summary.usb_forced += 1;
                log::warn!("PCI {:?}: the firmware does not give up the USB controller", function.at);
            }
        }
        stop(config, &function, summary);
    });
}

/// Bus mastering and interrupts off.
fn stop(config: &mut impl Config, function: &Function, summary: &mut Summary) {
    let at = function.at;
    // INTx goes before MSI: a device with both off would fall back to it. Status is written as zero, which
    // leaves it as it is.
    let old = config.read(at, reg::COMMAND);
    let new = (old & command::MASK & !command::BUS_MASTER) | command::INTX_DISABLE;
    config.write(at, reg::COMMAND, new);
    summary.masters += u32::from(old & command::BUS_MASTER != 0);
    for (offset, id) in capabilities(config, at) {
        let enable = match id {
            CAP_MSI => MSI_ENABLE,
            CAP_MSIX => MSIX_ENABLE,
            _ => continue,
        };
        let control = config.read(at, offset);
        if control & enable != 0 {
            config.write(at, offset, control & !enable);
            summary.msi += 1;
        }
    }
}

/// Offset and id of each capability (PCI Local Bus Specification 3.0, 6.7), however long the list claims to
/// be.
pub(super) fn capabilities(config: &mut impl Config, at: Address) -> Vec<(u8, u8)> {
    let mut found = Vec::new();
    if config.read(at, reg::COMMAND) & command::HAS_CAPABILITIES != 0 {
        let mut offset = config.read(at, reg::CAPABILITIES) as u8 & !3;
        while offset >= 0x40 && found.len() < MAX_CAPABILITIES {
            let header = config.read(at, offset);
            if header == u32::MAX {
                break;
            }
            found.push((offset, header as u8));
            offset = (header >> 8) as u8 & !3;
        }
    }
    found
}
