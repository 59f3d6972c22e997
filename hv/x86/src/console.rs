//! The console of the machine: one lock, the serial lines and the screen below, keys above.
//!
//! A log record never waits for the lock: where another CPU has it, or this CPU has it below an interrupt handler,
//! the record is put aside, and whoever has the lock shows it before letting go. So a handler that logs cannot
//! deadlock, and no CPU with its interrupts held waits for another's slow serial line.

mod late;

use crate::guest::arch::{self, X86};
use crate::start::config;
use alloc::sync::Arc;
use core::fmt;
use hv_core::console::{Console, Conswitch, InputEvent, Sink};
use hv_core::domain::Domain;
use late::Late;
use spin::{Mutex, MutexGuard};

/// The serial lines and the screen.
#[derive(Debug)]
pub struct Line;

impl Sink for Line {
    fn write(&mut self, bytes: &[u8]) {
        crate::serial::write(bytes);
        crate::hw::video::write(bytes);
    }
}

type Locked<'a> = MutexGuard<'a, Option<Console<Line>>>;

static CONSOLE: Mutex<Option<Console<Line>>> = Mutex::new(None);
static LATE: Late = Late::new();

/// Runs `f` on the console, waiting for it. Not for interrupt handlers. `None` before [`init`].
fn with<R>(f: impl FnOnce(&mut Console<Line>) -> R) -> Option<R> {
    let mut console = CONSOLE.lock();
    let result = console.as_mut().map(f);
    release(console);
    result
}

/// Shows what was put aside, and lets go of the console.
fn release(mut console: Locked<'_>) {
    loop {
        let all = console.as_mut().is_none_or(|console| LATE.drain(|text| console.log(text)));
        drop(console);
        // Whoever put something aside after the last look has found the lock taken, and relies on this one.
        if !all || LATE.is_empty() {
            return;
        }
        match CONSOLE.try_lock() {
            Some(again) => console = again,
            None => return,
        }
    }
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

/// A line of Testudo's log. Anywhere, also in interrupt handlers and with GIF=0; waits for no other CPU.
pub fn log(text: fmt::Arguments<'_>) {
    if let Some(mut console) = CONSOLE.try_lock() {
        if let Some(console) = console.as_mut() {
            LATE.drain(|earlier| console.log(earlier));
            console.log(text);
        }
        return release(console);
    }
    LATE.push(text);
    // The lock may have been let go just before that.
    if let Some(console) = CONSOLE.try_lock() {
        release(console);
    }
}

/// Incomplete lines that have waited long enough.
pub fn flush_idle() {
    with(|console| console.flush_idle(crate::time::now()));
}

/// Everything, before the end.
pub fn flush() {
    with(Console::flush);
}

/// What has arrived on the serial lines. Called by the boot CPU with no lock held.
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
            // Who asks gets the answer, whatever the levels of the log.
            Some(InputEvent::Command { key, handler }) => config::gate().opened(|| handler(key)),
            Some(InputEvent::Nothing) | None => {}
        }
    }
}

fn domain(domid: u16) -> Option<Arc<Domain<X86>>> {
    arch::machine().domains.get(xen_abi::DomId(domid))
}
