//! PCI: every function that no domain owns is made quiet before domains get memory.
//!
//! Firmware and the loader leave devices that still write memory (network cards that receive, USB
//! controllers that poll, disks in the middle of a read) or raise interrupts. [`silence`] takes USB
//! controllers from the firmware, then turns bus mastering and INTx off and MSI and MSI-X too, on every
//! function but bridges, IOMMUs and the console.
//!
//! [`reserved`] lists the memory-mapped registers that must be in no domain's map.

mod config;
mod quiet;
mod reserved;
mod usb;

pub use config::Address;
pub use quiet::Summary;
pub use reserved::{Reserved, What, reserved};

use addr::Hpa;
use boot::acpi::Acpi;

/// Where the console is: its device is left as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Console {
    /// First byte of a linear framebuffer.
    pub framebuffer: Option<Hpa>,
    /// VGA text at B8000h.
    pub vga_text: bool,
    /// First I/O port of each serial line.
    pub uarts: [Option<u16>; 2],
}

/// Makes every function quiet that no domain owns, and logs one line. On the boot CPU, with the host map in
/// place, before domains are built.
pub fn silence(acpi: Option<&Acpi>, console: &Console) -> Summary {
    let windows = acpi.map(|a| a.mcfg.as_slice()).unwrap_or_default();
    let mut summary = Summary::default();
    for segment in config::segments(windows) {
        let mut space = segment.open();
        quiet::silence(&mut space, segment.buses(), console, &mut usb::mapped, &mut summary);
    }
    log::info!("{summary}");
    summary
}

#[cfg(test)]
mod tests;
