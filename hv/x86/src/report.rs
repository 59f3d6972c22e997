//! Testudo's last words: registers, backtrace, where the log ends.
// UNSAFETY: walks its own stack.
#![allow(unsafe_code)]

use crate::cpu::{instr, percpu, stack};
use crate::mm::host;
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

static PANICKING: AtomicBool = AtomicBool::new(false);

struct Out;

impl Write for Out {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for line in text.split_inclusive('\n') {
            let text = line.trim_end_matches('\n').as_bytes();
            crate::serial::write_panic(text);
            crate::hw::video::write_panic(text);
            if line.ends_with('\n') {
                crate::serial::write_panic(b"\r\n");
                crate::hw::video::write_panic(b"\n");
            }
        }
        Ok(())
    }
}

/// Ends Testudo: prints why and where, stops the other CPUs, then halts or restarts.
pub fn panic(info: &PanicInfo<'_>) -> ! {
    instr::cli();
    if PANICKING.swap(true, Ordering::SeqCst) {
        // A second failure while reporting the first, or another CPU: nothing useful can be said.
        instr::halt_forever();
    }
    crate::nmi::stop_others();
    let _ = writeln!(Out, "\n(testudo) PANIC on CPU {}: {}", percpu::this().index, info.message());
    if let Some(at) = info.location() {
        let _ = writeln!(Out, "(testudo) at {}:{}", at.file(), at.line());
    }
    let _ = writeln!(Out, "(testudo) build {}", build_id());
    backtrace();
    if crate::power::no_reboot() {
        let _ = writeln!(Out, "(testudo) halted (noreboot)");
        instr::halt_forever();
    }
    let _ = writeln!(Out, "(testudo) restarting");
    crate::power::reboot()
}

/// Version and git description.
pub fn build_id() -> &'static str {
    option_env!("TESTUDO_BUILD_ID").unwrap_or(concat!("testudo ", env!("CARGO_PKG_VERSION")))
}

fn backtrace() {
    let _ = writeln!(Out, "(testudo) backtrace:");
    let mut frame = frame_pointer();
    let block = instr::rsp() & !(stack::BLOCK_BYTES as u64 - 1);
    for _ in 0..32 {
        let inside = frame >= block && frame + 16 <= block + stack::BLOCK_BYTES as u64;
        if !inside || !frame.is_multiple_of(8) {
            break;
        }
        // SAFETY: inside this CPU's stack block, which is mapped but for guards that no frame lies in.
        let (next, address) = unsafe { (*(frame as *const u64), *((frame + 8) as *const u64)) };
        if !host::is_text(address) {
            break;
        }
        let _ = writeln!(Out, "(testudo)   {address:#018x}");
        if next <= frame {
            break;
        }
        frame = next;
    }
}

fn frame_pointer() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, rbp", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}
