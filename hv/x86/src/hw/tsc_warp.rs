//! Do the CPUs' time-stamp counters agree? Each CPU that starts is compared with the boot CPU.
//!
//! Both loop for a few milliseconds: look at the latest value that either has published, read the own TSC,
//! publish it. A TSC that reads less than a value published before it was read has *warped*: time would run
//! backwards for a vCPU that moves from one to the other. What is shorter than a cache line's way between
//! the CPUs stays unseen, but no program can see it either.
//!
//! Nothing here waits without bound: a CPU that dies in the middle costs the other one its patience, and
//! then the TSCs count as not compared, hence not stable.

use crate::cpu::{instr, percpu};
use crate::time;
use boot::cmdline::Tsc;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use spin::Once;

/// How long a pair of CPUs is compared, in ns.
const COMPARE_NS: u64 = 2_000_000;
/// How often each must have seen a value of the other's: a hypervisor below might run one after the other.
const EXCHANGES: u32 = 16;
/// The sides, as bit 0 of a published value.
const BOOT: u64 = 0;
const PEER: u64 = 1;
/// How long a CPU that has met the other waits for its next step, in ns.
const PATIENCE_NS: u64 = 1_000_000_000;
/// Most turns of any loop: should the TSC stand still, time-outs in ticks would never end.
const MAX_TURNS: u64 = 1 << 28;

/// What a meeting does; the low bits of its state word, below the peer's index.
mod phase {
    /// Nobody.
    pub const IDLE: u32 = 0;
    /// The boot CPU waits for the peer.
    pub const OFFERED: u32 = 1;
    /// The peer is there.
    pub const ARRIVED: u32 = 2;
    /// Both compare.
    pub const COMPARING: u32 = 3;
    /// The peer has finished.
    pub const DONE: u32 = 4;
    /// Width of the phase.
    pub const BITS: u32 = 3;
}

/// Where the boot CPU and one other CPU meet.
#[derive(Debug)]
struct Meeting {
    state: AtomicU32,
    /// The latest TSC value; the side that published it in bit 0.
    latest: AtomicU64,
    warp: AtomicU64,
    /// Sides that have seen enough.
    content: AtomicU32,
}

/// A CPU's clock, how many of its ticks comparing and waiting take, and the most turns of a loop.
struct Clock<F> {
    tsc: F,
    compare: u64,
    patience: u64,
    turns: u64,
}

impl<F: Fn() -> u64> Clock<F> {
    /// Spins until `done` or until `ticks` have gone by; whether `done`.
    fn wait(&self, ticks: u64, done: impl Fn() -> bool) -> bool {
        let start = (self.tsc)();
        for _ in 0..self.turns {
            if done() {
                return true;
            }
            if (self.tsc)().wrapping_sub(start) > ticks {
                break;
            }
            core::hint::spin_loop();
        }
        done()
    }
}

impl Meeting {
    const fn new() -> Self {
        Self {
            state: AtomicU32::new(phase::IDLE),
            latest: AtomicU64::new(0),
            warp: AtomicU64::new(0),
            content: AtomicU32::new(0),
        }
    }

    fn is(&self, peer: u32, phase: u32) -> bool {
        self.state.load(Ordering::Acquire) == word(peer, phase)
    }

