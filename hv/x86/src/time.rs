//! Time: the TSC, measured once, is Testudo's clock.
// UNSAFETY: I/O ports of the timers it is measured against.
#![allow(unsafe_code)]

use crate::cpu::instr;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

static TSC_KHZ: AtomicU64 = AtomicU64::new(0);
static TSC_BASE: AtomicU64 = AtomicU64::new(0);
/// ns = (tsc << SHIFT, or >> -SHIFT) * MUL >> 32, as in pvclock.
static MUL: AtomicU32 = AtomicU32::new(0);
static SHIFT: AtomicU32 = AtomicU32::new(0);

static WALLCLOCK: AtomicU64 = AtomicU64::new(0);
/// The TSC when the boot loader handed over.
static HANDOVER: AtomicU64 = AtomicU64::new(0);

/// A reference clock of known frequency.
#[derive(Clone, Copy, Debug)]
pub enum Reference {
    /// The ACPI power-management timer at this port; 24 or 32 bits wide.
    PmTimer {
        /// I/O port.
        port: u16,
    },
    /// Channel 2 of the 8254.
    Pit,
}

const PM_TIMER_HZ: u64 = 3_579_545;
const PIT_HZ: u64 = 1_193_182;

/// Notes the TSC of the boot loader's hand-over. Once, by the entry code.
pub fn set_handover(tsc: u64) {
    HANDOVER.store(tsc, Ordering::Relaxed);
}

/// TSC ticks since the boot loader's hand-over.
pub fn since_handover() -> u64 {
    instr::rdtsc().wrapping_sub(HANDOVER.load(Ordering::Relaxed))
}

/// Reads the real-time clock (CMOS), UTC as firmware keeps it. Once, at boot, after [`init`].
pub fn init_wallclock() {
    let Some(seconds) = read_rtc() else {
        log::warn!("no real-time clock: guests begin at 1970");
        return;
    };
    WALLCLOCK.store((seconds * 1_000_000_000).saturating_sub(now()), Ordering::Relaxed);
}

/// Seconds since 1970, from the RTC's registers (MC146818A data sheet). Read until two readings agree, so that
/// none falls into an update.
fn read_rtc() -> Option<u64> {
    // SAFETY: index and data port of the RTC, which no domain has; bit 7 of the index masks no NMI here.
    let register = |index: u8| unsafe {
        instr::outb(0x70, index);
        instr::inb(0x71)
    };
    let fields = || [0, 2, 4, 7, 8, 9, 0x32].map(register);
    let mut last = fields();
    let mut tries = 0;
    loop {
        let next = fields();
        if next == last && register(0x0a) & 0x80 == 0 {
            break;
        }
        last = next;
        tries += 1;
        if tries == 10_000 {
            return None;
        }
    }
    rtc_seconds(last, register(0x0b))
}

/// `fields`: second, minute, hour, day, month, year, century; `status`: register B (bit 2 binary, bit 1
/// 24-hour).
fn rtc_seconds(fields: [u8; 7], status: u8) -> Option<u64> {
    let binary = status & 4 != 0;
    let number = |raw: u8| u64::from(if binary { raw } else { (raw >> 4) * 10 + (raw & 0xf) });
    let afternoon = status & 2 == 0 && fields[2] & 0x80 != 0;
    let mut hour = number(fields[2] & if status & 2 == 0 { 0x7f } else { 0xff });
    if status & 2 == 0 {
        hour = hour % 12 + if afternoon { 12 } else { 0 };
    }
    let century = match number(fields[6]) {
        century @ 19..=99 => century,
        _ => 20,
    };
    let (year, month, day) = (century * 100 + number(fields[5]), number(fields[4]), number(fields[3]));
    if !(1970..3000).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days from the civil calendar, the year beginning in March so that leap days come last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + hour * 3600 + number(fields[1]) * 60 + number(fields[0]))
}

