//! The physical local APIC, in xAPIC or x2APIC mode.
// UNSAFETY: device registers and MSRs.
#![allow(unsafe_code)]

pub mod ioapic;
pub mod pic;

use crate::cpu::{instr, msr, percpu};
use crate::mm::host;
use crate::trap::vector;
use addr::Hpa;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use spin::Once;

/// Register numbers: offset / 16, as in x2APIC mode (APM vol. 2, "APIC Registers").
mod reg {
    pub const ID: u32 = 0x02;
    pub const TPR: u32 = 0x08;
    pub const EOI: u32 = 0x0b;
    pub const LDR: u32 = 0x0d;
    pub const DFR: u32 = 0x0e;
    pub const SVR: u32 = 0x0f;
    pub const ESR: u32 = 0x28;
    pub const ICR: u32 = 0x30;
    pub const ICR_HIGH: u32 = 0x31;
    pub const LVT_TIMER: u32 = 0x32;
    pub const LVT_THERMAL: u32 = 0x33;
    pub const LVT_PERF: u32 = 0x34;
    pub const LVT_LINT0: u32 = 0x35;
    pub const LVT_LINT1: u32 = 0x36;
    pub const LVT_ERROR: u32 = 0x37;
    pub const TIMER_INITIAL: u32 = 0x38;
    pub const TIMER_CURRENT: u32 = 0x39;
    pub const TIMER_DIVIDE: u32 = 0x3e;
}

const MASKED: u32 = 1 << 16;
const DELIVERY_NMI: u32 = 4 << 8;
const TIMER_TSC_DEADLINE: u32 = 2 << 17;
const ICR_PENDING: u32 = 1 << 12;
const ICR_ASSERT: u32 = 1 << 14;
/// MSR of register 0 in x2APIC mode.
const X2APIC_BASE: u32 = 0x800;

/// How registers are reached, decided once by the boot CPU for all CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Mmio(u64),
    Msr,
}

static ACCESS: Once<Access> = Once::new();
static USE_X2APIC: AtomicBool = AtomicBool::new(false);
static TSC_DEADLINE: AtomicBool = AtomicBool::new(false);
/// Timer ticks (divided by 1) in 2^32 nanoseconds.
static TICKS_PER_2_32_NS: AtomicU64 = AtomicU64::new(0);
static UNOWNED_LOGGED: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

fn access() -> Access {
    *ACCESS.get().expect("the local APIC is set up before it is used")
}

#[inline(always)]
fn read(register: u32) -> u32 {
    match access() {
        // SAFETY: the page is the local APIC's, mapped uncached by `init_boot`.
        Access::Mmio(base) => unsafe { ((base + u64::from(register) * 16) as *const u32).read_volatile() },
        // SAFETY: x2APIC mode is on, and `register` is one of `reg`.
        Access::Msr => unsafe { instr::rdmsr(X2APIC_BASE + register) as u32 },
    }
}

#[inline(always)]
fn write(register: u32, value: u32) {
    match access() {
        // SAFETY: as in `read`; the values are those of this module.
        Access::Mmio(base) => unsafe {
            ((base + u64::from(register) * 16) as *mut u32).write_volatile(value)
        },
        // SAFETY: as above.
        Access::Msr => unsafe { instr::wrmsr(X2APIC_BASE + register, value.into()) },
    }
}

/// The id of this CPU's local APIC by CPUID, usable before anything is set up.
pub fn cpuid_apic_id() -> u32 {
    let max = instr::cpuid(0, 0)[0];
    let topology = if max >= 0xb { instr::cpuid(0xb, 0) } else { [0; 4] };
    if topology[1] != 0 { topology[3] } else { instr::cpuid(1, 0)[1] >> 24 }
}