    fn step(&self, peer: u32, from: u32, to: u32) -> bool {
        let (from, to) = (word(peer, from), word(peer, to));
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The boot CPU's part. `arrival`: ticks to wait for the peer. `None` if it has not come.
    fn boot_side(&self, peer: u32, arrival: u64, clock: &Clock<impl Fn() -> u64>) -> Option<Outcome> {
        self.latest.store(0, Ordering::Relaxed);
        self.warp.store(0, Ordering::Relaxed);
        self.content.store(0, Ordering::Relaxed);
        self.state.store(word(peer, phase::OFFERED), Ordering::Release);
        clock.wait(arrival, || self.is(peer, phase::ARRIVED));
        // Taking the offer back fails if the peer has come at the last moment.
        if self.step(peer, phase::OFFERED, phase::IDLE) {
            return None;
        }
        self.step(peer, phase::ARRIVED, phase::COMPARING);
        let compared = self.compare(BOOT, clock);
        let finished = clock.wait(clock.patience, || self.is(peer, phase::DONE)) && compared;
        self.state.store(phase::IDLE, Ordering::Release);
        Some(if finished { Outcome::Warp(self.warp.load(Ordering::Acquire)) } else { Outcome::Lost })
    }

    /// The other CPU's part.
    fn peer_side(&self, me: u32, clock: &Clock<impl Fn() -> u64>) {
        clock.wait(clock.patience, || self.is(me, phase::OFFERED));
        if !self.step(me, phase::OFFERED, phase::ARRIVED) {
            return;
        }
        if clock.wait(clock.patience, || self.is(me, phase::COMPARING)) {
            self.compare(PEER, clock);
            self.step(me, phase::COMPARING, phase::DONE);
        }
    }

    /// Compares until both sides have seen enough of each other. Whether that came to pass.
    fn compare(&self, side: u64, clock: &Clock<impl Fn() -> u64>) -> bool {
        let start = (clock.tsc)();
        let (mut worst, mut exchanges, mut content) = (0, 0, false);
        for _ in 0..clock.turns {
            // Looked at before the own TSC is read, so it was also published before.
            let seen = self.latest.load(Ordering::SeqCst);
            let now = (clock.tsc)();
            worst = worst.max((seen & !1).saturating_sub(now));
            // If this fails the other has just published: its value will do.
            let published = seen.max(now) & !1 | side;
            let _ = self.latest.compare_exchange(seen, published, Ordering::SeqCst, Ordering::Relaxed);
            if seen & 1 != side {
                exchanges += 1;
            } else {
                // Nothing new; an emulator that runs one CPU at a time lets the other run.
                core::hint::spin_loop();
            }
            let elapsed = now.wrapping_sub(start);
            if !content && elapsed > clock.compare && exchanges >= EXCHANGES {
                content = true;
                self.content.fetch_add(1, Ordering::SeqCst);
            }
            if self.content.load(Ordering::SeqCst) >= 2 || elapsed > clock.patience {
                break;
            }
        }
        self.warp.fetch_max(worst, Ordering::SeqCst);
        self.content.load(Ordering::SeqCst) >= 2
    }
}

const fn word(peer: u32, phase: u32) -> u32 {
    if phase == phase::IDLE { 0 } else { peer << phase::BITS | phase }
}

/// How a meeting ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Compared: by how many ticks time ran backwards at most.
    Warp(u64),
    /// The peer fell silent, or hardly ever ran at the same time.
    Lost,
}

/// What the meetings have shown so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Largest warp, in TSC ticks.
    pub warp: u64,
    /// CPU it was seen on.
    pub warped_cpu: u32,
    /// CPUs that were compared with the boot CPU.
    pub compared: u32,
    /// CPUs that came up, or began to, but were not compared.
    pub missed: u32,
}

static MEETING: Meeting = Meeting::new();
static WARP: AtomicU64 = AtomicU64::new(0);
static WARPED_CPU: AtomicU32 = AtomicU32::new(0);
static COMPARED: AtomicU32 = AtomicU32::new(0);
static MISSED: AtomicU32 = AtomicU32::new(0);

fn clock() -> Clock<fn() -> u64> {
    Clock {
        tsc: instr::rdtsc_ordered,
        compare: time::ns_to_tsc(COMPARE_NS),
        patience: time::ns_to_tsc(PATIENCE_NS),
        turns: MAX_TURNS,
    }
}

/// The boot CPU's part of comparing with CPU `peer_index`, after the start-up IPI: waits `arrival_us`
/// microseconds at most for it to call [`ap_side`], then compares for about 2 ms. `false`: it has not come
/// (send the second start-up IPI and call again).
pub fn boot_side(peer_index: u32, arrival_us: u64) -> bool {
    let arrival = time::ns_to_tsc(arrival_us.saturating_mul(1000));
    match MEETING.boot_side(peer_index, arrival, &clock()) {
        None => return false,
        Some(Outcome::Lost) => {
            MISSED.fetch_add(1, Ordering::Relaxed);
        }
        Some(Outcome::Warp(warp)) => {
            COMPARED.fetch_add(1, Ordering::Relaxed);
            if warp > WARP.fetch_max(warp, Ordering::Relaxed) {
                WARPED_CPU.store(peer_index, Ordering::Relaxed);
            }
        }
    }
    true
}

/// The other CPU's part: called by a CPU that is coming up, before it reports online. Returns within about
/// three seconds even if the boot CPU never answers.
pub fn ap_side() {
    MEETING.peer_side(percpu::this().index, &clock());
}

