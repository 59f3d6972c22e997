//! The watchdog: a CPU that is busy without getting anywhere is reported, with registers, by an NMI.
//!
//! A performance counter of each CPU counts its cycles (not those it sleeps) and raises an NMI about once
//! per second. Code that shows progress calls [`beat`]. If no beat has come over five such NMIs and five
//! seconds, the CPU is stuck, and the NMI ends in a panic that names it.
//!
//! An NMI that arrives in a guest ends the guest's run; the exit's handler calls [`beat`], so a guest that
//! never exits by itself is no reason for alarm. What this cannot see is a CPU stuck with GIF=0, where NMIs
//! are held back, or asleep for ever.
// UNSAFETY: model-specific registers, the local APIC's performance counter entry.
#![allow(unsafe_code)]

use crate::cpu::{instr, msr, percpu};
use crate::mm::host;
use crate::time;
use crate::trap::{Frame, probe};
use addr::Hpa;
use boot::cmdline::Watchdog;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use percpu::MAX_CPUS;

/// Event select and counter 0 (APM vol. 2, "Performance Event-Select Registers").
const PERF_EVT_SEL0: u32 = 0xc001_0000;
const PERF_CTR0: u32 = 0xc001_0004;
/// Version 2 has an enable bit per counter and a status to be cleared (APM vol. 2, "Core Performance Monitoring
/// Counters"; CPUID 8000_0022 EAX bit 0).
const PERF_CNTR_GLOBAL_CTL: u32 = 0xc000_0301;
const PERF_CNTR_GLOBAL_STATUS_CLR: u32 = 0xc000_0302;
/// Event 76h, cycles not in halt; user and system mode; interrupt; enable. Neither host-only nor guest-only.
const CYCLES_NOT_HALTED: u64 = 0x76 | 1 << 16 | 1 << 17 | 1 << 20 | 1 << 22;
/// Width of the counter.
const COUNTER_BITS: u32 = 48;
/// The local vector table's performance counter entry: xAPIC offset, x2APIC MSR, and NMI delivery.
const LVT_PERF_OFFSET: u64 = 0x340;
const LVT_PERF_MSR: u32 = 0x834;
const DELIVERY_NMI: u32 = 4 << 8;
const MASKED: u32 = 1 << 16;

/// How long a busy CPU may go without a beat, in ns.
pub const LIMIT_NS: u64 = 5_000_000_000;
/// And over how many NMIs: time a CPU sleeps does not count.
const LIMIT_NMIS: u64 = 5;

static ON: AtomicBool = AtomicBool::new(false);
/// Counter steps between two NMIs.
static PERIOD: AtomicU64 = AtomicU64::new(0);
/// The local APIC's entry in memory; 0 in x2APIC mode.
static LVT: AtomicU64 = AtomicU64::new(0);
static CPUS: [State; MAX_CPUS] = [const { State::new() }; MAX_CPUS];

/// What is known of one CPU. Only that CPU writes it.
#[derive(Debug)]
struct State {
    /// Counts beats.
    beats: AtomicU64,
    /// `beats` as the last NMI saw it.
    seen: AtomicU64,
    /// System time of the first NMI that saw no new beat.
    since: AtomicU64,
    /// NMIs since the last beat.
    silent: AtomicU64,
    /// All NMIs of this watchdog.
    nmis: AtomicU64,
    /// Its counter runs.
    armed: AtomicBool,
}

impl State {
    const fn new() -> Self {
        State {
            beats: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            since: AtomicU64::new(0),
            silent: AtomicU64::new(0),
            nmis: AtomicU64::new(0),
            armed: AtomicBool::new(false),
        }
    }

