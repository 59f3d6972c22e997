//! The serial lines of the console: up to two UARTs, each as `com1=` or `com2=` describes it.
// UNSAFETY: claims I/O port ranges.
#![allow(unsafe_code)]

use boot::cmdline::{Parity, Serial};
use core::sync::atomic::{AtomicBool, AtomicU16, Ordering::Relaxed};
use spin::Mutex;
use uart_16550::spec::registers::{self, IER, LSR, WordLength};
use uart_16550::{BaudRate, Config, Uart16550, backend::PioBackend};

/// Most lines at once.
pub const LINES: usize = 2;
/// What a PC's UART runs at with a divisor of 1.
const FASTEST: u32 = 115_200;

static PORTS: Mutex<[Option<Uart16550<PioBackend>>; LINES]> = Mutex::new([const { None }; LINES]);
/// The divisor that firmware or the loader had set at the standard first port, before Testudo touched it; 0: not known.
static FOUND_DIVISOR: AtomicU16 = AtomicU16::new(0);
/// A line has no interrupt: it must be looked at now and then.
static POLLED: AtomicBool = AtomicBool::new(false);

/// A UART's settings for `wanted`. `found` is the divisor it has now: what `auto` keeps, if it makes sense.
fn settings(wanted: &Serial, found: u16) -> Config {
    // No real line is slower than 50: a larger divisor is not one that somebody set.
    let sensible = |baud: &u32| *baud >= 50 && FASTEST.is_multiple_of(*baud);
    let kept = FASTEST.checked_div(found.into()).filter(sensible);
    let baud = wanted.baud.or(kept).unwrap_or(FASTEST);
    Config {
        baud_rate: BaudRate::from_integer(baud),
        data_bits: match wanted.data_bits {
            5 => WordLength::FiveBits,
            6 => WordLength::SixBits,
            7 => WordLength::SevenBits,
            _ => WordLength::EightBits,
        },
        extra_stop_bits: wanted.stop_bits == 2,
        parity: match wanted.parity {
            Parity::None => registers::Parity::Disabled,
            Parity::Odd => registers::Parity::Odd,
            Parity::Even => registers::Parity::Even,
            Parity::Mark => registers::Parity::Forced1,
            Parity::Space => registers::Parity::Forced0,
        },
        ..Config::default()
    }
}

/// Opens a UART; `None` if none answers there. Probed by loopback: a missing one reads FFh.
fn open(wanted: &Serial) -> Option<Uart16550<PioBackend>> {
    // SAFETY: the range belongs to Testudo: no domain is given this port.
    let mut uart = unsafe { Uart16550::new_port(wanted.io_base) }.ok()?;
    if !uart.check_present() {
        return None;
    }
    let standard = wanted.io_base == Serial::COM1.io_base;
    let mut found = if standard { FOUND_DIVISOR.load(Relaxed) } else { 0 };
    if found == 0 {
        let (low, high) = uart.dll_dlm();
        found = u16::from(high) << 8 | u16::from(low);
        if standard {
            FOUND_DIVISOR.store(found, Relaxed);
        }
    }
    uart.init(settings(wanted, found)).ok()?;
    uart.test_loopback().ok()?;
    uart.enable_interrupts(IER::DATA_READY);
    Some(uart)
}

/// Before the command line is known: the first port of a PC, 115200 8n1. Whether a UART answers.
pub fn init_early() -> bool {
    let uart = open(&Serial::COM1);
    let found = uart.is_some();
    PORTS.lock()[0] = uart;
    found
}

/// Closes what is open and opens the `wanted` lines instead. Tells for each whether it is there.
pub fn configure(wanted: [Option<&Serial>; LINES]) -> [bool; LINES] {
    let mut ports = PORTS.lock();
    for uart in ports.iter_mut().flatten() {
        // What is still on its way goes out at the speed it began with.
        while !uart.lsr().contains(LSR::TRANSMITTER_EMPTY) {
            core::hint::spin_loop();
        }
    }
    *ports = wanted.map(|serial| serial.and_then(open));
    core::array::from_fn(|n| ports[n].is_some())
}

/// Whether a UART was found.
pub fn present() -> bool {
    PORTS.lock().iter().any(Option::is_some)
}

/// A line's interrupt does not come: from now on the lines are looked at now and then.
pub fn poll() {
    POLLED.store(true, Relaxed);
}

/// Whether the lines must be looked at now and then.
pub fn polled() -> bool {
    POLLED.load(Relaxed)
}

/// Sends all of `bytes` on every line, waiting for room.
pub fn write(bytes: &[u8]) {
    PORTS.lock().iter_mut().flatten().for_each(|uart| uart.send_bytes_exact(bytes));
}

/// As [`write()`], from a panic: the lock's holder may be stopped, so it is broken.
pub fn write_panic(bytes: &[u8]) {
    // SAFETY: the other CPUs are stopped or about to be; at worst some characters are lost.
    unsafe { PORTS.force_unlock() };
    write(bytes);
}

/// Takes what has arrived on any line, up to the length of `buffer`.
pub fn read(buffer: &mut [u8]) -> usize {
    let mut ports = PORTS.lock();
    ports.iter_mut().flatten().fold(0, |n, uart| n + uart.receive_bytes(&mut buffer[n..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_and_format_reach_the_uart() {
        let config = settings(&Serial::COM1, 12);
        assert_eq!(config.baud_rate.to_integer(), 115_200, "not the divisor that was found");
        assert_eq!((config.data_bits, config.extra_stop_bits), (WordLength::EightBits, false));
        let odd =
            Serial { baud: Some(57_600), data_bits: 7, parity: Parity::Even, stop_bits: 2, ..Serial::COM2 };
        let config = settings(&odd, 0);
        assert_eq!(config.baud_rate.to_integer(), 57_600);
        assert_eq!((config.data_bits, config.extra_stop_bits), (WordLength::SevenBits, true));
        assert_eq!(config.parity, registers::Parity::Even);
        for (parity, bits) in [(Parity::None, 0), (Parity::Odd, 1), (Parity::Mark, 5), (Parity::Space, 7)] {
            let config = settings(&Serial { parity, ..Serial::COM1 }, 0);
            assert_eq!(config.parity.to_raw_bits(), bits, "{parity:?}: LCR bits 5:3 of the 16550");
        }
    }

    #[test]
    fn auto_keeps_the_speed_that_was_found_if_it_makes_sense() {
        let auto = Serial { baud: None, ..Serial::COM1 };
        for (found, baud) in
            [(12, 9600), (1, 115_200), (3, 38_400), (0, 115_200), (7, 115_200), (2304, 50), (0xffff, 115_200)]
        {
            assert_eq!(settings(&auto, found).baud_rate.to_integer(), baud, "divisor {found}");
        }
    }
}
