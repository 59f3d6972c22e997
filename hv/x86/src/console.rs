//! The console of the machine: one lock, the serial line below, keys above.

use crate::cpu::percpu;
use crate::guest::arch::{self, X86};
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};
use hv_core::console::{Console, Conswitch, InputEvent, Sink};
use hv_core::domain::Domain;
use spin::Mutex;

/// The serial line.
#[derive(Debug)]
pub struct Line;

impl Sink for Line {
    fn write(&mut self, bytes: &[u8]) {
        crate::serial::write(bytes);
        crate::hw::video::write(bytes);
    }
}

static CONSOLE: Mutex<Option<Console<Line>>> = Mutex::new(None);
/// CPU that holds the lock, plus 1.
static HOLDER: AtomicU32 = AtomicU32::new(0);

/// Runs `f` on the console. `None` before [`init`], and for a CPU that holds the lock already: an interrupt
/// handler that logs while its CPU prints.
fn with<R>(f: impl FnOnce(&mut Console<Line>) -> R) -> Option<R> {
    let me = percpu::this().index + 1;
    if HOLDER.load(Ordering::Relaxed) == me {
        return None;
    }
    let mut console = CONSOLE.lock();
    HOLDER.store(me, Ordering::Relaxed);
    let result = console.as_mut().map(f);
    HOLDER.store(0, Ordering::Relaxed);
    result
}

/// The character that switches the input, and whether a domain gets it after boot.
pub fn set_conswitch(letter: u8, auto: bool) {
    with(|console| console.set_conswitch(Conswitch { letter: Some(letter), auto }));
}

/// At boot: the heap is at hand.
pub fn init() {
    let mut console = Console::new(Line);
    crate::keys::register(&mut console);
    *CONSOLE.lock() = Some(console);
}

/// A domain appears.
pub fn add_domain(domain: &Domain<X86>) {
    with(|console| console.add_domain(domain.id().0, domain.name()));
}

/// A domain goes.
pub fn remove_domain(domain: &Domain<X86>) {
    with(|console| console.remove_domain(domain.id().0));
}

/// All boot messages are out: the input may go to a domain.
pub fn boot_done() {
    with(Console::boot_done);
}

/// What a domain says.
pub fn domain_output(domain: &Domain<X86>, bytes: &[u8]) {
    with(|console| console.domain_output(domain.id().0, bytes, crate::time::now()));
}

/// A line of Testudo's log. `false`: not possible now.
pub fn log(text: fmt::Arguments<'_>) -> bool {
    with(|console| console.log(text)).is_some()
}

/// Incomplete lines that have waited long enough.
pub fn flush_idle() {
    with(|console| console.flush_idle(crate::time::now()));
}

/// Everything, before the end.
pub fn flush() {
    with(Console::flush);
}

/// The end of the log, for a panic: the lock's holder may be stopped.
pub fn force_unlock() {
    HOLDER.store(0, Ordering::Relaxed);
}

/// What has arrived on the serial line. Called by the boot CPU with no lock held.
pub fn poll_input() {
    let mut buffer = [0; 64];
    let n = crate::serial::read(&mut buffer);
    for &byte in &buffer[..n] {
        match with(|console| console.input(byte)) {
            Some(InputEvent::Domain { domid, bytes }) => {
                if let Some(domain) = domain(domid) {
                    domain.console_input(bytes.as_bytes());
                }
            }
            Some(InputEvent::Command { key, handler }) => handler(key),
            Some(InputEvent::Nothing) | None => {}
        }
    }
}

fn domain(domid: u16) -> Option<Arc<Domain<X86>>> {
    arch::machine().domains.get(xen_abi::DomId(domid))
}