/// Sets up the boot CPU's local APIC, measures its timer against the TSC (`tsc_khz`), then switches to
/// x2APIC mode where there is one and `allow_x2apic` says so (or the firmware has already).
///
/// The timer is measured in xAPIC mode if possible: an emulator that is replayed by instruction count
/// ends at a read of the x2APIC current-count MSR.
pub fn init_boot(tsc_khz: u64, allow_x2apic: bool) {
    // SAFETY: every x86-64 CPU has this MSR.
    let base = unsafe { instr::rdmsr(msr::IA32_APIC_BASE) };
    let on_already = base & msr::APIC_BASE_X2APIC != 0;
    let feature = instr::cpuid(1, 0);
    let has_x2apic = feature[2] & (1 << 21) != 0;
    USE_X2APIC.store(on_already || (has_x2apic && allow_x2apic), Ordering::Relaxed);
    TSC_DEADLINE.store(feature[2] & (1 << 24) != 0, Ordering::Relaxed);
    // The page is mapped even for x2APIC: before the switch it is how the timer is measured.
    let page = Hpa::new(base & 0x000f_ffff_ffff_f000);
    let mmio = host::device(page, 4096) as u64;
    let first = if on_already { Access::Msr } else { Access::Mmio(mmio) };
    if USE_X2APIC.load(Ordering::Relaxed) && !on_already {
        // `ACCESS` is set once: measure through MMIO by hand before the switch.
        measure_timer(
            tsc_khz,
            |register| {
                // SAFETY: the local APIC's page, xAPIC mode.
                unsafe { ((mmio + u64::from(register) * 16) as *const u32).read_volatile() }
            },
            |register, value| {
                // SAFETY: as above.
                unsafe { ((mmio + u64::from(register) * 16) as *mut u32).write_volatile(value) }
            },
        );
        // SAFETY: CPUID announces the mode, and the APIC is enabled.
        unsafe { instr::wrmsr(msr::IA32_APIC_BASE, base | msr::APIC_BASE_ENABLE | msr::APIC_BASE_X2APIC) };
        ACCESS.call_once(|| Access::Msr);
    } else {
        ACCESS.call_once(|| first);
        if !TSC_DEADLINE.load(Ordering::Relaxed) {
            measure_timer(tsc_khz, read, write);
        }
    }
    init_cpu();
    log::info!(
        "local APIC: id {}, {}, timer {}",
        id(),
        if access() == Access::Msr { "x2APIC" } else { "xAPIC" },
        if TSC_DEADLINE.load(Ordering::Relaxed) {
            "by TSC deadline".into()
        } else {
            alloc::format!("{} kHz", (TICKS_PER_2_32_NS.load(Ordering::Relaxed) * 1_000_000) >> 32)
        }
    );
}

fn measure_timer(tsc_khz: u64, read: impl Fn(u32) -> u32, write: impl Fn(u32, u32)) {
    write(reg::LVT_TIMER, MASKED | u32::from(vector::TIMER));
    write(reg::TIMER_DIVIDE, 0b1011);
    write(reg::TIMER_INITIAL, u32::MAX);
    let start = instr::rdtsc_ordered();
    let from = read(reg::TIMER_CURRENT);
    let end = start + tsc_khz * 5;
    while instr::rdtsc_ordered() < end {
        core::hint::spin_loop();
    }
    let to = read(reg::TIMER_CURRENT);
    let tsc = instr::rdtsc_ordered() - start;
    write(reg::TIMER_INITIAL, 0);
    let ticks = u64::from(from.wrapping_sub(to));
    // ticks / (tsc / tsc_khz) is ticks per millisecond.
    let per_second = u128::from(ticks) * u128::from(tsc_khz) * 1000 / u128::from(tsc.max(1));
    TICKS_PER_2_32_NS.store(((per_second << 32) / 1_000_000_000) as u64, Ordering::Relaxed);
}

