//! Whether time is sane: the monotonic clock never steps back, on no CPU and between none, and timer interrupts come.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::sys;

/// What was seen.
#[derive(Debug, Clone, Copy)]
pub struct Sanity {
    samples: u64,
    backwards: u64,
    gap: Duration,
    timer_irqs: u64,
    elapsed: Duration,
    wall: Duration,
    silence: Duration,
    busy: Option<u32>,
}

/// The longest that a busy CPU may be without a timer interrupt. Each takes one every few milliseconds; the emulator
/// below may stop for a while, but a timer that is lost never comes again.
const SILENCE: Duration = Duration::from_secs(10);

/// Nanoseconds of a clock, straight from the kernel or the vDSO: std hides backward steps of `Instant`.
fn now(clock: libc::clockid_t) -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills one timespec of ours.
    unsafe { libc::clock_gettime(clock, &raw mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Local timer interrupts since boot, all CPUs; PVH domains may take theirs as event-channel or hypervisor callbacks.
fn timer_irqs() -> u64 {
    let table = sys::line("/proc/interrupts");
    let of_timers = table.lines().filter(|l| {
        let l = l.trim_start();
        l.starts_with("LOC:") || l.starts_with("0:") || l.contains("timer")
    });
    of_timers.flat_map(|l| l.split_whitespace().skip(1).map_while(|n| n.parse::<u64>().ok())).sum()
}

/// Local timer interrupts of each CPU.
fn local_timer_irqs() -> Vec<u64> {
    let table = sys::line("/proc/interrupts");
    let local = table.lines().find_map(|l| l.trim_start().strip_prefix("LOC:"));
    local.map_or(Vec::new(), |l| l.split_whitespace().map_while(|n| n.parse().ok()).collect())
}

/// The longest time until `until` in which some CPU took no timer interrupt.
fn longest_silence(until: Instant) -> Duration {
    let mut last: Vec<_> = local_timer_irqs().into_iter().map(|n| (n, Instant::now())).collect();
    let mut longest = Duration::ZERO;
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(250));
        for (seen, count) in last.iter_mut().zip(local_timer_irqs()) {
            longest = longest.max(seen.1.elapsed());
            if count != seen.0 {
                *seen = (count, Instant::now());
            }
        }
    }
    longest
}

/// Watch for `duration` on `threads` threads, which hand the last value seen to one another. `busy` says that other
/// threads keep every CPU from idling, and how patient to be with its interrupts.
pub fn watch(duration: Duration, threads: usize, busy: Option<u32>) -> Sanity {
    let (last, samples, backwards, gap) =
        (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let (irqs, wall, begin) = (timer_irqs(), now(libc::CLOCK_REALTIME), Instant::now());
    let silence = std::thread::scope(|scope| {
        let silence = busy.map(|_| scope.spawn(move || longest_silence(begin + duration)));
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let mut own = now(libc::CLOCK_MONOTONIC);
                while begin.elapsed() < duration {
                    for _ in 0..64 {
                        let seen = last.load(Ordering::Acquire);
                        let time = now(libc::CLOCK_MONOTONIC);
                        if time < own || time < seen {
                            backwards.fetch_add(1, Ordering::Relaxed);
                        }
                        gap.fetch_max(time.saturating_sub(own), Ordering::Relaxed);
                        last.fetch_max(time, Ordering::AcqRel);
                        own = time;
                    }
                    samples.fetch_add(64, Ordering::Relaxed);
                    // One interrupt's worth of idling, so that a lost timer shows as a gap without end.
                    std::thread::sleep(Duration::from_millis(2));
                    own = now(libc::CLOCK_MONOTONIC);
                }
            });
        }
        // A thread of ours that panicked has said so on the console.
        silence.map_or(Duration::ZERO, |s| s.join().unwrap_or(Duration::MAX))
    });
    Sanity {
        samples: samples.into_inner(),
        backwards: backwards.into_inner(),
        gap: Duration::from_nanos(gap.into_inner()),
        timer_irqs: timer_irqs().saturating_sub(irqs),
        elapsed: begin.elapsed(),
        wall: Duration::from_nanos(now(libc::CLOCK_REALTIME).saturating_sub(wall)),
        silence,
        busy,
    }
}

impl Sanity {
    /// Print the line, and judge.
    ///
    /// # Errors
    /// Which rule was broken.
    pub fn report(&self, level: &str) -> sys::Verdict {
        let verdict = self.judge();
        println!(
            "@testudo {level} clock {} samples={} backwards={} maxgap_us={} timer_irqs={} elapsed_ms={} wall_ms={} silence_ms={}",
            if verdict.is_ok() { "ok" } else { "failed" },
            self.samples,
            self.backwards,
            self.gap.as_micros(),
            self.timer_irqs,
            self.elapsed.as_millis(),
            self.wall.as_millis(),
            self.silence.as_millis(),
        );
        verdict
    }

    fn judge(&self) -> sys::Verdict {
        if self.backwards != 0 {
            return Err(format!("clock stepped back {} times", self.backwards));
        }
        if self.timer_irqs == 0 {
            return Err("no timer interrupts".into());
        }
        if self.busy.is_some_and(|patience| self.silence > SILENCE * patience) {
            return Err(format!("a busy CPU had no timer interrupt for {} ms", self.silence.as_millis()));
        }
        // Both clocks derive from one counter; more than 10 % apart means that one of them jumped.
        if self.elapsed.abs_diff(self.wall) > self.elapsed / 10 + Duration::from_millis(50) {
            return Err("monotonic and wall clock disagree".into());
        }
        Ok(())
    }
}
