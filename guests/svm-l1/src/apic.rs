//! The local APIC through its page: self-IPIs, NMIs, starting the second CPU. (APM vol. 2, "Advanced Programmable
//! Interrupt Controller".)

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::cpu;

const BASE: u64 = 0xfee0_0000;
const ID: u64 = 0x20;
const EOI: u64 = 0xb0;
const SVR: u64 = 0xf0;
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const TIMER: u64 = 0x320;
const TIMER_COUNT: u64 = 0x380;
const TIMER_DIVIDE: u64 = 0x3e0;
const PERIODIC: u32 = 1 << 17;
const SELF: u32 = 1 << 18;
/// Vector of spurious interrupts.
pub const SPURIOUS: u8 = 0xff;

static BOOT_ID: AtomicU32 = AtomicU32::new(0);

fn read(register: u64) -> u32 {
    // SAFETY: the page is mapped uncached; registers are 32 bits wide.
    unsafe { ((BASE + register) as *const u32).read_volatile() }
}

fn write(register: u64, value: u32) {
    // SAFETY: as above.
    unsafe { ((BASE + register) as *mut u32).write_volatile(value) };
}

/// Enable the APIC; mute the two legacy controllers (harmless where there are none).
pub fn init() {
    cpu::outb(0x21, 0xff);
    cpu::outb(0xa1, 0xff);
    write(SVR, 0x100 | u32::from(SPURIOUS));
    BOOT_ID.store(id(), Relaxed);
}

/// This CPU's APIC id.
pub fn id() -> u32 {
    read(ID) >> 24
}

/// The first CPU's.
pub fn boot_id() -> u32 {
    BOOT_ID.load(Relaxed)
}

/// End of interrupt.
pub fn eoi() {
    write(EOI, 0);
}

fn command(low: u32, target: u32) {
    write(ICR_HIGH, target << 24);
    write(ICR_LOW, low);
    // Delivery takes a moment; an APIC that hangs here must not hang us.
    let _ = (0..100_000).find(|_| read(ICR_LOW) & 1 << 12 == 0);
}

/// Send `vector` to this CPU.
pub fn self_ipi(vector: u8) {
    command(SELF | 0x4000 | u32::from(vector), 0);
}

/// Send an NMI to this CPU (by its id: the shorthand "self" is for fixed interrupts only).
pub fn self_nmi() {
    command(0x4400, id());
}

/// Interrupt this CPU with `vector` every `count` ticks of the APIC's clock.
pub fn start_timer(vector: u8, count: u32) {
    write(TIMER_DIVIDE, 0xb);
    write(TIMER, PERIODIC | u32::from(vector));
    write(TIMER_COUNT, count);
}

/// INIT, then twice SIPI with page `page`, to every other CPU.
pub fn start_others(page: u8) {
    command(0xc_4500, 0);
    wait(20_000_000);
    for _ in 0..2 {
        command(0xc_4600 | u32::from(page), 0);
        wait(1_000_000);
    }
}

fn wait(ticks: u64) {
    let start = cpu::rdtsc();
    while cpu::rdtsc().wrapping_sub(start) < ticks {
        core::hint::spin_loop();
    }
}