/// What has been measured. `cpus` is the number of CPUs that are up, the boot CPU included.
pub fn measured(cpus: u32) -> Measured {
    let compared = COMPARED.load(Ordering::Relaxed);
    let missed = MISSED.load(Ordering::Relaxed).max(cpus.saturating_sub(compared + 1));
    Measured {
        warp: WARP.load(Ordering::Relaxed),
        warped_cpu: WARPED_CPU.load(Ordering::Relaxed),
        compared,
        missed,
    }
}

/// Whether the TSC may be called stable, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All CPUs' TSCs agree and go on at one pace: pvclock's stable bit and guests' invariant TSC.
    Stable(Measured),
    /// The operator says so (`tsc=stable:socket`), whatever was measured.
    StableByOption {
        /// What was measured.
        measured: Measured,
        /// CPUID's invariant bit.
        invariant: bool,
    },
    /// The operator says so (`tsc=unstable`, `tsc=skewed`).
    UnstableByOption,
    /// CPUID does not announce an invariant TSC: it may stop or change its pace.
    NotInvariant,
    /// Time ran backwards from one CPU to another.
    Warped(Measured),
    /// Not every CPU could be compared.
    NotCompared(Measured),
}

impl Verdict {
    /// Whether the TSC is stable.
    pub const fn stable(&self) -> bool {
        matches!(self, Verdict::Stable(_) | Verdict::StableByOption { .. })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Stable(m) if m.compared == 0 => f.write_str("TSC: stable (invariant, one CPU)"),
            Verdict::Stable(m) => {
                write!(f, "TSC: stable (invariant, no warp on {} CPUs)", m.compared + 1)
            }
            Verdict::StableByOption { measured, invariant } => {
                f.write_str("TSC: stable by tsc=stable:socket")?;
                if !invariant {
                    f.write_str(", though not announced as invariant")?;
                }
                if measured.warp != 0 {
                    write!(f, ", though CPU {} warps by {} ticks", measured.warped_cpu, measured.warp)?;
                }
                Ok(())
            }
            Verdict::UnstableByOption => f.write_str("TSC: unstable by tsc="),
            Verdict::NotInvariant => f.write_str("TSC: unstable (not announced as invariant)"),
            Verdict::Warped(m) => {
                write!(f, "TSC: unstable (CPU {} warps by {} ticks)", m.warped_cpu, m.warp)
            }
            Verdict::NotCompared(m) => write!(f, "TSC: unstable ({} CPUs could not be compared)", m.missed),
        }
    }
}

/// From what was measured, CPUID's invariant bit (8000_0007 EDX bit 8; APM vol. 3, appendix E) and the
/// option `tsc=`.
pub fn verdict(measured: Measured, invariant: bool, option: Option<Tsc>) -> Verdict {
    match option {
        Some(Tsc::Unstable | Tsc::Skewed) => Verdict::UnstableByOption,
        Some(Tsc::StableSocket) => Verdict::StableByOption { measured, invariant },
        None if measured.warp != 0 => Verdict::Warped(measured),
        None if !invariant => Verdict::NotInvariant,
        None if measured.missed != 0 => Verdict::NotCompared(measured),
        None => Verdict::Stable(measured),
    }
}

/// Whether CPUID announces an invariant TSC.
pub fn invariant() -> bool {
    instr::cpuid(0x8000_0000, 0)[0] >= 0x8000_0007 && instr::cpuid(0x8000_0007, 0)[3] & (1 << 8) != 0
}

static VERDICT: Once<Verdict> = Once::new();
/// Read by code that must not wait for the verdict.
static STABLE: AtomicBool = AtomicBool::new(false);

/// Decides, logs and remembers: once, on the boot CPU, when all `cpus` CPUs are up.
pub fn decide(cpus: u32, option: Option<Tsc>) -> Verdict {
    *VERDICT.call_once(|| {
        let verdict = verdict(measured(cpus), invariant(), option);
        let doubtful = matches!(verdict, Verdict::Warped(_) | Verdict::NotCompared(_));
        log::log!(if doubtful { log::Level::Warn } else { log::Level::Info }, "{verdict}");
        STABLE.store(verdict.stable(), Ordering::Release);
        verdict
    })
}

/// Whether the TSC has been found stable; `false` before [`decide`].
pub fn stable() -> bool {
    STABLE.load(Ordering::Acquire)
}

#[cfg(test)]
mod tests;
