//! Rate limits of the log, so that nobody who can cause a message can flood it.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// A second, in ns.
const SECOND: u64 = 1_000_000_000;

/// Whether a message may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes; so many before it were not.
    Show {
        /// Messages withheld since the last one shown.
        withheld: u32,
    },
    /// No.
    Withhold,
}

/// So many messages at once, and one more for each interval that passes. Lock-free.
///
/// It keeps the time at which the whole burst would be there again (the "virtual scheduling" form of the generic cell
/// rate algorithm, ITU-T I.371).
#[derive(Debug)]
pub struct RateLimit {
    interval: u64,
    burst: u64,
    full_at: AtomicU64,
    withheld: AtomicU32,
}

impl RateLimit {
    /// Xen's: ten messages, and one every five seconds.
    pub const fn xens() -> Self {
        Self::new(10, 5 * SECOND)
    }

    /// `burst` messages at once (at least one), and one more every `interval` ns.
    pub const fn new(burst: u32, interval: u64) -> Self {
        let burst = if burst == 0 { 1 } else { burst as u64 };
        Self { interval, burst, full_at: AtomicU64::new(0), withheld: AtomicU32::new(0) }
    }

    /// Asks for one message at `now` (ns, any clock that goes on).
    pub fn check(&self, now: u64) -> Verdict {
        let most = now.saturating_add(self.interval.saturating_mul(self.burst));
        let take = |full_at: u64| {
            let next = full_at.max(now).saturating_add(self.interval);
            (next <= most).then_some(next)
        };
        if self.full_at.fetch_update(SeqCst, SeqCst, take).is_ok() {
            return Verdict::Show { withheld: self.withheld.swap(0, SeqCst) };
        }
        let _ = self.withheld.fetch_update(SeqCst, SeqCst, |n| n.checked_add(1));
        Verdict::Withhold
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHOW: Verdict = Verdict::Show { withheld: 0 };

    #[test]
    fn a_burst_then_one_each_interval_and_the_rest_is_counted() {
        let limit = RateLimit::new(2, SECOND);
        assert_eq!([limit.check(7), limit.check(7), limit.check(8)], [SHOW, SHOW, Verdict::Withhold]);
        assert_eq!(limit.check(SECOND), Verdict::Withhold);
        assert_eq!(limit.check(SECOND + 7), Verdict::Show { withheld: 2 });
        assert_eq!(limit.check(SECOND + 8), Verdict::Withhold);
        // After a long silence the burst is there again, and no more than that.
        let later = 100 * SECOND;
        assert_eq!(limit.check(later), Verdict::Show { withheld: 1 });
        assert_eq!([limit.check(later), limit.check(later)], [SHOW, Verdict::Withhold]);
    }

    #[test]
    fn a_flood_shows_what_xen_would_show_of_it() {
        let limit = RateLimit::xens();
        let shown = (0..60_000u64).filter(|ms| limit.check(ms * 1_000_000) != Verdict::Withhold).count();
        assert_eq!(shown, 10 + 11, "ten, and one for each full five seconds of the minute");
    }

    proptest! {
        #[test]
        fn never_more_than_the_burst_and_the_intervals_allow(
            burst in 1u32..20, steps in prop::collection::vec(0u64..3, 1..300),
        ) {
            let limit = RateLimit::new(burst, 10);
            let (mut now, mut shown) = (0, 0u64);
            for step in steps {
                now += step;
                shown += u64::from(limit.check(now) != Verdict::Withhold);
            }
            prop_assert!(shown <= u64::from(burst) + now / 10);
        }
    }
}