    fn beat(&self) {
        // Only this CPU writes: a plain load and store cannot lose a count.
        self.beats.store(self.beats.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Takes an NMI at system time `now` into account. Whether the CPU is stuck.
    fn nmi(&self, now: u64) -> bool {
        self.nmis.fetch_add(1, Ordering::Relaxed);
        let beats = self.beats.load(Ordering::Relaxed);
        let silent = self.silent.load(Ordering::Relaxed);
        if self.seen.swap(beats, Ordering::Relaxed) != beats || silent == 0 {
            self.since.store(now, Ordering::Relaxed);
            self.silent.store(1, Ordering::Relaxed);
            return false;
        }
        self.silent.store(silent.saturating_add(1), Ordering::Relaxed);
        silent >= LIMIT_NMIS && now.saturating_sub(self.since.load(Ordering::Relaxed)) >= LIMIT_NS
    }
}

/// This CPU shows progress. Called by the run loop at each turn (timer expiries included) and at exits that an
/// NMI caused; cheap.
#[inline]
pub fn beat() {
    if let Some(state) = this_cpu() {
        state.beat();
    }
}

/// Whether the watchdog runs.
pub fn running() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Starts the watchdog on the boot CPU if `mode` asks for it and the machine can do it; logs the outcome. Time
/// and the local APIC must be set up, interrupts may be on or off. Then every other CPU calls [`start_cpu`].
pub fn init(mode: Watchdog) -> bool {
    if mode == Watchdog::Off {
        return false;
    }
    if !super::mitigation::facts().amd || !counts() {
        log::warn!("watchdog: no performance counter");
        return false;
    }
    // SAFETY: every x86-64 CPU has this MSR.
    let base = unsafe { instr::rdmsr(msr::IA32_APIC_BASE) };
    if base & msr::APIC_BASE_X2APIC == 0 {
        let page = host::device(Hpa::new(base & 0x000f_ffff_ffff_f000), addr::PAGE_SIZE);
        LVT.store(page as u64 + LVT_PERF_OFFSET, Ordering::Relaxed);
    }
    // A trial with NMIs of a millisecond.
    PERIOD.store(time::tsc_khz().max(1), Ordering::Relaxed);
    ON.store(true, Ordering::SeqCst);
    start_cpu();
    let state = &CPUS[0];
    let end = time::now() + 100_000_000;
    while state.nmis.load(Ordering::Relaxed) < 2 && time::now() < end {
        core::hint::spin_loop();
    }
    PERIOD.store(time::tsc_khz().saturating_mul(1000).max(1), Ordering::Relaxed);
    let works = state.nmis.load(Ordering::Relaxed) >= 2;
    if works || mode == Watchdog::Force {
        beat();
        arm();
        log::info!("watchdog: on{}", if works { "" } else { " by force, though no NMI arrived" });
        return true;
    }
    stop();
    log::warn!("watchdog: performance counters raise no NMI; it stays off");
    false
}

/// Starts the watchdog on this CPU if it runs on the boot CPU. On each other CPU, once its local APIC is set
/// up; again after the local APIC was reset.
pub fn start_cpu() {
    if running() {
        if let Some(state) = this_cpu() {
            state.armed.store(true, Ordering::SeqCst);
        }
        write_lvt(DELIVERY_NMI);
        if version_2() {
            let enabled = probe::rdmsr(PERF_CNTR_GLOBAL_CTL).unwrap_or(0);
            // SAFETY: enables counter 0, which is Testudo's.
            unsafe { probe::wrmsr(PERF_CNTR_GLOBAL_CTL, enabled | 1) };
        }
        arm();
        // SAFETY: the counter was found to work; its NMI has a handler.
        unsafe { probe::wrmsr(PERF_EVT_SEL0, CYCLES_NOT_HALTED) };
    }
}

/// Stops the watchdog: on this CPU at once, on each other one at its next NMI. For what takes long on
/// purpose.
pub fn stop() {
    ON.store(false, Ordering::SeqCst);
    stop_cpu();
}

fn stop_cpu() {
    // SAFETY: clears the event.
    unsafe { probe::wrmsr(PERF_EVT_SEL0, 0) };
    write_lvt(MASKED | DELIVERY_NMI);
    if let Some(state) = this_cpu() {
        state.armed.store(false, Ordering::SeqCst);
    }
}

fn this_cpu() -> Option<&'static State> {
    CPUS.get(percpu::this().index as usize)
}

/// Handles an NMI if it is the watchdog's. Called by the NMI handler, once it knows that the machine is not
/// being stopped. Panics if this CPU is stuck.
pub fn is_ours(frame: &Frame) -> bool {
    let Some(state) = this_cpu().filter(|state| state.armed.load(Ordering::Relaxed)) else { return false };
    // The counter is armed negative: it has overflowed if its top bit is clear. Another NMI leaves it alone.
    if probe::rdmsr(PERF_CTR0).is_none_or(|count| !overflowed(count)) {
        return false;
    }
    if !running() {
        stop_cpu();
        return true;
    }
    if state.nmi(time::now()) {
        let (cpu, seconds) = (percpu::this().index, LIMIT_NS / 1_000_000_000);
        crate::report::exception(
            frame,
            format_args!("watchdog: CPU {cpu} has made no progress for {seconds} seconds"),
        );
    }
    arm();
    // Some CPUs mask the entry when it delivers.
    write_lvt(DELIVERY_NMI);
    true
}

/// The counter's value from which `period` steps lead to its overflow.
const fn start_value(period: u64) -> u64 {
    (1 << COUNTER_BITS) - if period >= 1 << (COUNTER_BITS - 1) { 1 << (COUNTER_BITS - 1) } else { period }
}

/// Whether a counter that was armed has overflowed.
const fn overflowed(count: u64) -> bool {
    count >> (COUNTER_BITS - 1) & 1 == 0
}

fn arm() {
    // SAFETY: the counter is Testudo's: guests have none.
    unsafe {
        probe::wrmsr(PERF_CTR0, start_value(PERIOD.load(Ordering::Relaxed)));
        if version_2() {
            probe::wrmsr(PERF_CNTR_GLOBAL_STATUS_CLR, 1);
        }
    }
}

fn version_2() -> bool {
    instr::cpuid(0x8000_0000, 0)[0] >= 0x8000_0022 && instr::cpuid(0x8000_0022, 0)[0] & 1 != 0
}

/// Whether counter 0 counts: hypervisors and emulators have the register, and ignore it.
fn counts() -> bool {
    const EXTENDED: u64 = CYCLES_NOT_HALTED & !(1 << 20);
    // SAFETY: counts without interrupts for a moment.
    unsafe {
        if !probe::wrmsr(PERF_EVT_SEL0, 0) || !probe::wrmsr(PERF_CTR0, 0) {
            return false;
        }
        if version_2() {
            let enabled = probe::rdmsr(PERF_CNTR_GLOBAL_CTL).unwrap_or(0);
            probe::wrmsr(PERF_CNTR_GLOBAL_CTL, enabled | 1);
        }
        let taken = probe::wrmsr(PERF_EVT_SEL0, EXTENDED);
        time::pause_us(100);
        let count = probe::rdmsr(PERF_CTR0);
        probe::wrmsr(PERF_EVT_SEL0, 0);
        taken && count.is_some_and(|count| count > 1000)
    }
}

fn write_lvt(value: u32) {
    match LVT.load(Ordering::Relaxed) {
        0 => {
            // SAFETY: x2APIC mode: the register exists. Refused in xAPIC mode, before `init`.
            unsafe { probe::wrmsr(LVT_PERF_MSR, value.into()) };
        }
        // SAFETY: the local APIC's page, mapped by `init`; the same physical address on every CPU.
        at => unsafe { (at as *mut u32).write_volatile(value) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_cpu_that_beats_is_never_stuck() {
        let state = State::new();
        for second in 0..100 {
            state.beat();
            assert!(!state.nmi(second * SECOND));
        }
    }

    #[test]
    fn five_silent_seconds_are_too_many() {
        let state = State::new();
        state.beat();
        let stuck = (0..).find(|second| state.nmi(second * SECOND)).unwrap();
        assert_eq!(stuck, 5);
    }

    #[test]
    fn a_beat_in_time_starts_over() {
        let state = State::new();
        for second in 0..5 {
            assert!(!state.nmi(second * SECOND));
        }
        state.beat();
        for second in 5..10 {
            assert!(!state.nmi(second * SECOND), "{second}");
        }
        assert!(state.nmi(10 * SECOND));
    }

    #[test]
    fn sleep_is_no_silence() {
        let state = State::new();
        state.beat();
        assert!(!state.nmi(0));
        // Asleep for an hour: few NMIs, much time.
        assert!(!state.nmi(3600 * SECOND));
        assert!(!state.nmi(3601 * SECOND));
        state.beat();
        assert!(!state.nmi(3602 * SECOND));
    }

    #[test]
    fn a_fast_counter_is_no_short_patience() {
        let state = State::new();
        // A CPU at thrice its nominal clock: NMIs come three times per second.
        let stuck = (0..).find(|third| state.nmi(third * SECOND / 3)).unwrap();
        assert_eq!(stuck, 15);
    }

    #[test]
    fn the_counter_overflows_after_its_period() {
        for period in [1, 1_000, 4_700_000_000, (1 << 47) - 1, 1 << 47, u64::MAX] {
            let start = start_value(period);
            assert!(!overflowed(start), "{period}");
            let steps = period.min(1 << 47);
            assert!(!overflowed((start + steps - 1) & ((1 << 48) - 1)));
            assert!(overflowed((start + steps) & ((1 << 48) - 1)));
        }
    }
}