/// Measures the TSC against `reference` and starts the clock at zero.
pub fn init(reference: Reference) {
    let khz = announced_khz().unwrap_or_else(|| match reference {
        Reference::PmTimer { port } => by_pm_timer(port),
        Reference::Pit => by_pit(),
    });
    set_frequency(khz);
    TSC_BASE.store(instr::rdtsc_ordered(), Ordering::Relaxed);
    log::info!("TSC: {}.{:03} MHz by {reference:?}", khz / 1000, khz % 1000);
}

fn set_frequency(khz: u64) {
    let (mul, shift) = scale(khz);
    TSC_KHZ.store(khz, Ordering::Relaxed);
    MUL.store(mul, Ordering::Relaxed);
    SHIFT.store(shift as u32, Ordering::Relaxed);
}

/// Multiplier and shift that turn ticks of `khz` into nanoseconds, as pvclock wants them: the multiplier
/// has its top bit set.
pub fn scale(khz: u64) -> (u32, i8) {
    let mut shift = 0i8;
    let mut mul = (1_000_000u128 << 32) / u128::from(khz.max(1));
    while mul > u128::from(u32::MAX) {
        mul >>= 1;
        shift += 1;
    }
    while mul < 1 << 31 {
        shift -= 1;
        mul = ((1_000_000u128 << 32) << -shift) / u128::from(khz.max(1));
    }
    (mul as u32, shift)
}

/// Ticks to nanoseconds.
#[inline(always)]
pub fn tsc_to_ns(ticks: u64) -> u64 {
    let shift = SHIFT.load(Ordering::Relaxed) as i32;
    let scaled = if shift >= 0 { u128::from(ticks) << shift } else { u128::from(ticks) >> -shift };
    ((scaled * u128::from(MUL.load(Ordering::Relaxed))) >> 32) as u64
}

/// Nanoseconds to ticks, rounded up.
pub fn ns_to_tsc(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(TSC_KHZ.load(Ordering::Relaxed))).div_ceil(1_000_000) as u64
}

/// Nanoseconds since the clock was started; the same on all CPUs as far as their TSCs agree.
#[inline(always)]
pub fn now() -> u64 {
    tsc_to_ns(instr::rdtsc().wrapping_sub(TSC_BASE.load(Ordering::Relaxed)))
}

/// UTC at system time zero, in ns since 1970: from the real-time clock, read once.
pub fn wallclock() -> u64 {
    WALLCLOCK.load(Ordering::Relaxed)
}

/// TSC value at system time zero.
pub fn tsc_base() -> u64 {
    TSC_BASE.load(Ordering::Relaxed)
}

/// The TSC's frequency.
pub fn tsc_khz() -> u64 {
    TSC_KHZ.load(Ordering::Relaxed)
}

/// Spins for `us` microseconds: only for hardware that demands a pause (INIT to SIPI).
pub fn pause_us(us: u64) {
    let end = instr::rdtsc() + ns_to_tsc(us * 1000);
    while instr::rdtsc() < end {
        core::hint::spin_loop();
    }
}

/// What CPUID (leaf 15h, or leaf 40000010h of a hypervisor below us) says outright.
fn announced_khz() -> Option<u64> {
    let max = instr::cpuid(0, 0)[0];
    if max >= 0x15 {
        let [denominator, numerator, crystal, _] = instr::cpuid(0x15, 0);
        if denominator != 0 && numerator != 0 && crystal != 0 {
            return Some(u64::from(crystal) * u64::from(numerator) / u64::from(denominator) / 1000);
        }
    }
    let hypervisor = instr::cpuid(1, 0)[2] & (1 << 31) != 0;
    let timing = hypervisor && (0x4000_0010..0x4001_0000).contains(&instr::cpuid(0x4000_0000, 0)[0]);
    let khz = if timing { instr::cpuid(0x4000_0010, 0)[0] } else { 0 };
    (khz != 0).then_some(khz.into())
}

