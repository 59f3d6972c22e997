//! Who comes first, for how long, and who gets how much: pure decisions over the units' accounts.

use super::unit::Unit;
use crate::sync::atomic::Ordering::SeqCst;
use core::fmt;

/// Times that steer the scheduler, all in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunables {
    /// Longest run before others are looked at.
    pub slice: u64,
    /// How often consumed time is given back by weight.
    pub period: u64,
    /// By how much a unit must be ahead to preempt another, or to be taken from another pCPU's queue.
    pub margin: u64,
}

impl Default for Tunables {
    fn default() -> Self {
        Self { slice: 10_000_000, period: 30_000_000, margin: 1_000_000 }
    }
}

/// Calls its argument for each unit.
pub type Visit<'a> = &'a dyn Fn(&mut dyn FnMut(&Unit));

/// A scheduling policy. Mechanism (queues, locks, pCPUs, wake-ups) is in [`super::Scheduler`].
pub trait Policy: Send + Sync + fmt::Debug + 'static {
    /// Its name, as in `sched=`.
    fn name(&self) -> &'static str;
    /// Precedence of a unit that waits or has run `ran` ns since it was last charged; higher goes first,
    /// equals go first come, first served. The scale is ns of entitlement.
    fn precedence(&self, unit: &Unit, ran: u64) -> i64;
    /// `unit` ran for `ns`.
    fn charge(&self, unit: &Unit, ns: u64);
    /// The units together ran `consumed` ns since the last call: gives it back by weight.
    fn distribute(&self, visit: Visit<'_>, consumed: u64);
}

/// Proportional share by credit.
///
/// What all units consume in a period is given back to them by weight, but no unit holds more than a
/// period's worth: what a sleeper does not take is shared by the others, again by weight, so their ratio
/// stays right. Credit is conserved, so a unit's credit is its lag behind its fair share.
/// A unit that slept has credit left and so preempts those that did not: that is the wake-up boost, and
/// it is bounded by the cap.
///
/// Known limit: the shares are machine-wide. Units that hard affinity crowds on few pCPUs while others
/// are underused all reach the cap, and then take turns regardless of weight.
#[derive(Clone, Copy, Debug)]
pub struct Credit {
    cap: i64,
}

impl Credit {
    /// A policy for these times.
    pub fn new(tunables: &Tunables) -> Self {
        Self { cap: i64::try_from(tunables.period).unwrap_or(i64::MAX) }
    }
}

impl Policy for Credit {
    fn name(&self) -> &'static str {
        "credit"
    }
    fn precedence(&self, unit: &Unit, ran: u64) -> i64 {
        unit.credit().saturating_sub_unsigned(ran)
    }
    fn charge(&self, unit: &Unit, ns: u64) {
        // The floor keeps a unit that ran alone for long from being shut out for long afterwards.
        unit.charge(ns, self.cap.saturating_mul(-8));
    }
    fn distribute(&self, visit: Visit<'_>, consumed: u64) {
        visit(&mut |unit| unit.full.store(false, SeqCst));
        let mut left = i64::try_from(consumed).unwrap_or(i64::MAX);
        // Each round gives to those below the cap; who reaches it leaves the next round. What is left
        // after the last round is lost, which happens only when nearly all are at the cap.
        for _ in 0..8 {
            let mut weights = 0u64;
            visit(&mut |unit| {
                if !unit.full.load(SeqCst) {
                    weights += u64::from(unit.weight());
                }
            });
            if left <= 0 || weights == 0 {
                break;
            }
            let pot = left;
            visit(&mut |unit| {
                if unit.full.load(SeqCst) {
                    return;
                }
                // At most `pot`, as a weight that grew meanwhile could make it more.
                let share = i128::from(pot) * i128::from(unit.weight()) / i128::from(weights);
                let share = i64::try_from(share).unwrap_or(pot).min(left.max(0));
                let room = self.cap.saturating_sub(unit.credit()).max(0);
                unit.full.store(room <= share, SeqCst);
                let gift = share.min(room);
                unit.add_credit(gift, self.cap);
                left -= gift;
            });
        }
    }
}

/// Everybody in turn, one slice each; weights are ignored. For tests and for debugging a guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundRobin;

impl Policy for RoundRobin {
    fn name(&self) -> &'static str {
        "rr"
    }
    fn precedence(&self, _: &Unit, _: u64) -> i64 {
        0
    }
    fn charge(&self, unit: &Unit, ns: u64) {
        unit.charge(ns, i64::MIN);
    }
    fn distribute(&self, _: Visit<'_>, _: u64) {}
}
