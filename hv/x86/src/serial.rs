//! The serial line.
// UNSAFETY: claims an I/O port range.
#![allow(unsafe_code)]

use spin::Mutex;
use uart_16550::{Config, Uart16550, backend::PioBackend};

static PORT: Mutex<Option<Uart16550<PioBackend>>> = Mutex::new(None);

/// Opens the UART at `base`; whether one answers. Probed by loopback: a missing UART reads FFh.
pub fn init(base: u16) -> bool {
    // SAFETY: the range belongs to Testudo: no domain is given this port.
    let Ok(mut uart) = (unsafe { Uart16550::new_port(base) }) else { return false };
    if !uart.check_present() || uart.init(Config::default()).is_err() || uart.test_loopback().is_err() {
        return false;
    }
    uart.enable_interrupts(uart_16550::spec::registers::IER::DATA_READY);
    *PORT.lock() = Some(uart);
    true
}

/// Whether a UART was found.
pub fn present() -> bool {
    PORT.lock().is_some()
}

/// Sends all of `bytes`, waiting for room.
pub fn write(bytes: &[u8]) {
    if let Some(uart) = PORT.lock().as_mut() {
        uart.send_bytes_exact(bytes);
    }
}

/// As [`write()`], from a panic: the lock's holder may be stopped, so it is broken.
pub fn write_panic(bytes: &[u8]) {
    // SAFETY: the other CPUs are stopped or about to be; at worst some characters are lost.
    unsafe { PORT.force_unlock() };
    write(bytes);
}

/// Takes what has arrived, up to the length of `buffer`.
pub fn read(buffer: &mut [u8]) -> usize {
    PORT.lock().as_mut().map_or(0, |uart| uart.receive_bytes(buffer))
}
