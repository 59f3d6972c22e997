//! Testudo's last words: why, registers, backtraces of all CPUs, the ends of their traces, the build.
//!
//! They must come from anywhere: any of the stacks, interrupts on or off, GIF=0 with a guest's TR in the
//! processor, any lock held by this CPU or one that is stopped. So nothing here allocates or waits for a lock,
//! and memory is read only where it is known to be mapped. A failure in here is reported once, shortly.
// UNSAFETY: reads the registers; walks stacks.
#![allow(unsafe_code)]

mod backtrace;
pub mod crash;

use crate::cpu::percpu::{self, PerCpu};
use crate::cpu::{instr, stack};
use crate::smp;
use crate::trap::Frame;
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, Ordering};

/// The CPU that reports, plus 1.
static REPORTING: AtomicU32 = AtomicU32::new(0);
/// Failures of the reporting CPU while it reports.
static AGAIN: AtomicU32 = AtomicU32::new(0);

/// Frames shown of the CPU that failed, and of each other one.
const FRAMES: (usize, usize) = (32, 6);
/// Events shown of the CPU that failed, and of each other one.
const EVENTS: (usize, usize) = (24, 8);
/// How long other CPUs may take to stop, microseconds: one that has GIF=0 or is off never does.
const STOP_LIMIT: u32 = 100_000;

/// The console, without its locks; each line says whose it is.
struct Out {
    inside: bool,
}

impl Write for Out {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for line in text.split_inclusive('\n') {
            if !self.inside {
                raw(b"(testudo) ");
            }
            self.inside = !line.ends_with('\n');
            raw(line.trim_end_matches('\n').as_bytes());
            if !self.inside {
                end_line();
            }
        }
        Ok(())
    }
}

fn raw(text: &[u8]) {
    crate::serial::write_panic(text);
    crate::hw::video::write_panic(text);
}

fn end_line() {
    crate::serial::write_panic(b"\r\n");
    crate::hw::video::write_panic(b"\n");
}

macro_rules! say {
    ($out:expr, $($arg:tt)*) => {{ let _ = writeln!($out, $($arg)*); }};
}

/// Ends Testudo after a panic.
pub fn panic(info: &PanicInfo<'_>) -> ! {
    let frame = registers();
    end(&frame, |out| {
        say!(out, "{}", info.message());
        if let Some(at) = info.location() {
            say!(out, "at {}:{}", at.file(), at.line());
        }
    })
}

/// Ends Testudo after an exception, with the registers as they were then.
pub fn exception(frame: &Frame, why: fmt::Arguments<'_>) -> ! {
    end(frame, |out| {
        say!(out, "{why}");
        say!(out, "exception {} (vector {:#x}), error code {:#x}", name(frame), frame.vector, frame.error);
    })
}

fn name(frame: &Frame) -> &'static str {
    crate::trap::name(frame.vector)
}

/// The registers as they are.
#[inline(always)]
fn registers() -> Frame {
    use crate::cpu::desc::{CS, DS};
    let mut frame = Frame { cs: CS.into(), ss: DS.into(), rflags: instr::rflags(), ..Frame::default() };
    #[cfg(target_os = "none")]
    // SAFETY: stores registers to a value of our own, in the order of its fields; RAX is its address.
    unsafe {
        core::arch::asm!(
            "mov [rax], r15", "mov [rax + 0x08], r14", "mov [rax + 0x10], r13", "mov [rax + 0x18], r12",
            "mov [rax + 0x20], r11", "mov [rax + 0x28], r10", "mov [rax + 0x30], r9", "mov [rax + 0x38], r8",
            "mov [rax + 0x40], rbp", "mov [rax + 0x48], rdi", "mov [rax + 0x50], rsi", "mov [rax + 0x58], rdx",
            "mov [rax + 0x60], rcx", "mov [rax + 0x68], rbx", "mov [rax + 0xa0], rsp",
            "lea {at}, [rip]", "mov [rax + 0x88], {at}",
            at = out(reg) _,
            in("rax") &raw mut frame,
            options(nostack, preserves_flags),
        );
    }
    #[cfg(not(target_os = "none"))]
    {
        frame.rsp = instr::rsp();
    }
    frame
}

fn end(frame: &Frame, why: impl FnOnce(&mut Out)) -> ! {
    instr::cli();
    let cpu = percpu::this();
    let mut out = Out { inside: false };
    match REPORTING.compare_exchange(0, cpu.index + 1, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => {}
        Err(who) if who == cpu.index + 1 => {
            if AGAIN.fetch_add(1, Ordering::SeqCst) != 0 {
                instr::halt_forever();
            }
            end_line();
            let _ = write!(out, "and a failure while reporting it, at {:#x}: ", frame.rip);
            why(&mut out);
            finish(&mut out);
        }
        // Another CPU reports, and is about to stop this one.
        Err(_) => instr::halt_forever(),
    }
    // The first tier leaves a guest's TR: without ours a double fault from here on would be the end.
    crate::svm::load_host_segments();
    crate::nmi::stop_others();
    wait_for_others(cpu);
    end_line();
    let _ = write!(out, "PANIC on CPU {}: ", cpu.index);
    why(&mut out);
    say!(out, "build {}", build_id());
    let _ = write!(out, "{frame}");
    whereabouts(&mut out, cpu, frame);
    events(&mut out, cpu);
    finish(&mut out)
}

fn wait_for_others(me: &PerCpu) {
    let running = |cpu: &PerCpu| cpu.index != me.index && cpu.stopped.load(Ordering::Acquire) == 0;
    for _ in 0..STOP_LIMIT / 10 {
        if !smp::cpus().any(running) {
            return;
        }
        crate::time::pause_us(10);
    }
}

/// Backtraces of all CPUs.
fn whereabouts(out: &mut Out, me: &PerCpu, frame: &Frame) {
    say!(out, "backtrace:");
    let block = instr::rsp() & !(stack::BLOCK_BYTES as u64 - 1);
    backtrace::print(out, block, frame, FRAMES.0);
    for cpu in smp::cpus().filter(|cpu| cpu.index != me.index) {
        let at = cpu.stopped.load(Ordering::Acquire);
        let block = at & !(stack::BLOCK_BYTES as u64 - 1);
        match backtrace::frame_at(block, at) {
            Some(frame) => {
                say!(out, "CPU {} was stopped at:", cpu.index);
                backtrace::print(out, block, &frame, FRAMES.1);
            }
            None => say!(out, "CPU {} does not stop", cpu.index),
        }
    }
    if crate::mm::host::symbols().is_none() {
        say!(out, "no names: `cargo xtask build` puts them into the image; for this one use addr2line");
    }
}

fn events(out: &mut Out, me: &PerCpu) {
    let now = instr::rdtsc();
    crate::trace::tail(me, EVENTS.0, now, &mut |line| say!(out, "{line}"));
    for cpu in smp::cpus().filter(|cpu| cpu.index != me.index) {
        crate::trace::tail(cpu, EVENTS.1, now, &mut |line| say!(out, "{line}"));
    }
}

fn finish(out: &mut Out) -> ! {
    if crate::power::no_reboot() {
        say!(out, "halted (noreboot)");
        instr::halt_forever();
    }
    say!(out, "restarting");
    crate::power::reboot()
}

/// Version and git description.
pub fn build_id() -> &'static str {
    option_env!("TESTUDO_BUILD_ID").unwrap_or(concat!("testudo ", env!("CARGO_PKG_VERSION")))
}
