//! `cap=`: how much CPU time a domain's vCPUs may use together, whatever else is idle.
//!
//! In each period a domain is given so much time; what its vCPUs run is taken from it, and once it is used
//! up they wait for the next period. An overrun (a pCPU looks at the clock only now and then) is a debt that the next
//! periods pay, so that the long-term share is the cap, not a little more.

use crate::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};

/// Shortest run that a pCPU is switched for, in ns.
const GRAIN: i64 = 500_000;

/// The CPU time of a capped domain. Lock-free; shared by its vCPUs.
#[derive(Debug)]
pub struct Budget {
    /// ns of each period.
    quota: i64,
    /// ns; its phase is the system time's.
    period: u64,
    /// How many vCPUs draw from it.
    sharers: i64,
    /// ns left in this period; negative is a debt.
    left: AtomicI64,
    /// Number of the period that `left` belongs to.
    epoch: AtomicU64,
}

impl Budget {
    /// `percent` of one pCPU for `sharers` vCPUs together, measured over `period` ns. `None` for 0, which is no
    /// limit, as in Xen.
    pub fn new(percent: u32, sharers: u32, period: u64) -> Option<Self> {
        let period = period.max(1);
        let quota = i64::try_from(u128::from(period) * u128::from(percent) / 100).unwrap_or(i64::MAX);
        (percent != 0).then(|| Self {
            quota: quota.max(1),
            period,
            sharers: i64::from(sharers.max(1)),
            left: AtomicI64::new(quota.max(1)),
            epoch: AtomicU64::new(0),
        })
    }

    /// ns left at `now` (system time, ns); 0 or less: nothing may run.
    pub fn left(&self, now: u64) -> i64 {
        let (epoch, now_in) = (self.epoch.load(SeqCst), now / self.period);
        // Clocks of two pCPUs may differ a little: the period never goes back.
        if now_in > epoch && self.epoch.compare_exchange(epoch, now_in, SeqCst, SeqCst).is_ok() {
            let periods = i64::try_from(now_in - epoch).unwrap_or(i64::MAX);
            let gift = self.quota.saturating_mul(periods);
            // What a period did not use is lost: a domain that slept gets no burst above its cap.
            let refill = |left: i64| Some(left.saturating_add(gift).min(self.quota));
            let _ = self.left.fetch_update(SeqCst, SeqCst, refill);
        }
        self.left.load(SeqCst)
    }

    /// How long one vCPU may run from `now`, if all may at once.
    pub fn slice(&self, now: u64) -> u64 {
        (self.left(now) / self.sharers).max(GRAIN.min(self.quota)) as u64
    }

    /// One of the vCPUs ran for `ns`.
    pub fn charge(&self, ns: u64) {
        let ns = i64::try_from(ns).unwrap_or(i64::MAX);
        let _ = self.left.fetch_update(SeqCst, SeqCst, |left| Some(left.saturating_sub(ns)));
    }

    /// When there will be time again: after `now`, system time in ns.
    pub fn refill_at(&self, now: u64) -> u64 {
        let debt = self.left(now).min(0).unsigned_abs();
        let periods = debt / self.quota.unsigned_abs() + 1;
        (now / self.period).saturating_add(periods).saturating_mul(self.period)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn no_cap_is_no_budget() {
        assert!(Budget::new(0, 1, 30 * MS).is_none());
        assert_eq!(Budget::new(150, 2, 30 * MS).unwrap().left(0), 45 * MS as i64);
    }

    #[test]
    fn a_period_gives_the_quota_and_no_more() {
        let budget = Budget::new(50, 1, 30 * MS).unwrap();
        budget.charge(15 * MS);
        assert_eq!(budget.left(29 * MS), 0);
        assert_eq!(budget.refill_at(29 * MS), 30 * MS);
        assert_eq!(budget.left(30 * MS), 15 * MS as i64);
        assert_eq!(budget.left(900 * MS), 15 * MS as i64, "sleeping saves nothing up");
    }

    #[test]
    fn an_overrun_is_paid_back() {
        let budget = Budget::new(50, 1, 30 * MS).unwrap();
        budget.charge(40 * MS);
        assert_eq!(budget.left(0), -25 * MS as i64);
        assert_eq!(budget.refill_at(1), 60 * MS);
        assert!(budget.left(30 * MS) < 0);
        assert_eq!(budget.left(60 * MS), 5 * MS as i64);
    }

    #[test]
    fn sharers_split_what_is_left_and_no_run_is_too_short() {
        let budget = Budget::new(100, 3, 30 * MS).unwrap();
        assert_eq!(budget.slice(0), 10 * MS);
        budget.charge(30 * MS - 10);
        assert_eq!(budget.slice(0), 500_000);
        assert_eq!(Budget::new(1, 1, 30 * MS).unwrap().slice(0), 300_000, "not more than a whole quota");
    }

    proptest! {
        /// Whenever there is nothing left, there is something at the time that is told.
        #[test]
        fn the_refill_comes_when_it_is_said(
            percent in 1u32..70_000, period in 1u64..1 << 40, ran in any::<u64>(), now in 0u64..1 << 50,
        ) {
            let budget = Budget::new(percent, 1, period).unwrap();
            budget.left(now);
            budget.charge(ran >> 20);
            let at = budget.refill_at(now);
            prop_assert!(at > now);
            if budget.left(now) <= 0 && at < u64::MAX {
                prop_assert!(budget.left(at) > 0);
            }
        }
    }
}
