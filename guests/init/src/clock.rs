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
}

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

/// Watch for `duration` on `threads` threads, which hand the last value seen to one another.
pub fn watch(duration: Duration, threads: usize) -> Sanity {
    let (last, samples, backwards, gap) =
        (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let (irqs, wall, begin) = (timer_irqs(), now(libc::CLOCK_REALTIME), Instant::now());
    std::thread::scope(|scope| {
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
    });
    Sanity {
        samples: samples.into_inner(),
        backwards: backwards.into_inner(),
        gap: Duration::from_nanos(gap.into_inner()),
        timer_irqs: timer_irqs().saturating_sub(irqs),
        elapsed: begin.elapsed(),
        wall: Duration::from_nanos(now(libc::CLOCK_REALTIME).saturating_sub(wall)),
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
            "@testudo {level} clock {} samples={} backwards={} maxgap_us={} timer_irqs={} elapsed_ms={} wall_ms={}",
            if verdict.is_ok() { "ok" } else { "failed" },
            self.samples,
            self.backwards,
            self.gap.as_micros(),
            self.timer_irqs,
            self.elapsed.as_millis(),
            self.wall.as_millis(),
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
        // Both clocks derive from one counter; more than 10 % apart means that one of them jumped.
        if self.elapsed.abs_diff(self.wall) > self.elapsed / 10 + Duration::from_millis(50) {
            return Err("monotonic and wall clock disagree".into());
        }
        Ok(())
    }
}
