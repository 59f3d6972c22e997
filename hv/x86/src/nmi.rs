//! Non-maskable interrupts: from another CPU's panic (stop), from the watchdog, or from hardware, of which `nmi=`
//! decides.
// UNSAFETY: the port that says where an NMI came from.
#![allow(unsafe_code)]

use crate::cpu::{instr, percpu};
use crate::start::config;
use crate::trap::Frame;
use boot::cmdline::UnknownNmi;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

/// The CPU that stops the others, plus 1.
static STOPPER: AtomicU32 = AtomicU32::new(0);

/// NMI status and control (Intel I/O controller hub datasheets, "NMI_SC: NMI Status and Control Register").
const STATUS: u16 = 0x61;

/// From now on every NMI stops the CPU that gets it, but for this one, which has a report to finish.
pub fn stop_others() {
    STOPPER.store(percpu::this().index + 1, Ordering::SeqCst);
    crate::smp::nmi_others();
}

/// Where an NMI came from that is not Testudo's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// A system error on PCI: a parity error, a broken device.
    Serr,
    /// An I/O channel check.
    IoCheck,
    /// Anything else: a button, a management controller, another CPU.
    Unknown,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Serr => "PCI system error (SERR#)",
            Source::IoCheck => "I/O channel check (IOCHK#)",
            Source::Unknown => "of unknown origin",
        })
    }
}

impl Source {
    /// What the status register says.
    const fn of(status: u8) -> Self {
        match status {
            0x80.. => Source::Serr,
            0x40.. => Source::IoCheck,
            _ => Source::Unknown,
        }
    }

    /// What to write, in turn, so that the next error is reported again: a source is cleared by turning it off and
    /// on. The upper half of the register is read-only.
    const fn acknowledge(self, status: u8) -> Option<[u8; 2]> {
        let off = match self {
            Source::Serr => 1 << 2,
            Source::IoCheck => 1 << 3,
            Source::Unknown => return None,
        };
        Some([status & 0xf | off, status & 0xf & !off])
    }
}

/// What becomes of an NMI that nobody expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Nothing,
    Log,
    Stop,
}

/// `nmi=`. There is no dom0 that could be told, so the log is.
const fn then(policy: UnknownNmi) -> Then {
    match policy {
        UnknownNmi::Ignore => Then::Nothing,
        UnknownNmi::Dom0 => Then::Log,
        UnknownNmi::Fatal => Then::Stop,
    }
}

/// Handles an NMI.
pub fn handle(frame: &Frame) {
    let stopper = STOPPER.load(Ordering::SeqCst);
    if stopper == percpu::this().index + 1 {
        return;
    }
    if stopper != 0 {
        // Where it was is for the report of the CPU that stops it.
        percpu::this().stopped.store(core::ptr::from_ref(frame) as u64, Ordering::Release);
        instr::halt_forever();
    }
    if crate::hw::watchdog::is_ours(frame) {
        return;
    }
    // SAFETY: the register is the chipset's, and no domain is given it.
    let status = unsafe { instr::inb(STATUS) };
    let source = Source::of(status);
    for value in source.acknowledge(status).into_iter().flatten() {
        // SAFETY: as above; the lower half is written back but for the source's own bit.
        unsafe { instr::outb(STATUS, value) };
    }
    match then(config::options().nmi) {
        Then::Nothing => {}
        Then::Log => log::error!("NMI, {source}, at {:#x}: there is no dom0 to tell", frame.rip),
        Then::Stop => crate::report::exception(
            frame,
            format_args!("NMI, {source} (port 61h: {status:#x}); `nmi=ignore` goes on after one"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_decides() {
        assert_eq!(
            [UnknownNmi::Ignore, UnknownNmi::Dom0, UnknownNmi::Fatal].map(then),
            [Then::Nothing, Then::Log, Then::Stop]
        );
    }

    #[test]
    fn sources_are_told_apart_and_turned_on_again() {
        // Port 61h with the timer gate and the speaker on, and read-only bits in the upper half.
        for (status, source, writes) in [
            (0xb3, Source::Serr, Some([0x07, 0x03])),
            (0x73, Source::IoCheck, Some([0x0b, 0x03])),
            (0x33, Source::Unknown, None),
            (0xff, Source::Serr, Some([0x0f, 0x0b])),
        ] {
            assert_eq!(Source::of(status), source, "{status:#x}");
            assert_eq!(source.acknowledge(status), writes, "{status:#x}");
        }
    }
}