/// Reads `clock` between two TSC reads that lie close together: an emulator's or SMM's pause in between
/// would spoil the pair. Returns the tightest of eight.
fn pair(clock: impl Fn() -> u32) -> (u64, u32) {
    let read = || {
        let before = instr::rdtsc_ordered();
        let value = clock();
        let after = instr::rdtsc_ordered();
        (after - before, before + (after - before) / 2, value)
    };
    let (_, tsc, value) = (0..8).map(|_| read()).min_by_key(|r| r.0).expect("eight tries");
    (tsc, value)
}

fn by_pm_timer(port: u16) -> u64 {
    // SAFETY: the port is the PM timer's by the FADT; reading it has no side effect.
    let clock = || unsafe { instr::inl(port) } & 0xff_ffff;
    let (tsc0, t0) = pair(clock);
    // 25 ms.
    let wanted = (PM_TIMER_HZ / 40) as u32;
    while clock().wrapping_sub(t0) & 0xff_ffff < wanted {
        core::hint::spin_loop();
    }
    let (tsc1, t1) = pair(clock);
    let ticks = u64::from(t1.wrapping_sub(t0) & 0xff_ffff);
    (u128::from(tsc1 - tsc0) * u128::from(PM_TIMER_HZ) / u128::from(ticks.max(1)) / 1000) as u64
}

fn by_pit() -> u64 {
    // SAFETY: channel 2 and its gate (port 61h) belong to Testudo; the speaker stays off.
    let clock = || unsafe {
        instr::outb(0x43, 0x80);
        let low = instr::inb(0x42);
        let high = instr::inb(0x42);
        0xffff - u32::from(u16::from_le_bytes([low, high]))
    };
    // SAFETY: as above: gate on, speaker off, mode 2 (rate), count 65536.
    unsafe {
        let gate = instr::inb(0x61);
        instr::outb(0x61, (gate & !2) | 1);
        instr::outb(0x43, 0xb4);
        instr::outb(0x42, 0);
        instr::outb(0x42, 0);
    }
    let (tsc0, t0) = pair(clock);
    let wanted = (PIT_HZ / 40) as u32;
    while clock().wrapping_sub(t0) & 0xffff < wanted {
        core::hint::spin_loop();
    }
    let (tsc1, t1) = pair(clock);
    let ticks = u64::from(t1.wrapping_sub(t0) & 0xffff);
    (u128::from(tsc1 - tsc0) * u128::from(PIT_HZ) / u128::from(ticks.max(1)) / 1000) as u64
}

#[cfg(test)]
mod tests {
    use super::{rtc_seconds, scale};

    #[test]
    fn the_real_time_clock_is_read_in_both_codes() {
        // 2026-11-22 16:05:09, BCD and binary, 24 hours; and 4 pm of 12 hours.
        let expected = 1_795_363_509;
        assert_eq!(rtc_seconds([0x09, 0x05, 0x16, 0x22, 0x11, 0x26, 0x20], 2), Some(expected));
        assert_eq!(rtc_seconds([9, 5, 16, 22, 11, 26, 20], 6), Some(expected));
        assert_eq!(rtc_seconds([9, 5, 0x84, 22, 11, 26, 20], 4), Some(expected));
        assert_eq!(rtc_seconds([0, 0, 0, 1, 1, 0x70, 0x19], 2), Some(0));
        assert_eq!(rtc_seconds([0, 0, 0, 0, 0, 0, 0], 2), None, "no clock at all");
    }

    #[test]
    fn a_second_is_a_second_at_any_frequency() {
        for khz in [1_000, 999_999, 1_000_000, 2_400_123, 5_700_000] {
            let (mul, shift) = scale(khz);
            let ticks = u128::from(khz) * 1000;
            let scaled = if shift >= 0 { ticks << shift } else { ticks >> -shift };
            let ns = (scaled * u128::from(mul)) >> 32;
            assert!(ns.abs_diff(1_000_000_000) < 10, "{khz} kHz: {ns}");
            assert!(mul >> 31 == 1, "{khz} kHz: multiplier {mul:#x} wastes bits");
        }
    }
}