/// Brings this CPU's local APIC into a known state: everything masked but NMI on LINT1, timer one-shot.
pub fn init_cpu() {
    if access() == Access::Msr {
        // SAFETY: x2APIC mode was chosen because every CPU of one machine has it.
        unsafe {
            let base = instr::rdmsr(msr::IA32_APIC_BASE);
            instr::wrmsr(msr::IA32_APIC_BASE, base | msr::APIC_BASE_ENABLE);
            instr::wrmsr(msr::IA32_APIC_BASE, base | msr::APIC_BASE_ENABLE | msr::APIC_BASE_X2APIC);
        }
    } else {
        write(reg::DFR, u32::MAX);
        write(reg::LDR, 0);
    }
    for lvt in [reg::LVT_TIMER, reg::LVT_THERMAL, reg::LVT_PERF, reg::LVT_LINT0] {
        write(lvt, MASKED | u32::from(vector::SPURIOUS));
    }
    write(reg::LVT_LINT1, DELIVERY_NMI);
    write(reg::LVT_ERROR, vector::APIC_ERROR.into());
    write(reg::TPR, 0);
    write(reg::SVR, 1 << 8 | u32::from(vector::SPURIOUS));
    write(reg::ESR, 0);
    if TSC_DEADLINE.load(Ordering::Relaxed) {
        write(reg::LVT_TIMER, TIMER_TSC_DEADLINE | u32::from(vector::TIMER));
    } else {
        write(reg::TIMER_DIVIDE, 0b1011);
        write(reg::LVT_TIMER, vector::TIMER.into());
    }
    percpu::this().apic_id.store(id(), Ordering::Relaxed);
}

/// This CPU's APIC id.
pub fn id() -> u32 {
    match access() {
        Access::Msr => read(reg::ID),
        Access::Mmio(_) => read(reg::ID) >> 24,
    }
}

/// Ends the interrupt in service.
#[inline(always)]
pub fn eoi() {
    write(reg::EOI, 0);
}

/// Sets the timer to fire `ns` nanoseconds from now (at once for 0); `None` stops it.
pub fn set_timer(ns: Option<u64>) {
    if TSC_DEADLINE.load(Ordering::Relaxed) {
        let deadline = ns.map_or(0, |ns| instr::rdtsc() + crate::time::ns_to_tsc(ns).max(1));
        // SAFETY: CPUID announces TSC-deadline mode, and the LVT is in it.
        unsafe { instr::wrmsr(msr::IA32_TSC_DEADLINE, deadline) };
        return;
    }
    let count = ns.map_or(0, |ns| {
        let ticks = (u128::from(ns) * u128::from(TICKS_PER_2_32_NS.load(Ordering::Relaxed))) >> 32;
        // A long wait is cut at the counter's width: the timer fires early and is set again.
        ticks.clamp(1, u32::MAX.into()) as u32
    });
    write(reg::TIMER_INITIAL, count);
}

fn send(destination: u32, command: u32) {
    match access() {
        // SAFETY: x2APIC mode is on; ICR takes any destination with a legal command.
        Access::Msr => unsafe {
            instr::wrmsr(X2APIC_BASE + reg::ICR, u64::from(destination) << 32 | u64::from(command));
        },
        Access::Mmio(_) => instr::without_interrupts(|| {
            while read(reg::ICR) & ICR_PENDING != 0 {
                core::hint::spin_loop();
            }
            write(reg::ICR_HIGH, destination << 24);
            write(reg::ICR, command);
        }),
    }
}

/// Interrupts CPU `apic_id` with `vector`. Memory written before is seen by the handler.
pub fn send_ipi(apic_id: u32, vector: u8) {
    // In x2APIC mode the MSR write is not ordered after earlier stores.
    core::sync::atomic::fence(Ordering::SeqCst);
    send(apic_id, ICR_ASSERT | u32::from(vector));
}

/// Sends an NMI to CPU `apic_id`.
pub fn send_nmi(apic_id: u32) {
    send(apic_id, ICR_ASSERT | DELIVERY_NMI);
}

/// Resets CPU `apic_id` into its wait for a start-up IPI.
pub fn send_init(apic_id: u32) {
    send(apic_id, ICR_ASSERT | 5 << 8);
}

/// Starts CPU `apic_id` in real mode at `page` * 4 KiB.
pub fn send_startup(apic_id: u32, page: u8) {
    send(apic_id, ICR_ASSERT | 6 << 8 | u32::from(page));
}

/// Logs an interrupt that nobody owns, once per vector.
pub fn log_unowned(vector: u8) {
    let bit = 1 << (vector % 64);
    if UNOWNED_LOGGED[usize::from(vector / 64)].fetch_or(bit, Ordering::Relaxed) & bit == 0 {
        log::warn!("interrupt {vector:#x} belongs to nobody: acknowledged");
    }
}

/// Logs the APIC's error register.
pub fn log_error() {
    write(reg::ESR, 0);
    log::warn!("local APIC error {:#x}", read(reg::ESR));
}
